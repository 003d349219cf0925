"""Schema steps: a store that an older version has written opens and goes on, and nodes of that version work beside newer ones."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import psycopg

from proxy.core.calls import Track
from proxy.core.decision import Born, Decision, Facts, Identified, LaneFacts, Shown, VisitorFacts
from proxy.core.emails import lane_key
from proxy.core.turns import Share
from proxy.store.outbox import Outbox
from proxy.store.postgres.outbox import open_outbox as open_postgres
from proxy.store.postgres.schema import SCHEMA_STEPS as POSTGRES_STEPS
from proxy.store.postgres.schema import migrate
from proxy.store.records import Fate, Settled, Settlement, SignUpFilter
from proxy.store.rows import HELD_OVERHEAD, ID_OVERHEAD, PUSH_OVERHEAD
from proxy.store.sqlite.file import APPLICATION_ID
from proxy.store.sqlite.file import SCHEMA_STEPS as SQLITE_STEPS
from proxy.store.sqlite.outbox import open_outbox as open_sqlite
from tests.contract.test_outbox import carry_out, visitor
from tests.support.postgres import postgres

KEY = b"k" * 32
BODIES = [b'{"addTags":["a"]}', b'{"addTags":["a","b"]}']
HOLD_AGE, DEAD_AGE = timedelta(days=30), timedelta(days=90)

# The same in both dialects; {left} is the column that was to become `person`.
OLD_CONTENT = """
INSERT INTO lanes (id, key, waiting, ready_at) VALUES (1, 'ada@example.com', 2, 5.5), (2, 'bob@example.com', 0, NULL);
INSERT INTO visitors (id, at, retired, identified, {left}) VALUES
  ('born', 7.5, {no}, {no}, 'ada@example.com'), ('identified', 8.5, {no}, {yes}, NULL), ('retired', 9.5, {yes}, {no}, NULL);
