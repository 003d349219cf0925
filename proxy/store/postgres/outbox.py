"""The outbox on PostgreSQL, for any number of nodes at once.

Appends and settlements of this process share transactions (`groups`); what one node does to a lane, others see through its row.
Which servers are refused, and how the schema is made, is in `schema`; the queries are in `queries.sql`.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar

from proxy.aio import wait
from proxy.core.decision import Decide, Decision, Reads
from proxy.core.gate import Closure
from proxy.core.turns import Share
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.outbox import NO_READS, NO_SHARE
from proxy.store.postgres.appends import Append, append
from proxy.store.postgres.database import ANSWER_SECONDS, Database, Transaction
from proxy.store.postgres.failovers import note_move
from proxy.store.postgres.groups import Groups, Job
from proxy.store.postgres.leases import NodeLeases, settle
from proxy.store.postgres.people import erase_person
from proxy.store.postgres.reads import PROOF, discard, read_dead_letters, read_stats, replay, waits_for_a_standby
from proxy.store.postgres.schema import UNSAFE, assess
from proxy.store.postgres.sight import Sight
from proxy.store.postgres.sign_ups import drop_sign_ups, read_sign_ups
from proxy.store.postgres.sweep import sweep
from proxy.store.postgres.unvouched import Budget
from proxy.store.records import (
    Claim,
    DeadFilter,
    DeadLetter,
    Durability,
    Erased,
    Lease,
    Settlement,
    SignUp,
    SignUpFilter,
    Stats,
    Unvouched,
)

T = TypeVar("T")

_GROUP = 128  # appends, or settlements, in one transaction
_POLL_SECONDS, _MAX_POLL_SECONDS = 0.025, 1.0  # between looks for other nodes' appends: ever more while there are none
_LOOK_SECONDS = 2.0  # after which an idle node checks whether the server is still the same
_PROVEN_SECONDS = 1.0  # for which a commit proves that the database takes pushes

log = logging.getLogger("proxy.store")


class PostgresOutbox:
    """Implements `outbox.Outbox`. Made by `open_outbox`."""

    def __init__(
        self,
        dsn: str,
        database: Database,
        site_key: bytes,
        budget: Budget,
        *,
        hold_age: timedelta,
        dead_age: timedelta,
    ) -> None:
        self.site_key = site_key
        self._budget = budget
        self._dsn = dsn
        self._database = database
        self._hold_age, self._dead_age = hold_age, dead_age
        self._leases = NodeLeases(database)
        self._appends: Groups[Append] = Groups(self._append_all, most=_GROUP, name="store-appends")
        self._settles: Groups[Settlement] = Groups(self._settle_all, most=_GROUP, name="store-settles")
        self._holds: Groups[Lease] = Groups(self._leases.holds, most=_GROUP, name="store-holds")
        self._ready = asyncio.Event()
        self._skewed = False  # the clocks disagree, and that was logged
        self._poll_seconds = _POLL_SECONDS
        self._found = True  # the last claim has found something

    def now(self) -> float:
        return self._database.sight.now()

    async def append(self, decide: Decide[T], reads: Reads = NO_READS) -> Decision[T]:
        decision: Decision[T] = await self._appends.submit((decide, reads))
        return decision

    async def _append_all(self, jobs: Sequence[Job[Append]]) -> None:
        if await append(self._database, self._budget, self.site_key, jobs):
            self._ready.set()
        await self._heed()

    async def _heed(self) -> None:
        """Logs changes of the server or of the clock skew, once each."""
        await note_move(self._database)
        skew = self._database.sight.skew()
        if bool(skew) is not self._skewed:
            self._skewed = bool(skew)
            log.warning("%s", skew or "This machine's clock and the database's agree again")

    def unvouched(self) -> Unvouched:
        return Unvouched(self._budget.bytes)

    async def claim(
        self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None, share: Share = NO_SHARE
    ) -> Claim:
        claim = await self._leases.claim(lanes, per_lane, lease_seconds, probe, share)
        await self._heed()
        self._found = bool(claim.leases)
        if self._found:
            self._poll_seconds = _POLL_SECONDS
        return claim

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        return await self._leases.move_gate(before, after)

    async def holds(self, lease: Lease) -> bool:
        """What cannot be confirmed does not hold: settling it will say that the store is not available."""
        try:
            held: bool = await self._holds.submit(lease)
        except StoreUnavailable:
            return False
        return held

    async def settle(self, settlement: Settlement) -> bool:
        held: bool = await self._settles.submit(settlement)
        if self._leases.own.get(settlement.lease.lane) == settlement.lease.epoch:
            del self._leases.own[settlement.lease.lane]
        return held

    async def _settle_all(self, jobs: Sequence[Job[Settlement]]) -> None:
        await settle(self._database, jobs)
        self._database.counts.jobs += len(jobs)
        self._ready.set()

    async def wait_ready(self, timeout_seconds: float) -> None:
        """Wakes at once for changes of this node; looks for those of others, and for lanes whose time has come."""
        deadline = time.monotonic() + timeout_seconds
        patient = (
            not self._found
        )  # the last claim found nothing, so another node took what was ready: wait once before looking again
        while not self._ready.is_set() and (remaining := deadline - time.monotonic()) > 0:
            if time.monotonic() - self._database.sight.looked_at > _LOOK_SECONDS:
                await self._database.look()
                await self._heed()
            seconds = min(remaining, self._poll_seconds)
            if not patient:
                floors = self._leases.floors
                (found,) = await self._database.read(("next_ready", {**floors.values, "ahead": _MAX_POLL_SECONDS}))
                first = floors.found(found.rows[0])
                until_turn = self._leases.turn_at - time.monotonic()
                if until_turn <= 0 or (first is not None and first <= 0):
                    break
                seconds = min(seconds, until_turn, first if first is not None else seconds)
                self._poll_seconds = min(2 * self._poll_seconds, _MAX_POLL_SECONDS)
            patient = False
            await wait(self._ready, seconds)
        self._ready.clear()

    async def reserve(self, sends: int, per_second: float) -> float:
        async def take(transaction: Transaction) -> float:
            (until,) = await transaction.commit(("reserve", {"seconds": sends / per_second}))
            return float(until.value)

        return await self._database.run(take)

    async def erase(self, key: str) -> Erased:
        """In the order of this process's appends: whoever comes back after it was asked for is not forgotten again."""
        erase = partial(erase_person, keys={key}, site_key=self.site_key)
        return await self._appends.alone(lambda: self._database.run(erase))

    async def sweep(self) -> None:
        await sweep(self._database, hold_age=self._hold_age, dead_age=self._dead_age)

    @property
    def trouble(self) -> str | None:
        known = self._database.known_trouble
        return f"The database cannot be used: {known}." if known else None

    async def ready(self) -> None:
        """Reading proves nothing about writing: unless something was just written, something is."""
        if time.monotonic() - self._database.written < _PROVEN_SECONDS:
            return

        async def prove(transaction: Transaction) -> None:
            await transaction.commit(PROOF)

        await self._database.run(prove)
        await self._heed()

    async def stats(self) -> Stats:
        await self._appends.caught_up()
        if time.monotonic() - self._database.sight.looked_at > _LOOK_SECONDS:
            await self._database.look()
        stats = await read_stats(self._database)
        if self._database.trouble is not None and not waits_for_a_standby(stats.health):
            await self.ready()  # nobody may be pushing, and only a commit proves that it is over
            stats = await read_stats(self._database)
        self._budget.bytes = stats.unvouched_bytes
        return stats

    async def dead_letters(self, matching: DeadFilter, after: int, limit: int) -> Sequence[DeadLetter]:
        return await read_dead_letters(self._database, matching, after, limit)

    async def replay(self, matching: DeadFilter, limit: int) -> int:
        count = await self._database.run(lambda transaction: replay(transaction, matching, limit))
        self._ready.set()
        return count

    async def discard(self, matching: DeadFilter, limit: int) -> int:
        return await self._database.run(lambda transaction: discard(transaction, matching, limit))

    async def sign_ups(self, matching: SignUpFilter, after: int, limit: int) -> Sequence[SignUp]:
        return await read_sign_ups(self._database, matching, after, limit)

    async def drop_sign_ups(self, matching: SignUpFilter, limit: int) -> int:
        return await drop_sign_ups(self._database, matching, limit)

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
            await self._leases.close()
        except StoreUnavailable:
            log.warning("The leases of this process could not be ended: others wait until their time is over")
        await self._database.close()


