"""Opens the store that SCQ_STORE names, to serve it or for one command. The only module that names the adapters."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import StoreRefused
from proxy.outbox import Outbox
from proxy.outbox_sqlite import SqliteOutbox, open_outbox
from proxy.settings import Settings
from proxy.values import StoreUrl

if TYPE_CHECKING:
    from proxy.postgres_schema import Assessment

_FOREVER = timedelta.max  # a command expires nothing

log = logging.getLogger("proxy.store")


async def open_store(settings: Settings) -> Outbox:
    """The store, to serve it. Raises `StoreRefused`."""
    if settings.store.dsn is None:
        assert settings.store.path is not None  # noqa: S101 - a store is one or the other
        return await open_outbox(
            settings.store.path.absolute(),
            create=True,
            hold_age=settings.hold_age,
            dead_age=settings.dead_age,
            min_free_bytes=settings.min_free_bytes,
        )
    require_psycopg()
    from proxy import outbox_postgres

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
    """An existing store, for a command: an SQLite file while no server runs, a database at any time. Raises `StoreRefused`."""
    if store.dsn is None:
        assert store.path is not None  # noqa: S101 - a store is one or the other
        async with open_store_file(store.path.absolute()) as file:
            yield file
        return
    require_psycopg()
    from proxy import outbox_postgres

    outbox = await outbox_postgres.open_outbox(
        store.dsn.reveal(), hold_age=_FOREVER, dead_age=_FOREVER, unsafe=True, pool_size=1
    )
    try:
        yield outbox
    finally:
        await outbox.close()


@contextlib.asynccontextmanager
async def open_store_file(path: Path) -> AsyncIterator[SqliteOutbox]:
    """An existing SQLite file, while no server runs; nothing is expired. Raises `StoreRefused`."""
    outbox = await open_outbox(path, create=False, hold_age=_FOREVER, dead_age=_FOREVER, min_free_bytes=0)
    try:
        yield outbox
    finally:
        await outbox.close()


async def assess_database(store: StoreUrl) -> Assessment:
    """What a PostgreSQL server says of itself. Raises `StoreRefused` if it cannot be asked."""
    require_psycopg()
    from proxy import postgres_schema

    return await postgres_schema.assess(_dsn(store))


async def migrate_database(store: StoreUrl) -> tuple[int, int]:
    """Brings the schema up to date: its version before (0: none) and after. Raises `StoreRefused`."""
    require_psycopg()
    from proxy import postgres_schema

    return await postgres_schema.migrate(_dsn(store))


def _dsn(store: StoreUrl) -> str:
    assert store.dsn is not None  # noqa: S101 - asked of PostgreSQL only
    return store.dsn.reveal()


def require_psycopg() -> None:
    """Raises `StoreRefused` with what to install: the client for PostgreSQL is an extra, which SQLite does without."""
    try:
        import psycopg  # noqa: F401
        import psycopg_pool  # noqa: F401
    except ImportError:  # also psycopg itself, when it finds no libpq
        raise StoreRefused(
            "PostgreSQL needs a client that is not installed: pip install 'scq-proxy[postgres]'."
        ) from None
