"""One request, judged: who is pushing, and what becomes of each push, in order, against what the store knows.

Pure: `judge` reads `Facts` and returns a `Decision`; the outbox calls it inside the transaction that carries the plan out, because
duplicates, log-outs and full lanes are known only there. The rules (DESIGN "One browser, several people, several tabs"):

1. A retired cookie is no cookie. Without a cookie the visitor id is derived from the browser-session value `s`.
2. What was pushed under an `s` that was retired is refused `identity-changed`, until a known id says who the browser is now.
3. An id is looked up before anything else about a push. A known identify, reset or consent is not carried out again but still says
   who what follows belongs to, if the request shows the visitor of the first try, or none.
4. A login by token as another person, and a reset, retire visitor and `s`; the answer carries the next `s`.
5. What was held goes right behind the identify that binds it, judged again under the trust it ends up with. What a visitor born of a
   log-out did is bound to the person who left, or to nobody.
6. A typed address never takes the place of a verified one: it is delivered once and changes nothing.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec

from proxy.core.calls import Attributes, BadPush, Consent, Identify, Push, Reset, Track
from proxy.core.cookies import RENEW_AFTER
from proxy.core.decision import (
    Bind,
    Born,
    Change,
    Decision,
    Drop,
    EndAlias,
    Enqueue,
    Facts,
    Forgotten,
    Hold,
    Identified,
    NotOffered,
    Refused,
    Remember,
    Retire,
    Schedule,
    Verify,
)
from proxy.core.emails import lane_key
from proxy.core.exchange import Candidate, Limits, PushAnswer, Request, Result
from proxy.core.policy import Policy, Refusal, vouch
from proxy.core.reasons import ADVICE, Reason, Status
from proxy.core.tokens import TokenProblem, Vouched
from proxy.core.turns import HourlyQuota
from proxy.core.visitors import Trust, Visitor, derived_visitor, next_session

_TYPED_AGE = timedelta(days=1)
# After a log-in, for what was on its way: who knew this browser before must not push for who is in it now.
_STRAGGLER_SECONDS = 60.0
_REPEAT_SECONDS = 3_600.0  # in which a repeated log-in logs in: as long as its token may be good for
_NAMES_COUNTED = 20  # per request, of what is not offered
_STRANGERS_SHARE = 250  # pushes that may wait for an address that nobody has vouched for
_ASSERTED_SHARE = 4  # the part of a lane that pushes of asserted trust may fill is one of so many
_REVERIFY_AFTER = timedelta(hours=1)  # a login on every page need not renew the cookie on every page


def judge(request: Request, facts: Facts, policy: Policy, limits: Limits) -> Decision[PushAnswer]:
    """What to store for the request, and what to answer (`Decision.answer` is a `PushAnswer`)."""
    return _Judgement(request, facts, policy, limits).plan()


class _Judgement:
    """The state that moves from push to push: who the browser is, and what is to be stored so far."""

    def __init__(self, request: Request, facts: Facts, policy: Policy, limits: Limits) -> None:
        self.request, self.facts, self.policy, self.limits = request, facts, policy, limits
        self.now = request.now
        self.changes: list[Change] = []
        self.taken: set[str] = set()  # ids accepted or held by this request
        self.queued: dict[str, int] = {}  # pushes this request adds, by lane key
        self.turns = HourlyQuota(facts, self.changes, self.now)
        self.held: list[Hold] = []  # by this request, for the current visitor
        self.emptied: set[str] = set()  # visitors of whom this request has taken all that the store holds
        self.not_offered: set[tuple[str, str]] = set()
        self.next_session: str | None = None
        self.known = False  # something of this visitor is stored, so a cookie is due
        self.moved = False  # this request has said who the browser is: what is known from earlier comes too late
        self.derived = derived_visitor(request.session, facts.site_key) if request.session else None
        self.stale_session = self.derived is not None and facts.visitor(self.derived).retired
        cookie = request.cookie
        self.cookie = self._present(cookie) if cookie and not facts.visitor(cookie.id).retired else None
        self.who = self.cookie or Visitor(self.derived or request.stranger)
        self.shown = cookie.id if cookie else self.who.id
        self.left = facts.visitor(self.who.id).left  # who logged out where this visitor began

    # --- the request as a whole

    def _present(self, cookie: Visitor) -> Visitor | None:
        """The cookie as it counts today: its address may have moved since, or its person may have been erased."""
        if cookie.email is None:
            return cookie
        key = lane_key(cookie.email)
        erased_at, alias = self.facts.erased_at(key), self.facts.alias(key)
        if erased_at is not None and cookie.issued <= erased_at:
            return None
        # Only who has proved to be that person: others would learn the new address from their cookie.
        if alias is not None and cookie.trust is Trust.VERIFIED and cookie.issued <= alias.at:
            return msgspec.structs.replace(cookie, email=alias.address)
        return cookie

    def plan(self) -> Decision[PushAnswer]:
        self._bind_stragglers()
        results = tuple([self._result(candidate) for candidate in self.request.candidates])
        return Decision(tuple(self.changes), PushAnswer(results, self._new_cookie(), self.next_session))

    def _bind_stragglers(self) -> None:
        """Pushes held for a visitor who is identified by now: sent by a tab that had no cookie yet."""
        if self.cookie and self.cookie.email and not self.stale_session:
            facts = self.facts.visitor(self.cookie.id)
            if facts.identified and not facts.holding and self.left is None:
                return  # as with most requests
            self._bind(self.cookie.email, self._trust(), forgotten=self._recently_erased())

    def _new_cookie(self) -> Visitor | None:
        if not self.known or self.stale_session:
            return None
        old, new = self.cookie, self.who
        if old is None and new.email is None and self.facts.visitor(new.id).identified:
            return None  # another tab has logged in meanwhile; an anonymous cookie would undo that
        if old is not None:
            same = new is old or msgspec.structs.replace(new, issued=old.issued, verified=old.verified) == old
            fresh = self.now - old.issued < RENEW_AFTER.total_seconds()
            if same and fresh and new.verified - old.verified < _REVERIFY_AFTER.total_seconds():
                return None
        return msgspec.structs.replace(new, issued=int(self.now))

    def _result(self, candidate: Candidate) -> Result:
        push = candidate.push
        if push.id is not None and self._is_duplicate(push):
            return Result(push.id, Status.DUPLICATE)
        if isinstance(push, BadPush):
            return self._refuse(push.id, Refusal(push.reason, push.where))
        logs_out = isinstance(push.call, Reset) and self.cookie is not None  # forgetting too much is the safe side
        if self.stale_session and not logs_out:
            return self._refuse(push.id, Refusal(Reason.IDENTITY_CHANGED))
        if not self.who.consent and not push.released and not isinstance(push.call, Consent | Reset):
            return self._refuse(push.id, Refusal(Reason.CONSENT_DENIED))
        match push.call:
            case Track() as track:
                return self._track(push.id, track)
            case Identify() as identify:
                return self._identify(push.id, identify, candidate)
            case Reset():
                return self._reset(push.id)
            case Consent(granted):
                return self._consent(push.id, granted)

    def _is_duplicate(self, push: Push | BadPush) -> bool:
        if push.id is None or push.id in self.taken:
            return push.id is not None
        seen = self.facts.seen(push.id)
        if seen is None:
            return False
        if seen.after is not None and not self.moved and self._still_says(seen.after, seen.at, push):
            self._become(push.id, seen.shown, seen.after)
        return True

    def _still_says(self, after: Visitor, at: float, push: Push | BadPush) -> bool:
        """An id that others saw must not be a log-in for ever, nor in another call than its own."""
        if after.email is None:
            return True
        fresh = after.trust is not Trust.VERIFIED or self.now <= at + _REPEAT_SECONDS
        return fresh and isinstance(push, Push) and isinstance(push.call, Identify)

    def _become(self, push_id: str, first_shown: str, after: Visitor) -> None:
        """Take up who the browser was after a push that is known already; the cookie is issued again."""
        shown = self.request.cookie.id if self.request.cookie else None
        if shown not in (None, first_shown, after.id) or self.facts.visitor(after.id).retired:
            return
        newer = self.cookie is not None and self.cookie.id == after.id and self.cookie.supersedes(after)
        after = self._present(after) or Visitor(after.id, consent=after.consent)
        self.who = self.who if newer else after
        self.left = self.facts.visitor(after.id).left
        self.known = True
        self.stale_session = False
        session = next_session(push_id, self.facts.site_key)
        if derived_visitor(session, self.facts.site_key) == after.id:
            self.next_session = session

    # --- one push

    def _track(self, push_id: str, track: Track) -> Result:
        trust = self._trust()
        refusal = self.policy.judge_track(track, trust)
        if refusal is None and trust is Trust.ANONYMOUS:
            return self._hold(push_id, track)
        if refusal is None:
            refusal = self._lane_full(self._address(), trust)
        if refusal is not None:
            return self._refuse(push_id, refusal)
        if trust is Trust.ASSERTED and self._recently_erased():
            self.changes.append(Forgotten())
        else:
            self._enqueue(push_id, self._address(), trust, track)
        self._remember(push_id)
        return Result(push_id, Status.ACCEPTED)

    def _hold(self, push_id: str, track: Track) -> Result:
        if self.request.gpc and self.limits.honour_gpc:
            return self._refuse(push_id, Refusal(Reason.GPC))
        holding = self._holding() + len(self.held)
        if holding >= self.limits.hold_max or self.facts.held_bytes() >= self.limits.hold_max_bytes:
            return self._refuse(push_id, Refusal(Reason.HOLD_FULL))
        hold = Hold(push_id, self.who.id, track)
        self.held.append(hold)
        self.changes.append(hold)
        self._remember(push_id)
        return Result(push_id, Status.HELD)

    def _identify(self, push_id: str, identify: Identify, candidate: Candidate) -> Result:
        token = candidate.token
        if isinstance(token, TokenProblem):
            return self._refuse(push_id, Refusal(token.reason, "call[1].token"))
        if token is not None:
            return self._login(push_id, identify, token)
        if identify.email is not None and not self._is_own(identify.email):
            return self._assert(push_id, identify, identify.email, candidate.excess)
        if self.who.email is None:
            return self._refuse(push_id, Refusal(Reason.UNVERIFIED_IDENTITY, "call[1]"))
        trust = self._trust()
        return self._accept_identify(push_id, identify, identify.email or self.who.email, trust, self.who)

    def _login(self, push_id: str, identify: Identify, token: Vouched) -> Result:
        if self._is_late(token):
            self.changes.append(Forgotten())
            self._remember(push_id)
            return Result(push_id, Status.ACCEPTED)
        known = Visitor(self.who.id, token.email, Trust.VERIFIED, verified=int(self.now), consent=self.who.consent)
        if self.who.email is None or self._is_own(token.email):
            return self._accept_identify(push_id, identify, token.email, Trust.VERIFIED, known, token)
        full = self._lane_full(token.email, Trust.VERIFIED)
        if full is not None:
            return self._refuse(push_id, full)
        self._start_anew(push_id)
        known = msgspec.structs.replace(known, id=self.who.id)
        return self._accept_identify(push_id, identify, token.email, Trust.VERIFIED, known, token)

    def _assert(self, push_id: str, identify: Identify, email: str, excess: bool) -> Result:
        if not self.policy.asserted_identify:
            return self._refuse(push_id, Refusal(Reason.UNVERIFIED_IDENTITY, "call[1].email"))
        if excess:
            return self._refuse(push_id, Refusal(Reason.TOO_MANY_ADDRESSES, "call[1].email"))
        after = None
        if self._trust() is not Trust.VERIFIED:
            after = Visitor(self.who.id, email, Trust.ASSERTED, consent=self.who.consent)
        return self._accept_identify(push_id, identify, email, Trust.ASSERTED, after)

    def _accept_identify(
        self,
        push_id: str,
        identify: Identify,
        email: str,
        trust: Trust,
        after: Visitor | None,
        token: Vouched | None = None,
    ) -> Result:
        """Queue the identify; with `after` the browser is that visitor from here on, and what it held goes behind."""
        full = self._lane_full(email, trust)
        if full is not None:
            return self._refuse(push_id, full)
        attributes, dropped = self._offered(identify, trust, token)
        forgotten = trust is Trust.ASSERTED and self._recently_erased(email)
        if forgotten:
            self.changes.append(Forgotten())
        else:
            signs_up = trust is Trust.ASSERTED and not self._is_own(email)
            not_before = self._sign_up(email) if signs_up else 0.0
            self._enqueue(push_id, email, trust, self._shielded(attributes, email, trust), not_before)
        if after is not None:
            self.who, self.moved = after, True
            self._bind(email, trust, forgotten=forgotten)
        if token is not None:
            self.changes += [Verify(lane_key(email)), EndAlias(lane_key(email))]
        self._remember(push_id, after=after)
        return Result(push_id, Status.ACCEPTED, dropped=dropped)

    def _offered(self, identify: Identify, trust: Trust, token: Vouched | None) -> tuple[Attributes, tuple[str, ...]]:
        attributes, dropped = self.policy.trim_identify(identify.attributes, trust)
        for name, setting in self.policy.settings_for(dropped, trust):
            self._note_not_offered(name, setting)
        dropped += identify.ignored
        if token is not None:
            attributes = vouch(attributes, token.attributes)
            dropped += token.ignored
            if identify.email is not None and lane_key(identify.email) != lane_key(token.email):
                dropped += ("email",)
        return attributes, dropped

    def _is_late(self, token: Vouched) -> bool:
        erased_at = self.facts.erased_at(lane_key(token.email))
        return erased_at is not None and token.issued <= erased_at

    def _recently_erased(self, email: str | None = None) -> bool:
        """Whether a typed address may be older than its erasure: the shim keeps one for a day. The answer does not show it."""
        erased_at = self.facts.erased_at(lane_key(email or self._address()))
        return erased_at is not None and self.now <= erased_at + _TYPED_AGE.total_seconds()

    def _shielded(self, attributes: Attributes, email: str, trust: Trust) -> Attributes:
        """What was only asserted never overwrites the fields of a contact that was verified here.

        The answer does not show it: it would tell who is a customer.
        """
        if trust is Trust.ASSERTED and self.facts.lane(lane_key(email)).verified:
            return Attributes(tags=attributes.tags)
        return attributes

    def _reset(self, push_id: str) -> Result:
        if self.who.email is not None:
            self.left = lane_key(self.who.email)
        trace = self._leaves_trace()
        self._start_anew(push_id, trace=trace)
        if self.left is not None:
            self.changes.append(Born(self.who.id, self.left))
        self._remember(push_id, after=self.who, trace=trace)
        return Result(push_id, Status.ACCEPTED)

    def _consent(self, push_id: str, granted: bool) -> Result:
        trace = self._leaves_trace()
        self.who, self.moved = msgspec.structs.replace(self.who, consent=granted), True
        if not granted:
            self.changes.append(Drop(self.who.id, Reason.CONSENT_DENIED))
            self.emptied.add(self.who.id)
            self.held.clear()
        self._remember(push_id, after=self.who, trace=trace)
        return Result(push_id, Status.ACCEPTED)

    # --- shared steps

    def _leaves_trace(self) -> bool:
        """Whether a log-out or a consent is remembered. That of somebody known always is; of nobody, only so many: anybody can send them."""
        if self.who.email is not None or self.left is not None or self.held or self._holding():
            return True
        if self.facts.visitor(self.who.id).identified is not None:
            return True  # a tab without the cookie of the person who is logged in
        free = self.turns.is_free(Schedule.TRACES)
        return free and self.turns.take(Schedule.TRACES, self.limits.traces_per_hour) <= self.now

    def _start_anew(self, push_id: str, *, trace: bool = True) -> None:
        """Retire this visitor and its `s`, and go on as a new anonymous one."""
        for visitor in {self.who.id, self.derived or self.who.id}:
            if trace and not self._is_somebody_elses(visitor):
                self.changes.append(Retire(visitor))
            self.emptied.add(visitor)
        self.next_session = next_session(push_id, self.facts.site_key)
        self.derived = derived_visitor(self.next_session, self.facts.site_key)
        self.who, self.moved = Visitor(self.derived, consent=self.who.consent), True
        self.held.clear()

    def _is_somebody_elses(self, visitor: str) -> bool:
        """An `s`, or a cookie from before a log-in, is known to whoever used the browser earlier: it logs nobody out."""
        identified = self.facts.visitor(visitor).identified
        proven = self.who.email is not None and self.who.id == visitor
        return not proven and identified is not None and self.now > identified + _STRAGGLER_SECONDS

    def _bind(self, email: str, trust: Trust, *, forgotten: bool = False) -> None:
        """Hand what is held for this visitor to the lane, or refuse it. `forgotten`: the person was erased a short while ago."""
        facts = self.facts.visitor(self.who.id)
        key = lane_key(email)
        held = [(push.id, push.track, push.since) for push in self.facts.held(self.who.id)] if self._holding() else []
        self.emptied.add(self.who.id)
        held += [(hold.id, hold.track, self.now) for hold in self.held]
        late = float("inf") if facts.identified is None else facts.identified + _STRAGGLER_SECONDS
        left, self.left = self.left, None
        if left is not None or not facts.identified:
            self.changes.append(Identified(self.who.id))
        if not held:
            return
        keep: list[str] = []
        refuse: list[tuple[str, Reason]] = []
        for push_id, track, since in held:
            refusal = self.policy.judge_track(track, trust)
            if left not in (None, key) or forgotten or since > late:
                refuse.append((push_id, Reason.IDENTITY_CHANGED))
            elif refusal is not None:
                refuse.append((push_id, refusal.reason))
            else:
                keep.append(push_id)
        self.held.clear()
        self.changes.append(Bind(self.who.id, key, email, trust, tuple(keep), tuple(refuse)))

    def _holding(self) -> int:
        """How many pushes the store holds for this visitor, less those that this request has taken."""
        return 0 if self.who.id in self.emptied else self.facts.visitor(self.who.id).holding

    def _enqueue(
        self, push_id: str, email: str, trust: Trust, body: Attributes | Track, not_before: float = 0.0
    ) -> None:
        key = lane_key(email)
        self.queued[key] = self.queued.get(key, 0) + 1
        self.changes.append(Enqueue(push_id, key, email, trust, body, not_before))

    def _sign_up(self, email: str) -> float:
        """When an assertion may be sent. One attacker must not close the form, nor use it to mail the whole world at once."""
        key = lane_key(email)
        lane = self.facts.lane(key)
        if lane.verified or lane.waiting or self.queued.get(key):
            return 0.0  # known here, or already waiting its turn
        # Half of an hour's worth at once, the rest evenly: in no hour are there more.
        return self.turns.take(Schedule.SIGN_UPS, self.limits.sign_ups_per_hour / 2)

    def _remember(self, push_id: str, *, after: Visitor | None = None, trace: bool = True) -> None:
        self.taken.add(push_id)
        self.known = True
        if after is not None:
            after = msgspec.structs.replace(after, issued=int(self.now))
        if trace:
            self.changes.append(Remember(push_id, self.shown, after))

    def _refuse(self, push_id: str | None, refusal: Refusal) -> Result:
        self.changes.append(Refused(refusal.reason))
        if refusal.tag is not None:
            self._note_not_offered(refusal.tag, self.policy.tag_setting(self._trust()))
        return Result(push_id, Status.REFUSED, refusal.reason, refusal.where, ADVICE[refusal.reason])

    def _note_not_offered(self, name: str, setting: str) -> None:
        if len(self.not_offered) < _NAMES_COUNTED and (name, setting) not in self.not_offered:
            self.not_offered.add((name, setting))
            self.changes.append(NotOffered(name, setting))

    def _trust(self) -> Trust:
        return self.who.trust_at(self.now, self.limits.verified_for)

    def _address(self) -> str:
        assert self.who.email is not None  # noqa: S101 - whoever is not anonymous has an address
        return self.who.email

    def _is_own(self, email: str) -> bool:
        return self.who.email is not None and lane_key(email) == lane_key(self.who.email)

    def _lane_full(self, email: str, trust: Trust) -> Refusal | None:
        """Anybody can assert any address: that must not fill the lane of the person whose it is."""
        key = lane_key(email)
        lane, room = self.facts.lane(key), self.limits.lane_max
        if trust is not Trust.VERIFIED:
            room = max(1, room // _ASSERTED_SHARE)
            room = room if lane.verified else min(room, _STRANGERS_SHARE)
        if lane.waiting + self.queued.get(key, 0) >= room:
            return Refusal(Reason.LANE_FULL)
        return None
