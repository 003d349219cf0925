"""Appends to the SQLite store: what they read and write, gathered over a transaction, because a statement costs more than what it does.

The ledger lives on from one transaction to the next: what it knows of visitors and people is as good as the tables for as long as only
appends write to them. Whoever else does says `forget`. What it knows of lanes ends with the transaction: deliveries change them.
All on the store's thread.
"""

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from proxy.core.calls import Track
from proxy.core.decision import (
    Alias,
    Born,
    Decide,
    Decision,
    Enqueue,
    Hold,
    LaneFacts,
    Reads,
    Remember,
    Seen,
    VisitorFacts,
)
from proxy.core.visitors import Trust
from proxy.store.facts import FactKind, HeldRow, Known, Wants, Writes, wants_of
from proxy.store.ledger import Ledger
from proxy.store.rows import MAX_REFUSED_NAMES, SIGN_UPS, decode_visitor, tombstone, unvouched_bytes
from proxy.store.sqlite import sign_ups
from proxy.store.sqlite.bulk import insert_rows
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.reads import value

_REMEMBERED = 20_000  # visitors, and people: some 5 MB
_PROOF = (
    Born("proof", "proof"),
    Hold("proof", "proof-held", Track(("proof",))),
    Enqueue("proof", "proof", "proof", Trust.VERIFIED, Track(("proof",))),
    Remember("proof", "proof"),
)

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class Appends:
    """Decides and carries out, over a ledger. `tallies` are written with the transaction by their owner.

    `unvouched_bytes`: that the store keeps, as of the last transaction; any thread may read it.
    """

    def __init__(self, tallies: Counter[str], wake: Callable[[], object]) -> None:
        self.ready_lanes = False  # some lane has gained a push since this was last cleared
        self.unvouched_bytes = 0
        self._rolled_back = False  # the last transaction
        self._tallies, self._wake = tallies, wake
        self._connection: sqlite3.Connection
        self._lane_ids: dict[str, int] = {}
        self._known = Known(b"")
        self._ledger = Ledger(self._known, self._read_one, tallies)

    def use(self, connection: sqlite3.Connection, site_key: bytes) -> None:
        """The file has been opened: nothing is known of it yet."""
        self._connection = connection
        self._known = Known(site_key)
        self._ledger = Ledger(self._known, self._read_one, self._tallies)
        self.ready_lanes = False
        self.unvouched_bytes = value(connection, "unvouched_bytes") or 0

    def begun(self, connection: sqlite3.Connection, reads: Sequence[Reads]) -> None:
        """A transaction has begun, whose appends will ask for `reads`."""
        known = self._known
        known.seen.clear()
        if self._rolled_back:
            self.unvouched_bytes = value(connection, "unvouched_bytes") or 0
            self._rolled_back = False
        if max(len(known.visitors), len(known.erased)) > _REMEMBERED:
            self.forget()  # everything at once: simpler than the oldest first, and cheap to read again
        if reads:
            known.unvouched_bytes = self.unvouched_bytes
            self._read(wants_of(reads))

    def append(self, decide: Decide[T]) -> Decision[T]:
        self._known.now = time.time()  # for each: an erasure may have come before it in this transaction
        decision = decide(self._ledger)
        self._ledger.carry_out(decision.changes)
        return decision

    def flush(self) -> None:
        """Writes what is gathered: the transaction ends, or somebody else in it is to see it."""
        lanes, self._known.lanes = self._known.lanes, {}
        self._write(self._ledger.take_writes(), lanes)
        self._lane_ids.clear()

    def before_commit(self, connection: sqlite3.Connection) -> None:
        self.flush()
        if self._tallies:
            connection.executemany(SQL["tally"], self._tallies.items())
            self.unvouched_bytes += unvouched_bytes(self._tallies)
            self._tallies.clear()
        if self.ready_lanes:
            self.ready_lanes = False
            self._wake()  # before COMMIT is safe: a claim that this wakes queues behind this transaction

    def prove(self) -> None:
        """Makes an append and rolls it back. Raises the error that a push would raise."""
        self.flush()
        tallies = dict(self._tallies)
        self._connection.execute("SAVEPOINT proof")
        self.append(lambda _: Decision(_PROOF, None))
        self.flush()
        self._connection.execute("ROLLBACK TO proof")
        self._connection.execute("RELEASE proof")
        self._tallies.clear()
        self._tallies.update(tallies)
        self.forget()

    def rolled_back(self) -> None:
        self.ready_lanes = False
        self._tallies.clear()
        self.forget()
        self._rolled_back = True

    def forget(self) -> None:
        """Somebody else has written what is known here."""
        self._ledger.forget()
        self._lane_ids.clear()

    def _read_one(self, kind: FactKind, name: str) -> None:
        wants = Wants()
        wants.note(kind, name)
        self._read(wants)

    def _read(self, wants: Wants) -> None:
        known = self._known
        if wants.ids:
            known.seen.update(dict.fromkeys(wants.ids))
            for push_id, shown, after, at in self._rows("seen", wants.ids):
                known.seen[push_id] = Seen(shown, decode_visitor(after), at)
        if wants.keys:
            self._read_people(wants.keys)
        if visitors := wants.visitors.difference(known.visitors):
            for visitor, retired, *facts in self._rows("visitors", visitors):
                known.visitors[visitor] = VisitorFacts(bool(retired), *facts)
        for visitor in wants.held:
            known.held[visitor] = [HeldRow(*row) for row in self._connection.execute(SQL["held"], (visitor,))]
        for name in wants.schedules:
            known.schedules[name] = value(self._connection, "schedule", name) or 0.0

    def _read_people(self, keys: set[str]) -> None:
        known = self._known
        known.lanes.update(dict.fromkeys(keys))
        for key, lane, verified, waiting, size, put_off in self._rows("lanes", keys):
            self._lane_ids[key] = lane
            known.lanes[key] = LaneFacts(bool(verified), waiting, size, bool(put_off))
        if new := keys.difference(known.erased):
            known.aliases.update(dict.fromkeys(new))
            known.aliases.update((key, Alias(address, at)) for key, address, at in self._rows("aliases", new))
            for key in new:
                known.erased[key] = value(self._connection, "tombstone", tombstone(key, known.site_key))

    def _rows(self, query: str, names: set[str]) -> Iterable[Any]:
        return self._connection.execute(SQL[query], (_encode(list(names)).decode(),))

    def _write(self, writes: Writes, lanes: Mapping[str, LaneFacts | None]) -> None:
        """Carries out. `lanes`: as they were read."""
        connection, now = self._connection, self._known.now
        if writes.lanes:
            self._write_lanes(writes, lanes, now)
        if writes.visitors:
            rows: list[tuple[Any, ...]] = [
                (visitor, now, change.retired, change.identified, change.person, change.shown_by)
                for visitor, change in writes.visitors.items()
            ]
            connection.executemany(SQL["change_visitor"], rows)
        if writes.unheld:
            connection.executemany(SQL["unhold"], [(seq,) for seq in writes.unheld])
        if writes.held:
            rows = [(visitor, *row[1:]) for visitor, held in writes.held.items() for row in held]
            insert_rows(connection, "hold", rows)
        if writes.ended_aliases:
            connection.executemany(SQL["end_alias"], [(key,) for key in writes.ended_aliases])
        if writes.remembered:
            rows = [
                (each.id, now, each.shown, _encode(each.after) if each.after else None) for each in writes.remembered
            ]
            insert_rows(connection, "remember", rows)
        if writes.schedules:
            connection.executemany(SQL["set_schedule"], list(writes.schedules.items()))
        if writes.not_offered:
            rows = [(*names, count, now, 2 * MAX_REFUSED_NAMES) for names, count in writes.not_offered.items()]
            connection.executemany(SQL["not_offered"], rows)

    def _write_lanes(self, writes: Writes, lanes: Mapping[str, LaneFacts | None], now: float) -> None:
        """A lane whose id is not known is made by its key."""
        connection, ids = self._connection, self._lane_ids
        old: list[tuple[Any, ...]] = []
        typed: list[tuple[int, str]] = []
        released: list[int] = []
        for key, change in writes.lanes.items():
            vouched, verify = int(change.vouched), int(change.verify)  # a bool is bound far more slowly
            lane = ids.get(key)
            facts = lanes.get(key) or _NO_LANE
            if lane is not None and not change.sign_ups:
                old.append((change.gained, now, vouched, verify, change.bytes, lane))
                put_off = facts.put_off and not vouched
            else:
                row = (change.gained, now, int(change.put_off), vouched, verify, change.bytes, key)
                lane, put_off = connection.execute(SQL["lane"], row).fetchone()
                ids[key] = lane
            if put_off:
                typed += [(lane, client) for client in change.sign_ups]
                if not facts.put_off:
                    self._tallies[SIGN_UPS] += 1
            elif facts.put_off:
                released.append(lane)
        connection.executemany(SQL["change_lane"], old)
        if typed:
            sign_ups.add(connection, typed, now, now)
        if released:
            sign_ups.remove(connection, released, now)
            self._tallies[SIGN_UPS] -= len(released)
        if writes.pushes:
            insert_rows(connection, "enqueue", [(ids[row[0]], *row[1:]) for row in writes.pushes])
            self.ready_lanes = True


_NO_LANE = LaneFacts()
