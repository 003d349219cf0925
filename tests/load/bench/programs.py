"""A contestant at work: started on its core, asked whether it serves, stopped for a while, killed; never left behind.

Each has a process group of its own, so that all its processes are counted and ended together.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.load.bench.machine import cores, cpu_seconds, pinned, resident_mb
from tests.support.server import clean_environ

START_SECONDS = 60.0
STOP_SECONDS = 30.0
_POLL_SECONDS = 0.005


async def until(holds: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Whether it holds within so many seconds."""
    deadline = time.perf_counter() + seconds
    while not await holds():
        if time.perf_counter() >= deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _nothing_is_stored() -> None:
    pass


@dataclass(frozen=True)
class Launch:
    """How a program is started. `environ`: its SCQ_* settings and whatever else it needs.

    `on_all_cores`: it has none to itself. `clear`: empties its store, while it does not run.
    """

    command: Sequence[str]
    port: int
    environ: Mapping[str, str]
    on_all_cores: bool = False
    clear: Callable[[], None] = _nothing_is_stored


class Program:
    """One program in a directory of its own, where its log is. Started again it takes the same port."""

    def __init__(self, name: str, launch: Launch, directory: Path) -> None:
        self.name, self.launch, self.directory = name, launch, directory
        self.start_seconds: list[float] = []  # of each start, until /healthz was answered
        self.start_mb = self.load_mb = 0.0  # RSS when it served first, and the most that was seen later
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self.launch.port

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text("utf-8", "replace")[-4_000:] if path.exists() else ""

    async def start(self) -> None:
        """Returns once it answers /healthz. Raises AssertionError if it does not."""
        self.directory.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        self._process = process = self._spawn()
        while not await asyncio.to_thread(self._serves):
            assert process.poll() is None, f"{self.name} ended at once:\n{self.log}"
            assert time.perf_counter() < started + START_SECONDS, f"{self.name} does not serve:\n{self.log}"
            await asyncio.sleep(_POLL_SECONDS)
        self.start_seconds.append(time.perf_counter() - started)
        self.start_mb = self.start_mb or resident_mb(self._group)
        self.weigh()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                pinned(self.launch.command, *(cores().all if self.launch.on_all_cores else (cores().measured,))),
                cwd=self.directory,
                env=clean_environ(dict(self.launch.environ)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _serves(self) -> bool:
        with (
            suppress(OSError, http.client.HTTPException),
            closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)) as connection,
        ):
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        return False

    # What it uses

    @property
    def _group(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._group)

    def weigh(self) -> None:
        """Takes note of its memory now."""
        self.load_mb = max(self.load_mb, resident_mb(self._group))

    # Its life

    def pause(self) -> None:
        """It takes no time from others until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill -9, with everything that it has started."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(STOP_SECONDS)

    def close(self) -> None:
        """Ended at once: nothing that it has is needed any more."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._group, number)
