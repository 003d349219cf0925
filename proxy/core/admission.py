"""Judges one browser request: who is pushing, and what becomes of each push, in order, against what the store knows.

Pure: `judge` reads `Facts` and returns a `Decision`; the store calls it inside the transaction that carries the decision out, because
duplicates, log-outs and full lanes are known only there.

It is a fold over the pushes. A frozen `Visit` says who the browser is; each push leads to the next visit and to a `Result`, and most leave
the visit as it is. The `Context` (request, facts, policy, limits) is the same for every push. What only accumulates, the changes among it,
goes into the context's `Intake`: a copy at each push would cost time inside the transaction. The rules about who the browser is are
functions of a visit and of facts, in `visits`.

The rules of one browser, several people and several tabs:

1. A retired cookie is not a cookie. Without a cookie the visitor id is derived from the browser-session value `s`.
2. What was pushed under an `s` that was retired is refused `identity-changed`, until a known id says who the browser is now.
3. An id is looked up before anything else. A repeated identify, reset or consent changes nothing, but the person whom it made the browser
   still owns what follows, if the request shows the visitor of the first try, or none.
4. A login by token as another person, and a reset, retire visitor and `s`; the answer carries the next `s`.
5. What was held goes right behind the identify that binds it, judged again under the trust it ends up with. What a visitor born of a
   log-out did is bound to the person who left, or to nobody.
6. A typed address never takes the place of a verified one: it is delivered once and changes nothing.
"""

from datetime import timedelta
from math import inf
from typing import TypeAlias

import msgspec

from proxy.core import visits
from proxy.core.calls import Attributes, BadPush, Consent, Identify, Push, Reset, Track
from proxy.core.decision import (
    Born,
    Change,
    Decision,
    Drop,
    Dropped,
    EndAlias,
    Enqueue,
    Facts,
    Forgotten,
    Hold,
    Identified,
    LaneFacts,
    NotOffered,
    Reads,
    Refused,
    Remember,
    Retire,
    Schedule,
    Scheduled,
    Verify,
)
from proxy.core.emails import lane_key
from proxy.core.policy import Policy, Refusal, vouch
from proxy.core.reasons import Reason, Status
from proxy.core.request import LANE_BYTES_PER_PUSH, Candidate, Limits, PushAnswer, Request, Result
from proxy.core.tokens import TokenProblem, Vouched
from proxy.core.visitors import Trust, Visitor, derived_visitor
from proxy.core.visits import Visit

_TYPED_AGE = timedelta(days=1)
_NAMES_COUNTED = 20  # per request, of what is not offered
_STRANGERS_SHARE = 250  # pushes that may wait for an address that nobody has vouched for
_ASSERTED_SHARE = 4  # pushes of asserted trust may fill one part in this many of a lane
_HOUR = 3_600.0  # seconds

_Step: TypeAlias = tuple[Visit, Result]
_replace = msgspec.structs.replace


