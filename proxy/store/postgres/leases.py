"""Leases of the PostgreSQL outbox: claimed, settled many at a time, and ended if nobody settles them; and the gate.

The database's clock says when a lane is ready and when a lease ends, because no two nodes agree on the time (`sight`). A node counts
`Lease.until` from before it asked, so it gives up no later than the others take over. `store.leases` decides what a lease is made of and what its end
changes.
"""

import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from proxy.core.emails import lane_key
from proxy.core.gate import Closure, merge_closures
from proxy.core.turns import Share
from proxy.errors import StoreUnavailable
from proxy.store.leases import (
    Changes,
    Head,
    LaneRow,
    changes_of,
    changes_of_abandoned,
    head_of,
    lease_of,
    new_addresses,
    untouched,
)
from proxy.store.postgres.database import (
    Database,
    Overtaken,
    Query,
    Rows,
    StatementFailed,
    Transaction,
    columns,
    filled,
)
from proxy.store.postgres.floor import Floors
from proxy.store.postgres.groups import Job
from proxy.store.postgres.locks import GATE, PERSON, lock, share_lock
from proxy.store.postgres.people import move_lane
from proxy.store.postgres.reads import tally
from proxy.store.postgres.turns import QUEUE, Standing, Taken, join, take_turns
from proxy.store.records import Claim, Fate, Lease, Settlement
from proxy.store.rows import decode_closure, encode_closure

_GATE = (GATE, "")


class _Doubt(NamedTuple):
    """A claim on its way, all that is needed to end its leases if no answer comes: nobody else knows of them."""

    lanes: Mapping[int, LaneRow]
    heads: Mapping[int, Head]
    sign_ups: Mapping[int, str]
    epoch: int
    until: float


