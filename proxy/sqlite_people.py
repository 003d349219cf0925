"""What happens to a whole person in the SQLite outbox: a confirmed change of address, and erasure. Both inside the caller's transaction."""

from __future__ import annotations

import sqlite3

import msgspec

from proxy.identity import Visitor
from proxy.outbox import Erased
from proxy.pushes import lane_key
from proxy.sqlite_file import SQL
from proxy.sqlite_reads import tombstone, value

STEP_ROWS = 5_000


def move_lane(connection: sqlite3.Connection, lane: int, address: str, now: float) -> None:
    """SendX has confirmed that the person of this lane is at `address` now; nobody holds a lease on the lane.

    The old address becomes an alias. If the new one has a lane already, what waits there goes first, then both are one.
    """
    old, new = value(connection, "lane_key", lane), lane_key(address)
    if old is None or old == new:
        return  # the lane is one with another already, or only the spelling changes
    other = value(connection, "lane_by_key", new)
    connection.execute(SQL["end_alias"], (new,))
    connection.execute(SQL["add_alias"], (old, lane, now))
    if other is None:
        connection.execute(SQL["rename_lane"], (lane, new, address))
        return
    waiting, verified = connection.execute(SQL["lane_facts"], (lane,)).fetchone()
    connection.execute(SQL["move_pushes"], (lane, other))
    connection.execute(SQL["remove_pushes"], (lane,))
    connection.execute(SQL["move_dead"], (lane, other))
    connection.execute(SQL["move_aliases"], (lane, other))
    connection.execute(SQL["merge_lane"], (other, waiting, verified, now))
    connection.execute(SQL["readdress_lane"], (other, address))
    connection.execute(SQL["remove_lane"], (lane,))


def erase_person(
    connection: sqlite3.Connection, key: str, site_key: bytes, now: float
) -> tuple[Erased, frozenset[str]]:
    """Removes what is sent for the person with this lane key or alias, and returns all their lane keys; `forget_identities` does the rest.

    A lease on the lane is void from here on: what is on the wire at this moment may still arrive.
    """
    keys = _spellings(connection, key)
    waiting = dead = 0
    for each in keys:
        lane = value(connection, "lane_by_key", each) or -1
        waiting += connection.execute(SQL["remove_pushes"], (lane,)).rowcount
        dead += connection.execute(SQL["remove_dead"], (lane, each)).rowcount
        connection.execute(SQL["remove_aliases"], (lane, each))
        connection.execute(SQL["remove_left"], (each,))
        connection.execute(SQL["bury_person"], (tombstone(each, site_key), now))
        connection.execute(SQL["remove_lane"], (lane,))
    return Erased(waiting, 0, dead, 0), keys


def forget_identities(
    connection: sqlite3.Connection, keys: frozenset[str], after_id: str
) -> tuple[int, set[str], str | None]:
    """Forgets who browsers were after log-ins as this person: how many it were, their visitor ids, and where to go on.

    The push ids stay known. Each call looks at some of them; until the last one, the tombstone stands for the rest.
    """
    forgotten: list[tuple[str]] = []
    visitors: set[str] = set()
    rows = connection.execute(SQL["seen_afters"], (after_id, STEP_ROWS)).fetchall()
    for push_id, after in rows:
        visitor = msgspec.json.decode(after, type=Visitor) if after is not None else None
        if visitor is not None and visitor.email is not None and lane_key(visitor.email) in keys:
            forgotten.append((push_id,))
            visitors.add(visitor.id)
    connection.executemany(SQL["forget_after"], forgotten)
    return len(forgotten), visitors, rows[-1][0] if len(rows) == STEP_ROWS else None


def _spellings(connection: sqlite3.Connection, key: str) -> frozenset[str]:
    """Every lane key of the person: this one, the one to which it moved, and the older ones of either."""
    keys = {key}
    moved = connection.execute(SQL["alias_lane"], (key,)).fetchone()
    if moved is not None:
        keys.add(moved[1])
    for each in tuple(keys):
        lane = value(connection, "lane_by_key", each)
        keys.update(alias for (alias,) in connection.execute(SQL["lane_aliases"], (lane,)))
    return frozenset(keys)
