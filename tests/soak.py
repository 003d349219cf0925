"""Pushes, faults and kill -9, until the oracle is asked: `python -m tests.soak --kills 200` (`make soak`).

The real `scq-proxy serve` on a real store is killed at random instants, while it serves or while it starts, and started again on
the same store and port. Meanwhile people push: anonymous first, then identified, logging out and in again, repeating every
request with the same ids until it gets its 202. SendX answers each contact by a script. Then the faults stop, everything drains,
and `tests.oracle` judges what reached SendX.

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
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from proxy.outbox import DeadFilter
from proxy.sandbox import Fault, Recorded, Sandbox, create_sandbox
from proxy.stores import open_store_file
from tests.live import eventually, serving
from tests.oracle import Finding, History, Promise, Report, Sight, Violation, judge, report_of, wrong_sums
from tests.server import (
    API_KEY,
    START_SECONDS,
    Browser,
    Json,
    Server,
    clean_environ,
    command,
    events,
    identify,
    login,
    new_ids,
    track,
)

PATIENCE_SECONDS = 60.0
COUNTER_FIELD = "Visits"
SETTINGS = {
    "SCQ_TAGS": "*",
    "SCQ_FIELDS": f"firstName,{COUNTER_FIELD}",
    "SCQ_UPSTREAM_TIMEOUT": "2",
    "SCQ_LOG_LEVEL": "warning",
}


class Plan(NamedTuple):
    """`kills` of them and `seconds` at least; `people`: push at the same time; `pushes`: of one person, before the next comes."""

    seed: int
    kills: int
    seconds: float = 0.0
    people: int = 6
    pushes: int = 150


class Outcome(NamedTuple):
    kills: int
    seconds: float
    history: History
    findings: list[Finding]


# --- SendX misbehaves --------------------------------------------------------------------------------------------------

FAULTS: tuple[tuple[int, Fault], ...] = (
    (3, Fault(status=500)),
    (3, Fault(status=500, applied=True)),
    (1, Fault(status=429)),
    (1, Fault(status=429, retry_after=1)),
    (2, Fault("html", status=502)),
    (1, Fault("html", status=502, applied=True)),
    (1, Fault("empty", status=500)),
    (2, Fault("empty", status=200, applied=True)),
    (4, Fault("reset")),
    (4, Fault("reset", applied=True)),
    (1, Fault("hang")),
    (1, Fault("hang", applied=True)),
    (6, Fault("ok", delay=0.2)),
)
SCRIPT_LENGTH = 400


def script(rng: random.Random) -> list[Fault]:
    """Never more than two faults in a row, so that back-offs stay short and the run is about many lives, not about waiting."""
    weights, faults = [weight for weight, _ in FAULTS], [fault for _, fault in FAULTS]
    found: list[Fault] = []
    while len(found) < SCRIPT_LENGTH:
        found += rng.choices(faults, weights, k=rng.randint(1, 2))
        found += [Fault("ok")] * rng.randint(1, 4)
    return found


class Watcher:
    """Every request that reached the sandbox, which itself remembers only the last 10,000."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._last = 0
        self.sights: list[Sight] = []

    def look(self) -> None:
        """To be called often enough to miss none. Raises AssertionError if it did, or if a request broke SendX's schema."""
        for record in self._sandbox.requests:
            if record.number > self._last:
                assert record.number == self._last + 1, "the sandbox has forgotten requests: look more often"
                assert record.violation is None, record
                self._last = record.number
                self.sights.append(_sight(record))


def _sight(record: Recorded) -> Sight:
    tags = tuple(event[1:] for event in events(record) if event != "identify")
    return Sight(record.contact or "", tags, record.applied, record.status)


# --- People push -------------------------------------------------------------------------------------------------------


