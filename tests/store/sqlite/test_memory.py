"""A store that runs out of memory refuses, says so, and recovers or ends the process. SQLite's own heap limit simulates it."""

from __future__ import annotations

import _sqlite3
import asyncio
import ctypes
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.errors import StoreUnavailable
from proxy.store.outbox import NO_READS
from proxy.store.sqlite.outbox import SqliteOutbox
from proxy.store.sqlite.recovery import State
from tests.support.live import eventually
from tests.support.sqlite import PATIENCE, can_be_written, delivered, errors, holds, opened, push, waiting

_SQLITE = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
_SQLITE.sqlite3_hard_heap_limit64.argtypes = [ctypes.c_int64]
_SQLITE.sqlite3_memory_used.restype = ctypes.c_int64
TOO_LITTLE = [0, 20_000, 80_000]  # bytes left: not enough to begin; to read; to write


def leave(size: int) -> None:
    """Leaves SQLite so many bytes more than it has."""
    _SQLITE.sqlite3_hard_heap_limit64(_SQLITE.sqlite3_memory_used() + size)


def give_back() -> None:
    _SQLITE.sqlite3_hard_heap_limit64(0)


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    give_back()


async def refused(outbox: SqliteOutbox, address: str) -> None:
    with pytest.raises(StoreUnavailable):
        await push(outbox, address=address)
    with pytest.raises(StoreUnavailable):
        await outbox.ready()


@pytest.mark.parametrize("left", TOO_LITTLE)
async def test_without_memory_nothing_is_ready_and_with_it_all_is(
    tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")
    before = await push(outbox, 50)
    leave(left)
    for number in range(3):
        await refused(outbox, f"{number}@example.com")
    assert "memory ran out" in errors(caplog)
    give_back()
    after = await can_be_written(outbox)
    await outbox.ready()
    assert await waiting(outbox) == before + after
    await outbox.close()


@pytest.mark.parametrize("left", TOO_LITTLE[1:])
async def test_readiness_comes_back_by_itself(tmp_path: Path, left: int) -> None:
    """A load balancer sends no requests here until then."""
    outbox = await opened(tmp_path / "scq.db")
    before = await push(outbox, 50)
    leave(left)
    await refused(outbox, "bob@example.com")
    give_back()

    async def is_ready() -> bool:
        await outbox.ready()
        return True

    await holds(is_ready)
    eventually(lambda: outbox._writer.writes)
    assert await waiting(outbox) == before, "what proves that it can store leaves nothing behind"
    await outbox.close()


async def test_a_store_without_memory_fails_for_good_in_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox, 50)
    leave(20_000)

    async def gave_up() -> bool:
        await refused(outbox, "bob@example.com")
        return outbox._writer.failed.done()

    await holds(gave_up)
    async with asyncio.timeout(PATIENCE):
        assert "memory ran out" in await outbox.failure()
    assert "The process exits" in errors(caplog)
    give_back()
    await outbox.close()


async def test_only_an_append_ends_the_trouble_of_appends(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox)
    (lease,) = (await outbox.claim(1, 10, 60)).leases

    def runs_out(_: sqlite3.Connection) -> None:
        raise MemoryError

    with pytest.raises(StoreUnavailable):
        await outbox._writer.submit(runs_out, NO_READS)

    async def is_settled() -> bool:
        return await outbox.settle(delivered(lease))

    await holds(is_settled)
    assert outbox._writer._recovery.state is State.FAILING
    await push(outbox)
    eventually(lambda: outbox._writer.writes)  # noted behind the answer
    await outbox.close()
