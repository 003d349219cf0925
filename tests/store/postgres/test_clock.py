"""The database's clock is used, whatever a node's own says: here it is five minutes ahead of this machine's."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest

from proxy.core.gate import Closure
from proxy.core.tokens import TokenCodec, TokenProblem
from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from proxy.store.postgres.outbox import PostgresOutbox, open_outbox
from proxy.store.records import Fate, Settled, Settlement
from tests.contract.test_outbox import carry_out, claim, queued
from tests.support.live import eventually
from tests.support.nodes import node
from tests.support.postgres import database, postgres
from tests.support.server import Browser, arrives, identify, new_email, token, track

AHEAD_SECONDS = 300


def skewed() -> str:
    """The DSN of a database whose clock is ahead: its own function for the time stands before the server's."""
    dsn = database()
    name = dsn.rpartition("/")[2]
    postgres().execute("CREATE SCHEMA skew", database=name)
    postgres().execute(
        "CREATE FUNCTION skew.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS "
        f"$$ SELECT pg_catalog.statement_timestamp() + interval '{AHEAD_SECONDS} seconds' $$",
        database=name,
    )
    postgres().execute(f"ALTER DATABASE {name} SET search_path = skew, pg_catalog, public")
    return dsn


async def opened(dsn: str) -> PostgresOutbox:
    days = timedelta(days=30)
    return await open_outbox(dsn, hold_age=days, dead_age=days)


async def test_the_outbox_tells_the_databases_time_and_that_this_machines_is_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox = await opened(skewed())
    assert outbox.now() - time.time() == pytest.approx(AHEAD_SECONDS, abs=2)
    await carry_out(outbox, queued("a@example.com"))
    health = (await outbox.stats()).health
    assert health.clock_ahead_seconds == pytest.approx(AHEAD_SECONDS, abs=2)
    (problem,) = health.problems
    assert "This machine's clock is 300 seconds behind the database's" in problem
    assert caplog.text.count("seconds behind the database's") == 1
    await outbox.close()


async def test_a_retry_and_a_shut_gate_wait_as_long_as_they_were_told_by_any_clock() -> None:
    dsn = skewed()
    here, there = await opened(dsn), await opened(dsn)
    await here.move_gate(None, Closure(until=here.now() + 3))
    closure = (await there.claim(9, 9, 60)).closure
    assert closure is not None
    assert closure.until - there.now() == pytest.approx(3, abs=2)
    await here.move_gate(closure, None)
    await carry_out(here, queued("a@example.com"))
    (lease,) = await claim(here)
    assert lease.until - here.now() == pytest.approx(60, abs=10)
    kept = Settled(lease.pushes[0].seq, Fate.KEPT)
    await here.settle(Settlement(lease, (kept,), 1, here.now()))
    assert len(await claim(there)) == 1
    for outbox in (here, there):
        await outbox.close()


def test_a_node_that_is_behind_takes_fresh_tokens_and_is_not_held_up_by_the_gate(
    tmp_path: Path, sandbox: Sandbox, upstream: str
) -> None:
    with node(tmp_path / "node", upstream, skewed()) as behind:
        email = new_email()
        browser = Browser(behind)
        fresh = token(email, iat_in=AHEAD_SECONDS, exp_in=AHEAD_SECONDS + 600)
        assert browser.statuses(identify(token=fresh)) == ["accepted"]
        sandbox.faults.script("*", Fault(status=429, retry_after=1))
        assert browser.statuses(track("cart-1")) == ["accepted"]
        arrives(sandbox, email, "+cart-1")
        eventually(lambda: "behind the database's" in behind.log)
        assert "scq_store_clock_ahead_seconds" in behind.metrics()


def test_a_refusal_for_its_time_names_the_clock() -> None:
    codec = TokenCodec([(None, "k" * 32)])
    fresh = codec.mint("a@example.com", 1_300, timedelta(minutes=10))
    refused = codec.verify(fresh, 1_000)
    assert isinstance(refused, TokenProblem)
    assert refused.detail.startswith(
        "its iat or nbf is 300 seconds in the future by the clock of the store (the database's"
    )
    late = codec.verify(fresh, 2_000)
    assert isinstance(late, TokenProblem)
    assert "it expired 100 seconds ago by the clock of the store" in late.detail
