"""`scq-proxy copy`: everything that an SQLite store knows, into an empty PostgreSQL schema, so that nodes go on where the one server stopped.

Order, ids, holds, dead letters, counters, aliases, erased people, the gate and the key from which visitors' ids are derived: all is kept. Leases
end as they do when a store is opened, and erasures that have begun are finished first. The file itself is left as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from proxy.errors import StoreRefused
from proxy.postgres_import import Import, importing
from proxy.sqlite_export import TABLES, Export
from proxy.stores import open_store_file

Progress = Callable[[str, int], None]
STEP = 1_000  # rows between two calls of it


def copy_store(source: Path, dsn: str, totals: Callable[[int], None], progress: Progress) -> Mapping[str, int]:
    """Rows by table. `totals` gets how many rows there are; `progress` the table that is being copied, and how many more of its rows are.

    Raises `StoreRefused`, and then nothing was copied.
    """
    asyncio.run(_finish(source))
    with Export(source) as export, importing(dsn) as target:
        target.begin()
        counts = export.counts()
        totals(sum(counts.values()))
        for table in TABLES:
            _fill(target, table, export, progress)
        target.count_on(export.numbers())
        copied = target.counts(TABLES)
        if copied != counts:
            wrong = ", ".join(
                f"{name} {copied[name]} of {counts[name]}" for name in TABLES if copied[name] != counts[name]
            )
            raise StoreRefused(f"Not everything arrived ({wrong}): nothing was copied.")
        target.commit()
    return copied


async def _finish(source: Path) -> None:
    """Ends what a server that was killed left under way."""
    async with open_store_file(source) as outbox:
        await outbox.sweep()


def _fill(target: Import, table: str, export: Export, progress: Progress) -> None:
    written = 0
    for _ in target.fill(table, export.rows(table)):
        written += 1
        if written % STEP == 0:
            progress(table, STEP)
    progress(table, written % STEP)
