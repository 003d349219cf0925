"""What a claim costs while many lanes wait for a retry: the adapter itself, claiming and settling, with nothing sent in between."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.store.postgres.database import SQL
from proxy.store.postgres.outbox import PostgresOutbox
from proxy.store.records import Fate, Lease, Settled, Settlement
from tests.load.bench.databases import BATCH, Databases, opened
from tests.load.bench.delivery import Backlog, fill

READY = 1_000  # lanes
LANES = 8  # in a claim: as many as the proxy has senders
_LEASE_SECONDS = 60.0
_WARM_UP = 10  # claims
# As a failure leaves it: a push waits, and the lane has a time in the future, here too far ahead to come.
_PARK = """
WITH parked AS (
  INSERT INTO lanes (key, waiting, failures, ready_at)
  SELECT 'parked' || n || '@example.com', 1, 1, extract(epoch FROM now()) + 86400 + n * 0.001 FROM generate_series(1, {number}) AS n
  RETURNING id, key
)
INSERT INTO pushes (lane, id, address, trust, kind, body, since, attempts)
SELECT id, 'parked-' || id, key, 2, 'track', '{{}}', extract(epoch FROM now()), 1 FROM parked
"""


class Round(msgspec.Struct, frozen=True):
    """`blocks`: that the server looks at to find the lanes of a claim, and when the next one is ready."""

    claim_ms: float
    claim_p99_ms: float
    settle_ms: float
    settle_p99_ms: float
    blocks: int


class Cost(msgspec.Struct, frozen=True):
    """With so many lanes parked, in each round."""

    parked: int
    rounds: list[Round]

    def median(self, what: str) -> float:
        return statistics.median([float(getattr(each, what)) for each in self.rounds])


async def measure(databases: Databases, parked: int, claims: int) -> Round:
    """In a new database. Each lane that is delivered is ready again at once, behind the others, so that there are READY all the time."""
    dsn = databases.new()
    per_lane = (claims + _WARM_UP) * LANES // READY + 2
    await fill(Backlog("ready", "", READY, per_lane, merges=True), await opened(dsn), BATCH)
    databases.execute(dsn, _PARK.format(number=parked))
    databases.tidy(dsn)
    blocks = sum(_blocks(databases, dsn, query) for query in ("claimable", "next_ready"))
    outbox = await opened(dsn)
    try:
        taken = [await _claim_and_settle(outbox) for _ in range(_WARM_UP + claims)][_WARM_UP:]
    finally:
        await outbox.close()
    claiming, settling = ([each[place] * 1e3 for each in taken] for place in (0, 1))
    return Round(statistics.median(claiming), _p99(claiming), statistics.median(settling), _p99(settling), blocks)


def _blocks(databases: Databases, dsn: str, query: str) -> int:
    text = SQL[query].replace("%(lanes)b", str(LANES)).replace("%(lanes)s", str(LANES))
    text = text.replace("%(floor)s", "0").replace("%(stranger_floor)s", "0").replace("%(ahead)s", "1")
    ((plan,),) = databases.execute(dsn, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
    top = _top(plan)
    return int(top["Shared Hit Blocks"]) + int(top["Shared Read Blocks"])


def _top(plan: Any) -> dict[str, Any]:
    found: dict[str, Any] = plan[0]["Plan"]
    return found


async def _claim_and_settle(outbox: PostgresOutbox) -> tuple[float, float]:
    """Seconds."""
    started = time.perf_counter()
    claim = await outbox.claim(LANES, 1, _LEASE_SECONDS)
    claimed = time.perf_counter()
    held = await asyncio.gather(*(outbox.settle(_delivered(lease)) for lease in claim.leases))
    settled = time.perf_counter()
    assert held == [True] * LANES, "a lane was not claimed, or its lease did not hold"
    return claimed - started, settled - claimed


def _delivered(lease: Lease) -> Settlement:
    return Settlement(lease, tuple(Settled(push.seq, Fate.DELIVERED) for push in lease.pushes))


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]
