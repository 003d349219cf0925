"""Does one bad contact hold up the rest, and does a backlog cost anything? `python -m tests.load.scale`, some four minutes.

*Fairness.* SendX never accepts what is sent for one contact, who has pushes waiting; others push once each. How long until all theirs have
arrived, with that contact and without?

*Backlog.* A store is filled through the outbox itself and served by the real `scq-proxy serve`, beside a second server whose store is
empty. Both get the same load, in turns; the one whose turn it is not is stopped meanwhile (SIGSTOP), so that it takes nothing from the other.
First SendX is down, then it is back and the backlog goes out.

What is claimed is a difference or a ratio within one run, start-up time aside; everything else is only told. Latency under a steady load counts
from when a push was due, so that a stall shows in all the pushes that it delayed. Exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import math
import os
import re
import secrets
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, closing, contextmanager, suppress
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import uvloop

from proxy.core.calls import Attributes, Track
from proxy.core.decision import Change, Decision, Enqueue, Identified, Remember, Verify
from proxy.core.visitors import Trust, Visitor
from proxy.ops.control import ask
from proxy.ops.pages import AskReport
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from proxy.store.sqlite.outbox import open_outbox
from tests.load.soak import Mortal, quiet_port
from tests.support.crowd import SETTINGS
from tests.support.live import PATIENCE_SECONDS, eventually, serving
from tests.support.oracle import Report, report_of
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    SHOP,
    Browser,
    Json,
    clean_environ,
    command,
    dumps,
    login,
    requests_about,
    track,
)

T = TypeVar("T")
Say = Callable[[str], Any]

BATCH = 20_000  # pushes stored by one append
CONNECTIONS = 16
WARM_UP = 64  # pushes of each turn that do not count
DUE_SECONDS = 0.02  # between pushes of a steady load
SCRAPE_SECONDS = 1.0
MAX_FAIRNESS, MAX_START_SECONDS, MAX_GROWTH_MB, MAX_SLOWDOWN = 1.25, 3.0, 50.0, 1.2


class Size(msgspec.Struct, frozen=True):
    """How much of everything.

    `others`: contacts beside the one that fails, who has `stuck` pushes; `waiting`: pushes of the backlog, over `contacts`; `single`, `parallel`:
    pushes of one turn over one connection, over CONNECTIONS; `settle_seconds`: of steady load after a start, long enough for the sweep.
    """

    rounds: int = 3
    others: int = 1_000
    stuck: int = 50
    waiting: int = 1_000_000
    contacts: int = 200_000
    visitors: int = 64
    turns: int = 5
    single: int = 400
    parallel: int = 3_200
    settle_seconds: float = 15.0
    scrape_seconds: float = 10.0
    drain_seconds: float = 20.0


# --- Figures -----------------------------------------------------------------------------------------------------------


class By(StrEnum):
    """What is judged: the measured value, what it is beside its reference, or how far it is from that."""

    VALUE = "value"
    RATIO = "ratio"
    DIFFERENCE = "difference"


class Figure(msgspec.Struct, frozen=True):
    """`measured` with the burden, `reference` without it; `limit`: the claim, None for what is only told."""

    what: str
    unit: str
    measured: float
    reference: float | None = None
    by: By = By.RATIO
    limit: float | None = None

    @property
    def value(self) -> float:
        if self.by is By.VALUE or self.reference is None:
            return self.measured
        return self.measured - self.reference if self.by is By.DIFFERENCE else self.measured / self.reference

    @property
    def holds(self) -> bool:
        return self.limit is None or self.value <= self.limit

    @property
    def is_timing(self) -> bool:
        """Whether a busy machine can spoil it."""
        return self.unit in ("s", "ms", "1/s")


def page_id() -> str:
    """An id as the script makes them: the time first, so that the newest stand together in the store's index."""
    return f"{time.time_ns() // 1_000_000:x}{secrets.token_hex(16)}"


def p50(latencies: Sequence[float]) -> float:
    return statistics.median(latencies)


