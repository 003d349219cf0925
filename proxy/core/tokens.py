"""Identity tokens: JWTs that the site's back end signs to say who is logged in.

A codec only: time is an argument, nothing is stored and nothing is decided.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import jwt
import msgspec

from proxy.core.calls import Attributes
from proxy.core.emails import carriable_address
from proxy.core.parsing import mended, parse_contact
from proxy.core.reasons import Reason

TOKEN_AUDIENCE = "scq"
TOKEN_AGE = timedelta(hours=1)
TOKEN_LEEWAY = timedelta(seconds=30)
_ALL_TIME = 1e11  # seconds; some three thousand years


class Vouched(msgspec.Struct, frozen=True):
    """What a valid identity token says. `ignored`: parts of its `contact` that SendX could not take; `issued`: Unix seconds."""

    email: str
    attributes: Attributes
    ignored: tuple[str, ...] = ()
    issued: float = 0


class TokenProblem(msgspec.Struct, frozen=True):
    """Why a token is refused; `detail` is for the operator and quotes nothing of the token.

    `names`: the address in a token whose signature verifies, "" if that is none; None if it does not verify. A site that signs for somebody
    says that nobody else is here, even where that somebody cannot be let in.
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
        claims = self._signed_claims(token)
        if isinstance(claims, TokenProblem):
            return claims
        try:
            # A back end that cuts a text in the middle of an emoji signs half a surrogate pair, which no UTF-8 can hold.
            return _judge(mended(claims), now)
        except RecursionError:
            return msgspec.structs.replace(_bad("its claims are nested too deeply"), names="")

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
            except jwt.MissingRequiredClaimError:
                return _bad("the claim aud is missing")
            except (jwt.PyJWTError, ValueError, RecursionError):
                return _bad("its claims cannot be read")
        return problem

    def _candidates(self, kid: object) -> tuple[str, ...]:
        if isinstance(kid, str):
            return (self._named[kid],) if kid in self._named else self._unnamed
        return self._unnamed + tuple(self._named.values())


# PyJWT compares with its own clock; here the time is an argument, so these three are checked below, with what else may be missing.
_UNTIMED: Any = {
    "require": ["aud"],
    **dict.fromkeys(("verify_exp", "verify_iat", "verify_nbf", "verify_sub", "verify_jti"), False),
}


def _bad(detail: str) -> TokenProblem:
    return TokenProblem(Reason.BAD_TOKEN, detail)


def _judge(claims: Mapping[str, Any], now: float) -> Vouched | TokenProblem:
    """Judges claims whose signature verifies: whatever is wrong with them, the answer says whom they name."""
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


def _untimely(claims: Mapping[str, Any], now: float) -> TokenProblem | None:
    times = [claims["iat"], claims["exp"], claims.get("nbf", 0)]
    numbers = [time for time in times if isinstance(time, int | float) and not isinstance(time, bool)]
    if len(numbers) < len(times) or not all(-_ALL_TIME < time < _ALL_TIME for time in numbers):
        return _bad("iat and exp are Unix seconds, and one of them is not such a number")
    issued, expires, not_before = times
    leeway = TOKEN_LEEWAY.total_seconds()
    if now > expires + leeway:
        return TokenProblem(Reason.EXPIRED_TOKEN, f"it expired {now - expires:.0f} seconds ago")
    if max(issued, not_before) > now + leeway:
        return _bad("its iat or nbf is in the future: compare the clocks of the two machines")
    if not expires <= now + TOKEN_AGE.total_seconds() + leeway:
        return _bad("its exp is more than an hour ahead")
    return None
