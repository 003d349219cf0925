"""The outbox on one SQLite file, for one process on one machine.

One connection both writes and checkpoints, on one thread that commits for everybody (`writer`). How the file is opened, and
when it is refused, is in `file`; the queries are in `queries.sql`.
"""

import asyncio
import math
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from proxy.aio import wait
from proxy.core.calls import Attributes
from proxy.core.decision import Decide, Decision, Reads
from proxy.core.gate import Closure
from proxy.core.turns import Share
from proxy.core.visitors import Trust
from proxy.errors import StoreRefused
from proxy.store.outbox import NO_READS, NO_SHARE
from proxy.store.records import (
    Adopted,
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
from proxy.store.rows import discarded, increments, may_sweep, replayed, unheld
from proxy.store.sign_ups import STEP_ROWS, matcher
from proxy.store.sqlite.adoption import Adoption, Work, adopted_names, is_adopted, note_adopted, total
from proxy.store.sqlite.appends import Appends
from proxy.store.sqlite.damage import pragma
from proxy.store.sqlite.file import SQL, StoreFile
from proxy.store.sqlite.leases import Leases
from proxy.store.sqlite.people import end_erasures, erase_person, forget_identities, read_erasures
from proxy.store.sqlite.reads import read_dead_letters, read_stats, value
from proxy.store.sqlite.salvage import Salvage
from proxy.store.sqlite.sign_ups import drop_lanes, end_turns, read_sign_ups
from proxy.store.sqlite.sweep import SWEPT, Step, Sweep
from proxy.store.sqlite.upkeep import Upkeep, place_facts, vacuum_step
from proxy.store.sqlite.writer import Writer

_VACUUM_PAUSE_SECONDS = 0.02
_SAID_SECONDS = 1.0  # between two progress reports of an adoption

P = ParamSpec("P")
T = TypeVar("T")


class SqliteOutbox:
    """Implements `outbox.Outbox`. Made by `open_outbox`."""

    def __init__(self, file: StoreFile, *, hold_age: timedelta, dead_age: timedelta, min_free_bytes: int) -> None:
        self.path = file.path
        self.site_key = b""
        self._file = file
        self._hold_age, self._dead_age = hold_age, dead_age
        self._upkeep = Upkeep(file.path, min_free_bytes=min_free_bytes)
        self._tallies: Counter[str] = Counter()
        self._leases = Leases(self._tallies)
        self._ready = asyncio.Event()
        self._adopting = asyncio.Lock()
        self._sends_from = 0.0  # on the clock that never goes back: what is reserved ends here
        loop = asyncio.get_running_loop()
        self._appends = Appends(self._tallies, wake=partial(loop.call_soon_threadsafe, self._ready.set))
        self._writer = Writer(file, self._upkeep, self._appends, opened=self._opened)

    async def open(self) -> None:
        await self._writer.open()

    def now(self) -> float:
        return time.time()

    async def append(self, decide: Decide[T], reads: Reads = NO_READS) -> Decision[T]:
        self._upkeep.require_space()
        return await self._writer.submit(lambda _: self._appends.append(decide), reads)

    def _submit(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *arguments: P.args, **named: P.kwargs
    ) -> asyncio.Future[T]:
        """For all but appends, which come before it in the transaction."""

        def job(connection: sqlite3.Connection) -> T:
            self._appends.flush()
            return work(connection, *arguments, **named)

        return self._writer.submit(job)

    def unvouched(self) -> Unvouched:
        headroom = self._upkeep.headroom_bytes()
        return Unvouched(self._appends.unvouched_bytes, headroom if headroom is not None else math.inf)

    async def claim(
        self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None, share: Share = NO_SHARE
    ) -> Claim:
        return await self._submit(self._claim, lanes, per_lane, lease_seconds, probe, share)

    async def holds(self, lease: Lease) -> bool:
        return (lease.lane, lease.epoch) not in self._leases.revoked

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        return await self._submit(self._leases.move_gate, before, after)

    async def settle(self, settlement: Settlement) -> bool:
        return await self._submit(self._settle, settlement)

    async def wait_ready(self, timeout_seconds: float) -> None:
        if not self._ready.is_set():
            next_ready = await self._submit(self._leases.next_ready)
            if next_ready is not None:
                timeout_seconds = min(timeout_seconds, next_ready - time.time())
        if timeout_seconds > 0:
            await wait(self._ready, timeout_seconds)
        self._ready.clear()

    async def reserve(self, sends: int, per_second: float) -> float:
        """One process sends, so that the schedule is kept in memory."""
        now = time.monotonic()
        first = max(now, self._sends_from)
        self._sends_from = first + sends / per_second
        return first - now

    async def erase(self, key: str) -> Erased:
        erased = await self._submit(self._erase, key)
        held, identities = await self._finish_erasures()
        return msgspec.structs.replace(erased, held=held, identities=identities)

    async def _finish_erasures(self) -> tuple[int, int]:
        """Step by step through what is known of browsers, for everybody whose erasure has begun; pushes held and log-ins forgotten."""
        keys = await self._submit(read_erasures)
        held, identities = 0, 0
        after: str | None = ""
        while keys and after is not None:
            gone, forgotten, after = await self._submit(self._erase_identities, keys, after)
            held, identities = held + gone, identities + forgotten
        if keys:
            await self._submit(end_erasures, keys)
            self._upkeep.cut_log_soon()
        return held, identities

    async def sweep(self) -> None:
        await self._finish_erasures()
        if not await self._submit(self._may_sweep):
            return
        sweep = Sweep(time.time(), hold_age=self._hold_age, dead_age=self._dead_age, tallies=self._tallies)
        for step in sweep.steps:
            cursor: float | None = 0.0
            while cursor is not None:
                cursor = await self._submit(self._sweep, step, cursor)
        more = True
        while more:
            more = await self._submit(vacuum_step)
            await asyncio.sleep(_VACUUM_PAUSE_SECONDS)  # pushes go first

    @property
    def trouble(self) -> None:
        """Errors say it."""

    async def ready(self) -> None:
        self._upkeep.require_space(at_once=True)
        await self._writer.submit(self._prove, NO_READS)

    async def stats(self) -> Stats:
        stats = await self._submit(read_stats, self._tallies)
        return msgspec.structs.replace(stats, health=self._upkeep.health())

    async def dead_letters(self, matching: DeadFilter, after: int, limit: int) -> Sequence[DeadLetter]:
        return await self._submit(read_dead_letters, matching, after, limit)

    async def replay(self, matching: DeadFilter, limit: int) -> int:
        return await self._submit(self._replay, matching, limit)

    async def discard(self, matching: DeadFilter, limit: int) -> int:
        return await self._submit(self._discard, matching, limit)

    async def adopt(self, file: Path) -> AsyncIterator[Adopted]:
        if self._adopting.locked():
            raise StoreRefused("Another file is being recovered. Wait until that is done.")
        if self._file.has_open(file):
            raise StoreRefused(f"{file} is the store in use. Name one that was set aside.")
        async with self._adopting:
            salvage = Salvage(file, _workplace(self.path))
            try:
                steps = salvage.steps()
                while await asyncio.to_thread(_has_more, steps):
                    yield Adopted()
                if await self._submit(is_adopted, salvage.digest):
                    yield Adopted(before=True)
                    return
                async for adopted in self._take_back(salvage):
                    yield adopted
                await self._submit(note_adopted, file.name, salvage.digest if salvage.whole else b"")
                self._upkeep.adopted = await self._submit(adopted_names)
            finally:
                await asyncio.to_thread(salvage.close)

    async def _take_back(self, salvage: Salvage) -> AsyncIterator[Adopted]:
        so_far = Adopted()
        jobs = Adoption(salvage, self._tallies, self.site_key, time.time()).jobs()
        while (job := await asyncio.to_thread(next, jobs, None)) is not None:
            self._upkeep.require_space()
            so_far = total([so_far, await self._submit(self._adopt, job)])
            yield so_far
        yield msgspec.structs.replace(so_far, missing=salvage.missing)

    async def sign_ups(self, matching: SignUpFilter, after: int, limit: int) -> Sequence[SignUp]:
        found: list[SignUp] = []
        matches, cursor = matcher(matching), after
        while len(found) < limit:
            rows = await self._submit(read_sign_ups, cursor, STEP_ROWS)
            found += [row for row in rows if matches(row)]
            if len(rows) < STEP_ROWS:
                break
            cursor = rows[-1].seq
        return found[:limit]

    async def drop_sign_ups(self, matching: SignUpFilter, limit: int) -> int:
        gone = 0
        after: int | None = 0
        while gone < limit and after is not None:
            dropped, after = await self._submit(self._drop_sign_ups, matching, after, limit - gone)
            gone += dropped
        return gone

    async def durability(self) -> Durability:
        settings = await self._submit(_settings)
        facts = await asyncio.to_thread(place_facts, self.path)
        return Durability("an acknowledged push is in the write-ahead log, synced to the disk", {**settings, **facts})

    async def failure(self) -> str:
        return await asyncio.shield(self._writer.failed)

    async def close(self) -> None:
        await self._writer.close()
        self._file.release()

    # --- on the thread

    def _opened(self, connection: sqlite3.Connection, *, first: bool) -> None:
        self.site_key = self._file.site_key
        self._appends.use(connection, self.site_key)
        self._upkeep.adopted = adopted_names(connection)
        if not first:
            return  # its leases are of senders of this process, which are still at work
        connection.execute("BEGIN IMMEDIATE")
        if value(connection, "schedule", SWEPT) is None:  # a new store, or one of an older version
            connection.execute(SQL["set_schedule"], (SWEPT, value(connection, "newest_row") or time.time()))
        self._leases.end_abandoned_leases(connection)
        self._appends.before_commit(connection)
        connection.execute("COMMIT")

    def _claim(
        self,
        connection: sqlite3.Connection,
        lanes: int,
        per_lane: int,
        lease_seconds: float,
        probe: Closure | None,
        share: Share,
    ) -> Claim:
        if self._leases.follow_clock(connection):
            self._appends.forget()
        return self._leases.claim(connection, lanes, per_lane, lease_seconds, probe, share)

    def _may_sweep(self, connection: sqlite3.Connection) -> bool:
        """Returns whether the clock is trusted enough to delete records by age, and records the time if so."""
        now, since = time.time(), self._upkeep.clock_doubted
        known = value(connection, "schedule", SWEPT)
        distrusted_for = time.monotonic() - since if since is not None else 0.0
        if not may_sweep(now, known, distrusted_for=distrusted_for):
            self._upkeep.doubt_clock()
            return False
        self._upkeep.trust_clock()
        ahead = known is None or now > known or since is not None
        connection.execute(SQL["set_schedule"], (SWEPT, now if ahead else known))
        return True

    def _prove(self, connection: sqlite3.Connection) -> None:
        """Proves that the store can write. After a failure it makes an append, which needs as much as any push does."""
        if self._writer.writes:
            value(connection, "counter", "accepted")
        else:
            self._appends.prove()
            connection.execute(SQL["tally"], ("gauge:proofs", 1))

    def _settle(self, connection: sqlite3.Connection, settlement: Settlement) -> bool:
        self._appends.ready_lanes = True
        lease = settlement.lease
        moves = any(isinstance(push.body, Attributes) and push.body.new_email is not None for push in lease.pushes)
        if moves or (lease.lane, lease.epoch) in self._leases.revoked:
            self._appends.forget()  # a lane may move, or go
        return self._leases.settle(connection, settlement)

    def _erase(self, connection: sqlite3.Connection, key: str) -> Erased:
        erased, leases = erase_person(connection, key, self.site_key, time.time(), self._tallies)
        self._leases.revoked |= leases
        self._appends.forget()
        return erased

    def _erase_identities(
        self, connection: sqlite3.Connection, keys: Mapping[str, float], after: str
    ) -> tuple[int, int, str | None]:
        """Returns how many pushes were held, how many log-ins are forgotten, and where to go on."""
        identities, visitors, after_this = forget_identities(connection, keys, after)
        sizes = [size for each in visitors for (size,) in connection.execute(SQL["unhold_visitor"], (each,))]
        self._tallies.update({"hold_erased": len(sizes), **unheld(sizes)})
        self._appends.forget()
        return len(sizes), identities, after_this

    def _sweep(self, connection: sqlite3.Connection, step: Step, cursor: float) -> float | None:
        self._appends.forget()
        return step(cursor, connection)

    def _adopt(self, connection: sqlite3.Connection, work: Work) -> Adopted:
        self._appends.forget()
        self._appends.ready_lanes = True
        return work(connection)

    def _replay(self, connection: sqlite3.Connection, matching: DeadFilter, limit: int) -> int:
        letters = read_dead_letters(connection, matching, 0, limit)
        for letter in letters:
            (lane,) = connection.execute(SQL["undead"], (letter.seq, increments(letter.body))).fetchone()
            vouched = letter.trust is Trust.VERIFIED
            if vouched and value(connection, "is_put_off", lane):
                end_turns(connection, lane, self._tallies, time.time())
            if not connection.execute(SQL["lane_regains"], (lane, time.time(), letter.size, vouched)).rowcount:
                raise sqlite3.IntegrityError("a dead letter's lane is gone")
            connection.execute(SQL["remove_letter"], (letter.seq,))
        self._tallies.update(replayed(len(letters)))
        self._appends.ready_lanes = self._appends.ready_lanes or bool(letters)
        return len(letters)

    def _discard(self, connection: sqlite3.Connection, matching: DeadFilter, limit: int) -> int:
        letters = read_dead_letters(connection, matching, 0, limit)
        connection.executemany(SQL["remove_letter"], [(letter.seq,) for letter in letters])
        self._tallies.update(discarded((letter.trust, letter.size) for letter in letters))
        return len(letters)

    def _drop_sign_ups(
        self, connection: sqlite3.Connection, matching: SignUpFilter, after: int, limit: int
    ) -> tuple[int, int | None]:
        """Looks at some of the queue; returns how many lanes were dropped, and where to go on."""
        rows = read_sign_ups(connection, after, STEP_ROWS)
        found = dict.fromkeys(row.lane for row in rows if matcher(matching)(row))
        gone = drop_lanes(connection, list(found)[:limit], self._tallies, time.time())
        self._appends.forget()
        return gone, rows[-1].seq if len(rows) == STEP_ROWS else None


def _has_more(steps: Iterator[None]) -> bool:
    """Runs steps for a while; returns whether any are left."""
    started = time.monotonic()
    return any(time.monotonic() - started > _SAID_SECONDS for _ in steps)


def _workplace(path: Path) -> Path:
    """Returns the working directory of an adoption."""
    return path.with_name(f"{path.name}.adopting")


def _settings(connection: sqlite3.Connection) -> dict[str, str]:
    return {
        "SQLite": sqlite3.sqlite_version,
        "journal_mode": str(pragma(connection, "journal_mode")),
        "synchronous": {2: "FULL", 3: "EXTRA"}[pragma(connection, "synchronous")],
    }


async def open_outbox(
    path: Path, *, create: bool, hold_age: timedelta, dead_age: timedelta, min_free_bytes: int
) -> SqliteOutbox:
    """Opens the file, or makes it if `create`. Raises `StoreRefused` when it must not be used like this."""
    file = StoreFile(path, create=create)
    file.take()
    try:
        shutil.rmtree(_workplace(path), ignore_errors=True)  # of a process that was killed
        outbox = SqliteOutbox(file, hold_age=hold_age, dead_age=dead_age, min_free_bytes=min_free_bytes)
        await outbox.open()
    except BaseException:
        file.release()
        raise
    return outbox
