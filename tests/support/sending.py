"""A forwarder on real parts for the tests: what it is made of, and how to wait for what it does."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from proxy.config.types import Dialect, Secret
from proxy.core.calls import Attributes, Track
from proxy.core.decision import Decision, Enqueue, Facts
from proxy.core.emails import lane_key
from proxy.core.gate import Closure
from proxy.core.retry import GiveUp
from proxy.core.turns import Share
from proxy.core.visitors import Trust
from proxy.delivery.account import Account
from proxy.delivery.forwarder import Forwarder
from proxy.delivery.lane import Shared
from proxy.delivery.pacing import Pacer
from proxy.delivery.sendx import Upstream
from proxy.errors import StoreUnavailable
from proxy.sandbox.api import Recorded
from proxy.store.outbox import NO_SHARE, Outbox
from proxy.store.records import Claim, Settlement
from proxy.store.sqlite.outbox import SqliteOutbox

KEY = "a-key-that-nobody-may-see"
ANN, BOB = "ann@example.com", "bob@example.com"
HELLO = Attributes({"firstName": "Hello"})
COUNT = Attributes(custom_fields={"Visits": "++1"})
numbers = itertools.count()


class AtOnce(random.Random):
    """Makes every back-off end at once; what Retry-After asks for stays."""

    def random(self) -> float:
        return 0.0


class Jitter(random.Random):
    """Back-offs as they are, the same in every run."""


class Clock:
    """Lags behind the real one by `lag` seconds, so that a test can let time pass without waiting."""

    def __init__(self, lag: float = 0.0) -> None:
        self.lag = lag

    def __call__(self) -> float:
        return time.time() - self.lag


async def push(
    outbox: Outbox, address: str, *bodies: Attributes | Track, trust: Trust = Trust.VERIFIED, sign_up: str = ""
) -> None:
    """Put pushes into the lane of this address."""
    ops = tuple(
        Enqueue(f"push-{next(numbers):012}", lane_key(address), address, trust, body, sign_up) for body in bodies
    )

    def decide(_: Facts) -> Decision[None]:
        return Decision(ops, None)

    await outbox.append(decide)


def forwarder(outbox: Outbox, url: str, **options: Any) -> Forwarder:
    settings: dict[str, Any] = {
        "concurrency": 4,
        "timeout_seconds": 10.0,
        "max_attempts": 20,
        "max_age": timedelta(days=3),
        "rng": AtOnce(),
    }
    upstream = Upstream(Dialect.REST, f"{url}/api/v1/rest", Secret(KEY))
    return Forwarder(outbox, upstream, **(settings | options))


def shared_by_lanes(outbox: Outbox, url: str, clock: Callable[[], float] = time.time) -> Shared:
    """What a lane run needs, without a forwarder."""
    upstream = Upstream(Dialect.REST, f"{url}/api/v1/rest", Secret(KEY))
    limits = GiveUp(max_attempts=20, max_age_seconds=259_200.0)
    return Shared(
        outbox=outbox,
        account=Account(upstream, concurrency=4, limits=limits, clock=clock, rng=AtOnce()),
        turns=Pacer(outbox, 0.0),
        timeout_seconds=10.0,
        identify_refresh_seconds=0.0,
    )


@asynccontextmanager
async def running(delivery: Forwarder) -> AsyncIterator[Forwarder]:
    task = asyncio.create_task(delivery.run(), name="delivery-under-test")
    try:
        yield delivery
    finally:
        await delivery.stop(5)
        await task


async def until(check: Callable[[], Any], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)


async def drained(outbox: Outbox, seconds: float = 120) -> None:
    """Until nothing waits any more."""
    async with asyncio.timeout(seconds):
        while True:
            if not (await outbox.stats()).waiting:
                return
            await asyncio.sleep(0.01)


async def sums_add_up(outbox: Outbox) -> bool:
    stats = await outbox.stats()
    counted = stats.counters
    return counted["accepted"] == counted.get("delivered", 0) + stats.waiting + stats.dead


def sent(records: Sequence[Recorded], address: str) -> list[Any]:
    return [record.body for record in records if record.contact == address]


class Unreliable:
    """The real outbox behind a disk that fails now and then: every call first asks `fails`."""

    def __init__(self, outbox: SqliteOutbox, fails: Callable[[str], bool]) -> None:
        self._outbox = outbox
        self._fails = fails

    async def claim(
        self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None, share: Share = NO_SHARE
    ) -> Claim:
        self._check("claim")
        return await self._outbox.claim(lanes, per_lane, lease_seconds, probe=probe, share=share)

    async def settle(self, settlement: Settlement) -> bool:
        self._check("settle")
        return await self._outbox.settle(settlement)

    def _check(self, call: str) -> None:
        if self._fails(call):
            raise StoreUnavailable("The disk is full.", retry_after=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)
