"""Who the browser is as a request goes on: the frozen `Visit`, what moves it, and which cookie to set at the end.

Pure functions of a visit and of `Facts`. They report nothing and store nothing: `admission` does.
"""

from collections.abc import Sequence
from datetime import timedelta
from math import inf

import msgspec

from proxy.core.calls import BadPush, Identify, Push
from proxy.core.cookies import RENEW_AFTER
from proxy.core.decision import Bind, Facts, HeldPush, Hold, VisitorFacts
from proxy.core.emails import lane_key
from proxy.core.policy import Policy
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust, Visitor, derived_visitor, next_session

_replace = msgspec.structs.replace

# For so long after a log-in, pushes under the browser's earlier ids still count: they were on their way. Later, somebody who knew the browser
# before could push as the person who is in it now.
_STRAGGLER_SECONDS = 60.0
_REPEAT_SECONDS = 3_600.0  # in which a repeated log-in logs in: as long as its token may be good for
_REVERIFY_AFTER = timedelta(hours=1)  # a log-in on every page need not renew the cookie on every page


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """Who the browser is, between two pushes of one request.

    `derived`: the visitor id of the browser-session value in use; `stale_session`: that value was retired before this request.
    `left`: lane key of the person whose log-out this visitor was born of. `next_session`: the `s` to answer with.
    `moved`: this request has said who the browser is, so what is known from earlier comes too late; `resumed`: what is known has said it.
    `held`: by this request, for this visitor; `emptied`: visitors of whom this request has taken all that the store holds.
    """

    who: Visitor
    derived: str | None
    left: str | None
    stale_session: bool
    next_session: str | None = None
    moved: bool = False
    resumed: bool = False
    held: tuple[Hold, ...] = ()
    emptied: frozenset[str] = frozenset()

    def owns(self, email: str) -> bool:
        """Returns whether this is the visitor's own address, in any spelling."""
        return self.who.email is not None and lane_key(email) == lane_key(self.who.email)

    def holding(self, facts: Facts) -> int:
        """Returns how many pushes the store holds for the visitor, less those that this request has taken."""
        return 0 if self.who.id in self.emptied else facts.visitor(self.who.id).holding

    def all_held(self, facts: Facts, now: float) -> Sequence[HeldPush]:
        """Returns what is held for the visitor, oldest first."""
        stored = facts.held(self.who.id) if self.holding(facts) else ()
        return [*stored, *[HeldPush(hold.id, hold.track, now) for hold in self.held]]


def enter(cookie: Visitor | None, session: str | None, stranger: str, facts: Facts) -> Visit:
    """Returns the visit before the first push. `cookie`: as it counts today; `stranger`: the visitor id without a cookie or `session`."""
    derived = derived_visitor(session, facts.site_key) if session else None
    stale = derived is not None and facts.visitor(derived).retired
    who = cookie or Visitor(derived or stranger)
    return Visit(who=who, derived=derived, left=_left(facts.visitor(who.id)), stale_session=stale)


def _left(known: VisitorFacts) -> str | None:
    """Returns the lane key of the person whose log-out the visitor was born of, None once somebody has identified as it."""
    return known.person if known.identified is None else None


def present(cookie: Visitor, facts: Facts) -> Visitor | None:
    """Returns the cookie as it counts today: its address may have moved since. None if its person was erased."""
    if cookie.email is None:
        return cookie
    key = lane_key(cookie.email)
    erased_at, alias = facts.erased_at(key), facts.alias(key)
    if erased_at is not None and cookie.issued <= erased_at:
        return None
    # Only somebody who has proved to be that person: others would learn the new address from their cookie.
    if alias is not None and cookie.trust is Trust.VERIFIED and cookie.issued <= alias.at:
        return _replace(cookie, email=alias.address)
    return cookie


