"""Who a browser is: the signed cookie, the identity token, and the visitor id of a browser that has no cookie yet.

Codecs only: time is an argument, nothing is stored and nothing is decided. What follows from an identity (trust against
the store, log-outs, holds) is decided in `admission`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import IntEnum
from functools import lru_cache
from typing import Any

import jwt
import msgspec
from itsdangerous import BadSignature, Signer

from proxy.core.emails import clean_address
from proxy.core.pushes import Attributes, Reason, mended, parse_vouched

SECURE_COOKIE = "__Host-scq"
LOOPBACK_COOKIE = "scq"
COOKIE_AGE = timedelta(days=365)
RENEW_AFTER = timedelta(days=7)
CLOCK_SKEW = timedelta(minutes=5)
TOKEN_AUDIENCE = "scq"
TOKEN_AGE = timedelta(hours=1)
TOKEN_LEEWAY = timedelta(seconds=30)
_COOKIE_SALT = "scq-proxy.visitor-cookie.v1"
_PROBE_SALT = "scq-proxy.check.v1"
_MAX_COOKIE = 1_024  # characters; ours stay under 600
_CACHED_COOKIES = _CACHED_SESSIONS = 8_192


class Trust(IntEnum):
    """How well the visitor is known: not at all, by an address typed in a page, by a token of the site's back end."""

    ANONYMOUS = 0
    ASSERTED = 1
    VERIFIED = 2


