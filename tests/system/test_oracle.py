"""Nothing acknowledged is lost, overtaken or doubled, through kill -9 and a SendX that misbehaves; and the oracle would see it.

The short form of `python -m tests.load.soak`, then the judge alone, on histories in which one thing is wrong.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec
import pytest

from tests.load.soak import Plan, defects_told, run, summary
from tests.support.crowd import Load
from tests.support.oracle import (
    History,
    Hush,
    Pace,
    Promise,
    Report,
    Sight,
    Violation,
    judge,
    never_arrived,
    wrong_sums,
)


def test_nothing_acknowledged_is_lost_overtaken_or_doubled_through_kill_9_and_faults(tmp_path: Path) -> None:
    plan = Plan(Load(secrets.randbelow(1_000_000), people=4, pushes=60), kills=7)
    print(f"seed {plan.load.seed}")
    outcome = run(plan, tmp_path)
    assert not outcome.findings, "\n" + summary(outcome)
    assert outcome.attacks["kills (-9)"] >= 6
    assert any(outcome.history.lanes.values())


# The judge

ADA = "ada@example.com"
IDENTIFY, FIRST, COUNT, AGAIN, LAST = (
    Promise("id-0", "t0"),
    Promise("id-1", "t1"),
    Promise("id-2", "t2", increment=True),
    Promise("id-3", "t3", increment=True),
    Promise("id-4", "t4"),
)
HELD = Promise("id-5", "t5")
GOOD = History(
    lanes={ADA: [IDENTIFY, FIRST, COUNT, AGAIN, LAST]},
    held=[HELD],
    refused=[],
    sights=[
        Sight(ADA, ("t0",), applied=False, status=500),
        Sight(ADA, ("t0",)),
        Sight(ADA, ("t1",), applied=True, status=None),  # a reset after it was applied
        Sight(ADA, ("t1",)),
        Sight(ADA, ("t2",), applied=False, status=429),
        Sight(ADA, ("t2",)),
        Sight(ADA, ("t3",), applied=False, status=None),  # ambiguous, and in truth not applied
        Sight(ADA, ("t4",)),
    ],
    dead={"id-3": "ambiguous"},
    counted={ADA: 1},
    report=Report({"accepted": 5, "held": 1, "delivered": 4, "dead:ambiguous": 1}, waiting=0, holding=1, dead=1),
)


def changed(**changes: object) -> History:
    return msgspec.structs.replace(GOOD, **changes)


def violations(history: History) -> set[Violation]:
    return {finding.violation for finding in judge(history)}


def sights(*changes: tuple[int, Sight | None]) -> list[Sight]:
    """Those of the good history with some replaced, or left out."""
    new = dict(changes)
    all_of_them = [new.get(number, sight) for number, sight in enumerate(GOOD.sights)]
    return [sight for sight in all_of_them if sight is not None]


def test_a_history_in_which_every_promise_was_kept_is_found_good() -> None:
    assert judge(GOOD) == []


def test_a_push_that_never_took_effect_is_found() -> None:
    (finding,) = judge(changed(sights=sights((7, None))))
    assert finding.violation is Violation.LOST
    assert "t4 of ada@example.com" in finding.what


def test_a_push_that_was_only_tried_is_found() -> None:
    assert violations(changed(sights=sights((7, Sight(ADA, ("t4",), applied=False))))) == {Violation.LOST}


def test_a_track_among_the_dead_letters_is_found() -> None:
    report = msgspec.structs.replace(
        GOOD.report, counters={"accepted": 5, "held": 1, "delivered": 3, "dead:ambiguous": 2}, dead=2
    )
    history = changed(dead={"id-3": "ambiguous", "id-4": "ambiguous"}, report=report)
    assert violations(history) == {Violation.LOST}


def test_an_increment_that_is_dead_for_another_reason_is_found() -> None:
    assert violations(changed(dead={"id-3": "exhausted"})) == {Violation.LOST}


def test_a_push_that_was_overtaken_is_found() -> None:
    (finding,) = judge(changed(sights=sights((5, GOOD.sights[7]), (7, GOOD.sights[5]))))
    assert finding.violation is Violation.OVERTAKEN
    assert finding.what == "t2 of ada@example.com was overtaken by t4"


def test_a_push_that_was_overtaken_within_a_merged_request_is_found() -> None:
    merged = Sight(ADA, ("t1", "t0"))
    assert violations(changed(sights=sights((1, None), (2, merged)))) == {Violation.OVERTAKEN}
    in_order = Sight(ADA, ("t0", "t1"))
    assert violations(changed(sights=sights((1, None), (2, in_order)))) == set()


def test_an_ambiguous_increment_may_be_overtaken_but_overtakes_nobody() -> None:
    late, early = Sight(ADA, ("t3",), status=None), Sight(ADA, ("t3",), status=None)
    assert judge(changed(sights=[*sights((6, None)), late], counted={ADA: 2})) == []
    assert Violation.OVERTAKEN in violations(changed(sights=[early, *sights((6, None))], counted={ADA: 2}))


def test_an_increment_that_was_sent_again_after_an_unknown_outcome_is_found() -> None:
    unknown = Sight(ADA, ("t2",), applied=False, status=500)
    assert violations(changed(sights=sights((4, unknown)))) == {Violation.DOUBLED}


def test_an_increment_that_counted_twice_is_found() -> None:
    twice = Sight(ADA, ("t2",), applied=True, status=429)
    assert violations(changed(sights=sights((4, twice)), counted={ADA: 2})) == {Violation.DOUBLED}
    assert violations(changed(counted={ADA: 2})) == {Violation.DOUBLED}


def test_increments_that_are_given_up_and_never_arrived_are_told_apart() -> None:
    assert never_arrived(GOOD) == (0, 0, 0), "it arrived and got no answer"
    lost = Sight(ADA, ("t3",), applied=False, status=None, arrived=False)
    assert never_arrived(changed(sights=sights((6, lost)))) == (1, 0, 0)
    assert never_arrived(changed(sights=sights((6, None)), cut_off=["id-3"])) == (0, 1, 0)
    assert never_arrived(changed(sights=sights((6, None)))) == (0, 0, 1)


def test_an_increment_that_was_lost_on_its_way_and_sent_again_is_found() -> None:
    lost = Sight(ADA, ("t2",), applied=False, status=None, arrived=False)
    assert violations(changed(sights=sights((4, lost)))) == {Violation.DOUBLED}


def test_an_increment_that_was_merged_is_found() -> None:
    merged = Sight(ADA, ("t2", "t4"))
    assert Violation.DOUBLED in violations(changed(sights=sights((5, merged), (7, None))))


def test_an_id_that_was_accepted_twice_is_found() -> None:
    assert violations(changed(twice=["a push of ada@example.com was accepted again"])) == {Violation.DOUBLED}


def test_what_was_sent_and_not_settled_is_sent_again_from_its_beginning() -> None:
    again = [*GOOD.sights[:3], Sight(ADA, ("t0",)), Sight(ADA, ("t1",)), *GOOD.sights[3:]]
    assert judge(changed(sights=again)) == []


def test_what_was_settled_and_is_sent_again_is_found() -> None:
    late = [*GOOD.sights, Sight(ADA, ("t0",))]  # behind t2, of which the second try begins a lease
    (finding,) = judge(changed(sights=late))
    assert finding.violation is Violation.REPEATED
    assert "t0" in finding.what


def by_two_nodes(*more: Sight) -> History:
    """One of them, stopped after it had sent t1, is woken when the other is done."""
    first, second = "one:80", "two:80"
    done = [msgspec.structs.replace(sight, node=second, at=5.0) for sight in GOOD.sights]
    first_tries = [Sight(ADA, ("t0",), node=first, at=1.0), Sight(ADA, ("t1",), status=None, node=first, at=2.0)]
    return changed(sights=[*first_tries, *done[2:], *more], wakes={first: (9.0,)})


def test_a_node_that_is_woken_may_send_one_request_again() -> None:
    assert judge(by_two_nodes(Sight(ADA, ("t1",), node="one:80", at=9.1))) == []


def test_a_node_that_is_woken_may_not_go_on() -> None:
    late = [Sight(ADA, ("t0",), node="one:80", at=9.1), Sight(ADA, ("t1",), node="one:80", at=9.2)]
    assert violations(by_two_nodes(*late)) == {Violation.REPEATED}


@pytest.mark.parametrize("by", [("one:80", 8.9), ("two:80", 9.1)], ids=["before it was", "another"])
def test_a_repeat_by_a_node_that_was_not_woken_is_found(by: tuple[str, float]) -> None:
    assert violations(by_two_nodes(Sight(ADA, ("t1",), True, 200, *by))) == {Violation.REPEATED}


def test_a_request_while_sendx_was_not_to_be_asked_is_found() -> None:
    at = [msgspec.structs.replace(sight, at=float(number)) for number, sight in enumerate(GOOD.sights)]
    hush = Hush(3.0, 5.0, "throttled")
    (finding,) = judge(changed(sights=at, hushes=[hush]))
    assert finding.violation is Violation.GATE
    assert judge(changed(sights=[*at[:4], *(msgspec.structs.replace(s, at=9.0) for s in at[4:])], hushes=[hush])) == []
    assert judge(changed(sights=at, hushes=[msgspec.structs.replace(hush, late=1)])) == [], "it had been on its way"


def test_more_requests_than_the_nodes_may_send_together_are_found() -> None:
    at = [msgspec.structs.replace(sight, at=number / 2) for number, sight in enumerate(GOOD.sights)]
    assert judge(changed(sights=at, pace=Pace(4, 2.0))) == []
    assert violations(changed(sights=at, pace=Pace(3, 2.0))) == {Violation.PACE}


def test_a_push_that_reached_another_contact_is_found() -> None:
    bob = "bob@example.com"
    assert violations(changed(sights=[*GOOD.sights, Sight(bob, ("t4",))])) == {Violation.ASTRAY}


@pytest.mark.parametrize("tag", ["t5", "of nobody"])
def test_what_was_sent_and_nobody_identified_has_pushed_is_found(tag: str) -> None:
    assert violations(changed(sights=[*GOOD.sights, Sight(ADA, (tag,))])) == {Violation.ASTRAY}


def test_what_a_log_tells_of_a_defect_is_found() -> None:
    log = "\n".join(
        ("WARNING proxy.delivery: a push", "ERROR proxy.app: The forwarder died and is restarted: …", "end")
    )
    (finding,) = judge(changed(defects=defects_told(log)))
    assert finding == (Violation.DEFECTS, "ERROR proxy.app: The forwarder died and is restarted: …")


def test_a_push_that_was_refused_is_found() -> None:
    assert violations(changed(refused=["a push of ada@example.com: identity-changed"])) == {Violation.REFUSED}


@pytest.mark.parametrize(
    "name", ["accepted", "bound", "delivered", "discarded", "dead:ambiguous", "held", "hold_expired"]
)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_tally_that_is_off_by_one_is_found(name: str, by: int) -> None:
    counters = {**GOOD.report.counters, name: GOOD.report.counters.get(name, 0) + by}
    report = msgspec.structs.replace(GOOD.report, counters=counters)
    assert wrong_sums(report)
    assert violations(changed(report=report)) == {Violation.SUMS}


@pytest.mark.parametrize("name", ["waiting", "holding", "dead"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_number_of_the_store_that_is_off_by_one_is_found(name: str, by: int) -> None:
    report = msgspec.structs.replace(GOOD.report, **{name: getattr(GOOD.report, name) + by})
    assert violations(changed(report=report)) == {Violation.SUMS}


def test_a_push_that_was_counted_twice_is_found_even_if_the_sums_agree() -> None:
    counters = {**GOOD.report.counters, "accepted": 6, "delivered": 5}
    report = msgspec.structs.replace(GOOD.report, counters=counters)
    assert not wrong_sums(report)
    assert violations(changed(report=report)) == {Violation.SUMS}


def test_a_dead_letter_of_nobody_is_found() -> None:
    counters = {**GOOD.report.counters, "delivered": 3, "dead:ambiguous": 2}
    report = msgspec.structs.replace(GOOD.report, counters=counters, dead=2)
    history = changed(dead={"id-3": "ambiguous", "id-9": "ambiguous"}, report=report)
    assert violations(history) == {Violation.SUMS}
