"""Sign-ups of the PostgreSQL outbox for the operator, who lists and drops them, and for the sweep."""

from collections.abc import AsyncIterator
from functools import partial

from proxy.store.postgres.database import Database, Transaction
from proxy.store.postgres.locks import SWEEP, lock, try_lock
from proxy.store.postgres.reads import tally
from proxy.store.postgres.turns import QUEUE, leave
from proxy.store.records import SignUp, SignUpFilter
from proxy.store.rows import dropped
from proxy.store.sign_ups import STEP_ROWS, matcher


async def read_sign_ups(database: Database, matching: SignUpFilter, after: int, limit: int) -> list[SignUp]:
    found: list[SignUp] = []
    async for sign_up in _matching(database, matching, after):
        found.append(sign_up)
        if len(found) >= limit:
            break
    return found


async def drop_sign_ups(database: Database, matching: SignUpFilter, limit: int) -> int:
    """Drops up to `limit` lanes, in batches; returns the number dropped."""
    count, lanes = 0, set[int]()
    async for sign_up in _matching(database, matching, 0):
        lanes.add(sign_up.lane)
        if len(lanes) == min(limit - count, STEP_ROWS):
            count += await database.run(partial(_drop, lanes=lanes))
            lanes = set()
        if count >= limit:
            break
    return count + (await database.run(partial(_drop, lanes=lanes)) if lanes else 0)


async def _matching(database: Database, matching: SignUpFilter, after: int) -> AsyncIterator[SignUp]:
    matches = matcher(matching)
    while True:
        (found,) = await database.read(("sign_ups", {"after": after, "limit": STEP_ROWS}))
        for row in found.rows:
            sign_up = SignUp(*row)
            after = sign_up.seq
            if matches(sign_up):
                yield sign_up
        if found.count < STEP_ROWS:
            return


async def _drop(transaction: Transaction, lanes: set[int]) -> int:
    await transaction.run(lock((QUEUE,)))
    return await _drop_lanes(transaction, lanes)


async def _drop_lanes(transaction: Transaction, lanes: set[int]) -> int:
    """Drops what waits in those of the lanes that are put off, and commits. The queue is locked."""
    (locked,) = await transaction.run(("lock_put_off", {"lanes": list(lanes)}))
    put_off = [lane for lane, _ in locked.rows]
    gone, *_ = await transaction.run(
        ("remove_pushes", {"lanes": put_off}),
        ("empty_put_off", {"lanes": put_off}),
        leave(lanes=lanes),
        ("forget_person", {"keys": [key for _, key in locked.rows]}),  # so that their next push waits for a turn, too
    )
    await transaction.commit(
        tally(dropped(gone.rows, 0))
    )  # those that are put off are counted where they leave the queue
    return len(put_off)


async def sweep_sign_ups(transaction: Transaction, seconds: float) -> int | None:
    """Drops a batch of those that have waited for so long, and rows that mean nothing any more; returns whether there may be more.

    None: another node sweeps.
    """
    await transaction.run(lock((QUEUE,)))
    free, old, stale = await transaction.run(
        try_lock(((SWEEP, ""),)),
        ("old_sign_ups", {"age": seconds, "limit": STEP_ROWS}),
        ("stale_sign_ups", {"limit": STEP_ROWS}),
    )
    if not free.rows[0][0]:
        return None
    lanes = {lane for (lane,) in [*old.rows, *stale.rows]}
    if lanes:
        await _drop_lanes(transaction, lanes)
    return max(old.count, stale.count)