class NodeLeases:
    """Claims lanes. `floors`: bound the scans for ready lanes. `own`: epochs of this process's unsettled leases, by lane.

    `turn_at`: when the next sign-up may have its turn, as of the last claim, on the monotonic clock.
    """

    def __init__(self, database: Database) -> None:
        self.own: dict[int, int] = {}
        self.floors = Floors()
        self.turn_at = float("inf")
        self._database = database
        self._doubt: _Doubt | None = None
        self._probe_until: float | None = None  # of the probe that this process has out, on the database's clock

    async def claim(self, lanes: int, per_lane: int, seconds: float, probe: Closure | None, share: Share) -> Claim:
        await self._give_back()
        mosts = (per_lane, min(per_lane, share.per_lane))
        claim = await self._database.run(
            partial(self._claim_all, lanes=lanes, mosts=mosts, seconds=seconds, share=share)
        )
        if claim.closure is not None and claim.closure == probe:
            work = partial(self._claim_probe, probe=probe, mosts=mosts, seconds=seconds, share=share)
            claim = await self._database.run(work)
        self._doubt = None
        self.own.update({lease.lane: lease.epoch for lease in claim.leases})
        return claim

    async def _claim_all(
        self, transaction: Transaction, *, lanes: int, mosts: tuple[int, int], seconds: float, share: Share
    ) -> Claim:
        start = self.floors.due(time.monotonic())
        floors = start or self.floors.values
        look: list[Query] = [] if start is None else [("next_ready", {**start, "ahead": 0})]
        _, gate, found, *looked = await transaction.run(
            share_lock(_GATE),
            ("before_claim", {"stranger_floor": floors["stranger_floor"]}),
            ("claimable", {"lanes": lanes, "floor": floors["floor"]}),
            *look,
        )
        for earliest in looked:
            self.floors.found(earliest.rows[0])
        ((closure, has_strangers),) = gate.rows
        rows, taken = found.rows, Taken()
        room = max(min(lanes, share.least), lanes - len(rows))
        if has_strangers and closure is None and room:
            strangers, taken = await self._strangers(transaction, share, room, floors["stranger_floor"])
            rows = [*rows[: lanes - len(strangers)], *strangers]
        self.turn_at = float("inf") if taken.next_turn is None else time.monotonic() + taken.next_turn
        leases = await self._lease(transaction, rows, taken, mosts=mosts, seconds=seconds)
        return Claim(leases, decode_closure(closure))

    async def _strangers(
        self, transaction: Transaction, share: Share, room: int, floor: float
    ) -> tuple[list[tuple[Any, ...]], Taken]:
        """Returns up to `room` lanes of strangers, which it locks: turns that are due, then those that are ready."""
        ready, queue = await transaction.run(
            ("claimable_strangers", {"stranger_floor": floor, "lanes": room}), ("standing", {})
        )
        taken = Taken(next_turn=Standing(*queue.rows[0]).next_turn(share))
        if taken.next_turn == 0.0:
            taken = await take_turns(transaction, share, room)
        return [*taken.rows, *ready.rows][:room], taken

    async def _claim_probe(
        self, transaction: Transaction, *, probe: Closure, mosts: tuple[int, int], seconds: float, share: Share
    ) -> Claim:
        _, gate, may_probe, found = await transaction.run(
            lock((_GATE,)),
            ("gate", {}),
            ("may_probe", {"seconds": seconds}),
            ("claimable_for_probe", self.floors.values),
        )
        closure = decode_closure(gate.value)
        if closure != probe or not may_probe.value:
            return Claim((), closure)
        taken = Taken() if found.rows else await take_turns(transaction, share, 1)
        rows = [*found.rows, *taken.rows]
        return Claim(await self._lease(transaction, rows, taken, mosts=mosts, seconds=seconds, probe=True), closure)

    async def _lease(
        self,
        transaction: Transaction,
        rows: Sequence[tuple[Any, ...]],
        taken: Taken,
        *,
        mosts: tuple[int, int],
        seconds: float,
        probe: bool = False,
    ) -> tuple[Lease, ...]:
        """Leases the heads of lanes whose rows this transaction has locked, and commits. `mosts`: pushes of a vouched lane, of a stranger's."""
        lanes, until = {row[0]: LaneRow(*row[:-1]) for row in rows}, self._database.sight.now() + seconds
        if not lanes:
            if taken.changed:
                await transaction.commit()
            return ()
        expired = [lane.id for lane in lanes.values() if lane.leased]
        tallies = await _end_leases(transaction, expired) if expired else {}
        (found,) = await transaction.run(("heads", {"lanes": list(lanes), "mosts": [mosts[row[-1]] for row in rows]}))
        by_lane = itertools.groupby(found.rows, itemgetter(-1))
        heads = {lane: head_of(lanes[lane], (row[:-1] for row in pushes)) for lane, pushes in by_lane}
        epoch = int(self._database.sight.now() * 1e6)
        vouched = [lane for lane, head in heads.items() if not head.asserted]
        asserted = [lane for lane, head in heads.items() if head.asserted]
        queries = filled(
            (
                ("lease", {"lanes": sorted(vouched), "seconds": seconds, "epoch": epoch}),
                ("lease_asserted", {"lanes": sorted(asserted), "seconds": seconds, "epoch": epoch}),
                ("start", {"seqs": [head.pushes[0].seq for head in heads.values() if head.starts]}),
                ("probe", {"seconds": seconds if probe and heads else 0}),
                tally(tallies),
            )
        )
        self._doubt = _Doubt(lanes, heads, taken.clients, epoch, until)
        results = await transaction.commit(*queries)
        found_by = {name: result.rows for (name, _), result in zip(queries, results, strict=True)}
        if "probe" in found_by:
            ((self._probe_until,),) = found_by["probe"]
        leased = {row[0]: row for row in (*found_by.get("lease", ()), *found_by.get("lease_asserted", ()))}
        return tuple(
            lease_of(
                lanes[lane],
                head,
                epoch=leased[lane][1],
                until=until,
                vouched_waits=not leased[lane][2],
                sign_up=taken.clients.get(lane, ""),
            )
            for lane, head in heads.items()
        )

    async def _give_back(self) -> None:
        """Ends the leases of a claim whose commit got no answer, if they hold: nothing was sent under them, so no increment is in doubt."""
        doubt = self._doubt
        if doubt is None:
            return
        leases = [
            lease_of(
                doubt.lanes[lane],
                head,
                epoch=doubt.epoch,
                until=doubt.until,
                vouched_waits=False,
                sign_up=doubt.sign_ups.get(lane, ""),
            )
            for lane, head in doubt.heads.items()
        ]
        await self._database.run(lambda transaction: _settle_all(transaction, [untouched(lease) for lease in leases]))
        self._doubt = None

    async def close(self) -> None:
        """Ends the leases and the probe of this process, so that nobody has to wait for them."""
        await self._give_back()
        own, probe_until = self.own, self._probe_until
        if not own and probe_until is None:
            return

        async def end(transaction: Transaction) -> None:
            _, found = await transaction.run(lock((_GATE,)), ("lock_leases", {"lanes": list(own)}))
            held = [lane for lane, epoch, leased, *_ in found.rows if leased and own[lane] == epoch]
            tallies = await _end_leases(transaction, held)
            await transaction.commit(("end_probe", {"until": probe_until}), tally(tallies))

        await self._database.run(end)

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        async def move(transaction: Transaction) -> Closure | None:
            _, gate = await transaction.run(lock((_GATE,)), ("gate", {}))
            closure = merge_closures(decode_closure(gate.value), before, after)
            await transaction.commit(("move_gate", {"closure": encode_closure(closure)}))
            return closure

        closure = await self._database.run(move)
        self._probe_until = None
        return closure

    async def holds(self, jobs: Sequence[Job[Lease]]) -> None:
        """Answers each job with whether its lease may still be sent under."""
        (found,) = await self._database.read(("held_leases", {"lanes": [job.ask.lane for job in jobs]}))
        held = set(found.rows)
        for job in jobs:
            job.answer((job.ask.lane, job.ask.epoch) in held)


