"""The second table: how fast what waits goes out, beside a bare loop of httpx clients on the same core.

A store is filled through the outbox itself; then the real server is started on it, with a SendX that answers at once. What is measured is
the middle of the run: from when a tenth of the requests has arrived until nine tenths have. Rounds are interleaved, figures are medians.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from proxy.core.calls import Track
from proxy.core.decision import Change, Decision, Enqueue, Remember, Verify
from proxy.core.visitors import Trust
from proxy.store.outbox import Outbox
from proxy.store.sqlite.outbox import open_outbox
from tests.load.bench.contestants.table import PROXY, Contestant
from tests.load.bench.ingest import counted
from tests.load.bench.machine import ROOT, cores, pinned
from tests.load.bench.programs import Program, until
from tests.load.bench.traffic import new_id
from tests.load.bench.upstream import Upstream
from tests.support.server import clean_environ

Say = Callable[[str], Any]
SENDERS = 8  # the proxy's SCQ_UPSTREAM_CONCURRENCY, unless it is set
BATCH = 20_000
BARE_LOOP = "bare-loop"
_PATIENCE_SECONDS = 300.0


class Backlog(msgspec.Struct, frozen=True):
    """What waits: pushes of so many contacts, each `per_contact` in a row. `merges`: those of a contact go out as one request."""

    name: str
    title: str
    contacts: int
    per_contact: int
    merges: bool

    @property
    def pushes(self) -> int:
        return self.contacts * self.per_contact

    @property
    def requests(self) -> int:
        return self.contacts if self.merges else self.pushes


class Rate(msgspec.Struct, frozen=True):
    """`requests_per_cpu_second`: what a core does that does nothing else; `cpu_us`: processor time per push, in microseconds."""

    requests_per_second: float
    pushes_per_second: float
    requests_per_cpu_second: float
    cpu_us: float


def _rate(requests: int, pushes: float, seconds: float, cpu_seconds: float) -> Rate:
    """All 0 where everything was through between two looks, or in less than a tick of the processor's clock."""
    if not requests or not cpu_seconds:
        return Rate(0.0, 0.0, 0.0, 0.0)
    return Rate(requests / seconds, pushes / seconds, requests / cpu_seconds, cpu_seconds / pushes * 1e6)


class Line(msgspec.Struct, frozen=True):
    """One of the table with its rounds."""

    name: str
    title: str
    rates: list[Rate]

    def median(self, what: str) -> float:
        return statistics.median([float(getattr(rate, what)) for rate in self.rates])


def backlogs(requests: int) -> list[Backlog]:
    return [
        Backlog("single", "scq-proxy, 1 push of each contact", requests, 1, merges=False),
        Backlog("unmergeable", "scq-proxy, 5 that cannot be merged", requests // 5, 5, merges=False),
        Backlog("merged", "scq-proxy, 5 that are merged", requests, 5, merges=True),
    ]


async def measure(directory: Path, *, requests: int, rounds: int, say: Say) -> list[Line]:
    """`requests`: in each run. Raises AssertionError if not everything arrives."""
    cases = backlogs(requests)
    lines = [Line(BARE_LOOP, f"{SENDERS} httpx clients, bare", [])]
    lines += [Line(case.name, case.title, []) for case in cases]
    for number in range(rounds):
        say(f"delivery, round {number + 1}: {BARE_LOOP}")
        lines[0].rates.append(await _bare_loop(requests))
        for case, line in zip(cases, lines[1:], strict=True):
            say(f"delivery, round {number + 1}: {case.name}")
            line.rates.append(await _deliver(case, directory / f"delivery-{number}-{case.name}"))
    return lines


async def _bare_loop(requests: int) -> Rate:
    arguments = ["--clients", str(SENDERS), "--requests", str(requests)]
    async with Upstream() as upstream:
        command = [
            sys.executable,
            "-m",
            "tests.load.bench.contestants.bare_loop",
            "--upstream",
            upstream.url,
            *arguments,
        ]
        process = await asyncio.create_subprocess_exec(
            *pinned(command, cores().measured), cwd=ROOT, env=clean_environ({}), stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                said = (await process.communicate())[0]
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, "the bare loop failed: see above"
    told = msgspec.json.decode(said)
    return _rate(told["requests"], told["requests"], told["seconds"], told["cpu_seconds"])


async def _deliver(case: Backlog, directory: Path) -> Rate:
    directory.mkdir()
    await fill(case, await opened(directory))
    return await send(case, directory, PROXY)


async def send(case: Backlog, directory: Path, contestant: Contestant) -> Rate:
    """How fast it sends what waits in its store, which is nothing but the case."""
    async with Upstream() as upstream:
        program = Program(f"delivery of {case.name}", contestant.launch(upstream.port, directory), directory)
        try:
            await program.start()
            rate = await _measured(case, upstream, program)
            await _assert_delivered(case, upstream, program)
        finally:
            program.close()
    return rate


async def _measured(case: Backlog, upstream: Upstream, program: Program) -> Rate:
    async def arrived(tenths: int) -> None:
        async def so_many() -> bool:
            return upstream.requests >= case.requests * tenths // 10

        assert await until(so_many, _PATIENCE_SECONDS), f"{case.name}: {upstream.requests} requests\n{program.log}"

    await arrived(1)
    first, started, cpu = upstream.requests, time.perf_counter(), program.cpu_seconds()
    await arrived(9)
    seconds, cpu = time.perf_counter() - started, program.cpu_seconds() - cpu
    requests = upstream.requests - first
    return _rate(requests, requests * case.pushes / case.requests, seconds, cpu)


async def _assert_delivered(case: Backlog, upstream: Upstream, program: Program) -> None:
    """Each push once, in as many requests as it takes."""

    async def none_waits() -> bool:
        return await counted(program.port, "scq_waiting") == 0

    assert await until(none_waits, _PATIENCE_SECONDS), f"{case.name}: pushes still wait\n{program.log}"
    delivered = await counted(program.port, 'scq_pushes_total{to="delivered"}')
    assert (delivered, upstream.requests) == (case.pushes, case.requests), (delivered, upstream.requests, case)


async def opened(directory: Path) -> Outbox:
    """A new store on SQLite, where the proxy looks for it."""
    ages = {"hold_age": timedelta(days=30), "dead_age": timedelta(days=90)}
    return await open_outbox(directory / "scq.db", create=True, min_free_bytes=0, **ages)


async def fill(case: Backlog, outbox: Outbox, batch: int = BATCH) -> None:
    """All of it waits in the outbox then, contact by contact in turns, as if it had come in over a while; and the outbox is closed."""
    try:
        for ops in _batches(_ops(case), batch):
            plan = Decision(tuple(ops), None)
            await outbox.append(lambda facts, plan=plan: plan)  # type: ignore[misc]
    finally:
        await outbox.close()


def _ops(case: Backlog) -> Iterator[Change]:
    for turn, contact in itertools.product(range(case.per_contact), range(case.contacts)):
        email, push_id = f"contact{contact}@example.com", new_id()
        if turn == 0:
            yield Verify(email)
        yield Enqueue(push_id, email, email, Trust.VERIFIED, _track(case, turn))
        yield Remember(push_id, f"visitor-{contact:014}")


def _track(case: Backlog, turn: int) -> Track:
    """A tag that is added and one that is removed again are never merged."""
    if case.merges:
        return Track((f"cart: {turn}",))
    return Track(("cart: Teapot",)) if turn % 2 == 0 else Track((), ("cart: Teapot",))


def _batches(ops: Iterator[Change], size: int) -> Iterator[Sequence[Change]]:
    while batch := list(itertools.islice(ops, size)):
        yield batch