"""


async def open_older_sqlite(folder: Path) -> Outbox:
    """Opens a file of the second schema."""
    path = folder / "scq.db"
    connection = sqlite3.connect(path)
    connection.create_function("lane_key", 1, lane_key, deterministic=True)
    connection.executescript("\n".join(SQLITE_STEPS[:2]))
    connection.executescript(OLD_CONTENT.format(left="left", no="0", yes="1"))
    connection.execute("INSERT INTO meta VALUES ('site_key', ?)", (KEY,))
    for body in BODIES:
        connection.execute(
            "INSERT INTO pushes (lane, id, address, trust, kind, body, since) "
            "VALUES (1, 'i', 'ada@example.com', 2, 'track', ?, 5.5)",
            (body,),
        )
    connection.executescript(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=2;")
    connection.close()
    path.chmod(0o600)
    return await open_sqlite(path, create=False, hold_age=HOLD_AGE, dead_age=DEAD_AGE, min_free_bytes=0)


def older_database() -> str:
    """Returns the DSN of a database of the first schema."""
    dsn = postgres().empty_database()
    with psycopg.connect(dsn) as connection:
        connection.execute(POSTGRES_STEPS[0])
        connection.execute("INSERT INTO scq_schema (version) VALUES (1)")
        connection.execute("INSERT INTO meta (name, value) VALUES ('site_key', %s)", (KEY,))
        connection.execute(OLD_CONTENT.format(left="left_key", no="false", yes="true").encode())
        for body in BODIES:
            connection.execute(
                "INSERT INTO pushes (lane, id, address, trust, kind, body, since) "
                "VALUES (1, 'i', 'ada@example.com', 2, 'track', %s, 5.5)",
                (body,),
            )
    return dsn


async def require_kept(outbox: Outbox) -> None:
    """Everything is there, and moves on from there."""

    def lanes(facts: Facts) -> Decision[list[LaneFacts]]:
        return Decision((), [facts.lane("ada@example.com"), facts.lane("bob@example.com")])

    assert outbox.site_key == KEY
    waiting = LaneFacts(waiting=2, bytes=sum(map(len, BODIES)))
    assert (await outbox.append(lanes)).answer == [waiting, LaneFacts()]
    known = [await visitor(outbox, name) for name in ("born", "identified", "retired")]
    assert known == [VisitorFacts(person="ada@example.com"), VisitorFacts(identified=8.5), VisitorFacts(retired=True)]
    (lease,) = (await outbox.claim(9, 9, 60)).leases
    first, second = lease.pushes
    assert (first.body, second.body) == (Track(("a",)), Track(("a", "b")))
    await outbox.settle(Settlement(lease, (Settled(first.seq, Fate.DELIVERED),)))
    assert (await outbox.append(lanes)).answer == [LaneFacts(waiting=1, bytes=len(BODIES[1])), LaneFacts()]
    await carry_out(outbox, Shown("born", "born"), Identified("born", "bob@example.com"))
    assert (await visitor(outbox, "born")).person == "bob@example.com"


async def test_a_file_of_an_older_schema_opens_and_goes_on(tmp_path: Path) -> None:
    outbox = await open_older_sqlite(tmp_path)
    try:
        await require_kept(outbox)
    finally:
        await outbox.close()


async def test_a_database_of_an_older_schema_is_migrated_and_goes_on() -> None:
    dsn = older_database()
    assert await migrate(dsn) == (1, len(POSTGRES_STEPS))
    outbox = await open_postgres(dsn, hold_age=HOLD_AGE, dead_age=DEAD_AGE)
    try:
        await require_kept(outbox)
    finally:
        await outbox.close()


# How nodes of the first schema change a visitor, and forget who left.
OLDER_CHANGE = """
INSERT INTO visitors AS v (id, at, retired, identified, left_key) VALUES (%(id)s, 5.5, false, %(identified)s, %(left)s)
ON CONFLICT (id) DO UPDATE SET at = excluded.at, retired = v.retired OR excluded.retired, identified = v.identified OR excluded.identified,
left_key = CASE WHEN excluded.left_key IS NOT NULL THEN excluded.left_key WHEN NOT excluded.identified THEN v.left_key END
"""
OLDER_ERASURE = "UPDATE visitors SET left_key = NULL WHERE left_key = 'ada@example.com'"


async def test_nodes_of_the_version_before_see_and_say_whose_log_out_a_visitor_was_born_of() -> None:
    dsn = older_database()
    await migrate(dsn)
    outbox = await open_postgres(dsn, hold_age=HOLD_AGE, dead_age=DEAD_AGE)
    try:
        with psycopg.connect(dsn, autocommit=True) as older:

            def left(name: str) -> object:
                row = older.execute("SELECT left_key FROM visitors WHERE id = %s", (name,)).fetchone()
                return row and row[0]

            def change(name: str, *, identified: bool = False, left: str | None = None) -> None:
                older.execute(OLDER_CHANGE, {"id": name, "identified": identified, "left": left})

            await carry_out(outbox, Born("new", "ada@example.com"), Born("both", "ada@example.com"))
            assert left("new") == "ada@example.com"
            await carry_out(outbox, Identified("new", "bob@example.com"))
            assert left("new") is None, "or an older node would take Bob for the one who left"
            change("older", left="ada@example.com")
            assert await visitor(outbox, "older") == VisitorFacts(person="ada@example.com")
            change("older", identified=True)
            assert await visitor(outbox, "older") == VisitorFacts(identified=5.5)
            change("new")
            assert (await visitor(outbox, "new")).person == "bob@example.com"
            older.execute(OLDER_ERASURE)
            assert (left("both"), await visitor(outbox, "both")) == (None, VisitorFacts())
    finally:
        await outbox.close()


async def test_what_a_node_of_the_version_before_does_to_a_lane_is_made_up_for_once_the_lane_is_empty() -> None:
    """That node does not count bytes: neither what it adds nor what it takes away."""
    dsn = older_database()
    await migrate(dsn)
    outbox = await open_postgres(dsn, hold_age=HOLD_AGE, dead_age=DEAD_AGE)
    try:
        with psycopg.connect(dsn, autocommit=True) as older:
            older.execute("UPDATE lanes SET bytes = 1000000 WHERE id = 1")
        (lease,) = (await outbox.claim(9, 9, 60)).leases
        await outbox.settle(Settlement(lease, tuple(Settled(push.seq, Fate.DELIVERED) for push in lease.pushes)))
        known = await outbox.append(lambda facts: Decision((), facts.lane("ada@example.com")))
        assert known.answer == LaneFacts()
    finally:
        await outbox.close()


# Of the third schema: one sign-up whose booking has passed, one that is booked for later, held pushes, dead letters, and a lane of a customer.
BOOKED = """
INSERT INTO lanes (id, key, waiting, ready_at, put_off, bytes, verified) VALUES
  (1, 'late@example.com', 1, 9e9, true, 15, false), (2, 'soon@example.com', 1, 5.5, true, 15, false),
  (3, 'known@example.com', 2, 5.5, false, 30, true), (4, 'stranger@example.com', 1, 5.5, false, 15, false);
