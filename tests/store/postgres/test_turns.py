"""Turns of sign-ups over several nodes: one queue and one cap, and numbers that are exact whatever the nodes do at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest

from proxy.core.calls import Track
from proxy.core.decision import Hold
from proxy.core.networks import networks_of
from proxy.core.turns import Share
from proxy.core.visitors import Trust
from proxy.store.postgres.database import SQL
from proxy.store.postgres.locks import lock
from proxy.store.postgres.outbox import PostgresOutbox, open_outbox
from proxy.store.postgres.turns import QUEUE
from proxy.store.records import DeadFilter, Fate, Lease, Settled, Settlement, SignUpFilter
from proxy.store.rows import HELD_OVERHEAD, PUSH_OVERHEAD
from tests.contract.test_outbox import carry_out, push_id, queued, settled, sign_up
from tests.support.postgres import database

Nodes = tuple[PostgresOutbox, PostgresOutbox]
HOLD_AGE, DEAD_AGE = timedelta(days=30), timedelta(days=90)
ALL = Share()
MONTH = 31 * 86_400
CLIENTS = (
    "192.0.2.1",
    "192.0.2.2",
    "198.51.100.1",
    "2001:db8:1::/64",
    "2001:db8:1:1::/64",
    "2001:db8:2::/64",
    "unknown",
)


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    dsn = database()
    both = [await open_outbox(dsn, hold_age=HOLD_AGE, dead_age=DEAD_AGE) for _ in range(2)]
    yield both[0], both[1]
    await asyncio.gather(*(node.close() for node in both))


def execute(node: PostgresOutbox, statement: str, *values: float) -> list[tuple[object, ...]]:
    with psycopg.connect(node._dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


async def turns(node: PostgresOutbox, share: Share, lanes: int = 10) -> list[Lease]:
    return [lease for lease in (await node.claim(lanes, 10, 60, share=share)).leases if lease.sign_up]


async def until_free(node: PostgresOutbox, share: Share) -> list[Lease]:
    """Claims until the other node leaves the queue."""
    for _ in range(50):
        if leases := await turns(node, share):
            return leases
    return []


async def require_exact(node: PostgresOutbox) -> None:
    """The numbers that are kept are those that are counted."""
    rows = execute(node, "SELECT lane, client FROM sign_ups")
    put_off = {lane for (lane,) in execute(node, "SELECT id FROM lanes WHERE put_off")}
    assert {lane for lane, _ in rows} == put_off
    assert not execute(
        node, "SELECT 1 FROM lanes WHERE put_off AND (ready_at IS NOT NULL OR waiting = 0 OR verified OR NOT stranger)"
    )
    networks = execute(node, "SELECT name, waiting, rests IS NOT NULL FROM networks")
    resting = {str(name) for name, _, rests in networks if rests}
    counted = Counter[str]()
    for _, client in rows:
        *around, own = networks_of(str(client))
        counted.update([own] if own in resting else [*around, own])
    assert {name: waiting for name, waiting, _ in networks if waiting} == counted
    wrong = "SELECT id FROM lanes WHERE stranger AND EXISTS (SELECT FROM pushes WHERE lane = lanes.id AND trust = 2)"
    assert not execute(node, wrong)
    kept = (
        "SELECT coalesce(sum(size), 0)::bigint FROM (SELECT length(body) + %s AS size FROM held "
        "UNION ALL SELECT length(body) + %s FROM pushes WHERE trust <> 2 UNION ALL SELECT length(body) + %s FROM dead WHERE trust <> 2) AS kept"
    )
    gauge = "SELECT coalesce(sum(value), 0)::bigint FROM counters WHERE name = 'gauge:unvouched_bytes'"
    assert execute(node, kept, HELD_OVERHEAD, PUSH_OVERHEAD, PUSH_OVERHEAD) == execute(node, gauge)
    assert (await node.stats()).sign_ups == len(put_off)


# --- one cap and one queue


async def test_the_cap_holds_for_all_nodes_together(nodes: Nodes) -> None:
    share = Share(per_hour=20)
    await asyncio.gather(
        *(carry_out(nodes[number % 2], sign_up(f"a{number}@example.com", f"192.0.{number}.1")) for number in range(30))
    )
    claimed = await asyncio.gather(*(turns(node, share, 3) for _ in range(8) for node in nodes))
    claimed.append(await until_free(nodes[0], share))
    claimed.append(await until_free(nodes[1], share))
    leases = [lease for each in claimed for lease in each]
    assert len({lease.lane for lease in leases}) == len(leases) == 10, "half of them at once"
    await require_exact(nodes[0])


async def test_a_client_is_capped_by_all_nodes_together(nodes: Nodes) -> None:
    share = Share(per_hour=1_000, per_client=4)
    await asyncio.gather(
        *(
            carry_out(node, sign_up(f"{number}{place}@example.com"))
            for number in range(5)
            for place, node in enumerate(nodes)
        )
    )
    leases = [lease for node in (*nodes, *nodes) for lease in await turns(node, share)]
    assert len(leases) == 2
    await carry_out(nodes[1], sign_up("ada@example.com", "198.51.100.1"))
    (lease,) = await turns(nodes[0], share)
    assert lease.pushes[0].address == "ada@example.com"
    await require_exact(nodes[0])


async def test_nodes_serve_networks_in_turn(nodes: Nodes) -> None:
    flood = [sign_up(f"a{number}@example.com", f"2001:db8:{number:x}::/64") for number in range(9)]
    await carry_out(nodes[0], *flood)
    await carry_out(nodes[1], sign_up("ada@example.com", "192.0.2.1"), sign_up("bob@example.com", "192.0.2.1"))
    order = [(await turns(node, ALL, 1))[0].sign_up for node in (*nodes, *nodes)]
    assert [client.startswith("2001:db8:") for client in order] == [True, False, True, False]


async def test_a_node_takes_no_turn_while_another_has_the_queue(nodes: Nodes) -> None:
    await carry_out(nodes[0], sign_up("a@example.com"), queued("b@example.com"))
    with psycopg.connect(nodes[0]._dsn) as other:
        query, values = lock((QUEUE,))
        other.execute(SQL[query], values)
        (lease,) = (await nodes[1].claim(10, 10, 60)).leases
        assert lease.pushes[0].address == "b@example.com", "nobody waits for the queue"
    (lease,) = await turns(nodes[1], ALL)
    assert lease.pushes[0].address == "a@example.com"


async def test_a_restart_releases_nothing(nodes: Nodes) -> None:
    share = Share(per_hour=2)
    await carry_out(nodes[0], *(sign_up(f"a{number}@example.com") for number in range(5)))
    assert len(await turns(nodes[0], share)) == 1
    third = await open_outbox(nodes[0]._dsn, hold_age=HOLD_AGE, dead_age=DEAD_AGE)
    try:
        await third.sweep()
        assert not await turns(third, share)
        assert (await third.stats()).sign_ups == 4
    finally:
        await third.close()


async def test_what_is_vouched_for_on_one_node_releases_a_lane_that_another_put_off(nodes: Nodes) -> None:
    share = Share(per_hour=1)
    await carry_out(nodes[0], sign_up("a@example.com"), sign_up("b@example.com"))
    assert len(await turns(nodes[0], share)) == 1
    await carry_out(nodes[1], queued("b@example.com"))
    (lease,) = (await nodes[0].claim(10, 10, 60, share=share)).leases
    assert (len(lease.pushes), lease.sign_up, lease.pressed) == (2, "", True)
    await require_exact(nodes[0])


# --- exact numbers


PEOPLE = [f"p{number}@example.com" for number in range(12)]


async def append(node: PostgresOutbox, chance: random.Random) -> None:
    kind, person = chance.randrange(6), chance.choice(PEOPLE)
    if kind == 0:
        await carry_out(node, queued(person))
    elif kind == 1:
        await carry_out(node, queued(person, trust=Trust.ASSERTED))
    elif kind == 2:
        await carry_out(node, Hold(push_id(), "v", Track(("a",))))
    else:
        await carry_out(node, sign_up(person, chance.choice(CLIENTS)))


async def send(node: PostgresOutbox, chance: random.Random) -> None:
    share = Share(least=1, per_lane=2, per_client=chance.choice((0, 6)))
    for lease in (await node.claim(chance.randrange(1, 4), 5, 60, share=share)).leases:
        fate = chance.choice((Fate.DELIVERED, Fate.DEAD, Fate.KEPT, Fate.KEPT))
        results = tuple(Settled(push.seq, fate) for push in lease.pushes)
        retry_at = node.now() + chance.choice((0, 600)) if fate is Fate.KEPT else None
        await node.settle(Settlement(lease, results, failures=int(fate is Fate.KEPT), retry_at=retry_at))


async def operate(node: PostgresOutbox, chance: random.Random) -> None:
    work = (
        lambda: node.erase(chance.choice(PEOPLE)),
        lambda: node.replay(DeadFilter(), 2),
        lambda: node.discard(DeadFilter(), 1),
        lambda: node.drop_sign_ups(SignUpFilter(network="192.0.2.0/24"), 1),
        node.sweep,
    )
    await chance.choice(work)()


@pytest.mark.parametrize("seed", range(3))
async def test_numbers_are_exact_whatever_nodes_do_at_once(nodes: Nodes, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(12):
        work = (append, append, append, append, send, send, operate)
        await asyncio.gather(*(each(node, chance) for each in work for node in nodes))
    await nodes[0].sweep()
    await require_exact(nodes[1])


async def test_what_a_node_of_the_version_before_has_let_go_takes_no_turn_and_leaves_the_queue(nodes: Nodes) -> None:
    node, _ = nodes
    await carry_out(node, sign_up("a@example.com"), sign_up("b@example.com"))
    execute(node, "UPDATE lanes SET put_off = false, ready_at = 5 WHERE key = 'a@example.com'")
    (lease,) = await turns(node, Share(per_hour=1))
    assert lease.pushes[0].address == "b@example.com"
    await require_exact(node)


async def test_a_sweep_drops_what_has_waited_for_too_long_and_forgets_networks(nodes: Nodes) -> None:
    node, _ = nodes
    await carry_out(node, sign_up("a@example.com"), sign_up("b@example.com"), sign_up("b@example.com", "198.51.100.1"))
    execute(node, "UPDATE sign_ups SET at = at - %s WHERE client = '192.0.2.1'", MONTH)
    await node.sweep()
    stats = await node.stats()
    assert (stats.sign_ups, stats.waiting, stats.counters["discarded"]) == (1, 1 + 1, 1)
    await require_exact(node)
    execute(node, "UPDATE sign_ups SET at = at - %s", MONTH)
    await node.sweep()
    assert (await node.stats()).sign_ups == 0
    for _ in networks_of("192.0.2.1"):
        await node.sweep()
    assert execute(node, "SELECT count(*) FROM networks") == [(0,)]


async def test_times_of_turns_that_a_wrong_clock_has_set_do_not_last(nodes: Nodes) -> None:
    node, _ = nodes
    share, year = Share(per_hour=100, per_client=100), 365 * 86_400
    await carry_out(node, sign_up("a@example.com"), sign_up("b@example.com"))
    (lease,) = await turns(node, share, 1)
    await node.settle(Settlement(lease, (), 1, time.time() + year))
    execute(node, "UPDATE networks SET until = until + %s WHERE name = '192.0.2.1'", year)
    execute(node, "UPDATE schedules SET until = until + %s", year)
    await node.sweep()
    longest = "SELECT max(until) - extract(epoch FROM now()) FROM (SELECT until FROM networks UNION ALL SELECT until FROM schedules) AS t"
    (row,) = execute(node, longest)
    assert float(str(row[0])) < 7_201


async def test_a_network_that_was_served_under_a_wrong_clock_is_not_last_for_it(nodes: Nodes) -> None:
    node, _ = nodes
    await carry_out(node, sign_up("a@example.com"))
    assert len(await turns(node, ALL)) == 1
    execute(node, "UPDATE networks SET weight = weight + %s WHERE weight > 1000", 365 * 24)
    await node.sweep()
    execute(node, "UPDATE networks SET weight = weight - 15 WHERE weight > 1000")  # as time passes
    await carry_out(node, *[sign_up(f"{number}@example.com", "203.0.113.1") for number in range(5)])
    assert len(await turns(node, ALL, 2)) == 2
    await carry_out(node, sign_up("b@example.com"))
    (lease,) = await turns(node, ALL, 1)
    assert lease.pushes[0].address == "b@example.com"


async def test_the_gauge_of_ids_goes_with_them(nodes: Nodes) -> None:
    node, _ = nodes
    await carry_out(node, sign_up("a@example.com"))
    before = (await node.stats()).unvouched_bytes
    execute(node, "UPDATE counters SET name = 'gauge:id_bytes:1' WHERE name LIKE 'gauge:id_bytes:%'")
    await node.sweep()
    assert (await node.stats()).unvouched_bytes == before - 200
    for lease in await turns(node, ALL):
        await node.settle(settled(lease, Fate.DELIVERED))
    assert (await node.stats()).unvouched_bytes == 0
