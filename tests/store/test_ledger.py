"""The ledger: what decisions are shown, what they ask for, and which rows carry them out."""

from __future__ import annotations

import msgspec
import pytest

from proxy.core.calls import Track
from proxy.core.decision import (
    Alias,
    Bind,
    Born,
    Change,
    EndAlias,
    Enqueue,
    HeldPush,
    Hold,
    Identified,
    LaneFacts,
    Reads,
    Remember,
    Retire,
    Schedule,
    Scheduled,
    Seen,
    Shown,
    Verify,
    VisitorFacts,
)
from proxy.core.visitors import Trust, Visitor
from proxy.store.facts import FactKind, HeldRow, Known, Wants, wants_of
from proxy.store.ledger import Ledger
from proxy.store.rows import HOLDING, ID_OVERHEAD, PUSH_OVERHEAD, UNVOUCHED_BYTES, WAITING, id_gauge

KEY, TRACK = "a@example.com", Track(("a",))
SIZE = len(msgspec.json.encode(TRACK))
NOW = 1_000.0
NONE: set[str] = set()


def known(
    *, ids: set[str] = NONE, keys: set[str] = NONE, visitors: set[str] = NONE, schedules: set[str] = NONE
) -> Known:
    """Nothing was found of what was read."""
    known = Known(b"k" * 32)
    known.now = NOW
    known.seen.update(dict.fromkeys(ids))
    known.lanes.update(dict.fromkeys(keys))
    known.aliases.update(dict.fromkeys(keys))
    known.erased.update(dict.fromkeys(keys))
    known.visitors.update({visitor: VisitorFacts() for visitor in visitors})
    known.schedules.update(dict.fromkeys(schedules, 0.0))
    return known


class Notes:
    """A store that cannot answer at once."""

    def __init__(self, known: Known) -> None:
        self.missed = Wants()
        self.ledger = Ledger(known, self.missed.note)


def carry_out(ledger: Ledger, *changes: Change) -> None:
    ledger.carry_out(changes)


def nobody(kind: FactKind, name: str) -> None:
    raise AssertionError(f"{kind} {name} was not read")


def enqueue(push_id: str = "i", *, trust: Trust = Trust.VERIFIED, sign_up: str = "") -> Enqueue:
    return Enqueue(push_id, KEY, KEY, trust, TRACK, sign_up)


def test_a_name_that_was_not_read_is_asked_for_and_guessed_meanwhile() -> None:
    notes = Notes(known())
    ledger, missed = notes.ledger, notes.missed
    assert (ledger.seen("i"), ledger.lane(KEY), ledger.visitor("v")) == (None, LaneFacts(), VisitorFacts())
    assert (ledger.alias(KEY), ledger.erased_at(KEY), list(ledger.held("v"))) == (None, None, [])
    assert ledger.schedule(Schedule.SIGN_UPS) == 0
    assert (missed.ids, missed.keys, missed.visitors, missed.held) == ({"i"}, {KEY}, {"v"}, set())
    assert missed.schedules == {Schedule.SIGN_UPS}


def test_held_pushes_are_asked_for_only_where_there_are_any() -> None:
    store = known(visitors={"v", "w"})
    store.visitors["w"] = VisitorFacts(holding=1)
    notes = Notes(store)
    assert list(notes.ledger.held("v")) == []
    assert not notes.missed
    notes.ledger.held("w")
    assert notes.missed.held == {"w"}


def test_a_name_that_was_read_and_not_found_is_not_asked_for_again() -> None:
    ledger = Ledger(known(ids={"i"}, keys={KEY}, visitors={"v"}), nobody)
    assert (ledger.seen("i"), ledger.lane(KEY), ledger.visitor("v")) == (None, LaneFacts(), VisitorFacts())


def test_what_decisions_announce_is_read_together() -> None:
    wants = wants_of([Reads(("i", "j"), (KEY,), ("v",)), Reads(("j",)), Reads(visitors=("w",))])
    assert (wants.ids, wants.keys, wants.visitors) == ({"i", "j"}, {KEY}, {"v", "w"})