class Intake(msgspec.Struct):
    """What the request has brought so far; it only grows.

    `ids`: accepted or held; `queued`: pushes by lane key; `busy`: schedules as this request leaves them.
    """

    changes: list[Change] = []
    ids: set[str] = set()
    queued: dict[str, int] = {}
    busy: dict[Schedule, float] = {}
    not_offered: set[tuple[str, str]] = set()

    def enqueue(self, push: Enqueue) -> None:
        self.queued[push.key] = self.queued.get(push.key, 0) + 1
        self.changes.append(push)

    def note_not_offered(self, name: str, setting: str) -> None:
        if len(self.not_offered) < _NAMES_COUNTED and (name, setting) not in self.not_offered:
            self.not_offered.add((name, setting))
            self.changes.append(NotOffered(name, setting))


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What every push of the request is judged against. `cookie`: as it counts today; `shown`: the visitor id that the request shows."""

    request: Request
    facts: Facts
    policy: Policy
    limits: Limits
    cookie: Visitor | None
    shown: str
    intake: Intake = msgspec.field(default_factory=Intake)

    def trust(self, who: Visitor) -> Trust:
        return who.trust_at(self.request.now, self.limits.verified_for)

    def is_full(self, key: str, trust: Trust) -> bool:
        """The bytes that this request has queued are not counted: they are few."""
        lane = self.facts.lane(key)
        room = lane_room(lane, trust, self.limits.lane_max)
        return lane.waiting + self.intake.queued.get(key, 0) >= room or lane.bytes >= room * LANE_BYTES_PER_PUSH

    def recently_erased(self, key: str) -> bool:
        """Returns whether a typed address may be older than its erasure: the shim keeps one for a day. The answer does not show it."""
        erased_at = self.facts.erased_at(key)
        return erased_at is not None and self.request.now <= erased_at + _TYPED_AGE.total_seconds()

    def take_turn(self, name: Schedule, per_hour: float) -> float:
        """Returns when the next turn comes (Unix seconds), and takes it."""
        if not per_hour:
            return self.request.now
        at, until = next_turn(self.busy_until(name), per_hour, self.request.now)
        self.intake.busy[name] = until
        self.intake.changes.append(Scheduled(name, until))
        return at

    def busy_until(self, name: Schedule) -> float:
        return self.intake.busy.get(name) or self.facts.schedule(name)

    def accept(
        self, push_id: str, after: Visitor | None = None, *, trace: bool = True, dropped: tuple[str, ...] = ()
    ) -> Result:
        self.remember(push_id, after, trace=trace)
        return Result(push_id, Status.ACCEPTED, dropped=dropped)

    def remember(self, push_id: str, after: Visitor | None = None, *, trace: bool = True) -> None:
        """Knows the id again. `after`: who the browser is from here on, None if the push does not say; `trace`: by the store, too."""
        self.intake.ids.add(push_id)
        if after is not None:
            after = msgspec.structs.replace(after, issued=int(self.request.now))
        if trace:
            self.intake.changes.append(Remember(push_id, self.shown, after))


def lane_room(lane: LaneFacts, trust: Trust, lane_max: int) -> int:
    """Returns how many pushes may wait in the lane before one of this trust is refused.

    Anybody can assert any address: that must not fill the lane of the person who owns it.
    """
    if trust is Trust.VERIFIED:
        return lane_max
    room = max(1, lane_max // _ASSERTED_SHARE)
    return room if lane.verified else min(room, _STRANGERS_SHARE)


def next_turn(busy_until: float, per_hour: float, now: float) -> tuple[float, float]:
    """Returns when the next turn comes and until when the schedule is busy after it (Unix seconds)."""
    until = max(busy_until, now) + _HOUR / per_hour
    return max(until - _HOUR, now), until


def reads_of(request: Request, site_key: bytes) -> Reads:
    """Returns what `judge` will mostly ask for: the ids, whom the pushes and the cookie name, and who the browser may be."""
    ids: list[str] = []
    emails: list[str] = []
    for candidate in request.candidates:
        push, token = candidate.push, candidate.token
        if push.id is not None:
            ids.append(push.id)
        if token is None:
            if isinstance(push, Push) and isinstance(push.call, Identify) and push.call.email is not None:
                emails.append(push.call.email)
        elif isinstance(token, Vouched):
            emails.append(token.email)
    visitors = [derived_visitor(request.session, site_key) if request.session else request.stranger]
    if (cookie := request.cookie) is not None:
        visitors.append(cookie.id)
        if cookie.email is not None:
            emails.append(cookie.email)
    return Reads(ids, [lane_key(email) for email in emails], visitors)


def judge(request: Request, facts: Facts, policy: Policy, limits: Limits) -> Decision[PushAnswer]:
    """Returns what to store for the request and what to answer (`Decision.answer`)."""
    shown = request.cookie
    cookie = visits.present(shown, facts) if shown and not facts.visitor(shown.id).retired else None
    visit = visits.enter(cookie, request.session, request.stranger, facts)
    shown_id = shown.id if shown else visit.who.id
    context = Context(request=request, facts=facts, policy=policy, limits=limits, cookie=cookie, shown=shown_id)
    visit = _bind_stragglers(context, visit)
    results: list[Result] = []
    for candidate in request.candidates:
        visit, result = _judge_push(context, visit, candidate)
        results.append(result)
    known_to_store = bool(context.intake.ids or visit.resumed)
    new_cookie = None
    if known_to_store and not visit.stale_session:
        new_cookie = visits.next_cookie(cookie, visit.who, facts, request.now)
    return Decision(tuple(context.intake.changes), PushAnswer(tuple(results), new_cookie, visit.next_session))


def _bind_stragglers(context: Context, visit: Visit) -> Visit:
    """Binds pushes held for a visitor who is identified by now: a tab that had no cookie yet has sent them."""
    email = visit.who.email
    if email is None or visit.stale_session:
        return visit
    known = context.facts.visitor(visit.who.id)
    if known.identified and not known.holding and visit.left is None:
        return visit  # as with most requests
    forgotten = context.recently_erased(lane_key(email))
    return _bind(context, visit, email, context.trust(visit.who), forgotten=forgotten)


def _judge_push(context: Context, visit: Visit, candidate: Candidate) -> _Step:
    push = candidate.push
    if (known := _duplicate(context, visit, push)) is not None:
        return known
    if isinstance(push, BadPush):
        return _refuse(context, visit, push.id, Refusal(push.reason, push.where))
    if (barred := _barred(context, visit, push)) is not None:
        return _refuse(context, visit, push.id, Refusal(barred))
    match push.call:
        case Track() as track:
            return _track(context, visit, push.id, track)
        case Identify() as identify:
            return _identify(context, visit, push.id, identify, candidate)
        case Reset():
            return _reset(context, visit, push.id)
        case Consent(granted):
            return _consent(context, visit, push.id, granted=granted)


def _duplicate(context: Context, visit: Visit, push: Push | BadPush) -> _Step | None:
    if push.id is None:
        return None
    if push.id not in context.intake.ids:
        seen = context.facts.seen(push.id)
        if seen is None:
            return None
        after = seen.after
        if after is not None and not visit.moved and visits.still_says(after, seen.at, push, context.request.now):
            shown = context.request.cookie.id if context.request.cookie else None
            if shown in (None, seen.shown, after.id) and not context.facts.visitor(after.id).retired:
                visit = visits.resume(visit, push.id, after, context.cookie, context.facts)
    return visit, Result(push.id, Status.DUPLICATE)


def _barred(context: Context, visit: Visit, push: Push) -> Reason | None:
    logs_out = isinstance(push.call, Reset) and context.cookie is not None  # forgetting too much is the safe side
    if visit.stale_session and not logs_out:
        return Reason.IDENTITY_CHANGED
    if not visit.who.consent and not push.released and not isinstance(push.call, Consent | Reset):
        return Reason.CONSENT_DENIED
    return None


def _refuse(context: Context, visit: Visit, push_id: str | None, refusal: Refusal) -> _Step:
    context.intake.changes.append(Refused(refusal.reason))
    if refusal.tag is not None:
        context.intake.note_not_offered(refusal.tag, context.policy.tag_setting(context.trust(visit.who)))
    return visit, Result(push_id, Status.REFUSED, refusal.reason, refusal.where, refusal.reason.advice)


def _track(context: Context, visit: Visit, push_id: str, track: Track) -> _Step:
    email, trust = visit.who.email, context.trust(visit.who)
    refusal = context.policy.judge_track(track, trust)
    if refusal is not None:
        return _refuse(context, visit, push_id, refusal)
    if email is None:
        return _hold(context, visit, push_id, track)
    key = lane_key(email)
    if context.is_full(key, trust):
        return _refuse(context, visit, push_id, Refusal(Reason.LANE_FULL))
    if trust is Trust.ASSERTED and context.recently_erased(key):
        context.intake.changes.append(Forgotten())
    else:
        context.intake.enqueue(Enqueue(push_id, key, email, trust, track))
    return visit, context.accept(push_id)


def _hold(context: Context, visit: Visit, push_id: str, track: Track) -> _Step:
    limits, facts = context.limits, context.facts
    if context.request.gpc and limits.honour_gpc:
        return _refuse(context, visit, push_id, Refusal(Reason.GPC))
    holding = visit.holding(facts) + len(visit.held)
    if holding >= limits.hold_max or facts.held_bytes() >= limits.hold_max_bytes:
        return _refuse(context, visit, push_id, Refusal(Reason.HOLD_FULL))
    hold = Hold(push_id, visit.who.id, track)
    context.intake.changes.append(hold)
    context.remember(push_id)
    return _replace(visit, held=(*visit.held, hold)), Result(push_id, Status.HELD)


class _Identity(msgspec.Struct, frozen=True):
    """Whose contact an identify is about. `after`: who the browser is from here on, None if that stays as it is."""

    email: str
    trust: Trust
    after: Visitor | None
    token: Vouched | None = None


def _identify(context: Context, visit: Visit, push_id: str, identify: Identify, candidate: Candidate) -> _Step:
    token, who = candidate.token, visit.who
    if isinstance(token, TokenProblem):
        return _refuse(context, visit, push_id, Refusal(token.reason, "call[1].token"))
    if token is not None:
        return _log_in(context, visit, push_id, identify, token)
    if identify.email is not None and not visit.owns(identify.email):
        return _assert(context, visit, push_id, identify, identify.email, excess=candidate.excess)
    if who.email is None:
        return _refuse(context, visit, push_id, Refusal(Reason.UNVERIFIED_IDENTITY, "call[1]"))
    identity = _Identity(identify.email or who.email, context.trust(who), who)
    return _accept_identify(context, visit, push_id, identify, identity)


def _log_in(context: Context, visit: Visit, push_id: str, identify: Identify, token: Vouched) -> _Step:
    key = lane_key(token.email)
    erased_at = context.facts.erased_at(key)
    if erased_at is not None and token.issued <= erased_at:
        context.intake.changes.append(Forgotten())
        return visit, context.accept(push_id)
    if visit.who.email is not None and not visit.owns(token.email):
        if context.is_full(key, Trust.VERIFIED):
            return _refuse(context, visit, push_id, Refusal(Reason.LANE_FULL))
        visit = _start_anew(context, visit, push_id)
    who = visit.who
    after = Visitor(who.id, token.email, Trust.VERIFIED, verified=int(context.request.now), consent=who.consent)
    identity = _Identity(token.email, Trust.VERIFIED, after, token)
    return _accept_identify(context, visit, push_id, identify, identity)


def _assert(context: Context, visit: Visit, push_id: str, identify: Identify, email: str, *, excess: bool) -> _Step:
    if not context.policy.asserted_identify:
        return _refuse(context, visit, push_id, Refusal(Reason.UNVERIFIED_IDENTITY, "call[1].email"))
    if excess:
        return _refuse(context, visit, push_id, Refusal(Reason.TOO_MANY_ADDRESSES, "call[1].email"))
    verified = context.trust(visit.who) is Trust.VERIFIED
    after = None if verified else Visitor(visit.who.id, email, Trust.ASSERTED, consent=visit.who.consent)
    return _accept_identify(context, visit, push_id, identify, _Identity(email, Trust.ASSERTED, after))


def _accept_identify(context: Context, visit: Visit, push_id: str, identify: Identify, identity: _Identity) -> _Step:
    """Queues the identify, and behind it what the browser held, if that person is who the browser is from here on."""
    email, trust, after = identity.email, identity.trust, identity.after
    key = lane_key(email)
    if context.is_full(key, trust):
        return _refuse(context, visit, push_id, Refusal(Reason.LANE_FULL))
    attributes, dropped = _offered(context, identify, identity)
    forgotten = trust is Trust.ASSERTED and context.recently_erased(key)
    if forgotten:
        context.intake.changes.append(Forgotten())
    elif trust is Trust.ASSERTED:
        context.intake.enqueue(_asserted(context, visit, push_id, email, attributes))
    else:
        context.intake.enqueue(Enqueue(push_id, key, email, trust, attributes))
    if after is not None:
        visit = _bind(context, _replace(visit, who=after, moved=True), email, trust, forgotten=forgotten)
    if identity.token is not None:
        context.intake.changes += (Verify(key), EndAlias(key))
    return visit, context.accept(push_id, after, dropped=dropped)


def _offered(context: Context, identify: Identify, identity: _Identity) -> tuple[Attributes, tuple[str, ...]]:
    """Returns the attributes that are passed on, and the names of those that are not."""
    policy, token = context.policy, identity.token
    attributes, dropped = policy.trim_identify(identify.attributes, identity.trust)
    for name, setting in policy.settings_for(dropped, identity.trust):
        context.intake.note_not_offered(name, setting)
    ignored = identify.ignored if token is None else identify.ignored + token.ignored
    if ignored:
        context.intake.changes.append(Dropped(len(ignored)))
        dropped += ignored
    if token is None:
        return attributes, dropped
    anothers = identify.email is not None and lane_key(identify.email) != lane_key(token.email)
    return vouch(attributes, token.attributes), dropped + (("email",) if anothers else ())


def _asserted(context: Context, visit: Visit, push_id: str, email: str, attributes: Attributes) -> Enqueue:
    """Returns the push of an assertion, which never overwrites the fields of a contact that was verified here.

    The answer does not show it: it would tell who is a customer.
    """
    key, lane = lane_key(email), context.facts.lane(lane_key(email))
    not_before = 0.0
    if not (visit.owns(email) or lane.verified or lane.waiting or context.intake.queued.get(key)):
        # One attacker must not close the form, nor use it to mail the whole world at once: half of an hour's worth goes at once, the rest
        # evenly, so that in no hour there are more.
        not_before = context.take_turn(Schedule.SIGN_UPS, context.limits.sign_ups_per_hour / 2)
    if lane.verified:
        attributes = Attributes(tags=attributes.tags)
    return Enqueue(push_id, key, email, Trust.ASSERTED, attributes, not_before)


def _bind(context: Context, visit: Visit, email: str, trust: Trust, *, forgotten: bool) -> Visit:
    """Hands what is held for this visitor to the lane, or refuses it. `forgotten`: the person was erased a short while ago."""
    visitor, facts, changes = visit.who.id, context.facts, context.intake.changes
    identified, held = facts.visitor(visitor).identified, visit.all_held(facts, context.request.now)
    if visit.left is not None or not identified:
        changes.append(Identified(visitor, lane_key(email)))
    if held:
        until = -inf if forgotten else visits.bound_until(visit.left, lane_key(email), identified)
        changes.append(visits.bind(held, visitor, email, trust, until=until, policy=context.policy))
    return _replace(visit, left=None, held=(), emptied=visit.emptied | {visitor})


def _reset(context: Context, visit: Visit, push_id: str) -> _Step:
    left = visit.left if visit.who.email is None else lane_key(visit.who.email)
    trace = _leaves_trace(context, visit)
    visit = _replace(_start_anew(context, visit, push_id, trace=trace), left=left)
    if left is not None:
        context.intake.changes.append(Born(visit.who.id, left))
    return visit, context.accept(push_id, visit.who, trace=trace)


def _consent(context: Context, visit: Visit, push_id: str, *, granted: bool) -> _Step:
    trace = _leaves_trace(context, visit)
    who = _replace(visit.who, consent=granted)
    visit = _replace(visit, who=who, moved=True)
    if not granted:
        context.intake.changes.append(Drop(who.id, Reason.CONSENT_DENIED))
        visit = _replace(visit, held=(), emptied=visit.emptied | {who.id})
    return visit, context.accept(push_id, who, trace=trace)


def _start_anew(context: Context, visit: Visit, push_id: str, *, trace: bool = True) -> Visit:
    """Retires this visitor and its `s`, and goes on as a new anonymous one."""
    if trace:
        context.intake.changes += [
            Retire(visitor) for visitor in visits.to_retire(visit, context.facts, context.request.now)
        ]
    return visits.start_anew(visit, push_id, context.facts.site_key)


def _leaves_trace(context: Context, visit: Visit) -> bool:
    """Returns whether a log-out or a consent is remembered.

    That of a known visitor always is; of unknown ones, only so many an hour: anybody can send them.
    """
    if visit.who.email is not None or visit.left is not None or visit.held or visit.holding(context.facts):
        return True
    if context.facts.visitor(visit.who.id).identified is not None:
        return True  # a tab without the cookie of the person who is logged in
    free = context.busy_until(Schedule.TRACES) <= context.request.now + _HOUR  # an hour's worth may be taken in one go
    return free and context.take_turn(Schedule.TRACES, context.limits.traces_per_hour) <= context.request.now
