"""The sweep of visitors: which of them it forgets, and at what cost, on each adapter."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy.core.decision import Born, Identified, Retire, Shown
from proxy.store.outbox import Outbox
from proxy.store.postgres.database import SETTINGS, SQL
from proxy.store.postgres.outbox import PostgresOutbox
from proxy.store.sqlite.file import SQL as SQLITE
from proxy.store.sqlite.outbox import SqliteOutbox
from tests.contract.test_outbox import ADAPTERS, carry_out, visitor
from tests.support.postgres import database

DAY = 86_400
HOLD_DAYS = 30  # of the outboxes that the contract suite opens
BATCH = 1_000


@pytest.fixture(params=list(ADAPTERS))
async def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Outbox]:
    opened = await ADAPTERS[request.param](tmp_path)
    yield opened
    await opened.close()


async def execute(outbox: Outbox, statement: str) -> list[tuple[Any, ...]]:
    """Runs a statement that both dialects understand."""
    if isinstance(outbox, SqliteOutbox):
        return await outbox._writer.submit(lambda connection: connection.execute(statement).fetchall())
    assert isinstance(outbox, PostgresOutbox)
    with psycopg.connect(outbox._dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def age(outbox: Outbox, days: float, names: str = "id LIKE '%'") -> None:
    await execute(outbox, f"UPDATE visitors SET at = {time.time() - days * DAY} WHERE {names}")  # noqa: S608 - of this test


async def names(outbox: Outbox) -> set[str]:
    return {name for (name,) in await execute(outbox, "SELECT id FROM visitors")}


async def test_a_visitor_who_was_only_shown_is_forgotten_two_weeks_after_what_it_pushed(outbox: Outbox) -> None:
    known = [Identified("identified", "a@example.com"), Born("born", "a@example.com"), Retire("retired")]
    shown = [Shown(name, name) for name in ("young", "old", "back", "identified", "born", "retired")]
    await carry_out(outbox, *known, *shown)
    await age(outbox, HOLD_DAYS + 15)
    await age(outbox, HOLD_DAYS + 13, "id = 'young'")
    await carry_out(outbox, Shown("back", "back"))
    await outbox.sweep()
    assert await names(outbox) == {"young", "back", "identified", "born", "retired"}
    assert (await visitor(outbox, "old")).shown is None
    await age(outbox, 401)
    await outbox.sweep()
    assert await names(outbox) == set()


async def test_however_many_were_only_shown_they_are_forgotten(outbox: Outbox) -> None:
    many = 2 * BATCH + 7
    await carry_out(outbox, *(Shown(f"visitor-{number}", "v") for number in range(many)), Retire("retired"))
    await age(outbox, HOLD_DAYS + 15)
    await outbox.sweep()
    assert await names(outbox) == {"retired"}


async def test_a_step_does_not_look_at_the_visitors_of_whom_more_is_known(outbox: Outbox) -> None:
    """Those are many, and as old."""
    if isinstance(outbox, SqliteOutbox):
        text = SQLITE["forget_shown"].replace("at < ?", "at < 1.0").replace("LIMIT ?", "LIMIT 1000")
        steps = await execute(outbox, f"EXPLAIN QUERY PLAN {text}")
        assert "INDEX visitors_shown (at<?)" in " ".join(str(step[-1]) for step in steps)
        return
    with psycopg.connect(database(), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO visitors (id, at, identified, person) SELECT n, 0, true, 'a@example.com' FROM generate_series(1, 20000) n"
        )
        connection.execute("VACUUM ANALYZE visitors")
        with connection.transaction():
            connection.execute(SETTINGS)
            text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SQL['forget_shown']}"
            row = connection.execute(text.encode(), {"age": 1.0, "limit": BATCH}).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 30, json.dumps(plan)