def p99(latencies: Sequence[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


# --- The load: requests are bytes before the clock starts --------------------------------------------------------------


class Reply(NamedTuple):
    seconds: float
    head: bytes
    body: bytes


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def push_request(call: Json, *, s: str | None = None, cookie: str = "") -> bytes:
    """One push as the shim would send it."""
    body = dumps({"v": 1, "pushes": [{"id": page_id(), "call": call}]} | ({"s": s} if s else {}))
    headers = f"Host: 127.0.0.1\r\nOrigin: {SHOP}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    cookies = f"Cookie: __Host-scq={cookie}\r\n" if cookie else ""
    return f"POST /scq/push HTTP/1.1\r\n{headers}{cookies}\r\n".encode() + body


METRICS_REQUEST = f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\r\n".encode()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def exchange(streams: Streams, request: bytes, since: float) -> Reply:
    """Raises AssertionError unless it is answered 200, or 202 with the push accepted. `since`: what its seconds count from."""
    reader, writer = streams
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None, head
    body = await reader.readexactly(int(length[1]))
    seconds = time.perf_counter() - since
    assert head.startswith(b"HTTP/1.1 200") or (b" 202 " in head[:14] and b'"accepted"' in body), (head, body)
    return Reply(seconds, head, body)


async def burst(port: int, requests: Sequence[bytes], connections: int) -> list[Reply]:
    """All of them, over so many connections, the next as soon as one is answered."""
    left = iter(requests)
    replies: list[Reply] = []

    async def keep_sending(streams: Streams) -> None:
        replies.extend([await exchange(streams, request, time.perf_counter()) for request in left])

    async with AsyncExitStack() as stack:
        open_ones = [await stack.enter_async_context(connected(port)) for _ in range(connections)]
        await asyncio.gather(*map(keep_sending, open_ones))
    return replies


async def steady(port: int, requests: Sequence[bytes], due_seconds: float) -> list[Reply]:
    """One each `due_seconds`, over one connection; what a stall delays is late by that much."""
    replies: list[Reply] = []
    async with connected(port) as streams:
        started = time.perf_counter()
        for number, request in enumerate(requests):
            due = started + number * due_seconds
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            replies.append(await exchange(streams, request, due))
    return replies


def on_loop(load: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def seconds_of(replies: Sequence[Reply]) -> list[float]:
    return [reply.seconds for reply in replies]


# --- The server --------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """In MB (1,000,000 bytes)."""

    now: float
    peak: float


class Node(Mortal):
    """A server that can be weighed and stopped for a while; `cookies`: of visitors who have logged in here."""

    def __init__(self, directory: Path, upstream: str) -> None:
        directory.mkdir()
        super().__init__(directory, upstream, **SETTINGS, SCQ_ADMIN_TOKEN=ADMIN_TOKEN)
        self.cookies: list[str] = []

    def _answers(self, path: str) -> bool:
        """Costs next to nothing, so that asking again and again does not slow down the start."""
        with (
            suppress(OSError, http.client.HTTPException),
            closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)) as connection,
        ):
            connection.request("GET", path)
            return connection.getresponse().status == 200
        return False

    def timed_start(self) -> float:
        """Seconds until it is ready, with nothing of its store in memory."""
        if self.store.exists():
            _forget_cached(self.store)
        started = time.perf_counter()
        self.spawn()
        self.await_ready()
        return time.perf_counter() - started

    def memory(self) -> Memory:
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        kilobytes = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text))
        return Memory(int(kilobytes["VmRSS"]) * 1_024 / 1e6, int(kilobytes["VmHWM"]) * 1_024 / 1e6)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None and not self.died():
            self.go_on()
        super().close()

    def report(self) -> Report:
        """What `scq-proxy status` asks, without the time that a command takes to start."""
        return asyncio.run(_report_of_server(self.store))

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def admit(self, count: int) -> None:
        """So many visitors log in."""
        logins = [push_request(login(f"visitor{n}@example.com"), s=f"visitor-session-{n:016}") for n in range(count)]
        for reply in on_loop(burst(self.port, logins, CONNECTIONS)):
            cookie = re.search(rb"__Host-scq=([^;]+)", reply.head)
            assert cookie is not None, reply
            self.cookies.append(cookie[1].decode())

    def requests(self, count: int) -> list[bytes]:
        """Pushes of the visitors in turn."""
        who = itertools.cycle(self.cookies)
        return [push_request(track(f"cart-{n % 10}"), cookie=next(who)) for n in range(count)]


