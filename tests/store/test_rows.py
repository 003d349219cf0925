"""What both adapters store alike: tallies, decoded rows, and that a copy leaves no column out."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from proxy.core.calls import Track
from proxy.core.emails import lane_key
from proxy.core.gate import Closure
from proxy.core.visitors import Trust
from proxy.store.postgres.schema import SCHEMA_STEPS as POSTGRES_STEPS
from proxy.store.records import DeadReason, RefusedName
from proxy.store.rows import (
    TABLES,
    decode_closure,
    decode_dead_letter,
    encode_closure,
    expired,
    make_stats,
    tombstone,
    unheld,
)
from proxy.store.sqlite.file import SCHEMA_STEPS as SQLITE_STEPS

NOT_COPIED = {  # leases, probes and erasures: none is left in a store that was opened and closed
    *("lanes.leased", "lanes.revoked", "pushes.started", "gate.probe_until", "erasures.key", "erasures.at"),
    *(
        "counters.shard",
        "not_offered.shard",
        "scq_schema.version",
        "visitors.left_key",
        *("timelines.timeline", "timelines.at", "timelines.lost"),
    ),  # and what PostgreSQL makes itself
}
SHUT = Closure(until=10.0, tries=3)


def sqlite_columns() -> Iterator[str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.create_function("lane_key", 1, lane_key, deterministic=True)
        connection.executescript("\n".join(SQLITE_STEPS))
        query = (
            "SELECT m.name || '.' || c.name FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table'"
        )
        yield from (name for (name,) in connection.execute(query) if not name.startswith("sqlite_"))


def postgres_columns() -> Iterator[str]:
    for table, body in re.findall(
        r"CREATE TABLE (\w+) \((.*?)\)(?: WITH .*?|\nWITH .*?)?;", "".join(POSTGRES_STEPS), re.DOTALL
    ):
        yield from (f"{table}.{name}" for name in re.findall(r"(?:^|,)\s*([a-z_]+) ", body))
    for table, changes in re.findall(r"ALTER TABLE (\w+) (.*?);", "".join(POSTGRES_STEPS), re.DOTALL):
        yield from (f"{table}.{name}" for name in re.findall(r"ADD COLUMN (\w+) ", changes))


def test_a_copy_carries_every_column_that_is_not_named_here() -> None:
    copied = {f"{table}.{column}" for table, columns in TABLES.items() for column in columns}
    assert set(sqlite_columns()) - NOT_COPIED == copied - {"seen.after_key"}
    assert set(postgres_columns()) - NOT_COPIED == copied


def test_what_is_held_no_longer_frees_its_body_and_its_overhead() -> None:
    assert unheld([10, 20]) == {"gauge:holding": -2, "gauge:unvouched_bytes": -430}
    assert expired(size for size in [10]) == {
        "hold_expired": 1,
        "refused:hold-expired": 1,
        "gauge:holding": -1,
        "gauge:unvouched_bytes": -210,
    }


def test_a_gauge_is_not_among_the_counters() -> None:
    counted = {"gauge:waiting": 3, "gauge:dead": 1, "gauge:proofs": 1, "delivered": 2, "accepted": 5}
    stats = make_stats(
        counted,
        oldest=7.0,
        ready=None,
        refused_names=[("vip", "SCQ_TAGS", 2, 8.0)],
        closure=encode_closure(SHUT),
    )
    assert (list(stats.counters.items()), stats.waiting, stats.holding, stats.dead) == (
        [("accepted", 5), ("delivered", 2)],
        3,
        0,
        1,
    )
    assert stats.refused_names == (RefusedName("vip", "SCQ_TAGS", 2, 8.0),)
    assert (stats.oldest, stats.sign_ups, stats.closure) == (7.0, 0, SHUT)


@pytest.mark.parametrize("closure", [SHUT, None])
def test_a_closure_is_read_as_it_was_written(closure: Closure | None) -> None:
    assert decode_closure(encode_closure(closure)) == closure


def test_a_dead_letter_has_its_types_back() -> None:
    letter = decode_dead_letter(
        (1, "i", "a@example.com", "track", 2, "rejected", "HTTP 400", 9.0, 8.0, 3, b'{"addTags":["a"]}')
    )
    assert (letter.trust, letter.reason, letter.body) == (Trust.VERIFIED, DeadReason.REJECTED, Track(("a",)))


def test_a_tombstone_tells_nothing_without_the_key_of_the_store() -> None:
    assert tombstone("a@example.com", b"one") != tombstone("a@example.com", b"two")
    assert tombstone("a@example.com", b"one") == tombstone("a@example.com", b"one")
