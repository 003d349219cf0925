"""The watch over a real outbox: a line when something begins, now and then while it lasts, and when it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from proxy.core.decision import Decision
from proxy.core.gate import Halt
from proxy.delivery.account import DeliveryState
from proxy.ops.watch import Pace, Watch
from proxy.store.sqlite.outbox import SqliteOutbox, open_outbox
from tests.ops.test_conditions import delivery
from tests.support.sending import until


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[SqliteOutbox]:
    opened = await open_outbox(
        tmp_path / "scq.db", create=True, hold_age=timedelta(days=30), dead_age=timedelta(days=90), min_free_bytes=0
    )
    yield opened
    await opened.close()


class Forwarding:
    """Stands in for the state of a forwarder."""

    def __init__(self) -> None:
        self.state: DeliveryState | None = delivery()

    def is_(self, **more: object) -> None:
        assert self.state is not None
        self.state = msgspec.structs.replace(self.state, **more)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Events and messages, in order."""
    return [(vars(record)["event"], record.getMessage()) for record in caplog.records if "event" in vars(record)]


async def test_each_change_is_logged_when_it_begins_while_it_lasts_and_when_it_ends(
    outbox: SqliteOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    forwarding = Forwarding()
    watch = Watch(outbox, lambda: forwarding.state, lambda: 0, lambda: 0, timeout_seconds=20, pace=Pace(repeat=0))
    assert (await watch.look()).problems == ()
    forwarding.is_(running=False)
    report = await watch.look()
    assert [each.kind for each in report.conditions] == ["forwarder"]
    assert report.problems == (report.conditions[0].sentence,)
    assert (await watch.look()).conditions[0].seconds > 0
    forwarding.is_(running=True)
    assert (await watch.look()).problems == ()
    await watch.look()
    sentence = report.problems[0]
    assert lines(caplog) == [
        ("problem-began", sentence),
        ("problem-lasts", f"Ongoing for 0:00:00: {sentence}"),
        ("problem-ended", f"Resolved after 0:00:00: {sentence}"),
    ]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "WARNING"]
    assert vars(caplog.records[0])["fields"] == {"problem": "forwarder", "seconds": 0.0}


async def test_an_outage_that_is_told_in_other_words_is_not_told_as_resolved(
    outbox: SqliteOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    forwarding = Forwarding()
    watch = Watch(outbox, lambda: forwarding.state, lambda: 0, lambda: 0, timeout_seconds=20)
    forwarding.is_(until=outbox.now() + 60, down=True, last_error="503 Service Unavailable")
    await watch.look()
    forwarding.is_(down=False, halted=Halt.KEY)
    await watch.look()
    forwarding.is_(until=None, halted=None)
    await watch.look()
    assert [(event, message.partition(":")[0]) for event, message in lines(caplog)] == [
        (
            "problem-began",
            "SendX does not answer (503 Service Unavailable). Nothing is lost, and sending resumes by itself; "
            "the next probe is in 60 s. If it lasts, contact SendX.",
        ),
        ("problem-began", "Sending is halted (401)"),
        ("problem-changed", "Turned into another problem (halted) after 0"),
        ("problem-ended", "Resolved after 0"),
    ]


async def test_a_condition_that_lasts_is_repeated_once_a_minute_only(
    outbox: SqliteOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    forwarding = Forwarding()
    forwarding.is_(running=False)
    watch = Watch(outbox, lambda: forwarding.state, lambda: 0, lambda: 0, timeout_seconds=20)
    for _ in range(20):
        await watch.look()
    assert [event for event, _ in lines(caplog)] == ["problem-began"]


async def test_a_store_that_fails_is_a_problem_beside_its_latest_numbers(
    outbox: SqliteOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(outbox, lambda: None, lambda: 0, lambda: 0, timeout_seconds=20)
    before = await watch.look()
    await outbox.close()
    report = await watch.look()
    assert [each.kind for each in report.conditions] == ["store-unavailable"]
    assert "The store is being closed" in report.problems[0]
    assert report.counters == before.counters


async def test_a_store_that_hangs_is_reported_and_asked_once(outbox: SqliteOutbox, tmp_path: Path) -> None:
    watch = Watch(outbox, lambda: None, lambda: 0, lambda: 0, timeout_seconds=20, pace=Pace(patience=0.2))
    release = threading.Event()
    busy = asyncio.create_task(outbox.append(lambda _: Decision((), release.wait(60))))  # as a slow disk would
    await asyncio.sleep(0)
    for _ in range(3):
        (condition,) = (await watch.look()).conditions
        assert condition.kind == "store-unavailable"
        assert "does not answer: check its disk" in condition.sentence
    release.set()
    await busy
    assert (await watch.look()).conditions == ()


async def test_the_watch_goes_on_after_a_defect(outbox: SqliteOutbox, caplog: pytest.LogCaptureFixture) -> None:
    looked = []

    def breaks() -> DeliveryState | None:
        looked.append(True)
        raise KeyError("ann@example.com")

    watch = Watch(outbox, breaks, lambda: 0, lambda: 0, timeout_seconds=20, pace=Pace(look=0))
    running = asyncio.create_task(watch.run())
    await until(lambda: len(looked) >= 3)
    running.cancel()
    assert "The health check failed: KeyError" in caplog.text
    assert "ann@" not in caplog.text
