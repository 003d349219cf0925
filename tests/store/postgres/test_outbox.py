"""What is PostgreSQL's own: which servers are used, what several nodes do to one another, and what becomes of a connection that is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.decision import Decision, Enqueue, Facts, Hold, NotOffered, Remember, Schedule, Scheduled
from proxy.core.gate import Closure
from proxy.core.visitors import Trust
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.postgres.database import ANSWER_SECONDS, SETTINGS, SQL, Database, Transaction
from proxy.store.postgres.locks import PERSON, lock
from proxy.store.postgres.outbox import PostgresOutbox, open_outbox
from proxy.store.postgres.schema import SCHEMA_STEPS, assess, migrate, server_obstacles
from proxy.store.postgres.sweep import BATCH_ROWS
from proxy.store.records import Fate, Lease, Settlement
from tests.contract.test_outbox import INCREMENT, carry_out, claim, ids, push_id, queued, settled
from tests.support.live import eventually, free_port
from tests.support.postgres import Server, database, postgres

KNOWN = len(SCHEMA_STEPS)  # version of the schema
SECRET = "s3cret-and-not-to-be-shown"


async def opened(dsn: str, *, unsafe: bool = False, answer_seconds: float = ANSWER_SECONDS) -> PostgresOutbox:
    hold_age, dead_age = timedelta(days=30), timedelta(days=90)
    return await open_outbox(dsn, hold_age=hold_age, dead_age=dead_age, unsafe=unsafe, answer_seconds=answer_seconds)


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[PostgresOutbox, PostgresOutbox]]:
    """Two on one database."""
    dsn = database()
    both = await opened(dsn), await opened(dsn)
    yield both
    await asyncio.gather(*(node.close() for node in both))


@pytest.fixture
def server() -> Iterator[Server]:
    """One of the test's own, to be ill-treated."""
    own = Server()
    yield own
    own.remove()


# --- several nodes


