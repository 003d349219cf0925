"""The first table: how many pushes a second each contestant takes, and how long each waits, in interleaved rounds.

All contestants run from the start and are stopped (SIGSTOP) except in their turn; the proxy has a new store in each, unless a store with a
backlog is what it is measured with. Before a run one request is sent and its answer looked at; after it, what is in the proxy's store is
compared with what it has acknowledged. A contestant of whom any request failed is not reported.
"""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.load.bench import wrk
from tests.load.bench.contestants.table import Contestant
from tests.load.bench.machine import busy, cores
from tests.load.bench.programs import Program
from tests.load.bench.traffic import VISITORS, Crowd, Template, new_id, write_lua
from tests.load.bench.upstream import Upstream
from tests.support.server import ADMIN_TOKEN

Say = Callable[[str], Any]


class Entry(msgspec.Struct, frozen=True):
    """A contestant under its circumstances. `latency_ms`: SendX's, None where it is not asked; `shut`: SendX takes nothing for now.

    `waiting`: pushes in the store beforehand.
    """

    contestant: Contestant
    latency_ms: int | None = None
    shut: bool = False
    waiting: int = 0

    @property
    def name(self) -> str:
        """Such as `asgi`, `httpx-100ms`, `scq-proxy-held`, `scq-proxy-delivering`, `scq-proxy-1000000-waiting`."""
        name = self.contestant.name
        if self.waiting:
            return f"{name}-{self.waiting}-waiting"
        if self.contestant.durable:
            return f"{name}-{'held' if self.shut else 'delivering'}"
        return name if self.latency_ms is None else f"{name}-{self.latency_ms}ms"

    @property
    def is_renewed(self) -> bool:
        """Whether each run has a store of its own: what one has stored must not weigh on the next."""
        return self.contestant.durable and not self.waiting


class Cell(msgspec.Struct, frozen=True):
    """One line of the table: who, pushes in a request, connections."""

    entry: Entry
    pushes: int = 1
    connections: int = 64

    @property
    def patience(self) -> int:
        """How many times as long as others it runs: where a request takes a second, few would be counted in a short run."""
        return 3 if self.entry.contestant.one_by_one and self.pushes > 1 else 1


class Pace(msgspec.Struct, frozen=True):
    """`warm_up`, `seconds`: of wrk, before a program is measured first and in each run; 0: no warm-up."""

    rounds: int = 5
    seconds: int = 3
    warm_up: int = 1


class Sample(msgspec.Struct, frozen=True):
    """One run. `cpu`: processor seconds per second of the contestant; `load_core`: how busy the other core was, 0 to 1."""

    pushes_per_second: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    cpu: float
    load_core: float


class Row(msgspec.Struct, frozen=True):
    """A cell with its runs, one for each round."""

    cell: Cell
    samples: list[Sample]

    def median(self, what: str) -> float:
        return statistics.median([float(getattr(sample, what)) for sample in self.samples])


class Start(msgspec.Struct, frozen=True):
    """Seconds until /healthz was answered, median; memory (RSS, MB) then, and the most that was seen after a run."""

    seconds: float
    mb: float
    load_mb: float


class Results(msgspec.Struct, frozen=True):
    """`starts` and `refused` (why it is not reported) by name of the entry. `upstream_per_second`: what wrk gets out of the upstream alone."""

    rows: list[Row]
    starts: dict[str, Start]
    refused: dict[str, str]
    upstream_per_second: float

    def row(self, entry: str, pushes: int = 1, connections: int = 64) -> Row | None:
        wanted = (entry, pushes, connections)
        found = (row for row in self.rows if (row.cell.entry.name, row.cell.pushes, row.cell.connections) == wanted)
        return next(found, None)


class Refused(Exception):
    """What was measured does not count."""


