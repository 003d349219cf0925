"""Lanes of the SQLite outbox on their way out: claimed under a lease, settled, and what becomes of a lease that nobody settles.

All inside the caller's transaction; `tallies` are written with it.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections import Counter

import msgspec

from proxy.core.calls import Attributes
from proxy.core.gate import Closure, merge_closures
from proxy.core.visitors import Trust
from proxy.store.records import Claim, DeadReason, Fate, LastIdentify, Lease, Settled, Settlement
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.people import move_lane
from proxy.store.sqlite.reads import DEAD, WAITING, lane_head, read_gate, value

_INDETERMINATE = "its outcome is unknown: the process ended, or the lease, while it was being sent"


class Lanes:
    """`revoked`: leases, as (lane, epoch), of people who were erased meanwhile. Written on the store's thread and read by any."""

    def __init__(self, tallies: Counter[str]) -> None:
        self._tallies = tallies
        self._epochs = itertools.count(time.time_ns())  # never twice: a lease must fit no other lane, file or process
        self.revoked: set[tuple[int, int]] = set()

    def claim(
        self, connection: sqlite3.Connection, lanes: int, per_lane: int, lease_seconds: float, probe: Closure | None
    ) -> Claim:
        now = time.time()
        leases: list[Lease] = []
        closure, probe_until = read_gate(connection)
        if closure is not None:
            lanes = int(closure == probe and (probe_until is None or not now < probe_until <= now + lease_seconds))
        query = "claimable" if closure is None else "claimable_for_probe"
        rows = connection.execute(SQL[query], (now, lanes)).fetchall()
        for lane, leased, failures, key, address, digest, digest_at in rows:
            if leased:
                self.end_lease(connection, lane)
            pushes = lane_head(connection, lane, per_lane, key, address)
            if pushes:
                epoch = next(self._epochs)
                connection.execute(SQL["lease"], (epoch, now + lease_seconds, lane))
                last = LastIdentify(digest, digest_at) if digest is not None and not leased else None
                pressed = pushes[0].trust is Trust.ASSERTED and value(connection, "vouched_waits", lane) is not None
                leases.append(Lease(lane, epoch, now + lease_seconds, failures, pushes, last, pressed))
        if leases and closure is not None:
            connection.execute(SQL["probe"], (now + lease_seconds,))
        return Claim(tuple(leases), closure)

    def move_gate(
        self, connection: sqlite3.Connection, before: Closure | None, after: Closure | None
    ) -> Closure | None:
        stored, _ = read_gate(connection)
        closure = merge_closures(stored, before, after)
        connection.execute(SQL["move_gate"], (msgspec.json.encode(closure) if closure is not None else None,))
        return closure

    def end_leases_of_the_dead(self, connection: sqlite3.Connection) -> None:
        """At start: exactly one process uses the file, so every lease and every probe is of a process that is gone.

        A time that is far ahead was set under a clock that was wrong.
        """
        for (lane,) in connection.execute(SQL["leased"]).fetchall():
            self.end_lease(connection, lane)
        connection.execute(SQL["end_probe"])
        connection.execute(SQL["bring_near"], (time.time(),))

    def end_lease(self, connection: sqlite3.Connection, lane: int) -> None:
        """A lease whose holder is gone: an increment that was started may have been applied, the rest is sent again."""
        self.revoked -= {lease for lease in self.revoked if lease[0] == lane}
        started = [seq for (seq,) in connection.execute(SQL["started"], (lane,))]
        for seq in started:
            self._bury(connection, Settled(seq, Fate.DEAD, True, DeadReason.AMBIGUOUS, _INDETERMINATE))
        connection.execute(SQL["lane_loses"], (lane, len(started), 0, time.time()))
        # What was on the wire may have been applied: what SendX has of this contact is not known any more.
        connection.execute(SQL["last_identify"], (lane, None, None))

    def settle(self, connection: sqlite3.Connection, settlement: Settlement) -> bool:
        lease = settlement.lease
        if connection.execute(SQL["lease_holds"], (lease.lane, lease.epoch)).fetchone() is None:
            return False
        gone = {settled.seq for settled in settlement.results if self._carry_out(connection, settled)}
        if any(isinstance(push.body, Attributes) and push.body.increments for push in lease.pushes):
            connection.execute(SQL["unstart"], (lease.lane,))
        ready_at = time.time() if settlement.retry_at is None else settlement.retry_at
        connection.execute(SQL["lane_loses"], (lease.lane, len(gone), settlement.failures, ready_at))
        if (lease.lane, lease.epoch) in self.revoked:
            self.revoked.discard((lease.lane, lease.epoch))
            connection.execute(SQL["forget_lane"], (lease.lane,))
            return True
        if settlement.last != lease.last:
            last = settlement.last
            connection.execute(SQL["last_identify"], (lease.lane, last and last.digest, last and last.at))
        self._move(connection, settlement, gone)
        return True

    def _carry_out(self, connection: sqlite3.Connection, settled: Settled) -> bool:
        """Whether the push has left its lane by this. One that was erased under its lease is not there any more, and counted."""
        if settled.fate is Fate.DEAD:
            return self._bury(connection, settled)
        if settled.fate is Fate.DELIVERED:
            if not connection.execute(SQL["remove"], (settled.seq,)).rowcount:
                return False
            self._tallies.update({"delivered": 1, "unchanged": int(settled.unchanged), WAITING: -1})
            return True
        if settled.attempted:
            connection.execute(SQL["attempted"], (settled.seq,))
        return False

    def _bury(self, connection: sqlite3.Connection, settled: Settled) -> bool:
        values = (settled.seq, int(settled.attempted), settled.reason, settled.detail, time.time())
        if not connection.execute(SQL["bury"], values).rowcount:
            return False
        connection.execute(SQL["remove"], (settled.seq,))
        self._tallies.update({f"dead:{settled.reason}": 1, WAITING: -1, DEAD: 1})
        return True

    def _move(self, connection: sqlite3.Connection, settlement: Settlement, gone: set[int]) -> None:
        """Follow the changes of address that SendX has confirmed."""
        delivered = {settled.seq for settled in settlement.results if settled.fate is Fate.DELIVERED} & gone
        for push in settlement.lease.pushes:
            if push.seq in delivered and isinstance(push.body, Attributes) and push.body.new_email is not None:
                move_lane(connection, settlement.lease.lane, push.body.new_email, time.time())
