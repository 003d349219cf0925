"""The outbox on PostgreSQL, for any number of nodes at once.

Appends and settlements of this process share transactions (`groups`); what one node does to a lane, others see through its row.
Which servers are refused, and how the schema is made, is in `schema`; the queries are in `queries.sql`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec

from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.outbox import NO_READS
from proxy.store.postgres.appends import Append, Appends
from proxy.store.postgres.database import Database, Transaction
from proxy.store.postgres.groups import Groups, Job
from proxy.store.postgres.leases import Lanes, settle
from proxy.store.postgres.people import erase_person
from proxy.store.postgres.reads import discard, read_dead_letters, read_stats, replay, tally
from proxy.store.postgres.schema import UNSAFE, assess
from proxy.store.postgres.sweep import sweep
from proxy.store.records import Claim, DeadFilter, DeadLetter, Durability, Erased, Health, Lease, Settlement, Stats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from proxy.core.decision import Decide, Decision, Reads
    from proxy.core.gate import Closure

T = TypeVar("T")

_GROUP = 128  # appends, or settlements, in one transaction
_POLL_SECONDS, _MAX_POLL_SECONDS = (
    0.025,
    1.0,
)  # how often other nodes' appends are looked for: ever less while there are none
_PROVEN_SECONDS = 1.0  # for which a commit proves that the database takes pushes

log = logging.getLogger("proxy.store")


class PostgresOutbox:
    """Implements `outbox.Outbox`. Made by `open_outbox`."""

    def __init__(
        self, dsn: str, database: Database, site_key: bytes, *, hold_age: timedelta, dead_age: timedelta
    ) -> None:
        self.site_key = site_key
        self._dsn = dsn
        self._database = database
        self._hold_age, self._dead_age = hold_age, dead_age
        self._jobs = 0
        self._lanes = Lanes(database)
        self._appends_of = Appends(database, site_key)
        self._appends: Groups[Append] = Groups(self._append_all, most=_GROUP, name="store-appends")
        self._settles: Groups[Settlement] = Groups(self._settle_all, most=_GROUP, name="store-settles")
        self._holds: Groups[Lease] = Groups(self._lanes.holds, most=_GROUP, name="store-holds")
        self._ready = asyncio.Event()
        self._poll_seconds = _POLL_SECONDS
        self._found = True  # the last claim has found something

    async def append(self, decide: Decide[T], reads: Reads = NO_READS) -> Decision[T]:
        plan: Decision[T] = await self._appends.submit((decide, reads))
        return plan

    async def _append_all(self, jobs: Sequence[Job[Append]]) -> None:
        if await self._appends_of.carry_out(jobs):
            self._wake()

    async def claim(self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None) -> Claim:
        claim = await self._lanes.claim(lanes, per_lane, lease_seconds, probe)
        self._found = bool(claim.leases)
        if self._found:
            self._poll_seconds = _POLL_SECONDS
        return claim

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        return await self._lanes.move_gate(before, after)

    async def holds(self, lease: Lease) -> bool:
        """What cannot be confirmed does not hold: settling it will say that the store is not available."""
        try:
            held: bool = await self._holds.submit(lease)
        except StoreUnavailable:
            return False
        return held

    async def settle(self, settlement: Settlement) -> bool:
        held: bool = await self._settles.submit(settlement)
        if self._lanes.own.get(settlement.lease.lane) == settlement.lease.epoch:
            del self._lanes.own[settlement.lease.lane]
        return held

    async def _settle_all(self, jobs: Sequence[Job[Settlement]]) -> None:
        await settle(self._database, jobs)
        self._jobs += len(jobs)
        self._wake()

    def _wake(self) -> None:
        self._ready.set()

    async def wait_ready(self, timeout_seconds: float) -> None:
        """Wakes at once for changes of this node; looks for those of others, and for lanes whose time has come."""
        deadline = time.monotonic() + timeout_seconds
        patient = not self._found  # what was ready was somebody else's: not to be asked for again at once
        while not self._ready.is_set() and (remaining := deadline - time.monotonic()) > 0:
            wait = min(remaining, self._poll_seconds)
            if not patient:
                (found,) = await self._database.read(("next_ready", {}))
                next_ready = found.rows[0][0]
                if next_ready is not None and next_ready <= 0:
                    break
                wait = min(wait, next_ready if next_ready is not None else wait)
                self._poll_seconds = min(2 * self._poll_seconds, _MAX_POLL_SECONDS)
            patient = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ready.wait()
        self._ready.clear()

    async def reserve(self, sends: int, per_second: float) -> float:
        async def take(transaction: Transaction) -> float:
            (wait,) = await transaction.commit(("reserve", {"seconds": sends / per_second}))
            seconds: float = wait.rows[0][0]
            return seconds

        return await self._database.run(take)

    async def erase(self, key: str) -> Erased:
        """In the order of this process's appends: whoever comes back after it was asked for is not forgotten again."""
        return await self._appends.alone(lambda: erase_person(self._database, key, self.site_key))

    async def sweep(self) -> None:
        await sweep(self._database, hold_age=self._hold_age, dead_age=self._dead_age)

    async def ready(self) -> None:
        """Reading proves nothing about writing: unless something was just written, something is."""
        if time.monotonic() - self._database.written < _PROVEN_SECONDS:
            return

        async def prove(transaction: Transaction) -> None:
            await transaction.commit(tally({"gauge:proofs": 1}))

        await self._database.run(prove)

    async def stats(self) -> Stats:
        await self._appends.caught_up()
        stats = await read_stats(self._database)
        return msgspec.structs.replace(stats, health=self._health())

    def _health(self) -> Health:
        database = self._database
        trouble = database.trouble
        sentence = f"The database does not take what it is asked to ({trouble}): see its log."
        return Health(
            commits=database.commits,
            jobs=self._appends_of.jobs + self._jobs,
            commit_seconds=database.commit_seconds,
            failed_commits=database.failed_commits,
            reopened=database.reopened,
            problems=(sentence,) if trouble else (),
        )

    async def dead_letters(self, matching: DeadFilter, after: int, limit: int) -> Sequence[DeadLetter]:
        return await read_dead_letters(self._database, matching, after, limit)

    async def replay(self, matching: DeadFilter, limit: int) -> int:
        count = await replay(self._database, matching, limit)
        self._wake()
        return count

    async def discard(self, matching: DeadFilter, limit: int) -> int:
        return await discard(self._database, matching, limit)

    async def durability(self) -> Durability:
        try:
            assessment = await assess(self._dsn)
        except StoreRefused as error:
            raise StoreUnavailable(error.message, retry_after=5) from None
        if assessment.losses:
            return Durability("an acknowledged push can be lost: " + " ".join(assessment.losses), assessment.facts)
        promise = "an acknowledged push is in PostgreSQL's write-ahead log, synced to its disk"
        if assessment.standbys:
            promise += " and to that of its synchronous standbys"
        return Durability(promise, assessment.facts)

    async def failure(self) -> str:
        """Never: connections come back when the database does."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def close(self) -> None:
        """Leases that are not settled end here, so that nobody has to wait for them."""
        await asyncio.gather(self._appends.close(), self._settles.close(), self._holds.close())
        try:
            await self._lanes.close()
        except StoreUnavailable:
            log.warning("The leases of this process could not be ended: others wait until their time is over")
        await self._database.close()


async def open_outbox(
    dsn: str, *, hold_age: timedelta, dead_age: timedelta, unsafe: bool = False, pool_size: int = 6
) -> PostgresOutbox:
    """Opens it. `unsafe`: also on a server that could lose what was acknowledged. Raises `StoreRefused`."""
    assessment = await assess(dsn)
    refusals = assessment.obstacles if unsafe else assessment.problems
    if refusals:
        hint = f" {UNSAFE}" if not assessment.obstacles else ""
        raise StoreRefused(" ".join(refusals) + hint)
    database = Database(dsn, pool_size=pool_size)
    await database.open()
    try:
        (found,) = await database.read(("site_key", {}))
    except BaseException as error:
        await database.close()
        if isinstance(error, StoreUnavailable):
            raise StoreRefused(error.message) from None
        raise
    return PostgresOutbox(dsn, database, bytes(found.rows[0][0]), hold_age=hold_age, dead_age=dead_age)