@pytest.mark.parametrize(
    "op",
    [
        enqueue(),
        Hold("i", "v", TRACK),
        Bind("v", KEY, KEY, Trust.VERIFIED),
        Retire("v"),
        Born("v", KEY),
        Identified("v", KEY),
        Shown("v", "v"),
        Verify(KEY),
        EndAlias(KEY),
        Remember("i", "v"),
        Scheduled(Schedule.TRACES, 1.0),
    ],
)
def test_whatever_a_decision_touches_is_asked_for_as_it_is_carried_out(op: Change) -> None:
    notes = Notes(known())
    notes.ledger.carry_out((op,))
    assert notes.missed


def test_a_store_that_answers_at_once_is_believed() -> None:
    store = known()

    def ask(kind: FactKind, name: str) -> None:
        assert kind == "ids"
        store.seen[name] = Seen("v", None)

    assert Ledger(store, ask).seen("i") == Seen("v", None)


def test_a_decision_sees_what_the_decisions_before_it_change() -> None:
    store = known(ids={"i"}, keys={KEY}, visitors={"v"}, schedules={Schedule.TRACES})
    store.lanes[KEY] = LaneFacts(waiting=3, bytes=50)
    store.aliases[KEY] = Alias("b@example.com", 5.0)
    ledger = Ledger(store, nobody)
    after = Visitor("v", KEY, Trust.VERIFIED)
    carry_out(ledger, enqueue(), Verify(KEY), EndAlias(KEY), Remember("i", "v", after), Scheduled(Schedule.TRACES, 7.0))
    assert ledger.lane(KEY) == LaneFacts(verified=True, waiting=4, bytes=50 + SIZE)
    assert (ledger.alias(KEY), ledger.seen("i")) == (None, Seen("v", after, NOW))
    assert ledger.schedule(Schedule.TRACES) == 7.0
    carry_out(ledger, Born("v", KEY))
    assert ledger.visitor("v") == VisitorFacts(person=KEY)
    carry_out(ledger, Shown("v", "v"), Identified("v", "b@example.com"), Retire("v"))
    assert ledger.visitor("v") == VisitorFacts(
        retired=True, identified=NOW, person="b@example.com", shown=NOW, shown_by="v"
    )


def test_a_visitor_who_is_shown_again_is_written_only_to_keep_it_from_growing_old() -> None:
    store = known(visitors={"v", "w"})
    store.visitors["v"] = VisitorFacts(shown=5.0)
    store.visitors["w"] = VisitorFacts(identified=6.0, person=KEY, shown=5.0)
    ledger = Ledger(store, nobody)
    carry_out(ledger, Shown("v", "v"), Shown("w", "w"))
    assert (ledger.visitor("v"), ledger.visitor("w")) == (store.visitors["v"], store.visitors["w"])
    assert list(ledger.writes.visitors) == ["v"]


def test_what_is_known_of_an_id_stays() -> None:
    store = known(ids={"i", "j"})
    store.seen["i"] = Seen("first", None)
    ledger = Ledger(store, nobody)
    carry_out(ledger, Remember("i", "again"), Remember("j", "first"), Remember("j", "again"))
    assert [(op.id, op.shown) for op in ledger.writes.remembered] == [("j", "first")]


def test_what_is_held_is_bound_whether_it_is_written_yet_or_not() -> None:
    store = known(keys={KEY}, visitors={"v"})
    store.visitors["v"] = VisitorFacts(holding=1)
    store.held["v"] = [HeldRow(7, "old", msgspec.json.encode(TRACK), 5.0)]
    ledger = Ledger(store, nobody)
    carry_out(ledger, Hold("new", "v", TRACK))
    assert ledger.held("v") == [HeldPush("old", TRACK, 5.0), HeldPush("new", TRACK, NOW)]
    assert ledger.visitor("v").holding == 2
    carry_out(ledger, Bind("v", KEY, KEY, Trust.VERIFIED, ("old", "new")))
    assert [(row[1], row[6]) for row in ledger.writes.pushes] == [("old", 5.0), ("new", NOW)]
    assert ledger.lane(KEY) == LaneFacts(waiting=2, bytes=2 * SIZE)
    assert (ledger.writes.unheld, ledger.writes.held["v"], ledger.visitor("v").holding) == ({7}, [], 0)
    assert (ledger.tallies["bound"], ledger.tallies[WAITING], ledger.tallies[HOLDING]) == (2, 2, -1)
    assert ledger.tallies[UNVOUCHED_BYTES] < 0


