"""What people are shown of a report."""

from __future__ import annotations

from typing import Any

from proxy.ops.conditions import Memory
from proxy.ops.report import Report, facts_of, make_report
from tests.ops.test_conditions import NOW, delivery, seen, stats


def report_of(memory: Memory | None = None, **more: Any) -> Report:
    return make_report(seen(**more), memory or Memory(), (), None)


def test_an_error_from_before_the_clock_was_set_back_is_neither_new_nor_unresolved() -> None:
    ahead = NOW + 3_600
    state = delivery(last_error="503 Service Unavailable", last_error_at=ahead, last_delivered_at=NOW - 5)
    facts = dict(facts_of(report_of(delivery=state)))
    assert facts["last error (resolved)"] == "503 Service Unavailable, before the clock was set back"
    assert facts["last delivery"] == "0:00:05 ago"


def test_an_error_from_before_the_clock_was_set_back_that_lasts_is_not_resolved() -> None:
    state = delivery(last_error="503 Service Unavailable", last_error_at=NOW + 3_600, failing_since=NOW + 3_599)
    assert "last error" in dict(facts_of(report_of(delivery=state)))


def test_sign_ups_wait_for_turns_and_are_no_part_of_the_backlog() -> None:
    memory = Memory(delivered=((0.0, 0), (10.0, 20)))
    assert "time to drain the backlog" not in dict(facts_of(report_of(memory, stats=stats(waiting=33, sign_ups=33))))
    mixed = dict(facts_of(report_of(memory, stats=stats(waiting=53, sign_ups=33))))
    assert str(mixed["time to drain the backlog"]) == "0:00:10"
