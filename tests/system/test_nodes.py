"""Several processes on one PostgreSQL: workers, roles, commands from anywhere, and what holds across nodes."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from tests.support import postgres
from tests.support.live import eventually, serving
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    Browser,
    Server,
    arrived,
    arrives,
    clean_environ,
    command,
    login,
    new_email,
    new_id,
    requests_about,
    track,
)

SECONDS = 60


@pytest.fixture(scope="module")
def sandbox_app() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=API_KEY)
    with serving(app) as url:
        yield app.state.sandbox, f"{url}/api/v1/rest"


@pytest.fixture
def sandbox(sandbox_app: tuple[Sandbox, str]) -> Iterator[Sandbox]:
    yield sandbox_app[0]
    sandbox_app[0].heal()


@pytest.fixture
def upstream(sandbox_app: tuple[Sandbox, str]) -> str:
    return sandbox_app[1]


@pytest.fixture
def dsn() -> str:
    return postgres.database()


class Node(Server):
    """One of several on a database. `password`: of the database, which no log may show."""

    def __init__(self, directory: Path, upstream: str, dsn: str, *arguments: str, **more: str) -> None:
        directory.mkdir(exist_ok=True)
        self.arguments = arguments
        super().__init__(directory, upstream, SCQ_STORE=dsn, SCQ_ADMIN_TOKEN=ADMIN_TOKEN, **more)

    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def metrics(self) -> str:
        answer = self.client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
        assert answer.status_code == 200
        return answer.text


@contextmanager
def node(directory: Path, upstream: str, dsn: str, *arguments: str, **more: str) -> Iterator[Node]:
    started = Node(directory, upstream, dsn, *arguments, **more)
    try:
        started.start()
        yield started
    finally:
        started.close()
        password = re.search(":([^:@/]+)@", dsn)
        assert password is not None
        assert password[1] not in started.log


def scq(directory: Path, settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = clean_environ(settings)
    ran = command(*arguments)
    return subprocess.run(ran, cwd=directory, env=environ, capture_output=True, text=True, check=False, timeout=SECONDS)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Load:
    """People who log in and push, each one push after another, and again until it is acknowledged, as the script does."""

    def __init__(self, nodes: Sequence[Server], people: int) -> None:
        self._nodes = itertools.cycle(nodes)
        self._stop, self._given_up = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: dict[str, list[str]] = {new_email(): [] for _ in range(people)}
        self.retries: list[str] = []
        self.wrong: list[str] = []

    def total(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    def goes_on(self, pushes: int = 20) -> None:
        """Waits until so many more are acknowledged."""
        enough = self.total() + pushes
        eventually(lambda: self.total() >= enough, SECONDS)

    @contextmanager
    def running(self) -> Iterator[Load]:
        with ThreadPoolExecutor(len(self.acknowledged)) as pool:
            try:
                done = [pool.submit(self._push, email) for email in self.acknowledged]
                yield self
                self._stop.set()
                for each in done:
                    each.result(SECONDS)
            finally:
                self._stop.set()
                self._given_up.set()

    def _push(self, email: str) -> None:
        with self._lock:
            browser = Browser(next(self._nodes))
        self._until_accepted(browser, login(email))
        for number in itertools.count():
            if self._stop.is_set():
                return
            self._until_accepted(browser, track(f"cart-{number}"))
            self.acknowledged[email].append(f"+cart-{number}")

    def _until_accepted(self, browser: Browser, call: object) -> None:
        ids = [new_id()]
        while not self._given_up.is_set():
            with self._lock:
                browser.server = next(self._nodes)
            why = "connection lost"
            with suppress(httpx.TransportError):
                answer = browser.request(call, ids=ids)
                if answer.status_code == 202:
                    (result,) = browser.adopt(answer)
                    if result["status"] not in ("accepted", "duplicate"):
                        self.wrong.append(str(result))
                    return
                why = str(answer.status_code)
            self.retries.append(why)
            self._given_up.wait(0.5)


def judge(load: Load, sandbox: Sandbox) -> None:
    """Nothing acknowledged is lost, and each person's pushes took effect in order, whatever was sent twice."""
    assert load.wrong == []
    assert load.total() > 0
    for email, pushes in load.acknowledged.items():
        eventually(lambda email=email, pushes=pushes: set(pushes) <= set(arrived(sandbox, email)), SECONDS)  # type: ignore[misc]
        first = {event: at for at, event in reversed(list(enumerate(arrived(sandbox, email))))}
        assert [first[push] for push in pushes] == sorted(first[push] for push in pushes)


# Workers


