"""The outbox on PostgreSQL, for any number of nodes."""

from __future__ import annotations

from datetime import timedelta

from proxy.outbox import Outbox


class PostgresOutbox:
    """Implements `outbox.Outbox`. Made by `open_outbox`."""


async def open_outbox(
    dsn: str, *, hold_age: timedelta, dead_age: timedelta, unsafe: bool = False, pool_size: int = 6
) -> Outbox:
    """Opens it. `unsafe`: also on a server that could lose what was acknowledged. Raises `StoreRefused`."""
    raise NotImplementedError