class Load:
    """What is sent: templates and the same as files for wrk, by pushes in a request."""

    def __init__(self, directory: Path, pushes: Sequence[int], visitors: int = VISITORS) -> None:
        crowd = Crowd(visitors)
        self.templates: dict[int, list[Template]] = {number: crowd.templates(number) for number in pushes}
        self.files = {number: directory / f"{number}.lua" for number in pushes}
        for number, file in self.files.items():
            write_lua(self.templates[number], file)

    def request(self, pushes: int) -> bytes:
        return self.templates[pushes][0].filled([new_id() for _ in range(pushes)])


class Seat:
    """One entry at work. Its program is stopped except during a run."""

    def __init__(self, entry: Entry, program: Program, upstream: Upstream, load: Load, pace: Pace) -> None:
        self.entry, self.program = entry, program
        self._upstream, self._load, self._pace = upstream, load, pace
        self._acknowledged = self._unanswered = 0
        self._is_warm = False

    async def start(self) -> None:
        await self.program.start()
        self._acknowledged = self._unanswered = 0
        self._is_warm = False
        self.program.pause()

    async def run(self, cell: Cell) -> Sample:
        """Raises Refused, AssertionError or RuntimeError if it could not be measured."""
        if self.entry.is_renewed and self._is_warm:
            await self._renew()
        self.program.go_on()
        try:
            await self._try_one(cell)
            if not self._is_warm and self._pace.warm_up:
                await self._wrk(cell, self._pace.warm_up)
            self._is_warm = True
            return await self._measure(cell)
        finally:
            self.program.pause()

    async def _renew(self) -> None:
        self.program.close()
        self.program.launch.clear()
        await self.start()

    async def _measure(self, cell: Cell) -> Sample:
        cpu, load_core, seen = self.program.cpu_seconds(), busy(cores().load), self._upstream.requests
        outcome = await self._wrk(cell, self._pace.seconds * cell.patience)
        cpu, load_share = self.program.cpu_seconds() - cpu, load_core.share_until(busy(cores().load))
        self.program.weigh()
        if self.entry.contestant.durable:
            await self._audit()
        elif self.entry.latency_ms is not None and self._upstream.requests - seen < outcome.requests:
            raise Refused("it has acknowledged requests that SendX has not seen")
        return Sample(
            outcome.requests * cell.pushes / outcome.seconds,
            outcome.p50_us / 1e3,
            outcome.p99_us / 1e3,
            outcome.longest_us / 1e3,
            cpu / outcome.seconds,
            load_share,
        )

    async def _wrk(self, cell: Cell, seconds: int) -> wrk.Outcome:
        outcome = await wrk.run(
            self.program.port, self._load.files[cell.pushes], connections=cell.connections, seconds=seconds
        )
        if not outcome.requests:
            raise Refused(f"no request was answered within {seconds} s")
        if outcome.failures:
            raise Refused(f"of {outcome.requests:,} requests failed: {outcome.failed}")
        self._acknowledged += outcome.requests * cell.pushes
        self._unanswered += cell.connections * cell.pushes
        return outcome

    async def _try_one(self, cell: Cell) -> None:
        """The same bytes as wrk sends."""
        try:
            answer = await post(self.program.port, self._load.request(cell.pushes))
        except TimeoutError:
            waited = f"no answer to the first request within {wrk.TIMEOUT_SECONDS} s"
            raise Refused(f"{waited}; its log ends:\n{self.program.log}") from None
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 2"):
            raise Refused(f"the first answer is {head.splitlines()[0].decode()}")
        if self.entry.contestant.durable:
            if body.count(b'"accepted"') != cell.pushes:
                raise Refused(f"the first answer does not accept {cell.pushes} pushes: {body.decode()}")
            self._acknowledged += cell.pushes

    async def _audit(self) -> None:
        """Whether the store has what was acknowledged. When wrk leaves, requests are on their way that it does not count."""
        stored = await stored_pushes(self.program.port) - self.entry.waiting
        if not self._acknowledged <= stored <= self._acknowledged + self._unanswered:
            raise Refused(f"{self._acknowledged} pushes are acknowledged and {stored} stored")


