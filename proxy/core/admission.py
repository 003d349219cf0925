"""Judges one browser request: who is pushing, and what becomes of each push, in order, against what the store knows.

Pure: `judge` reads `Facts` and returns a `Decision`; the store calls it inside the transaction that carries the decision out, because
duplicates, log-outs and full lanes are known only there.

It is a fold over the pushes. A frozen `Visit` says who the browser is; each push leads to the next visit and to a `Result`, and most leave
the visit as it is. The `Context` (request, facts, policy, limits) is the same for every push; what only accumulates, the changes among it,
goes into its `Intake`. The rules about who the browser is are functions of a visit and of facts, in `visits`; how one visitor makes way for
the next is in `succession`.

The rules of one browser, several people and several tabs:

1. A retired cookie is not a cookie. Without a cookie the visitor id is derived from the browser-session value `s`, until a minute after the proxy
   first saw that visitor's cookie or somebody identified as it. `s` is not a proof: after that, the request is a new visitor's.
2. What was pushed under an `s` that was retired is refused `identity-changed`, until a known id says who the browser is now.
3. An id is looked up before anything else. A repeated identify, reset or consent changes nothing, but the person whom it made the browser
   still owns what follows, if the request shows the visitor of the first try, or none. If it comes too late for that, what follows is that
   person's or nobody's.
4. A log-in by token as another person, and a reset, retire visitor and `s`; the answer carries the next `s`. A log-in does so
   whenever the site has signed its token: one that has expired, say, is refused, and still ends who was here.
5. What was held goes right behind the identify that binds it, judged again under the trust it ends up with. The pushes of a visitor
   born of a log-out, or of a log-in that failed or got lost, are bound to that person (the visitor's heir), or to nobody.
6. A typed address never takes the place of a verified one: it is delivered once and changes nothing.
"""

from typing import TypeAlias

import msgspec

from proxy.core import succession, visits
from proxy.core.calls import Attributes, BadPush, Consent, Identify, Push, Reset, Track
from proxy.core.context import Context
from proxy.core.decision import (
    Born,
    Decision,
    Drop,
    Dropped,
    EndAlias,
    Enqueue,
    Facts,
    Forgotten,
    Hold,
    Reads,
    Refused,
    Verify,
)
from proxy.core.emails import lane_key
from proxy.core.policy import Policy, Refusal, vouch
from proxy.core.reasons import Reason, Status
from proxy.core.request import Candidate, Limits, PushAnswer, Request, Result
from proxy.core.tokens import TokenProblem, Vouched
from proxy.core.visitors import NOBODY, Trust, Visitor, derived_visitor
from proxy.core.visits import Visit

_Step: TypeAlias = tuple[Visit, Result]
_replace = msgspec.structs.replace


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
        elif named := token.email if isinstance(token, Vouched) else token.names:
            emails.append(named)
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
    visit = visits.enter(cookie, request, facts)
    shown_id = shown.id if shown else visit.who.id
    context = Context(request=request, facts=facts, policy=policy, limits=limits, cookie=cookie, shown=shown_id)
    entered, visit = visit, _bind_stragglers(context, visit)
    results: list[Result] = []
    for candidate in request.candidates:
        visit, result = _judge_push(context, visit, candidate)
        results.append(result)
    new_cookie = new_session = None
    if (
        context.intake.ids or visit.resumed or visit.moved or visit.heir is not None
    ):  # else the browser may stay who it is
        new_session = visit.next_session
        if not visit.stale_session:
            new_cookie = visits.next_cookie(cookie, visit.who, facts, request.now)
    if cookie is not None and context.intake.ids:
        context.intake.changes += visits.to_show(cookie, entered.derived, visit, facts, renewed=new_cookie is not None)
    answer = PushAnswer(tuple(results), new_cookie, new_session, tuple(context.intake.unvouched))
    return Decision(tuple(context.intake.changes), answer)


def _bind_stragglers(context: Context, visit: Visit) -> Visit:
    """Binds pushes held for a visitor who is identified by now: a tab that had no cookie yet has sent them."""
    email = visit.who.email
    if email is None or visit.stale_session:
        return visit
    known = context.facts.visitor(visit.who.id)
    if known.identified and (not known.holding or known.person == NOBODY):
        return visit  # as with most requests; or the sign-up was dropped, so that somebody has to identify anew
    forgotten = context.recently_erased(lane_key(email))
    return succession.bind(context, visit, email, context.trust(visit.who), forgotten=forgotten)


