"""What is SQLite's own: which file may be used, by whom, and what happens to a transaction that fails."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.decision import Decision, Enqueue, Facts, Hold, NotOffered, Remember
from proxy.core.gate import Closure
from proxy.core.visitors import Trust, Visitor
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.records import Fate, LastIdentify, Lease, Settled, Settlement
from proxy.store.sqlite.file import APPLICATION_ID, SCHEMA_STEPS
from proxy.store.sqlite.outbox import SqliteOutbox, open_outbox
from proxy.store.sqlite.sweep import STEP_ROWS
from tests.support.live import eventually

AGES = {"hold_age": timedelta(days=30), "dead_age": timedelta(days=90)}


async def opened(path: Path, *, create: bool = True, min_free_bytes: int = 0) -> SqliteOutbox:
    return await open_outbox(path, create=create, min_free_bytes=min_free_bytes, **AGES)


def one_push(facts: Facts) -> Decision[None]:
    return Decision((Enqueue("i" * 32, "a@example.com", "a@example.com", Trust.VERIFIED, Track(("a",))),), None)


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    await outbox.close()
    assert set(modes.values()) == {0o600}
    assert "scq.db-wal" in modes


async def test_a_second_process_is_kept_out_and_told_why(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    with pytest.raises(StoreRefused, match="in use by another process"):
        await opened(tmp_path / "scq.db")
    await outbox.close()
    await (await opened(tmp_path / "scq.db")).close()


async def test_a_missing_store_is_made_only_by_those_who_may(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="There is no store at"):
        await opened(tmp_path / "scq.db", create=False)
    assert not list(tmp_path.iterdir())


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="is not a directory"):
        await opened(tmp_path / "missing" / "scq.db")


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scq.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreRefused, match="cannot be read as an SQLite database"):
        await opened(tmp_path / "scq.db")
    assert (tmp_path / "scq.db").read_bytes() == b"not a database, " * 100


async def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "scq.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreRefused, match="another program"):
        await opened(tmp_path / "scq.db")


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    await (await opened(tmp_path / "scq.db")).close()
    connection = sqlite3.connect(tmp_path / "scq.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreRefused, match="schema 99"):
        await opened(tmp_path / "scq.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    await (await opened(tmp_path / "scq.db")).close()
    os.chown(tmp_path / "scq.db", 65_534, 65_534)
    with pytest.raises(StoreRefused, match="another user"):
        await opened(tmp_path / "scq.db")


async def test_ingest_stops_at_the_free_disk_floor_while_settling_goes_on(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await outbox.append(one_push)
    await outbox.close()
    outbox = await opened(tmp_path / "scq.db", min_free_bytes=2**62)
    with pytest.raises(StoreUnavailable, match="nearly full"):
        await outbox.append(one_push)
    with pytest.raises(StoreUnavailable):
        await outbox.ready()
    assert len((await outbox.claim(1, 1, 60)).leases) == 1
    await outbox.close()


async def test_a_transaction_that_fails_fails_for_everybody_in_it_and_the_next_one_works(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")

    def write_too_much(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        connection.execute("INSERT INTO meta (name, value) VALUES ('x', zeroblob(1000000))")

    # Both are submitted before the thread can take either, so they share a transaction, or the second has one of its own.
    bad, good = outbox._writer.submit(write_too_much), asyncio.ensure_future(outbox.append(one_push))
    failed, _ = await asyncio.gather(bad, good, return_exceptions=True)
    assert isinstance(failed, StoreUnavailable)
    await outbox._writer.submit(lambda connection: connection.execute("PRAGMA max_page_count=1000000").fetchone())
    await outbox.append(one_push)
    assert (await outbox.stats()).counters["accepted"] == (await outbox.stats()).waiting
    await outbox.close()


async def test_many_appends_share_few_commits(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    before = (tmp_path / "scq.db-wal").stat().st_size
    await asyncio.gather(*[outbox.append(one_push) for _ in range(200)])
    grown = (tmp_path / "scq.db-wal").stat().st_size - before
    assert (await outbox.stats()).waiting == 200
    assert grown < 200 * 4_096, "each append wrote its own pages: no group commit"
    await outbox.close()


async def test_a_job_that_fails_after_it_has_written_is_undone_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")

    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO meta VALUES ('half', 'done')")
        raise ValueError("a defect")

    def breaks_a_rule(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO meta VALUES ('half', 'done')")
        connection.execute("INSERT INTO meta VALUES ('half', 'again')")

    submit, appends = outbox._writer.submit, [asyncio.ensure_future(outbox.append(one_push)) for _ in range(3)]
    jobs: list[asyncio.Future[Any]] = [
        submit(breaks),
        appends[0],
        submit(breaks_a_rule),
        appends[1],
        submit(breaks),
        appends[2],
    ]
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        ValueError,
        Decision,
        StoreUnavailable,
        Decision,
        ValueError,
        Decision,
    ]
    half = await submit(lambda connection: connection.execute("SELECT * FROM meta WHERE name = 'half'").fetchone())
    stats = await outbox.stats()
    assert (half, stats.waiting, stats.counters["accepted"]) == (None, 3, 3)
    assert "A job failed: UNIQUE constraint failed" in caplog.text
    await outbox.close()


async def test_a_store_of_an_older_version_is_brought_up_to_date_and_keeps_what_it_has(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "scq.db")
    push = (1, 1, "i" * 32, "A@example.com", 2, "track", b'{"addTags":["a"]}', 5.5)
    connection.executescript(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1; {SCHEMA_STEPS[0]}")
    connection.execute("INSERT INTO meta VALUES ('site_key', ?)", (b"k" * 32,))
    connection.execute("INSERT INTO lanes (key, waiting, ready_at) VALUES ('a@example.com', 1, 5.5)")
    connection.execute(
        "INSERT INTO pushes (seq, lane, id, address, trust, kind, body, since) VALUES (?,?,?,?,?,?,?,?)", push
    )
    connection.execute("INSERT INTO dead VALUES (2,?,?,?,?,?,?,?,1,'rejected','HTTP 400',6.5)", push[1:])
    connection.commit()
    connection.close()
    (tmp_path / "scq.db").chmod(0o600)
    outbox = await opened(tmp_path / "scq.db")
    stats = await outbox.stats()
    assert (outbox.site_key, stats.waiting, stats.dead) == (b"k" * 32, 1, 1)
    claim = await outbox.claim(9, 9, 60)
    assert ([push.seq for push in claim.leases[0].pushes], claim.closure) == ([1], None)
    assert (await outbox.erase("a@example.com")).dead == 1
    await outbox.close()


async def test_a_sweep_takes_many_steps_and_leaves_what_is_still_needed(tmp_path: Path) -> None:
    many, old = 2 * STEP_ROWS + 7, time.time() - timedelta(days=31).total_seconds()
    outbox = await opened(tmp_path / "scq.db")

    def fill(facts: Facts) -> Decision[None]:
        ids = [f"old-{number:028}" for number in range(many)]
        holds = [Hold(push_id, "v", Track(("a",))) for push_id in ids]
        lanes = [Enqueue(push_id, f"{push_id}@x.io", f"{push_id}@x.io", Trust.VERIFIED, Track()) for push_id in ids]
        return Decision((*holds, *lanes, *[Remember(push_id, "v") for push_id in ids]), None)

    def age(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE held SET since = ? - seq % 5 WHERE seq > 1", (old,))
        connection.execute("UPDATE seen SET at = ? - abs(random()) % 99", (old,))
        connection.execute("DELETE FROM pushes WHERE seq > 1")
        connection.execute("UPDATE lanes SET waiting = 0, ready_at = NULL WHERE id > 1")

    await outbox.append(fill)
    await outbox._writer.submit(age)
    await outbox.sweep()
    await outbox.append(one_push)

    def counts(connection: sqlite3.Connection) -> list[int]:
        counted = connection.execute(
            "SELECT (SELECT count(*) FROM held), (SELECT count(*) FROM seen), (SELECT count(*) FROM lanes)"
        )
        return list(counted.fetchone())

    assert await outbox._writer.submit(counts) == [1, 1, 2]
    stats = await outbox.stats()
    assert stats.counters["hold_expired"] == many - 1
    assert (stats.holding, stats.health.log_frames is not None) == (1, True)
    await outbox.close()


async def test_a_sweep_removes_names_with_an_address_that_an_older_version_kept(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    names = ("for ann@example.com", "paid user", "ann%40example.com")
    await outbox.append(lambda facts: Decision(tuple(NotOffered(name, "SCQ_TAGS") for name in names), None))
    await outbox.sweep()

    def kept(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
        return connection.execute("SELECT name FROM not_offered").fetchall()

    assert await outbox._writer.submit(kept) == [("paid user",)]
    await outbox.close()


async def test_an_erasure_that_was_interrupted_is_finished_by_the_next_sweep(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    known = Visitor("v", "new@example.com", Trust.VERIFIED, issued=1)
    ops = (Remember("i" * 32, "v", known), Hold("h" * 32, "v", Track(("a",))))
    await outbox.append(lambda facts: Decision(ops, None))
    await outbox._writer.submit(lambda connection: outbox._erase(connection, "new@example.com"))
    await outbox.close()  # as a crash would: before the steps
    outbox = await opened(tmp_path / "scq.db")
    await outbox.sweep()
    stats = await outbox.stats()
    assert (stats.holding, stats.counters["hold_erased"]) == (0, 1)
    await outbox.close()
    assert b"new@example.com" not in (tmp_path / "scq.db").read_bytes()


async def test_an_erasure_that_was_rolled_back_leaves_what_its_lease_delivers_delivered(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await outbox.append(one_push)
    (lease,) = (await outbox.claim(9, 9, 60)).leases

    def erase(connection: sqlite3.Connection) -> None:
        outbox._erase(connection, "a@example.com")
        raise sqlite3.IntegrityError

    with pytest.raises(StoreUnavailable):
        await outbox._writer.submit(erase)
    assert not await outbox.holds(lease)
    assert await outbox.settle(Settlement(lease, (Settled(lease.pushes[0].seq, Fate.DELIVERED),)))
    stats = await outbox.stats()
    assert (stats.waiting, stats.counters["delivered"]) == (0, 1)
    await outbox.close()


async def test_a_settlement_that_is_repeated_after_a_roll_back_still_knows_of_the_erasure(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await outbox.append(one_push)
    (lease,) = (await outbox.claim(9, 9, 60)).leases
    await outbox.erase("a@example.com")
    await outbox.append(one_push)  # the person is back
    settlement = Settlement(lease, (Settled(lease.pushes[0].seq, Fate.DELIVERED),))

    def settle_and_fail(connection: sqlite3.Connection) -> None:
        outbox._settle(connection, settlement)
        raise sqlite3.IntegrityError

    with pytest.raises(StoreUnavailable):
        await outbox._writer.submit(settle_and_fail)
    assert await outbox.settle(settlement)
    stats = await outbox.stats()
    assert (stats.waiting, stats.counters["erased"], "delivered" in stats.counters) == (1, 1, False)
    assert len((await outbox.claim(9, 9, 60)).leases) == 1
    await outbox.close()


async def test_a_merge_voids_only_what_is_known_under_the_lease_of_that_time(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")

    async def append(address: str, body: Attributes) -> None:
        change = Enqueue(address, address, address, Trust.VERIFIED, body)
        await outbox.append(lambda facts: Decision((change,), None))

    async def deliver(lease: Lease, last: LastIdentify | None = None) -> None:
        assert await outbox.settle(Settlement(lease, (Settled(lease.pushes[0].seq, Fate.DELIVERED),), last=last))

    await append("old@example.com", Attributes(new_email="new@example.com"))
    await append("new@example.com", Attributes())
    moving, other = (await outbox.claim(9, 9, 60)).leases
    await deliver(moving)  # merges its lane into the one that is under a lease
    await deliver(other)
    known = LastIdentify(b"digest", time.time())
    await append("new@example.com", Attributes())
    await deliver((await outbox.claim(9, 9, 60)).leases[0], known)
    await append("new@example.com", Attributes())
    assert (await outbox.claim(9, 9, 60)).leases[0].last == known
    await outbox.close()


async def test_stats_tell_what_shuts_the_gate(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    assert (await outbox.stats()).closure is None
    shut = Closure(until=1_000.0, tries=2)
    await outbox.move_gate(None, shut)
    assert (await outbox.stats()).closure == shut
    await outbox.close()


async def test_times_that_a_wrong_clock_has_set_do_not_last(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await outbox.append(one_push)
    lease = (await outbox.claim(9, 9, 60)).leases[0]
    await outbox.settle(Settlement(lease, (), 1, time.time() + 365 * 86_400))
    await outbox.close()
    outbox = await opened(tmp_path / "scq.db")
    assert len((await outbox.claim(9, 9, 60)).leases) == 1
    await outbox.close()


async def test_a_file_that_gives_no_pages_back_does_not_keep_the_sweep_busy(tmp_path: Path) -> None:
    await (await opened(tmp_path / "scq.db")).close()
    connection = sqlite3.connect(tmp_path / "scq.db")
    connection.executescript("PRAGMA journal_mode=DELETE; PRAGMA auto_vacuum=NONE; VACUUM; CREATE TABLE filler (x)")
    connection.executemany("INSERT INTO filler VALUES (?)", [(bytes(4_000),)] * 4_000)
    connection.commit()
    connection.executescript("DROP TABLE filler")
    connection.close()
    outbox = await opened(tmp_path / "scq.db")
    async with asyncio.timeout(120):
        await outbox.sweep()
    await outbox.close()


async def test_an_erasure_leaves_no_trace_in_the_log_of_a_store_in_use(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await outbox.append(one_push)
    assert b"a@example.com" in (tmp_path / "scq.db-wal").read_bytes()
    await outbox.erase("a@example.com")
    files = [tmp_path / "scq.db-wal", tmp_path / "scq.db"]
    await asyncio.to_thread(eventually, lambda: not any(b"a@example.com" in file.read_bytes() for file in files))
    await outbox.close()


async def test_that_something_is_sent_again_is_said_only_if_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await outbox.append(one_push)
    (lost,) = (await outbox.claim(1, 1, 0)).leases
    (lease,) = (await outbox.claim(1, 1, 60)).leases
    assert not await outbox.settle(Settlement(lost, (Settled(lost.pushes[0].seq, Fate.KEPT, attempted=False),)))
    assert caplog.messages == []
    delivered = (Settled(lost.pushes[0].seq, Fate.DELIVERED),)
    assert not await outbox.settle(Settlement(lost, delivered))
    assert caplog.messages == [f"The lease of lane {lost.lane} was lost; pushes that are sent a second time: 1"]
    assert await outbox.settle(Settlement(lease, delivered))
    assert not await outbox.settle(Settlement(lease, delivered)), "its answer was lost, and it is made again"
    assert len(caplog.messages) == 1
    await outbox.close()