async def _report_of_server(store: Path) -> Report:
    async with aclosing(ask(store, AskReport())) as answers:
        return report_of(await anext(answers))


def _forget_cached(file: Path) -> None:
    """Let the kernel forget what it has of a file in memory, as after a restart of the machine."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@contextmanager
def sandbox_process(port: int) -> Iterator[None]:
    """SendX in a process of its own, so that it does not slow down the load."""
    arguments = command("sandbox", "--port", str(port), "--key", API_KEY)
    with subprocess.Popen(arguments, env=clean_environ({}), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the sandbox did not start"
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


# --- One contact that always fails -------------------------------------------------------------------------------------

STUCK = "stuck@example.com"


class FairRound(NamedTuple):
    """`seconds` until the others' pushes had arrived; `misplaced`: pushes that wait no more, or not in their place; `dead` letters."""

    seconds: float
    misplaced: int
    dead: int


def fairness(size: Size, faults: dict[str, Fault], directory: Path, say: Say) -> list[Figure]:
    """`faults`: what one contact gets, by name. Only the first is claimed about. Each round has a server and a store of its own."""
    rounds: dict[str, list[FairRound]] = defaultdict(list)
    cases: list[tuple[str, Fault | None]] = [("", None), *faults.items()]
    for number in range(size.rounds):
        for name, fault in cases if number % 2 == 0 else reversed(cases):
            say(f"fairness, round {number + 1}, {name or 'nobody fails'}")
            rounds[name].append(_fair_round(size, fault, directory / f"fair-{number}-{len(rounds[name])}-{name}"))
    without = p50([one.seconds for one in rounds[""]])
    figures = []
    for place, name in enumerate(faults):
        took = p50([one.seconds for one in rounds[name]])
        limit = MAX_FAIRNESS if place == 0 else None
        figures.append(
            Figure(f"until {size.others:,} others are delivered, SendX {name}", "s", took, without, By.RATIO, limit)
        )
    misplaced = sum(one.misplaced for made in rounds.values() for one in made)
    dead = sum(one.dead for made in rounds.values() for one in made)
    figures.append(Figure("its pushes that are gone or out of order", "pushes", misplaced, by=By.VALUE, limit=0))
    figures.append(Figure("dead letters", "pushes", dead, by=By.VALUE, limit=0))
    return figures


def _fair_round(size: Size, fault: Fault | None, directory: Path) -> FairRound:
    app = create_sandbox(key=API_KEY)
    sandbox: Sandbox = app.state.sandbox
    emails = [f"other{n}@example.com" for n in range(size.others)]
    logins = [push_request(login(email), s=f"other-session-{n:016}") for n, email in enumerate(emails)]
    with ExitStack() as stack:
        upstream = stack.enter_context(serving(app))
        node = Node(directory, f"{upstream}/api/v1/rest")
        stack.callback(node.close)
        node.timed_start()
        stuck = _get_stuck(node, sandbox, fault, size.stuck) if fault is not None else []
        started = time.perf_counter()
        on_loop(burst(node.port, logins, CONNECTIONS))
        _await_contacts(sandbox, emails)
        seconds = time.perf_counter() - started
        dead = node.report().dead
        assert node.stop() == 0, node.log[-4000:]
        waits = _waiting_ids(node.store)
    return FairRound(seconds, sum(a != b for a, b in itertools.zip_longest(stuck, waits)), dead)


def _get_stuck(node: Node, sandbox: Sandbox, fault: Fault, count: int) -> list[str]:
    """The ids of pushes that wait, since SendX takes none of this contact; the first has been tried."""
    sandbox.faults.stand(STUCK, fault)
    ids, browser = [page_id() for _ in range(count)], Browser(node)
    calls = [login(STUCK), *(track(f"cart-{n}") for n in range(1, count))]
    assert {result["status"] for result in browser.push(*calls, ids=ids)} == {"accepted"}
    eventually(lambda: requests_about(sandbox, STUCK))
    return ids


