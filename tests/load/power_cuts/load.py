"""Records a run: a real `scq-proxy serve` under strace, people and servers that push, a SendX that answers, kills and stops.

Each person pushes in a thread, one request after the other, each repeated with the same ids until it is acknowledged: first not
identified, so that pushes are held, then logged in, then from pages and from the site's servers by turns. After each life of the server what
its files hold is compared with what the record says that was written: a record with a gap is an error.
"""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple

from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import EVERYBODY, Fault
from tests.load.power_cuts.disk import Disk
from tests.load.power_cuts.record import FILES, LOG, AnyEvent, Ending, Person, Push, Record, Request, Start, Try
from tests.load.power_cuts.strace import COMMAND, NotUnderstood, Reader
from tests.load.soak import Mortal
from tests.support.crowd import COUNTER_FIELD, SETTINGS, Watcher
from tests.support.live import PATIENCE_SECONDS, eventually, serving
from tests.support.server import (
    API_KEY,
    SERVER_KEY,
    SHOP,
    Json,
    clean_environ,
    command,
    dumps,
    identify,
    login,
    new_id,
    track,
)

PEOPLE = 4
RETRY_SECONDS = 0.05
PAUSE_SECONDS = 0.06  # between two requests of a person, at most: it is the number of commits that counts, not the load
FULL_DISK = {"SCQ_MIN_FREE_MB": "1000000"}  # a terabyte: nothing is taken, what is free goes back to the disk
Say = Callable[[str], Any]


class Life(NamedTuple):
    """One life of the server: until so many requests were acknowledged in it. `erases`: somebody, and waits until the log is cut."""

    requests: int
    ending: Ending
    settings: Mapping[str, str] = {}
    erases: bool = False
    slow: bool = False  # SendX is, so that pushes gather


LIVES = (
    Life(80, Ending.KILL),
    Life(60, Ending.KILL, erases=True),
    Life(5, Ending.KILL),
    Life(120, Ending.STOP, slow=True),
    Life(0, Ending.KILL, FULL_DISK),
    Life(60, Ending.KILL),
    Life(20, Ending.STOP),
)


class Traced(Mortal):
    """A server under strace, which writes a file for each of its lives."""

    def __init__(self, directory: Path, upstream: str) -> None:
        more = SETTINGS | {"SCQ_SERVER_KEYS": SERVER_KEY, "SCQ_RATE_PER_KEY": "0", "SCQ_MIN_FREE_MB": "1"}
        super().__init__(directory, upstream, **more)
        self.reader = Reader(self.store, self.port)
        self.lives = 0

    @property
    def trace(self) -> Path:
        """What strace writes of the present life."""
        return self.directory / f"strace.{self.lives}"

    def live_with(self, settings: Mapping[str, str]) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, str(self.trace), "--", *command("serve")],
                cwd=self.directory,
                env=clean_environ({**self.settings, **settings}),
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self.died() or self._answers("/healthz"))
        assert not self.died(), f"the server ended by itself:\n{self.log[-4000:]}"

    def die(self, ending: Ending) -> list[AnyEvent]:
        """Ends it and returns what it did. Raises `NotUnderstood`."""
        process = self._process
        assert process is not None
        if ending is Ending.KILL:
            self.kill()
        else:
            assert self.stop() == 0, self.log[-4000:]
        end = f"{process.pid} "
        eventually(lambda: any(line.startswith(end) and " +++ " in line for line in _last_lines(self.trace)))
        with self.trace.open(encoding="ascii") as lines:
            found = self.reader.read(lines)
        self.trace.unlink()  # some hundred MB in all
        self.lives += 1
        return found

    def files(self) -> dict[str, bytes]:
        paths = {ending: Path(f"{self.store}{ending}") for ending in FILES}
        return {ending: path.read_bytes() for ending, path in paths.items() if path.exists()}

    def await_log_cut(self) -> None:
        """Waits until the log has been cut in the present life, whether or not it grows again."""
        name = "".join(f"\\x{byte:02x}" for byte in f"{self.store}{LOG}".encode())
        with self.trace.open(encoding="ascii") as lines:
            eventually(lambda: any(" ftruncate(" in line and name in line for line in lines))

    def await_room(self) -> None:
        """Waits until pages have been given back to the disk and the log is cut."""
        before = self.store.stat().st_size
        log = Path(f"{self.store}{LOG}")
        eventually(lambda: self.store.stat().st_size < before and log.stat().st_size == 0)


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4_096))
        return file.read().decode("ascii").splitlines()


# --- People -------------------------------------------------------------------------------------------------------------


