"""The visitor: who a browser is, how far its address is trusted, and the ids derived from what it shows."""

import base64
import hmac
from datetime import timedelta
from enum import IntEnum
from functools import lru_cache
from typing import Self

import msgspec

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
