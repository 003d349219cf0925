"""Nothing acknowledged is lost, overtaken or doubled with several nodes on PostgreSQL, whoever dies: `python -m tests.load.soak_nodes`, in short."""

from __future__ import annotations

from pathlib import Path

from tests.load.soak_nodes import FAULTS, SENDERS, Plan, run, summarised
from tests.support.crowd import Load

ONCE = list(FAULTS)
AGAIN = ["kills of a node (-9)", "kills of PostgreSQL (-9)", "kills of a node (-9)"]


def test_nothing_acknowledged_is_lost_overtaken_or_doubled_with_three_nodes_on_postgresql(tmp_path: Path) -> None:
    load = Load(seed=7, people=4, pushes=60, pause_seconds=0.4)
    outcome = run(Plan(load, [*ONCE, *AGAIN], pause_seconds=0.3, late=SENDERS), tmp_path)
    print(summarised(outcome))
    assert not outcome.findings, "\n" + summarised(outcome)
    assert set(outcome.attacks) == set(FAULTS)
    assert any(outcome.history.lanes.values())
