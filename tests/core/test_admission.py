"""The rules of admission one by one, as tables, then the fold over a request's pushes. `Known` is what the store knows, in dicts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from math import inf

import msgspec
import pytest

from proxy.core.admission import judge, reads_of
from proxy.core.calls import Attributes, BadPush, Call, Consent, Identify, Push, Reset, Track
from proxy.core.context import lane_room, next_booking
from proxy.core.decision import (
    Alias,
    Bind,
    Born,
    Decision,
    Drop,
    EndAlias,
    Enqueue,
    Forgotten,
    HeldPush,
    Hold,
    Identified,
    LaneFacts,
    Refused,
    Remember,
    Retire,
    Schedule,
    Seen,
    Verify,
    VisitorFacts,
)
from proxy.core.policy import Policy
from proxy.core.reasons import Reason, Status
from proxy.core.request import Candidate, Limits, PushAnswer, Request
from proxy.core.tokens import TokenProblem, Vouched
from proxy.core.visitors import NOBODY, Trust, Visitor, derived_visitor, fingerprint, next_session
from proxy.core.visits import bind, bound_until, enter, next_cookie, present, resume, start_anew, still_says, to_retire

NOW = 1_700_000_000.0
HOUR, DAY = 3_600.0, 86_400.0
KEY = b"k" * 32
ADA, BOB = "ada@example.com", "bob@example.com"
LONG_AGO = NOW - 30 * DAY

POLICY = Policy(tags=["*"], fields=["*"], asserted_tags=["news*"], asserted_fields=[], asserted_identify=True)
LIMITS = Limits(
    verified_for=timedelta(days=30),
    lane_max=1_000,
    hold_max=2,
    honour_gpc=True,
    takes_turns=True,
    traces_per_hour=1,
)


class Known(msgspec.Struct, kw_only=True):
    """`Facts`, written down."""

    site_key: bytes = KEY
    pushes: dict[str, Seen] = {}
    visitors: dict[str, VisitorFacts] = {}
    lanes: dict[str, LaneFacts] = {}
    aliases: dict[str, Alias] = {}
    erased: dict[str, float] = {}
    waiting: dict[str, list[HeldPush]] = {}
    bytes_unvouched: int = 0
    busy: dict[Schedule, float] = {}

    def seen(self, push_id: str) -> Seen | None:
        return self.pushes.get(push_id)

    def visitor(self, visitor_id: str) -> VisitorFacts:
        return self.visitors.get(visitor_id, VisitorFacts(holding=len(self.waiting.get(visitor_id, ()))))

    def lane(self, key: str) -> LaneFacts:
        return self.lanes.get(key, LaneFacts())

    def alias(self, key: str) -> Alias | None:
        return self.aliases.get(key)

    def erased_at(self, key: str) -> float | None:
        return self.erased.get(key)

    def held(self, visitor_id: str) -> Sequence[HeldPush]:
        return self.waiting.get(visitor_id, ())

    def unvouched_bytes(self) -> int:
        return self.bytes_unvouched

    def schedule(self, name: Schedule) -> float:
        return self.busy.get(name, 0.0)


def visitor(email: str | None = None, trust: Trust | None = None, *, issued: float = NOW - 60.0) -> Visitor:
    """The visitor "v", verified if known unless `trust` says otherwise, a minute ago unless `issued` says otherwise."""
    if trust is None:
        trust = Trust.ANONYMOUS if email is None else Trust.VERIFIED
    return Visitor("v", email, trust, int(issued), int(issued) if trust is Trust.VERIFIED else 0)


def request(
    *candidates: Candidate, cookie: Visitor | None = None, session: str | None = None, gpc: bool = False
) -> Request:
    return Request(now=NOW, cookie=cookie, session=session, gpc=gpc, candidates=candidates, stranger="stranger")


# --- Bounds


@pytest.mark.parametrize(
    ("trust", "lane_max", "room"),
    [
        (Trust.VERIFIED, 1_000, 1_000),
        (Trust.ASSERTED, 1_000, 250),
        (Trust.ASSERTED, 100, 25),
        (Trust.ASSERTED, 1, 1),  # never none
    ],
)
def test_what_anybody_can_assert_fills_only_part_of_a_lane(trust: Trust, lane_max: int, room: int) -> None:
    assert lane_room(trust, lane_max) == room


def test_an_hours_worth_comes_at_once_and_the_rest_evenly() -> None:
    busy, turns = 0.0, []
    for _ in range(6):
        at, busy = next_booking(busy, 4, NOW)
        turns.append(at - NOW)
    assert turns == [0.0, 0.0, 0.0, 0.0, HOUR / 4, HOUR / 2]


# --- The cookie


@pytest.mark.parametrize(
    ("known", "issued", "email"),
    [
        (Known(), LONG_AGO, ADA),
        (Known(erased={ADA: NOW - DAY}), LONG_AGO, None),
        (Known(erased={ADA: NOW - DAY}), NOW, ADA),  # back since
        (Known(aliases={ADA: Alias(BOB, NOW - DAY)}), LONG_AGO, BOB),
        (Known(aliases={ADA: Alias(BOB, NOW - DAY)}), NOW, ADA),  # somebody else's by now
    ],
)
def test_a_cookie_counts_as_its_person_is_today(known: Known, issued: float, email: str | None) -> None:
    cookie = present(visitor(ADA, issued=issued), known)
    assert (cookie and cookie.email) == email


def test_a_typed_address_does_not_learn_where_its_person_went() -> None:
    cookie = visitor(ADA, Trust.ASSERTED, issued=LONG_AGO)
    assert present(cookie, Known(aliases={ADA: Alias(BOB, NOW)})) == cookie


@pytest.mark.parametrize(
    ("old", "new", "is_set"),
    [
        (None, visitor(), True),
        (visitor(), visitor(), False),
        (visitor(), visitor(ADA), True),
        (visitor(ADA), msgspec.structs.replace(visitor(ADA), consent=False), True),
        (visitor(ADA), visitor(ADA, Trust.ASSERTED), True),
        (visitor(ADA), visitor(ADA, issued=NOW), False),  # a log-in on every page
        (visitor(ADA, issued=NOW - 2 * HOUR), visitor(ADA, issued=NOW), True),
        (visitor(issued=NOW - 6 * DAY), visitor(), False),
        (visitor(issued=NOW - 7 * DAY), visitor(), True),
    ],
)
def test_a_cookie_is_set_when_it_says_more_than_the_browsers_own(
    *, old: Visitor | None, new: Visitor, is_set: bool
) -> None:
    expected = msgspec.structs.replace(new, issued=int(NOW)) if is_set else None
    assert next_cookie(old, new, Known(), NOW) == expected


def test_an_anonymous_cookie_does_not_undo_the_log_in_of_another_tab() -> None:
    known = Known(visitors={"v": VisitorFacts(identified=NOW - 1.0)})
    assert next_cookie(None, visitor(), known, NOW) is None


# --- A push that is known already


@pytest.mark.parametrize(
    ("after", "age", "call", "says_so"),
    [
        (None, 0.0, Track(("a",)), False),
        (visitor(), 365 * DAY, Reset(), True),  # a log-out for ever
        (visitor(ADA), HOUR, Identify(Attributes()), True),
        (visitor(ADA), HOUR + 1.0, Identify(Attributes()), False),
        (visitor(ADA), 0.0, Track(("a",)), False),
        (visitor(ADA), HOUR, Reset(), True),  # as which the script keeps it
        (visitor(ADA), HOUR, Reset(fingerprint(" Ada@Example.com")), True),
        (visitor(ADA), 0.0, Reset(fingerprint(BOB)), False),
        (visitor(ADA), HOUR + 1.0, Reset(), False),
        (visitor(ADA, Trust.ASSERTED), DAY, Identify(Attributes()), True),
        (visitor(ADA, Trust.ASSERTED), DAY + 1.0, Identify(Attributes()), False),
    ],
)
def test_a_known_id_is_not_a_log_in_for_ever_nor_in_another_call(
    *, after: Visitor | None, age: float, call: Call, says_so: bool
) -> None:
    assert still_says(Seen("v", after, NOW - age), Push("p", call), ("v",), NOW) is says_so


@pytest.mark.parametrize("trust", [Trust.ASSERTED, Trust.VERIFIED])
def test_the_id_of_a_typed_log_in_logs_in_under_its_own_session_value_only(trust: Trust) -> None:
    seen, push = Seen("v", visitor(ADA, trust), NOW), Push("p", Identify(Attributes()))
    assert still_says(seen, push, ("v", "other"), NOW)
    assert still_says(seen, push, ("other",), NOW) is (trust is Trust.VERIFIED)
    assert still_says(seen, push, (), NOW) is (trust is Trust.VERIFIED)


def test_a_bad_push_with_a_known_id_is_not_a_log_in() -> None:
    assert not still_says(Seen("v", visitor(ADA), NOW), BadPush("p", Reason.BAD_SHAPE), ("v",), NOW)


def test_a_known_log_out_gives_the_same_session_again() -> None:
    session = next_session("p", KEY)
    after = Visitor(derived_visitor(session, KEY))
    visit = resume(enter(None, request(session="s"), Known()), "p", after, None, "s", Known())
    assert (visit.who, visit.next_session, visit.resumed) == (after, session, True)


def test_a_newer_cookie_is_not_replaced_by_what_an_older_push_left() -> None:
    cookie = visitor(ADA)
    visit = resume(enter(cookie, request(), Known()), "p", visitor(issued=LONG_AGO), cookie, None, Known())
    assert (visit.who, visit.next_session) == (cookie, None)


# --- A visitor that ends, and what was held for one


def test_a_new_visitor_follows_from_the_push_that_ended_the_old_one() -> None:
    visit = enter(visitor(ADA), request(session="s"), Known())
    anew = start_anew(visit, "p", KEY)
    assert anew.who == Visitor(derived_visitor(next_session("p", KEY), KEY))
    assert anew.emptied == {"v", derived_visitor("s", KEY)}
    assert start_anew(visit, "p", KEY) == anew


@pytest.mark.parametrize(
    ("cookie", "known", "retired"),
    [
        (visitor(), VisitorFacts(), True),
        (None, VisitorFacts(), True),
        (None, VisitorFacts(identified=NOW - 60.0), True),  # perhaps on its way when somebody logged in
        (None, VisitorFacts(shown=NOW - 60.0), True),
        (visitor(ADA), VisitorFacts(identified=NOW - 61.0), True),
        (visitor(), VisitorFacts(shown=NOW - DAY, shown_by="v"), True),  # its own cookie
        (
            visitor(),
            VisitorFacts(identified=NOW - 61.0, shown=NOW - DAY, shown_by="v"),
            False,
        ),  # from before that log-in
        (Visitor("w"), VisitorFacts(shown=NOW - DAY, shown_by="v"), False),  # another one, and somebody's session value
        (Visitor("v"), VisitorFacts(shown=NOW - DAY, shown_by="v"), True),
        (Visitor("w"), VisitorFacts(identified=NOW - DAY), False),
        (Visitor("w", BOB), VisitorFacts(shown=NOW - DAY, shown_by="v"), False),
        (Visitor("w", BOB), VisitorFacts(shown=NOW - DAY, shown_by="w"), True),  # the value that this browser drew anew
    ],
)
def test_a_session_value_that_somebody_knows_logs_nobody_out(
    *, cookie: Visitor | None, known: VisitorFacts, retired: bool
) -> None:
    of_session = derived_visitor("s", KEY)
    cookie = msgspec.structs.replace(cookie, id=of_session) if cookie and cookie.id == "v" else cookie
    by = of_session if known.shown_by == "v" else known.shown_by
    facts = Known(visitors={of_session: msgspec.structs.replace(known, shown_by=by)})
    ending = to_retire(enter(cookie, request(session="s"), facts), cookie, facts, NOW)
    assert (of_session in ending) is retired


@pytest.mark.parametrize(
    ("heir", "identified", "until"),
    [
        (None, None, inf),
        (ADA, None, inf),
        (BOB, None, -inf),
        (fingerprint(ADA), None, inf),
        (fingerprint(BOB), None, -inf),
        (NOBODY, None, -inf),
        (None, NOW, NOW + 60.0),
        (ADA, NOW, NOW + 60.0),
    ],
)
def test_what_was_held_is_bound_to_the_person_who_did_it(
    heir: str | None, identified: float | None, until: float
) -> None:
    assert bound_until(heir, "Ada@Example.com", identified) == until


def test_what_is_bound_is_judged_again_under_the_trust_it_ends_up_with() -> None:
    held = [HeldPush("kept", Track(("news",)), NOW), HeldPush("late", Track(("news",)), NOW + 2.0)]
    held.append(HeldPush("not offered", Track(("paid",)), NOW))
    bound = bind(held, "v", ADA.upper(), Trust.ASSERTED, until=NOW + 1.0, policy=POLICY)
    refuse = (("late", Reason.IDENTITY_CHANGED), ("not offered", Reason.TAG_NOT_ALLOWED))
    assert bound == Bind("v", ADA, ADA.upper(), Trust.ASSERTED, ("kept",), refuse)


# --- The fold


def judged(
    *pushes: tuple[str, Call] | Candidate,
    cookie: Visitor | None = None,
    session: str | None = None,
    gpc: bool = False,
    known: Known | None = None,
    policy: Policy = POLICY,
    limits: Limits = LIMITS,
) -> Decision[PushAnswer]:
    candidates = [push if isinstance(push, Candidate) else Candidate(Push(*push)) for push in pushes]
    asked = request(*candidates, cookie=cookie, session=session, gpc=gpc)
    return judge(asked, known or Known(), policy, limits)


def outcomes(decision: Decision[PushAnswer]) -> list[Status | Reason]:
    return [result.reason or result.status for result in decision.answer.results]


def log_in(push_id: str, email: str, *, issued: float = NOW) -> Candidate:
    return Candidate(Push(push_id, Identify(Attributes(), token="t")), Vouched(email, Attributes(), issued=issued))


def typed(email: str) -> Identify:
    return Identify(Attributes({"firstName": "A"}, tags=("news",)), email)


TRACK = Track(("news",))
IDENTIFIED = Known(visitors={"v": VisitorFacts(identified=NOW - DAY, person=ADA)})


def test_a_track_of_a_known_visitor_is_queued_and_remembered_and_nothing_else() -> None:
    decision = judged(("p", TRACK), cookie=visitor(ADA), known=IDENTIFIED)
    assert decision.changes == (Enqueue("p", ADA, ADA, Trust.VERIFIED, TRACK), Remember("p", "v"))
    assert (outcomes(decision), decision.answer.visitor) == ([Status.ACCEPTED], None)


def test_what_a_visitor_did_before_an_identify_goes_right_behind_it() -> None:
    known = Known(waiting={"v": [HeldPush("h", TRACK, NOW - DAY)]})
    decision = judged(("p1", TRACK), log_in("p2", ADA), ("p3", TRACK), cookie=visitor(), known=known)
    assert decision.changes == (
        Hold("p1", "v", TRACK),
        Remember("p1", "v"),
        Enqueue("p2", ADA, ADA, Trust.VERIFIED, Attributes()),
        Identified("v", ADA),
        Bind("v", ADA, ADA, Trust.VERIFIED, ("h", "p1")),
        Verify(ADA),
        EndAlias(ADA),
        Remember("p2", "v", visitor(ADA, issued=NOW)),
        Enqueue("p3", ADA, ADA, Trust.VERIFIED, TRACK),
        Remember("p3", "v"),
    )
    assert decision.answer.visitor == visitor(ADA, issued=NOW)


def test_what_a_tab_without_a_cookie_did_is_bound_at_the_next_push_of_the_known_visitor() -> None:
    waiting = {"v": [HeldPush("in time", TRACK, NOW - DAY + 1.0), HeldPush("too late", TRACK, NOW)]}
    facts = VisitorFacts(identified=NOW - DAY, person=ADA, holding=2)
    known = Known(visitors={"v": facts}, waiting=waiting)
    change = judged(cookie=visitor(ADA), known=known).changes
    assert change == (Bind("v", ADA, ADA, Trust.VERIFIED, ("in time",), (("too late", Reason.IDENTITY_CHANGED),)),)


def test_a_log_in_as_another_person_retires_visitor_and_session() -> None:
    decision = judged(("p1", TRACK), log_in("p2", BOB), ("p3", TRACK), cookie=visitor(ADA), session="s")
    session = next_session("p2", KEY)
    assert Retire("v") in decision.changes
    assert Retire(derived_visitor("s", KEY)) in decision.changes
    assert [it.key for it in decision.changes if isinstance(it, Enqueue)] == [ADA, BOB, BOB]
    assert decision.answer.session == session
    assert decision.answer.visitor is not None
    assert decision.answer.visitor.id == derived_visitor(session, KEY)


@pytest.mark.parametrize(("size", "status"), [(4_096_000 - 1, Status.ACCEPTED), (4_096_000, Reason.LANE_FULL)])
def test_a_lane_is_full_of_few_pushes_if_they_are_large(size: int, status: Status | Reason) -> None:
    known = Known(lanes={ADA: LaneFacts(waiting=1, bytes=size)})
    assert outcomes(judged(("p", TRACK), cookie=visitor(ADA), known=known)) == [status]


def test_large_pushes_that_anybody_can_assert_fill_only_part_of_a_lane() -> None:
    known = Known(lanes={ADA: LaneFacts(verified=True, waiting=1, bytes=250 * 4_096)})
    assert outcomes(judged(("p", TRACK), cookie=visitor(ADA), known=known)) == [Status.ACCEPTED]
    asserted = visitor(ADA, Trust.ASSERTED)
    assert outcomes(judged(("p", TRACK), cookie=asserted, known=known)) == [Reason.LANE_FULL]


def test_a_request_fills_a_lane_by_itself() -> None:
    limits = msgspec.structs.replace(LIMITS, lane_max=2)
    decision = judged(*[(f"p{number}", TRACK) for number in range(3)], cookie=visitor(ADA), limits=limits)
    assert outcomes(decision) == [Status.ACCEPTED, Status.ACCEPTED, Reason.LANE_FULL]


def test_a_typed_address_is_delivered_once_and_takes_nobodys_place() -> None:
    decision = judged(("p1", typed(BOB)), ("p2", TRACK), cookie=visitor(ADA), known=IDENTIFIED)
    queued = [it for it in decision.changes if isinstance(it, Enqueue)]
    assert [(it.key, it.trust) for it in queued] == [(BOB, Trust.ASSERTED), (ADA, Trust.VERIFIED)]
    assert decision.answer.visitor is None


def test_a_typed_address_overwrites_no_field_of_a_contact_that_was_verified_here() -> None:
    everything = Policy(tags=["*"], fields=["*"], asserted_tags=["*"], asserted_fields=["*"], asserted_identify=True)
    known = Known(lanes={ADA: LaneFacts(verified=True)})
    decision = judged(("p", typed(ADA)), session="s", known=known, policy=everything)
    assert decision.changes[0] == Enqueue("p", ADA, ADA, Trust.ASSERTED, Attributes(tags=("news",)))


def test_a_typed_address_is_a_sign_up_of_its_client_unless_the_browser_owns_it() -> None:
    typed_by = msgspec.structs.replace(request(cookie=visitor(ADA)), client="192.0.2.1")
    asked = msgspec.structs.replace(
        typed_by, candidates=(Candidate(Push("p1", typed(ADA))), Candidate(Push("p2", typed(BOB))))
    )
    decision = judge(asked, Known(), POLICY, LIMITS)
    assert [(it.key, it.sign_up) for it in decision.changes if isinstance(it, Enqueue)] == [
        (ADA, ""),
        (BOB, "192.0.2.1"),
    ]
    assert decision.answer.unvouched == (BOB,)
    at_once = judge(asked, Known(), POLICY, msgspec.structs.replace(LIMITS, takes_turns=False))
    assert [it.sign_up for it in at_once.changes if isinstance(it, Enqueue)] == ["", ""]


@pytest.mark.parametrize(
    ("limits", "known"),
    [
        ({"full": frozenset({BOB})}, Known()),
        ({"over": True}, Known()),
        ({"most_bytes": 1_000.0}, Known(bytes_unvouched=1_000)),
    ],
)
def test_a_stranger_is_refused_for_what_its_network_has_brought_whoever_the_address_belongs_to(
    limits: dict[str, object], known: Known
) -> None:
    asked = msgspec.structs.replace(request(Candidate(Push("p", typed(BOB))), session="s"), **limits)
    for lanes, erased in (({}, {}), ({BOB: LaneFacts(verified=True)}, {}), ({}, {BOB: NOW - 1.0})):
        facts = msgspec.structs.replace(known, lanes=lanes, erased=erased)
        assert outcomes(judge(asked, facts, POLICY, LIMITS)) == [Reason.LANE_FULL]


def test_what_was_said_before_adds_nothing_and_is_always_accepted() -> None:
    for cookie in (None, visitor(BOB, Trust.ASSERTED)):
        asked = request(Candidate(Push("p", typed(BOB)), repeats=True), session="s", cookie=cookie)
        asked = msgspec.structs.replace(asked, over=True)
        for lane in (LaneFacts(waiting=1), LaneFacts(verified=True)):
            decision = judge(asked, Known(lanes={BOB: lane}), POLICY, LIMITS)
            assert outcomes(decision) == [Status.ACCEPTED]
            assert not [it for it in decision.changes if isinstance(it, Enqueue | Remember)]
        decision = judge(asked, Known(), POLICY, LIMITS)
        assert outcomes(decision) == [Status.ACCEPTED]
        assert [it for it in decision.changes if isinstance(it, Enqueue)], "it was dropped meanwhile"


def test_a_typed_visitor_has_signed_up_only_if_the_store_knows_it_for_that_address_and_its_turn_has_come() -> None:
    signed_up = VisitorFacts(identified=LONG_AGO, person=BOB)
    cases = [
        (signed_up, LaneFacts(), ""),
        (signed_up, LaneFacts(waiting=1, put_off=True), "192.0.2.1"),
        (VisitorFacts(identified=LONG_AGO, person=NOBODY), LaneFacts(), "192.0.2.1"),
        (VisitorFacts(), LaneFacts(), "192.0.2.1"),
    ]
    for known, lane, client in cases:
        pushes = [Candidate(Push("p1", Track(("news",)))), Candidate(Push("p2", Identify(Attributes())))]
        asked = request(*pushes, cookie=visitor(BOB, Trust.ASSERTED))
        facts = Known(visitors={"v": known}, lanes={BOB: lane})
        decision = judge(msgspec.structs.replace(asked, client="192.0.2.1"), facts, POLICY, LIMITS)
        assert [it.sign_up for it in decision.changes if isinstance(it, Enqueue)] == [client, client]


@pytest.mark.parametrize("call", [Consent(granted=False), Reset(), Reset("#1")])
def test_what_strangers_log_out_and_consent_counts_as_theirs_and_is_limited_once_they_are_full(call: Call) -> None:
    for who, known in (
        (visitor(BOB, Trust.ASSERTED), VisitorFacts(identified=LONG_AGO, person=BOB)),
        (visitor(), VisitorFacts(holding=1)),
        (visitor(), VisitorFacts(person=BOB)),
    ):
        asked = request(*(Candidate(Push(f"p{number}", call)) for number in range(4)), cookie=who)
        facts = Known(visitors={"v": known})
        taken = judge(asked, facts, POLICY, LIMITS)
        left = [it for it in taken.changes if isinstance(it, Remember)]
        assert left
        assert all(it.unvouched for it in left)
        assert taken.answer.unvouched == ("",) * len(left)
        full = judge(msgspec.structs.replace(asked, over=True), facts, POLICY, LIMITS)
        assert outcomes(full) == [Status.ACCEPTED] * 4
        assert len([it for it in full.changes if isinstance(it, Remember | Born)]) <= 5
    vouched = judge(request(Candidate(Push("p", call)), cookie=visitor(BOB)), Known(), POLICY, LIMITS)
    assert vouched.answer.unvouched == ()


def test_a_late_retry_for_somebody_erased_is_accepted_and_forgotten() -> None:
    decision = judged(log_in("p", ADA, issued=NOW - 2.0), session="s", known=Known(erased={ADA: NOW - 1.0}))
    assert decision.changes[0] == Forgotten()
    assert outcomes(decision) == [Status.ACCEPTED]


def test_a_reset_gives_its_new_visitor_to_the_person_who_left() -> None:
    decision = judged(("p1", Reset()), ("p2", TRACK), cookie=visitor(ADA), known=IDENTIFIED)
    new = derived_visitor(next_session("p1", KEY), KEY)
    after = Visitor(new, issued=int(NOW))
    held = (Hold("p2", new, TRACK), Remember("p2", "v"))
    assert decision.changes == (Retire("v"), Born(new, ADA), Remember("p1", "v", after), *held)


def test_only_so_many_log_outs_of_unknown_visitors_leave_a_trace() -> None:
    decision = judged(("p1", Reset()), ("p2", Reset()), ("p3", Reset()), session="s")
    assert [it.id for it in decision.changes if isinstance(it, Remember)] == ["p1"]
    assert outcomes(decision) == [Status.ACCEPTED] * 3


def test_denied_consent_drops_what_is_held_and_refuses_what_was_not_released() -> None:
    pushes = [Candidate(Push("p4", TRACK, released=True))]
    decision = judged(("p1", TRACK), ("p2", Consent(granted=False)), ("p3", TRACK), *pushes, cookie=visitor())
    assert outcomes(decision) == [Status.HELD, Status.ACCEPTED, Reason.CONSENT_DENIED, Status.HELD]
    assert Drop("v", Reason.CONSENT_DENIED) in decision.changes


def test_what_was_pushed_under_a_retired_session_waits_for_a_known_id() -> None:
    retired = derived_visitor("s", KEY)
    known = Known(
        visitors={retired: VisitorFacts(retired=True)}, pushes={"p2": Seen(retired, visitor(ADA, issued=NOW), NOW)}
    )
    decision = judged(("p1", TRACK), log_in("p2", ADA), ("p3", TRACK), session="s", known=known)
    assert outcomes(decision) == [Reason.IDENTITY_CHANGED, Status.DUPLICATE, Status.ACCEPTED]


def test_the_same_id_twice_in_a_request_is_a_duplicate() -> None:
    assert outcomes(judged(("p", TRACK), ("p", TRACK), session="s")) == [Status.HELD, Status.DUPLICATE]


def test_holding_has_a_limit_and_honours_global_privacy_control() -> None:
    three = [(f"p{number}", TRACK) for number in range(3)]
    assert outcomes(judged(*three, session="s")) == [Status.HELD, Status.HELD, Reason.HOLD_FULL]
    full = msgspec.structs.replace(request(*(Candidate(Push(*each)) for each in three), session="s"), over=True)
    assert outcomes(judge(full, Known(), POLICY, LIMITS)) == [Reason.HOLD_FULL] * 3
    assert outcomes(judged(*three, session="s", gpc=True)) == [Reason.GPC] * 3


@pytest.mark.parametrize(
    ("candidate", "reason", "where"),
    [
        (Candidate(BadPush("p", Reason.TOO_LONG, "call[1]")), Reason.TOO_LONG, "call[1]"),
        (Candidate(Push("p", Identify(Attributes()))), Reason.UNVERIFIED_IDENTITY, "call[1]"),
        (
            Candidate(Push("p", Identify(Attributes(), token="t")), TokenProblem(Reason.BAD_TOKEN, "")),
            Reason.BAD_TOKEN,
            "call[1].token",
        ),
    ],
)
def test_a_refusal_says_where_and_stores_nothing_but_its_count(
    candidate: Candidate, reason: Reason, where: str
) -> None:
    decision = judged(candidate, session="s")
    [result] = decision.answer.results
    assert (result.status, result.reason, result.where) == (Status.REFUSED, reason, where)
    assert decision.changes == (Refused(reason),)
    assert decision.answer.visitor is None


def test_a_request_names_what_its_judgement_will_ask_for() -> None:
    typed = Candidate(Push("b" * 32, Identify(Attributes(), email="Bob@Example.com")))
    cookie = Visitor("v", "ann@example.com", Trust.VERIFIED, issued=1)
    reads = reads_of(request(typed, cookie=cookie, session="s" * 16), b"k" * 32)
    assert (list(reads.ids), set(reads.keys)) == (["b" * 32], {"bob@example.com", "ann@example.com"})
    assert set(reads.visitors) == {"v", derived_visitor("s" * 16, b"k" * 32)}


def test_a_browser_that_shows_nothing_is_the_stranger_of_its_request() -> None:
    assert list(reads_of(request(), b"k" * 32).visitors) == ["stranger"]
