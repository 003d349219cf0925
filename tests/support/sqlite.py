"""Does things to a store on SQLite, and to servers on one.

Files are really damaged, deleted and replaced; a full disk is a small tmpfs; a crash is a copy of the files as they lie there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from proxy.core.calls import Track
from proxy.core.decision import Decision, Enqueue, Remember
from proxy.core.visitors import Trust
from proxy.errors import StoreUnavailable
from proxy.sandbox.api import Sandbox
from proxy.store.records import Fate, Health, Settled, Settlement
from proxy.store.sqlite.outbox import SqliteOutbox, open_outbox
from tests.support.server import ADMIN_TOKEN, Browser, Server, arrives, clean_environ, command, new_email, new_id, track

PAGE = 4_096
PATIENCE = 120.0
MIB = 1 << 20
Start = Callable[..., AbstractContextManager[Server]]


async def opened(path: Path) -> SqliteOutbox:
    ages = {"hold_age": timedelta(days=30), "dead_age": timedelta(days=90)}
    return await open_outbox(path, create=True, min_free_bytes=0, **ages)


async def push(outbox: SqliteOutbox, count: int = 1, address: str = "ada@example.com") -> list[str]:
    """Returns the ids that were acknowledged, one after the other."""
    ids = []
    for _ in range(count):
        push_id = uuid.uuid4().hex
        enqueue = Enqueue(push_id, address, address, Trust.VERIFIED, Track(("a",)))
        ops = (enqueue, Remember(push_id, "v"))
        await outbox.append(lambda facts, ops=ops: Decision(ops, None))  # type: ignore[misc]
        ids.append(push_id)
    return ids


async def waiting(outbox: SqliteOutbox) -> list[str]:
    """Returns the ids in the store, in order, of all lanes."""
    return await outbox._writer.submit(
        lambda connection: [push_id for (push_id,) in connection.execute("SELECT id FROM pushes ORDER BY seq")]
    )


async def health(outbox: SqliteOutbox) -> Health:
    return (await outbox.stats()).health


async def fill(outbox: SqliteOutbox, size: int) -> None:
    """Writes so many bytes in one transaction, which is more than pushes do in a test's time."""
    await outbox._writer.submit(
        lambda connection: connection.execute("REPLACE INTO meta VALUES ('ballast', zeroblob(?))", (size,)).fetchall()
    )


async def forget_pages(outbox: SqliteOutbox) -> None:
    """Makes SQLite read the file again: its memory hides what happened to it."""
    await outbox._writer.submit(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall())


async def holds(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for the condition. A store that is unavailable at the moment does not answer it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                if await condition():
                    return
            except StoreUnavailable:
                pass
            await asyncio.sleep(0.01)


async def can_be_written(outbox: SqliteOutbox) -> list[str]:
    """Pushes until one is acknowledged, and returns its id."""
    ids: list[str] = []

    async def one() -> bool:
        ids.extend(await push(outbox))
        return True

    await holds(one)
    return ids


def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def crash(path: Path, to: Path) -> Path:
    """Copies to another place what a power cut would leave. Nothing may be written meanwhile."""
    to.mkdir()
    for source in (path, wal(path)):
        shutil.copyfile(source, to / source.name)
        (to / source.name).chmod(0o600)
    return to / path.name


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def aside_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.corrupt-*"))


def errors(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)


def delivered(lease: object) -> Settlement:
    return Settlement(lease, tuple(Settled(each.seq, Fate.DELIVERED) for each in lease.pushes))  # type: ignore[arg-type, attr-defined]


def refusal(settings: dict[str, str]) -> str:
    """Returns what `scq-proxy status` says when it fails."""
    status = subprocess.run(
        command("status"), env=clean_environ(settings), capture_output=True, text=True, timeout=120, check=False
    )
    assert status.returncode == 2
    return status.stderr


def truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(size(path) // 2 // PAGE * PAGE)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def without_magic(path: Path) -> None:
    overwrite(path, 0, b"\xff" * 16)


def scribbled(path: Path) -> None:
    """Damages the tables' own pages, not the first one, where the schema is."""
    for number in range(1, size(path) // PAGE):
        overwrite(path, number * PAGE, b"\xa5" * 64)


DAMAGE = {"truncated": truncated, "without its magic": without_magic, "scribbled over": scribbled}


class Producers:
    """People who push one after the other until it is acknowledged. `promised`: by contact, the tags acknowledged, in order."""

    def __init__(self, server: Server, people: int = 4) -> None:
        self.promised: dict[str, list[str]] = {new_email(): [] for _ in range(people)}
        self.refused = 0
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._produce, args=(email,)) for email in self.promised]

    def __enter__(self) -> Producers:
        for email in self.promised:
            Browser(self._server).logs_in(email)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def total(self) -> int:
        return sum(map(len, self.promised.values()))

    def _produce(self, email: str) -> None:
        browser = Browser(self._server)
        browser.logs_in(email)
        cookie = f"__Host-scq={browser.cookie}"
        headers = {"Origin": browser.origin, "Cookie": cookie}
        with httpx.Client(timeout=120) as client:
            for number in itertools.count():
                pushes = [{"id": new_id(), "call": track(f"cart-{number}")}]
                while not self._stop.is_set():
                    answer = client.post(
                        f"{self._server.url}/scq/push", json={"v": 1, "pushes": pushes}, headers=headers
                    )
                    if answer.status_code == 202:
                        self.promised[email].append(f"+cart-{number}")
                        break
                    assert answer.status_code == 503
                    assert int(answer.headers["Retry-After"]) > 0
                    self.refused += 1
                    self._stop.wait(0.02)
                else:
                    return


def all_arrive(sandbox: Sandbox, promised: dict[str, list[str]]) -> None:
    for email, tags in promised.items():
        found = arrives(sandbox, email, tags[-1])
        first = list(dict.fromkeys(event for event in found if event != "identify"))
        assert first[: len(tags)] == tags


def refuses(server: Server) -> bool:
    pushed = server.post([{"id": new_id(), "call": track("cart-1")}])
    return pushed.status_code == httpx.get(f"{server.url}/readyz").status_code == 503


def accepts(server: Server) -> bool:
    pushed = server.post([{"id": new_id(), "call": track("cart-1")}])
    return pushed.status_code == 202 and httpx.get(f"{server.url}/readyz").status_code == 200


def fill_disk(place: Path, leave: int = 0) -> Path:
    """Writes another program's file, which takes all there is but so many bytes."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while (free := os.statvfs(place).f_bavail * PAGE - leave) > 0:
                file.write(bytes(min(free, MIB)))
        except OSError:
            pass
    return ballast


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).text
