"""Pushes, faults and kill -9, until the oracle is asked: `python -m tests.load.soak --kills 200` (`make soak`).

The real `scq-proxy serve` on a real store is killed at random instants, while it serves or while it starts, and started again on
the same store and port. Meanwhile people push (`tests.support.crowd`), SendX answers each contact by a script, and the way there is bad
(`tests.support.relay`). Then the faults stop, everything drains, and `tests.support.oracle` judges what reached SendX. `tests.load.soak_nodes`
does the same to several nodes on PostgreSQL.

One seed decides who pushes what, what SendX answers and when the server dies; which request meets which instant is up to the
machine. Exit code 1 if a promise was broken; the store and the server's log are then kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from proxy.config import parsers
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.store.records import DeadFilter, DeadLetter
from proxy.stores import open_existing
from tests.support.crowd import SETTINGS, Crowd, Load, Watcher, history_of
from tests.support.fuzz import DEFECTS
from tests.support.live import PATIENCE_SECONDS, eventually, serving
from tests.support.oracle import (
    Finding,
    History,
    Report,
    Violation,
    judge,
    never_arrived,
    report_of,
    wrong_sums,
)
from tests.support.relay import relaying
from tests.support.server import API_KEY, Server, clean_environ, command
from tests.support.tls import trusting


class Plan(NamedTuple):
    """`kills` of them and `seconds` at least."""

    load: Load
    kills: int
    seconds: float = 0.0


class Outcome(NamedTuple):
    """`attacks`: how many, by kind."""

    seed: int
    attacks: Mapping[str, int]
    seconds: float
    history: History
    findings: list[Finding]


# --- The server dies ---------------------------------------------------------------------------------------------------


class Mortal(Server):
    """A server that is killed often.

    Its port is not one that the kernel gives to outgoing connections: while it is down, somebody's connection could take the
    port, or, trying to connect to it, connect to itself.
    """

    def __init__(self, directory: Path, upstream: str, **more: str) -> None:
        port = quiet_port()
        super().__init__(directory, upstream, SCQ_PORT=str(port), **more)
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.settings["SCQ_PORT"] = str(port)
        self.client.base_url = self.url

    def spawn(self) -> None:
        """Start it and do not wait."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command("serve"), cwd=self.directory, env=clean_environ(self.settings), stdout=log, stderr=log
            )

    def await_ready(self) -> None:
        eventually(lambda: self.died() or self._answers("/readyz"), PATIENCE_SECONDS)
        assert not self.died(), f"the server ended by itself:\n{self.log[-4000:]}"

    def live(self, seconds: float) -> None:
        """Let it live for so long. Raises AssertionError if it ends before."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(seconds)
            raise AssertionError(f"the server ended by itself with {code}:\n{self.log[-4000:]}")

    def status(self) -> Report:
        """As `scq-proxy status --json` tells; it exits with 1 when there are dead letters."""
        ran = subprocess.run(
            command("status", "--json"),
            cwd=self.directory,
            env=clean_environ({"SCQ_STORE": self.settings["SCQ_STORE"]}),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert ran.returncode in (0, 1), ran.stderr
        return report_of(json.loads(ran.stdout))

    def dead_letters(self) -> list[DeadLetter]:
        """All of them, read off the store; on SQLite, no server may run."""

        async def read() -> list[DeadLetter]:
            found: list[DeadLetter] = []
            async with open_existing(parsers.store(self.settings["SCQ_STORE"])) as outbox:
                after = 0
                while letters := await outbox.dead_letters(DeadFilter(), after, 500):
                    found += letters
                    after = letters[-1].seq
            return found

        return asyncio.run(read())


def quiet_port() -> int:
    """A free port below those that the kernel gives away by itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = secrets.randbelow(lowest - 12_000) + 12_000
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def run(plan: Plan, directory: Path, say: Callable[[str], Any] = lambda line: None) -> Outcome:
    """One run in a directory of its own. Raises AssertionError when it cannot be judged: the server ended by itself, say."""
    started = time.monotonic()
    app = create_sandbox(key=API_KEY)
    sandbox: Sandbox = app.state.sandbox
    with ExitStack() as stack:
        upstream = stack.enter_context(serving(app))
        relay = stack.enter_context(relaying(plan.load.seed, upstream))
        server = Mortal(directory, f"{relay.url}/api/v1/rest", **SETTINGS, **trusting("localhost", directory))
        stack.callback(server.close)
        crowd, watcher = Crowd(plan.load, lambda dice: server, sandbox, scripted=True), Watcher(sandbox)
        with crowd.pushing():
            kills, found = _live_and_die(plan, server, crowd, watcher, say)
        sandbox.faults.clear()
        relay.well = True
        server.signal(signal.SIGHUP)
        drain(lambda: server.status().waiting, watcher, PATIENCE_SECONDS)
        report = server.status()
        assert server.stop() == 0, server.log[-4000:]
        watcher.look()
        watcher.add(relay.swallowed)
        history = history_of(crowd, watcher, sandbox, server.dead_letters(), report, defects=defects_told(server.log))
    attacks = {"kills (-9)": kills, "exchanges damaged": relay.damaged}
    return Outcome(plan.load.seed, attacks, time.monotonic() - started, history, found + judge(history))