class Caller:
    """One person's connection. Counts the requests on it, as strace counts the answers."""

    def __init__(self, server: Traced) -> None:
        self._server = server
        self._connection: http.client.HTTPConnection | None = None
        self._life = self._port = self._number = 0

    def ask(
        self, request: Request, path: str, body: bytes, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse | None:
        """Returns None if there was no answer. The caller reads the body."""
        try:
            connection = self._connected()
            request.tries.append(Try(self._life, self._port, self._number))
            self._number += 1
            connection.request("POST", path, body, dict(headers))
            return connection.getresponse()
        except (OSError, http.client.HTTPException):
            self.close()
            return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            self._life, self._number = self._server.lives, 0
            connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=PATIENCE_SECONDS)
            connection.connect()
            connection.auto_open = 0  # a new connection is another one
            self._connection, self._port = connection, connection.sock.getsockname()[1]
        return self._connection


class Pusher:
    """Pushes as one person after another, in one thread."""

    def __init__(self, crowd: Crowd, place: int, rng: random.Random) -> None:
        self._crowd, self._place, self._rng = crowd, place, rng
        self._caller = Caller(crowd.server)
        self._cookie, self._s, self._tags = "", "", 0
        self._person = Person("")

    def push(self) -> None:
        """Sends one person's requests. Returns early if the run is over."""
        rng = self._rng
        number = self._crowd.enter(self)
        self._cookie, self._s, self._tags = "", f"{rng.getrandbits(128):032x}", 0
        self._begin(f"cut-{self._place}-{number}")
        for _ in range(rng.randint(1, 3)):
            self._page([self._call(held=True) for _ in range(rng.randint(1, 4))], held=True)
        if rng.random() < 0.1:
            return  # never identified
        tag = self._tag()
        self._page([(login(self._person.email, tags=[tag]), Push(tag, new_id()))], binds=True)
        for _ in range(rng.randint(4, 12)):
            if rng.random() < 0.25:
                self._server_call()
            else:
                self._page([self._call() for _ in range(rng.randint(1, 5))])

    def _begin(self, name: str) -> None:
        self._name, self._person = name, Person(f"{name}@example.com", [])
        self._crowd.people.append(self._person)
        if self._rng.random() < 0.25:
            faults = (Fault(status=500), Fault("ok", delay=0.1), Fault(status=500, applied=True), Fault("ok"))
            self._crowd.sandbox.faults.script(self._person.email, *self._rng.sample(faults, 4))

    def _tag(self) -> str:
        self._tags += 1
        return f"{self._name}-{self._tags}"

    def _call(self, *, held: bool = False) -> tuple[Json, Push]:
        tag, chance = self._tag(), self._rng.random()
        push = Push(tag, new_id())
        if held or chance < 0.6:
            return track(tag), push
        if chance < 0.8:
            return identify(firstName="A" * self._rng.randint(1, 200), tags=[tag]), push
        return identify(customFields={COUNTER_FIELD: "++1"}, tags=[tag]), Push(push.tag, push.id, increment=True)

    def _page(self, made: list[tuple[Json, Push]], *, held: bool = False, binds: bool = False) -> None:
        pushes = [push for _, push in made]
        request = Request(pushes, held, binds, [])
        body = {"v": 1, "s": self._s, "pushes": [{"id": push.id, "call": call} for call, push in made]}
        self._insist(
            request, "/scq/push", body, lambda: {"Origin": SHOP, "Content-Type": "text/plain", "Cookie": self._cookie}
        )

    def _server_call(self) -> None:
        tag, increment = self._tag(), self._rng.random() < 0.3
        body: dict[str, Json] = {"email": self._person.email}
        body |= {"tags": [tag], "customFields": {COUNTER_FIELD: "++1"}} if increment else {"addTags": [tag]}
        path = f"/api/v1/rest/contact/{'identify' if increment else 'track'}"
        headers = {"X-Team-ApiKey": SERVER_KEY, "Content-Type": "application/json", "Idempotency-Key": new_id()}
        self._insist(Request([Push(tag, "", increment)], tries=[]), path, body, lambda: headers)

    def _insist(self, request: Request, path: str, body: Json, headers: Callable[[], Mapping[str, str]]) -> None:
        """Repeats a request until it is acknowledged. Records it before it is sent."""
        self._person.requests.append(request)
        raw = dumps(body)

        def answered() -> bool:
            self._crowd.require_going()
            response = self._caller.ask(request, path, raw, headers())
            answer = None if response is None else _read(response)
            if response is None or answer is None:
                self._caller.close()
            elif response.status in (200, 202):
                self._adopt(response, answer)
                return True
            else:
                assert response.status == 503, answer
            self._crowd.over.wait(RETRY_SECONDS)
            return False

        eventually(answered)
        self._crowd.acknowledged += 1
        self._crowd.over.wait(self._rng.uniform(0, PAUSE_SECONDS))

    def _adopt(self, response: http.client.HTTPResponse, answer: Json) -> None:
        for result in answer.get("results", ()):
            assert result["status"] in ("accepted", "held", "duplicate"), f"a push was refused: {result}"
        self._s = answer.get("s", self._s)
        for header in response.headers.get_all("set-cookie", ()):
            for name, morsel in SimpleCookie(header).items():
                self._cookie = f"{name}={morsel.value}"


