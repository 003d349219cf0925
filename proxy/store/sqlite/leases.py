"""Leases of the SQLite outbox: claimed, settled, and ended if nobody settles them; and the gate.

Everything happens inside the caller's transaction, and `tallies` are written with it. `store.leases` decides what a lease is made of and
what its end changes.
"""

import itertools
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from proxy.core.gate import Closure, merge_closures
from proxy.core.turns import Share
from proxy.store.leases import (
    Changes,
    LaneRow,
    changes_of,
    changes_of_abandoned,
    head_of,
    lease_of,
    new_addresses,
    sent_again,
)
from proxy.store.outbox import NO_SHARE
from proxy.store.records import Claim, Lease, Settlement
from proxy.store.rows import SIGN_UPS, clock_set_back, decode_closure, encode_closure
from proxy.store.sqlite import sign_ups
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.people import move_lane
from proxy.store.sqlite.reads import read_gate, value

_JUMP_SECONDS = 5.0  # smaller corrections of the clock do no harm

log = logging.getLogger("proxy.store")


class _Claiming(NamedTuple):
    """One claim. `until`: when its leases end; `share`: what it has for strangers."""

    connection: sqlite3.Connection
    now: float
    until: float
    per_lane: int
    share: Share

    def ready(self, lanes: int, *, stranger: bool) -> sqlite3.Cursor:
        return self.connection.execute(SQL["claimable"], (int(stranger), self.now, lanes))


