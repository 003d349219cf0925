"""Leases of the SQLite outbox: claimed, settled, and ended if nobody settles them; and the gate.

Everything happens inside the caller's transaction, and `tallies` are written with it. `store.leases` decides what a lease is made of and
what its end changes.
"""

import itertools
import logging
import sqlite3
import time
from collections import Counter

import msgspec

from proxy.core.gate import Closure, merge_closures
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
from proxy.store.records import Claim, Lease, Settlement
from proxy.store.rows import clock_set_back, encode_closure
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.people import move_lane
from proxy.store.sqlite.reads import read_gate, value

_JUMP_SECONDS = 5.0  # smaller corrections of the clock do no harm

log = logging.getLogger("proxy.store")


class Leases:
    """Claims and settles. `revoked`: leases, as (lane, epoch), of people who were erased meanwhile; the store's thread writes it, any reads it."""

    def __init__(self, tallies: Counter[str]) -> None:
        self._tallies = tallies
        self._epochs = itertools.count(time.time_ns())  # never twice: a lease must fit no other lane, file or process
        self.revoked: set[tuple[int, int]] = set()
        self._offset = time.time() - time.monotonic()  # changes when somebody sets the clock

    def claim(
        self, connection: sqlite3.Connection, lanes: int, per_lane: int, lease_seconds: float, probe: Closure | None
    ) -> Claim:
        now = time.time()
        leases: list[Lease] = []
        closure, probe_until = read_gate(connection)
        if closure is not None:
            lanes = int(closure == probe and (probe_until is None or not now < probe_until <= now + lease_seconds))
        query = "claimable" if closure is None else "claimable_for_probe"
        for row in connection.execute(SQL[query], (now, lanes)).fetchall():
            lane = LaneRow(*row)
            if lane.leased:
                self._end_lease(connection, lane.id)
            lease = self._lease(connection, lane, per_lane, now + lease_seconds)
            if lease is not None:
                leases.append(lease)
        if leases and closure is not None:
            connection.execute(SQL["probe"], (now + lease_seconds,))
        return Claim(tuple(leases), closure)

    def _lease(self, connection: sqlite3.Connection, lane: LaneRow, per_lane: int, until: float) -> Lease | None:
        head = head_of(lane, connection.execute(SQL["lane_head"], (lane.id, per_lane)).fetchall())
        if not head.pushes:
            return None
        epoch = next(self._epochs)
        if head.starts:
            connection.execute(SQL["start"], (head.pushes[0].seq,))
        connection.execute(SQL["lease"], (epoch, until, lane.id))
        pressed = head.asserted and value(connection, "vouched_waits", lane.id) is not None
        return lease_of(lane, head, epoch=epoch, until=until, pressed=pressed)

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
        connection.execute(SQL["bring_near"], (now,))

    def follow_clock(self, connection: sqlite3.Connection) -> bool:
        """Detects a jump of the clock; returns whether there was one. Ends waits after a jump back, extends leases after a jump ahead."""
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
            log.warning("The clock was set ahead by %d s: leases are extended by as much", jump)
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
            move_lane(connection, lease.lane, address, time.time())
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
        self._tallies.update(changes.tallies)


def _tell_loss(connection: sqlite3.Connection, settlement: Settlement) -> None:
    lease = settlement.lease
    waiting = [(push.seq, value(connection, "push_id", push.seq)) for push in lease.pushes]
    if again := sent_again(settlement, waiting):
        log.warning("The lease of lane %d was lost; pushes that are sent a second time: %d", lease.lane, again)


def _end_waits(connection: sqlite3.Connection, now: float, ahead: float) -> None:
    """Ends all waits whose end a wrong clock has set: back-offs, the gate, the turns of sign-ups."""
    connection.execute(SQL["end_waits"], (now, ahead))
    connection.execute(SQL["advance_schedules"], (now, ahead))
    closure, _ = read_gate(connection)
    if closure is not None and closure.until > now:
        connection.execute(SQL["move_gate"], (encode_closure(msgspec.structs.replace(closure, until=now)),))