def still_says(after: Visitor, at: float, push: Push | BadPush, now: float) -> bool:
    """Returns whether a repeat of a push first seen `at` still says that the browser is `after`.

    An id that others saw must not be a log-in for ever, nor in another call than its own.
    """
    if after.email is None:
        return True
    fresh = after.trust is not Trust.VERIFIED or now <= at + _REPEAT_SECONDS
    return fresh and isinstance(push, Push) and isinstance(push.call, Identify)


def resume(visit: Visit, push_id: str, after: Visitor, cookie: Visitor | None, facts: Facts) -> Visit:
    """Returns the visit that goes on as `after`, the visitor that a known push left. `cookie`: as it counts today."""
    newer = cookie is not None and cookie.id == after.id and cookie.supersedes(after)
    who = visit.who if newer else present(after, facts) or Visitor(after.id, consent=after.consent)
    session = next_session(push_id, facts.site_key)
    anew = derived_visitor(session, facts.site_key) == after.id
    return _replace(
        visit,
        who=who,
        left=_left(facts.visitor(after.id)),
        stale_session=False,
        next_session=session if anew else visit.next_session,
        resumed=True,
    )


def start_anew(visit: Visit, push_id: str, site_key: bytes) -> Visit:
    session = next_session(push_id, site_key)
    derived = derived_visitor(session, site_key)
    return _replace(
        visit,
        who=Visitor(derived, consent=visit.who.consent),
        derived=derived,
        next_session=session,
        moved=True,
        held=(),
        emptied=visit.emptied.union(_ending(visit)),
    )


def to_retire(visit: Visit, facts: Facts, now: float) -> list[str]:
    """Returns the visitor ids that count for nothing once this visitor ends.

    Ids that an earlier user of the browser may know are left out: knowing an old `s` or cookie must not log anybody out.
    """
    proven = visit.who.id if visit.who.email is not None else None
    known = [(visitor, facts.visitor(visitor).identified) for visitor in _ending(visit)]
    return [visitor for visitor, at in known if visitor == proven or at is None or now <= at + _STRAGGLER_SECONDS]


def _ending(visit: Visit) -> list[str]:
    return list(dict.fromkeys([visit.who.id, visit.derived or visit.who.id]))


def bound_until(left: str | None, key: str, identified: float | None) -> float:
    """Returns until when (Unix seconds) what was held is that of the person with lane key `key`.

    `left`: who logged out where the visitor began; `identified`: when a browser identified as the visitor.
    """
    if left not in (None, key):
        return -inf
    return inf if identified is None else identified + _STRAGGLER_SECONDS


def bind(held: Sequence[HeldPush], visitor: str, email: str, trust: Trust, *, until: float, policy: Policy) -> Bind:
    """Returns the change that hands what is held to the person's lane, and refuses what came after `until` or is not offered."""
    keep: list[str] = []
    refuse: list[tuple[str, Reason]] = []
    for push in held:
        refusal = policy.judge_track(push.track, trust)
        if push.since > until:
            refuse.append((push.id, Reason.IDENTITY_CHANGED))
        elif refusal is not None:
            refuse.append((push.id, refusal.reason))
        else:
            keep.append(push.id)
    return Bind(visitor, lane_key(email), email, trust, tuple(keep), tuple(refuse))


def next_cookie(old: Visitor | None, new: Visitor, facts: Facts, now: float) -> Visitor | None:
    """Returns the cookie to set, None if the browser's own will do. `old`: what that one says, as it counts today."""
    if old is None and new.email is None and facts.visitor(new.id).identified:
        return None  # another tab has logged in meanwhile; an anonymous cookie would undo that
    if old is None or (new is not old and _replace(new, issued=old.issued, verified=old.verified) != old):
        return _replace(new, issued=int(now))
    fresh = now - old.issued < RENEW_AFTER.total_seconds()
    just_verified = new.verified - old.verified < _REVERIFY_AFTER.total_seconds()
    return None if fresh and just_verified else _replace(new, issued=int(now))
