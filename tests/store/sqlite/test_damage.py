"""Torn, overwritten and broken files: nothing acknowledged is lost without a word, and a damaged file is kept."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from proxy.store.sqlite.damage import Remedy, remedy_for, unreadable_commits
from tests.support.sqlite import (
    DAMAGE,
    PAGE,
    aside_of,
    can_be_written,
    crash,
    errors,
    forget_pages,
    health,
    holds,
    opened,
    overwrite,
    push,
    size,
    waiting,
    wal,
)


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