class Leases:
    """Claims and settles. `revoked`: leases, as (lane, epoch), of people who were erased meanwhile; the store's thread writes it, any reads it."""

    def __init__(self, tallies: Counter[str]) -> None:
        self._tallies = tallies
        self._epochs = itertools.count(time.time_ns())  # never twice: a lease must fit no other lane, file or process
        self.revoked: set[tuple[int, int]] = set()
        self._share = NO_SHARE  # of the last claim
        self._offset = time.time() - time.monotonic()  # changes when somebody sets the clock

    def claim(
        self,
        connection: sqlite3.Connection,
        lanes: int,
        per_lane: int,
        lease_seconds: float,
        probe: Closure | None,
        share: Share,
    ) -> Claim:
        now = time.time()
        self._share = share
        closure, probe_until, strangers = connection.execute(SQL["before_claim"], (now,)).fetchone()
        claiming = _Claiming(connection, now, now + lease_seconds, per_lane, share)
        if closure is None:
            return Claim(tuple(self._claim_all(claiming, lanes) if strangers else self._claim_vouched(claiming, lanes)))
        shut = decode_closure(closure)
        if shut != probe or (probe_until is not None and now < probe_until <= now + lease_seconds):
            return Claim((), shut)
        leases = self._claim_ready(claiming, connection.execute(SQL["claimable_for_probe"], (now, min(lanes, 1))))
        if not leases and lanes and strangers:
            leases = self._claim_turns(claiming, 1)
        if leases:
            connection.execute(SQL["probe"], (now + lease_seconds,))
        return Claim(tuple(leases), shut)

    def next_ready(self, connection: sqlite3.Connection) -> float | None:
        """Returns when a lane may be claimed (Unix seconds), None if none waits."""
        ready = [value(connection, "next_ready"), sign_ups.next_turn(connection, self._share, time.time())]
        return min((at for at in ready if at is not None), default=None)

    def _claim_all(self, claiming: "_Claiming", lanes: int) -> list[Lease]:
        """Strangers have their least share, and what vouched lanes leave."""
        ready = claiming.ready(lanes, stranger=True).fetchall()  # before any is leased, perhaps for no time at all
        reserved = self._claim_strangers(claiming, ready, min(claiming.share.least, lanes))
        vouched = self._claim_vouched(claiming, lanes - len(reserved))
        more = self._claim_strangers(claiming, ready, lanes - len(vouched) - len(reserved))
        return [*vouched, *reserved, *more]

    def _claim_vouched(self, claiming: "_Claiming", lanes: int) -> list[Lease]:
        return self._claim_ready(claiming, claiming.ready(lanes, stranger=False))

    def _claim_strangers(self, claiming: "_Claiming", ready: list[tuple[Any, ...]], lanes: int) -> list[Lease]:
        """Takes turns, then the first of `ready`, which it removes there."""
        leases = self._claim_turns(claiming, lanes)
        left = lanes - len(leases)
        rows, ready[:left] = ready[:left], []
        return [*leases, *self._claim_ready(claiming, rows)]

    def _claim_ready(self, claiming: "_Claiming", rows: Iterable[tuple[Any, ...]]) -> list[Lease]:
        leases = [self._lease(claiming, LaneRow(*row[1:]), row[0]) for row in list(rows)]
        return [lease for lease in leases if lease is not None]

    def _claim_turns(self, claiming: "_Claiming", lanes: int) -> list[Lease]:
        leases: list[Lease] = []
        connection = claiming.connection
        while (
            len(leases) < lanes and (turn := sign_ups.take_turn(connection, claiming.share, claiming.now)) is not None
        ):
            self._tallies[SIGN_UPS] -= 1
            row = connection.execute(SQL["claimable_lane"], (turn.lane,)).fetchone()
            lease = self._lease(claiming, LaneRow(*row), 1, turn.client)
            if lease is not None:
                leases.append(lease)
        return leases

    def _lease(self, claiming: "_Claiming", lane: LaneRow, stranger: int, sign_up: str = "") -> Lease | None:
        connection, _, until, per_lane, share = claiming
        if lane.leased:
            self._end_lease(connection, lane.id)
        most = min(per_lane, share.per_lane) if stranger else per_lane
        head = head_of(lane, connection.execute(SQL["lane_head"], (lane.id, most)).fetchall())
        if not head.pushes:
            return None
        epoch = next(self._epochs)
        if head.starts:
            connection.execute(SQL["start"], (head.pushes[0].seq,))
        vouched_waits = not stranger and head.asserted and value(connection, "vouched_waits", lane.id) is not None
        lease = lease_of(lane, head, epoch=epoch, until=until, vouched_waits=vouched_waits, sign_up=sign_up)
        connection.execute(SQL["lease"], (epoch, until, int(lease.stranger), lane.id))
        return lease

    def move_gate(
        self, connection: sqlite3.Connection, before: Closure | None, after: Closure | None
    ) -> Closure | None:
        stored, _ = read_gate(connection)
        closure = merge_closures(stored, before, after)
        connection.execute(SQL["move_gate"], (encode_closure(closure),))
        return closure

    def end_abandoned_leases(self, connection: sqlite3.Connection) -> None:
        """Ends every lease and every probe, at start: one process uses the file, so they belong to a process that is gone.

        Also shortens waits that end implausibly late, because a wrong clock has set them.
        """
        now = time.time()
        for (lane,) in connection.execute(SQL["leased"]).fetchall():
            self._end_lease(connection, lane)
        connection.execute(SQL["end_probe"])
        if (ahead := clock_set_back(now, value(connection, "newest_row"))) > 0.0:
            _end_waits(connection, now, ahead)
        for query in ("bring_near", "bring_schedules_near", "bring_networks_near", "bring_sign_ups_near"):
            connection.execute(SQL[query], (now,))

    def follow_clock(self, connection: sqlite3.Connection) -> bool:
        """Notices that the clock was set, and returns whether it was. Set back, it ends waits; set ahead, it ends no lease, and gives no turn."""
        offset = time.time() - time.monotonic()
        jump = offset - self._offset
        if abs(jump) < _JUMP_SECONDS:
            return False
        self._offset = offset
        if jump < 0:
            _end_waits(connection, time.time(), -jump)
            log.warning("The clock was set back by %d s: back-offs end, and sign-ups keep their turns", -jump)
        else:
            connection.execute(SQL["extend_leases"], (jump,))
            _move_schedules(connection, time.time(), jump)
            log.warning(
                "The clock was set ahead by %d s: leases are extended by as much, and no turn comes earlier", jump
            )
        return True

    def _end_lease(self, connection: sqlite3.Connection, lane: int) -> None:
        self.revoked -= {lease for lease in self.revoked if lease[0] == lane}
        started = [(lane, seq, size) for seq, size in connection.execute(SQL["started"], (lane,))]
        self._write(connection, changes_of_abandoned([lane], started))

    def settle(self, connection: sqlite3.Connection, settlement: Settlement) -> bool:
        lease = settlement.lease
        if connection.execute(SQL["lease_holds"], (lease.lane, lease.epoch)).fetchone() is None:
            _tell_loss(connection, settlement)
            return False
        # Ask the table, not `revoked`: the erasure may have been rolled back, or this settlement may be repeated after a roll-back.
        erased = value(connection, "push", lease.pushes[0].seq) is None
        self._write(connection, changes_of([settlement], [lease.lane] if erased else []))
        self.revoked.discard((lease.lane, lease.epoch))
        if erased:
            connection.execute(SQL["forget_lane"], (lease.lane,))
            return True
        for address in new_addresses(settlement):
            move_lane(connection, lease.lane, address, time.time(), self._tallies)
        return True

    def _write(self, connection: sqlite3.Connection, changes: Changes) -> None:
        now = time.time()
        gone = changes.delivered
        if changes.buried:
            connection.executemany(SQL["bury"], [(*burial, now) for burial in changes.buried])
            gone = [*gone, *(burial.seq for burial in changes.buried)]
        for query, seqs in (("remove", gone), ("attempted", changes.attempted), ("unstart", changes.unstarted)):
            if seqs:
                connection.executemany(SQL[query], [(seq,) for seq in seqs])
        for release in changes.releases:
            connection.execute(SQL["release"], release.row(now))
            if release.sign_up and connection.execute(SQL["put_off_again"], (release.lane,)).rowcount:
                at = max(now, release.retry_at or now)
                sign_ups.add(connection, [(release.lane, release.sign_up)], at, now)
                self._tallies[SIGN_UPS] += 1
        self._tallies.update(changes.tallies)


def _tell_loss(connection: sqlite3.Connection, settlement: Settlement) -> None:
    lease = settlement.lease
    waiting = [(push.seq, value(connection, "push_id", push.seq)) for push in lease.pushes]
    if again := sent_again(settlement, waiting):
        log.warning("The lease of lane %d was lost; pushes that are sent a second time: %d", lease.lane, again)


def _end_waits(connection: sqlite3.Connection, now: float, ahead: float) -> None:
    """Ends what was to last until a time that a wrong clock has set: back-offs, the gate, rests. Schedules last for as long as they were to."""
    connection.execute(SQL["end_waits"], (now,))
    _move_schedules(connection, now, -ahead)
    connection.execute(SQL["end_rests"], (now,))
    connection.execute(SQL["move_sign_ups"], (now, -ahead))
    closure, _ = read_gate(connection)
    if closure is not None and closure.until > now:
        connection.execute(SQL["move_gate"], (encode_closure(msgspec.structs.replace(closure, until=now)),))


def _move_schedules(connection: sqlite3.Connection, now: float, ahead: float) -> None:
    for query in ("move_schedules", "move_networks"):
        connection.execute(SQL[query], (now, ahead))
    connection.execute(SQL["move_weights"], (ahead,))
