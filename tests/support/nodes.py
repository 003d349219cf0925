"""Several processes on one PostgreSQL, and people who push at all of them."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from proxy.sandbox.api import Sandbox
from tests.support.live import PATIENCE_SECONDS, eventually
from tests.support.server import ADMIN_TOKEN, Browser, Server, arrived, login, new_email, new_id, track


class Node(Server):
    """One of several on a database. `password`: of the database, which no log may show."""

    def __init__(self, directory: Path, upstream: str, dsn: str, *arguments: str, **more: str) -> None:
        directory.mkdir(exist_ok=True)
        self.arguments = arguments
        given = {
            "SCQ_STORE": dsn,
            "SCQ_ADMIN_TOKEN": ADMIN_TOKEN,
            "SCQ_UPSTREAM_TIMEOUT": "20",
        }  # a longer one has longer leases
        super().__init__(directory, upstream, **given | more)

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
        eventually(lambda: self.total() >= enough)

    @contextmanager
    def running(self) -> Iterator[Load]:
        with ThreadPoolExecutor(len(self.acknowledged)) as pool:
            try:
                done = [pool.submit(self._push, email) for email in self.acknowledged]
                yield self
                self._stop.set()
                for each in done:
                    each.result(PATIENCE_SECONDS)
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
        eventually(lambda email=email, pushes=pushes: set(pushes) <= set(arrived(sandbox, email)))  # type: ignore[misc]
        first = {event: at for at, event in reversed(list(enumerate(arrived(sandbox, email))))}
        assert [first[push] for push in pushes] == sorted(first[push] for push in pushes)
