"""The visitor: who a browser is, how far its address is trusted, and the ids derived from what it shows."""

import base64
import hmac
from datetime import timedelta
from enum import IntEnum
from functools import lru_cache
from typing import Self

import msgspec

from proxy.core.emails import lane_key

CACHED_VISITORS = 8_192  # each by its cookie and by its browser-session value


class Trust(IntEnum):
    """How well a visitor is known: not at all, by an address typed in a page, or by a token from the site's back end."""

    ANONYMOUS = 0
    ASSERTED = 1
    VERIFIED = 2


class Visitor(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of the cookie. `issued` and `verified` (the last token) are Unix seconds; trust is as of `issued`."""

    id: str
    email: str | None = None
    trust: Trust = Trust.ANONYMOUS
    issued: int = 0
    verified: int = 0
    consent: bool = True

    def trust_at(self, now: float, verified_for: timedelta) -> Trust:
        """Returns the trust that counts now: a verification fades to an assertion after `verified_for`."""
        if self.trust is Trust.VERIFIED and now - self.verified > verified_for.total_seconds():
            return Trust.ASSERTED
        return self.trust

    def supersedes(self, other: Self) -> bool:
        """Returns whether this is a later state of the same visitor. Within one second, the state with an address is the later."""
        if self.issued == other.issued:
            return self.email is not None and other.email is None
        return self.issued > other.issued


NOBODY = "#"  # in place of a lane key: nobody may identify as the visitor
_FNV_BASIS, _FNV_PRIME = 2_166_136_261, 16_777_619


def fingerprint(text: str) -> str:
    """Returns what stands for an address whose log-in got no answer, in place of a lane key: "#" and a number of 32 bits.

    The script computes the number from the address in the token (FNV-1a over UTF-16, lower case), because neither token nor address may be
    stored in the browser. Equal numbers hint at who was about to log in; they prove nothing.
    """
    units = text.strip().lower().encode("utf-16-le", "surrogatepass")
    value = _FNV_BASIS
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = (value ^ (low | high << 8)) * _FNV_PRIME & 0xFFFF_FFFF
    return f"{NOBODY}{value}"


def may_be(person: str | None, email: str) -> bool:
    """Returns whether `email` is the person's. `person`: a lane key, a `fingerprint`, NOBODY, or None for anybody."""
    if person is None or "@" in person:
        return person in (None, lane_key(email))
    # The script has no UTF-8 decoder: it reads the bytes of a token as Latin-1.
    return person in (fingerprint(email), fingerprint(email.encode("utf-8", "replace").decode("latin-1")))


def is_same(person: str, other: str) -> bool:
    """Returns whether the two are one person. `person` is the one known, `other` the one who comes; each as `may_be` takes it."""
    return person == other != NOBODY or ("@" in person and may_be(other, person))


def derived_visitor(session: str, site_key: bytes) -> str:
    """Returns the visitor id of a browser without a cookie: the same for all its tabs, and not computable outside the server."""
    return _derive(b"visitor:", session, site_key)


def next_session(push_id: str, site_key: bytes) -> str:
    """Returns the browser-session value that follows a push which ends the old one: a reset or another person's login.

    It is derived, so that a retry of that push after a lost answer gets the same value again.
    """
    return _derive(b"session:", push_id, site_key)


@lru_cache(maxsize=CACHED_VISITORS)
def _derive(purpose: bytes, text: str, site_key: bytes) -> str:
    digest = hmac.digest(site_key, purpose + text.encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode("ascii")
