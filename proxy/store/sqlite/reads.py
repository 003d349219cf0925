"""Reads the SQLite outbox: the gate for senders, numbers and dead letters for the operator."""

import sqlite3
from collections import Counter
from typing import Any

import msgspec

from proxy.core.gate import Closure
from proxy.store.records import DeadFilter, DeadLetter, Stats
from proxy.store.rows import MAX_REFUSED_NAMES, decode_closure, decode_dead_letter, make_stats
from proxy.store.sqlite.file import SQL


def read_gate(connection: sqlite3.Connection) -> tuple[Closure | None, float | None]:
    closure, probe_until = connection.execute(SQL["gate"]).fetchone()
    return decode_closure(closure), probe_until


def read_stats(connection: sqlite3.Connection, tallies: Counter[str]) -> Stats:
    """Returns the numbers of the store. `tallies`: of this transaction, whose rows are visible and whose counters are not written yet."""
    counted = Counter(dict(connection.execute(SQL["counters"])))
    counted.update(tallies)
    return make_stats(
        counted,
        oldest=value(connection, "oldest"),
        ready=value(connection, "vouched_ready"),
        refused_names=connection.execute(SQL["refused_names"], (MAX_REFUSED_NAMES,)),
        closure=value(connection, "gate"),
    )


_CONDITIONS = {  # as text, so that each finds its index
    "seqs": "seq IN (SELECT value FROM json_each(:seqs))",
    "ids": "id IN (SELECT value FROM json_each(:ids))",
    "reason": "reason = :reason",
    "lane": "lane = :lane",
    "before": "at < :before",
}


def read_dead_letters(connection: sqlite3.Connection, matching: DeadFilter, after: int, limit: int) -> list[DeadLetter]:
    asked = {
        "seqs": msgspec.json.encode(matching.seqs).decode() if matching.seqs else None,
        "ids": msgspec.json.encode(matching.ids).decode() if matching.ids else None,
        "reason": matching.reason,
        "lane": _lane_of(connection, matching.contact) if matching.contact is not None else None,
        "before": matching.before,
    }
    conditions = [f" AND {_CONDITIONS[name]}" for name, wanted in asked.items() if wanted is not None]
    query = f"{SQL['dead_letters']}{''.join(conditions)} ORDER BY seq LIMIT :limit"
    return [decode_dead_letter(row) for row in connection.execute(query, asked | {"after": after, "limit": limit})]


def _lane_of(connection: sqlite3.Connection, key: str) -> int:
    """Returns the lane of the person with this lane key, or old lane key; -1 if there is none."""
    lane = value(connection, "lane_by_key", key) or value(connection, "alias_lane", key)
    return int(lane) if lane is not None else -1


def value(connection: sqlite3.Connection, query: str, *arguments: object) -> Any:
    """Returns the first column of the first row, None if there is no row."""
    row = connection.execute(SQL[query], arguments).fetchone()
    return row[0] if row else None