def _await_contacts(sandbox: Sandbox, emails: Sequence[str]) -> None:
    left = list(emails)

    def none_left() -> bool:
        while left and sandbox.contacts.get(left[-1]) is not None:
            left.pop()
        return not left

    eventually(none_left, PATIENCE_SECONDS)


def _waiting_ids(store: Path) -> list[str]:
    """In their order; no server may run."""
    with closing(sqlite3.connect(store)) as connection:
        return [push_id for (push_id,) in connection.execute("SELECT id FROM pushes ORDER BY lane, seq")]


# --- A backlog ---------------------------------------------------------------------------------------------------------


async def fill(store: Path, size: Size, say: Say) -> None:
    """A store in which everybody has logged in and pushed since, in turns: each contact's pushes are far apart, as they would be."""
    ages = {"hold_age": timedelta(days=30), "dead_age": timedelta(days=90)}
    outbox = await open_outbox(store, create=True, min_free_bytes=0, **ages)
    try:
        for first in range(0, size.waiting, BATCH):
            say(f"filling the store, {first:,} of {size.waiting:,}")
            numbers = range(first, min(first + BATCH, size.waiting))
            plan = Decision(tuple(op for number in numbers for op in _stored(number, size.contacts)), None)
            await outbox.append(lambda facts, plan=plan: plan)  # type: ignore[misc]
    finally:
        await outbox.close()


def _stored(number: int, contacts: int) -> Iterator[Change]:
    """What the server stores of a push: the first of each contact is a log-in, the others are tracks."""
    turn, contact = divmod(number, contacts)
    push_id, email, visitor = page_id(), f"contact{contact}@example.com", f"visitor-{contact:014}"
    body = Track((f"cart-{turn}",)) if turn else Attributes(fields={"firstName": "Ada"})
    yield Enqueue(push_id, email, email, Trust.VERIFIED, body)
    if turn:
        yield Remember(push_id, visitor)
        return
    yield from (Verify(email), Identified(visitor, email))
    yield Remember(push_id, visitor, Visitor(visitor, email, Trust.VERIFIED, verified=int(time.time())))


class Pair:
    """The server with the backlog and the one without. What is measured of both is kept by name."""

    def __init__(self, full: Node, empty: Node, say: Say) -> None:
        self.full, self.empty, self._say = full, empty, say
        self._measured: dict[tuple[str, Node], list[float]] = defaultdict(list)
        self._turns = 0

    def in_turns(self, doing: str) -> Iterator[Node]:
        """Each alone while the other is stopped; who is first changes. Both must be running."""
        self._say(doing)
        self._turns += 1
        nodes = (self.full, self.empty) if self._turns % 2 else (self.empty, self.full)
        for node, other in zip(nodes, reversed(nodes), strict=True):
            other.pause()
            try:
                yield node
            finally:
                other.go_on()

    def note(self, what: str, node: Node, value: float) -> None:
        self._measured[what, node].append(value)

    def note_latencies(self, what: str, node: Node, latencies: Sequence[float], *, longest: bool = False) -> None:
        """In milliseconds."""
        self.note(f"{what}, p50", node, p50(latencies) * 1_000)
        self.note(f"{what}, p99", node, p99(latencies) * 1_000)
        if longest:
            self.note(f"{what}, longest", node, max(latencies) * 1_000)

    def note_memory(self, what: str, node: Node) -> None:
        memory = node.memory()
        self.note(f"memory {what}", node, memory.now)
        self.note(f"memory {what}, peak", node, memory.peak)

    def figures(self) -> list[Figure]:
        """The median of each, in the order in which they were first measured."""
        names = list(dict.fromkeys(what for what, _ in self._measured))
        return [self._figure(what) for what in names]

    def _figure(self, what: str) -> Figure:
        full, empty = (p50(self._measured[what, node]) for node in (self.full, self.empty))
        if what == START:
            return Figure(what, "s", full, empty, By.VALUE, MAX_START_SECONDS)
        if what.startswith("memory"):
            return Figure(what, "MB", full, empty, By.DIFFERENCE, MAX_GROWTH_MB)
        if what == DELIVERIES:
            return Figure(what, "1/s", full, by=By.VALUE)
        if what == STORE_SIZE:
            return Figure(what, "MB", full, empty, By.DIFFERENCE)
        return Figure(what, "ms", full, empty, By.RATIO, MAX_SLOWDOWN if what == f"{PARALLEL}, p50" else None)