class Person:
    """One contact with one browser, and what it was promised.

    `lane`: in the order in which it has to arrive; `held`: pushed before the next log-in. `refused`: what had to be taken.
    """

    def __init__(self, server: Server, rng: random.Random, name: str, over: threading.Event, *, stranger: bool) -> None:
        self.email = f"{name}@example.com"
        self.lane: list[Promise] = []
        self.held: list[Promise] = []
        self.refused: list[str] = []
        self._browser = Browser(server)
        self._browser.s = f"{rng.getrandbits(128):032x}"
        self._rng, self._name, self._over, self._stranger = rng, name, over, stranger
        self._identified = False
        self._pushed = 0

    def push_burst(self) -> None:
        """A few calls in one request, repeated with the same ids until they are acknowledged."""
        made = [self._call() for _ in range(self._rng.randint(1, 5))]
        ids = new_ids(len(made))
        calls = [call for call, _ in made]
        results = eventually(lambda: self._try(calls, ids), PATIENCE_SECONDS) or []
        for push_id, (_, note), result in zip(ids, made, results, strict=True):
            if result["status"] == "refused":
                self.refused.append(f"a push of {self.email}: {result['reason']}")
            else:
                note(push_id)

    def _try(self, calls: list[Json], ids: list[str]) -> list[dict[str, Json]] | None:
        assert not self._over.is_set(), "the run has failed: see the other error"
        with suppress(httpx.TransportError):
            response = self._browser.request(*calls, ids=ids)
            if response.status_code == 202:
                return self._browser.adopt(response)
            assert response.status_code == 503, response.text
        return None

    def _call(self) -> tuple[Json, Callable[[str], None]]:
        """The next call, and what to note once it is acknowledged."""
        self._pushed += 1
        tag, chance = f"{self._name}-{self._pushed}", self._rng.random()
        if not self._identified:
            if chance < 0.3 and not self._stranger:
                self._identified = True
                return login(self.email, tags=[tag]), lambda push_id: self._bind(Promise(push_id, tag))
            return track(tag), lambda push_id: self.held.append(Promise(push_id, tag))
        if chance < 0.04:
            self._identified = False
            return ["reset"], lambda push_id: None
        if chance < 0.08:
            return login(self.email, tags=[tag]), self._note(tag)
        if chance < 0.14:
            return identify(firstName=f"{self._pushed}", tags=[tag]), self._note(tag)
        if chance < 0.25:
            return identify(customFields={COUNTER_FIELD: "++1"}, tags=[tag]), self._note(tag, increment=True)
        return track(tag), self._note(tag)

    def _note(self, tag: str, *, increment: bool = False) -> Callable[[str], None]:
        return lambda push_id: self.lane.append(Promise(push_id, tag, increment))

    def _bind(self, log_in: Promise) -> None:
        """What was held goes right behind the identify that binds it."""
        self.lane += [log_in, *self.held]
        self.held.clear()


class Crowd:
    """`plan.people` of them at a time, each in a thread; who has pushed enough makes room for somebody new."""

    def __init__(self, plan: Plan, server: Server, sandbox: Sandbox) -> None:
        self.people: list[Person] = []
        self._plan, self._server, self._sandbox = plan, server, sandbox
        self._stop, self._over = threading.Event(), threading.Event()
        self._threads = ThreadPoolExecutor(plan.people, thread_name_prefix="people")
        self._places: list[Future[None]] = []

    def start(self) -> None:
        self._places = [self._threads.submit(self._keep_pushing, place) for place in range(self._plan.people)]

    def check(self) -> None:
        """Raises what a place has died of."""
        for place in self._places:
            if place.done():
                place.result()

    def stop(self) -> None:
        """Everybody ends with an acknowledgement. Raises what a place has died of."""
        self._stop.set()
        self._threads.shutdown()
        self.check()

    def give_up(self) -> None:
        """Everybody ends at once."""
        self._stop.set()
        self._over.set()
        self._threads.shutdown()

    def _keep_pushing(self, place: int) -> None:
        rng = random.Random(f"{self._plan.seed} {place}")  # noqa: S311 - a seeded run
        number = 0
        while not self._stop.is_set():
            name = f"p{place}-{number}"
            person = Person(self._server, rng, name, self._over, stranger=rng.random() < 0.15)
            self._sandbox.script(person.email, *script(rng))
            self.people.append(person)
            for _ in range(self._plan.pushes // (15 if person._stranger else 3)):
                person.push_burst()
                if self._stop.wait(rng.uniform(0, 0.1)):  # people are not the load test
                    return
            number += 1


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
        eventually(lambda: self.died() or self._answers("/readyz"), START_SECONDS)
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
            timeout=60,
            check=False,
        )
        assert ran.returncode in (0, 1), ran.stderr
        return report_of(json.loads(ran.stdout))

    def dead_letters(self) -> dict[str, str]:
        """Reasons by push id, read off the store; no server may run."""

        async def read() -> dict[str, str]:
            found: dict[str, str] = {}
            async with open_store_file(self.store) as outbox:
                after = 0
                while letters := await outbox.dead_letters(DeadFilter(), after, 500):
                    found |= {letter.id: str(letter.reason) for letter in letters}
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
        server = Mortal(directory, f"{upstream}/api/v1/rest", **SETTINGS)
        stack.callback(server.close)
        crowd, watcher = Crowd(plan, server, sandbox), Watcher(sandbox)
        with _going(crowd):
            kills, found = _live_and_die(plan, server, crowd, watcher, say)
        sandbox.heal()
        _drain(server, watcher)
        report = server.status()
        assert server.stop() == 0, server.log[-4000:]
        watcher.look()
        history = _history(crowd, watcher, sandbox, server.dead_letters(), report)
    return Outcome(kills, time.monotonic() - started, history, found + judge(history))