def _judge_push(context: Context, visit: Visit, candidate: Candidate) -> _Step:
    push = candidate.push
    if push.id is not None:
        visit, duplicate = _recognise(context, visit, push.id, candidate)
        if duplicate is not None:
            return visit, duplicate
    if isinstance(push, BadPush):
        return _refuse(context, visit, push.id, Refusal(push.reason, push.where))
    if (barred := _barred(context, visit, push, candidate.token)) is not None:
        return barred
    match push.call:
        case Track() as track:
            return _track(context, visit, push.id, track)
        case Identify() as identify:
            return _identify(context, visit, push.id, identify, candidate)
        case Reset(lost_log_in):
            return _reset(context, visit, push.id, lost_log_in)
        case Consent(granted):
            return _consent(context, visit, push.id, granted=granted)


def _recognise(context: Context, visit: Visit, push_id: str, candidate: Candidate) -> tuple[Visit, Result | None]:
    """Returns the visit as a known id leaves it, and the answer: None for an id that is new."""
    if push_id in context.intake.ids:
        return visit, Result(push_id, Status.DUPLICATE)
    seen = context.facts.seen(push_id)
    if seen is None:
        return visit, None
    duplicate = Result(push_id, Status.DUPLICATE)
    if (after := seen.after) is None or visit.moved:
        return visit, duplicate
    request, known = context.request, context.facts.visitor(after.id)
    own = (derived_visitor(request.session, context.facts.site_key), context.shown) if request.session else ()
    shown = request.cookie.id if request.cookie else None
    says_who = shown in (None, seen.shown, after.id) and not known.retired
    if says_who and visits.still_says(seen, candidate.push, own, request.now):
        visit = visits.resume(visit, push_id, after, context.cookie, request.session, context.facts)
        if after.email is None and known.identified is None and candidate.token is not None:
            return visit, None  # a log-in that was refused before, or that an earlier page gave up on
    elif (
        (person := _was_about(after, candidate.push))
        and visit.who.email is None
        and (context.cookie or not visit.stale_session)
    ):
        # Too late to say that its person is here; what follows is still theirs, or nobody's.
        visit = succession.make_way(context, visit, push_id, person, heir=person)
        visit = _replace(visit, moved=False)  # a later id may know more
    return visit, duplicate


def _was_about(after: Visitor, push: Push | BadPush) -> str | None:
    """Returns the person of a known log-in (see `visitors.may_be`), None if the push was not one."""
    if after.email is not None:
        return lane_key(after.email)
    return push.call.lost_log_in if isinstance(push, Push) and isinstance(push.call, Reset) else None


def _barred(context: Context, visit: Visit, push: Push, token: Vouched | TokenProblem | None) -> _Step | None:
    logs_out = push.call == Reset() and context.cookie is not None  # forgetting too much is the safe side
    if visit.stale_session and not logs_out:
        return _refuse(context, visit, push.id, Refusal(Reason.IDENTITY_CHANGED))
    if visit.who.consent or push.released or isinstance(push.call, Consent | Reset):
        return None
    before = visit
    if (person := _signed_for(token)) is not None:
        # Nothing is stored of somebody who denies consent.
        visit = succession.make_way(context, visit, push.id, person, heir=NOBODY)
    return _refuse_log_in(context, before, visit, push.id, Refusal(Reason.CONSENT_DENIED))


def _refuse(context: Context, visit: Visit, push_id: str | None, refusal: Refusal) -> _Step:
    context.intake.changes.append(Refused(refusal.reason))
    if refusal.tag is not None:
        context.intake.note_not_offered(refusal.tag, context.policy.tag_setting(context.trust(visit.who)))
    return visit, Result(push_id, Status.REFUSED, refusal.reason, refusal.where, refusal.reason.advice)


def _refuse_log_in(context: Context, before: Visit, visit: Visit, push_id: str, refusal: Refusal) -> _Step:
    """Refuses a log-in that has made way. Its answer may get lost: its repeat is refused again, and says once more who is here."""
    if visit is not before:
        context.remember(push_id, visit.who)
    return _refuse(context, visit, push_id, refusal)


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
        context.intake.forget(key)
    else:
        sign_up = _sign_up(context, visit, email) if trust is Trust.ASSERTED else ""
        context.intake.enqueue(Enqueue(push_id, key, email, trust, track, sign_up))
    return visit, context.accept(push_id)


