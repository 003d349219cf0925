"""Checkpoints, disk space and the numbers about them. The full disk is a small tmpfs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from proxy.store.sqlite.upkeep import ALARM_FRAMES, CHECKPOINT_FRAMES, LARGE_LOG_BYTES, SPARE_PAGES, Upkeep
from tests.support.live import eventually
from tests.support.server import ADMIN_TOKEN, Browser, new_email
from tests.support.sqlite import (
    MIB,
    PAGE,
    PATIENCE,
    Producers,
    Start,
    accepts,
    all_arrive,
    errors,
    fill,
    fill_disk,
    health,
    holds,
    metrics,
    opened,
    push,
    refuses,
    size,
)


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


async def test_a_log_that_grew_behind_a_reader_is_cut_when_that_leaves_also_under_load(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox)
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await push(outbox)

    with closing(sqlite3.connect(tmp_path / "scq.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM pushes").fetchone()
        await fill(outbox, LARGE_LOG_BYTES + MIB)
        pushing = [asyncio.ensure_future(load()) for _ in range(2)]
        await push(outbox, 10)
        assert size(tmp_path / "scq.db-wal") > LARGE_LOG_BYTES

    async def is_cut() -> bool:
        return size(tmp_path / "scq.db-wal") < LARGE_LOG_BYTES

    await holds(is_cut)
    assert not any(task.done() for task in pushing)
    stop.set()
    await asyncio.gather(*pushing)
    await outbox.close()


async def test_the_sweep_gives_free_pages_back_to_the_disk(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    assert await outbox._writer.submit(lambda c: c.execute("PRAGMA auto_vacuum").fetchone()) == (2,)
    await fill(outbox, 4 * SPARE_PAGES * PAGE)
    await fill(outbox, 1)
    await outbox.sweep()
    free = await outbox._writer.submit(lambda c: int(c.execute("PRAGMA freelist_count").fetchone()[0]))
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


def test_at_the_floor_of_the_disk_ingest_stops_deliveries_go_on_and_it_comes_back_by_itself(
    small_disk: Path, start: Start, sandbox: Sandbox
) -> None:
    with start(small_disk / "scq.db", SCQ_MIN_FREE_MB="4") as server:
        sandbox.faults.stand("*", Fault("ok", delay=0.02))
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
