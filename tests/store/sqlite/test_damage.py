"""Broken files, full disks and moved stores: nothing is acknowledged that is not kept, and ingest comes back by itself.

The files are really damaged, deleted and replaced; the full disk is a small tmpfs; failing writes come from a limit on the file size. A crash
is a copy of the files as they lie there. Servers are real processes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import resource
import shutil
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from proxy.core.calls import Track
from proxy.core.decision import Decision, Enqueue, Remember
from proxy.core.visitors import Trust
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.sandbox.api import Fault, Sandbox, create_sandbox
from proxy.store.records import DeadFilter, Fate, Health, Settled, Settlement
from proxy.store.sqlite.damage import Remedy, remedy_for, unreadable_commits
from proxy.store.sqlite.outbox import SqliteOutbox, open_outbox
from proxy.store.sqlite.upkeep import ALARM_FRAMES, CHECKPOINT_FRAMES, LARGE_LOG_BYTES, SPARE_PAGES, Upkeep
from tests.support.live import eventually, serving
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    Browser,
    Server,
    arrives,
    clean_environ,
    command,
    new_email,
    new_id,
    track,
)

PAGE = 4_096
PATIENCE = 30.0
MIB = 1 << 20


# --- Doing things to a store


async def opened(path: Path) -> SqliteOutbox:
    ages = {"hold_age": timedelta(days=30), "dead_age": timedelta(days=90)}
    return await open_outbox(path, create=True, min_free_bytes=0, **ages)


async def push(outbox: SqliteOutbox, count: int = 1, address: str = "ada@example.com") -> list[str]:
    """Ids that were acknowledged, one after the other."""
    ids = []
    for _ in range(count):
        push_id = uuid.uuid4().hex
        enqueue = Enqueue(push_id, address, address, Trust.VERIFIED, Track(("a",)))
        ops = (enqueue, Remember(push_id, "v"))
        await outbox.append(lambda facts, ops=ops: Decision(ops, None))  # type: ignore[misc]
        ids.append(push_id)
    return ids


async def waiting(outbox: SqliteOutbox) -> list[str]:
    """Ids in the store, in order, of all lanes."""
    return await outbox._thread.submit(
        lambda connection: [push_id for (push_id,) in connection.execute("SELECT id FROM pushes ORDER BY seq")]
    )


async def health(outbox: SqliteOutbox) -> Health:
    return (await outbox.stats()).health


async def fill(outbox: SqliteOutbox, size: int) -> None:
    """Writes so many bytes in one transaction, which is more than pushes do in a test's time."""
    await outbox._thread.submit(
        lambda connection: connection.execute("REPLACE INTO meta VALUES ('ballast', zeroblob(?))", (size,)).fetchall()
    )


async def forget_pages(outbox: SqliteOutbox) -> None:
    """What SQLite still has in memory hides what happened to the file."""
    await outbox._thread.submit(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall())