def _hold(context: Context, visit: Visit, push_id: str, track: Track) -> _Step:
    limits, facts = context.limits, context.facts
    if context.request.gpc and limits.honour_gpc:
        return _refuse(context, visit, push_id, Refusal(Reason.GPC))
    holding = visit.holding(facts) + len(visit.held)
    if holding >= limits.hold_max or context.strangers_are_full():
        return _refuse(context, visit, push_id, Refusal(Reason.HOLD_FULL))
    hold = Hold(push_id, visit.who.id, track)
    context.intake.hold(hold)
    context.remember(push_id)
    return _replace(visit, held=(*visit.held, hold)), Result(push_id, Status.HELD)


class _Identity(msgspec.Struct, frozen=True):
    """Whose contact an identify is about. `after`: who the browser is from here on, None if that stays as it is; `repeats`: as in `Candidate`."""

    email: str
    trust: Trust
    after: Visitor | None
    token: Vouched | None = None
    repeats: bool = False


def _identify(context: Context, visit: Visit, push_id: str, identify: Identify, candidate: Candidate) -> _Step:
    token, who, before = candidate.token, visit.who, visit
    if isinstance(token, TokenProblem):
        if (person := _signed_for(token)) is not None:
            erased = token.names and context.facts.erased_at(lane_key(token.names)) is not None
            visit = succession.make_way(context, visit, push_id, person, heir=NOBODY if erased else person)
        return _refuse_log_in(context, before, visit, push_id, Refusal(token.reason, "call[1].token"))
    if token is not None:
        return _log_in(context, visit, push_id, identify, token)
    if identify.email is not None and not visit.owns(identify.email):
        return _assert(context, visit, push_id, identify, identify.email, repeats=candidate.repeats)
    trust = context.trust(who)
    if who.email is None:
        return _refuse(context, visit, push_id, Refusal(Reason.UNVERIFIED_IDENTITY, "call[1]"))
    repeats = candidate.repeats and trust is Trust.ASSERTED
    identity = _Identity(identify.email or who.email, trust, who, repeats=repeats)
    return _accept_identify(context, visit, push_id, identify, identity)


def _signed_for(token: Vouched | TokenProblem | None) -> str | None:
    """Returns the lane key of the person for whom the site has signed, NOBODY for one who cannot be named; None if the token is not its."""
    names = token.email if isinstance(token, Vouched) else token.names if token is not None else None
    return (lane_key(names) if names else NOBODY) if names is not None else None


def _log_in(context: Context, visit: Visit, push_id: str, identify: Identify, token: Vouched) -> _Step:
    key, before = lane_key(token.email), visit.who
    erased_at = context.facts.erased_at(key)
    if erased_at is not None and token.issued <= erased_at:
        context.intake.changes.append(Forgotten())
        visit = succession.make_way(context, visit, push_id, key, heir=NOBODY)
        return visit, context.accept(push_id, visit.who if visit.who is not before else None)
    if context.is_full(key, Trust.VERIFIED):
        made_way = succession.make_way(context, visit, push_id, key, heir=key)
        return _refuse_log_in(context, visit, made_way, push_id, Refusal(Reason.LANE_FULL))
    visit = succession.part(context, visit, push_id, token.email)
    if visit.who.email is not None and not visit.owns(token.email):
        visit = succession.start_anew(context, visit, push_id)
    who = visit.who
    after = Visitor(who.id, token.email, Trust.VERIFIED, verified=int(context.request.now), consent=who.consent)
    identity = _Identity(token.email, Trust.VERIFIED, after, token)
    return _accept_identify(context, visit, push_id, identify, identity)


def _assert(context: Context, visit: Visit, push_id: str, identify: Identify, email: str, *, repeats: bool) -> _Step:
    if not context.policy.asserted_identify:
        return _refuse(context, visit, push_id, Refusal(Reason.UNVERIFIED_IDENTITY, "call[1].email"))
    verified = context.trust(visit.who) is Trust.VERIFIED
    visit = succession.part(context, visit, push_id, email)
    after = None if verified else Visitor(visit.who.id, email, Trust.ASSERTED, consent=visit.who.consent)
    identity = _Identity(email, Trust.ASSERTED, after, repeats=repeats)
    return _accept_identify(context, visit, push_id, identify, identity)