def test_a_lane_is_put_off_until_somebody_who_is_vouched_for_comes() -> None:
    store = known(keys={KEY}, schedules={Schedule.SIGN_UPS})
    ledger = Ledger(store, nobody)
    carry_out(ledger, enqueue(trust=Trust.ASSERTED, sign_up="192.0.2.1"))
    assert ledger.lane(KEY).put_off
    carry_out(ledger, enqueue(trust=Trust.ASSERTED), enqueue(trust=Trust.ASSERTED, sign_up="192.0.2.2"))
    change = ledger.writes.lanes[KEY]
    assert (change.put_off, change.sign_ups, change.vouched) == (True, {"192.0.2.1", "192.0.2.2"}, False)
    carry_out(ledger, enqueue())
    assert (change.gained, change.put_off, change.vouched) == (4, False, True)
    assert not ledger.lane(KEY).put_off


def test_a_lane_that_was_vouched_for_is_never_put_off() -> None:
    store = known(keys={KEY})
    store.lanes[KEY] = LaneFacts(verified=True)
    ledger = Ledger(store, nobody)
    carry_out(ledger, enqueue(trust=Trust.ASSERTED, sign_up="192.0.2.1"))
    assert (ledger.writes.lanes[KEY].put_off, ledger.writes.lanes[KEY].sign_ups) == (False, set())


def test_bytes_that_nobody_has_vouched_for_are_counted_with_what_they_cost() -> None:
    store = known(keys={KEY})
    store.unvouched_bytes = 100
    ledger = Ledger(store, nobody)
    carry_out(ledger, enqueue())
    assert ledger.unvouched_bytes() == 100
    carry_out(ledger, enqueue(trust=Trust.ASSERTED))
    assert ledger.tallies[UNVOUCHED_BYTES] == SIZE + PUSH_OVERHEAD
    assert ledger.tallies[id_gauge(NOW)] == ID_OVERHEAD
    assert ledger.unvouched_bytes() == 100 + SIZE + PUSH_OVERHEAD + ID_OVERHEAD


def test_what_was_handed_over_to_be_written_is_known() -> None:
    store = known(ids={"i"}, keys={KEY}, visitors={"v"}, schedules={Schedule.TRACES})
    store.aliases[KEY] = Alias("b@example.com", 5.0)
    ledger = Ledger(store, nobody)
    carry_out(
        ledger,
        *(enqueue(), EndAlias(KEY), Remember("i", "v"), Scheduled(Schedule.TRACES, 7.0), Hold("h", "v", TRACK)),
        Identified("v", KEY),
    )
    writes = ledger.take_writes()
    assert [row[1] for row in writes.pushes] == ["i"]
    assert (ledger.alias(KEY), ledger.seen("i")) == (None, Seen("v", None, NOW))
    assert (ledger.visitor("v"), ledger.schedule(Schedule.TRACES)) == (
        VisitorFacts(identified=NOW, person=KEY, holding=1),
        7.0,
    )
    with pytest.raises(AssertionError, match=f"keys {KEY} was not read"):
        ledger.lane(KEY)  # what waits in it changes with every delivery
    with pytest.raises(AssertionError, match="held v was not read"):
        ledger.held("v")
    assert not ledger.take_writes().pushes


def test_what_could_not_be_stored_is_forgotten() -> None:
    ledger = Ledger(known(ids={"i"}, keys={KEY}, visitors={"v"}), nobody)
    carry_out(ledger, enqueue(), Remember("i", "v"), Identified("v", KEY))
    ledger.forget()
    assert not ledger.take_writes().pushes
    with pytest.raises(AssertionError, match="visitors v was not read"):
        ledger.visitor("v")
