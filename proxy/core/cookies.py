"""The signed visitor cookie: written, read, and what is treated as if it were not there.

A codec only: time is an argument, nothing is stored and nothing is decided.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache

import msgspec
from itsdangerous import BadSignature, Signer

from proxy.core.visitors import CACHED_VISITORS, Visitor

SECURE_COOKIE = "__Host-scq"
LOOPBACK_COOKIE = "scq"
COOKIE_AGE = timedelta(days=365)
RENEW_AFTER = timedelta(days=7)
CLOCK_SKEW = timedelta(minutes=5)
CLOCK_AHEAD = timedelta(
    days=1
)  # by which a clock may have been ahead and corrected since, without making visitors anonymous
_COOKIE_SALT = "scq-proxy.visitor-cookie.v1"
_PROBE_SALT = "scq-proxy.check.v1"
_MAX_COOKIE = 1_024  # characters; ours stay under 600


class CookieCodec:
    """Signs visitors into cookie values and reads them back. `keys`: oldest first; the last signs, all verify."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._signer = Signer(list(keys), salt=_COOKIE_SALT, key_derivation="hmac", digest_method=hashlib.sha256)
        # A visitor's cookie stays the same for days, so its signature is checked once, not at every push.
        self._verified = lru_cache(maxsize=CACHED_VISITORS)(self._unsign)

    def encode(self, visitor: Visitor) -> str:
        payload = base64.urlsafe_b64encode(msgspec.json.encode(visitor)).rstrip(b"=")
        return self._signer.sign(payload).decode("ascii")

    def decode(self, value: str, now: float) -> Visitor | None:
        """Returns the visitor, None for a cookie that is forged, truncated, expired or from more than a day in the future.

        One from the future counts as a day older than it says: the time of signing is unknown, and an erasure since then must apply to it.
        """
        if len(value) > _MAX_COOKIE:
            return None
        visitor = self._verified(value)
        if visitor is None:
            return None
        age = now - visitor.issued
        if -CLOCK_SKEW.total_seconds() <= age <= COOKIE_AGE.total_seconds():
            return visitor
        if -CLOCK_AHEAD.total_seconds() <= age < 0:
            return msgspec.structs.replace(visitor, issued=visitor.issued - int(CLOCK_AHEAD.total_seconds()))
        return None

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
    secure = "; Secure" if name == SECURE_COOKIE else ""
    return f"{name}={value}; Path=/; Max-Age={int(COOKIE_AGE.total_seconds())}{secure}; HttpOnly; SameSite=Lax"