def _accept_identify(context: Context, visit: Visit, push_id: str, identify: Identify, identity: _Identity) -> _Step:
    """Queues the identify, and behind it what the browser held, if that person is who the browser is from here on."""
    email, trust, after = identity.email, identity.trust, identity.after
    key = lane_key(email)
    full = context.is_full(key, trust)
    if full and not identity.repeats:
        return _refuse(context, visit, push_id, Refusal(Reason.LANE_FULL))
    attributes, dropped = _offered(context, identify, identity)
    forgotten = trust is Trust.ASSERTED and context.recently_erased(key)
    adds = not full or not (forgotten or context.still_counts(key))
    if not adds:
        pass  # it has been said
    elif forgotten:
        context.intake.forget(key)
    elif trust is Trust.ASSERTED:
        context.intake.enqueue(_asserted(context, visit, push_id, email, attributes))
    else:
        context.intake.enqueue(Enqueue(push_id, key, email, trust, attributes))
    if after is not None:
        visit = succession.bind(context, _replace(visit, who=after, moved=True), email, trust, forgotten=forgotten)
    if identity.token is not None:
        context.intake.changes += (Verify(key), EndAlias(key))
    return visit, context.accept(push_id, after, trace=adds, dropped=dropped)


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
    key = lane_key(email)
    if context.facts.lane(key).verified:
        attributes = Attributes(tags=attributes.tags)
    return Enqueue(push_id, key, email, Trust.ASSERTED, attributes, _sign_up(context, visit, email))


def _sign_up(context: Context, visit: Visit, email: str) -> str:
    """Returns the client whose sign-up an asserted push is, if nothing is known of the address; empty if the visitor has signed up already.

    A cookie alone does not show that: the sign-up may wait, or it has been dropped, or its person was erased.
    """
    key = lane_key(email)
    signed_up = visit.owns(email) and context.facts.visitor(visit.who.id).person == key
    waits = not signed_up or context.facts.lane(key).put_off
    return context.request.client if context.limits.takes_turns and waits else ""


def _reset(context: Context, visit: Visit, push_id: str, lost_log_in: str | None) -> _Step:
    if lost_log_in is not None:
        return _lose_log_in(context, visit, push_id, lost_log_in)
    heir = visit.heir or context.facts.visitor(visit.who.id).person
    if visit.who.email is not None:
        heir = lane_key(visit.who.email)
    before, trace = visit.who, succession.leaves_trace(context, visit)
    if not trace and heir is not None and before.email is None:
        return visit, context.accept_trace(
            push_id, before, before, trace=False
        )  # it is that person's, or nobody's, already
    visit = _replace(succession.start_anew(context, visit, push_id, trace=trace), heir=heir)
    if heir is not None:
        context.intake.changes.append(Born(visit.who.id, heir))
    return visit, context.accept_trace(push_id, visit.who, before, trace=trace)


def _lose_log_in(context: Context, visit: Visit, push_id: str, person: str) -> _Step:
    """Takes in a log-in that got no answer while its page was open: it logs out anybody but its person."""
    waits = (
        visit.who.email is None and visit.heir is not None and not visit.is_of(person)
    )  # for another, without a log-in
    bounded = waits and not succession.leaves_trace(context, visit)
    after = visit if bounded else succession.make_way(context, visit, push_id, person, heir=person)
    if after is visit:
        return visit, Result(push_id, Status.ACCEPTED)  # not remembered: the log-in itself may still come
    return after, context.accept_trace(push_id, after.who, visit.who, trace=True)


def _consent(context: Context, visit: Visit, push_id: str, *, granted: bool) -> _Step:
    trace = granted != visit.who.consent and succession.leaves_trace(context, visit)
    who = _replace(visit.who, consent=granted)
    visit = _replace(visit, who=who, moved=True)
    if not granted:
        context.intake.changes.append(Drop(who.id, Reason.CONSENT_DENIED))
        visit = _replace(visit, held=(), emptied=visit.emptied | {who.id})
    return visit, context.accept_trace(push_id, who, who, trace=trace)