START = "start-up until ready"
SINGLE, PARALLEL = "push, one at a time", f"push, {CONNECTIONS} at a time"
STORE_SIZE, DELIVERIES = "store on the disk", "pushes delivered while SendX is back"


def backlog(size: Size, directory: Path, say: Say) -> list[Figure]:
    sendx_port = quiet_port()
    upstream = f"http://127.0.0.1:{sendx_port}/api/v1/rest"
    with ExitStack() as stack:
        full, empty = (Node(directory / name, upstream) for name in ("full", "empty"))
        stack.callback(full.close)
        stack.callback(empty.close)
        asyncio.run(fill(full.store, size, say))
        pair = Pair(full, empty, say)
        _measure_starts(size, pair, say)
        _measure_pushes(size, pair)
        _measure_operators(size, pair)
        with sandbox_process(sendx_port):
            _measure_drain(size, pair)
        for node in (full, empty):
            _assert_accounted(node)
    return pair.figures()


def _measure_starts(size: Size, pair: Pair, say: Say) -> None:
    """Leaves both running. After the last start they are pushed to at once: that is when the sweep runs."""
    for number in range(size.rounds):
        for node in (pair.full, pair.empty):
            say(f"start {number + 1} of {node.directory.name}")
            pair.note(START, node, node.timed_start())
            if number == 0:
                node.admit(size.visitors)
            if number < size.rounds - 1:
                assert node.stop() == 0, node.log[-4000:]
                continue
            requests = node.requests(round(size.settle_seconds / DUE_SECONDS))
            latencies = seconds_of(on_loop(steady(node.port, requests, DUE_SECONDS)))
            pair.note_latencies(f"push, first {size.settle_seconds:g} s", node, latencies, longest=True)
            pair.note(STORE_SIZE, node, node.store.stat().st_size / 1e6)
            if node is pair.full:
                node.pause()
    pair.full.go_on()


def _measure_pushes(size: Size, pair: Pair) -> None:
    for number in range(size.turns):
        for node in pair.in_turns(f"pushing with SendX down, turn {number + 1}"):
            for what, count, connections in ((SINGLE, size.single, 1), (PARALLEL, size.parallel, CONNECTIONS)):
                on_loop(burst(node.port, node.requests(WARM_UP), connections))
                replies = on_loop(burst(node.port, node.requests(count), connections))
                pair.note_latencies(what, node, seconds_of(replies))
    for node in (pair.full, pair.empty):
        pair.note_memory("with SendX down", node)


def _measure_operators(size: Size, pair: Pair) -> None:
    for node in pair.in_turns("scraping metrics"):
        latencies, scrapes = on_loop(_steady_while_scraped(node, size.scrape_seconds))
        pair.note_latencies("push while /metrics is scraped", node, latencies, longest=True)
        pair.note("GET /metrics", node, p50(scrapes) * 1_000)
    for _ in range(size.rounds):
        for node in pair.in_turns("asking for the status"):
            started = time.perf_counter()
            node.status()
            pair.note("scq-proxy status", node, (time.perf_counter() - started) * 1_000)


async def _steady_while_scraped(node: Node, seconds: float) -> tuple[list[float], list[float]]:
    requests = node.requests(round(seconds / DUE_SECONDS))
    scraping = asyncio.create_task(_scrape(node.port, seconds))
    replies = await steady(node.port, requests, DUE_SECONDS)
    return seconds_of(replies), await scraping