async def _end_leases(transaction: Transaction, lanes: Sequence[int]) -> Mapping[str, int]:
    """Ends leases whose holder is gone; returns what to tally. The lanes are locked."""
    (found,) = await transaction.run(("started", {"lanes": list(lanes)}))
    changes = changes_of_abandoned(lanes, [(lane, seq, size) for lane, seq, _, size in found.rows])
    await transaction.run(*_writes(changes, {seq: address for _, seq, address, _ in found.rows}, transaction.now()))
    return changes.tallies


# --- settlements


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


async def _settle_all(transaction: Transaction, settlements: Sequence[Settlement]) -> Collection[int]:
    """Returns which of them held, by their places."""
    queue = [lock((QUEUE,))] if any(map(_needs_turn, settlements)) else []
    lanes = {"lanes": [settlement.lease.lane for settlement in settlements]}
    leases, *buried = (await transaction.run(*queue, ("lock_leases", lanes), *_addresses(settlements)))[len(queue) :]
    held: dict[int, int] = {}  # by lane
    found = {lane: (epoch, leased) for lane, epoch, leased, *_ in leases.rows}
    for number, settlement in enumerate(settlements):
        lease = settlement.lease
        if found.get(lease.lane) == (lease.epoch, True) and lease.lane not in held:
            held[lease.lane] = number
    if held:
        revoked = [lane for lane, _, _, revoked, _ in leases.rows if revoked and lane in held]
        changes = changes_of([settlements[number] for number in held.values()], revoked)
        writes = _writes(changes, _by_seq(buried), transaction.now(), revoked, {row[0]: row[-1] for row in leases.rows})
        await transaction.commit(*writes, tally(changes.tallies))
    return held.values()


def _needs_turn(settlement: Settlement) -> bool:
    """Returns whether it is of a sign-up of which nothing leaves the lane."""
    return bool(settlement.lease.sign_up) and all(result.fate is Fate.KEPT for result in settlement.results)


async def _settle_moving(transaction: Transaction, settlement: Settlement) -> bool:
    """Settles one that SendX has confirmed a change of address under: the people of both addresses are locked before the lanes."""
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
    if own is None or own[1:3] != (lease.epoch, True):
        return False
    *_, is_revoked, key = own
    if key != old:
        raise Overtaken
    revoked = [lease.lane] if is_revoked else []
    changes = changes_of([settlement], revoked)
    await transaction.run(*_writes(changes, _by_seq(buried), transaction.now(), revoked))
    if not is_revoked:
        for address in addresses:
            await move_lane(transaction, lease.lane, address)
    await transaction.commit(tally(changes.tallies))
    return True


def _addresses(settlements: Sequence[Settlement]) -> list[Query]:
    """Asks for what was pushed, if anything becomes a dead letter: under a lease, what has moved has its new address."""
    results = [result for settlement in settlements for result in settlement.results]
    dead = [result.seq for result in results if result.fate is Fate.DEAD]
    return [("addresses", {"seqs": dead})] if dead else []


def _by_seq(buried: Sequence[Rows]) -> dict[int, str]:
    return dict(row for result in buried for row in result.rows)


def _writes(
    changes: Changes,
    addresses: Mapping[int, str],
    now: float,
    revoked: Sequence[int] = (),
    keys: Mapping[int, str] | None = None,
) -> list[Query]:
    """Returns what carries the changes out, but for the tallies.

    `addresses`: of what is buried; `revoked`: lanes of people who were erased; `keys`: of the lanes, if one may wait for another turn.
    """
    releases = [(*release.row(now, origin=now), bool(release.sign_up)) for release in changes.releases]
    sign_ups = (
        [(keys[each.lane], each.sign_up, each.retry_at) for each in changes.releases if each.sign_up] if keys else []
    )
    buried = [
        (seq, int(tried), str(reason), *said, lane_key(addresses[seq])) for seq, tried, reason, *said in changes.buried
    ]
    return filled(
        (
            ("release", columns("lanes gone failures delays learned digests digest_ats freed put_off", releases)),
            *([join(sign_ups, now)] if sign_ups else []),
            ("remove", {"seqs": changes.delivered}),
            ("bury", columns("seqs attempted reasons details keys", buried)),
            ("attempted", {"seqs": changes.attempted}),
            ("unstart", {"seqs": changes.unstarted}),
            ("forget_lanes", {"lanes": list(revoked)}),
        )
    )
