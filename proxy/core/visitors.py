"""Who a browser is: a visitor, how far its address is trusted, and the ids derived from what it shows."""

from __future__ import annotations

import base64
import hmac
import secrets
from datetime import timedelta
from enum import IntEnum
from functools import lru_cache

import msgspec

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
