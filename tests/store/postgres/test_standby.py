"""A primary with a synchronous standby, which is killed, frozen and promoted: what was answered is on both servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import psycopg
import pytest

from proxy.core.calls import Track
from proxy.core.decision import Decision, Enqueue, Facts, Remember
from proxy.core.visitors import Trust
from proxy.errors import StoreUnavailable
from proxy.store.postgres.outbox import PostgresOutbox, open_outbox
from proxy.store.postgres.schema import assess
from tests.support.live import eventually
from tests.support.postgres import Server, Standby

ANSWER_SECONDS = 0.5  # until the outbox gives up on an answer


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    server = Server()
    yield server
    server.remove()


@pytest.fixture
def servers(primary: Server) -> Iterator[tuple[Server, Standby]]:
    """A primary and a standby of its own that follows it. Tests end with the former killed."""
    primary.kill()
    primary.start()
    primary.wait_for_standbys("")
    standby = Standby(primary)
    yield primary, standby
    standby.remove()


async def opened(dsn: str) -> PostgresOutbox:
    days = timedelta(days=30)
    return await open_outbox(dsn, hold_age=days, dead_age=days, answer_seconds=ANSWER_SECONDS)


async def push(outbox: PostgresOutbox, name: str) -> str:
    """Stores it unless it is known, as a retry of the script does. Returns the answer."""

    def store(facts: Facts) -> Decision[str]:
        if facts.seen(name) is not None:
            return Decision((), "duplicate")
        enqueue = Enqueue(name, f"{name}@example.com", f"{name}@example.com", Trust.VERIFIED, Track(("a",)))
        return Decision((enqueue, Remember(name, "v")), "accepted")

    return (await outbox.append(store)).answer


async def answered(outbox: PostgresOutbox, name: str) -> str:
    """Pushes until it is answered."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await push(outbox, name)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


def stored(dsn: str, what: str = "id FROM seen") -> set[object]:
    """What can be read there. A standby shows what it has some moments later."""
    with suppress(psycopg.OperationalError), psycopg.connect(dsn) as connection:
        return {name for (name,) in connection.execute(f"SELECT {what}".encode())}
    return set()


async def test_what_is_answered_is_on_the_synchronous_standby_whatever_becomes_of_it(
    servers: tuple[Server, Standby], caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby = servers
    dsn = primary.database()
    primary.wait_for_standbys("standby")
    outbox = await opened(dsn)
    name = dsn.rpartition("/")[2]
    assert await answered(outbox, "before") == "accepted"

    assert (await outbox.stats()).health.failovers == 0
    standby.freeze()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await push(outbox, "frozen")
    with pytest.raises(StoreUnavailable):  # its commit waits alone: a connection for each would use them all up
        await push(outbox, "another")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    assert primary.execute(waiting) == [(1,)]
    assert "no synchronous standby confirms" in caplog.text
    assert "no synchronous standby confirms" in (await outbox.stats()).health.problems[0]
    trouble = await asyncio.to_thread(eventually, lambda: asyncio.run(assess(dsn)).trouble)
    assert "no synchronous standby confirms" in trouble, "also to somebody who was not there before"
    standby.wake()
    assert await answered(outbox, "frozen") == "duplicate"
    eventually(lambda: "frozen" in stored(standby.dsn(name)))
    assert (await outbox.stats()).health.problems == ()

    standby.kill()
    lost = [f"lost{number}" for number in range(8)]
    for each in lost:
        with pytest.raises(StoreUnavailable):
            await push(outbox, each)
    # An operator who ends what hangs, or a restart, makes a commit visible that no standby has.
    eventually(lambda: primary.execute(waiting) == [(1,)])
    primary.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    eventually(lambda: "lost0" in stored(dsn))
    for each in lost:
        with pytest.raises(StoreUnavailable):
            await push(outbox, each)
    primary.kill()
    standby.start()
    standby.promote()
    await outbox.close()
    outbox = await opened(standby.dsn(name))
    assert [await push(outbox, each) for each in ("before", "frozen", *lost)] == ["duplicate"] * 2 + ["accepted"] * 8
    await outbox.close()


async def test_what_a_failover_has_lost_is_counted_and_told(
    servers: tuple[Server, Standby], caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby = servers
    both = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    dsn = primary.database().replace(f"127.0.0.1:{primary.port}", both) + "?target_session_attrs=read-write"
    assert "1 standby is asynchronous" in (await assess(dsn)).failover
    outbox = await opened(dsn)
    assert await push(outbox, "before") == "accepted"
    assert (await outbox.stats()).health.failovers == 0  # and the timeline is noted
    eventually(lambda: stored(standby.dsn(_name(dsn)), "timeline FROM timelines") == {1})
    standby.freeze()
    for number in range(7):
        assert await push(outbox, f"lost{number}") == "accepted"
    primary.kill()
    standby.kill()
    standby.start()
    standby.promote()
    assert await answered(outbox, "after") == "accepted"
    health = (await outbox.stats()).health
    told = [record.getMessage() for record in caplog.records if "server has changed" in record.getMessage()]
    assert len(told) == 1
    assert "(timeline 2): 7 of the last 9 pushes that this process acknowledged are lost" in told[0]
    assert (health.failovers, health.lost) == (1, 7)
    assert "at least 7 acknowledged pushes are lost" in health.problems[0]
    await outbox.close()


def _name(dsn: str) -> str:
    return dsn.rpartition("/")[2].partition("?")[0]