def test_workers_serve_one_port_and_stop_together(tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str) -> None:
    with node(tmp_path / "node", upstream, dsn, "--workers", "2") as one:
        email = new_email()
        browsers = [Browser(one) for _ in range(4)]
        for browser in browsers:
            browser.logs_in(email)
        for number, browser in enumerate(browsers):
            assert browser.statuses(track(f"cart-{number}")) == ["accepted"]
        arrives(sandbox, email, "+cart-3")
        assert [event for event in arrived(sandbox, email) if event.startswith("+")] == [f"+cart-{n}" for n in range(4)]
        workers = eventually(lambda: pids if len(pids := children(one.pid())) == 2 else [])
        assert one.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        assert ", 2 workers" in one.log


def test_a_worker_that_is_killed_under_load_is_replaced_and_nothing_acknowledged_is_lost(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    with node(tmp_path / "node", upstream, dsn, "--workers", "2") as one:
        load = Load([one], 4)
        with load.running():
            for killed in (1, 2, 3):
                load.goes_on()
                os.kill(children(one.pid())[0], signal.SIGKILL)
                eventually(lambda killed=killed: one.log.count("is replaced") == killed)  # type: ignore[misc]
            load.goes_on()
        assert set(load.retries) <= {"connection lost"}
        judge(load, sandbox)


# Roles


def test_one_takes_pushes_and_another_sends_them(tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str) -> None:
    with node(tmp_path / "front", upstream, dsn, "--no-delivery") as front:
        email = new_email()
        browser = Browser(front)
        browser.logs_in(email)
        assert browser.statuses(track("cart-1")) == ["accepted"]
        assert arrived(sandbox, email) == []
        metrics = front.metrics()
        assert "scq_waiting 2.0" in metrics
        assert "scq_upstream" not in metrics
        assert "forwarder" not in metrics
        page = front.client.get(
            "/scq/status", headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": "text/html"}
        ).text
        assert "forwarder" not in page
        with delivering(front) as deliver:
            arrives(sandbox, email, "+cart-1")
            deliver.send_signal(signal.SIGTERM)
            assert deliver.wait(SECONDS) == 0


@contextmanager
def delivering(front: Node) -> Iterator[subprocess.Popen[bytes]]:
    with front.log_path.open("ab") as log:
        process = subprocess.Popen(
            command("deliver"), cwd=front.directory, env=clean_environ(front.settings), stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_forwarder_that_is_stopped_waits_for_the_request_on_the_wire(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str, number: signal.Signals
) -> None:
    with node(tmp_path / "front", upstream, dsn, "--no-delivery", SCQ_FIELDS="Visits") as front:
        email = new_email()
        sandbox.stand(email, Fault("ok", delay=1.0))
        Browser(front).logs_in(email, customFields={"Visits": "++1"})
        with delivering(front) as deliver:
            eventually(lambda: "Delivering" in front.log and requests_about(sandbox, email))
            deliver.send_signal(number)
            assert deliver.wait(SECONDS) == 0
        said = scq(tmp_path, {"SCQ_STORE": dsn}, "status", "--json")
        report = json.loads(said.stdout)
        assert (report["waiting"], report["dead"], report["counters"]["delivered"]) == (0, 0, 1)


# Commands


def test_commands_work_on_the_database_from_any_directory(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    email = new_email()
    sandbox.stand(email, Fault(status=400))
    with node(tmp_path / "node", upstream, dsn) as one:
        assert one.client.get("/readyz").status_code == 200
        browser = Browser(one)
        browser.logs_in(email)
        elsewhere, given = tmp_path, {"SCQ_STORE": dsn}
        eventually(lambda: json.loads(scq(elsewhere, given, "status", "--json").stdout)["dead"] == 1)
        said = scq(elsewhere, given, "status")
        assert said.returncode == 1
        assert "1 dead letter: refused by SendX" in said.stdout
        assert "This is what the database says." in said.stdout
        (line,) = scq(elsewhere, given, "dead", "list", "--json").stdout.splitlines()
        assert json.loads(line)["contact"] == email
        sandbox.heal()
        assert "Replayed 1 dead letter" in scq(elsewhere, given, "dead", "replay", "--all").stdout
        arrives(sandbox, email, "identify")
        browser.statuses(["track", {"addTags": ["cart-1"]}])
        said = scq(elsewhere, given, "erase", email)
        assert said.returncode == 0
        assert "Erased." in said.stdout
        assert re.fullmatch(r"Store: PostgreSQL at 127\.0\.0\.1:\d+/test_\d+\n", said.stderr)
        assert 'scq_pushes_total{to="accepted"} 2.0' in one.metrics()


def test_status_tells_that_sending_is_halted_although_it_asks_no_node(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    with node(tmp_path / "node", upstream, dsn) as one:
        email = new_email()
        sandbox.stand(email, Fault(status=401))
        Browser(one).logs_in(email)
        eventually(lambda: "Sending is halted" in one.log)
        said = eventually(lambda: scq(tmp_path, {"SCQ_STORE": dsn}, "status").stdout)
        eventually(lambda: "Sending is halted" in scq(tmp_path, {"SCQ_STORE": dsn}, "status").stdout)
        assert "delivered so far" in said


def test_the_schema_is_made_once_and_serve_asks_for_it(tmp_path: Path, upstream: str) -> None:
    dsn = postgres.postgres().empty_database()
    settings = Node(tmp_path / "node", upstream, dsn, SCQ_IDENTIFY="asserted").settings
    for arguments in (["serve"], ["serve", "--workers", "3"], ["deliver"], ["status"]):
        said = scq(tmp_path, settings, *arguments)
        assert said.returncode == 2
        assert said.stderr.count("run scq-proxy migrate") == 1
    said = scq(tmp_path, settings, "check")
    assert said.returncode == 1
    assert "mend store: The database has no tables for scq-proxy yet: run scq-proxy migrate." in said.stdout
    assert "The schema was made (version" in scq(tmp_path, {"SCQ_STORE": dsn}, "migrate").stdout
    assert "up to date" in scq(tmp_path, {"SCQ_STORE": dsn}, "migrate").stdout
    said = scq(tmp_path, settings, "check")
    assert said.returncode == 0, said.stdout
    assert re.search("^ok +store: an acknowledged push is in PostgreSQL.*fsync on", said.stdout, re.MULTILINE)


def test_a_server_that_would_lose_pushes_is_refused_or_served_with_a_warning(tmp_path: Path, upstream: str) -> None:
    server = postgres.Server(fsync="off")
    try:
        dsn = server.database()
        settings = Node(tmp_path / "node", upstream, dsn).settings
        said = scq(tmp_path, settings, "serve")
        assert said.returncode == 2
        assert "fsync=off" in said.stderr
        assert "SCQ_STORE_UNSAFE=1" in said.stderr
        said = scq(tmp_path, settings, "check")
        assert said.returncode == 1
        assert "mend store: The server runs with fsync=off" in said.stdout
        with node(tmp_path / "node", upstream, dsn, SCQ_STORE_UNSAFE="1") as one:
            assert "SCQ_STORE_UNSAFE is 1. On this server an acknowledged push can be lost" in one.log
            Browser(one).logs_in(new_email())
            assert "mend SCQ_STORE_UNSAFE is 1" in scq(tmp_path, one.settings, "check").stdout
    finally:
        server.remove()


def test_a_database_that_is_away_is_told_by_readyz_and_come_back_to(tmp_path: Path, upstream: str) -> None:
    server = postgres.Server()
    try:
        with node(tmp_path / "node", upstream, server.database()) as one:
            server.stop()
            answer = eventually(lambda: answer if (answer := one.client.get("/readyz")).status_code == 503 else None)
            assert answer is not None
            assert "Retry-After" in answer.headers
            assert one.client.get("/healthz").status_code == 200
            assert "scq_store_up 0.0" in one.metrics()
            assert Browser(one).request(login(new_email())).status_code == 503
            server.start()
            eventually(lambda: one.client.get("/readyz").status_code == 200, SECONDS)
            Browser(one).logs_in(new_email())
    finally:
        server.remove()


# What holds across nodes


def test_the_rate_of_requests_to_sendx_is_that_of_all_nodes_together(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    emails = [new_email() for _ in range(40)]
    with node(tmp_path / "front", upstream, dsn, "--no-delivery", SCQ_UPSTREAM_RATE="20") as front:
        for email in emails:
            Browser(front).logs_in(email)
        with delivering(front), delivering(front), delivering(front):
            for email in emails:
                arrives(sandbox, email, "identify", SECONDS)
    times = sorted(r.time.timestamp() for r in sandbox.requests if r.contact in set(emails))
    assert len(times) == 40
    for first in range(20):  # in any second: 20, what three nodes have in hand, and what is late by a turn
        assert times[first + 20] - times[first] > 0.7, "more than the rate in a second"


def test_nodes_do_not_show_the_password_of_the_database(tmp_path: Path, upstream: str, dsn: str) -> None:
    wrong = dsn.replace("://scq:", "://scq:~hush~")
    said = scq(tmp_path, Node(tmp_path / "node", upstream, wrong).settings, "serve")
    assert said.returncode == 2
    assert "does not accept the user or the password" in said.stderr
    assert "~hush~" not in said.stderr
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM lanes").fetchone() == (0,)