async def test_a_push_that_comes_while_another_node_empties_its_lane_is_not_forgotten(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    here, there = nodes
    for _ in range(60):
        await carry_out(here, queued("a@example.com"))
        (lease,) = await claim(here)
        late = queued("a@example.com")
        await asyncio.gather(here.settle(settled(lease, Fate.DELIVERED)), carry_out(there, late))
        (lease,) = await claim(here)
        assert ids(lease) == [late.id]
        await here.settle(settled(lease, Fate.DELIVERED))


async def test_an_id_that_comes_to_two_nodes_at_once_is_stored_once(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    def store(facts: Facts, push: str) -> Decision[str]:
        if facts.seen(push) is not None:
            return Decision((), "duplicate")
        enqueue = Enqueue(push, f"{push}@example.com", f"{push}@example.com", Trust.VERIFIED, Track(("a",)))
        return Decision((enqueue, Remember(push, "v")), "accepted")

    for _ in range(30):
        push = push_id()
        plans = await asyncio.gather(*(node.append(lambda facts, push=push: store(facts, push)) for node in nodes))  # type: ignore[misc]
        assert sorted(plan.answer for plan in plans) == ["accepted", "duplicate"]
    assert (await nodes[0].stats()).waiting == 30


async def test_a_lane_that_two_nodes_fill_keeps_the_order_in_which_they_were_answered(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    spans: dict[str, tuple[float, float]] = {}
    clock = asyncio.get_running_loop().time

    async def fill(node: PostgresOutbox) -> None:
        for _ in range(40):
            push, begun = queued("a@example.com"), clock()
            await carry_out(node, push)
            spans[push.id] = begun, clock()

    await asyncio.gather(*(fill(node) for node in (*nodes, *nodes)))
    (lease,) = await claim(nodes[0], per_lane=1_000)
    assert len(ids(lease)) == 160
    latest_begin = 0.0
    for push in ids(lease):
        begun, answered = spans[push]
        assert answered >= latest_begin, "a push stands behind one that was sent after it had been acknowledged"
        latest_begin = max(latest_begin, begun)


async def test_a_lane_is_leased_to_one_node_and_to_another_when_the_lease_is_over(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    here, there = nodes
    await carry_out(here, queued("a@example.com"), queued("b@example.com"))
    both = [*await claim(here, lanes=1), *await claim(there)]
    assert len({lease.lane for lease in both}) == 2
    assert not await claim(there)
    for lease, node in zip(both, nodes, strict=True):
        assert await node.holds(lease)
        await node.settle(settled(lease, Fate.DELIVERED))
    await carry_out(here, queued("a@example.com"))
    (late,) = await claim(here, seconds=0)
    (lease,) = await claim(there)
    assert not await here.holds(late)
    assert not await here.settle(settled(late, Fate.DELIVERED))
    assert await there.settle(settled(lease, Fate.DELIVERED))


async def test_a_node_that_opens_leaves_the_leases_of_others_alone(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    here, there = nodes
    await carry_out(here, queued("a@example.com"))
    (lease,) = await claim(here)
    third = await opened(there._dsn)
    assert not await claim(third)
    await third.close()
    assert await here.settle(settled(lease, Fate.DELIVERED))


async def test_a_lane_that_somebody_else_has_locked_delays_no_claim(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    await carry_out(nodes[0], queued("a@example.com"), queued("b@example.com"))
    async with await psycopg.AsyncConnection.connect(nodes[0]._dsn) as connection:
        await connection.execute("SELECT FROM lanes WHERE key = 'a@example.com' FOR UPDATE")
        (lease,) = await claim(nodes[0])
    assert lease.pushes[0].address == "b@example.com"
    assert len(await claim(nodes[1])) == 1


async def test_a_person_erased_on_one_node_is_not_sent_by_another(nodes: tuple[PostgresOutbox, PostgresOutbox]) -> None:
    here, there = nodes
    await carry_out(here, queued("a@example.com"))
    (lease,) = await claim(here)
    assert (await there.erase("a@example.com")).waiting == 1
    assert not await here.holds(lease)


async def test_a_gate_that_one_node_shuts_holds_back_the_other_and_one_probe_is_out(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    here, there = nodes
    await carry_out(here, queued("a@example.com"), queued("b@example.com"))
    shut = Closure(until=1_000.0)
    await here.move_gate(None, shut)
    assert (await there.claim(9, 9, 60)).closure == shut
    claims = await asyncio.gather(*(node.claim(9, 9, 60, probe=shut) for node in (here, there, here, there)))
    assert sum(len(claim.leases) for claim in claims) == 1


async def test_many_appends_of_two_nodes_to_the_same_people_all_come_through(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    pushes = [queued(f"{number % 7}@example.com") for number in range(400)]
    await asyncio.gather(*(carry_out(nodes[number % 2], push) for number, push in enumerate(pushes)))
    stats = await nodes[0].stats()
    assert stats.waiting == stats.counters["accepted"] == 400


async def test_what_happens_only_so_often_is_counted_over_all_nodes(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    def take(facts: Facts) -> Decision[None]:
        return Decision((Scheduled(Schedule.TRACES, facts.schedule(Schedule.TRACES) + 1),), None)

    await asyncio.gather(*(node.append(take) for node in nodes for _ in range(200)))
    (until,) = (await nodes[0].append(lambda facts: Decision((), [facts.schedule(Schedule.TRACES)]))).answer
    assert until == 400


async def test_a_push_that_comes_while_another_node_moves_its_person_follows(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    here, there = nodes

    def follow(facts: Facts, old: str) -> Decision[None]:
        alias = facts.alias(old)
        return Decision((queued(alias.address if alias else old),), None)

    for number in range(30):
        old, new = f"old{number}@example.com", f"new{number}@example.com"
        await carry_out(here, queued(old, Attributes(new_email=new)))
        (lease,) = await claim(here)
        late = [there.append(lambda facts, old=old: follow(facts, old)) for _ in range(3)]  # type: ignore[misc]
        settled_in_time, *_ = await asyncio.gather(here.settle(settled(lease, Fate.DELIVERED)), *late)
        assert settled_in_time
        (lease,) = await claim(there)
        assert [push.address for push in lease.pushes] == [new] * 3
        await there.settle(settled(lease, Fate.DELIVERED))


async def test_a_node_that_stops_in_the_middle_of_a_transaction_does_not_hold_up_the_others(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    stopped, locked = asyncio.Event(), asyncio.Event()

    async def stop(transaction: Transaction) -> None:
        await transaction.run(lock(((PERSON, "a@example.com"),)))
        locked.set()
        await stopped.wait()

    task = asyncio.create_task(nodes[0]._database.run(stop))
    await locked.wait()
    await carry_out(nodes[1], queued("a@example.com"))
    stopped.set()
    await task
    assert len(await claim(nodes[1])) == 1


async def test_a_node_that_stops_while_it_is_sending_does_not_hold_up_the_others_either(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    query, locks = lock(((PERSON, "a@example.com"),))
    async with await psycopg.AsyncConnection.connect(nodes[0]._dsn, autocommit=True) as connection:
        with suppress(psycopg.OperationalError):  # the connection is ended
            async with connection.pipeline():
                await connection.execute("BEGIN")
                await connection.execute(SQL[query], locks)
                # No time-out of the server ends this, because it takes the connection for at work.
                await carry_out(nodes[1], queued("a@example.com"))
    assert len(await claim(nodes[1])) == 1


async def test_another_nodes_push_is_found_without_being_told(nodes: tuple[PostgresOutbox, PostgresOutbox]) -> None:
    here, there = nodes
    assert not await claim(there)
    waiting = asyncio.create_task(there.wait_ready(600))
    await carry_out(here, queued("a@example.com"))
    await asyncio.wait_for(waiting, 120)
    assert len(await claim(there)) == 1


async def test_a_name_with_a_nul_is_counted_though_the_database_holds_none(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    await carry_out(nodes[0], NotOffered("a\0b", "SCQ_TAGS"), NotOffered("a\ufffdb", "SCQ_TAGS"))
    (name,) = (await nodes[0].stats()).refused_names
    assert (name.name, name.count) == ("a\ufffdb", 2)


# --- what is over its age


async def test_a_sweep_takes_many_batches_and_leaves_what_is_still_needed(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    many = 2 * BATCH_ROWS + 7
    outbox, other = nodes

    def fill(facts: Facts) -> Decision[None]:
        ids = [f"old-{number:028}" for number in range(many)]
        holds = [Hold(push_id, "v", Track(("a",))) for push_id in ids]
        lanes = [Enqueue(push_id, f"{push_id}@x.io", f"{push_id}@x.io", Trust.VERIFIED, Track()) for push_id in ids]
        return Decision((*holds, *lanes, *[Remember(push_id, "v") for push_id in ids]), None)

    await outbox.append(fill)
    with psycopg.connect(outbox._dsn, autocommit=True) as connection:
        connection.execute("UPDATE held SET since = since - 31 * 86400 - seq % 5 WHERE seq > 1")
        connection.execute("UPDATE seen SET at = at - 31 * 86400 - random() * 99")
        connection.execute("DELETE FROM pushes WHERE seq > 1")
        connection.execute("UPDATE lanes SET waiting = 0, ready_at = NULL WHERE id > 1")
        await asyncio.gather(outbox.sweep(), other.sweep())
        await carry_out(outbox, queued("b@example.com"))
        left = [connection.execute(count).fetchall()[0][0] for count in _COUNTS]
    assert left == [1, 1, 2]
    stats = await outbox.stats()
    assert (stats.holding, stats.counters["hold_expired"]) == (1, many - 1)


async def test_a_sweep_removes_names_with_an_address_that_an_older_version_kept(
    nodes: tuple[PostgresOutbox, PostgresOutbox],
) -> None:
    outbox, other = nodes
    names = ("for ann@example.com", "paid user", "ann%40example.com")
    for node in nodes:
        await carry_out(node, *[NotOffered(name, "SCQ_TAGS") for name in names])
    await asyncio.gather(outbox.sweep(), other.sweep())
    with psycopg.connect(outbox._dsn, autocommit=True) as connection:
        assert connection.execute("SELECT DISTINCT name FROM not_offered").fetchall() == [("paid user",)]


_COUNTS = (b"SELECT count(*) FROM held", b"SELECT count(*) FROM seen", b"SELECT count(*) FROM lanes")


async def test_times_that_a_wrong_clock_has_set_do_not_last(nodes: tuple[PostgresOutbox, PostgresOutbox]) -> None:
    outbox, _ = nodes
    await carry_out(outbox, queued("a@example.com"))
    (lease,) = await claim(outbox)
    await outbox.settle(Settlement(lease, (), 1, time.time() + 365 * 86_400))
    await outbox.sweep()
    assert len(await claim(outbox)) == 1


# --- claims


async def test_the_cost_of_a_claim_does_not_grow_with_the_lanes_that_wait_for_a_retry() -> None:
    dsn, floors = database(), {"floor": 0, "stranger_floor": 0}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO lanes (key, waiting, ready_at) "
            "SELECT n || '@example.com', 1, extract(epoch FROM now()) + 3600 FROM generate_series(1, 20000) n"
        )
        connection.execute("VACUUM ANALYZE lanes")
        for query, values in (
            ("before_claim", floors),
            ("claimable", {"lanes": 64, **floors}),
            ("claimable_strangers", {"lanes": 64, **floors}),
            ("claimable_for_probe", floors),
            ("next_ready", {**floors, "ahead": 1}),
        ):
            text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SQL[query]}"
            row = connection.execute(text.encode(), values).fetchone()
            assert row is not None
            plan = row[0][0]["Plan"]
            assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 30, json.dumps(plan)


async def test_what_a_group_asks_for_is_found_by_an_index_however_small_the_tables_are() -> None:
    keys, flags = [f"{number}@example.com" for number in range(100)], [False] * 100
    change = {
        "keys": keys,
        "gained": [1] * 100,
        "bytes": [20] * 100,
        "put_off": flags,
        "vouched": flags,
        "verify": flags,
    }
    asked: dict[str, dict[str, object]] = {
        "seen": {"ids": keys},
        "people": {"keys": keys, "hashes": [key.encode() for key in keys]},
        "visitors": {"visitors": keys},
        "lock_lanes": {"keys": keys},
        "change_lanes": change,
        "heads": {"lanes": list(range(64)), "mosts": [25] * 64},
        "lease_asserted": {"lanes": list(range(64)), "seconds": 60, "epoch": 1},
        "lease": {"lanes": list(range(64)), "seconds": 60, "epoch": 1},
        "join_queue": {
            **dict.fromkeys(("keys", "clients", "ends", "names", "parents"), keys),
            "ats": [None] * 100,
            "weight": 0.0,
        },
        "leave_queue": {"keys": keys, "lanes": [1]},
        "standing": {},
        "wake": {},
        "walk": {},
        "lock_leases": {"lanes": list(range(64))},
        "remove": {"seqs": list(range(64))},
    }
    with psycopg.connect(database(), autocommit=True) as connection, connection.transaction():
        connection.execute("INSERT INTO lanes (key) SELECT n || '@example.com' FROM generate_series(1, 2000) n")
        connection.execute("INSERT INTO seen (id, at, shown) SELECT n, 0, '' FROM generate_series(1, 2000) n")
        connection.execute(SETTINGS)
        for query, values in asked.items():
            row = connection.execute(f"EXPLAIN (FORMAT JSON) {SQL[query]}".encode(), values).fetchone()
            assert row is not None
            assert "Seq Scan" not in json.dumps(row[0]), query


# --- connections that are lost


async def test_an_outage_is_told_to_be_over_although_nobody_pushes(server: Server) -> None:
    outbox = await opened(server.database(), answer_seconds=0.5)
    await carry_out(outbox, queued("a@example.com"))
    server.freeze()
    with pytest.raises(StoreUnavailable):
        await outbox.stats()
    server.wake()
    health = None
    while health is None:
        with suppress(StoreUnavailable):
            health = (await outbox.stats()).health
    assert health.problems == ()
    await outbox.close()


async def test_the_store_is_unavailable_while_the_database_is_and_comes_back_with_it(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = await opened(server.database())
    acknowledged = queued("a@example.com")
    await carry_out(outbox, acknowledged, queued("b@example.com"))
    (lease,) = await claim(outbox, lanes=1, seconds=0)
    assert await outbox.holds(lease)
    server.kill()
    assert not await outbox.holds(lease), "nobody can tell"
    with pytest.raises(StoreUnavailable):
        await carry_out(outbox, queued("a@example.com"))
    with pytest.raises(StoreUnavailable):
        await outbox.ready()
    server.start()
    await _until_available(outbox)
    await outbox.ready()
    health = (await outbox.stats()).health
    assert (health.reopened > 0, health.problems) == (True, ())
    assert acknowledged.id in {push for lease in await claim(outbox) for push in ids(lease)}
    await outbox.close()
    told = [record.getMessage() for record in caplog.records if record.name == "proxy.store"]
    assert "could not do what it was asked" in told[0]
    assert told[-1] == "The database takes pushes again"


async def test_a_claim_whose_answer_is_lost_is_given_back_and_no_increment_is_in_doubt(server: Server) -> None:
    outbox = await opened(server.database(), answer_seconds=0.5)
    counting = queued("a@example.com", INCREMENT)
    await carry_out(outbox, counting, queued("b@example.com"))
    server.wait_for_standbys("nobody")
    with pytest.raises(StoreUnavailable):
        await outbox.claim(9, 9, 3_600)
    server.wait_for_standbys("")
    leases = await _claimed(outbox)
    assert counting.id in {push for lease in leases for push in ids(lease)}
    assert len(leases) == 2
    assert [await outbox.settle(settled(lease, Fate.DELIVERED)) for lease in leases] == [True, True]
    stats = await outbox.stats()
    assert (stats.waiting, stats.dead) == (0, 0)
    await outbox.close()


async def _claimed(outbox: PostgresOutbox) -> Sequence[Lease]:
    while True:
        try:
            return (await outbox.claim(9, 9, 3_600)).leases
        except StoreUnavailable:
            continue


async def test_a_restart_between_two_appends_is_not_noticed(server: Server) -> None:
    outbox = await opened(server.database())
    await asyncio.gather(*(outbox.claim(1, 1, 60) for _ in range(20)))
    await asyncio.to_thread(server.restart)
    await carry_out(outbox, queued("a@example.com"))
    assert len(await claim(outbox)) == 1
    await outbox.close()


async def _until_available(outbox: PostgresOutbox) -> None:
    while True:
        try:
            return await carry_out(outbox, queued("a@example.com"))
        except StoreUnavailable:
            continue


async def test_connections_that_are_cut_are_made_anew(nodes: tuple[PostgresOutbox, PostgresOutbox]) -> None:
    here, _ = nodes
    name = here._dsn.rpartition("/")[2]
    for _ in range(5):
        appends = [carry_out(here, queued("a@example.com")) for _ in range(20)]
        cut = asyncio.to_thread(postgres().cut_connections, name)
        await asyncio.gather(*appends, cut, return_exceptions=True)
    await _until_available(here)
    stats = await here.stats()
    assert stats.waiting == stats.counters["accepted"]


@contextmanager
def bouncer(server: Server, directory: Path, mode: str = "transaction") -> Iterator[int]:
    """PgBouncer with few connections: in transaction mode, each transaction may get another one. Its port."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing = "no PgBouncer: install Debian's package pgbouncer"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    port = free_port()
    target = psycopg.conninfo.conninfo_to_dict(server.dsn())
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port} user={target['user']} password={target['password']}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {mode}\ndefault_pool_size = 3\nserver_reset_query_always = 1\n",
        encoding="utf-8",
    )
    command = [program, "-q", str(settings)]
    if os.geteuid() == 0:
        for path in (directory, settings):
            shutil.chown(path, "postgres", "postgres")
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *command]
        directory.parent.chmod(0o755)
    process = subprocess.Popen(command, cwd="/")
    try:
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


async def test_two_nodes_behind_a_pooler_in_transaction_mode_do_all_that_they_do_without(tmp_path: Path) -> None:
    direct = database()
    with bouncer(postgres(), _readable(tmp_path)) as port:
        dsn = direct.replace(f":{postgres().port}/", f":{port}/")
        eventually(lambda: _answers(dsn))
        here, there = await opened(dsn), await opened(dsn)
        pushes = [queued(f"{number % 7}@example.com") for number in range(100)]
        await asyncio.gather(*(carry_out((here, there)[number % 2], push) for number, push in enumerate(pushes)))
        delivered: list[str] = []
        while leases := [*await claim(here), *await claim(there)]:
            assert all(await asyncio.gather(*(here.settle(settled(lease, Fate.DELIVERED)) for lease in leases)))
            delivered += [push for lease in leases for push in ids(lease)]
        assert sorted(delivered) == sorted(push.id for push in pushes)
        assert (await there.durability()).facts["synchronous_commit"] == "on"
        await here.close()
        await there.close()


async def test_a_pooler_that_takes_no_transactions_is_refused_in_words(tmp_path: Path) -> None:
    direct = database()
    with bouncer(postgres(), _readable(tmp_path), "statement") as port:
        dsn = direct.replace(f":{postgres().port}/", f":{port}/")
        eventually(lambda: _answers(dsn))
        for attempt in (opened, assess, migrate):
            with pytest.raises(StoreRefused, match=r"PgBouncer .* in statement mode.* set pool_mode to transaction"):
                await attempt(dsn)


def _readable(directory: Path) -> Path:
    """By the user that the pooler runs as: pytest's own directories are for their owner only."""
    for parent in directory.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return directory


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


# --- which servers are used


async def test_a_server_that_would_lose_what_was_acknowledged_is_refused_unless_the_operator_insists() -> None:
    server = Server(fsync="off", full_page_writes="off")
    try:
        dsn = server.database()
        with pytest.raises(StoreRefused, match=r"fsync=off.*full_page_writes=off.*SCQ_STORE_UNSAFE"):
            await opened(dsn)
        outbox = await opened(dsn, unsafe=True)
        durability = await outbox.durability()
        await outbox.close()
        assert "can be lost" in durability.promise
        assert (durability.facts["fsync"], durability.facts["full_page_writes"]) == ("off", "off")
    finally:
        server.remove()


async def test_a_commit_waits_for_the_disk_whatever_the_database_was_told() -> None:
    dsn = database()
    name = dsn.rpartition("/")[2]
    postgres().execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    assert (await assess(dsn)).facts["synchronous_commit"] == "on"
    postgres().execute(f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
    assert (await assess(dsn)).facts["synchronous_commit"] == "remote_apply"


async def test_a_table_that_a_crash_would_empty_is_a_reason_to_refuse() -> None:
    dsn = database()
    postgres().execute("ALTER TABLE pushes SET UNLOGGED", database=dsn.rpartition("/")[2])
    with pytest.raises(StoreRefused, match="A crash empties pushes"):
        await opened(dsn)


async def test_a_database_is_used_only_with_the_schema_that_this_version_knows() -> None:
    dsn = postgres().empty_database()
    with pytest.raises(StoreRefused, match="run scq-proxy migrate"):
        await opened(dsn)
    assert await migrate(dsn) == (0, KNOWN)
    assert await migrate(dsn) == (KNOWN, KNOWN)
    await (await opened(dsn)).close()
    postgres().execute("UPDATE scq_schema SET version = version + 1", database=dsn.rpartition("/")[2])
    for refused in (opened(dsn), migrate(dsn)):
        with pytest.raises(StoreRefused, match="made by a newer scq-proxy"):
            await refused


async def test_servers_that_cannot_be_used_are_told_apart() -> None:
    postgres().execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreRefused, match="encoding is SQL_ASCII: create one with ENCODING 'UTF8'"):
        await migrate(postgres().dsn("ascii"))
    old = ("13.4", 130_004, "UTF8", "on", "on", "on", "", True)
    too_old, standby = server_obstacles(old)
    assert too_old == "PostgreSQL 13.4 is too old: use 14 or newer."
    assert "is a standby" in standby


async def test_migrations_at_the_same_time_wait_for_each_other() -> None:
    dsn = postgres().empty_database()
    assert sorted(await asyncio.gather(*(migrate(dsn) for _ in range(4)))) == [(0, KNOWN), *[(KNOWN, KNOWN)] * 3]


async def test_a_database_of_another_program_is_not_touched() -> None:
    dsn = postgres().empty_database()
    postgres().execute("CREATE TABLE lanes (id int)", database=dsn.rpartition("/")[2])
    for refused in (opened(dsn), migrate(dsn)):
        with pytest.raises(StoreRefused, match=r"tables of another program \(lanes\)"):
            await refused


@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        ("postgresql://scq:{secret}@127.0.0.1:{free}/scq", "nothing listens there"),
        ("postgresql://scq:{secret}@127.0.0.1:{port}/postgres", "does not accept the user or the password"),
        ("postgresql://scq:{secret}@127.0.0.1:{port}/postgres?nonsense={secret}", "not a URL"),
    ],
)
async def test_what_is_refused_is_told_without_the_password(
    dsn: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    dsn = dsn.format(secret=SECRET, free=free_port(), port=postgres().port)
    for attempt in (opened, assess, migrate):
        with pytest.raises(StoreRefused, match=told) as refused:
            await attempt(dsn)
        assert SECRET not in str(refused.value)
    assert SECRET not in caplog.text


async def test_what_the_database_says_about_an_error_is_not_told(
    nodes: tuple[PostgresOutbox, PostgresOutbox], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name = nodes[0]._dsn.rpartition("/")[2]
    postgres().execute("ALTER TABLE pushes ADD CHECK (address NOT LIKE 'refused%')", database=name)
    with pytest.raises(StoreUnavailable) as failed:
        await carry_out(nodes[0], queued("refused@example.com"))
    assert "example.com" not in str(failed.value) + caplog.text
    assert "23514 CheckViolation" in caplog.text


async def test_a_closed_pool_says_so_and_nothing_else() -> None:
    base = Database(database(), pool_size=1)
    await base.open()
    await base.close()
    with pytest.raises(StoreUnavailable):
        await base.read(("site_key", {}))
