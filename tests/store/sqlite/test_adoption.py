"""A store that was set aside is recovered: waiting, held and dead pushes, once, in order, as far as they can be read."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.decision import Change, Decision, Enqueue, Hold, Remember
from proxy.core.emails import lane_key
from proxy.core.visitors import Trust, Visitor
from proxy.errors import StoreRefused
from proxy.sandbox.api import Sandbox
from proxy.store.records import Adopted, DeadFilter, DeadReason, Fate, Settled, Settlement, Stats
from proxy.store.sqlite.outbox import SqliteOutbox
from tests.support.commands import scq
from tests.support.server import arrives, new_email
from tests.support.sqlite import (
    PAGE,
    Start,
    crash,
    delivered,
    health,
    opened,
    overwrite,
    size,
    waiting,
    wal,
)

ASIDE = "scq.db.corrupt-20261130T200000Z"


async def carry_out(outbox: SqliteOutbox, *changes: Change) -> None:
    await outbox.append(lambda facts: Decision(changes, None))


async def pushes(outbox: SqliteOutbox, number: int, address: str = "ada@example.com", *, start: int = 0) -> list[str]:
    """Pushes with an id that says who and which it is."""
    ids = [f"{address}/{each}" for each in range(start, start + number)]
    key, body = lane_key(address), Track(("a",))
    changes = [(Enqueue(each, key, address, Trust.VERIFIED, body), Remember(each, "v")) for each in ids]
    await carry_out(outbox, *itertools.chain.from_iterable(changes))
    return ids


async def hold(outbox: SqliteOutbox, visitor: str, *ids: str) -> None:
    for push_id in ids:
        await carry_out(outbox, Hold(push_id, visitor, Track(("a",))), Remember(push_id, visitor))


async def held(outbox: SqliteOutbox) -> list[tuple[str, str]]:
    return await outbox._writer.submit(
        lambda connection: connection.execute("SELECT visitor, id FROM held ORDER BY seq").fetchall()
    )


async def buries(outbox: SqliteOutbox, address: str) -> str:
    """Makes the next push of this person a dead letter; returns its id."""
    (push_id,) = await pushes(outbox, 1, address)
    (lease,) = (await outbox.claim(1, 1, 60)).leases
    result = Settled(lease.pushes[0].seq, Fate.DEAD, reason=DeadReason.REJECTED, detail="HTTP 400")
    assert await outbox.settle(Settlement(lease, (result,)))
    return push_id


async def adopts(outbox: SqliteOutbox, file: Path) -> Adopted:
    *_, adopted = [each async for each in outbox.adopt(file)]
    return adopted


async def set_aside(outbox: SqliteOutbox, place: Path) -> Path:
    await outbox.close()
    for source in (outbox.path, wal(outbox.path)):
        if source.exists():
            source.rename(place / source.name.replace("scq.db", ASIDE))
    return place / ASIDE


def adds_up(stats: Stats) -> bool:
    counted = dict.fromkeys(("accepted", "bound", "delivered", "discarded", "erased", "held"), 0) | dict(stats.counters)
    kept = counted["delivered"] + stats.waiting + stats.dead + counted["discarded"] + counted["erased"]
    gone = sum(counted.get(name, 0) for name in ("bound", "hold_expired", "hold_refused", "hold_erased"))
    return counted["accepted"] + counted["bound"] == kept and counted["held"] == gone + stats.holding


async def test_what_a_store_that_was_set_aside_holds_is_taken_back_once(tmp_path: Path) -> None:
    path = tmp_path / "scq.db"
    old = await opened(path)
    dead = await buries(old, "dora@example.com")
    gone = await pushes(old, 1, "gone@example.com")
    assert await old.settle(delivered((await old.claim(1, 10, 60)).leases[0]))
    first, bob = await pushes(old, 3), await pushes(old, 900, "bob@example.com")
    await hold(old, "visitor", "held-1", "held-2")
    aside = await set_aside(old, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.glob(f"{ASIDE}*")}

    outbox = await opened(path)
    later = await pushes(outbox, 2, start=3)
    await hold(outbox, "visitor", "held-3")
    assert any(f"store adopt {aside}" in problem for problem in (await health(outbox)).problems)
    assert await adopts(outbox, aside) == Adopted(waiting=903, held=2, dead=1, ids=1)
    found = await waiting(outbox)
    assert [each for each in found if each in {*first, *later}] == [*first, *later], "older first"
    assert [each for each in found if each in set(bob)] == bob
    assert await held(outbox) == [("visitor", f"held-{number}") for number in (1, 2, 3)]
    assert [letter.id for letter in await outbox.dead_letters(DeadFilter(), 0, 10)] == [dead]
    stats = await outbox.stats()
    assert (stats.waiting, stats.holding, stats.dead) == (905, 3, 1)
    assert adds_up(stats)
    assert stats.health.problems == ()

    assert (await adopts(outbox, aside)).before
    known = await outbox._writer.submit(
        lambda connection: {each for (each,) in connection.execute("SELECT id FROM seen")}
    )
    assert known > {*gone, dead, *first, *later, "held-1"}
    assert {file.name: file.read_bytes() for file in tmp_path.glob(f"{ASIDE}*")} == before
    assert not (tmp_path / "scq.db.adopting").exists()
    await outbox.close()


async def test_what_was_taken_back_is_delivered_in_order_and_not_taken_back_again(tmp_path: Path) -> None:
    old = await opened(tmp_path / "scq.db")
    ids = await pushes(old, 3)
    aside = await set_aside(old, tmp_path)
    outbox = await opened(tmp_path / "scq.db")
    await adopts(outbox, aside)
    (lease,) = (await outbox.claim(5, 10, 60)).leases
    assert [push.id for push in lease.pushes] == ids
    assert await outbox.settle(delivered(lease))
    await outbox._writer.submit(lambda connection: connection.execute("DELETE FROM meta WHERE name GLOB 'adopted:*'"))
    assert await adopts(outbox, aside) == Adopted(known=3)
    assert adds_up(await outbox.stats())
    await outbox.close()


async def test_what_the_new_store_is_sending_is_not_moved(tmp_path: Path) -> None:
    old = await opened(tmp_path / "scq.db")
    ids = await pushes(old, 2)
    aside = await set_aside(old, tmp_path)
    outbox = await opened(tmp_path / "scq.db")
    later = await pushes(outbox, 2, start=2)
    (lease,) = (await outbox.claim(1, 10, 60)).leases
    await adopts(outbox, aside)
    assert await outbox.settle(delivered(lease))
    assert await waiting(outbox) == ids
    assert [push.id for push in lease.pushes] == later
    assert adds_up(await outbox.stats())
    await outbox.close()


async def test_an_increment_that_was_being_sent_is_a_dead_letter(tmp_path: Path) -> None:
    old = await opened(tmp_path / "scq.db")
    body = Attributes(custom_fields={"visits": "++1"})
    await carry_out(
        old, Enqueue("count", "ada@example.com", "ada@example.com", Trust.VERIFIED, body), Remember("count", "v")
    )
    assert (await old.claim(1, 10, 60)).leases
    path = await crash(old.path, tmp_path / "crashed")
    await old.close()
    outbox = await opened(tmp_path / "new.db")
    assert await adopts(outbox, path) == Adopted(dead=1)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 10)
    assert (letter.id, letter.reason) == ("count", DeadReason.AMBIGUOUS)
    assert adds_up(await outbox.stats())
    await outbox.close()


async def test_people_who_were_erased_here_or_there_do_not_come_back(tmp_path: Path) -> None:
    old = await opened(tmp_path / "scq.db")
    await pushes(old, 2, "here@example.com")
    await carry_out(old, Remember("log-in", "visitor", Visitor("visitor", "here@example.com", Trust.VERIFIED, 1)))
    await hold(old, "visitor", "held-1")
    await pushes(old, 2, "there@example.com")
    kept = await pushes(old, 1, "kept@example.com")
    await old.erase("there@example.com")
    aside = await set_aside(old, tmp_path)
    outbox = await opened(tmp_path / "scq.db")
    await outbox.erase("here@example.com")
    adopted = await adopts(outbox, aside)
    assert (adopted.waiting, adopted.held, adopted.erased) == (1, 0, 3)
    assert await waiting(outbox) == kept
    afters = await outbox._writer.submit(lambda connection: connection.execute("SELECT after FROM seen").fetchall())
    assert not any(b"here@example.com" in after for (after,) in afters if after)
    assert adds_up(await outbox.stats())
    await outbox.close()


async def test_a_file_that_can_be_read_in_part_gives_what_it_has(tmp_path: Path) -> None:
    old = await opened(tmp_path / "scq.db")
    for number in range(40):
        await pushes(old, 25, f"{number}@example.com")
    ids = await waiting(old)
    aside = await set_aside(old, tmp_path)
    with closing(sqlite3.connect(f"file:{aside}?mode=ro&immutable=1", uri=True)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'pushes'").fetchone()
    content = aside.read_bytes()
    leaf = int.from_bytes(content[(root - 1) * PAGE + 12 :][:2], "big")  # the first cell of the root names a leaf
    child = int.from_bytes(content[(root - 1) * PAGE + leaf :][:4], "big")
    overwrite(aside, (child - 1) * PAGE, bytes(PAGE))
    outbox = await opened(tmp_path / "scq.db")
    adopted = await adopts(outbox, aside)
    found = await waiting(outbox)
    assert len(ids) - 100 < adopted.waiting == len(found) < len(ids)
    assert adopted.missing == len(ids) - len(found)
    assert set(found) < set(ids)
    assert adds_up(await outbox.stats())
    again = await adopts(outbox, aside)
    assert (again.waiting, again.known, again.before) == (0, len(found), False)
    await outbox.close()


def without_magic(path: Path) -> None:
    overwrite(path, 0, b"\xff" * 16)


def cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(size(path) * 3 // 4 // PAGE * PAGE)


@pytest.mark.parametrize("damage", [without_magic, cut_off], ids=["without its magic", "cut off"])
async def test_a_damaged_header_or_a_missing_end_does_not_hide_the_rest(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    old = await opened(tmp_path / "scq.db")
    ids = await pushes(old, 2_000)
    await hold(old, "visitor", "held-1")
    aside = await set_aside(old, tmp_path)
    damage(aside)
    outbox = await opened(tmp_path / "scq.db")
    adopted = await adopts(outbox, aside)
    assert adopted.missing is not None
    assert adopted.waiting + adopted.held + adopted.missing == 2_001
    assert adopted.waiting == 2_000 if damage is without_magic else adopted.waiting > 100
    assert set(await waiting(outbox)) <= set(ids)
    assert adds_up(await outbox.stats())
    await outbox.close()


async def test_a_file_that_is_empty_beside_its_log_is_read_from_the_log(tmp_path: Path) -> None:
    old = await opened(tmp_path / "scq.db")
    ids = await pushes(old, 5)
    aside = await crash(old.path, tmp_path / "crashed")
    await old.close()
    aside.write_bytes(b"")
    outbox = await opened(tmp_path / "new.db")
    assert (await adopts(outbox, aside)).waiting == 5
    assert await waiting(outbox) == ids
    assert aside.read_bytes() == b""
    await outbox.close()


async def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE notes (x)")
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, " * 300)
    with pytest.raises(StoreRefused, match="is not a store of scq-proxy"):
        await adopts(outbox, other)
    with pytest.raises(StoreRefused, match="can be read"):
        await adopts(outbox, tmp_path / "letter.txt")
    with pytest.raises(StoreRefused, match="There is no store at"):
        await adopts(outbox, tmp_path / "missing.db")
    with pytest.raises(StoreRefused, match="is the store in use"):
        await adopts(outbox, outbox.path)
    (tmp_path / "directory").mkdir()
    with pytest.raises(StoreRefused, match="cannot be recovered now, and nothing was changed: Is a directory"):
        await adopts(outbox, tmp_path / "directory")
    spare = await opened(tmp_path / "spare.db")
    with pytest.raises(StoreRefused, match="in use by another process"):
        await adopts(outbox, spare.path)
    await spare.close()
    assert not (tmp_path / "scq.db.adopting").exists()
    await outbox.close()


def test_the_command_asks_the_running_server_and_takes_it_back_itself_without_one(
    tmp_path: Path, start: Start, sandbox: Sandbox
) -> None:
    address = new_email()

    async def prepare() -> None:
        old = await opened(tmp_path / "scq.db")
        await pushes(old, 3, address)
        await set_aside(old, tmp_path)

    asyncio.run(prepare())
    store = {"SCQ_STORE": f"sqlite:///{tmp_path / 'scq.db'}"}
    with start(tmp_path / "scq.db"):
        said = scq("store", "adopt", ASIDE, "--json", cwd=tmp_path, **store)
        assert (said.code, json.loads(said.out)["waiting"]) == (0, 3), said.err
        arrives(sandbox, address, "+a")
    said = scq("store", "adopt", str(tmp_path / ASIDE), cwd=tmp_path, **store)
    assert (said.code, said.out) == (0, "This file has been recovered before, and nothing was changed. Remove it.\n")
