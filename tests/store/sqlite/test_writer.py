"""A store that fails in use: nothing is acknowledged that is not kept, and it comes back by itself or fails for good."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import StoreRefused, StoreUnavailable
from proxy.sandbox.api import Sandbox
from proxy.store.records import DeadFilter
from tests.support.live import eventually
from tests.support.server import Browser, arrives, new_email, track
from tests.support.sqlite import (
    PATIENCE,
    Producers,
    Start,
    accepts,
    all_arrive,
    can_be_written,
    delivered,
    errors,
    holds,
    metrics,
    opened,
    push,
    size,
    waiting,
    wal,
)


def writes(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("INSERT INTO meta VALUES (?, 'stored')", (name,))


def reads(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("SELECT count(*) FROM meta").fetchone()


def raises(error: Exception) -> Callable[[sqlite3.Connection, str], None]:
    def work(connection: sqlite3.Connection, name: str) -> None:
        writes(connection, name)
        raise error

    return work


def reported(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("…")
    error.sqlite_errorcode = code
    return error


JOBS = {
    "writes": writes,
    "reads": reads,
    "has a defect": raises(ValueError()),
    "breaks a rule": raises(reported(sqlite3.SQLITE_CONSTRAINT)),
    "finds the disk full": raises(reported(sqlite3.SQLITE_FULL)),
    "meets an i/o error": raises(reported(sqlite3.SQLITE_IOERR)),
    "meets damage": raises(reported(sqlite3.SQLITE_CORRUPT)),
}
batches = st.lists(st.lists(st.sampled_from(["writes", *JOBS]), min_size=1, max_size=6), max_size=6)


@settings(max_examples=50)
@given(batches)
def test_what_is_answered_as_stored_is_stored_and_nothing_else(batches: list[list[str]]) -> None:
    async def answered(path: Path) -> set[str]:
        """Submits each batch at once, and returns the names of the writes that were answered as stored."""
        outbox = await opened(path)
        stored = set()
        for number, kinds in enumerate(batches):
            names = [f"{number}/{place}" for place in range(len(kinds))]
            jobs = [
                outbox._writer.submit(partial(lambda work, name, connection: work(connection, name), JOBS[kind], name))
                for kind, name in zip(kinds, names, strict=True)
            ]
            outcomes = await asyncio.gather(*jobs, return_exceptions=True)
            for kind, name, outcome in zip(kinds, names, outcomes, strict=True):
                assert isinstance(outcome, ValueError | StoreUnavailable | None)
                if kind == "writes" and outcome is None:
                    stored.add(name)
        await outbox.close()
        return stored

    with TemporaryDirectory() as directory:
        path = Path(directory, "scq.db")
        stored = asyncio.run(answered(path))
        with closing(sqlite3.connect(path)) as connection:
            assert {name for (name,) in connection.execute("SELECT name FROM meta WHERE value = 'stored'")} == stored


async def test_a_store_that_is_being_closed_finishes_its_jobs_and_takes_no_more(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    before = [asyncio.ensure_future(push(outbox)) for _ in range(3)]
    await asyncio.sleep(0)
    closing_now = asyncio.ensure_future(outbox._writer.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="being closed"):
        await push(outbox)
    await closing_now
    assert all(done.done() and done.result() for done in before)
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


async def test_a_store_that_is_deleted_while_nothing_happens_is_noticed_too(tmp_path: Path) -> None:
    path = tmp_path / "scq.db"
    outbox = await opened(path)
    path.unlink()

    async def is_there_again() -> bool:
        return path.exists()

    await holds(is_there_again)
    await can_be_written(outbox)
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
    assert "The process exits" in errors(caplog)
    assert path.read_bytes() == b"somebody's text, " * 100
    with pytest.raises(StoreUnavailable):
        await push(outbox)
    await outbox.close()


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
            eventually(lambda: "reopened" in server.log, PATIENCE)
            resource.prlimit(server._process.pid, resource.RLIMIT_FSIZE, unlimited)
            counted = producers.total
            eventually(lambda: producers.total > counted + 100, PATIENCE)
        assert "disk I/O error" in server.log
        assert accepts(server)
        all_arrive(sandbox, producers.promised)
        assert "Traceback" not in server.log


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
        assert "keeps failing" in server.log
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
