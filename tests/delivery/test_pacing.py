"""The pace under SCQ_UPSTREAM_RATE on real parts: nothing is sent, or claimed, before its turn."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from proxy.core.calls import Track
from proxy.sandbox.api import Sandbox
from proxy.store.sqlite.outbox import SqliteOutbox, open_outbox
from tests.support.sending import (
    ANN,
    COUNT,
    HELLO,
    drained,
    forwarder,
    push,
    running,
    until,
)


async def test_requests_keep_to_the_rate_that_is_set(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    for number in range(11):
        await push(outbox, f"{number}@example.com", HELLO)
    started = time.time()
    async with running(forwarder(outbox, url, rate=20.0)):
        await drained(outbox)
    times = sorted(record.time.timestamp() for record in sandbox.requests)
    assert len(times) == 11
    for number, at in enumerate(times):
        assert at >= started + number / 20 - 0.01, "a request came before its turn"


async def test_a_slow_rate_keeps_the_order_of_a_lane_and_a_stop_does_not_wait_for_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO, COUNT, Track(("a",)), HELLO)
    delivery = forwarder(outbox, url, rate=0.1)
    task = asyncio.create_task(delivery.run(), name="delivery-under-test")
    await until(lambda: delivery.state().delivered == 1)
    await delivery.stop(5)
    await task
    assert (await outbox.stats()).dead == 0, "an increment that waits for its turn has not been started"
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [record.path.rpartition("/")[2] for record in sandbox.requests] == [
        "identify",
        "identify",
        "track",
        "identify",
    ]
    contact = sandbox.contacts.get(ANN)
    assert contact is not None
    assert contact.custom_fields == {"Visits": "1"}


async def test_an_increment_that_waits_for_its_turn_is_not_ambiguous_after_a_crash(
    tmp_path: Path, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    ages: dict[str, Any] = {"hold_age": timedelta(days=30), "dead_age": timedelta(days=90), "min_free_bytes": 0}
    outbox = await open_outbox(tmp_path / "rated.db", create=True, **ages)
    for number in range(20):
        await push(outbox, f"{number}@example.com", COUNT)
    task = asyncio.create_task(forwarder(outbox, url, rate=2.0).run(), name="delivery-under-test")
    await until(lambda: sandbox.total >= 1)
    claimed = await outbox._writer.submit(
        lambda connection: connection.execute("SELECT count(*) FROM pushes WHERE started").fetchone()[0]
    )
    assert claimed <= 1, "what has to wait for its turn is not claimed"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await outbox.close()