async def holds(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until it does. A store that is not there at the moment is no answer."""
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
    """What a power cut leaves, at another place. Nothing may be written meanwhile."""
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


# --- What a failure means


def test_each_failure_has_its_remedy() -> None:
    def failed(code: int) -> sqlite3.Error:
        error = sqlite3.OperationalError("…")
        error.sqlite_errorcode = code
        return error

    assert remedy_for(failed(sqlite3.SQLITE_FULL)) is Remedy.MAKE_ROOM
    assert remedy_for(failed(sqlite3.SQLITE_IOERR_FSYNC)) is Remedy.REOPEN
    assert remedy_for(failed(sqlite3.SQLITE_READONLY_DBMOVED)) is Remedy.REOPEN
    assert remedy_for(failed(sqlite3.SQLITE_CORRUPT_VTAB)) is Remedy.SUSPECT
    assert remedy_for(failed(sqlite3.SQLITE_NOTADB)) is Remedy.SUSPECT
    assert remedy_for(failed(sqlite3.SQLITE_CONSTRAINT_UNIQUE)) is Remedy.FAIL
    assert remedy_for(ValueError()) is Remedy.FAIL


# --- Checkpoints and room


async def test_the_log_is_moved_into_the_file_as_it_grows_and_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    for _ in range(8):
        await fill(outbox, CHECKPOINT_FRAMES * PAGE // 2)
    assert size(tmp_path / "scq.db-wal") < 3 * CHECKPOINT_FRAMES * PAGE
    await push(outbox)

    async def all_is_moved() -> bool:
        return (await health(outbox)).log_frames == 0

    await holds(all_is_moved)
    await outbox.close()


def test_the_frames_that_are_counted_are_those_that_sqlite_counts(tmp_path: Path) -> None:
    upkeep = Upkeep(tmp_path / "any.db", min_free_bytes=0)
    with closing(sqlite3.connect(tmp_path / "any.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE any (x)")
        upkeep.attach()
        for size_written in (1, 100_000, 10_000, 1):
            connection.execute("INSERT INTO any VALUES (zeroblob(?))", (size_written,))
            upkeep.after_commit(connection)
            counted = upkeep.health().log_frames
            assert connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone() == (0, counted, counted)
    upkeep.detach()


async def test_a_reader_that_holds_up_the_log_raises_one_alarm_and_its_end_ends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox)
    with closing(sqlite3.connect(tmp_path / "scq.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM pushes").fetchone()
        await fill(outbox, ALARM_FRAMES * PAGE)
        await fill(outbox, ALARM_FRAMES * PAGE)

        async def is_told() -> bool:
            return any("write-ahead log" in problem for problem in (await health(outbox)).problems)

        await holds(is_told)
        await push(outbox, 5)
        assert errors(caplog).count("cannot be moved into the file") == 1
    await holds(lambda: _not(is_told))
    assert (await health(outbox)).log_frames == 0
    await outbox.close()


async def _not(condition: Callable[[], Awaitable[bool]]) -> bool:
    return not await condition()


async def test_a_log_that_grew_large_is_cut_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await fill(outbox, LARGE_LOG_BYTES + MIB)
    assert size(tmp_path / "scq.db-wal") > LARGE_LOG_BYTES

    async def is_cut() -> bool:
        return size(tmp_path / "scq.db-wal") == 0

    await holds(is_cut)
    await push(outbox)
    await outbox.close()


async def test_the_sweep_gives_free_pages_back_to_the_disk(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    assert await outbox._thread.submit(lambda c: c.execute("PRAGMA auto_vacuum").fetchone()) == (2,)
    await fill(outbox, 4 * SPARE_PAGES * PAGE)
    await fill(outbox, 1)
    await outbox.sweep()
    free = await outbox._thread.submit(lambda c: int(c.execute("PRAGMA freelist_count").fetchone()[0]))
    assert SPARE_PAGES // 2 < free <= SPARE_PAGES

    async def is_small() -> bool:
        return size(tmp_path / "scq.db") < 2 * SPARE_PAGES * PAGE

    await holds(is_small)
    await outbox.close()


async def test_the_numbers_say_how_many_jobs_shared_a_commit(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await asyncio.gather(*(push(outbox) for _ in range(100)))
    found = await health(outbox)
    assert found.jobs >= 100
    assert found.commits < found.jobs
    assert found.commit_seconds > 0
    assert (found.failed_commits, found.reopened, found.set_aside, found.problems) == (0, 0, 0, ())
    await outbox.close()


async def test_what_an_acknowledgement_means_here_is_measured(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    facts = (await outbox.durability()).facts
    assert facts["journal_mode"] == "wal"
    assert facts["synchronous"] == "FULL"
    assert facts["free space"].endswith(" GB")
    assert facts["sync"].endswith(" ms")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["scq.db", "scq.db-shm", "scq.db-wal", "scq.db.lock"]
    await outbox.close()


# --- After a crash


async def test_a_torn_tail_of_the_log_costs_nothing_that_was_acknowledged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")
    ids = await push(outbox, 20)
    whole = size(wal(outbox.path))
    late = await push(outbox)
    path = await crash(outbox.path, tmp_path / "crashed")
    await outbox.close()
    with wal(path).open("r+b") as file:
        file.truncate((whole + size(wal(path))) // 2)  # in the middle of the transaction that was being written
    outbox = await opened(path)
    assert await waiting(outbox) == ids
    assert late[0] not in await waiting(outbox)
    await push(outbox)
    await outbox.close()
    assert aside_of(path) == []
    assert errors(caplog) == ""


@pytest.mark.parametrize("damage", ["garbage behind it", "its last frame"])
async def test_garbage_at_the_tail_of_the_log_is_no_reason_to_complain(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")
    ids = await push(outbox, 10)
    path = await crash(outbox.path, tmp_path / "crashed")
    await outbox.close()
    end = size(wal(path))
    overwrite(wal(path), end - PAGE // 2 if damage == "its last frame" else end, os.urandom(PAGE // 2))
    outbox = await opened(path)
    assert await waiting(outbox) == ids[: 9 if damage == "its last frame" else 10]
    await outbox.close()
    assert errors(caplog) == ""


@pytest.mark.parametrize("damage", ["header", "middle"])
async def test_a_log_damaged_before_its_tail_is_said_loudly_and_kept(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")
    ids = await push(outbox, 10)
    middle = size(wal(outbox.path))
    await push(outbox, 10)
    path = await crash(outbox.path, tmp_path / "crashed")
    await outbox.close()
    overwrite(wal(path), 0 if damage == "header" else middle + 100, b"\xff" * 16)
    before = wal(path).read_bytes()
    outbox = await opened(path)
    kept = await waiting(outbox)
    assert kept == (ids if damage == "middle" else [])
    (copy,) = aside_of(path)
    assert copy.read_bytes() == before
    assert copy.stat().st_mode & 0o077 == 0
    assert "pushes acknowledged in them are lost" in errors(caplog)
    assert str(copy) in errors(caplog)
    problems = (await health(outbox)).problems
    assert any("set aside" in problem for problem in problems)
    assert (await waiting(outbox)) + (new := await push(outbox)) == kept + new
    await outbox.close()


def test_a_log_that_is_missing_or_too_short_has_lost_nothing(tmp_path: Path) -> None:
    assert unreadable_commits(tmp_path / "missing-wal", 0) == 0
    (tmp_path / "short-wal").write_bytes(b"7")
    assert unreadable_commits(tmp_path / "short-wal", 0) == 0


def truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(size(path) // 2 // PAGE * PAGE)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def without_magic(path: Path) -> None:
    overwrite(path, 0, b"\xff" * 16)


def scribbled(path: Path) -> None:
    """The tables' own pages, not the first one, where the schema is."""
    for number in range(1, size(path) // PAGE):
        overwrite(path, number * PAGE, b"\xa5" * 64)


DAMAGE = {"truncated": truncated, "without its magic": without_magic, "scribbled over": scribbled}


@pytest.mark.parametrize("kind", [*DAMAGE, "emptied beside its log", "missing beside its log"])
async def test_a_damaged_store_is_set_aside_at_the_start_and_pushes_go_on(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    await push(outbox, 300)
    site_key = outbox.site_key
    if kind in DAMAGE:
        await outbox.close()
        DAMAGE[kind](path)
    else:
        path = await crash(path, tmp_path / "crashed")
        await outbox.close()
        emptied(path) if kind.startswith("emptied") else path.unlink()
    before = path.read_bytes() if path.exists() else b""
    outbox = await opened(path)
    assert await waiting(outbox) == []
    ids = await push(outbox, 3)
    assert await waiting(outbox) == ids
    aside = aside_of(path)
    assert aside[0].read_bytes() == before
    assert f"{path} is damaged" in errors(caplog)
    assert str(aside[0]) in errors(caplog)
    found = await health(outbox)
    assert found.set_aside == 1
    assert any(aside[0].name in problem for problem in found.problems)
    if kind == "scribbled over":
        assert len(outbox.site_key) == len(site_key)
    await outbox.close()
    again = await opened(path)
    assert await waiting(again) == ids
    assert (await health(again)).set_aside == 1, "whoever looks later is told too"
    await again.close()


async def test_a_command_leaves_a_damaged_store_as_it_is(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox, 10)
    await outbox.close()
    truncated(tmp_path / "scq.db")
    before = (tmp_path / "scq.db").read_bytes()
    said = await asyncio.to_thread(refusal, {"SCQ_STORE": f"sqlite:///{tmp_path}/scq.db"})
    assert "is damaged" in said
    assert (tmp_path / "scq.db").read_bytes() == before
    assert aside_of(tmp_path / "scq.db") == []


async def test_visitors_keep_their_ids_if_the_damaged_store_still_tells_its_key(tmp_path: Path) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    await push(outbox, 300)
    site_key = outbox.site_key
    await outbox.close()
    with path.open("r+b") as file:
        file.truncate(size(path) - 10 * PAGE)
    outbox = await opened(path)
    assert (await health(outbox)).set_aside == 1
    assert outbox.site_key == site_key
    await outbox.close()


# --- While it is in use


@pytest.mark.parametrize("kind", ["truncated", "scribbled over"])
async def test_a_store_that_breaks_in_use_is_set_aside_and_pushes_go_on(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    await push(outbox, 300)
    site_key = outbox.site_key

    async def all_is_in_the_file() -> bool:
        return (await health(outbox)).log_frames == 0

    await holds(all_is_in_the_file)
    DAMAGE[kind](path)
    await forget_pages(outbox)
    ids = await can_be_written(outbox)
    assert await waiting(outbox) == ids
    assert "is damaged" in errors(caplog)
    assert outbox.site_key == site_key
    found = await health(outbox)
    assert (found.reopened, found.set_aside) == (1, 1)
    await outbox.close()


@pytest.mark.parametrize("names", [["scq.db"], ["scq.db", "scq.db-wal", "scq.db-shm", "scq.db.lock"]])
async def test_nothing_is_acknowledged_into_a_deleted_store(
    tmp_path: Path, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    await push(outbox, 5)
    site_key = outbox.site_key
    for name in names:
        (tmp_path / name).unlink()
    with pytest.raises(StoreUnavailable):
        await push(outbox)
    ids = await can_be_written(outbox)
    assert await waiting(outbox) == ids
    assert outbox.site_key == site_key
    with pytest.raises(StoreRefused, match="in use by another process"):
        await opened(path)
    assert "deleted or replaced" in errors(caplog)
    assert f"{path} is gone" in errors(caplog)
    await outbox.close()
    outbox = await opened(path)
    assert await waiting(outbox) == ids
    await outbox.close()


async def test_a_deleted_log_costs_nothing_and_neither_does_a_deleted_lock(tmp_path: Path) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    ids = await push(outbox, 5)
    for name in ("scq.db-wal", "scq.db.lock"):
        (tmp_path / name).unlink()
        with pytest.raises(StoreUnavailable):
            await outbox.append(lambda facts: Decision((), None))
        ids += await can_be_written(outbox)
        assert await waiting(outbox) == ids
    with pytest.raises(StoreRefused, match="in use by another process"):
        await opened(path)
    await outbox.close()
    outbox = await opened(path)
    assert await waiting(outbox) == ids
    await outbox.close()


async def test_a_store_that_is_deleted_while_nothing_happens_is_noticed_too(tmp_path: Path) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    path.unlink()

    async def is_there_again() -> bool:
        return path.exists()

    await holds(is_there_again)
    await can_be_written(outbox)
    await outbox.close()


async def test_a_store_put_in_its_place_is_taken_with_its_log(tmp_path: Path) -> None:
    path, other = tmp_path / "scq.db", tmp_path / "other" / "scq.db"
    other.parent.mkdir()
    spare = await opened(other)
    ids = await push(spare, 5)
    site_key = spare.site_key
    copy = await crash(other, tmp_path / "copy")
    await spare.close()
    outbox = await opened(path)
    await push(outbox)
    wal(copy).rename(wal(path))
    copy.rename(path)
    ids += await can_be_written(outbox)
    assert await waiting(outbox) == ids
    assert outbox.site_key == site_key
    await outbox.close()


async def test_a_lease_of_a_store_that_is_gone_changes_nothing_in_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    await push(outbox)
    (old,) = (await outbox.claim(1, 10, 60)).leases
    path.unlink()
    ids = await can_be_written(outbox)
    (new,) = (await outbox.claim(1, 10, 60)).leases
    assert (new.lane, new.pushes[0].seq) == (old.lane, old.pushes[0].seq), "the very numbers that could be mixed up"
    assert not await outbox.settle(delivered(old))
    assert await waiting(outbox) == ids
    assert await outbox.settle(delivered(new))
    await outbox.close()


async def test_a_lease_outlives_the_store_being_opened_again(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox)
    (lease,) = (await outbox.claim(1, 10, 60)).leases
    wal(outbox.path).unlink()
    await can_be_written(outbox)
    assert (await outbox.claim(1, 10, 60)).leases == ()
    assert await outbox.settle(delivered(lease))
    assert await outbox.dead_letters(DeadFilter(), 0, 1) == []
    await outbox.close()


def delivered(lease: object) -> Settlement:
    return Settlement(lease, tuple(Settled(each.seq, Fate.DELIVERED) for each in lease.pushes))  # type: ignore[arg-type, attr-defined]


async def test_a_store_that_cannot_be_opened_again_fails_for_good_and_leaves_what_it_found_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    await push(outbox)
    path.unlink()
    path.write_bytes(b"somebody's text, " * 100)
    async with asyncio.timeout(PATIENCE):
        reason = await outbox.failure()
    assert str(path) in reason
    assert "The process ends" in errors(caplog)
    assert path.read_bytes() == b"somebody's text, " * 100
    with pytest.raises(StoreUnavailable):
        await push(outbox)
    await outbox.close()


# --- Places


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN."""
    capabilities = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    return bool(int(capabilities.split()[1], 16) >> 21 & 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    if not may_mount() and "CI" not in os.environ:
        pytest.skip("needs the right to mount a tmpfs: run as root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def refusal(settings: dict[str, str]) -> str:
    """What `scq-proxy status` says when it cannot do it."""
    status = subprocess.run(command("status"), env=clean_environ(settings), capture_output=True, text=True, timeout=30)
    assert status.returncode == 2
    return status.stderr


async def test_a_read_only_place_is_refused_with_what_to_do(small_disk: Path) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", small_disk], check=True)

    remount("ro")
    with pytest.raises(StoreRefused, match=r"Read-only file system.*let SCQ_STORE name another place"):
        await opened(small_disk / "scq.db")
    remount("rw")
    outbox = await opened(small_disk / "scq.db")
    ids = await push(outbox)
    await outbox.close()
    remount("ro")
    with pytest.raises(StoreRefused, match="must be writable"):
        await opened(small_disk / "scq.db")
    settings = {"SCQ_STORE": f"sqlite:///{small_disk}/scq.db"}
    said = await asyncio.to_thread(refusal, settings)
    assert "must be writable" in said
    remount("rw")
    outbox = await opened(small_disk / "scq.db")
    assert await waiting(outbox) == ids
    await outbox.close()


# --- Servers


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
def start(sandbox_app: tuple[Sandbox, str], tmp_path: Path) -> Callable[..., AbstractContextManager[Server]]:
    @contextmanager
    def started(store: Path, **more: str) -> Iterator[Server]:
        server = Server(tmp_path, sandbox_app[1], SCQ_STORE=f"sqlite:///{store}", SCQ_ADMIN_TOKEN=ADMIN_TOKEN, **more)
        try:
            server.start()
            yield server
        finally:
            server.close()

    return started


Start = Callable[..., AbstractContextManager[Server]]


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
        with httpx.Client() as client:
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
        found = arrives(sandbox, email, tags[-1], PATIENCE * 2)
        first = list(dict.fromkeys(event for event in found if event != "identify"))
        assert first[: len(tags)] == tags


def refuses(server: Server) -> bool:
    pushed = server.post([{"id": new_id(), "call": track("cart-1")}])
    return pushed.status_code == httpx.get(f"{server.url}/readyz").status_code == 503


def accepts(server: Server) -> bool:
    pushed = server.post([{"id": new_id(), "call": track("cart-1")}])
    return pushed.status_code == 202 and httpx.get(f"{server.url}/readyz").status_code == 200


def fill_disk(place: Path, leave: int = 0) -> Path:
    """Another program's file, which takes all there is but so many bytes."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while (free := os.statvfs(place).f_bavail * PAGE - leave) > 0:
                file.write(bytes(min(free, MIB)))
        except OSError:
            pass
    return ballast


def test_at_the_floor_of_the_disk_ingest_stops_deliveries_go_on_and_it_comes_back_by_itself(
    small_disk: Path, start: Start, sandbox: Sandbox
) -> None:
    with start(small_disk / "scq.db", SCQ_MIN_FREE_MB="4") as server:
        sandbox.stand("*", Fault("ok", delay=0.02))
        with Producers(server) as producers:
            eventually(lambda: producers.total > 200)
            ballast = fill_disk(small_disk, leave=3 * MIB)
            eventually(lambda: producers.refused > 20)
            assert refuses(server)
            counted = producers.total
            all_arrive(sandbox, {email: list(tags) for email, tags in producers.promised.items()})
            assert producers.total == counted
            status = httpx.get(f"{server.url}/scq/status", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()
            assert status["waiting"] == 0
            assert any("disk is nearly full" in problem for problem in status["problems"])
            ballast.unlink()
            eventually(lambda: producers.total > counted + 20, PATIENCE)
            assert accepts(server)
        all_arrive(sandbox, producers.promised)
        assert "Traceback" not in server.log


def test_a_disk_without_a_byte_left_loses_no_acknowledged_push(
    small_disk: Path, start: Start, sandbox: Sandbox
) -> None:
    with start(small_disk / "scq.db", SCQ_MIN_FREE_MB="1") as server:
        with Producers(server) as producers:
            for _ in range(3):
                counted = producers.total
                eventually(lambda counted=counted: producers.total > counted + 100, PATIENCE)  # type: ignore[misc]
                refused = producers.refused
                ballast = fill_disk(small_disk)
                eventually(lambda refused=refused: producers.refused > refused + 20, PATIENCE)  # type: ignore[misc]
                eventually(lambda: refuses(server), PATIENCE)
                assert not server.died()
                ballast.unlink()
                eventually(lambda: accepts(server), PATIENCE)
        server.kill()
        server.start()
        all_arrive(sandbox, producers.promised)
        assert "Traceback" not in server.log


def test_writes_that_fail_are_refused_and_the_store_is_opened_again(
    tmp_path: Path, start: Start, sandbox: Sandbox
) -> None:
    with start(tmp_path / "scq.db", SCQ_LOG_LEVEL="info") as server:
        assert server._process is not None
        unlimited = resource.prlimit(server._process.pid, resource.RLIMIT_FSIZE)
        with Producers(server) as producers:
            eventually(lambda: producers.total > 100)
            # Every write beyond this place in a file fails from now on. The log of the server stays below it.
            limit = max(size(server.log_path) + 65_536, size(tmp_path / "scq.db-wal") // 2)
            resource.prlimit(server._process.pid, resource.RLIMIT_FSIZE, (limit, unlimited[1]))
            eventually(lambda: "opened again" in server.log, PATIENCE)
            resource.prlimit(server._process.pid, resource.RLIMIT_FSIZE, unlimited)
            counted = producers.total
            eventually(lambda: producers.total > counted + 100, PATIENCE)
        assert "disk I/O error" in server.log
        assert accepts(server)
        all_arrive(sandbox, producers.promised)
        assert "Traceback" not in server.log


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).text


def test_a_server_whose_store_fails_for_good_ends_with_1_and_says_why(
    tmp_path: Path, start: Start, sandbox: Sandbox
) -> None:
    with start(tmp_path / "scq.db") as server:
        Browser(server).logs_in(new_email())
        (tmp_path / "scq.db").unlink()
        (tmp_path / "scq.db").write_text("somebody's text, " * 1_000)
        eventually(lambda: "scq_store_up 0.0" in metrics(server), PATIENCE)
        assert server._process is not None
        assert server._process.wait(PATIENCE) == 1
        assert "fails again and again" in server.log
        assert "Traceback" not in server.log


def test_a_server_whose_store_is_deleted_refuses_then_goes_on_in_a_new_one(
    tmp_path: Path, start: Start, sandbox: Sandbox
) -> None:
    with start(tmp_path / "scq.db") as server:
        ann, browser = new_email(), Browser(server)
        browser.logs_in(ann)
        arrives(sandbox, ann, "identify")
        for name in ("scq.db", "scq.db-wal", "scq.db-shm"):
            (tmp_path / name).unlink()
        eventually(lambda: accepts(server), PATIENCE)
        assert browser.statuses(track("cart-1")) == ["accepted"], "the cookie still counts"
        arrives(sandbox, ann, "+cart-1", PATIENCE)
        assert "is gone: a new store takes its place" in server.log


def test_the_metrics_tell_of_commits_and_of_the_disk(tmp_path: Path, start: Start, sandbox: Sandbox) -> None:
    with start(tmp_path / "scq.db") as server:
        Browser(server).logs_in(new_email())
        text = metrics(server)
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("scq_store"))
    assert float(found["scq_store_commits_total"]) > 0
    assert float(found["scq_store_jobs_total"]) >= float(found["scq_store_commits_total"])
    assert float(found["scq_store_commit_seconds_total"]) > 0
    assert float(found["scq_store_headroom_bytes"]) > 0
    assert float(found["scq_store_log_frames"]) >= 0
    assert float(found["scq_store_up"]) == 1
    for name in ("failed_commits_total", "reopened_total", "set_aside"):
        assert float(found[f"scq_store_{name}"]) == 0
