"""Merges the rows of a store that was set aside into the one in use, in short transactions between which pushes are stored.

A push whose id is known here is skipped. Within a lane, the recovered pushes are older and go first. Data of people who were erased in either
store is not recovered. An increment that had been started becomes a dead letter, because its outcome is unknown.
"""

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from proxy.core.emails import lane_key
from proxy.core.visitors import NOBODY, Trust, fingerprint
from proxy.store.records import Adopted, DeadReason
from proxy.store.rows import (
    DEAD,
    HELD_OVERHEAD,
    HOLDING,
    ID_OVERHEAD,
    SIGN_UPS,
    UNVOUCHED_BYTES,
    WAITING,
    asserted_bytes,
    decode_visitor,
    id_gauge,
    tombstone,
)
from proxy.store.sqlite import sign_ups
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.reads import value
from proxy.store.sqlite.salvage import STEP_ROWS, Salvage

_SOMEBODY = (
    "unknown"  # the client of a sign-up that is taken back: whoever it was, others do not wait for their turn behind it
)
_UNKNOWN = "its outcome is unknown: it was being sent when its store was set aside"

Row = tuple[Any, ...]
Work = Callable[[sqlite3.Connection], Adopted]


class _Lane(NamedTuple):
    """One person in the other store. `pushes`, `dead`: rows that end with the columns `shown` and `after` of the id."""

    key: str
    address: str | None
    verified: int
    put_off: int
    aliases: list[Row]
    pushes: list[Row]
    dead: list[Row]


