"""What is read from the PostgreSQL outbox for the operator: numbers and dead letters; and the queries that its parts share."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from proxy.core.calls import Attributes, Kind, Track
from proxy.core.decision import Schedule
from proxy.core.gate import Closure
from proxy.core.visitors import Trust
from proxy.store.ledger import DEAD, HOLDING, WAITING
from proxy.store.postgres.database import Database, Query
from proxy.store.records import DeadFilter, DeadLetter, DeadReason, RefusedName, Stats, Waiting

MAX_REFUSED_NAMES = 500


def tombstone(key: str, site_key: bytes) -> bytes:
    """What is kept of an erased person: nothing that could be read back."""
    return hmac.digest(site_key, b"tombstone:" + key.encode("utf-8", "replace"), "sha256")


def tally(tallies: Mapping[str, int]) -> Query:
    """The last to be written in a transaction."""
    moved = {name: value for name, value in tallies.items() if value}
    return "tally", {"names": list(moved), "values": list(moved.values())}


def waiting(seq: int, push_id: str, address: str, trust: int, kind: str, *rest: Any) -> Waiting:
    """`rest`: body, since, attempts."""
    body, since, attempts = rest
    return Waiting(seq, push_id, address, Trust(trust), decode_body(kind, body), since, attempts)


def decode_body(kind: str, body: bytes) -> Attributes | Track:
    return msgspec.json.decode(body, type=Track) if kind == Kind.TRACK else msgspec.json.decode(body, type=Attributes)


def decode_closure(closure: bytes | None) -> Closure | None:
    return msgspec.json.decode(closure, type=Closure) if closure is not None else None


async def read_stats(database: Database) -> Stats:
    """The counters are read by one statement, so that their sums add up."""
    counters, oldest, names, schedules = await database.read(
        ("counters", {}),
        ("oldest", {}),
        ("refused_names", {"limit": MAX_REFUSED_NAMES}),
        ("schedules", {"schedules": [str(Schedule.SIGN_UPS)]}),
    )
    counted = Counter(dict(counters.rows))
    return Stats(
        {name: value for name, value in counted.items() if not name.startswith("gauge:")},
        counted[WAITING],
        counted[HOLDING],
        counted[DEAD],
        oldest.rows[0][0] if oldest.rows else None,
        tuple(RefusedName(*row) for row in names.rows),
        sign_ups_until=schedules.rows[0][1] if schedules.rows else 0.0,
    )


def dead_letters(matching: DeadFilter, after: int, limit: int) -> Query:
    asked: dict[str, object] = {
        "seqs": list(matching.seqs) or None,
        "ids": list(matching.ids) or None,
        "reason": str(matching.reason) if matching.reason is not None else None,
        "contact": matching.contact,
        "before": matching.before,
    }
    return "dead_letters", {**asked, "after": after, "limit": limit}


def read_dead_letters(rows: Sequence[tuple[Any, ...]]) -> list[DeadLetter]:
    return [_dead_letter(*row) for row in rows]


def _dead_letter(
    seq: int, push_id: str, address: str, kind: str, trust: int, reason: str, detail: str, *rest: Any
) -> DeadLetter:
    at, since, attempts, body = rest
    decoded = decode_body(kind, body)
    return DeadLetter(
        seq, push_id, address, Kind(kind), Trust(trust), DeadReason(reason), detail, at, since, attempts, decoded
    )
