"""Who the browser is as a request goes on: the frozen `Visit`, what moves it, and which cookie to set at the end.

Pure functions of a visit and of `Facts`. They report nothing and store nothing: `admission` does.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from math import inf

import msgspec

from proxy.core.calls import BadPush, Identify, Push, Reset
from proxy.core.cookies import RENEW_AFTER
from proxy.core.decision import Bind, Facts, HeldPush, Hold, Seen, Shown, VisitorFacts
from proxy.core.emails import lane_key
from proxy.core.policy import Policy
from proxy.core.reasons import Reason
from proxy.core.request import Request
from proxy.core.visitors import Trust, Visitor, derived_visitor, is_same, may_be, next_session

_replace = msgspec.structs.replace

# For so long after a log-in, or after a visitor's cookie was first seen, pushes under its `s` alone still count: they were on their way.
# Later, `s` proves nothing: every script and recorder of a page can read it.
_STRAGGLER_SECONDS = 60.0
_REPEAT_SECONDS = {  # in which a repeated log-in logs in: as long as a token may be valid, and as the script keeps a typed address
    Trust.VERIFIED: timedelta(hours=1).total_seconds(),
    Trust.ASSERTED: timedelta(days=1).total_seconds(),
}
_REVERIFY_AFTER = timedelta(hours=1)  # a log-in on every page need not renew the cookie on every page


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """Who the browser is, between two pushes of one request.

    `derived`: the visitor id of the browser-session value in use; `stale_session`: that value was retired before this request.
    `heir`: the only person who may identify as this visitor (see `visitors.may_be`), None if anybody may. `next_session`: the `s` to answer with.
    `moved`: this request has said who the browser is, so what is known from earlier comes too late; `resumed`: what is known has said it.
    `held`: by this request, for this visitor; `emptied`: visitors of whom this request has taken all that the store holds.
    """

    who: Visitor
    derived: str | None
    heir: str | None
    stale_session: bool
    next_session: str | None = None
    moved: bool = False
    resumed: bool = False
    held: tuple[Hold, ...] = ()
    emptied: frozenset[str] = frozenset()

    def owns(self, email: str) -> bool:
        """Returns whether this is the visitor's own address, in any spelling."""
        return self.who.email is not None and lane_key(email) == lane_key(self.who.email)

    def is_of(self, person: str) -> bool:
        """Returns whether this is that person's visit, or waits for them (see `visitors.may_be`)."""
        if self.who.email is not None:
            return may_be(person, self.who.email)
        return self.heir is not None and is_same(self.heir, person)

    def holding(self, facts: Facts) -> int:
        """Returns how many pushes the store holds for the visitor, less those that this request has taken."""
        return 0 if self.who.id in self.emptied else facts.visitor(self.who.id).holding

    def all_held(self, facts: Facts, now: float) -> Sequence[HeldPush]:
        """Returns what is held for the visitor, oldest first."""
        stored = facts.held(self.who.id) if self.holding(facts) else ()
        return [*stored, *[HeldPush(hold.id, hold.track, now) for hold in self.held]]


def enter(cookie: Visitor | None, request: Request, facts: Facts) -> Visit:
    """Returns the visit before the first push. `cookie`: as it counts today.

    A new session value is derived from the first id, so that a retry of the request gets the same one.
    """
    session = request.session
    derived = derived_visitor(session, facts.site_key) if session else None
    known = facts.visitor(derived) if derived else _UNKNOWN
    following = None
    if cookie is None and not known.retired and is_settled(known, request.now):
        ids = [candidate.push.id for candidate in request.candidates if candidate.push.id is not None]
        # Not the value that follows a log-out with this id.
        following = next_session(f"entry:{ids[0] if ids else None}", facts.site_key)
        derived = derived_visitor(following, facts.site_key)
    who = cookie or Visitor(derived or request.stranger)
    return Visit(
        who=who, derived=derived, heir=facts.visitor(who.id).heir, stale_session=known.retired, next_session=following
    )


def is_settled(known: VisitorFacts, now: float) -> bool:
    """Returns whether the browser-session value of the visitor proves nothing any more: its browser has had a cookie for a while."""
    return is_past(known.identified, now) or is_past(known.shown, now)


def is_past(at: float | None, now: float) -> bool:
    return at is not None and at < now - _STRAGGLER_SECONDS