class Adoption:
    """One merge. `tallies`: counters, written with each transaction. `now`: when the ids count as seen (Unix seconds)."""

    def __init__(self, salvage: Salvage, tallies: Counter[str], site_key: bytes, now: float) -> None:
        self._salvage, self._tallies, self._site_key, self._now = salvage, tallies, site_key, now
        self._same_site = (site_key,) in salvage.rows("SELECT value FROM meta WHERE name = 'site_key'")
        self._erased_visitors: set[str] = set()
        self._erased_people: set[str] = set()

    def jobs(self) -> Iterator[Work]:
        """Yields the jobs for the store's thread, in order; reads the other store in between."""
        if self._same_site:  # else the hashes are of another key
            yield from self._each("tombstones", "hash, at", self._take_tombstones)
        yield from self._each("erasures", "key, at", self._take_erasures)
        yield from self._each("lanes", "key, id", self._find_erased_people)
        yield from self._each("seen", "id, at, shown, after", self._find_erased_visitors)
        yield from self._each("visitors", "id, at, retired, identified, person, shown, shown_by", self._take_visitors)
        for lanes in self._lanes():
            yield lambda connection, lanes=lanes: total(self._take_lane(connection, lane) for lane in lanes)  # type: ignore[misc]
        for held in self._held():
            yield lambda connection, held=held: total(self._take_held(connection, *each) for each in held)  # type: ignore[misc]
        yield from self._each("seen", "id, at, shown, after", self._take_ids)

    def _each(
        self, table: str, columns: str, take: Callable[[sqlite3.Connection, list[Row]], Adopted]
    ) -> Iterator[Work]:
        key = columns.partition(",")[0]
        after: Any = ""
        while rows := self._salvage.rows(
            f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT {STEP_ROWS}",  # noqa: S608 - of this module
            after,
        ):
            after = rows[-1][0]
            yield lambda connection, rows=rows: take(connection, rows)  # type: ignore[misc]

    # --- people who were erased

    def _erased_at(self, connection: sqlite3.Connection, key: str) -> float:
        return value(connection, "tombstone", tombstone(key, self._site_key)) or float("-inf")

    def _take_tombstones(self, connection: sqlite3.Connection, rows: list[Row]) -> Adopted:
        connection.executemany(SQL["adopt_tombstone"], rows)
        return Adopted()

    def _take_erasures(self, connection: sqlite3.Connection, rows: list[Row]) -> Adopted:
        """Takes over unfinished erasures, which the next sweep finishes."""
        connection.executemany(SQL["adopt_erasure"], rows)
        connection.executemany(SQL["adopt_tombstone"], [(tombstone(key, self._site_key), at) for key, at in rows])
        return Adopted()

    def _find_erased_people(self, connection: sqlite3.Connection, rows: list[Row]) -> Adopted:
        for key, _ in rows:
            if self._erased_at(connection, key) > float("-inf"):
                self._erased_people |= {key, fingerprint(key)}
        return Adopted()

    def _find_erased_visitors(self, connection: sqlite3.Connection, rows: list[Row]) -> Adopted:
        for _, at, _, after in rows:
            visitor = decode_visitor(after)
            if visitor is not None and visitor.email is not None and self._is_erased(connection, visitor.email, at):
                self._erased_visitors.add(visitor.id)
        return Adopted()

    def _is_erased(self, connection: sqlite3.Connection, address: str, at: float) -> bool:
        return at <= self._erased_at(connection, lane_key(address))

    # --- what is taken

    def _take_visitors(self, connection: sqlite3.Connection, rows: list[Row]) -> Adopted:
        changed = [(*row[:4], NOBODY if row[4] in self._erased_people else row[4], *row[5:]) for row in rows]
        connection.executemany(SQL["adopt_visitor"], changed)
        return Adopted()

    def _lanes(self) -> Iterator[list[_Lane]]:
        """Yields batches of people with all their rows: a person is never split over two transactions."""
        batch: list[_Lane] = []
        after, last = 0, False
        while not last:
            rows = self._salvage.rows(
                f"SELECT id, key, address, verified, put_off FROM lanes WHERE id > ? ORDER BY id LIMIT {STEP_ROWS}",  # noqa: S608 - a number
                after,
            )
            last = len(rows) < STEP_ROWS
            for number, key, address, verified, put_off in rows:
                after = number
                aliases = self._salvage.rows("SELECT key, at FROM aliases WHERE lane = ?", number)
                pushes = self._salvage.rows(
                    "SELECT p.id, p.address, trust, kind, body, since, attempts, increments, started, shown, after "
                    "FROM pushes p LEFT JOIN seen USING (id) WHERE lane = ? ORDER BY seq",
                    number,
                )
                dead = self._salvage.rows(
                    "SELECT d.id, d.address, trust, kind, body, since, attempts, reason, detail, d.at, key, shown, after "
                    "FROM dead d LEFT JOIN seen USING (id) WHERE lane = ? ORDER BY seq",
                    number,
                )
                if verified or aliases or pushes or dead:
                    batch.append(_Lane(key, address, verified, put_off, aliases, pushes, dead))
                if sum(1 + len(each.pushes) + len(each.dead) for each in batch) >= STEP_ROWS:
                    yield batch
                    batch = []
        yield batch

    def _take_lane(self, connection: sqlite3.Connection, lane: _Lane) -> Adopted:
        erased_at = self._erased_at(connection, lane.key)
        pushes = [row for row in lane.pushes if row[5] > erased_at and not self._is_erased(connection, row[1], row[5])]
        dead = [row for row in lane.dead if row[5] > erased_at and not self._is_erased(connection, row[1], row[5])]
        erased = len(lane.pushes) + len(lane.dead) - len(pushes) - len(dead)
        new = [row for row in pushes if not _is_known(connection, row[0])]
        new_dead = [row for row in dead if not _is_known(connection, row[0])]
        known = len(pushes) + len(dead) - len(new) - len(new_dead)
        if not new and not new_dead and (erased_at > float("-inf") or not (lane.verified or lane.aliases)):
            return Adopted(known=known, erased=erased)
        number = self._lane_here(connection, lane)
        waiting = self._put_first(connection, number, lane, new)
        for row in new_dead:
            _bury(connection, number, row[:7], row[7:11])
        self._tallies.update(Counter(f"dead:{row[7]}" for row in new_dead))
        self._tallies.update({"accepted": len(new_dead), DEAD: len(new_dead)})
        self._count_unvouched([(row[2], len(row[4])) for row in (*new, *new_dead)])
        self._remember(connection, [(row[0], *row[-2:]) for row in (*new, *new_dead)])
        ambiguous = len(new) - waiting
        return Adopted(waiting=waiting, dead=len(new_dead) + ambiguous, known=known, erased=erased)

    def _lane_here(self, connection: sqlite3.Connection, lane: _Lane) -> int:
        """Returns the person's lane in this store, following a change of address."""
        moved = value(connection, "alias_lane", lane.key)
        key = lane.key if moved is None else value(connection, "lane_key", moved)
        number: int = connection.execute(SQL["adopt_lane"], (key, lane.address, lane.verified)).fetchone()[0]
        for alias, at in lane.aliases:
            if self._erased_at(connection, alias) == float("-inf"):
                connection.execute(SQL["adopt_alias"], (alias, number, at))
        return number

    def _put_first(self, connection: sqlite3.Connection, number: int, lane: _Lane, rows: list[Row]) -> int:
        """Inserts pushes before those that wait in the lane, or after them while the lane is leased. Returns how many wait."""
        leased, tail = connection.execute(SQL["lane_tail"], (number,)).fetchone()
        waiting = size = 0
        for push_id, address, trust, kind, body, since, attempts, alone, started, *_ in rows:
            to = address if lane.address is None or lane_key(address) == lane.key else lane.address
            if started:
                death = (DeadReason.AMBIGUOUS, _UNKNOWN, self._now, lane_key(to))
                _bury(connection, number, (push_id, to, trust, kind, body, since, attempts + 1), death)
                self._tallies.update({"accepted": 1, f"dead:{DeadReason.AMBIGUOUS}": 1, DEAD: 1})
                continue
            connection.execute(
                SQL["adopt_push"], (number, push_id, to, trust, kind, body, since, attempts, alone)
            ).fetchall()
            waiting, size = waiting + 1, size + len(body)
        if waiting and tail is not None and not leased:
            connection.execute(SQL["pushes_to_end"], (number, tail))
            connection.execute(SQL["remove_first"], (number, tail))
        if waiting:
            vouched = any(row[2] == Trust.VERIFIED and not row[8] for row in rows)
            self._gain(connection, number, (waiting, size), put_off=bool(lane.put_off), vouched=vouched)
            self._tallies.update({"accepted": waiting, WAITING: waiting})
        return waiting

    def _gain(
        self, connection: sqlite3.Connection, number: int, gained: tuple[int, int], *, put_off: bool, vouched: bool
    ) -> None:
        """Counts in the lane what was taken back, pushes and bytes. What was put off waits for its turn here as well."""
        was_put_off = value(connection, "is_put_off", number)
        row = (number, *gained, self._now, put_off, vouched)
        (is_put_off,) = connection.execute(SQL["lane_gains"], row).fetchone()
        if is_put_off:
            sign_ups.add(connection, [(number, _SOMEBODY)], self._now, self._now)
            self._tallies[SIGN_UPS] += 1 - was_put_off
        elif was_put_off:
            sign_ups.end_turns(connection, number, self._tallies, self._now)

    def _count_unvouched(self, pushes: Sequence[tuple[int, int]]) -> None:
        """`pushes`: the trust of each that waits or is dead, and the size of its body."""
        ids = sum(trust != Trust.VERIFIED for trust, _ in pushes)
        self._tallies.update({UNVOUCHED_BYTES: asserted_bytes(pushes), id_gauge(self._now): ids * ID_OVERHEAD})

    def _held(self) -> Iterator[list[tuple[str, list[Row]]]]:
        """Yields batches of visitors with all their held pushes."""
        after = ""
        while visitors := self._salvage.rows(
            f"SELECT DISTINCT visitor FROM held WHERE visitor > ? ORDER BY visitor LIMIT {STEP_ROWS // 4}",  # noqa: S608 - a number
            after,
        ):
            after = visitors[-1][0]
            query = "SELECT h.id, body, since, shown, after FROM held h LEFT JOIN seen USING (id) WHERE visitor = ? ORDER BY seq"
            yield [(visitor, self._salvage.rows(query, visitor)) for (visitor,) in visitors]

    def _take_held(self, connection: sqlite3.Connection, visitor: str, rows: list[Row]) -> Adopted:
        if visitor in self._erased_visitors:
            return Adopted(erased=len(rows))
        new = [row for row in rows if not _is_known(connection, row[0])]
        tail = value(connection, "held_tail", visitor)
        connection.executemany(SQL["hold"], [(visitor, push_id, body, since) for push_id, body, since, *_ in new])
        if new and tail is not None:
            connection.execute(SQL["held_to_end"], (visitor, tail))
            connection.execute(SQL["remove_held_first"], (visitor, tail))
        size = sum(len(row[1]) + HELD_OVERHEAD for row in new)
        self._tallies.update({"held": len(new), HOLDING: len(new), UNVOUCHED_BYTES: size})
        self._tallies[id_gauge(self._now)] += len(new) * ID_OVERHEAD
        self._remember(connection, [(row[0], *row[-2:]) for row in new])
        return Adopted(held=len(new), known=len(rows) - len(new))

    def _take_ids(self, connection: sqlite3.Connection, rows: list[Row]) -> Adopted:
        kept = []
        for push_id, at, shown, after in rows:
            visitor = decode_visitor(after)
            if visitor is not None and visitor.email is not None and self._is_erased(connection, visitor.email, at):
                shown, after = "", None  # noqa: PLW2901 - the id stays known
            kept.append((push_id, at, shown, after))
        return Adopted(ids=max(0, connection.executemany(SQL["remember"], kept).rowcount))

    def _remember(self, connection: sqlite3.Connection, ids: Iterable[tuple[str, str | None, bytes | None]]) -> None:
        """Remembers the ids, as of now: an adoption may be repeated, and pages may retry these pushes."""
        rows = [(push_id, self._now, shown or "", after) for push_id, shown, after in ids]
        connection.executemany(SQL["remember"], rows)


