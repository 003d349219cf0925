"""How fast is the push path, beside what its web server can do at most and beside what people write instead? `make bench`.

One run on the loopback interface: what is measured has one core to itself, wrk and a small SendX of our own have the other. The same
requests and cookies for all; short runs in interleaved rounds, medians of them. Figures are for comparison within one run. The rows for
PostgreSQL are apart: what they measure needs more than one core (`postgres`).

Exit code 1 if something could not be measured, or if the proxy has lost what it acknowledged; claims about speed are only told.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from tests.load import scale
from tests.load.bench import claims, delivery, ingest, losses, postgres, report
from tests.load.bench.contestants.table import ASGI, HTTPX, NGINX, NODE, OUR_HTTP, PROXY, STARLETTE, missing
from tests.load.bench.ingest import Cell, Entry, Pace, Say
from tests.load.bench.losses import Trial
from tests.load.bench.machine import ROOT, cores, facts, on_cores

BUILD = ROOT / "build"
TABLES = ("ingest", "delivery", "losses", "postgres")
HELD, DELIVERING = Entry(PROXY, 0, shut=True), Entry(PROXY, 0)
LIMITS = (Entry(ASGI), Entry(STARLETTE))


def quick_cells() -> list[Cell]:
    slow = [Entry(contestant, 100) for contestant in (HTTPX, NODE, NGINX)]
    return [*(Cell(entry) for entry in (*LIMITS, HELD, *slow)), Cell(HELD, pushes=10)]


def full_cells(waiting: int) -> list[Cell]:
    passing = [Entry(contestant, latency_ms) for latency_ms in (0, 100) for contestant in (HTTPX, NODE, NGINX)]
    backlog = [Entry(PROXY, 0, shut=True, waiting=waiting)] if waiting else []
    entries = [*LIMITS, HELD, DELIVERING, *backlog, *passing]
    return [
        Cell(Entry(OUR_HTTP)),
        *(Cell(entry, pushes) for pushes in (1, 10) for entry in entries),
        *(Cell(entry, connections=number) for number in (16, 256) for entry in (*LIMITS, HELD)),
    ]


class Plan(msgspec.Struct, frozen=True):
    """One run: `tables` of TABLES, with what each takes."""

    cells: list[Cell]
    pace: Pace
    tables: Sequence[str] = TABLES
    delivery_requests: int = 6_000
    delivery_rounds: int = 3
    trial: Trial = Trial()
    extent: postgres.Extent = postgres.Extent()


async def run(plan: Plan, directory: Path, say: Say) -> dict[str, Any]:
    """Prints the tables as they are ready; returns everything. A time-out's SIGTERM or a closed terminal cancels it, as Ctrl-C does."""
    if (task := asyncio.current_task()) is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    found: dict[str, Any] = {"machine": facts(directory)}
    claimed: list[claims.Claim] = []

    def tell(text: str, figures: dict[str, Any]) -> None:
        print(text, end="\n\n", flush=True)
        found.update(figures)

    tell(report.facts_text(found["machine"]), {})
    if "ingest" in plan.tables:
        results = await ingest.measure(plan.cells, directory, plan.pace, say, await _filled(plan.cells, directory, say))
        tell(report.ingest_text(results), report.ingest_object(results))
        claimed += claims.of_ingest(results)
    if "delivery" in plan.tables:
        lines = await delivery.measure(directory, requests=plan.delivery_requests, rounds=plan.delivery_rounds, say=say)
        tell(report.delivery_text(lines), report.delivery_object(lines))
        claimed += claims.of_delivery(lines)
    if "losses" in plan.tables:
        lost = await losses.measure(directory, plan.trial, say)
        tell(report.losses_text(lost), report.losses_object(lost))
        claimed += claims.of_losses(lost)
    if "postgres" in plan.tables:
        there = await postgres.measure(directory, plan.extent, plan.pace, say)
        found["machine"] |= there.facts
        tell(report.facts_text(there.facts) + "\n\n" + report.postgres_text(there), report.postgres_object(there))
        claimed += claims.of_postgres(there.costs)
    if claimed:
        tell(report.claims_text(claimed), report.claims_object(claimed))
    return found


async def _filled(cells: Sequence[Cell], directory: Path, say: Say) -> dict[str, Path]:
    """The stores that have a backlog, by name of the entry, as `tests.load.scale` fills them."""
    entries = {cell.entry for cell in cells if cell.entry.waiting}
    stores = {entry.name: directory / f"{entry.name}.db" for entry in entries}
    for entry in entries:
        size = scale.Size(waiting=entry.waiting, contacts=max(1, entry.waiting // 5))
        await scale.fill(stores[entry.name], size, say)
    return stores


def conduct(plan: Plan, parent: Path, say: Say) -> dict[str, Any]:
    """One run in a directory of its own under `parent`, on whose disk the stores are. Leaves nothing behind, on Ctrl-C neither."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=parent, ignore_cleanup_errors=True) as directory,
        on_cores(cores().load),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(run(plan, Path(directory), say))


def main() -> int:
    asked = _arguments()
    if lacking := missing() + (postgres.missing() if "postgres" in _tables(asked) else []):
        print(f"Missing: {', '.join(lacking)}. `make bench` installs it.", file=sys.stderr)
        return 2
    started = time.monotonic()
    say: Say = lambda line: print(f"{time.monotonic() - started:5.0f} s  {line}", file=sys.stderr, flush=True)  # noqa: E731
    BUILD.mkdir(exist_ok=True)
    try:
        found = conduct(_plan(asked), BUILD, say)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    print(f"These figures and those of each round: {asked.json}")
    refused = found.get("refused") or found.get("postgres", {}).get("refused")
    lost = any(loss["lost"] for loss in found.get("losses", []) if loss["contestant"] == PROXY.name)
    return 1 if refused or lost else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.bench", description="Measure the push path; see the module."
    )
    parser.add_argument("--quick", action="store_true", help="limits, proxy, and the others with SendX in 100 ms")
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="only these")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="of the first table only these, as the JSON calls them"
    )
    parser.add_argument("--pushes", type=int, help="of the first table only with so many in a request")
    parser.add_argument("--connections", type=int, help="of the first table only with so many")
    parser.add_argument("--rounds", type=int, help="of all tables but the third")
    parser.add_argument("--seconds", type=int, help="of a run of ingest")
    parser.add_argument("--waiting", type=int, default=claims.WAITING, help="pushes of the backlog; 0 leaves it out")
    parser.add_argument("--json", type=Path, default=BUILD / "bench.json", help="where to write the figures")
    return parser.parse_args()


def _tables(asked: argparse.Namespace) -> Sequence[str]:
    return asked.tables or (("ingest",) if asked.quick else TABLES)


def _plan(asked: argparse.Namespace) -> Plan:
    pace = Pace(rounds=asked.rounds or (2 if asked.quick else 5), seconds=asked.seconds or (2 if asked.quick else 3))
    cells = quick_cells() if asked.quick else full_cells(asked.waiting)
    chosen = [
        cell
        for cell in cells
        if (not asked.only or cell.entry.name in asked.only)
        and asked.pushes in (None, cell.pushes)
        and asked.connections in (None, cell.connections)
    ]
    return Plan(chosen, pace, _tables(asked), delivery_rounds=asked.rounds or 3)


if __name__ == "__main__":
    sys.exit(main())
