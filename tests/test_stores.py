"""`scq-proxy copy`: what an SQLite store knows is what the PostgreSQL store knows afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.decision import (
    Born,
    Change,
    Decision,
    Enqueue,
    Facts,
    Hold,
    Identified,
    NotOffered,
    Refused,
    Remember,
    Retire,
    Schedule,
    Scheduled,
    Shown,
    Verify,
)
from proxy.core.gate import Closure, Halt
from proxy.core.reasons import Reason
from proxy.core.turns import Share
from proxy.core.visitors import Trust, Visitor
from proxy.store.outbox import Outbox
from proxy.store.postgres.outbox import open_outbox as open_postgres
from proxy.store.records import DeadFilter, DeadReason, Fate, Lease, Settled, Settlement, SignUpFilter
from proxy.store.sqlite.outbox import open_outbox as open_sqlite
from tests.support import postgres
from tests.support.commands import Said, at_a_terminal, scq

HOLD_AGE, DEAD_AGE = timedelta(days=30), timedelta(days=90)
INCREMENT = Attributes(custom_fields={"Visits": "++1"})
SHUT = Closure(time.time() + 1_000, 2, Halt.KEY)
ANN = Visitor("v-ann", "ann@example.com", Trust.VERIFIED, 1_700_000_000, 1_700_000_000)


def queued(address: str, body: Attributes | Track | None = None) -> Enqueue:
    return Enqueue(str(uuid.uuid4()), address, address, Trust.VERIFIED, body or Track(("a",)))


async def carry_out(outbox: Outbox, *ops: Change) -> None:
    await outbox.append(lambda facts: Decision(ops, None))


@contextlib.asynccontextmanager
async def file(path: Path) -> AsyncIterator[Outbox]:
    outbox = await open_sqlite(path, create=True, hold_age=HOLD_AGE, dead_age=DEAD_AGE, min_free_bytes=0)
    try:
        yield outbox
    finally:
        await outbox.close()


@contextlib.asynccontextmanager
async def database(dsn: str) -> AsyncIterator[Outbox]:
    outbox = await open_postgres(dsn, hold_age=HOLD_AGE, dead_age=DEAD_AGE)
    try:
        yield outbox
    finally:
        await outbox.close()


def copied(path: Path, dsn: str) -> Said:
    return scq("copy", "--from", f"sqlite:///{path}", cwd=path.parent, SCQ_STORE=dsn)


async def fill(outbox: Outbox) -> None:
    """Something of everything; the last thing is an increment that is claimed and not settled."""
    moves = queued("old@example.com", Attributes(new_email="new@example.com"))
    await carry_out(outbox, moves, queued("erased@example.com"), queued("dead@example.com", INCREMENT))
    for lease in (await outbox.claim(10, 10, 60)).leases:
        push = lease.pushes[0]
        fate = Fate.DEAD if push.body == INCREMENT else Fate.DELIVERED
        reason = DeadReason.REJECTED if fate is Fate.DEAD else None
        await outbox.settle(Settlement(lease, (Settled(push.seq, fate, reason=reason, detail="HTTP 400"),)))
    await outbox.erase("erased@example.com")
    await carry_out(
        outbox,
        *(queued(f"{name}@example.com", Track((str(number),))) for number in range(3) for name in ("ada", "bob")),
        Verify("ada@example.com"),
        Verify("new@example.com"),
        Hold("h1", "v1", Track(("held 1",))),
        Hold("h2", "v1", Track(("held 2",))),
        Remember("h1", "v1"),
        Remember("login", "v1", ANN),
        Retire("v2"),
        Born("v3", "ann@example.com"),
        Identified("v4", "ann@example.com"),
        Shown("v5", "v5"),
        Refused(Reason.TAG_NOT_ALLOWED),
        NotOffered("a", "SCQ_TAGS"),
        Scheduled(Schedule.SIGN_UPS, time.time() + 500),
        queued("cut@example.com", INCREMENT),
        queued("cut@example.com"),
    )
    for lease in (await outbox.claim(10, 10, 60)).leases:
        if lease.pushes[0].address != "cut@example.com":
            await outbox.settle(Settlement(lease, ()))
    await outbox.move_gate(None, SHUT)


async def everything(outbox: Outbox) -> dict[str, object]:
    """What can be asked of it."""

    def decide(known: Facts) -> Decision[dict[str, object]]:
        return Decision(
            (),
            {
                "seen": [known.seen(each) for each in ("h1", "login", "never")],
                "visitors": [known.visitor(each) for each in ("v1", "v2", "v3", "v4", "v5", "v6")],
                "lanes": [known.lane(f"{name}@example.com") for name in ("ada", "bob", "dead", "cut", "nobody")],
                "alias": known.alias("old@example.com"),
                "erased": [known.erased_at(f"{name}@example.com") for name in ("erased", "ada")],
                "held": list(known.held("v1")),
                "schedule": known.schedule(Schedule.SIGN_UPS),
            },
        )

    facts: dict[str, object] = (await outbox.append(decide)).answer
    stats = await outbox.stats()
    return facts | {
        "key": outbox.site_key,
        "gate": (await outbox.claim(0, 1, 0)).closure,
        "dead": await outbox.dead_letters(DeadFilter(), 0, 100),
        "stats": (stats.counters, stats.waiting, stats.holding, stats.dead, stats.oldest, stats.refused_names),
    }


async def emptied(outbox: Outbox) -> list[tuple[str, tuple[str, ...]]]:
    """What leaves it, in order."""
    await outbox.move_gate(SHUT, None)
    left = []
    while leases := (await outbox.claim(10, 1, 60)).leases:
        for lease in leases:
            (push,) = lease.pushes
            assert isinstance(push.body, Track)
            left.append((push.address, push.body.add_tags))
            await outbox.settle(Settlement(lease, (Settled(push.seq, Fate.DELIVERED),)))
    return left


def settlement(lease: Lease, fate: Fate) -> Settlement:
    return Settlement(lease, tuple(Settled(push.seq, fate) for push in lease.pushes))


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    path = tmp_path / "scq.db"
    async with file(path) as outbox:
        await fill(outbox)
    return path


async def test_a_copy_knows_all_that_the_original_knows(filled: Path, dsn: str) -> None:
    said = await asyncio.to_thread(copied, filled, dsn)
    assert said.code == 0, said.err
    async with file(filled) as original, database(dsn) as copy:
        assert await everything(copy) == await everything(original)
        (ambiguous, rejected) = sorted(letter.reason for letter in await copy.dead_letters(DeadFilter(), 0, 100))
        assert (ambiguous, rejected) == (DeadReason.AMBIGUOUS, DeadReason.REJECTED)
        new = queued("ada@example.com", Track(("behind all",)))
        await carry_out(original, new)
        await carry_out(copy, new)
        sent = await emptied(copy)
        assert [tags for address, tags in sent if address.startswith("ada")] == [
            ("0",),
            ("1",),
            ("2",),
            ("behind all",),
        ]
        assert sorted(sent) == sorted(await emptied(original))
        for outbox in (original, copy):
            await outbox.replay(DeadFilter(), 10)
        assert (await copy.stats()).counters == (await original.stats()).counters


async def test_a_copy_has_the_queue_of_sign_ups_and_goes_on_with_it(tmp_path: Path, dsn: str) -> None:
    path, share = tmp_path / "scq.db", Share(per_hour=1)
    clients = ("2001:db8:1::/64", "2001:db8:1::/64", "2001:db8:2::/64", "192.0.2.1")
    async with file(path) as original:
        for number, client in enumerate(clients):
            address = f"a{number}@example.com"
            await carry_out(original, Enqueue(str(number), address, address, Trust.ASSERTED, Track(("a",)), client))
        for lease in (await original.claim(10, 10, 60, share=share)).leases:
            await original.settle(settlement(lease, Fate.DELIVERED))
        queue = await original.sign_ups(SignUpFilter(), 0, 10)
        before = await original.stats()
    assert (await asyncio.to_thread(copied, path, dsn)).code == 0
    async with database(dsn) as copy, file(path) as original:
        stats = await copy.stats()
        assert (await copy.sign_ups(SignUpFilter(), 0, 10), stats.sign_ups) == (queue, 3)
        assert (stats.unvouched_bytes, stats.waiting) == (before.unvouched_bytes, 3)
        assert not (await copy.claim(10, 10, 60, share=share)).leases, "the hour goes on"
        for outbox in (original, copy):
            order = [(await outbox.claim(1, 10, 60)).leases[0].sign_up for _ in range(3)]
            assert order == ["192.0.2.1", "2001:db8:2::/64", "2001:db8:1::/64"]


async def test_a_copy_says_what_was_copied_and_leaves_the_file_as_it_was(filled: Path, dsn: str) -> None:
    before = filled.read_bytes()
    said = await asyncio.to_thread(copied, filled, dsn)
    assert (said.code, said.err.count("Store: PostgreSQL at ")) == (0, 1)
    assert "the numbers of both stores are the same" in said.out
    assert re.search(r"^  pushes +7$", said.out, re.MULTILINE)
    assert "must not be served again" in said.out
    async with file(filled) as original:
        assert (await original.stats()).waiting == 7
    assert len(filled.read_bytes()) >= len(before)


async def test_a_target_that_was_used_is_refused_and_left_as_it_was(filled: Path, dsn: str) -> None:
    async with database(dsn) as outbox:
        await carry_out(outbox, queued("somebody@example.com"))
    for _ in range(2):
        said = await asyncio.to_thread(copied, filled, dsn)
        assert (said.code, said.out) == (2, "")
        assert "The target is not empty (1 in lanes, 1 in pushes): nothing was copied." in said.err
    async with database(dsn) as outbox:
        assert (await outbox.stats()).waiting == 1


async def test_a_file_that_is_served_is_refused(filled: Path, dsn: str) -> None:
    async with file(filled):
        said = await asyncio.to_thread(copied, filled, dsn)
    assert (said.code, said.out) == (2, "")
    assert "is in use by another process" in said.err
    async with database(dsn) as outbox:
        assert (await outbox.stats()).waiting == 0


async def test_a_target_that_a_node_serves_is_refused(filled: Path, dsn: str) -> None:
    async with database(dsn):
        said = await asyncio.to_thread(copied, filled, dsn)
    assert (said.code, said.out) == (2, "")
    assert "A node is connected to the target: stop it" in said.err


async def test_a_target_without_a_schema_is_refused(filled: Path) -> None:
    said = await asyncio.to_thread(copied, filled, postgres.postgres().empty_database())
    assert (said.code, said.out) == (2, "")
    assert "run scq-proxy migrate" in said.err


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--from", "postgresql://h/d", "--to", "postgresql://h/d"], "this must begin with sqlite://"),
        (["--from", "sqlite:///a.db", "--to", "sqlite:///b.db"], "this must begin with postgresql://"),
        (["--from", "sqlite:///a.db"], "SCQ_STORE is not a PostgreSQL store"),
        (["--from", "scq.db"], "it must begin with sqlite:///"),
    ],
)
def test_a_store_is_moved_from_sqlite_to_postgresql_and_in_no_other_way(
    tmp_path: Path, arguments: list[str], wrong: str
) -> None:
    said = scq("copy", *arguments, cwd=tmp_path, SCQ_STORE="sqlite:///c.db")
    assert (said.code, said.out) == (2, "")
    assert wrong in " ".join(said.err.split())
    assert list(tmp_path.iterdir()) == []


async def test_an_erasure_that_had_begun_is_finished_first(filled: Path, dsn: str) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.execute("INSERT INTO erasures VALUES ('ann@example.com', ?)", (time.time() + 1,))
        connection.commit()
    assert (await asyncio.to_thread(copied, filled, dsn)).code == 0
    async with database(dsn) as copy:
        known = await everything(copy)
    assert known["seen"][1].after is None  # type: ignore[index]


async def test_a_name_that_postgresql_cannot_hold_is_counted_under_one_that_it_can(filled: Path, dsn: str) -> None:
    async with file(filled) as original:
        await carry_out(original, NotOffered("x\0y", "SCQ_TAGS"), NotOffered("x\ufffdy", "SCQ_TAGS"))
    assert (await asyncio.to_thread(copied, filled, dsn)).code == 0
    async with database(dsn) as copy:
        names = (await copy.stats()).refused_names
    assert {refused.name: refused.count for refused in names} == {"a": 1, "x\ufffdy": 2}


async def test_a_terminal_is_shown_how_far_it_has_come(filled: Path, dsn: str) -> None:
    arguments = ("copy", "--from", f"sqlite:///{filled}")
    said = await asyncio.to_thread(at_a_terminal, *arguments, cwd=filled.parent, SCQ_STORE=dsn)
    assert said.code == 0
    assert re.search(r"(\d\d)/\1", said.err)