def _is_known(connection: sqlite3.Connection, push_id: str) -> bool:
    return value(connection, "is_seen", push_id) is not None or value(connection, "is_dead", push_id) is not None


def _bury(connection: sqlite3.Connection, lane: int, push: Row, death: Row) -> None:
    """Stores a dead letter under a fresh sequence number, which no push will ever use."""
    push_id, address, trust, kind, body, since, attempts = push
    row = (lane, push_id, address, trust, kind, body, since, attempts, 0)
    (seq,) = connection.execute(SQL["adopt_push"], row).fetchone()
    connection.execute(SQL["remove"], (seq,))
    connection.execute(SQL["adopt_dead"], (seq, *row[:-1], *death))


def total(parts: Iterable[Adopted]) -> Adopted:
    """Returns the sum of several steps, without `missing`, which the caller adds."""
    waiting = held = dead = ids = known = erased = 0
    for part in parts:
        waiting, held, dead, ids = waiting + part.waiting, held + part.held, dead + part.dead, ids + part.ids
        known, erased = known + part.known, erased + part.erased
    return Adopted(waiting, held, dead, ids, known, erased)


def adopted_names(connection: sqlite3.Connection) -> frozenset[str]:
    """Returns the names of files that were recovered."""
    return frozenset(itertools.chain.from_iterable(connection.execute(SQL["adopted_names"])))


def is_adopted(connection: sqlite3.Connection, digest: bytes) -> bool:
    return value(connection, "adopted", digest) is not None


def note_adopted(connection: sqlite3.Connection, name: str, digest: bytes) -> None:
    connection.execute(SQL["note_adopted"], (name, digest))