def defects_told(log: str) -> list[str]:
    """What a log says of a defect of the proxy: a line each."""
    return [line for line in log.splitlines() if any(words in line for words in (*DEFECTS, DEATH, "Traceback"))]


def _live_and_die(
    plan: Plan, server: Mortal, crowd: Crowd, watcher: Watcher, say: Callable[[str], Any]
) -> tuple[int, list[Finding]]:
    """How often it died, and where the sums did not hold meanwhile. Leaves it alive."""
    rng = random.Random(plan.load.seed)  # noqa: S311 - a seeded run
    found: list[Finding] = []
    started, kills = time.monotonic(), 0
    server.spawn()
    while kills < plan.kills or time.monotonic() - started < plan.seconds:
        if rng.random() < 0.2:
            server.live(rng.uniform(0, 1.5))  # dies while it starts, or soon after
        else:
            server.await_ready()
            server.signal(signal.SIGHUP)  # ends the wait for a halt's next probe, as an operator would
            server.live(rng.uniform(0, 2))
        if kills % 20 == 10:
            server.await_ready()
            found += wrong_sums(server.status())
        server.kill()
        kills += 1
        crowd.check()
        watcher.look()
        say(f"kill {kills}, {len(watcher.sights)} requests at SendX")
        server.spawn()
    server.await_ready()
    return kills, found


def drain(waiting: Callable[[], int], watcher: Watcher, seconds: float) -> None:
    """Waits until nothing waits."""

    def drained() -> bool:
        watcher.look()
        return waiting() == 0

    eventually(drained, seconds)


# --- The command -------------------------------------------------------------------------------------------------------


DEATH = "The forwarder died"
NOT_OF_ONE = (Violation.GATE, Violation.PACE)  # what one node alone is not judged for


def summary(
    outcome: Outcome, more: Mapping[str, object] | None = None, leave_out: Sequence[Violation] = NOT_OF_ONE
) -> str:
    """The result, a line for each number, then every finding."""
    history = outcome.history
    promised = sum(len(lane) for lane in history.lanes.values())
    unarrived = never_arrived(history)
    rows: list[tuple[str, object]] = [
        ("seed", outcome.seed),
        *outcome.attacks.items(),
        ("pushes acknowledged", promised + len(history.held)),
        ("increments among them", sum(promise.increment for lane in history.lanes.values() for promise in lane)),
        ("held, never identified", len(history.held)),
        ("requests to SendX", len(history.sights)),
        *(more or {}).items(),
        ("delivered", promised - len(history.dead)),
        ("ambiguous dead letters", len(history.dead)),
        ("which never arrived", f"{sum(unarrived):,} of them, {sum(unarrived) / max(1, len(history.dead)):.0%}"),
        ("  lost on their way", unarrived.lost),
        ("  with their sender", unarrived.cut_off),
        ("  for neither reason", unarrived.needless),
        ("forwarder deaths", sum(DEATH in what for what in history.defects)),
        *((str(each), _count(outcome.findings, each)) for each in Violation if each not in leave_out),
        ("seconds", round(outcome.seconds)),
    ]
    lines = [f"{name:24} {value:>10,}" if isinstance(value, int) else f"{name:24} {value}" for name, value in rows]
    return "\n".join([*lines, *(f"! {finding.violation}: {finding.what}" for finding in outcome.findings)])


def _count(findings: list[Finding], violation: Violation) -> int:
    return sum(finding.violation is violation for finding in findings)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.soak", description="Attack the guarantees; see the module."
    )
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at least so often (200)")
    parser.add_argument("--seconds", type=float, default=0, help="go on for at least so long (0)")
    parser.add_argument("--people", type=int, default=6, help="who push at the same time (6)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run, to repeat it as far as it can be")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    plan = Plan(Load(seed, asked.people), asked.kills, asked.seconds)
    return reported(seed, lambda directory, say: run(plan, directory, say), summary)


def reported(
    seed: int, make: Callable[[Path, Callable[[str], Any]], Outcome], summarised: Callable[[Outcome], str]
) -> int:
    """A run in a directory of its own, and its summary on the terminal. 1 if a promise was broken; then all is kept."""
    directory = Path(tempfile.mkdtemp(prefix="scq-soak-"))
    print(f"seed {seed}, in {directory}", flush=True)
    say: Callable[[str], Any] = lambda line: print(f"\r{line}", end="", flush=True)  # noqa: E731
    outcome = make(directory, say if sys.stdout.isatty() else lambda line: None)
    print("\n" + summarised(outcome))
    if outcome.findings:
        (directory / "history.json").write_bytes(msgspec.json.encode(outcome.history))
        print(f"Broken promises. The store, the logs and the history are kept in {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