def to_show(cookie: Visitor, derived: str | None, visit: Visit, facts: Facts, *, renewed: bool) -> list[Shown]:
    """Returns the marks that a request with this cookie leaves: from here on, the browser-session value alone will not do.

    `derived`: the visitor of that value, another than the cookie's where the script had to draw a new one; `visit`: after the last push. A
    visitor that was identified needs no mark, and one that has ended none. A mark is kept young with its cookie (`renewed`).
    """
    marks = []
    for visitor in (cookie.id,) if derived in (None, cookie.id) else (cookie.id, derived):
        known = facts.visitor(visitor)
        if known.identified is None and (known.shown is None or (renewed and visitor == cookie.id)):
            marks.append(visitor)
    return [Shown(each, cookie.id) for each in marks if not _is_over(each, visit, facts)]


def _is_over(visitor: str, visit: Visit, facts: Facts) -> bool:
    """Returns whether the visitor has ended or been identified by now."""
    if visitor == visit.who.id:
        return visit.who.email is not None
    return visitor in visit.emptied or facts.visitor(visitor).retired


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


def still_says(seen: Seen, push: Push | BadPush, session_visitors: Collection[str | None], now: float) -> bool:
    """Returns whether a repeat of a known push still says who the browser is. `session_visitors`: whom the session value of the repeat names.

    An id that others saw must not be a log-in for ever, nor in another call than its own, or the log-out as which the script keeps a log-in.
    """
    after = seen.after
    if after is None:
        return False
    if after.email is None:
        return True
    if not isinstance(push, Push) or now > seen.at + _REPEAT_SECONDS[after.trust]:
        return False
    if after.trust is Trust.ASSERTED and not {seen.shown, after.id}.intersection(session_visitors):
        return False
    match push.call:
        case Identify():
            return True
        case Reset(lost_log_in):
            return may_be(lost_log_in, after.email)
    return False


def resume(
    visit: Visit, push_id: str, after: Visitor, cookie: Visitor | None, session: str | None, facts: Facts
) -> Visit:
    """Returns the visit that goes on as `after`, the visitor that a known push left. `cookie`: as it counts today."""
    newer = cookie is not None and cookie.id == after.id and cookie.supersedes(after)
    who = visit.who if newer else present(after, facts) or Visitor(after.id, consent=after.consent)
    of_session = derived_visitor(session, facts.site_key) if session else None
    derived, following = of_session, None
    for value in (visit.next_session, next_session(push_id, facts.site_key)):
        if value is not None and derived_visitor(value, facts.site_key) == after.id != of_session:
            derived, following = after.id, value
    return _replace(
        visit,
        who=who,
        derived=derived,
        heir=facts.visitor(after.id).heir,
        stale_session=False,
        next_session=following,
        resumed=True,
        held=visit.held if after.id == visit.who.id else (),
    )


def start_anew(visit: Visit, push_id: str, site_key: bytes) -> Visit:
    session = next_session(push_id, site_key)
    derived = derived_visitor(session, site_key)
    return _replace(
        visit,
        who=Visitor(derived, consent=visit.who.consent),
        derived=derived,
        heir=None,
        next_session=session,
        moved=True,
        held=(),
        emptied=visit.emptied.union(_ending(visit)),
    )


def to_retire(visit: Visit, cookie: Visitor | None, facts: Facts, now: float) -> list[str]:
    """Returns the visitor ids that count for nothing once this visitor ends. `cookie`: as it counts today.

    Ids that the request proves by the session value alone are left out once their browser has had a cookie for a while: knowing an old `s`
    must not log anybody out.
    """
    if cookie is not None and cookie.email is None and is_past(facts.visitor(cookie.id).identified, now):
        cookie = None  # it may be a copy from before that log-in
    ending = []
    for visitor in _ending(visit):
        known = facts.visitor(visitor)
        proven = visitor == visit.who.id and visit.who.email is not None
        # Later, this may be a cookie from before that log-in.
        if cookie is not None and not is_past(known.identified, now):
            proven = proven or cookie.id in (visitor, known.shown_by)
        if proven or not is_settled(known, now):
            ending.append(visitor)
    return ending


def _ending(visit: Visit) -> list[str]:
    return list(dict.fromkeys([visit.who.id, visit.derived or visit.who.id]))


def bound_until(heir: str | None, email: str, identified: float | None) -> float:
    """Returns until when (Unix seconds) what was held is that of the person with this address.

    `heir`: the only person who may identify as the visitor; `identified`: when a browser did.
    """
    if not may_be(heir, email):
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


_UNKNOWN = VisitorFacts()