class Visitor(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the cookie says. `issued` and `verified` (the last token) are Unix seconds; trust is as of `issued`."""

    id: str
    email: str | None = None
    trust: Trust = Trust.ANONYMOUS
    issued: int = 0
    verified: int = 0
    consent: bool = True

    def trust_at(self, now: float, verified_for: timedelta) -> Trust:
        """The trust that counts now: a verification fades to an assertion after `verified_for`."""
        if self.trust is Trust.VERIFIED and now - self.verified > verified_for.total_seconds():
            return Trust.ASSERTED
        return self.trust

    def supersedes(self, other: Visitor) -> bool:
        """Whether this is a later state of the same visitor: in the same second, the one that knows an address is."""
        if self.issued == other.issued:
            return self.email is not None and other.email is None
        return self.issued > other.issued


class CookieCodec:
    """Signs visitors into cookie values and reads them back. `keys`: oldest first; the last signs, all verify."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._signer = Signer(list(keys), salt=_COOKIE_SALT, key_derivation="hmac", digest_method=hashlib.sha256)
        # A visitor's cookie stays the same for days, so its signature is checked once, not at every push.
        self._verified = lru_cache(maxsize=_CACHED_COOKIES)(self._unsign)

    def encode(self, visitor: Visitor) -> str:
        payload = base64.urlsafe_b64encode(msgspec.json.encode(visitor)).rstrip(b"=")
        return self._signer.sign(payload).decode("ascii")

    def decode(self, value: str, now: float) -> Visitor | None:
        """The visitor, or None for a cookie that is forged, cut off, expired or from the future."""
        if len(value) > _MAX_COOKIE:
            return None
        visitor = self._verified(value)
        if visitor is None:
            return None
        age = now - visitor.issued
        return visitor if -CLOCK_SKEW.total_seconds() <= age <= COOKIE_AGE.total_seconds() else None

    def _unsign(self, value: str) -> Visitor | None:
        try:
            payload = self._signer.unsign(value.encode("ascii"))
            return _visitors.decode(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
        except (BadSignature, msgspec.DecodeError, ValueError):
            return None


_visitors = msgspec.json.Decoder(Visitor)


class ProbeCodec:
    """Proves to a proxy that whoever asks has its signing key: how `scq-proxy check --url` asks what the proxy saw."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._signer = Signer(list(keys), salt=_PROBE_SALT, key_derivation="hmac", digest_method=hashlib.sha256)

    def sign(self, now: float) -> str:
        return self._signer.sign(str(int(now))).decode("ascii")

    def holds(self, value: str, now: float) -> bool:
        """Whether the proof is genuine and fresh, give or take the clock skew of two machines."""
        try:
            return abs(now - int(self._signer.unsign(value.encode("latin-1")))) <= CLOCK_SKEW.total_seconds()
        except (BadSignature, ValueError):
            return False


def cookie_name(origin: str) -> str:
    """`__Host-scq` for pages on https; plain `scq` where TLS is missing, which is allowed on loopback only."""
    return SECURE_COOKIE if origin.startswith("https:") else LOOPBACK_COOKIE


def read_cookie(header: str, name: str) -> str | None:
    """The value of the cookie `name` in a Cookie header; None if it is missing or occurs twice.

    Twice means that someone else (a sibling sub-domain, a plain-http page) has planted one: then neither is believed.
    """
    found: str | None = None
    for part in header.split(";"):
        # Blanks and tabs only: to a browser, a name that begins with another kind of space is not `__Host-`, and anybody may set it.
        key, _, value = part.strip(" \t").partition("=")
        if key == name:
            if found is not None:
                return None
            found = value
    return found


def set_cookie(name: str, value: str) -> str:
    """The Set-Cookie header for a signed value."""
    secure = "; Secure" if name == SECURE_COOKIE else ""
    return f"{name}={value}; Path=/; Max-Age={int(COOKIE_AGE.total_seconds())}{secure}; HttpOnly; SameSite=Lax"


def derived_visitor(session: str, site_key: bytes) -> str:
    """The visitor id of a browser without a cookie: the same for all its tabs, not computable outside the server."""
    return _derive(b"visitor:", session, site_key)


def next_session(push_id: str, site_key: bytes) -> str:
    """The browser-session value that follows the push (a reset, another person's login) which ends the old one.

    Derived, so that a retry of that push whose answer was lost gets the same one again.
    """
    return _derive(b"session:", push_id, site_key)


def random_visitor() -> str:
    return secrets.token_urlsafe(16)


@lru_cache(maxsize=_CACHED_SESSIONS)
def _derive(purpose: bytes, text: str, site_key: bytes) -> str:
    digest = hmac.digest(site_key, purpose + text.encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode("ascii")


class Vouched(msgspec.Struct, frozen=True):
    """What a valid identity token says. `ignored`: parts of its `contact` that SendX has no place for; `issued`: Unix seconds."""

    email: str
    attributes: Attributes
    ignored: tuple[str, ...] = ()
    issued: float = 0


class TokenProblem(msgspec.Struct, frozen=True):
    """Why a token is refused; `detail` is for the operator and quotes nothing of the token."""

    reason: Reason
    detail: str


class TokenCodec:
    """Identity tokens: JWT, HS256 only. `keys`: (kid or None, secret).

    A token with a known kid is checked with that key alone; one with an unknown kid, with the keys that have none; one without, with
    every key.
    """

    def __init__(self, keys: Sequence[tuple[str | None, str]]) -> None:
        self._named: Mapping[str, str] = {kid: secret for kid, secret in keys if kid is not None}
        self._unnamed = tuple(secret for kid, secret in keys if kid is None)

    def mint(self, email: str, now: float, lifetime: timedelta, contact: Mapping[str, Any] | None = None) -> str:
        """A token as the site's back end would sign it, with the last key without a kid, else the last with one."""
        claims: dict[str, Any] = {
            "email": email,
            "iat": int(now),
            "exp": int(now + lifetime.total_seconds()),
            "aud": TOKEN_AUDIENCE,
        }
        if contact:
            claims["contact"] = dict(contact)
        if self._unnamed:
            return jwt.encode(claims, self._unnamed[-1], algorithm="HS256")
        kid = list(self._named)[-1]
        return jwt.encode(claims, self._named[kid], algorithm="HS256", headers={"kid": kid})

    def verify(self, token: str, now: float) -> Vouched | TokenProblem:
        claims = self._signed_claims(token)
        if isinstance(claims, TokenProblem):
            return claims
        try:
            # A back end that cuts a text in the middle of an emoji signs half a surrogate pair, which no UTF-8 can hold.
            return _expired(claims, now) or _vouched(mended(claims))
        except RecursionError:
            return _bad("its claims are nested too deeply")

    def _signed_claims(self, token: str) -> dict[str, Any] | TokenProblem:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            return _bad("it is no JWT")
        problem = _bad("SCQ_IDENTITY_KEYS has no key for its kid")
        for key in self._candidates(kid):
            try:
                return jwt.decode(token, key, algorithms=["HS256"], audience=TOKEN_AUDIENCE, options=_UNTIMED)
            except jwt.InvalidSignatureError:
                problem = _bad("its signature is of no key in SCQ_IDENTITY_KEYS")
            except jwt.InvalidAlgorithmError:
                return _bad("it is not signed with HS256")
            except jwt.InvalidAudienceError:
                return _bad('its aud is not "scq"')
            except jwt.MissingRequiredClaimError as error:
                return _bad(f"the claim {error.claim} is missing")
            except (jwt.PyJWTError, ValueError, RecursionError):
                return _bad("its claims cannot be read")
        return problem

    def _candidates(self, kid: object) -> tuple[str, ...]:
        if isinstance(kid, str):
            return (self._named[kid],) if kid in self._named else self._unnamed
        return self._unnamed + tuple(self._named.values())


# PyJWT compares with its own clock; here the time is an argument, so these three are checked below.
_UNTIMED: Any = {
    "require": ["email", "iat", "exp", "aud"],
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_sub": False,
    "verify_jti": False,
}


def _bad(detail: str) -> TokenProblem:
    return TokenProblem(Reason.BAD_TOKEN, detail)


def _expired(claims: Mapping[str, Any], now: float) -> TokenProblem | None:
    times = [claims["iat"], claims["exp"], claims.get("nbf", 0)]
    if not all(_is_time(time) for time in times):
        return _bad("iat and exp are Unix seconds, and one of them is no such number")
    issued, expires, not_before = times
    leeway = TOKEN_LEEWAY.total_seconds()
    if now > expires + leeway:
        return TokenProblem(Reason.EXPIRED_TOKEN, f"it expired {now - expires:.0f} seconds ago")
    if max(issued, not_before) > now + leeway:
        return _bad("its iat or nbf is in the future: compare the clocks of the two machines")
    if not expires <= now + TOKEN_AGE.total_seconds() + leeway:
        return _bad("its exp is more than an hour ahead")
    return None


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_ALL_TIME < value < _ALL_TIME


_ALL_TIME = 1e11  # seconds; some three thousand years


def _vouched(claims: Mapping[str, Any]) -> Vouched | TokenProblem:
    email = claims["email"]
    address = clean_address(email) if isinstance(email, str) else None
    if address is None:
        return _bad("its email is no e-mail address")
    contact = claims.get("contact")
    if contact is None:
        return Vouched(address, Attributes(), issued=claims["iat"])
    parsed = parse_vouched(contact) if isinstance(contact, dict) else None
    if parsed is None:
        return _bad(
            "its contact object has a value that SendX could not take (texts, a list of tags, a map of custom fields)"
        )
    attributes, ignored = parsed
    return Vouched(address, attributes, tuple(f"contact.{name}" for name in ignored), claims["iat"])
