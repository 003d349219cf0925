"""Opening a store that is damaged, replaced or not to be written: set aside, taken or refused, and never harmed."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
from pathlib import Path

import pytest

from proxy.core.decision import Decision
from proxy.errors import StoreRefused, StoreUnavailable
from tests.support.sqlite import (
    DAMAGE,
    PAGE,
    aside_of,
    can_be_written,
    crash,
    emptied,
    errors,
    health,
    opened,
    push,
    refusal,
    size,
    truncated,
    waiting,
    wal,
)


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


@pytest.mark.parametrize("header", [bytes(PAGE), random.Random(1).randbytes(PAGE)])  # noqa: S311 - any bytes
async def test_a_file_that_was_half_made_when_the_power_failed_is_made_to_the_end(
    tmp_path: Path, header: bytes
) -> None:
    path = tmp_path / "scq.db"
    path.write_bytes(header)  # it has grown, and its first sector has not arrived
    made_of_nothing = struct.pack(">8s5I", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", 0, 1, 0, 512, PAGE)
    (tmp_path / "scq.db-journal").write_bytes(made_of_nothing.ljust(512, b"\0"))
    outbox = await opened(path)
    ids = await push(outbox, 3)
    assert await waiting(outbox) == ids
    assert (await health(outbox)).set_aside == 0
    await outbox.close()


async def test_a_file_that_is_no_database_keeps_what_is_called_its_journal(tmp_path: Path) -> None:
    path, journal = tmp_path / "scq.db", tmp_path / "scq.db-journal"
    path.write_bytes(b"not a database, " * 100)
    journal.write_bytes(b"Dear diary, " * 100)
    with pytest.raises(StoreRefused, match="cannot be read as an SQLite database"):
        await opened(path)
    assert journal.read_bytes() == b"Dear diary, " * 100


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


async def test_a_read_only_place_is_refused_with_what_to_do(small_disk: Path) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", small_disk], check=True)

    remount("ro")
    with pytest.raises(StoreRefused, match=r"Read-only file system.*or change SCQ_STORE"):
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
