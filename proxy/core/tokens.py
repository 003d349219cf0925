"""Identity tokens: JWTs that the site's back end signs to say who is logged in.

A codec only: time is an argument, nothing is stored and nothing is decided.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import jwt
import msgspec

from proxy.core.calls import Attributes
from proxy.core.emails import carriable_address
from proxy.core.parsing import bounded_int, mended, parse_contact
from proxy.core.reasons import MAX_TOKEN, Reason

TOKEN_AUDIENCE = "scq"
TOKEN_AGE = timedelta(hours=1)
TOKEN_LEEWAY = timedelta(seconds=30)
_CLOCK = "the clock of the store (the database's, or this machine's with SQLite): compare it with the clock of the server that signs tokens"
_ALL_TIME = 1e11  # seconds; some three thousand years


class Vouched(msgspec.Struct, frozen=True):
    """What a valid identity token says. `ignored`: parts of its `contact` that SendX could not take; `issued`: Unix seconds."""

    email: str
    attributes: Attributes
    ignored: tuple[str, ...] = ()
    issued: float = 0


class TokenProblem(msgspec.Struct, frozen=True):
    """Why a token is refused; `detail` is for the operator and quotes nothing of the token.

    `names`: the address in a token whose signature verifies, "" if it has none that is usable; None if the signature does not verify. By
    signing for one person, the site says that nobody else is here, even if that person cannot be let in.
    """

    reason: Reason
    detail: str
    names: str | None = None


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
        payload = self._signed(token)
        if isinstance(payload, TokenProblem):
            return payload
        try:
            # Numbers of thousands of digits are read as infinity. A back end that cuts a text in the middle of an emoji signs half a surrogate
            # pair, which no UTF-8 can hold.
            claims = mended(json.loads(payload, parse_int=bounded_int))
        except (ValueError, RecursionError):
            claims = None  # written in Latin-1, for example
        if not isinstance(claims, dict):
            return msgspec.structs.replace(
                _bad("its claims are not a JSON object in UTF-8, or nested too deeply"), names=""
            )
        judged = _judge(claims, now)
        if len(token) > MAX_TOKEN and isinstance(judged, Vouched):
            return TokenProblem(Reason.TOO_LONG, f"it has more than {MAX_TOKEN:,} characters", judged.email)
        return judged

    def _signed(self, token: str) -> bytes | TokenProblem:
        """Returns the payload of a token whose signature verifies, unread."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            return _bad("it is not a JWT")
        problem = _bad("SCQ_IDENTITY_KEYS has no key for its kid")
        for key in self._candidates(kid):
            try:
                payload: bytes = _jws.decode(token, key, algorithms=["HS256"])
            except jwt.InvalidSignatureError:
                problem = _bad("its signature is of no key in SCQ_IDENTITY_KEYS")
            except jwt.InvalidAlgorithmError:
                return _bad("it is not signed with HS256")
            except (jwt.PyJWTError, ValueError, RecursionError):
                return _bad("it cannot be read")
            else:
                return payload
        return problem

    def _candidates(self, kid: object) -> tuple[str, ...]:
        if isinstance(kid, str):
            return (self._named[kid],) if kid in self._named else self._unnamed
        return self._unnamed + tuple(self._named.values())


# Signatures alone: it would refuse claims that it cannot read, or whose time has passed by its own clock, and not say that they were signed.
_jws = jwt.PyJWS()


def _bad(detail: str) -> TokenProblem:
    return TokenProblem(Reason.BAD_TOKEN, detail)


def _judge(claims: Mapping[str, Any], now: float) -> Vouched | TokenProblem:
    """Judges claims whose signature verifies. Whatever is wrong with them, the result says whom they name."""
    if (stray := _stray(claims.get("aud"))) is not None:
        return stray
    email = claims.get("email")
    address = carriable_address(email) if isinstance(email, str) else None
    missing = [name for name in ("email", "iat", "exp") if claims.get(name) is None]
    if missing:
        problem = _bad(f"the claim {missing[0]} is missing")
    elif address is None:
        problem = _bad("its email is not an e-mail address")
    elif (untimely := _untimely(claims, now)) is not None:
        problem = untimely
    else:
        attributes, ignored = parse_contact(claims.get("contact"))
        return Vouched(address, attributes, ignored, claims["iat"])
    return msgspec.structs.replace(problem, names=address or "")


def _stray(audience: Any) -> TokenProblem | None:
    """Judges the audience. A token for another service does not say who is here."""
    if not audience:
        return _bad("the claim aud is missing")
    audiences = audience if isinstance(audience, list) else [audience]
    meant = all(isinstance(each, str) for each in audiences) and TOKEN_AUDIENCE in audiences
    return None if meant else _bad('its aud is not "scq"')


def _untimely(claims: Mapping[str, Any], now: float) -> TokenProblem | None:
    times = [claims["iat"], claims["exp"], claims.get("nbf", 0)]
    numbers = [time for time in times if isinstance(time, int | float) and not isinstance(time, bool)]
    if len(numbers) < len(times) or not all(-_ALL_TIME < time < _ALL_TIME for time in numbers):
        return _bad("iat and exp are Unix seconds, and one of them is not such a number")
    issued, expires, not_before = times
    leeway = TOKEN_LEEWAY.total_seconds()
    if now > expires + leeway:
        return TokenProblem(Reason.EXPIRED_TOKEN, f"it expired {now - expires:.0f} seconds ago by {_CLOCK}")
    if max(issued, not_before) > now + leeway:
        ahead = max(issued, not_before) - now
        return _bad(f"its iat or nbf is {ahead:.0f} seconds in the future by {_CLOCK}")
    if not expires <= now + TOKEN_AGE.total_seconds() + leeway:
        return _bad("its exp is more than an hour ahead")
    return None