async def post(port: int, request: bytes) -> bytes:
    """The answer, head and body, to one request on a connection of its own."""
    async with asyncio.timeout(wrk.TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await read_answer(reader)
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head + await reader.readexactly(int(found[1]) if found else 0)


async def stored_pushes(port: int) -> int:
    """Pushes that the proxy has accepted since its store was made, as /metrics tells."""
    return await counted(port, 'scq_pushes_total{to="accepted"}')


async def counted(port: int, name: str) -> int:
    """A number in the proxy's /metrics; 0 if it is not there."""
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        answer = await client.get(f"http://127.0.0.1:{port}/metrics", headers=headers)
    assert answer.status_code == 200, answer
    found = re.search(rf"^{re.escape(name)} (\S+)$", answer.text, re.MULTILINE)
    return int(float(found[1])) if found else 0


async def measure(
    cells: Sequence[Cell],
    directory: Path,
    pace: Pace,
    say: Say,
    stores: Mapping[str, Path] | None = None,
    *,
    visitors: int = VISITORS,
) -> Results:
    """Every cell once in each round. `stores`: filled beforehand, by name of the entry; they are moved away."""
    entries = list(dict.fromkeys(cell.entry for cell in cells))
    load = Load(directory, sorted({1, *(cell.pushes for cell in cells)}), visitors)
    samples: dict[Cell, list[Sample]] = {cell: [] for cell in cells}
    upstream_alone: list[float] = []
    refused: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        direct = await stack.enter_async_context(Upstream())
        seats = {entry: await _seated(stack, entry, directory, load, pace, stores or {}) for entry in entries}
        for number in range(pace.rounds):
            upstream_alone.append(await _upstream_alone(direct, load))
            for cell in _rotated(cells, number, pace.rounds):
                name = cell.entry.name
                if name in refused:
                    continue
                say(f"round {number + 1}: {name}, pushes a request: {cell.pushes}, connections: {cell.connections}")
                try:
                    samples[cell].append(await seats[cell.entry].run(cell))
                except (Refused, AssertionError, OSError, RuntimeError, asyncio.IncompleteReadError) as error:
                    refused[name] = str(error) or type(error).__name__
                    say(f"{name} is out: {refused[name]}")
    rows = [Row(cell, made) for cell, made in samples.items() if cell.entry.name not in refused]
    starts = {entry.name: _start(seat.program) for entry, seat in seats.items()}
    return Results(rows, starts, refused, statistics.median(upstream_alone))


async def _seated(
    stack: AsyncExitStack, entry: Entry, directory: Path, load: Load, pace: Pace, stores: Mapping[str, Path]
) -> Seat:
    home = directory / entry.name
    home.mkdir()
    if (store := stores.get(entry.name)) is not None:
        store.rename(home / "scq.db")
    latency_seconds = (entry.latency_ms or 0) / 1e3
    upstream = await stack.enter_async_context(Upstream(latency_seconds=latency_seconds, shut=entry.shut))
    program = Program(entry.name, entry.contestant.launch(upstream.port, home), home)
    stack.callback(program.close)
    seat = Seat(entry, program, upstream, load, pace)
    await seat.start()
    return seat


async def _upstream_alone(upstream: Upstream, load: Load) -> float:
    outcome = await wrk.run(upstream.port, load.files[1], connections=64, seconds=1)
    return outcome.requests / outcome.seconds


def _rotated(cells: Sequence[Cell], number: int, rounds: int) -> list[Cell]:
    """Each round begins elsewhere."""
    first = number * len(cells) // rounds
    return [*cells[first:], *cells[:first]]


def _start(program: Program) -> Start:
    return Start(statistics.median(program.start_seconds), program.start_mb, program.load_mb)
