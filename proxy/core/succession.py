"""Replaces one visitor by the next: whose log-in ends whose visit, which ids are retired, and whose lane gets the held pushes.

The rules that need only a visit and facts are in `visits`; these record their changes in the request's `Context`.
"""

from math import inf

import msgspec

from proxy.core import visits
from proxy.core.context import Context
from proxy.core.decision import Born, Identified, Retire, Schedule
from proxy.core.emails import lane_key
from proxy.core.visitors import NOBODY, Trust, is_same, may_be
from proxy.core.visits import Visit

_HOUR = 3_600.0  # seconds

_replace = msgspec.structs.replace


def make_way(context: Context, visit: Visit, push_id: str, person: str, *, heir: str) -> Visit:
    """Ends the previous visitor at a log-in that cannot be accepted. Later pushes are for `heir`: that person, or nobody."""
    if visit.is_of(person) or (visit.who.email is None and visit.heir == heir):
        return visit
    facts = context.facts
    known = facts.visitor(visit.who.id)
    if visit.who.email is None and known.identified is not None:
        if is_same(known.person or NOBODY, person) and not visits.is_past(known.identified, context.request.now):
            return visit  # a tab that has no cookie yet
        visit = visits.start_anew(visit, push_id, facts.site_key)
    elif visit.who.email is not None or visit.heir is not None:
        visit = start_anew(context, visit, push_id)
    elif not leaves_trace(context, visit):
        return visit
    context.intake.changes.append(Born(visit.who.id, heir))
    return _replace(visit, heir=heir)


def part(context: Context, visit: Visit, push_id: str, email: str) -> Visit:
    """Returns the visit on which this person may log in: a new visitor's if the current one is known to be another person's."""
    if visit.who.email is not None:
        return visit
    known = context.facts.visitor(visit.who.id)
    if known.identified is not None and not may_be(known.person or NOBODY, email):
        return visits.start_anew(visit, push_id, context.facts.site_key)  # knowing its id proves nothing
    return visit if may_be(visit.heir, email) else start_anew(context, visit, push_id)


def start_anew(context: Context, visit: Visit, push_id: str, *, trace: bool = True) -> Visit:
    """Retires this visitor and its `s`, and continues as a new anonymous one."""
    if trace:
        context.intake.changes += [
            Retire(visitor) for visitor in visits.to_retire(visit, context.cookie, context.facts, context.request.now)
        ]
    return visits.start_anew(visit, push_id, context.facts.site_key)


def leaves_trace(context: Context, visit: Visit) -> bool:
    """Returns whether a log-out or a consent is remembered.

    That of a visitor who is known by a token always is, and that of one who has typed an address or is held for as long as strangers have room.
    Others are limited per hour, because anyone can send them.
    """
    who, facts = visit.who, context.facts
    if context.trust(who) is Trust.VERIFIED:
        return True
    if who.email is None and facts.visitor(who.id).identified is not None:
        return True  # a tab without the cookie of the person who is logged in
    known = who.email is not None or visit.heir is not None or visit.held or visit.holding(facts)
    if known and not context.strangers_are_full():
        return True
    free = context.busy_until(Schedule.TRACES) <= context.request.now + _HOUR  # an hour's worth may be taken in one go
    return free and context.book(Schedule.TRACES, context.limits.traces_per_hour) <= context.request.now


def bind(context: Context, visit: Visit, email: str, trust: Trust, *, forgotten: bool) -> Visit:
    """Moves this visitor's held pushes to the lane, or refuses them. `forgotten`: the person was erased recently."""
    visitor, facts, changes = visit.who.id, context.facts, context.intake.changes
    known, held = facts.visitor(visitor), visit.all_held(facts, context.request.now)
    person = NOBODY if forgotten else lane_key(email)
    if visit.heir is not None or not known.identified or known.person != person:
        changes.append(Identified(visitor, person))
    if held:
        until = -inf if forgotten else visits.bound_until(visit.heir, email, known.identified)
        changes.append(visits.bind(held, visitor, email, trust, until=until, policy=context.policy))
    return _replace(visit, heir=None, held=(), emptied=visit.emptied | {visitor})
