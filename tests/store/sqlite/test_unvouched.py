"""What nobody has vouched for in an SQLite file: brought up to date, taken back, swept, and under a clock that is set."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from proxy.core.calls import Attributes, Track
from proxy.core.decision import Change, Decision, Enqueue, Hold, Remember
from proxy.core.emails import lane_key
from proxy.core.turns import Share
from proxy.core.visitors import Trust
from proxy.store.records import Adopted, Fate, Settled, Settlement, SignUpFilter
from proxy.store.rows import HELD_OVERHEAD, ID_OVERHEAD, PUSH_OVERHEAD, SEEN_AGE
from proxy.store.sqlite.file import APPLICATION_ID, SCHEMA_STEPS
from proxy.store.sqlite.outbox import SqliteOutbox
from tests.support.sqlite import PAGE, opened, overwrite

BODY = b'{"addTags":["a"]}'
DAY = 86_400.0
TWO = Share(per_hour=2)  # one at once, the other half an hour later


def typed(number: int, client: str = "192.0.2.1") -> Enqueue:
    address = f"a{number}@example.com"
    return Enqueue(f"{client}/{number}", address, address, Trust.ASSERTED, Track(("a",)), client)


async def carry_out(outbox: SqliteOutbox, *changes: Change) -> None:
    await outbox.append(lambda facts: Decision(changes, None))


async def execute(outbox: SqliteOutbox, statement: str, *arguments: object) -> list[tuple[object, ...]]:
    return await outbox._writer.submit(lambda connection: connection.execute(statement, arguments).fetchall())


def older_file(path: Path) -> None:
    """Makes a file of the third schema: bookings for days, and what nobody has vouched for in each table."""
    now = time.time()
    with sqlite3.connect(path) as connection:
        connection.create_function("lane_key", 1, lane_key, deterministic=True)
        connection.executescript("\n".join(SCHEMA_STEPS[:3]))
        connection.execute("INSERT INTO meta VALUES ('site_key', ?)", (b"k" * 32,))
        lanes = [
            *((number, f"a{number}@example.com", 1, now + (9 - number) * DAY, 1) for number in range(1, 4)),
            *(
                (4, "vouched@example.com", 1, now, 0),
                (5, "back-off@example.com", 1, now, 0),
                (6, "none@example.com", 0, None, 0),
            ),
        ]
        connection.executemany("INSERT INTO lanes (id, key, waiting, ready_at, put_off) VALUES (?, ?, ?, ?, ?)", lanes)
        pushes = [(f"p{lane}", lane, key, 2 if lane == 4 else 1, BODY, now) for lane, key, waits, *_ in lanes if waits]
        connection.executemany(
            "INSERT INTO pushes (id, lane, address, trust, kind, body, since) VALUES (?, ?, ?, ?, 'track', ?, ?)",
            pushes,
        )
        connection.execute("INSERT INTO held (visitor, id, body, since) VALUES ('v', 'h', ?, ?)", (BODY, now))
        connection.execute(
            "INSERT INTO dead (seq, lane, id, address, trust, kind, body, since, attempts, reason, detail, at) "
            "VALUES (99, 6, 'd', 'none@example.com', 1, 'track', ?, ?, 1, 'rejected', '', ?)",
            (BODY, now, now),
        )
        connection.execute("INSERT INTO schedules VALUES ('sign-ups', ?)", (now + 9 * DAY,))
        connection.execute("INSERT INTO counters VALUES ('gauge:held_bytes', 7)")
        connection.executescript(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=3;")
    connection.close()
    path.chmod(0o600)


async def adopts(outbox: SqliteOutbox, file: Path) -> Adopted:
    *_, adopted = [each async for each in outbox.adopt(file)]
    return adopted


async def test_bookings_of_an_older_version_become_sign_ups_that_wait_for_turns(tmp_path: Path) -> None:
    older_file(tmp_path / "scq.db")
    outbox = await opened(tmp_path / "scq.db")
    rows = await outbox.sign_ups(SignUpFilter(), 0, 10)
    assert [(row.address, row.client) for row in rows] == [
        (f"a{number}@example.com", "unknown") for number in (3, 2, 1)
    ]
    stats = await outbox.stats()
    pushes, ids = 5 * (len(BODY) + PUSH_OVERHEAD) + len(BODY) + HELD_OVERHEAD, 6 * ID_OVERHEAD
    assert (stats.sign_ups, stats.unvouched_bytes) == (3, pushes + ids)
    assert not await execute(outbox, "SELECT 1 FROM counters WHERE name = 'gauge:held_bytes'")
    ready = (await outbox.claim(10, 10, 60, share=TWO)).leases
    assert {(lease.pushes[0].address, lease.stranger) for lease in ready} == {
        ("vouched@example.com", False),
        ("back-off@example.com", True),
    }, "the hour's number counts as used up"
    await execute(outbox, "UPDATE schedules SET until = until - 3600")
    (lease,) = (await outbox.claim(10, 10, 60, share=TWO)).leases
    assert (lease.pushes[0].address, lease.sign_up) == ("a3@example.com", "unknown")
    await outbox.close()


async def test_a_damaged_file_of_an_older_version_gives_what_it_has(tmp_path: Path) -> None:
    aside = tmp_path / "aside.db"
    older_file(aside)
    with sqlite3.connect(aside) as connection:
        rows = [(f"more{number}", BODY) for number in range(1_000)]
        connection.executemany(
            "INSERT INTO pushes (id, lane, address, trust, kind, body, since) VALUES (?, 4, 'vouched@example.com', 2, 'track', ?, 5.5)",
            rows,
        )
        connection.execute("UPDATE lanes SET waiting = 1001 WHERE id = 4")
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'pushes'").fetchone()
    connection.close()
    content = aside.read_bytes()
    cell = int.from_bytes(content[(root - 1) * PAGE + 12 + 4 :][:2], "big")  # the third of the root names a leaf
    leaf = int.from_bytes(content[(root - 1) * PAGE + cell :][:4], "big")
    overwrite(aside, (leaf - 1) * PAGE, bytes(PAGE))
    outbox = await opened(tmp_path / "scq.db")
    adopted = await adopts(outbox, aside)
    assert 800 < adopted.waiting < 1_005
    await outbox.close()


async def test_what_is_taken_back_waits_for_its_turn_again_and_is_counted(tmp_path: Path) -> None:
    aside = await opened(tmp_path / "aside.db")
    await carry_out(aside, *(typed(number) for number in range(3)), typed(0, "198.51.100.1"))
    hold = Hold("h", "v", Track(("a",)))
    await carry_out(aside, hold, Remember("h", "v"))
    (lease,) = (await aside.claim(1, 1, 60, share=Share(per_lane=1))).leases
    await aside.settle(Settlement(lease, (Settled(lease.pushes[0].seq, Fate.DEAD),)))
    whole = (await aside.stats()).unvouched_bytes
    await aside.close()
    outbox = await opened(tmp_path / "scq.db")
    await carry_out(outbox, typed(1, "2001:db8::/64"))
    own = (await outbox.stats()).unvouched_bytes
    vouched = Enqueue("v2", "a2@example.com", "a2@example.com", Trust.VERIFIED, Attributes())
    await carry_out(outbox, vouched)
    adopted = await adopts(outbox, tmp_path / "aside.db")
    assert (adopted.waiting, adopted.dead, adopted.held) == (3, 1, 1)
    stats = await outbox.stats()
    assert stats.unvouched_bytes == whole + own
    rows = await outbox.sign_ups(SignUpFilter(), 0, 10)
    assert {(row.address, row.client, row.pushes) for row in rows} == {
        ("a1@example.com", "2001:db8::/64", 2),
        ("a1@example.com", "unknown", 2),
    }
    assert stats.sign_ups == 1
    assert (await adopts(outbox, tmp_path / "aside.db")).before
    await outbox.close()


async def test_a_sweep_ends_the_queue_and_forgets_ids_with_their_gauge(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await carry_out(outbox, typed(0))
    await carry_out(outbox, typed(1), typed(0, "198.51.100.1"))
    await execute(outbox, "UPDATE sign_ups SET at = at - 31 * 86400 WHERE client = '192.0.2.1'")
    day = int((time.time() - SEEN_AGE.total_seconds()) // DAY) - 2
    await execute(outbox, "UPDATE counters SET name = 'gauge:id_bytes:' || ? WHERE name LIKE 'gauge:id%'", day)
    await outbox.sweep()
    rows = await outbox.sign_ups(SignUpFilter(), 0, 10)
    assert [(row.address, row.client) for row in rows] == [("a0@example.com", "198.51.100.1")]
    stats = await outbox.stats()
    assert (stats.sign_ups, stats.waiting, stats.counters["discarded"]) == (1, 2, 1)
    assert stats.unvouched_bytes == outbox.unvouched().bytes == 2 * (len(BODY) + PUSH_OVERHEAD)
    await outbox.sweep()
    assert not await execute(outbox, "SELECT 1 FROM counters WHERE name LIKE 'gauge:id%'")
    await outbox.close()


async def test_networks_that_were_served_long_ago_are_forgotten(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await carry_out(outbox, typed(0), typed(1, "2001:db8::/64"))
    assert len((await outbox.claim(1, 1, 60)).leases) == 1
    await outbox.sweep()
    assert len(await execute(outbox, "SELECT 1 FROM networks")) == 3 + 4
    await execute(outbox, "UPDATE networks SET weight = weight - 5 WHERE waiting = 0")
    await outbox.sweep()
    waiting = {name for (name,) in await execute(outbox, "SELECT name FROM networks")}
    assert waiting in (
        {"192.0.0.0/16", "192.0.2.0/24", "192.0.2.1"},
        {"2001:db8::/32", "2001:db8::/48", "2001:db8::/56", "2001:db8::/64"},
    )
    await outbox.close()


async def test_bytes_that_are_known_survive_a_transaction_that_fails_and_a_restart(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await carry_out(outbox, typed(0))
    before = outbox.unvouched().bytes
    for _ in range(2):
        await execute(outbox, "SELECT 1")
        outbox._appends.rolled_back()
        await carry_out(outbox)
        assert outbox.unvouched().bytes == before > 0
    await outbox.close()
    outbox = await opened(tmp_path / "scq.db")
    assert outbox.unvouched().bytes == before
    await outbox.close()


async def test_a_schedule_far_ahead_is_brought_near_and_releases_nothing(tmp_path: Path) -> None:
    """Under a wrong clock it was set."""
    outbox = await opened(tmp_path / "scq.db")
    await carry_out(outbox, typed(0))
    await execute(outbox, "INSERT INTO schedules VALUES ('sign-ups', ?)", time.time() + 40 * DAY)
    await execute(outbox, "UPDATE networks SET until = ?1, rests = ?1 WHERE name = '192.0.2.1'", time.time() + 40 * DAY)
    await outbox.close()
    outbox = await opened(tmp_path / "scq.db")
    assert not (await outbox.claim(1, 1, 60, share=TWO)).leases
    [(until,)] = await execute(outbox, "SELECT until FROM schedules WHERE name = 'sign-ups'")
    assert isinstance(until, float)
    assert until < time.time() + 3 * 3_600
    assert len((await outbox.claim(1, 1, 60)).leases) == 1
    await outbox.close()
