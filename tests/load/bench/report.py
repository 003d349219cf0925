"""The results as text for a terminal and as an object for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tests.load.bench.claims import Claim
from tests.load.bench.delivery import BARE_LOOP, Line
from tests.load.bench.ingest import Entry, Results, Row
from tests.load.bench.losses import Loss
from tests.load.bench.parked import Cost
from tests.load.bench.postgres import Found

_FULL = 0.95  # of the load's core: what was measured then may be the load
_SPARE = 0.95  # of its own core


def grid(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(line[place]) for line in [heading, *lines]) for place in range(len(heading))]

    def aligned(line: Sequence[str]) -> str:
        cells = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()

    return "\n".join([aligned(heading), "  ".join("-" * width for width in widths), *map(aligned, lines)])


def facts_text(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {text}" for name, text in facts.items())


# --- Ingest ------------------------------------------------------------------------------------------------------------

_INGEST = ("pushes/s", "p50 ms", "p99 ms", "of Starlette", "of ASGI", "own core", "load's core")


def title(entry: Entry) -> str:
    """An entry for a person."""
    text = entry.contestant.title
    if entry.contestant.durable:
        text += ", SendX shut" if entry.shut else ", delivering"
    elif entry.latency_ms is not None:
        text += f", SendX in {entry.latency_ms} ms"
    return text + (f", {entry.waiting:,} waiting" if entry.waiting else "")


def ratio(results: Results, row: Row, reference: str) -> float | None:
    """Pushes a second beside another entry under the same load; None if that was not measured."""
    other = results.row(reference, row.cell.pushes, row.cell.connections)
    return None if other is None else row.median("pushes_per_second") / other.median("pushes_per_second")


def ingest_text(results: Results) -> str:
    """A table for each load, what could not be measured, and what the programs took to start."""
    loads = sorted({(row.cell.pushes, row.cell.connections) for row in results.rows})
    blocks = [
        grid(
            (f"{pushes} push{'es' * (pushes > 1)} a request, {connections} connections", *_INGEST),
            [
                _line(results, row)
                for row in results.rows
                if (row.cell.pushes, row.cell.connections) == (pushes, connections)
            ],
        )
        for pushes, connections in loads
    ]
    blocks.append(
        f"* the load's core was full, its own was not: it may be faster than this. SendX alone: {results.upstream_per_second:,.0f} requests/s."
    )
    blocks += [f"NOT REPORTED: {name}: {why}" for name, why in results.refused.items()]
    return "\n\n".join([*blocks, _starts_text(results)])


def _line(results: Results, row: Row) -> list[str]:
    own, load = row.median("cpu"), row.median("load_core")
    return [
        title(row.cell.entry) + (" *" if load > _FULL and own < _SPARE else ""),
        f"{row.median('pushes_per_second'):,.0f}",
        f"{row.median('p50_ms'):.2f}",
        f"{row.median('p99_ms'):.2f}",
        *(_times(ratio(results, row, name)) for name in ("starlette", "asgi")),
        f"{own:.0%}",
        f"{load:.0%}",
    ]


def _times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def _starts_text(results: Results) -> str:
    lines = [
        [name, f"{start.seconds:.2f} s", f"{start.mb:.0f} MB", f"{start.load_mb:.0f} MB"]
        for name, start in results.starts.items()
    ]
    return grid(("start-up and memory (RSS)", "serves after", "then", "under load"), lines)


def ingest_object(results: Results) -> dict[str, Any]:
    rows = [
        {
            "contestant": row.cell.entry.name,
            "pushes_per_request": row.cell.pushes,
            "connections": row.cell.connections,
            "medians": {name: row.median(name) for name in row.samples[0].__struct_fields__},
            "of_starlette": ratio(results, row, "starlette"),
            "of_asgi": ratio(results, row, "asgi"),
            "rounds": msgspec.to_builtins(row.samples),
        }
        for row in results.rows
    ]
    return {
        "ingest": rows,
        "starts": msgspec.to_builtins(results.starts),
        "refused": results.refused,
        "upstream_per_second": results.upstream_per_second,
    }


# --- Delivery and losses -----------------------------------------------------------------------------------------------


_DELIVERY = ("pushes/s", "requests/s", "of the bare loop", "requests/CPU s", "of the bare loop", "CPU µs a push")


def delivery_text(lines: Sequence[Line]) -> str:
    bare = next(line for line in lines if line.name == BARE_LOOP)

    def beside(line: Line, what: str) -> str:
        return f"{line.median(what) / bare.median(what):.2f}"

    rows = [
        [
            line.title,
            f"{line.median('pushes_per_second'):,.0f}",
            f"{line.median('requests_per_second'):,.0f}",
            beside(line, "requests_per_second"),
            f"{line.median('requests_per_cpu_second'):,.0f}",
            beside(line, "requests_per_cpu_second"),
            f"{line.median('cpu_us'):.0f}",
        ]
        for line in lines
    ]
    return grid(("delivery, SendX in 0 ms", *_DELIVERY), rows)


def delivery_object(lines: Sequence[Line]) -> dict[str, Any]:
    rows = [
        {
            "name": line.name,
            "medians": {name: line.median(name) for name in line.rates[0].__struct_fields__},
            "rounds": msgspec.to_builtins(line.rates),
        }
        for line in lines
    ]
    return {"delivery": rows}


def losses_text(losses: Sequence[Loss]) -> str:
    blocks = [
        grid(
            (fault, "sent once", "acknowledged", "lost of these", "not acknowledged", "never arrived"),
            [
                [loss.title, *(f"{n:,}" for n in (loss.sent, loss.acknowledged, loss.lost, loss.refused, loss.gone))]
                for loss in losses
                if loss.fault == fault
            ],
        )
        for fault in dict.fromkeys(loss.fault for loss in losses)
    ]
    return "\n\n".join(blocks)


def losses_object(losses: Sequence[Loss]) -> dict[str, Any]:
    return {"losses": [{**msgspec.to_builtins(loss), "refused": loss.refused, "gone": loss.gone} for loss in losses]}


# --- PostgreSQL --------------------------------------------------------------------------------------------------------


def postgres_text(found: Found) -> str:
    """A table for each load and each backlog, and one of what a claim costs."""
    loads = dict.fromkeys((row.cell.pushes, row.cell.connections) for row in found.ingested.rows)
    blocks = [
        grid(
            (f"{pushes} push{'es' * (pushes > 1)} a request, {connections} connections", *_BESIDE_SQLITE),
            [_beside_sqlite(found.ingested, row) for row in found.ingested.rows if row.cell.pushes == pushes],
        )
        for pushes, connections in loads
    ]
    blocks += [f"NOT REPORTED: {name}: {why}" for name, why in found.ingested.refused.items()]
    blocks += [_delivered(name, lines) for name, lines in found.delivered.items()]
    blocks.append(_costs(found.costs))
    return "\n\n".join(blocks)


_BESIDE_SQLITE = ("pushes/s", "p50 ms", "p99 ms", "of SQLite", "cores its processes use")


def _beside_sqlite(results: Results, row: Row) -> list[str]:
    return [
        row.cell.entry.contestant.title,
        f"{row.median('pushes_per_second'):,.0f}",
        f"{row.median('p50_ms'):.1f}",
        f"{row.median('p99_ms'):.1f}",
        _times(ratio(results, row, "sqlite-held")),
        f"{row.median('cpu'):.2f}",
    ]


def _delivered(name: str, lines: Sequence[Line]) -> str:
    sqlite = next(line for line in lines if line.name == "sqlite").median("requests_per_second")
    rows = [
        [
            line.title,
            f"{line.median('pushes_per_second'):,.0f}",
            f"{line.median('requests_per_second'):,.0f}",
            f"{line.median('requests_per_second') / sqlite:.2f}",
        ]
        for line in lines
    ]
    return grid((f"delivery, {name}, SendX in 0 ms", "pushes/s", "requests/s", "of SQLite"), rows)


def _costs(costs: Sequence[Cost]) -> str:
    times = ("claim_ms", "claim_p99_ms", "settle_ms", "settle_p99_ms")
    rows = [
        [f"{cost.parked:,}", *(f"{cost.median(name):.2f}" for name in times), f"{cost.median('blocks'):.0f}"]
        for cost in costs
    ]
    heading = ("lanes parked, 1,000 ready", "claim of 8, ms", "p99 ms", "settling them, ms", "p99 ms", "blocks read")
    return grid(heading, rows)


def postgres_object(found: Found) -> dict[str, Any]:
    costs = [
        {
            "parked": cost.parked,
            "medians": {name: cost.median(name) for name in cost.rounds[0].__struct_fields__},
            "rounds": msgspec.to_builtins(cost.rounds),
        }
        for cost in found.costs
    ]
    delivered = {name: delivery_object(lines)["delivery"] for name, lines in found.delivered.items()}
    told = {**ingest_object(found.ingested), "delivery": delivered, "claims": costs}
    return {"postgres": told}


# --- Claims ------------------------------------------------------------------------------------------------------------


def claims_text(claims: Sequence[Claim]) -> str:
    rows = [[claim.what, f"{claim.measured:,.2f}", claim.bound, "yes" if claim.holds else "NO"] for claim in claims]
    return grid(("claims", "measured", "claimed", "holds"), rows)


def claims_object(claims: Sequence[Claim]) -> dict[str, Any]:
    return {"claims": [{**msgspec.to_builtins(claim), "holds": claim.holds} for claim in claims]}
