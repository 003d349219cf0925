"""A group of appends before it is written: what decisions are shown, what they miss, and which rows come of it."""

from __future__ import annotations

import msgspec
import pytest

from proxy.core.calls import Track
from proxy.core.decision import (
    Alias,
    Bind,
    Born,
    Change,
    Decision,
    EndAlias,
    Enqueue,
    HeldPush,
    Hold,
    Identified,
    LaneFacts,
    Remember,
    Retire,
    Schedule,
    Scheduled,
    Seen,
    Verify,
    VisitorFacts,
)
from proxy.core.visitors import Trust, Visitor
from proxy.store.ledger import HELD_BYTES, HOLDING, WAITING, Draft, HeldRow, Known

KEY, TRACK = "a@example.com", Track(("a",))
NOW = 1_000.0


def known(**read: set[str]) -> Known:
    """Nothing was found of what was read."""
    known = Known(b"k" * 32)
    known.now = NOW
    for kind, names in read.items():
        getattr(known.asked, kind).update(names)
    return known


def carry_out(draft: Draft, *ops: Change) -> None:
    draft.look_up(Decision(ops, None))
    assert not draft.missed
    draft.carry_out(Decision(ops, None))


def enqueue(push_id: str = "i", *, trust: Trust = Trust.VERIFIED, not_before: float = 0.0) -> Enqueue:
    return Enqueue(push_id, KEY, KEY, trust, TRACK, not_before)


def test_what_was_not_read_is_guessed_and_noted() -> None:
    draft = Draft(known())
    assert (draft.seen("i"), draft.lane(KEY), draft.visitor("v")) == (None, LaneFacts(), VisitorFacts())
    assert (draft.alias(KEY), draft.erased_at(KEY), list(draft.held("v"))) == (None, None, [])
    assert draft.schedule(Schedule.SIGN_UPS) == 0
    missed = draft.missed
    assert (missed.ids, missed.keys, missed.visitors, missed.held) == ({"i"}, {KEY}, {"v"}, {"v"})
    assert missed.schedules == {Schedule.SIGN_UPS}


def test_what_was_read_and_not_found_is_missed_by_nobody() -> None:
    draft = Draft(known(ids={"i"}, keys={KEY}, visitors={"v"}, held={"v"}))
    assert (draft.seen("i"), draft.lane(KEY), draft.visitor("v")) == (None, LaneFacts(), VisitorFacts())
    assert not draft.missed


@pytest.mark.parametrize(
    "op",
    [
        enqueue(),
        Hold("i", "v", TRACK),
        Bind("v", KEY, KEY, Trust.VERIFIED),
        Retire("v"),
        Born("v", KEY),
        Identified("v"),
        Verify(KEY),
        EndAlias(KEY),
        Remember("i", "v"),
        Scheduled(Schedule.TRACES, 1.0),
    ],
)
def test_a_plan_is_not_carried_out_before_what_it_touches_is_known(op: Change) -> None:
    draft = Draft(known())
    draft.look_up(Decision((op,), None))
    assert draft.missed


def test_whoever_can_be_asked_is_asked_instead_of_a_guess() -> None:
    store = known()
    draft = Draft(store)

    def ask(kind: str, name: str) -> None:
        getattr(store.asked, kind).add(name)
        store.seen[name] = Seen("v", None)

    draft.ask = ask
    assert draft.seen("i") == Seen("v", None)
    assert not draft.missed


def test_a_decision_sees_what_the_plans_before_it_change() -> None:
    store = known(ids={"i"}, keys={KEY}, visitors={"v"}, held={"v"}, schedules={Schedule.TRACES})
    store.lanes[KEY] = LaneFacts(waiting=3)
    store.aliases[KEY] = Alias("b@example.com", 5.0)
    draft = Draft(store)
    after = Visitor("v", KEY, Trust.VERIFIED)
    carry_out(draft, enqueue(), Verify(KEY), EndAlias(KEY), Remember("i", "v", after), Scheduled(Schedule.TRACES, 7.0))
    assert draft.lane(KEY) == LaneFacts(verified=True, waiting=4)
    assert (draft.alias(KEY), draft.seen("i")) == (None, Seen("v", after, NOW))
    assert draft.schedule(Schedule.TRACES) == 7.0
    carry_out(draft, Born("v", KEY))
    assert draft.visitor("v") == VisitorFacts(left=KEY)
    carry_out(draft, Identified("v"), Retire("v"))
    assert draft.visitor("v") == VisitorFacts(retired=True, identified=NOW)


def test_what_is_known_of_an_id_stays() -> None:
    store = known(ids={"i", "j"})
    store.seen["i"] = Seen("first", None)
    draft = Draft(store)
    carry_out(draft, Remember("i", "again"), Remember("j", "first"), Remember("j", "again"))
    assert [(op.id, op.shown) for op in draft.remembered] == [("j", "first")]


def test_what_is_held_is_bound_whether_it_is_written_yet_or_not() -> None:
    store = known(keys={KEY}, visitors={"v"}, held={"v"})
    store.visitors["v"] = VisitorFacts(holding=1)
    store.held["v"] = [HeldRow(7, "old", msgspec.json.encode(TRACK), 5.0)]
    draft = Draft(store)
    carry_out(draft, Hold("new", "v", TRACK))
    assert draft.held("v") == [HeldPush("old", TRACK, 5.0), HeldPush("new", TRACK, NOW)]
    assert draft.visitor("v").holding == 2
    carry_out(draft, Bind("v", KEY, KEY, Trust.VERIFIED, ("old", "new")))
    assert [(row.id, row.since) for row in draft.pushes] == [("old", 5.0), ("new", NOW)]
    assert (draft.unheld, draft.held_rows["v"], draft.visitor("v").holding) == ({7}, [], 0)
    assert (draft.tallies["bound"], draft.tallies[WAITING], draft.tallies[HOLDING]) == (2, 2, -1)
    assert draft.tallies[HELD_BYTES] < 0


def test_a_lane_is_put_off_until_somebody_who_is_vouched_for_comes() -> None:
    store = known(keys={KEY})
    store.ahead = 10.0  # the store's clock shows ten seconds more than ours
    draft = Draft(store)
    carry_out(draft, enqueue(trust=Trust.ASSERTED, not_before=NOW + 50))
    assert (draft.lanes[KEY].delay, draft.lanes[KEY].put_off) == (60.0, True)
    carry_out(draft, enqueue(trust=Trust.ASSERTED))
    assert draft.lanes[KEY].put_off
    carry_out(draft, enqueue())
    change = draft.lanes[KEY]
    assert (change.gained, change.delay, change.put_off, change.vouched) == (3, 0.0, False, True)
