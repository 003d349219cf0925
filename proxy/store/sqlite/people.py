"""Moves and erases whole people in the SQLite outbox, inside the caller's transaction."""

import sqlite3
from collections import Counter
from collections.abc import Mapping

from proxy.core.emails import lane_key
from proxy.core.visitors import fingerprint
from proxy.store.records import Erased
from proxy.store.rows import decode_visitor, erased, tombstone
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.reads import value
from proxy.store.sqlite.sign_ups import end_turns

STEP_ROWS = 5_000


def move_lane(connection: sqlite3.Connection, lane: int, address: str, now: float, tallies: Counter[str]) -> None:
    """Moves a lane to the address that SendX has confirmed. Nobody holds a lease on the lane, which is not put off.

    The old address becomes an alias. If the new one has a lane already, what waits there goes first, then both are one.
    """
    old, new = value(connection, "lane_key", lane), lane_key(address)
    if old is None or old == new:
        return  # the lane is one with another already, or only the spelling changes
    other = value(connection, "lane_by_key", new)
    connection.execute(SQL["move_person"], (old, new))
    connection.execute(SQL["end_alias"], (new,))
    connection.execute(SQL["add_alias"], (old, lane, now))
    if other is None:
        connection.execute(SQL["rename_lane"], (lane, new, address))
        return
    waiting, verified, size, stranger = connection.execute(SQL["lane_facts"], (lane,)).fetchone()
    unvouched = not verified and (stranger or not waiting)
    if not unvouched and value(connection, "is_put_off", other):
        end_turns(connection, other, tallies, now)
    connection.execute(SQL["move_pushes"], (lane, other))
    connection.execute(SQL["remove_pushes"], (lane,)).fetchall()
    connection.execute(SQL["move_dead"], (lane, other))
    connection.execute(SQL["move_aliases"], (lane, other))
    connection.execute(SQL["merge_lane"], (other, waiting, verified, now, size, unvouched))
    connection.execute(SQL["readdress_lane"], (other, address))
    connection.execute(SQL["remove_lane"], (lane,))


def erase_person(
    connection: sqlite3.Connection, key: str, site_key: bytes, now: float, tallies: Counter[str]
) -> tuple[Erased, set[tuple[int, int]]]:
    """Removes what waits for the person with this lane key or alias, and begins the rest: see `forget_identities`.

    Also returns the leases, as (lane, epoch), that are void from here on. A request on the wire may still arrive. Until its outcome is
    known the lane stays, so that the next push does not overtake it.
    """
    waiting: list[tuple[int, int]] = []
    dead: list[tuple[int, int]] = []
    revoked: set[tuple[int, int]] = set()
    for each in _spellings(connection, key):
        row = connection.execute(SQL["lane_lease"], (each,)).fetchone()
        lane, leased, epoch, put_off = row or (-1, 0, 0, 0)
        waiting += connection.execute(SQL["remove_pushes"], (lane,)).fetchall()
        dead += connection.execute(SQL["remove_dead"], (lane, each)).fetchall()
        if put_off:
            end_turns(connection, lane, tallies, now)
        connection.execute(SQL["remove_aliases"], (lane, each))
        connection.execute(SQL["forget_person"], (each, fingerprint(each)))
        connection.execute(SQL["add_tombstone"], (tombstone(each, site_key), now))
        connection.execute(SQL["begin_erasure"], (each, now))
        if leased:
            revoked.add((lane, epoch))
        connection.execute(SQL["empty_lane" if leased else "remove_lane"], (lane,))
    tallies.update(erased(waiting, dead))
    return Erased(len(waiting), 0, len(dead), 0), revoked


def read_erasures(connection: sqlite3.Connection) -> dict[str, float]:
    """Returns the lane keys of people whose erasure has begun, and when (Unix seconds)."""
    return dict(connection.execute(SQL["erasures"]).fetchall())


def end_erasures(connection: sqlite3.Connection, keys: Mapping[str, float]) -> None:
    connection.executemany(SQL["end_erasure"], keys.items())


def forget_identities(
    connection: sqlite3.Connection, keys: Mapping[str, float], after_id: str
) -> tuple[int, set[str], str | None]:
    """Forgets who browsers were after log-ins as these people; returns the number of log-ins, the visitor ids, and where to go on.

    The push ids stay known. Each call looks at some of them; until the last one, the tombstone stands for the rest. A log-in since the
    erasure is not touched.
    """
    forgotten: list[tuple[str]] = []
    visitors: set[str] = set()
    rows = connection.execute(SQL["seen_afters"], (after_id, STEP_ROWS)).fetchall()
    for push_id, at, after in rows:
        visitor = decode_visitor(after)
        if visitor is not None and visitor.email is not None and at <= keys.get(lane_key(visitor.email), 0):
            forgotten.append((push_id,))
            visitors.add(visitor.id)
    connection.executemany(SQL["forget_after"], forgotten)
    return len(forgotten), visitors, rows[-1][0] if len(rows) == STEP_ROWS else None


def _spellings(connection: sqlite3.Connection, key: str) -> frozenset[str]:
    """Returns every lane key of the person: this one, the one to which it moved, and the older ones of either."""
    keys = {key}
    moved = connection.execute(SQL["alias_lane"], (key,)).fetchone()
    if moved is not None:
        keys.add(moved[1])
    for each in tuple(keys):
        lane = value(connection, "lane_by_key", each)
        keys.update(alias for (alias,) in connection.execute(SQL["lane_aliases"], (lane,)))
    return frozenset(keys)
