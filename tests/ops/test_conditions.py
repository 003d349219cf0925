"""The conditions: a snapshot of the process in, problems and their remedies out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from proxy.core.gate import Closure, Halt
from proxy.core.retry import Verdict
from proxy.delivery.account import DeliveryState
from proxy.ops.conditions import (
    FAILING_SECONDS,
    LATELY_SECONDS,
    RATE_SECONDS,
    SILENT_SECONDS,
    Condition,
    Kind,
    Memory,
    Seen,
    conditions,
    turned_into,
)
from proxy.ops.watch import Pace
from proxy.store.records import Health, Stats

NOW, CLOCK = 1_800_000_000.0, 5_000.0
MB = 1_048_576


def stats(**more: Any) -> Stats:
    given: dict[str, Any] = {"counters": {}, "waiting": 0, "holding": 0, "dead": 0, "oldest": None, "refused_names": ()}
    return Stats(**given | more)


def delivery(**more: Any) -> DeliveryState:
    given: dict[str, Any] = {"running": True, "gate": "open", "until": None, "halted": None, "in_flight": 0}
    given |= {"limit": 4, "concurrency": 8, "delivered": 0, "dead": 0, "requests": {}, "latency_seconds": 0.0}
    given |= {"lost_leases": 0, "store_failures": 0, "last_error": None, "last_error_at": None}
    return DeliveryState(**given | more)


def seen(clock: float = CLOCK, **more: Any) -> Seen:
    given: dict[str, Any] = {
        "stats": stats(),
        "delivery": delivery(),
        "now": NOW + clock - CLOCK,
        "clock": clock,
        "timeout_seconds": 20.0,
    }
    return Seen(**given | more)


def found(*moments: Seen) -> tuple[Condition, ...]:
    """Returns the conditions at the last of these moments."""
    memory = Memory()
    for moment in moments:
        memory = memory.after(moment)
    return conditions(moments[-1], memory)


def down(**more: Any) -> DeliveryState:
    return delivery(gate="closed", until=NOW + 12, **more)


SEEN: dict[str, tuple[Kind, str, Seen]] = {
    "a halt": (
        Kind.HALTED,
        r"Sending is halted \(401\): .*check SCQ_API_KEY.* \(401 Unauthorized: no\)",
        seen(delivery=down(halted=Halt.KEY, last_error="401 Unauthorized: no")),
    ),
    "a halt that only the store knows of": (
        Kind.HALTED,
        "check SCQ_UPSTREAM and SCQ_DIALECT",
        seen(delivery=None, stats=stats(closure=Closure(NOW, halted=Halt.WRONG_URL))),
    ),
    "SendX down": (
        Kind.DOWN,
        r"does not answer \(no connection in time\).* in 12 s.*firewall",
        seen(delivery=down(down=True, last_error="no connection in time")),
    ),
    "an account that is throttled": (Kind.THROTTLED, "in 12 s.*SCQ_UPSTREAM_RATE", seen(delivery=down())),
    "a failure with nothing delivered since": (
        Kind.FAILING,
        "nothing has been delivered since: 503 Service Unavailable.*contact SendX",
        seen(
            delivery=delivery(failing_since=NOW - FAILING_SECONDS, last_error="503 Service Unavailable"),
            stats=stats(waiting=1),
        ),
    ),
    "no file handles for connections": (Kind.CONNECTIONS, "3 since the start.*ulimit -n", seen(turned_away=3)),
    "a maintenance page with nothing delivered since": (
        Kind.FAILING,
        "200 OK, .*another server may be answering.*SCQ_DELIVERED=2xx",
        seen(
            delivery=delivery(failing_since=NOW - 30, last_error="200 OK, text/html", last_verdict=Verdict.UNCLEAR),
            stats=stats(waiting=1),
        ),
    ),
    "a lone refusal with nothing delivered since": (
        Kind.FAILING,
        "403 Forbidden.*account's state at SendX",
        seen(
            delivery=delivery(failing_since=NOW - 30, last_error="403 Forbidden", last_verdict=Verdict.REFUSED),
            stats=stats(waiting=1),
        ),
    ),
    "an outage whose cause another process knows": (
        Kind.DOWN,
        "log of the process that sends says why",
        seen(delivery=None, stats=stats(closure=Closure(NOW, down=True))),
    ),
    "time-outs with nothing delivered since": (
        Kind.FAILING,
        "no answer in time.*raise SCQ_UPSTREAM_TIMEOUT",
        seen(delivery=delivery(failing_since=NOW - 30, last_error="no answer in time"), stats=stats(waiting=1)),
    ),
    "time-outs that dominate": (
        Kind.SLOW,
        r"after 20 s.*raise SCQ_UPSTREAM_TIMEOUT.*SCQ_UPSTREAM_CONCURRENCY \(8\)",
        seen(delivery=delivery(slow_share=0.6), stats=stats(waiting=1)),
    ),
    "a forwarder that is down": (Kind.FORWARDER, "is down.*log says why", seen(delivery=delivery(running=False))),
    "a forwarder that died": (Kind.FORWARDER, "2 times in all.*log says why", seen(restarts=2)),
    "a push that has waited for long": (
        Kind.LAG,
        "0:10:00: 0.0 per second.*4 of 8 concurrent requests.*SCQ_UPSTREAM_CONCURRENCY",
        seen(stats=stats(oldest=NOW - 600, waiting=7)),
    ),
    "a push that no process delivers": (
        Kind.LAG,
        "no process delivers. Check that scq-proxy serve or deliver is running",
        seen(delivery=None, stats=stats(oldest=NOW - 600, waiting=7)),
    ),
    "sign-ups that are put off": (
        Kind.SIGN_UPS,
        "^7 typed addresses wait.*SCQ_SIGNUPS_PER_HOUR.*Customers do not wait.*signups list --networks.*signups drop",
        seen(stats=stats(sign_ups=7, waiting=9, oldest=NOW - 600)),
    ),
    "strangers who have filled their budget": (
        Kind.STRANGERS,
        r"takes 240.0 of 256.0 MB \(SCQ_HOLD_MB\).*lane-full.*hold-full.*customers are not.*signups list --networks.*raise it",
        seen(hold_max_bytes=256 * MB, stats=stats(unvouched_bytes=240 * MB, health=Health(headroom_bytes=2_000 * MB))),
    ),
    "strangers who have filled a quarter of the free disk": (
        Kind.STRANGERS,
        r"takes 24.0 of 25.0 MB \(a quarter of the disk .* SCQ_MIN_FREE_MB\).*free disk space",
        seen(hold_max_bytes=256 * MB, stats=stats(unvouched_bytes=24 * MB, health=Health(headroom_bytes=76 * MB))),
    ),
    "a problem that the store reports": (
        Kind.STORE,
        "Check the disk",
        seen(stats=stats(health=Health(problems=("Check the disk.",)))),
    ),
    "requests that failed because of a fault in this program": (
        Kind.DEFECT,
        "3 since the start.*report a fault",
        seen(defects=3),
    ),
    "a store that was reopened": (Kind.REOPENED, "check the disk", seen(stats=stats(health=Health(reopened=1)))),
    "a store that was deleted": (
        Kind.REPLACED,
        "deleted or replaced.*restore the files",
        seen(stats=stats(health=Health(reopened=1, replaced=1))),
    ),
    "a store that does not answer": (
        Kind.UNAVAILABLE,
        "refused .503.*Its log says why",
        seen(trouble="Its log says why."),
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_condition_says_what_is_wrong_and_what_to_do(name: str) -> None:
    kind, pattern, moment = SEEN[name]
    (condition,) = found(moment)
    assert condition.kind is kind
    assert re.search(pattern, condition.sentence), condition.sentence
    assert condition.sentence.endswith(".")


def test_each_kind_of_condition_has_an_example_here() -> None:
    assert {kind for kind, _, _ in SEEN.values()} | {Kind.SILENT, Kind.CLOCK} == set(Kind)


def test_customers_who_wait_are_reported_beside_sign_ups_that_do() -> None:
    waits = {"sign_ups": 3, "waiting": 9, "oldest": NOW - 900}
    assert [each.kind for each in found(seen(stats=stats(**waits, ready=NOW - 5)))] == [Kind.SIGN_UPS]
    late = found(seen(stats=stats(**waits, ready=NOW - 400)))
    assert [each.kind for each in late] == [Kind.SIGN_UPS, Kind.LAG]
    assert "The oldest push has waited for 0:06:40" in late[1].sentence


def test_sign_ups_that_wait_for_a_moment_or_for_sendx_are_not_put_off() -> None:
    assert found(seen(stats=stats(sign_ups=3, oldest=NOW - 30))) == ()
    shut = stats(sign_ups=3, oldest=NOW - 600, closure=Closure(NOW + 12, down=True))
    assert [each.kind for each in found(seen(delivery=down(down=True), stats=shut))] == [Kind.DOWN]


def test_strangers_within_their_budget_are_not_worth_a_word() -> None:
    assert found(seen(hold_max_bytes=256 * MB, stats=stats(unvouched_bytes=200 * MB))) == ()
    assert found(seen(stats=stats(unvouched_bytes=200 * MB))) == (), (
        "a database whose disk is not known, asked by a command"
    )
    full = Health(headroom_bytes=-5, problems=("The disk is full.",))
    assert [each.kind for each in found(seen(stats=stats(unvouched_bytes=9, health=full)))] == [Kind.STORE]


def test_nothing_is_wrong_where_nothing_happens() -> None:
    assert found(seen()) == ()
    assert found(seen(delivery=None)) == ()


def test_requests_without_an_answer_are_reported_before_they_time_out() -> None:
    busy = delivery(in_flight=2, requests={Verdict.DELIVERED: 7})
    begin, later = seen(CLOCK, delivery=busy), seen(CLOCK + SILENT_SECONDS, delivery=busy)
    assert found(begin) == ()
    (condition,) = found(begin, later)
    assert condition.kind is Kind.SILENT
    assert "for 3 s" in condition.sentence
    assert "20 s (SCQ_UPSTREAM_TIMEOUT)" in condition.sentence
    answered = seen(CLOCK + SILENT_SECONDS, delivery=delivery(in_flight=2, requests={Verdict.DELIVERED: 8}))
    assert found(begin, answered) == ()
    assert found(begin, later, answered) == ()


def test_a_failure_that_the_next_request_recovers_from_is_not_reported() -> None:
    failing = delivery(failing_since=NOW - FAILING_SECONDS / 2, last_error="503")
    assert found(seen(delivery=failing, stats=stats(waiting=1))) == ()


def test_a_failure_after_which_nothing_waits_is_over() -> None:
    assert found(seen(delivery=delivery(failing_since=NOW - 60, last_error="503", slow_share=0.9))) == ()


def test_a_failure_that_a_clock_put_back_has_in_the_future_counts() -> None:
    failing = delivery(failing_since=NOW + 3_600, last_error="503")
    assert [each.kind for each in found(seen(delivery=failing, stats=stats(waiting=1)))] == [Kind.FAILING]


def test_a_shut_gate_explains_what_waits_behind_it() -> None:
    waits = stats(oldest=NOW - 600, waiting=7, closure=Closure(NOW + 12, down=True))
    assert [each.kind for each in found(seen(delivery=down(down=True), stats=waits))] == [Kind.DOWN]


@pytest.mark.parametrize(
    ("ended", "begun", "expected"),
    [
        (Kind.FAILING, [Kind.STORE, Kind.DOWN], Kind.DOWN),
        (Kind.LAG, [Kind.DOWN], Kind.DOWN),
        (Kind.SIGN_UPS, [Kind.THROTTLED], Kind.THROTTLED),
        (Kind.LAG, [Kind.FAILING], None),
        (Kind.STORE, [Kind.DOWN], None),
        (Kind.DOWN, [], None),
    ],
)
def test_a_problem_that_another_one_continues_is_not_resolved(
    ended: Kind, begun: list[Kind], expected: Kind | None
) -> None:
    assert turned_into(ended, begun) is expected


@pytest.mark.parametrize(
    ("seconds", "words"), [(3_600, "ahead by 1:00:00, or this machine was suspended"), (-3_600, "back by 1:00:00")]
)
def test_a_clock_that_is_set_is_told_for_a_while(seconds: float, words: str) -> None:
    moments = [seen(), seen(CLOCK + 1, now=NOW + 1 + seconds), seen(CLOCK + 4, now=NOW + 4 + seconds)]
    (condition,) = found(*moments)
    assert condition.kind is Kind.CLOCK
    assert condition.sentence.startswith(f"The clock was set {words} (0:00:03 ago). If it is wrong now, log-ins fail")
    later = seen(CLOCK + 1 + LATELY_SECONDS, now=NOW + 1 + LATELY_SECONDS + seconds)
    assert found(*moments, later) == ()


def test_a_clock_that_is_set_by_a_little_is_nothing_to_tell() -> None:
    assert found(seen(), seen(CLOCK + 1, now=NOW + 31)) == ()


def test_a_past_event_is_shown_for_a_while() -> None:
    reopened = stats(health=Health(reopened=1))
    before, at_once = seen(CLOCK), seen(CLOCK + 1, stats=reopened)
    shown, over = seen(CLOCK + LATELY_SECONDS, stats=reopened), seen(CLOCK + LATELY_SECONDS + 1, stats=reopened)
    assert [each.kind for each in found(before, at_once, shown)] == [Kind.REOPENED]
    assert found(before, at_once, shown, over) == ()
    again = seen(CLOCK + LATELY_SECONDS + 2, stats=stats(health=Health(reopened=2)))
    assert [each.kind for each in found(before, at_once, over, again)] == [Kind.REOPENED]


def test_the_rate_and_the_time_of_a_backlog_are_taken_over_the_last_minute() -> None:
    memory = Memory()
    for second in range(200):
        memory = memory.after(seen(CLOCK + second, stats=stats(counters={"delivered": 5 * second})))
    assert memory.rate == 5.0
    assert len(memory.delivered) <= RATE_SECONDS + 1
    late = seen(CLOCK + 200, stats=stats(counters={"delivered": 1_000}, oldest=NOW - 600, waiting=36_000))
    (condition,) = conditions(late, memory.after(late))
    assert (
        "5.0 per second are delivered, with 4 of 8 concurrent requests, so the backlog takes 2:00:00"
        in condition.sentence
    )


def test_the_stores_sentences_are_the_same_condition_when_only_their_numbers_change() -> None:
    one, same, other = (
        Condition(Kind.STORE, text) for text in ("9 pages wait.", "10 pages wait.", "The disk is full.")
    )
    assert one.key == same.key != other.key


def test_a_change_is_seen_within_five_seconds() -> None:
    assert Pace().look + Pace().patience + max(FAILING_SECONDS, SILENT_SECONDS) - SILENT_SECONDS <= 5
    assert Pace().look + SILENT_SECONDS <= 5