INSERT INTO pushes (lane, id, address, trust, kind, body, since)
SELECT lane, 'i' || lane || trust, 'a@example.com', trust, 'track', '{"addTags":["a"]}', 6.5
FROM (VALUES (1, 1), (2, 1), (3, 1), (3, 2), (4, 1)) AS p (lane, trust);
INSERT INTO held (visitor, id, body, since) VALUES ('v', 'h', '{"addTags":["a"]}', extract(epoch FROM now()));
INSERT INTO schedules VALUES ('sign-ups', 9e9);
INSERT INTO counters VALUES ('gauge:held_bytes', 3, 317), ('gauge:waiting', 3, 5), ('gauge:holding', 3, 1);
"""


async def test_what_a_database_of_the_version_before_has_put_off_waits_for_turns() -> None:
    dsn = postgres().empty_database()
    with psycopg.connect(dsn) as connection:
        for step in POSTGRES_STEPS[:3]:
            connection.execute(step)
        connection.execute("INSERT INTO scq_schema (version) VALUES (3)")
        connection.execute("INSERT INTO meta (name, value) VALUES ('site_key', %s)", (KEY,))
        connection.execute(BOOKED.encode())
    await migrate(dsn)
    outbox = await open_postgres(dsn, hold_age=timedelta(days=99_999), dead_age=DEAD_AGE)
    try:
        size, stats = len(BODIES[0]), await outbox.stats()
        assert stats.sign_ups == 2
        assert (
            stats.unvouched_bytes
            == outbox.unvouched().bytes
            == 5 * size + 4 * PUSH_OVERHEAD + HELD_OVERHEAD + ID_OVERHEAD
        )
        rows = await outbox.sign_ups(SignUpFilter(), 0, 10)
        assert [(row.lane, row.client, row.pushes, row.at) for row in rows] == [
            (2, "unknown", 1, 6.5),
            (1, "unknown", 1, 6.5),
        ]
        share = Share(per_hour=100)
        leases = (await outbox.claim(10, 10, 60, share=share)).leases
        assert [(lease.lane, lease.stranger, lease.pressed) for lease in leases if not lease.sign_up] == [
            (3, False, True),
            (4, True, False),
        ]
        assert [lease.lane for lease in leases if lease.sign_up] in ([], [2]), "no half of an hour's number at once"
        await outbox.sweep()
        rest = (await outbox.claim(10, 10, 60)).leases
        assert [lease.lane for lease in (*leases, *rest) if lease.sign_up] == [2, 1]
    finally:
        await outbox.close()


async def test_a_node_of_the_version_before_claims_beside_newer_ones() -> None:
    """Its claims find what is ready by an index, whoever it is of."""
    dsn = older_database()
    await migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as older:
        older.execute(
            "INSERT INTO lanes (id, key, waiting, ready_at, stranger) SELECT n, n, 1, 5.5, n % 2 = 0 FROM generate_series(10, 2000) n"
        )
        older.execute("SET enable_seqscan = off")
        query = (
            "SELECT id FROM lanes WHERE ready_at >= 0 AND ready_at <= extract(epoch FROM statement_timestamp()) "
            "ORDER BY ready_at LIMIT 10 FOR NO KEY UPDATE SKIP LOCKED"
        )
        plan = "\n".join(str(row[0]) for row in older.execute(f"EXPLAIN {query}".encode()))
        assert "lanes_ready_by_kind" in plan, plan
        assert len(older.execute(query.encode()).fetchall()) == 10
