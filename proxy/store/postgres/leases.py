"""Lanes of the PostgreSQL outbox on their way out: claimed under a lease, and what becomes of a lease that nobody settles; and the gate.

The database's clock says when a lane is ready and when a lease ends, because no two nodes agree on the time. What a node is told of it
(`Lease.until`) is counted from before it asked, so it gives up no later than the others take over.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from proxy.core.emails import lane_key
from proxy.core.gate import Closure, merge_closures
from proxy.core.visitors import Trust
from proxy.store.ledger import DEAD, WAITING
from proxy.store.postgres.database import Database, Query, Transaction
from proxy.store.postgres.groups import Job
from proxy.store.postgres.locks import GATE, lock, share_lock
from proxy.store.postgres.reads import decode_closure, tally, waiting
from proxy.store.records import Claim, DeadReason, LastIdentify, Lease, Waiting

_INDETERMINATE = "its outcome is unknown: the process ended, or the lease, while it was being sent"
_GATE = (GATE, "")


class _Lane(NamedTuple):
    id: int
    leased: bool  # under a lease that has ended
    failures: int
    key: str
    address: str | None
    digest: bytes | None
    digest_at: float | None


class _Terms(NamedTuple):
    """`until`: when the leases end, on this node's clock."""

    per_lane: int
    seconds: float
    until: float


class Burial(NamedTuple):
    """A push that becomes a dead letter. `address`: as it was pushed."""

    seq: int
    attempted: bool
    reason: DeadReason
    detail: str
    address: str


class Lanes:
    """Claims; `own`: the leases of this process that are not settled yet, by lane, as epochs."""

    def __init__(self, database: Database) -> None:
        self.own: dict[int, int] = {}
        self._database = database
        self._probe_until: float | None = None  # of the probe that this process has out, on the database's clock

    async def claim(self, lanes: int, per_lane: int, lease_seconds: float, probe: Closure | None) -> Claim:
        terms = _Terms(per_lane, lease_seconds, time.time() + lease_seconds)

        async def claim_all(transaction: Transaction) -> Claim:
            _, gate, found = await transaction.run(share_lock(_GATE), ("gate", {}), ("claimable", {"lanes": lanes}))
            closure = decode_closure(gate.rows[0][0])
            leases = await self._lease(transaction, found.rows, terms, probe=False)
            return Claim(leases, closure)

        async def claim_probe(transaction: Transaction) -> Claim:
            _, gate, found = await transaction.run(
                lock((_GATE,)), ("gate", {}), ("claimable_for_probe", {"seconds": lease_seconds})
            )
            closure = decode_closure(gate.rows[0][0])
            rows = found.rows if closure == probe else []
            return Claim(await self._lease(transaction, rows, terms, probe=True), closure)

        claim = await self._database.run(claim_all)
        if claim.closure is not None and claim.closure == probe:
            claim = await self._database.run(claim_probe)
        self.own.update({lease.lane: lease.epoch for lease in claim.leases})
        return claim

    async def _lease(
        self, transaction: Transaction, rows: Sequence[tuple[Any, ...]], terms: _Terms, *, probe: bool
    ) -> tuple[Lease, ...]:
        """Leases the heads of lanes whose rows this transaction has locked, and commits."""
        lanes = {row[0]: _Lane(*row) for row in rows}
        if not lanes:
            return ()
        expired = [lane.id for lane in lanes.values() if lane.leased]
        tallies = await end_leases(transaction, expired) if expired else Counter[str]()
        (found,) = await transaction.run(("heads", {"lanes": list(lanes), "per_lane": terms.per_lane}))
        heads, started = _heads(lanes, found.rows)
        asserted = [lane for lane, pushes in heads.items() if pushes[0].trust is Trust.ASSERTED]
        queries: dict[str, Mapping[str, object]] = {"lease": {"lanes": sorted(heads), "seconds": terms.seconds}}
        if asserted:
            queries["vouched"] = {"lanes": asserted}
        if started:
            queries["start"] = {"seqs": started}
        if probe and heads:
            queries["probe"] = {"seconds": terms.seconds}
        if tallies:
            queries.update((tally(tallies),))
        results = dict(zip(queries, await transaction.commit(*queries.items()), strict=True))
        if "probe" in results:
            self._probe_until = results["probe"].rows[0][0]
        epochs = dict(results["lease"].rows)
        vouched = {lane for (lane,) in results["vouched"].rows} if asserted else set()
        return tuple(
            Lease(lane, epochs[lane], terms.until, lanes[lane].failures, pushes, _last(lanes[lane]), lane in vouched)
            for lane, pushes in heads.items()
        )

    async def close(self) -> None:
        """Ends the leases and the probe of this process, so that nobody has to wait for them."""
        own, probe_until = self.own, self._probe_until
        if not own and probe_until is None:
            return

        async def end(transaction: Transaction) -> None:
            _, found = await transaction.run(lock((_GATE,)), ("lock_leases", {"lanes": list(own)}))
            held = [lane for lane, epoch, leased, *_ in found.rows if leased and own[lane] == epoch]
            tallies = await end_leases(transaction, held)
            await transaction.commit(("end_probe", {"until": probe_until}), tally(tallies))

        await self._database.run(end)

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        async def move(transaction: Transaction) -> Closure | None:
            _, gate = await transaction.run(lock((_GATE,)), ("gate", {}))
            closure = merge_closures(decode_closure(gate.rows[0][0]), before, after)
            encoded = msgspec.json.encode(closure) if closure is not None else None
            await transaction.commit(("move_gate", {"closure": encoded}))
            return closure

        closure = await self._database.run(move)
        self._probe_until = None
        return closure

    async def holds(self, jobs: Sequence[Job[Lease]]) -> None:
        """Answers each job with whether its lease may still be sent under."""
        asked = {"lanes": [job.ask.lane for job in jobs]}
        (found,) = await self._database.read(("held_leases", asked))
        held = set(found.rows)
        for job in jobs:
            job.answer((job.ask.lane, job.ask.epoch) in held)


