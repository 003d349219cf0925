"""Why a database is not reached while the server runs: what the pool keeps to itself is said, in the log and by the watch."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta

import psycopg
import pytest

from proxy.errors import StoreUnavailable
from proxy.ops.watch import Watch
from proxy.store.postgres.causes import cause, why_unreached
from proxy.store.postgres.outbox import open_outbox
from tests.support.postgres import postgres

REASON = "it does not accept the user or the password"


async def test_the_watch_and_the_log_say_why_no_connection_is_made_any_more(caplog: pytest.LogCaptureFixture) -> None:
    server, role = postgres(), f"role_{secrets.token_hex(4)}"
    server.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'before'")
    name = server.database().rpartition("/")[2]
    dsn = server.dsn(name, user=role, password="before")
    outbox = await open_outbox(dsn, hold_age=timedelta(days=30), dead_age=timedelta(days=90))
    watch = Watch(outbox, lambda: None, lambda: 0, lambda: 0, timeout_seconds=20)
    assert (await watch.look()).problems == ()
    server.execute(f"ALTER ROLE {role} PASSWORD 'after'")
    server.cut_connections(name)
    looking, taking = await asyncio.gather(watch.look(), outbox.claim(1, 1, 60), return_exceptions=True)
    await outbox.close()
    assert not isinstance(looking, BaseException)
    assert f"The database cannot be used: {REASON}." in looking.problems[0]
    assert isinstance(taking, StoreUnavailable)
    assert REASON not in taking.message, "callers are not told"
    assert f"The database could not do what it was asked: {REASON}" in caplog.messages


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('FATAL:  no more connections allowed (max_client_conn) for "ann@example.com"', "raise max_client_conn"),
        ("FATAL:  server login has been failing, try again later (server_login_retry)", "the pooler's log"),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", "max_connections"),
        ("FATAL:  the database system is in recovery mode", "recovers from a crash"),
        ("session is read-only", "standby"),
        ('SSL error: certificate verify failed for "ann@example.com"', "sslrootcert"),
        ("something new about ann@example.com", "no answer (OperationalError)"),
    ],
)
def test_what_a_server_or_a_pooler_says_is_recognised_and_not_quoted(said: str, words: str) -> None:
    sentence = why_unreached(psycopg.OperationalError(said))
    assert words in sentence
    assert "@" not in sentence


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("query_wait_timeout", "default_pool_size"),
        ("server conn crashed?", "the pooler does not get through to it"),
        ("something new about ann@example.com", "08P01"),
    ],
)
def test_what_a_pooler_says_within_a_connection_is_recognised(said: str, words: str) -> None:
    sentence = cause(psycopg.errors.ProtocolViolation(said))
    assert words in sentence
    assert "@" not in sentence
