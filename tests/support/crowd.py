"""People who push while servers are ill-treated, a SendX that misbehaves, and what both have seen: the history for `tests.support.oracle`.

People push anonymously first, then identified, logging out and in again, repeating every request with the same ids until it gets its
202, each time at the server that they are given: with several nodes, as a load balancer would. One seed decides who pushes what and
what SendX answers; which request meets which instant is up to the machine.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import httpx

from proxy.sandbox.api import Recorded, Sandbox
from proxy.sandbox.faults import NO_FAULT, Fault
from proxy.store.records import DeadLetter
from tests.support.live import PATIENCE_SECONDS, eventually
from tests.support.oracle import History, Promise, Report, Sight
from tests.support.relay import SPOILT
from tests.support.server import Browser, Json, Server, events, identify, login, new_ids, track

RETRY_SECONDS = 0.05
COUNTER_FIELD = "Visits"
SETTINGS = {
    "SCQ_TAGS": "*",
    "SCQ_FIELDS": f"firstName,{COUNTER_FIELD}",
    "SCQ_UPSTREAM_TIMEOUT": "2",
    "SCQ_LOG_LEVEL": "warning",
}


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
    (1, Fault("html", status=200)),
    (1, Fault(status=200, body='{"status":"error"}')),
    (1, Fault("empty", status=204, applied=True)),
    (1, Fault(status=500, body='{"message":"bad \\ud83d"}')),
    *((1, Fault(status=status)) for status in (402, 403, 407, 408, 421, 423, 425)),
    (4, Fault("reset")),
    (4, Fault("reset", applied=True)),
    (1, Fault("hang")),
    (1, Fault("hang", applied=True)),
    (6, Fault("ok", delay=0.2)),
)
SCRIPT_LENGTH = 400


def script(rng: random.Random, *, well: int = 4, usual: Fault = NO_FAULT) -> list[Fault]:
    """Never more than two faults in a row, so that back-offs stay short and the run is about many lives, not about waiting.

    `well`: answers in a row that are as `usual`, at most.
    """
    weights, faults = [weight for weight, _ in FAULTS], [fault for _, fault in FAULTS]
    found: list[Fault] = []
    while len(found) < SCRIPT_LENGTH:
        found += rng.choices(faults, weights, k=rng.randint(1, 2))
        found += [usual] * rng.randint(1, well)
    return found


class Watcher:
    """Every request that reached the sandbox, which itself remembers only the last 10,000. Nodes are told apart by its name for them."""

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

    def add(self, sights: Sequence[Sight]) -> None:
        """What reached the way to the sandbox and not its end."""
        self.sights = sorted([*self.sights, *sights], key=lambda sight: sight.at)


def _sight(record: Recorded) -> Sight:
    tags = tuple(event[1:] for event in events(record) if event != "identify")
    at = record.time.timestamp()
    status = None if SPOILT in record.headers else record.status
    return Sight(record.contact or "", tags, record.applied, status, node_of(record), at)


def node_of(record: Recorded) -> str:
    """By the name that it has for SendX."""
    return record.headers.get("host", "")


# --- People push -------------------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """`people`: push at the same time; `pushes`: of one person, before the next comes; `pause_seconds`: between two requests, at most."""

    seed: int
    people: int = 6
    pushes: int = 150
    pause_seconds: float = 0.1


class Person:
    """One contact with one browser, and what it was promised.

    `lane`: in the order in which it has to arrive; `held`: pushed before the next log-in. `refused`: what had to be taken; `twice`:
    what was taken again. `choose`: the server of the next request.
    """

    def __init__(
        self, choose: Callable[[], Server], rng: random.Random, name: str, over: threading.Event, *, stranger: bool
    ) -> None:
        self.email = f"{name}@example.com"
        self.lane: list[Promise] = []
        self.held: list[Promise] = []
        self.refused: list[str] = []
        self.twice: list[str] = []
        self._choose = choose
        self._browser = Browser(choose())
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
        if self._rng.random() < 0.1 and all(changes_nobody(call) for call in calls):
            self._push_again(calls, ids)

    def _push_again(self, calls: list[Json], ids: list[str]) -> None:
        """What has been acknowledged, once, as a script does whose answer was lost: wherever it comes, it is known."""
        with suppress(httpx.TransportError):
            response = self._ask(calls, ids)
            if response.status_code == 202:
                statuses = [result["status"] for result in response.json()["results"]]
                self.twice += [
                    f"a push of {self.email} was {status} again" for status in statuses if status != "duplicate"
                ]

    def _try(self, calls: list[Json], ids: list[str]) -> list[dict[str, Json]] | None:
        assert not self._over.is_set(), "the run has failed: see the other error"
        with suppress(httpx.TransportError):
            response = self._ask(calls, ids)
            if response.status_code == 202:
                return self._browser.adopt(response)
            assert response.status_code == 503, response.text
        self._over.wait(RETRY_SECONDS)
        return None

    def _ask(self, calls: list[Json], ids: list[str]) -> httpx.Response:
        self._browser.server = self._choose()
        return self._browser.request(*calls, ids=ids)

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


def changes_nobody(call: Json) -> bool:
    """Neither a log-in nor a log-out."""
    return call[0] != "reset" and not (call[0] == "identify" and "token" in call[1])


class Crowd:
    """`load.people` of them at a time, each in a thread; who has pushed enough makes room for somebody new.

    `choose`: a server for the next request, by a seeded random number; `scripted`: SendX answers each contact by a script of its own.
    """

    def __init__(
        self, load: Load, choose: Callable[[random.Random], Server], sandbox: Sandbox, *, scripted: bool
    ) -> None:
        self.people: list[Person] = []
        self._load, self._choose, self._sandbox, self._scripted = load, choose, sandbox, scripted
        self._stop, self._over = threading.Event(), threading.Event()
        self._threads = ThreadPoolExecutor(load.people, thread_name_prefix="people")
        self._places: list[Future[None]] = []

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Everybody pushes while the block runs, and ends with an acknowledgement."""
        self._places = [self._threads.submit(self._keep_pushing, place) for place in range(self._load.people)]
        try:
            yield
            self._stop.set()
            self._threads.shutdown()
            self.check()
        finally:
            self._stop.set()
            self._over.set()
            self._threads.shutdown()

    def check(self) -> None:
        """Raises what a place has died of."""
        for place in self._places:
            if place.done():
                place.result()

    def _keep_pushing(self, place: int) -> None:
        rng = random.Random(f"{self._load.seed} {place}")  # noqa: S311 - a seeded run
        dice = random.Random(f"{self._load.seed} {place} servers")  # noqa: S311 - how often it is asked depends on the faults
        number = 0
        while not self._stop.is_set():
            name = f"p{place}-{number}"
            person = Person(lambda: self._choose(dice), rng, name, self._over, stranger=rng.random() < 0.15)
            if self._scripted:
                self._sandbox.faults.script(person.email, *script(rng, well=12))
            self.people.append(person)
            for _ in range(self._load.pushes // (15 if person._stranger else 3)):
                person.push_burst()
                if self._stop.wait(rng.uniform(0, self._load.pause_seconds)):  # people are not the load test
                    return
            number += 1


def history_of(
    crowd: Crowd, watcher: Watcher, sandbox: Sandbox, dead: Sequence[DeadLetter], report: Report, **more: Any
) -> History:
    """What the two have seen, beside what the store says. `more`: what else the history tells."""
    return History(
        lanes={person.email: person.lane for person in crowd.people},
        held=[promise for person in crowd.people for promise in person.held],
        refused=[what for person in crowd.people for what in person.refused],
        twice=[what for person in crowd.people for what in person.twice],
        sights=watcher.sights,
        dead={letter.id: str(letter.reason) for letter in dead},
        cut_off={letter.id for letter in dead if letter.detail.startswith("its outcome is unknown")},
        counted={
            each.email: int(each.custom_fields.get(COUNTER_FIELD, "0")) for each in sandbox.contacts.newest_first()
        },
        report=report,
        **more,
    )
