"""The fourth table: one, two and four workers on a real PostgreSQL, beside the one process on SQLite, and what a claim costs.

All of this shares what cores there are, and wrk has the last one as well, so on a small machine workers take from one another and from
the server: what is told of it is no more than how it is there. The server syncs each commit to the disk, as it comes from Debian.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import psycopg

from tests.load.bench import delivery, ingest, parked
from tests.load.bench.contestants.table import PROXY, Contestant
from tests.load.bench.databases import BATCH, Databases, opened
from tests.load.bench.delivery import Backlog, Line
from tests.load.bench.ingest import Cell, Entry, Pace, Results, Say
from tests.load.bench.machine import cores, file_system, on_cores
from tests.load.bench.parked import Cost
from tests.load.bench.programs import Launch
from tests.support.postgres import Server, postgres, programs
from tests.support.server import command

_COMMITS = 50
# More than for one process: two workers that have the same visitor at once wait for one another, which is rare where many come.
_VISITORS = 10_000


class Extent(msgspec.Struct, frozen=True):
    """How much is measured. `parked`: lanes that wait for a retry while `claims` are made; `requests`: of a run of the delivery."""

    workers: Sequence[int] = (1, 2, 4)
    pushes: Sequence[int] = (1, 10)
    connections: int = 64
    requests: int = 3_000
    backlogs: Sequence[str] = ("single", "merged")
    parked: Sequence[int] = (0, 3_000, 100_000)
    claims: int = 300


class Found(msgspec.Struct, frozen=True):
    """`delivered`: by name of the backlog, one line for each contestant."""

    facts: dict[str, str]
    ingested: Results
    delivered: dict[str, list[Line]]
    costs: list[Cost]


def missing() -> list[str]:
    """What has to be installed before it can be measured."""
    return [] if programs() else ["PostgreSQL (Debian's package postgresql)"]


async def measure(directory: Path, extent: Extent, pace: Pace, say: Say) -> Found:
    """Raises AssertionError if what is in the database does not add up."""
    with on_cores(*cores().all):
        server = postgres()
    told = facts(server)
    databases = Databases(server)
    try:
        contestants = [_sqlite(), *(_postgres(databases, databases.new(), number) for number in extent.workers)]
        entries = [Entry(contestant, 0, shut=True) for contestant in contestants]
        cells = [Cell(entry, pushes, extent.connections) for pushes in extent.pushes for entry in entries]
        ingested = await ingest.measure(cells, directory, pace, say, visitors=_VISITORS)
        databases.remove()
        delivered = await _deliver(directory, databases, extent, pace.rounds, say)
        costs = [Cost(number, []) for number in extent.parked]
        for number in range(pace.rounds):
            for cost in costs:
                say(f"claims, round {number + 1}: {cost.parked:,} lanes parked")
                cost.rounds.append(await parked.measure(databases, cost.parked, extent.claims))
                databases.remove()
    finally:
        databases.remove()
    return Found(told, ingested, delivered, costs)


def facts(server: Server) -> dict[str, str]:
    """What the figures depend on, for a person."""
    shared = ", ".join(map(str, cores().all))
    place = file_system(Path(str(server.execute("SHOW data_directory")[0][0])))
    version, fsync = (str(server.execute(f"SHOW {name}")[0][0]) for name in ("server_version", "fsync"))
    return {
        "PostgreSQL": f"{version}, fsync {fsync}, on {place}; it and all workers share cores {shared} with the load",
        "commit": f"{commit_seconds(server) * 1e3:.2f} ms (median of {_COMMITS}, one row, one connection)",
    }


def commit_seconds(server: Server) -> float:
    """How long a row takes to be durable: median."""
    taken = []
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE bench_commits (number integer)")
        for number in range(_COMMITS):
            started = time.perf_counter()
            connection.execute("INSERT INTO bench_commits VALUES (%s)", (number,))
            taken.append(time.perf_counter() - started)
        connection.execute("DROP TABLE bench_commits")
    return statistics.median(taken)


# --- who takes part


def _sqlite() -> Contestant:
    def launch(upstream_port: int, directory: Path) -> Launch:
        return replace(PROXY.launch(upstream_port, directory), on_all_cores=True)

    return Contestant("sqlite", "SQLite, one process", launch, durable=True)


def _postgres(databases: Databases, dsn: str, workers: int) -> Contestant:
    def launch(upstream_port: int, directory: Path) -> Launch:
        usual = PROXY.launch(upstream_port, directory)
        return replace(
            usual,
            command=command("serve", "--workers", str(workers)),
            environ={**usual.environ, "SCQ_STORE": dsn},
            on_all_cores=True,
            clear=lambda: databases.clear(dsn),
        )

    title = f"PostgreSQL, {workers} worker{'s' * (workers > 1)}"
    return Contestant(f"postgres-{workers}", title, launch, durable=True)


# --- what they deliver


async def _deliver(
    directory: Path, databases: Databases, extent: Extent, rounds: int, say: Say
) -> dict[str, list[Line]]:
    cases = [case for case in delivery.backlogs(extent.requests) if case.name in extent.backlogs]
    lines: dict[str, dict[str, Line]] = {case.name: {} for case in cases}
    for number in range(rounds):
        for case in cases:
            for workers in (0, *extent.workers):
                home = directory / f"{number}-{case.name}-{workers}"
                home.mkdir()
                contestant = await _filled(case, home, databases, workers)
                say(f"delivery, round {number + 1}: {case.name}, {contestant.name}")
                line = lines[case.name].setdefault(contestant.name, Line(contestant.name, contestant.title, []))
                line.rates.append(await delivery.send(case, home, contestant))
                databases.remove()
    return {name: list(each.values()) for name, each in lines.items()}


async def _filled(case: Backlog, directory: Path, databases: Databases, workers: int) -> Contestant:
    """Somebody in whose store the case waits; 0 workers: SQLite."""
    if not workers:
        await delivery.fill(case, await delivery.opened(directory))
        return _sqlite()
    dsn = databases.new()
    await delivery.fill(case, await opened(dsn), BATCH)
    databases.tidy(dsn)
    return _postgres(databases, dsn, workers)