@contextmanager
def _going(crowd: Crowd) -> Iterator[None]:
    crowd.start()
    try:
        yield
        crowd.stop()
    finally:
        crowd.give_up()


def _live_and_die(
    plan: Plan, server: Mortal, crowd: Crowd, watcher: Watcher, say: Callable[[str], Any]
) -> tuple[int, list[Finding]]:
    """How often it died, and where the sums did not hold meanwhile. Leaves it alive."""
    rng = random.Random(plan.seed)  # noqa: S311 - a seeded run
    found: list[Finding] = []
    started, kills = time.monotonic(), 0
    server.spawn()
    while kills < plan.kills or time.monotonic() - started < plan.seconds:
        if rng.random() < 0.2:
            server.live(rng.uniform(0, 1.5))  # dies while it starts, or soon after
        else:
            server.await_ready()
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


def _drain(server: Mortal, watcher: Watcher) -> None:
    def drained() -> bool:
        watcher.look()
        return server.status().waiting == 0

    eventually(drained, PATIENCE_SECONDS)


def _history(crowd: Crowd, watcher: Watcher, sandbox: Sandbox, dead: dict[str, str], report: Report) -> History:
    contacts = {contact.email: contact for contact in sandbox.contacts}
    return History(
        lanes={person.email: person.lane for person in crowd.people},
        held=[promise for person in crowd.people for promise in person.held],
        refused=[what for person in crowd.people for what in person.refused],
        sights=watcher.sights,
        dead=dead,
        counted={email: int(contact.custom_fields.get(COUNTER_FIELD, "0")) for email, contact in contacts.items()},
        report=report,
    )


# --- The command -------------------------------------------------------------------------------------------------------


def summary(plan: Plan, outcome: Outcome) -> str:
    """The result, a line for each number, then every finding."""
    history = outcome.history
    promised = sum(len(lane) for lane in history.lanes.values())
    rows: list[tuple[str, object]] = [
        ("seed", plan.seed),
        ("kills (-9)", outcome.kills),
        ("pushes acknowledged", promised + len(history.held)),
        ("increments among them", sum(promise.increment for lane in history.lanes.values() for promise in lane)),
        ("held, never identified", len(history.held)),
        ("requests to SendX", len(history.sights)),
        ("delivered", promised - len(history.dead)),
        ("ambiguous dead letters", len(history.dead)),
        *((str(violation), _count(outcome.findings, violation)) for violation in Violation),
        ("seconds", round(outcome.seconds)),
    ]
    lines = [f"{name:24} {value:>10,}" if isinstance(value, int) else f"{name:24} {value}" for name, value in rows]
    return "\n".join([*lines, *(f"! {finding.violation}: {finding.what}" for finding in outcome.findings)])


def _count(findings: list[Finding], violation: Violation) -> int:
    return sum(finding.violation is violation for finding in findings)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Attack the guarantees; see the module.")
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at least so often (200)")
    parser.add_argument("--seconds", type=float, default=0, help="go on for at least so long (0)")
    parser.add_argument("--people", type=int, default=6, help="who push at the same time (6)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run, to repeat it as far as it can be")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    plan = Plan(seed, asked.kills, asked.seconds, asked.people)
    directory = Path(tempfile.mkdtemp(prefix="scq-soak-"))
    print(f"seed {seed}, in {directory}", flush=True)
    say: Callable[[str], Any] = lambda line: print(f"\r{line}", end="", flush=True)  # noqa: E731
    outcome = run(plan, directory, say if sys.stdout.isatty() else lambda line: None)
    print("\n" + summary(plan, outcome))
    if outcome.findings:
        (directory / "history.json").write_bytes(msgspec.json.encode(outcome.history))
        print(f"Broken promises. The store, the server's log and the history are kept in {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
