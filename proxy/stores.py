"""Opens the store that SCQ_STORE names, to serve it or for one command, and copies one into another. The only module that names the adapters.

A copy is everything that an SQLite store knows, in an empty PostgreSQL schema: order, ids, holds, dead letters, counters, aliases, erased
people, the gate and the key from which the ids of visitors are derived. Leases end as they do when a store is opened, and erasures that have
begun are finished first. The file itself stays as it was.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.config.settings import Settings
from proxy.config.types import PostgresUrl, SqliteUrl, StoreUrl
from proxy.errors import StoreRefused
from proxy.store.outbox import Outbox
from proxy.store.rows import TABLES
from proxy.store.sqlite.export import Export
from proxy.store.sqlite.outbox import open_outbox

if TYPE_CHECKING:
    from proxy.store.postgres.schema import Assessment

Progress = Callable[[str, int, int], None]  # the table that is being copied, and how many rows of how many are
STEP = 1_000  # rows between two calls of it

_FOREVER = timedelta.max  # a command expires nothing

log = logging.getLogger("proxy.store")


async def open_store(settings: Settings) -> Outbox:
    """The store, to serve it. Raises `StoreRefused`."""
    if isinstance(settings.store, SqliteUrl):
        return await open_outbox(
            settings.store.path.absolute(),
            create=True,
            hold_age=settings.hold_age,
            dead_age=settings.dead_age,
            min_free_bytes=settings.min_free_bytes,
        )
    require_psycopg()
    from proxy.store.postgres import outbox as outbox_postgres

    outbox = await outbox_postgres.open_outbox(
        settings.store.dsn.reveal(),
        hold_age=settings.hold_age,
        dead_age=settings.dead_age,
        unsafe=settings.store_unsafe,
    )
    if settings.store_unsafe:
        log.warning("SCQ_STORE_UNSAFE is 1. On this server %s", (await outbox.durability()).promise)
    return outbox


@contextlib.asynccontextmanager
async def open_existing(store: StoreUrl) -> AsyncIterator[Outbox]:
    """An existing store, for a command: an SQLite file while no server runs, a database at any time. Nothing expires. Raises `StoreRefused`."""
    if isinstance(store, SqliteUrl):
        path = store.path.absolute()
        outbox: Outbox = await open_outbox(path, create=False, hold_age=_FOREVER, dead_age=_FOREVER, min_free_bytes=0)
    else:
        require_psycopg()
        from proxy.store.postgres import outbox as outbox_postgres

        outbox = await outbox_postgres.open_outbox(
            store.dsn.reveal(), hold_age=_FOREVER, dead_age=_FOREVER, unsafe=True, pool_size=1
        )
    try:
        yield outbox
    finally:
        await outbox.close()


async def assess_database(store: PostgresUrl) -> "Assessment":
    """What a PostgreSQL server says of itself. Raises `StoreRefused` if it cannot be asked."""
    require_psycopg()
    from proxy.store.postgres import schema as postgres_schema

    return await postgres_schema.assess(store.dsn.reveal())


async def migrate_database(store: PostgresUrl) -> tuple[int, int]:
    """Brings the schema up to date: its version before (0: none) and after. Raises `StoreRefused`."""
    require_psycopg()
    from proxy.store.postgres import schema as postgres_schema

    return await postgres_schema.migrate(store.dsn.reveal())


def copy_store(source: Path, dsn: str, progress: Progress) -> Mapping[str, int]:
    """Returns the number of copied rows by table. Raises `StoreRefused`, and then nothing was copied."""
    require_psycopg()
    from proxy.store.postgres.load import loading

    asyncio.run(_finish(source))
    with Export(source) as export, loading(dsn) as target:
        target.begin()
        counts = export.counts()
        done, total = 0, sum(counts.values())
        for table in TABLES:
            for _ in target.fill(table, export.rows(table)):
                done += 1
                if done % STEP == 0:
                    progress(table, done, total)
            progress(table, done, total)
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
    async with open_existing(SqliteUrl(source)) as outbox:
        await outbox.sweep()


def database_user(store: StoreUrl) -> str | None:
    """Returns the role that commands connect to a database as, None for a file."""
    if isinstance(store, SqliteUrl):
        return None
    require_psycopg()
    from psycopg.conninfo import conninfo_to_dict

    return str(conninfo_to_dict(store.dsn.reveal()).get("user") or "by default")


def require_psycopg() -> None:
    """Raises `StoreRefused` with what to install: the client for PostgreSQL is an extra, which SQLite does without."""
    try:
        import psycopg  # noqa: F401
        import psycopg_pool  # noqa: F401
    except ImportError:  # also psycopg itself, when it finds no libpq
        raise StoreRefused(
            "PostgreSQL needs a client that is not installed: pip install 'scq-proxy[postgres]'."
        ) from None