async def open_outbox(
    dsn: str,
    *,
    hold_age: timedelta,
    dead_age: timedelta,
    unsafe: bool = False,
    pool_size: int = 6,
    answer_seconds: float = ANSWER_SECONDS,
) -> PostgresOutbox:
    """Opens the outbox. `unsafe`: also on a server that could lose acknowledged pushes; `answer_seconds`: the timeout of a round trip.

    Raises `StoreRefused`.
    """
    assessment = await assess(dsn)
    refusals = assessment.obstacles if unsafe else assessment.problems
    if refusals:
        hint = f" {UNSAFE}" if not assessment.obstacles else ""
        raise StoreRefused(" ".join(refusals) + hint)
    sight = Sight(tells_servers=assessment.tells_servers)
    database = Database(dsn, pool_size=pool_size, answer_seconds=answer_seconds, sight=sight)
    await database.open()
    try:
        found, clock, ids = await database.read(("site_key", {}), ("clock", {}), ("id_bytes", {}))
        await database.look()
    except BaseException as error:
        await database.close()
        if isinstance(error, StoreUnavailable):
            raise StoreRefused(error.message) from None
        raise
    budget = Budget(clock.rows[0][1], ids.value)
    return PostgresOutbox(dsn, database, bytes(found.rows[0][0]), budget, hold_age=hold_age, dead_age=dead_age)
