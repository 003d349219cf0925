"""Claims and polls stay fast while a snapshot is held open, and no lane is missed because of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta

import psycopg

from proxy.store.postgres.database import SETTINGS, SQL
from proxy.store.postgres.floor import Floor
from proxy.store.postgres.outbox import open_outbox
from proxy.store.records import Fate
from tests.contract.test_outbox import carry_out, claim, queued, settled
from tests.support.postgres import database


def test_a_look_begins_a_little_before_the_earliest_time_and_now_and_then_at_the_beginning() -> None:
    floor = Floor()
    assert floor.due(0.0) == 0.0
    floor.found(-50.0, 1_000.0)
    assert floor.value == 948.0, "something waits since then"
    assert floor.due(0.5) is None
    assert floor.due(1.5) == 948.0
    floor.found(None, 1_001.5)
    assert floor.value == 999.5
    assert floor.due(29.0) == 999.5
    assert floor.due(30.5) == 0.0, "what took long to commit is found by this"
    floor.found(0.5, 1_030.0)
    assert floor.value == 1_028.0, "a lane that is ready soon says nothing of those that become ready before"


def pages(connection: psycopg.Connection[tuple[object, ...]], query: str, values: Mapping[str, object]) -> int:
    with connection.transaction():
        connection.execute(SETTINGS)
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SQL[query]}"
        row = connection.execute(text.encode(), values).fetchone()
    assert row is not None
    plan = json.loads(json.dumps(row[0]))[0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


async def test_a_snapshot_that_is_held_open_does_not_make_claims_dearer() -> None:
    dsn, days = database(), timedelta(days=30)
    with psycopg.connect(dsn) as snapshot, psycopg.connect(dsn, autocommit=True) as other:
        snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        snapshot.execute("SELECT count(*) FROM lanes")
        # What 3,000 deliveries to 600 people leave behind in the index, minutes ago.
        other.execute("INSERT INTO lanes (key) SELECT n || '@example.com' FROM generate_series(1, 600) n")
        for age in range(305, 300, -1):
            other.execute("UPDATE lanes SET ready_at = extract(epoch FROM now()) - %s::int + id / 1000.0", (age,))
            other.execute("UPDATE lanes SET ready_at = NULL")
        outbox = await open_outbox(dsn, hold_age=days, dead_age=days)
        assert pages(other, "next_ready", {"floor": 0, "stranger_floor": 0, "ahead": 1}) > 100
        waiting = [queued(f"{number}@example.com") for number in range(1, 9)]
        await asyncio.gather(*(carry_out(outbox, push) for push in waiting))
        leases = await claim(outbox)
        assert len(leases) == 8
        await asyncio.gather(*(outbox.settle(settled(lease, Fate.DELIVERED)) for lease in leases))
        floors = outbox._leases.floors.values
        assert pages(other, "claimable", {"lanes": 64, **floors}) < 40
        assert pages(other, "next_ready", {**floors, "ahead": 1}) < 40
        await outbox.close()