async def _scrape(port: int, seconds: float) -> list[float]:
    taken: list[float] = []
    async with connected(port) as streams:
        started = time.perf_counter()
        for number in range(math.ceil(seconds / SCRAPE_SECONDS)):
            await asyncio.sleep(max(0.0, started + number * SCRAPE_SECONDS - time.perf_counter()))
            taken.append((await exchange(streams, METRICS_REQUEST, time.perf_counter())).seconds)
    return taken


def _measure_drain(size: Size, pair: Pair) -> None:
    """SendX is back: the backlog goes out while visitors push."""
    for node in pair.in_turns("delivering"):
        if node is pair.full:
            _wait_for_deliveries(node)
        before, started = node.report().counters.get("delivered", 0), time.perf_counter()
        requests = node.requests(round(size.drain_seconds / DUE_SECONDS))
        latencies = seconds_of(on_loop(steady(node.port, requests, DUE_SECONDS)))
        delivered = node.report().counters.get("delivered", 0) - before
        pair.note(DELIVERIES, node, delivered / (time.perf_counter() - started))
        pair.note_latencies("push while the backlog is delivered", node, latencies, longest=True)
    for node in (pair.full, pair.empty):
        pair.note_memory("while it is delivered", node)


def _wait_for_deliveries(node: Node) -> None:
    """A SendX that was down is probed twice a minute."""
    before = node.report().counters.get("delivered", 0)
    eventually(lambda: node.report().counters.get("delivered", 0) > before, 60)


def _assert_accounted(node: Node) -> None:
    report = node.report()
    assert report.dead == 0, report
    accepted, delivered = report.counters["accepted"], report.counters.get("delivered", 0)
    assert accepted == delivered + report.waiting, report


# --- The command -------------------------------------------------------------------------------------------------------


def table(title: str, columns: tuple[str, str], figures: Sequence[Figure]) -> str:
    """Aligned text, a line for each figure."""
    width = max(len(figure.what) for figure in figures)
    lines = [f"{title:{width}}       {columns[0]:>10} {columns[1]:>10}"]
    for figure in figures:
        reference = "" if figure.reference is None else f"{figure.reference:,.2f}"
        lines.append(
            f"{figure.what:{width}} {figure.unit:>6}{figure.measured:>10,.2f} {reference:>10} {_judged(figure)}".rstrip()
        )
    return "\n".join(lines)


def _judged(figure: Figure) -> str:
    compared = "" if figure.reference is None else _compared(figure)
    if figure.limit is None:
        return f"{compared:>9}"
    name = "" if figure.by is By.VALUE else f"{figure.by} "
    return f"{compared:>9}  {'holds' if figure.holds else 'DOES NOT HOLD'}: {name}at most {figure.limit:g}"


def _compared(figure: Figure) -> str:
    assert figure.reference is not None
    if figure.by is By.DIFFERENCE:
        return f"{figure.value:+,.1f}"
    return f"{figure.measured / figure.reference:.2f}x"


def as_object(figure: Figure) -> dict[str, Any]:
    return {**msgspec.to_builtins(figure), "value": figure.value, "holds": figure.holds}


FAULTS = {"answers 500": Fault(status=500), "does not answer": Fault("hang")}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.scale", description="Measure two claims; see the module."
    )
    parser.add_argument("--waiting", type=int, default=1_000_000, help="pushes of the backlog (1,000,000)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    asked = parser.parse_args()
    size = Size(waiting=asked.waiting, contacts=max(1, asked.waiting // 5))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the servers would outlive a time-out
    started = time.monotonic()
    say: Say = lambda line: print(f"{time.monotonic() - started:5.0f} s  {line}", file=sys.stderr, flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="scq-scale-", ignore_cleanup_errors=True) as directory:
        fair = fairness(size, FAULTS, Path(directory), say)
        full = backlog(size, Path(directory), say)
    if asked.json:
        print(json.dumps({"fairness": [*map(as_object, fair)], "backlog": [*map(as_object, full)]}))
    else:
        print(table("one contact always fails", ("with", "without"), fair))
        print()
        print(table(f"{size.waiting:,} pushes wait", ("full", "empty"), full))
    return 0 if all(figure.holds for figure in fair + full) else 1


if __name__ == "__main__":
    sys.exit(main())
