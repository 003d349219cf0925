"""What is read from the SQLite outbox: facts for decisions, lane heads for senders, numbers and dead letters for the operator."""

from __future__ import annotations

import hmac
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.core.calls import Attributes, Kind, Track
from proxy.core.decision import Schedule
from proxy.core.emails import lane_key
from proxy.core.gate import Closure
from proxy.core.visitors import Trust
from proxy.store.records import DeadFilter, DeadLetter, DeadReason, RefusedName, Stats, Waiting
from proxy.store.sqlite.file import SQL

MAX_REFUSED_NAMES = 500
HELD_BYTES, WAITING, HOLDING, DEAD = "gauge:held_bytes", "gauge:waiting", "gauge:holding", "gauge:dead"
HELD_OVERHEAD = 300  # bytes that a held push costs beside its body: its row, its indexes, its id in `seen`


def tombstone(key: str, site_key: bytes) -> bytes:
    """What is kept of an erased person: nothing that could be read back."""
    return hmac.digest(site_key, b"tombstone:" + key.encode(), "sha256")


def lane_head(
    connection: sqlite3.Connection, lane: int, per_lane: int, key: str, address: str | None
) -> tuple[Waiting, ...]:
    """The pushes to send next. An increment goes alone and is marked as started before anybody can send it.

    `key` and `address` are the lane's: what was pushed for an address that has moved since is sent to the new one.
    """
    head: list[Waiting] = []
    for *columns, increments in connection.execute(SQL["lane_head"], (lane, per_lane)).fetchall():
        if increments and head:
            break
        push = _waiting(columns)
        if address is not None and lane_key(push.address) != key:
            push = msgspec.structs.replace(push, address=address)
        head.append(push)
        if increments:
            connection.execute(SQL["start"], (head[0].seq,))
            break
    return tuple(head)


def read_gate(connection: sqlite3.Connection) -> tuple[Closure | None, float | None]:
    """What shuts the gate, and until when a probe is out."""
    closure, probe_until = connection.execute(SQL["gate"]).fetchone()
    return (msgspec.json.decode(closure, type=Closure) if closure is not None else None), probe_until


def _waiting(columns: Sequence[Any]) -> Waiting:
    seq, push_id, address, trust, kind, body, since, attempts = columns
    return Waiting(seq, push_id, address, Trust(trust), _body(kind, body), since, attempts)


def _body(kind: str, body: bytes) -> Attributes | Track:
    return msgspec.json.decode(body, type=Track) if kind == Kind.TRACK else msgspec.json.decode(body, type=Attributes)


def read_stats(connection: sqlite3.Connection, tallies: Counter[str]) -> Stats:
    """`tallies`: of this transaction, whose rows are seen here already and whose counters are not written yet."""
    counted = Counter(dict(connection.execute(SQL["counters"])))
    counted.update(tallies)
    counters = {name: value for name, value in sorted(counted.items()) if not name.startswith("gauge:")}
    oldest = value(connection, "oldest")
    names = connection.execute(SQL["refused_names"], (MAX_REFUSED_NAMES,))
    refused = tuple(RefusedName(*row) for row in names)
    sign_ups_until = value(connection, "schedule", Schedule.SIGN_UPS) or 0.0
    waiting, holding, dead = counted[WAITING], counted[HOLDING], counted[DEAD]
    return Stats(counters, waiting, holding, dead, oldest, refused, sign_ups_until=sign_ups_until)


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
    return [_dead_letter(*row) for row in connection.execute(query, asked | {"after": after, "limit": limit})]


def _dead_letter(
    seq: int, push_id: str, address: str, kind: str, trust: int, reason: str, detail: str, *rest: Any
) -> DeadLetter:
    at, since, attempts, body = rest
    return DeadLetter(
        seq,
        push_id,
        address,
        Kind(kind),
        Trust(trust),
        DeadReason(reason),
        detail,
        at,
        since,
        attempts,
        _body(kind, body),
    )


def _lane_of(connection: sqlite3.Connection, key: str) -> int:
    """The lane of the person with this lane key, or old lane key; -1 if there is none."""
    lane = value(connection, "lane_by_key", key) or value(connection, "alias_lane", key)
    return int(lane) if lane is not None else -1


def value(connection: sqlite3.Connection, query: str, *arguments: object) -> Any:
    row = connection.execute(SQL[query], arguments).fetchone()
    return row[0] if row else None
