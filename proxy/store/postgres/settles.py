"""What becomes of leases in the PostgreSQL outbox: settled many at a time, each fenced by its epoch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from proxy.core.calls import Attributes
from proxy.core.emails import lane_key
from proxy.errors import StoreUnavailable
from proxy.store.ledger import WAITING
from proxy.store.postgres.database import Database, Overtaken, Query, Rows, StatementFailed, Transaction
from proxy.store.postgres.groups import Job
from proxy.store.postgres.leases import Burial, bury, tally_of
from proxy.store.postgres.locks import PERSON, lock
from proxy.store.postgres.people import move_lane
from proxy.store.postgres.reads import tally
from proxy.store.records import DeadReason, Fate, Settled, Settlement


class _Held(NamedTuple):
    """A settlement whose lease holds. `revoked`: the person was erased under it, so that its pushes are gone, and counted."""

    settlement: Settlement
    revoked: bool

    @property
    def results(self) -> Sequence[Settled]:
        return () if self.revoked else self.settlement.results


async def settle(database: Database, jobs: Sequence[Job[Settlement]]) -> None:
    """Answers each job with whether its lease held."""
    moving = [job for job in jobs if new_addresses(job.ask)]
    together = [job for job in jobs if job not in moving]
    if together:
        await _settle_together(database, together)
    for job in moving:
        try:
            held = await database.run(lambda transaction, job=job: _settle_moving(transaction, job.ask))  # type: ignore[misc]
            job.answer(held)
        except StoreUnavailable as error:
            job.fail(error)


async def _settle_together(database: Database, jobs: Sequence[Job[Settlement]]) -> None:
    settlements = [job.ask for job in jobs]
    try:
        held = await database.run(lambda transaction: _settle_all(transaction, settlements))
    except StatementFailed as error:
        if len(jobs) == 1:
            jobs[0].fail(error)
            return
        for job in jobs:
            await _settle_together(database, [job])
        return
    for number, job in enumerate(jobs):
        job.answer(number in held)


async def _settle_all(transaction: Transaction, settlements: Sequence[Settlement]) -> set[int]:
    """Which of them held, by their places."""
    leases, *buried = await transaction.run(
        ("lock_leases", {"lanes": [settlement.lease.lane for settlement in settlements]}), *_addresses(settlements)
    )
    held: dict[int, tuple[int, _Held]] = {}
    found = {lane: (epoch, leased, revoked) for lane, epoch, leased, revoked, _ in leases.rows}
    for number, settlement in enumerate(settlements):
        lease = settlement.lease
        epoch, leased, revoked = found.get(lease.lane, (0, False, False))
        if leased and epoch == lease.epoch and lease.lane not in held:
            held[lease.lane] = number, _Held(settlement, revoked)
    if held:
        queries, tallies = _writes([each for _, each in held.values()], _by_seq(buried))
        await transaction.commit(*queries, tally(tallies))
    return {number for number, _ in held.values()}


async def _settle_moving(transaction: Transaction, settlement: Settlement) -> bool:
    """One that SendX has confirmed a change of address under: the people of both addresses are locked before the lanes."""
    lease = settlement.lease
    addresses = new_addresses(settlement)
    (found,) = await transaction.run(("lane_keys", {"lanes": [lease.lane]}))
    if not found.rows:
        return False
    old = found.rows[0][1]
    keys = {old, *map(lane_key, addresses)}
    _, leases, *buried = await transaction.run(
        lock((PERSON, key) for key in keys),
        ("lock_people", {"lanes": [lease.lane], "keys": list(keys)}),
        *_addresses([settlement]),
    )
    own = next((row for row in leases.rows if row[0] == lease.lane), None)
    if own is None or not own[2] or own[1] != lease.epoch:
        return False
    if own[4] != old:
        raise Overtaken
    held = _Held(settlement, revoked=own[3])
    queries, tallies = _writes([held], _by_seq(buried))
    await transaction.run(*queries)
    if not held.revoked:
        for address in addresses:
            await move_lane(transaction, lease.lane, address)
    await transaction.commit(tally(tallies))
    return True


def new_addresses(settlement: Settlement) -> list[str]:
    """The changes of address that SendX has confirmed, in order."""
    delivered = {result.seq for result in settlement.results if result.fate is Fate.DELIVERED}
    bodies = [push.body for push in settlement.lease.pushes if push.seq in delivered]
    return [body.new_email for body in bodies if isinstance(body, Attributes) and body.new_email is not None]


def _addresses(settlements: Sequence[Settlement]) -> list[Query]:
    """As they were pushed, of what becomes a dead letter, if anything does: under a lease, what has moved has its new address."""
    results = [result for settlement in settlements for result in settlement.results]
    dead = [result.seq for result in results if result.fate is Fate.DEAD]
    return [("addresses", {"seqs": dead})] if dead else []


def _by_seq(buried: Sequence[Rows]) -> dict[int, str]:
    return dict(row for result in buried for row in result.rows)


def _writes(held: Sequence[_Held], addresses: dict[int, str]) -> tuple[list[Query], Counter[str]]:
    """What carries the settlements out, and what to tally behind it."""
    results = [result for each in held for result in each.results]
    delivered = [result for result in results if result.fate is Fate.DELIVERED]
    attempted = [result.seq for result in results if result.fate is Fate.KEPT and result.attempted]
    burials = [
        Burial(result.seq, result.attempted, result.reason or DeadReason.REJECTED, result.detail, addresses[result.seq])
        for result in results
        if result.fate is Fate.DEAD
    ]
    gone = {result.seq for result in delivered} | {burial.seq for burial in burials}
    kept = [push.seq for each in held for push in each.settlement.lease.pushes if _increments(push.body)]
    queries: list[Query] = [("settle_lanes", _lane_columns(held))]
    if delivered:
        queries.append(("remove", {"seqs": [result.seq for result in delivered]}))
    if burials:
        queries.append(bury(burials))
    if attempted:
        queries.append(("attempted", {"seqs": attempted}))
    if set(kept) - gone:
        queries.append(("unstart", {"seqs": list(set(kept) - gone)}))
    revoked = [each.settlement.lease.lane for each in held if each.revoked]
    if revoked:
        queries.append(("forget_lanes", {"lanes": revoked}))
    tallies = tally_of(burials)
    unchanged = sum(result.unchanged for result in delivered)
    tallies.update({"delivered": len(delivered), "unchanged": unchanged, WAITING: -len(delivered)})
    return queries, tallies


def _increments(body: object) -> bool:
    return isinstance(body, Attributes) and body.increments


def _lane_columns(held: Sequence[_Held]) -> dict[str, object]:
    settlements = [each.settlement for each in held]
    now = time.time()
    learned = [not each.revoked and each.settlement.last != each.settlement.lease.last for each in held]
    return {
        "lanes": [settlement.lease.lane for settlement in settlements],
        "gone": [sum(result.fate is not Fate.KEPT for result in each.results) for each in held],
        "failures": [settlement.failures for settlement in settlements],
        # As a duration: this node's clock may be another than the database's.
        "delays": [0.0 if each.retry_at is None else each.retry_at - now for each in settlements],
        "learned": learned,
        "digests": [settlement.last.digest if settlement.last else None for settlement in settlements],
        "digest_ats": [settlement.last.at if settlement.last else None for settlement in settlements],
    }
