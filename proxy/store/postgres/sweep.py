"""Removes what is over its age from the PostgreSQL outbox in batches: each is a transaction of its own, and skips what others hold.

One node sweeps at a time: one that finds another at work leaves the rest to it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from proxy.core.turns import faded
from proxy.store.postgres.database import Database, Query, Rows, Transaction, columns
from proxy.store.postgres.locks import SWEEP, Lock, lock, try_lock
from proxy.store.postgres.reads import tally
from proxy.store.postgres.sign_ups import sweep_sign_ups
from proxy.store.postgres.turns import QUEUE
from proxy.store.rows import (
    MAX_REFUSED_NAMES,
    RETIRED_AGE,
    SEEN_AGE,
    SHOWN_AGE,
    discarded,
    expired,
    is_over,
    with_address,
)
from proxy.store.sign_ups import STEP_ROWS

BATCH_ROWS = 1_000


class _Busy(Exception):
    """Another node sweeps."""


async def sweep(database: Database, *, hold_age: timedelta, dead_age: timedelta) -> None:
    """Removes everything that is over its age, unless another node is sweeping."""
    retired = {"age": RETIRED_AGE.total_seconds(), "limit": BATCH_ROWS}
    try:
        await _batches(
            database, "expire_held", hold_age.total_seconds(), lambda gone: expired(size for (size,) in gone.rows)
        )
        await _forget_seen(database)
        await _batches(database, "forget_visitors", RETIRED_AGE.total_seconds())
        await _batches(database, "forget_shown", hold_age.total_seconds() + SHOWN_AGE.total_seconds())
        await _batches(database, "age_out_dead", dead_age.total_seconds(), lambda gone: discarded(gone.rows))
        await _sweep_queue(database, hold_age.total_seconds())
        await _forget_lanes(database)
        await _batch(database, ("forget_tombstones", retired))
        await _batch(database, ("trim_not_offered", {"limit": MAX_REFUSED_NAMES}))
        await _forget_names_with_address(database)
        await _batch(database, ("forget_aliases", {}))
        await _batch(database, ("bring_near", {}))
    except _Busy:
        return


async def _batches(
    database: Database, query: str, seconds: float, tallies: Callable[[Rows], Mapping[str, int]] = lambda _: {}
) -> None:
    values = {"age": seconds, "limit": BATCH_ROWS}
    while (await _batch(database, (query, values), tallies)).count == BATCH_ROWS:
        pass


async def _batch(
    database: Database,
    query: Query,
    tallies: Callable[[Rows], Mapping[str, int]] = lambda _: {},
    locks: Sequence[Lock] = (),
) -> Rows:
    async def work(transaction: Transaction) -> Rows:
        if locks:
            await transaction.run(lock(locks))
        free, *_ = await transaction.run(try_lock(((SWEEP, ""),)))
        if not free.rows[0][0]:
            raise _Busy
        (gone,) = await transaction.run(query)
        if gone.count > 0:
            await transaction.commit(tally(tallies(gone)))
        return gone

    return await database.run(work)


async def _sweep_queue(database: Database, seconds: float) -> None:
    """Drops sign-ups whose turn has not come for so long, and forgets networks and gauges of which nothing is left to count."""
    more: int | None = STEP_ROWS
    while more == STEP_ROWS:
        more = await database.run(lambda transaction: sweep_sign_ups(transaction, seconds))
    if more is None:
        raise _Busy
    for query in ("bring_networks_near", "bring_sign_ups_near", "bring_schedule_near"):
        await _batch(database, (query, {}), locks=(QUEUE,))
    weight = faded(database.sight.now())
    await _batch(database, ("forget_networks", {"weight": weight}), locks=(QUEUE,))
    counters, clock = await database.read(("counters", {}), ("clock", {}))
    if over := [name for name, _ in counters.rows if is_over(name, clock.rows[0][0])]:
        await _batch(database, ("forget_counters", {"names": over}))


async def _forget_seen(database: Database) -> None:
    """Forgets ids from the oldest on, so that those which stay, because they are held, are passed over once."""
    values = {"age": SEEN_AGE.total_seconds(), "limit": BATCH_ROWS}
    after = 0.0
    while True:
        gone = await _batch(database, ("forget_seen", {**values, "after": after}))
        if gone.count < BATCH_ROWS:
            return
        after = max(at for (at,) in gone.rows)


async def _forget_lanes(database: Database) -> None:
    after = 0
    while True:
        (step,) = await database.read(("lane_step", {"after": after, "limit": BATCH_ROWS}))
        last = step.rows[0][0]
        if last is None:
            return
        await _batch(database, ("forget_idle_lanes", {"after": after, "last": last}))
        after = last


async def _forget_names_with_address(database: Database) -> None:
    (listed,) = await database.read(("refused_names", {"limit": MAX_REFUSED_NAMES}))
    if names := with_address(listed.rows):
        await _batch(database, ("forget_not_offered", columns("settings names", names)))
