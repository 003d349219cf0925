"""The small form of `python -m tests.load.scale`: what must hold at any size and on a busy machine, so nothing about time."""

from __future__ import annotations

import sys
from pathlib import Path

from proxy.sandbox.faults import Fault
from tests.load.scale import By, Figure, Size, as_object, backlog, fairness, table

SMALL = Size(
    rounds=1,
    others=100,
    stuck=20,
    waiting=20_000,
    contacts=4_000,
    visitors=16,
    turns=1,
    single=20,
    parallel=200,
    settle_seconds=0.5,
    scrape_seconds=0.5,
    drain_seconds=0.8,
)


def say(line: str) -> None:
    print(line, file=sys.stderr)


def broken(figures: list[Figure]) -> list[Figure]:
    return [figure for figure in figures if not figure.holds and not figure.is_timing]


def test_a_contact_who_always_fails_holds_up_nobody_and_keeps_its_pushes_in_order(tmp_path: Path) -> None:
    figures = fairness(SMALL, {"answers 500": Fault(status=500)}, tmp_path, say)
    assert not broken(figures), table("fairness", ("with", "without"), figures)
    assert sum(not figure.is_timing for figure in figures) == 2


def test_a_backlog_takes_no_memory_and_is_delivered_when_sendx_is_back(tmp_path: Path) -> None:
    figures = backlog(SMALL, tmp_path, say)
    assert not broken(figures), table("backlog", ("full", "empty"), figures)
    assert sum(figure.what.startswith("memory") for figure in figures) == 4
    (delivered,) = (figure for figure in figures if figure.unit == "1/s")
    assert delivered.measured > 0


def test_a_claim_holds_up_to_its_limit() -> None:
    assert Figure("start", "s", 3, 1, By.VALUE, 3).holds
    assert not Figure("start", "s", 3.1, 1, By.VALUE, 3).holds
    assert Figure("memory", "MB", 150, 100, By.DIFFERENCE, 50).holds
    assert not Figure("memory", "MB", 151, 100, By.DIFFERENCE, 50).holds
    assert Figure("push", "ms", 1.2, 1.0, By.RATIO, 1.2).holds
    assert not Figure("push", "ms", 1.3, 1.0, By.RATIO, 1.2).holds
    assert Figure("told", "ms", 99, 1).holds


def test_a_figure_is_shown_with_its_reference_and_whether_its_claim_holds() -> None:
    slow = Figure("push", "ms", 3, 2, By.RATIO, 1.2)
    assert table("backlog", ("full", "empty"), [slow]).splitlines()[1].split() == [
        *("push", "ms", "3.00", "2.00", "1.50x", "DOES", "NOT", "HOLD:", "ratio", "at", "most", "1.2"),
    ]
    assert as_object(slow)["value"] == 1.5
    assert as_object(slow)["holds"] is False
