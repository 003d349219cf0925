"""The causes of a store's failure are named: another program's lock, or a lack of file handles, inodes or memory.

While another program has the file locked, everybody is refused together and soon, and it is over when that is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from proxy.errors import StoreRefused, StoreUnavailable, describe
from proxy.store.sqlite.causes import explain
from tests.support.sqlite import can_be_written, delivered, errors, opened, push, waiting

PROMPT_SECONDS = 5.0
LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", LOCKS, str(path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            yield other
        finally:
            other.communicate("\n")


async def refused_after(work: object) -> float:
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="has the store locked"):
        await work  # type: ignore[misc]
    return time.monotonic() - started


async def test_all_callers_are_refused_together_and_soon_while_another_program_has_the_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox)
    (lease,) = (await outbox.claim(1, 10, 60)).leases
    with locked(outbox.path) as other:
        calls = [push(outbox) for _ in range(12)]
        calls += [outbox.ready(), outbox.claim(1, 10, 60), outbox.settle(delivered(lease)), outbox.stats()]  # type: ignore[list-item]
        waited = await asyncio.gather(*map(refused_after, calls))
        assert max(waited) < PROMPT_SECONDS
        later = await asyncio.gather(*(refused_after(push(outbox)) for _ in range(12)))
        assert max(later) < PROMPT_SECONDS
        assert f"python (process {other.pid})" in re.sub(r"python[0-9.]+", "python", errors(caplog))
    ids = await can_be_written(outbox)
    assert await outbox.settle(delivered(lease))
    assert await waiting(outbox) == ids
    await outbox.ready()
    said = [record.getMessage() for record in caplog.records]
    assert sum("is locked by" in each for each in said) == 1
    assert sum("writes again" in each for each in said) == 1
    assert len(said) == 2
    await outbox.close()


async def test_a_lock_that_ends_in_a_moment_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = await opened(tmp_path / "scq.db")
    with locked(outbox.path):
        pushed = asyncio.ensure_future(push(outbox))
        await asyncio.sleep(0.2)
        assert not pushed.done()
    assert await waiting(outbox) == await pushed
    assert errors(caplog) == ""
    await outbox.close()


async def test_a_locked_store_is_not_opened_and_the_refusal_says_why(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    ids = await push(outbox)
    await outbox.close()
    with locked(tmp_path / "scq.db"), pytest.raises(StoreRefused, match=r"locked by .* \(process \d+\)"):
        await opened(tmp_path / "scq.db")
    outbox = await opened(tmp_path / "scq.db")
    assert await waiting(outbox) == ids
    await outbox.close()


@contextmanager
def without_handles() -> Iterator[None]:
    """Lets this process open no more files than it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())), before[1]))
    spare = []
    try:
        with suppress(OSError):
            while True:
                spare.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in spare:
            os.close(descriptor)


async def test_a_process_without_file_handles_is_told_so(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox)
    with without_handles():
        assert (await outbox.stats()).health.set_aside == 0
    await outbox.close()
    with without_handles(), pytest.raises(StoreRefused, match=r"has used all its \d+ file handles: raise its limit"):
        await opened(tmp_path / "scq.db")
    with without_handles(), pytest.raises(StoreRefused, match="has used all its"):
        await opened(tmp_path / "new.db")


def limit_inodes(disk: Path, count: int) -> None:
    subprocess.run(["mount", "-o", f"remount,nr_inodes={count}", disk], check=True)


async def test_a_disk_without_inodes_is_told_from_one_without_space(small_disk: Path) -> None:
    outbox = await opened(small_disk / "scq.db")
    ids = await push(outbox)
    await outbox.close()
    used = os.statvfs(small_disk)
    count = used.f_files - used.f_ffree
    await asyncio.to_thread(limit_inodes, small_disk, count)
    with pytest.raises(StoreRefused, match="out of inodes: delete files"):
        await opened(small_disk / "scq.db")
    with pytest.raises(StoreRefused, match="out of inodes"):
        await opened(small_disk / "new.db")
    await asyncio.to_thread(limit_inodes, small_disk, count + 100)
    outbox = await opened(small_disk / "scq.db")
    assert await waiting(outbox) == ids
    await outbox.close()


def test_a_process_without_memory_is_told_so(tmp_path: Path) -> None:
    error = sqlite3.DatabaseError("out of memory")
    error.sqlite_errorcode = sqlite3.SQLITE_NOMEM
    for failure in (error, MemoryError()):
        assert "memory ran out" in explain(failure, tmp_path / "scq.db")
    assert explain(sqlite3.DatabaseError("no such table"), tmp_path / "scq.db") == "no such table"
    assert explain(None, tmp_path) == "unknown"


def test_what_an_error_of_the_system_means_is_in_the_log_and_what_it_quotes_is_not() -> None:
    assert describe(OSError(24, "?", "ada@example.com")).startswith("OSError (Too many open files) at ")
    assert describe(OSError("ada@example.com")).startswith("OSError at ")