async def end_leases(transaction: Transaction, lanes: Sequence[int]) -> Counter[str]:
    """Leases whose holder is gone: an increment that was started may have been applied, the rest is sent again. Returns what to tally.

    The lanes are locked. What was on the wire may have been applied as well, so that what SendX has of the contact is not known any more.
    """
    (found,) = await transaction.run(("started", {"lanes": list(lanes)}))
    burials = [Burial(seq, True, DeadReason.AMBIGUOUS, _INDETERMINATE, address) for _, seq, address in found.rows]
    gone = Counter(lane for lane, _, _ in found.rows)
    await transaction.run(bury(burials), ("end_leases", {"lanes": list(lanes), "gone": [gone[lane] for lane in lanes]}))
    return tally_of(burials)


def bury(burials: Sequence[Burial]) -> Query:
    columns = {
        "seqs": [burial.seq for burial in burials],
        "attempted": [int(burial.attempted) for burial in burials],
        "reasons": [str(burial.reason) for burial in burials],
        "details": [burial.detail for burial in burials],
        "keys": [lane_key(burial.address) for burial in burials],
    }
    return "bury", columns


def tally_of(burials: Sequence[Burial]) -> Counter[str]:
    tallies = Counter(f"dead:{burial.reason}" for burial in burials)
    tallies.update({WAITING: -len(burials), DEAD: len(burials)})
    return tallies


def _heads(
    lanes: dict[int, _Lane], rows: Sequence[tuple[Any, ...]]
) -> tuple[dict[int, tuple[Waiting, ...]], list[int]]:
    """The pushes to send next, by lane, and those of them to be marked as started. An increment goes alone."""
    heads: dict[int, tuple[Waiting, ...]] = {}
    full: set[int] = set()
    started: list[int] = []
    for lane, *columns, increments in rows:
        head = heads.get(lane, ())
        if lane in full or (increments and head):
            full.add(lane)
            continue
        heads[lane] = (*head, _destined(lanes[lane], waiting(*columns)))
        if increments:
            full.add(lane)
            started.append(columns[0])
    return heads, started


def _destined(lane: _Lane, push: Waiting) -> Waiting:
    """What was pushed for an address that has moved since is sent to the new one."""
    if lane.address is None or lane_key(push.address) == lane.key:
        return push
    return msgspec.structs.replace(push, address=lane.address)


def _last(lane: _Lane) -> LastIdentify | None:
    if lane.digest is None or lane.digest_at is None or lane.leased:
        return None
    return LastIdentify(lane.digest, lane.digest_at)
