"""What is claimed of the proxy, as figures out of one run. What was not measured in it is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tests.load.bench.delivery import BARE_LOOP, Line
from tests.load.bench.ingest import Results
from tests.load.bench.losses import Loss
from tests.load.bench.parked import Cost

HELD = "scq-proxy-held"
WAITING = 1_000_000


class Claim(msgspec.Struct, frozen=True):
    """One of `at_least` and `at_most` is given."""

    what: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        if self.at_least is not None:
            return self.measured >= self.at_least
        return self.at_most is None or self.measured <= self.at_most

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


def of_ingest(results: Results) -> Iterator[Claim]:
    proxy, starlette, ten = results.row(HELD), results.row("starlette"), results.row(HELD, pushes=10)
    if proxy is None:
        return
    speed = proxy.median("pushes_per_second")

    def beside(name: str, what: str, at_least: float) -> Iterator[Claim]:
        if (other := results.row(name)) is not None:
            yield Claim(f"pushes/s beside {what}", speed / other.median("pushes_per_second"), at_least=at_least)

    yield from beside("starlette", "the Starlette route", 0.9)
    yield from beside("asgi", "the bare ASGI function", 0.45)
    if starlette is not None:
        slower = proxy.median("p99_ms") / starlette.median("p99_ms")
        yield Claim("p99 beside the Starlette route", slower, at_most=3)
    if ten is not None:
        yield Claim("10 pushes a request beside 1", ten.median("pushes_per_second") / speed, at_least=5)
    yield from beside("httpx-100ms", "Starlette + httpx, SendX in 100 ms", 20)
    yield from beside("node-100ms", "fastify + undici, SendX in 100 ms", 5)
    for row in results.rows:
        if row.cell.entry.waiting and (row.cell.pushes, row.cell.connections) == (1, 64):
            what = f"{row.cell.entry.waiting:,} waiting beside none"
            yield Claim(what, row.median("pushes_per_second") / speed, at_least=0.9)
    yield Claim("seconds until it serves", results.starts[HELD].seconds, at_most=1)


def of_delivery(lines: Sequence[Line]) -> Iterator[Claim]:
    speeds = {line.name: line.median("requests_per_second") for line in lines}
    for line in lines:
        if line.name in ("single", "unmergeable"):
            yield Claim(f"delivery beside the bare loop, {line.name}", speeds[line.name] / speeds[BARE_LOOP], 0.85)


def of_losses(losses: Sequence[Loss]) -> Iterator[Claim]:
    for loss in losses:
        if loss.contestant == "scq-proxy":
            yield Claim(f"acknowledged and lost, {loss.fault}", loss.lost, at_most=0)


def of_postgres(costs: Sequence[Cost]) -> Iterator[Claim]:
    """Of the blocks that are read: the times are told beside them."""
    for cost in costs[1:]:
        ratio = cost.median("blocks") / costs[0].median("blocks")
        yield Claim(f"blocks of a claim, {cost.parked:,} lanes parked beside none", ratio, at_most=2)
