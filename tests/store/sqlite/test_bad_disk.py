"""A disk that fails to read, or reads differently each time, simulated by a shim in front of libc. The store stays in place."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.store.sqlite.damage import CHECKED_BYTES
from proxy.store.sqlite.file import StoreFile
from tests.support.shims import built
from tests.support.sqlite import PAGE, aside_of, opened, overwrite, push, waiting

OPENS = """
import asyncio, logging, sys
from pathlib import Path
from tests.support.shims import built
from tests.support.sqlite import opened, waiting

async def main():
    outbox = await opened(Path(sys.argv[1]))
    print(len(await waiting(outbox)))
    await outbox.close()

logging.basicConfig(level="INFO")
asyncio.run(main())
"""
WAITING = "print(len(await waiting(outbox)))"
ADOPTS = "print([each async for each in outbox.adopt(Path(sys.argv[1]).with_name('old.db'))])"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("bad_disk.c", tmp_path_factory.mktemp("shim"))


async def healthy(path: Path) -> list[str]:
    outbox = await opened(path)
    await asyncio.gather(*(push(outbox, address=f"{number}@example.com") for number in range(300)))
    ids = await waiting(outbox)
    await outbox.close()
    return ids


def opens(path: Path, shim: Path, **faults: str) -> subprocess.CompletedProcess[str]:
    return run(OPENS, path, shim, **faults)


def run(script: str, path: Path, shim: Path, **faults: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"LD_PRELOAD": str(shim), "EIO_FILE": str(path), "EIO_EVERY": "60", "EIO_TIMES": "0"}
    arguments = [sys.executable, "-c", script, str(path)]
    where = Path(__file__).parents[3]
    return subprocess.run(
        arguments, env=environ | faults, cwd=where, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("every", ["7", "60"])
async def test_a_read_error_is_not_damage(tmp_path: Path, shim: Path, every: str) -> None:
    ids = await healthy(tmp_path / "scq.db")
    done = opens(tmp_path / "scq.db", shim, EIO_EVERY=every, EIO_TIMES="1000000")
    assert aside_of(tmp_path / "scq.db") == []
    assert done.returncode == 0 or "StoreRefused" in done.stderr
    assert done.returncode == 0 or "Input/output error" in done.stderr or "disk I/O error" in done.stderr
    outbox = await opened(tmp_path / "scq.db")
    assert await waiting(outbox) == ids
    await outbox.close()


async def test_a_store_opens_once_its_disk_can_be_read_again(tmp_path: Path, shim: Path) -> None:
    ids = await healthy(tmp_path / "scq.db")
    done = opens(tmp_path / "scq.db", shim, EIO_EVERY="7", EIO_TIMES="2")
    assert (done.returncode, done.stdout) == (0, f"{len(ids)}\n"), done.stderr
    assert aside_of(tmp_path / "scq.db") == []


async def test_a_disk_that_reads_differently_each_time_is_not_damage(tmp_path: Path, shim: Path) -> None:
    ids = await healthy(tmp_path / "scq.db")
    done = opens(tmp_path / "scq.db", shim, EIO_FLIP="1")
    assert aside_of(tmp_path / "scq.db") == []
    assert done.returncode == 1
    assert "StoreRefused" in done.stderr
    outbox = await opened(tmp_path / "scq.db")
    assert await waiting(outbox) == ids
    await outbox.close()


async def test_a_file_on_a_disk_that_fails_now_and_then_is_taken_back(tmp_path: Path, shim: Path) -> None:
    ids = await healthy(tmp_path / "old.db")
    await (await opened(tmp_path / "scq.db")).close()
    script = OPENS.replace(WAITING, ADOPTS)
    done = run(script, tmp_path / "scq.db", shim, EIO_FILE=str(tmp_path / "old.db"), EIO_EVERY="3", EIO_TIMES="1000000")
    assert done.returncode == 0, done.stderr
    outbox = await opened(tmp_path / "scq.db")
    assert await waiting(outbox) == ids
    await outbox.close()


def test_a_file_too_large_to_be_checked_is_set_aside_once_sqlite_has_complained_twice(tmp_path: Path) -> None:
    path = tmp_path / "scq.db"
    file = StoreFile(path, create=True)
    file.open().close()
    pages = CHECKED_BYTES // PAGE + 1
    overwrite(path, 28, pages.to_bytes(4, "big"))
    with path.open("r+b") as store:
        store.truncate(pages * PAGE)
    malformed = sqlite3.DatabaseError("database disk image is malformed")
    malformed.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    file.open(after=malformed).close()
    assert aside_of(path) == []
    file.open(after=malformed).close()
    assert aside_of(path) != []
    file.release()