def _read(response: http.client.HTTPResponse) -> Json | None:
    with suppress(OSError, http.client.HTTPException):
        return json.loads(response.read())
    return None


class Crowd:
    """People in threads. `acknowledged`: requests so far, about."""

    def __init__(self, server: Traced, sandbox: Sandbox, seed: int) -> None:
        self.server, self.sandbox, self._seed = server, sandbox, seed
        self.people: list[Person] = []
        self.acknowledged = 0
        self.over = threading.Event()
        self._finished: list[Person] = []
        self._entered = 0
        self._lock = threading.Lock()
        self._threads: list[Future[None]] = []

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Lets all people push while the block runs."""
        with ThreadPoolExecutor(PEOPLE, thread_name_prefix="people") as pool:
            self._threads = [pool.submit(self._keep_pushing, place) for place in range(PEOPLE)]
            try:
                yield
                self.check()
            finally:
                self.over.set()

    def check(self) -> None:
        """Raises the exception of a thread that failed."""
        for thread in self._threads:
            if thread.done():
                thread.result()

    def enter(self, pusher: Pusher) -> int:
        with self._lock:
            if pusher._person.email:
                self._finished.append(pusher._person)
            self._entered += 1
            return self._entered

    def require_going(self) -> None:
        if self.over.is_set():
            raise _Over

    def somebody_finished(self) -> Person:
        """Returns the last identified person who has finished pushing."""

        def last() -> Person | None:
            self.check()
            return next((each for each in reversed(self._finished) if any(one.binds for one in each.requests)), None)

        found = eventually(last)
        assert found is not None
        return found

    def _keep_pushing(self, place: int) -> None:
        pusher = Pusher(self, place, random.Random(f"{self._seed} {place}"))  # noqa: S311 - a seeded run
        with suppress(_Over):
            while not self.over.is_set():
                pusher.push()


class _Over(Exception):
    """The run is over: a request that is under way stays so."""


# --- The run ------------------------------------------------------------------------------------------------------------


def record(directory: Path, seed: int, lives: tuple[Life, ...] = LIVES, say: Say = lambda line: None) -> Record:
    """Runs through all lives. Raises `NotUnderstood`, and AssertionError if the server ended by itself."""
    app = create_sandbox(key=API_KEY)
    sandbox: Sandbox = app.state.sandbox
    events: list[AnyEvent] = []
    disk = Disk()
    with ExitStack() as stack:
        upstream = stack.enter_context(serving(app))
        server = Traced(directory, f"{upstream}/api/v1/rest")
        stack.callback(server.close)
        crowd, watcher = Crowd(server, sandbox, seed), Watcher(sandbox)
        with crowd.pushing():
            before: Ending | None = None
            for life in lives:
                events.append(Start(at=time.time(), after=before))
                found = _live(life, server, crowd, watcher)
                _replay(found, server, disk)
                events += found
                before = life.ending
                say(
                    f"{len(events):,} operations and answers, {crowd.acknowledged:,} requests acknowledged, {life.ending}"
                )
    watcher.look()
    applied: dict[str, float] = {}
    for sight in watcher.sights:
        for tag in sight.tags if sight.applied else ():
            applied.setdefault(tag, sight.at)
    return Record(events, crowd.people, applied)


def _live(life: Life, server: Traced, crowd: Crowd, watcher: Watcher) -> list[AnyEvent]:
    crowd.sandbox.faults.stand(EVERYBODY, Fault("ok", delay=0.5) if life.slow else None)
    server.live_with(life.settings)
    if life.settings:
        server.await_room()
    else:
        _await(crowd, watcher, life.requests)
    if life.erases:
        person, started = crowd.somebody_finished(), time.time()
        person.erased = (started, float("inf"))
        subprocess.run(
            command("erase", person.email),
            cwd=server.directory,
            env=clean_environ({"SCQ_STORE": server.settings["SCQ_STORE"]}),
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        person.erased = (started, time.time())
        server.await_log_cut()
        _await(crowd, watcher, life.requests // 2)
    return server.die(life.ending)


def _await(crowd: Crowd, watcher: Watcher, requests: int) -> None:
    goal = crowd.acknowledged + requests

    def reached() -> bool:
        crowd.check()
        watcher.look()
        return crowd.acknowledged >= goal

    eventually(reached)


def _replay(events: list[AnyEvent], server: Traced, disk: Disk) -> None:
    """Raises `NotUnderstood` if the files are not what the record says. What was under way at a kill is tried both ways."""
    for event in events:
        disk.apply(event)
    there = server.files()
    for event in server.reader.unsure:
        if dict(disk.current()) != there:
            disk.apply(event)
            events.append(event)
    if dict(disk.current()) != there:
        raise NotUnderstood(f"the files of the store are not what {server.directory} says that was written")
