"""The third table: what becomes of pushes when SendX is down, and when the process is killed.

So many pushes a second are sent, each once, over connections that stay open; nothing is tried again, as by a page without the script.
Each push's tag says which it is, and SendX remembers what it saw. A push that was acknowledged and is never seen is *lost*. One that was
not acknowledged is the sender's to repeat, which the script does and a plain fetch does not; it may have arrived all the same.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.load.bench.contestants.table import HTTPX_FIRST, PASSTHROUGHS, PROXY, Contestant
from tests.load.bench.ingest import read_answer
from tests.load.bench.programs import Program, until
from tests.load.bench.traffic import Crowd, Template, new_id
from tests.load.bench.upstream import Upstream

Say = Callable[[str], Any]
CONTESTANTS = (PROXY, *PASSTHROUGHS, HTTPX_FIRST)
CONNECTIONS = 32
LATENCY_SECONDS = 0.02
PATIENCE_SECONDS = 120.0  # until what waits has been delivered
_ANSWER_SECONDS = 5.0
_STRAGGLERS_SECONDS = 2.0  # where nothing waits
_TAG = re.compile(rb"tag-(scq-\d+)")


class Trial(msgspec.Struct, frozen=True):
    """`rate`: pushes a second. SendX is down for `down_seconds` after `before_seconds`; each kill comes `kill_seconds` after the last."""

    rate: int = 300
    before_seconds: float = 2.0
    down_seconds: float = 10.0
    after_seconds: float = 2.0
    kills: int = 3
    kill_seconds: float = 2.0


class Loss(msgspec.Struct, frozen=True):
    """Numbers of pushes. `arrived`: seen by SendX, acknowledged or not; `lost`: acknowledged and never seen."""

    contestant: str
    title: str
    fault: str
    sent: int
    acknowledged: int
    arrived: int
    lost: int

    @property
    def refused(self) -> int:
        """Not acknowledged: answered with an error, or not at all."""
        return self.sent - self.acknowledged

    @property
    def gone(self) -> int:
        """Never seen by SendX, unless the sender repeats it."""
        return self.sent - self.arrived


class Sender:
    """Sends pushes at an even pace, whatever becomes of them. `sent`, `acknowledged`: ids."""

    def __init__(self, port: int, templates: list[Template], rate: int) -> None:
        self.sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self._port, self._templates, self._rate = port, templates, rate
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`."""
        due = self._due_times()
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._keep_sending(due))

    def stop(self) -> None:
        self._over.set()

    def _due_times(self) -> Iterator[float]:
        started, number = time.perf_counter(), 0
        while not self._over.is_set():
            yield started + number / self._rate
            number += 1

    async def _keep_sending(self, due: Iterator[float]) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for at in due:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            push_id = new_id()
            self.sent.add(push_id)
            template = self._templates[len(self.sent) % len(self._templates)]
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    streams = streams or await asyncio.open_connection("127.0.0.1", self._port)
                    streams[1].write(template.filled([push_id, push_id]))
                    answer = await read_answer(streams[0])
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                if streams is not None:
                    streams[1].close()
                streams = None
                continue
            if answer.startswith(b"HTTP/1.1 2"):
                self.acknowledged.add(push_id)
        if streams is not None:
            streams[1].close()


async def measure(directory: Path, trial: Trial, say: Say) -> list[Loss]:
    losses: list[Loss] = []
    templates = Crowd().templates(1, tag="tag-@")

    async def outage(upstream: Upstream, program: Program) -> None:
        await asyncio.sleep(trial.before_seconds)
        upstream.go_down()
        await asyncio.sleep(trial.down_seconds)
        await upstream.come_up()
        await asyncio.sleep(trial.after_seconds)

    async def kills(upstream: Upstream, program: Program) -> None:
        for _ in range(trial.kills):
            await asyncio.sleep(trial.kill_seconds)
            program.kill()
            await program.start()
        await asyncio.sleep(trial.kill_seconds)

    faults = {f"SendX down for {trial.down_seconds:g} s": outage, f"killed {trial.kills} times": kills}
    for fault, happens in faults.items():
        for contestant in CONTESTANTS:
            say(f"{contestant.name}, {fault}")
            home = directory / f"loss-{len(losses)}-{contestant.name}"
            losses.append(await _try(contestant, fault, happens, home, templates, trial.rate))
    return losses


async def _try(
    contestant: Contestant,
    fault: str,
    happens: Callable[[Upstream, Program], Awaitable[None]],
    home: Path,
    templates: list[Template],
    rate: int,
) -> Loss:
    bodies: list[bytes] = []
    seen = Seen(bodies)
    home.mkdir()
    async with Upstream(latency_seconds=LATENCY_SECONDS, bodies=bodies) as upstream:
        program = Program(contestant.name, contestant.launch(upstream.port, home), home)
        sender = Sender(program.port, templates, rate)
        try:
            await program.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(sender.run())
                await happens(upstream, program)
                sender.stop()

            async def all_seen() -> bool:
                return sender.acknowledged <= seen.ids()

            await until(all_seen, PATIENCE_SECONDS if contestant.durable else _STRAGGLERS_SECONDS)
        finally:
            program.close()
    arrived = seen.ids() & sender.sent
    lost = len(sender.acknowledged - arrived)
    acknowledged = len(sender.acknowledged)
    return Loss(contestant.name, contestant.title, fault, len(sender.sent), acknowledged, len(arrived), lost)


class Seen:
    """The ids in the tags of what SendX got; looks at each body once."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies = bodies
        self._looked = 0
        self._ids: set[str] = set()

    def ids(self) -> set[str]:
        bodies = self._bodies[self._looked :]
        self._looked += len(bodies)
        for body in bodies:
            self._ids.update(found.decode() for found in _TAG.findall(body))
        return self._ids
