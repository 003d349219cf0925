"""What every outbox promises about what nobody has vouched for: turns of sign-ups, the share of strangers, and their bytes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.decision import Change, Hold, Identified, Remember, Verify
from proxy.core.gate import Closure, Halt
from proxy.core.turns import Share
from proxy.core.visitors import NOBODY, Trust
from proxy.store.outbox import Outbox
from proxy.store.records import Fate, Lease, Settled, Settlement, SignUpFilter
from proxy.store.rows import HELD_OVERHEAD, ID_OVERHEAD, PUSH_OVERHEAD, TRACE_BYTES
from tests.contract.test_outbox import (
    ADAPTERS,
    SIZE,
    carry_out,
    claim,
    counters,
    push_id,
    queued,
    read,
    settled,
    sign_up,
)

ALL = Share()
FOUR = Share(per_hour=4)  # two at once, and one every half hour


@pytest.fixture(params=list(ADAPTERS))
async def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Outbox]:
    opened = await ADAPTERS[request.param](tmp_path)
    yield opened
    await opened.close()


def address(number: int) -> str:
    return f"a{number}@example.com"


def typed(count: int, client: str = "192.0.2.1", first: int = 0) -> list[Change]:
    return [sign_up(address(number), client) for number in range(first, first + count)]


async def turns(outbox: Outbox, share: Share, lanes: int = 10) -> Sequence[Lease]:
    return (await outbox.claim(lanes, 10, 60, share=share)).leases


def names(leases: Sequence[Lease]) -> list[str]:
    return [lease.pushes[0].address for lease in leases]


async def put_off(outbox: Outbox) -> int:
    return (await outbox.stats()).sign_ups


async def test_half_of_an_hours_number_leaves_at_once_and_no_more(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(5))
    assert names(await turns(outbox, FOUR)) == [address(0), address(1)]
    assert not await turns(outbox, FOUR)
    assert await put_off(outbox) == 3


@pytest.mark.parametrize("adapter", list(ADAPTERS))
async def test_a_restart_and_a_sweep_release_nothing(adapter: str, tmp_path: Path) -> None:
    outbox = await ADAPTERS[adapter](tmp_path)
    await carry_out(outbox, *typed(5))
    leases = await turns(outbox, FOUR)
    for lease in leases:
        await outbox.settle(settled(lease, Fate.DELIVERED))
    await outbox.sweep()
    assert not await turns(outbox, FOUR)
    await outbox.close()
    outbox = await ADAPTERS[adapter](tmp_path)
    try:
        assert not await turns(outbox, FOUR)
        await outbox.sweep()
        assert not await turns(outbox, FOUR)
        assert await put_off(outbox) == 3
    finally:
        await outbox.close()


async def test_a_newcomer_from_elsewhere_is_next_whatever_the_queue(outbox: Outbox) -> None:
    flood = [f"2001:db8:{number:x}::/64" for number in range(20)]
    await carry_out(outbox, *[sign_up(address(number), client) for number, client in enumerate(flood)])
    assert len(await turns(outbox, ALL, 3)) == 3
    await carry_out(outbox, sign_up("ada@example.com", "2a00::/64"))
    await carry_out(outbox, sign_up("bob@example.com", "192.0.2.1"))
    assert names(await turns(outbox, ALL, 2)) == ["ada@example.com", "bob@example.com"]


async def test_networks_within_a_network_take_turns(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(5, "2001:db8:1::/64"))
    await carry_out(outbox, sign_up("bob@example.com", "2001:db8:1:1::/64"))
    await carry_out(outbox, sign_up("ada@example.com", "2001:db8:2::/64"))
    order = [names(await turns(outbox, ALL, 1))[0] for _ in range(4)]
    assert order == [address(0), "ada@example.com", "bob@example.com", address(1)]


async def test_a_client_has_its_number_and_then_rests_while_others_go_on(outbox: Outbox) -> None:
    share = Share(per_hour=1_000, per_client=4)
    await carry_out(outbox, *typed(5))
    assert len(await turns(outbox, share)) == 2
    assert not await turns(outbox, share)
    await carry_out(outbox, *typed(1, "192.0.2.2", 9), *typed(1, "192.0.2.1", 7))
    assert names(await turns(outbox, share)) == [address(9)]
    assert len(await turns(outbox, ALL)) == 0, "rests, until its time has come"
    await carry_out(outbox, *typed(1, "192.0.2.1", 8))
    assert len(await turns(outbox, ALL)) == 5, "a new one wakes it, and there is no limit any more"


async def test_an_address_goes_with_the_first_client_of_those_who_typed_it_whose_turn_it_is(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(3, "192.0.2.1"))
    await turns(outbox, ALL, 1)
    await carry_out(outbox, sign_up(address(2), "198.51.100.1"), sign_up(address(2), "198.51.100.1"))
    (lease,) = await turns(outbox, ALL, 1)
    assert (names([lease]), len(lease.pushes), lease.sign_up) == ([address(2)], 3, "198.51.100.1")
    assert await put_off(outbox) == 1
    assert [row.client for row in await outbox.sign_ups(SignUpFilter(), 0, 10)] == ["192.0.2.1"]


async def test_what_is_vouched_for_releases_a_lane_at_once(outbox: Outbox) -> None:
    share = Share(per_hour=1)
    await carry_out(outbox, *typed(2))
    assert names(await turns(outbox, share)) == [address(0)]
    await carry_out(outbox, queued(address(1)))
    (lease,) = await turns(outbox, share)
    assert (names([lease]), lease.sign_up, lease.pressed, lease.stranger) == ([address(1)], "", True, False)
    assert (await put_off(outbox), await outbox.sign_ups(SignUpFilter(), 0, 10)) == (0, [])


async def test_a_lane_that_was_vouched_for_and_one_with_pushes_in_it_wait_for_no_turn(outbox: Outbox) -> None:
    await carry_out(outbox, Verify("ada@example.com"), queued("bob@example.com", trust=Trust.ASSERTED))
    await carry_out(outbox, sign_up("ada@example.com"), sign_up("bob@example.com"))
    assert await put_off(outbox) == 0
    leases = await turns(outbox, Share(per_hour=1))
    assert sorted(names(leases)) == ["ada@example.com", "bob@example.com"]
    assert all(lease.stranger and not lease.sign_up for lease in leases)


async def test_a_sign_up_of_which_nothing_left_waits_for_another_turn(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(2))
    first, second = await turns(outbox, FOUR)
    kept = Settled(first.pushes[0].seq, Fate.KEPT)
    await outbox.settle(Settlement(first, (kept,), failures=1))
    await outbox.settle(Settlement(second, (), retry_at=outbox.now() + 3_600))
    assert (await put_off(outbox), await turns(outbox, FOUR)) == (2, ())
    (again,) = await turns(outbox, ALL)
    assert (again.pushes[0].seq, again.failures, again.sign_up) == (first.pushes[0].seq, 1, "192.0.2.1")
    assert await put_off(outbox) == 1, "the other one is in a back-off"


async def test_a_sign_up_that_has_left_something_goes_on_without_a_turn(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(1), *typed(1))
    (lease,) = await turns(outbox, Share(per_hour=1, per_lane=1))
    assert len(lease.pushes) == 1
    await outbox.settle(settled(lease, Fate.DELIVERED))
    (lease,) = await turns(outbox, Share(per_hour=1))
    assert (len(lease.pushes), lease.stranger, lease.sign_up) == (1, True, "")


async def test_somebody_known_who_comes_under_the_lease_needs_no_other_turn(outbox: Outbox) -> None:
    share = Share(per_hour=1)
    await carry_out(outbox, *typed(1))
    (lease,) = await turns(outbox, share)
    await carry_out(outbox, queued(address(0)))
    await outbox.settle(Settlement(lease, ()))
    assert await put_off(outbox) == 0
    (lease,) = await turns(outbox, share)
    assert len(lease.pushes) == 2


async def test_a_lease_of_a_sign_up_that_is_lost_makes_an_ordinary_lane_of_it(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(1))
    (lost,) = (await outbox.claim(10, 10, 0, share=Share(per_hour=1))).leases
    (lease,) = await turns(outbox, Share(per_hour=1))
    assert (lost.sign_up, lease.sign_up, lease.stranger) == ("192.0.2.1", "", True)
    assert not await outbox.settle(Settlement(lost, ()))


async def test_vouched_lanes_go_first_and_strangers_have_their_share(outbox: Outbox) -> None:
    await carry_out(outbox, *[queued(f"s{number}@example.com", trust=Trust.ASSERTED) for number in range(3)], *typed(2))
    await carry_out(outbox, *[queued(f"v{number}@example.com") for number in range(4)])
    leases = await turns(outbox, Share(least=1), 3)
    assert names(leases) == ["v0@example.com", "v1@example.com", address(0)]
    leases = await turns(outbox, Share(per_lane=1), 9)
    assert names(leases)[:2] == ["v2@example.com", "v3@example.com"]
    assert names(leases)[2] == address(1), "turns come before lanes that are ready"
    assert sorted(names(leases)[3:]) == [f"s{number}@example.com" for number in range(3)]
    assert [lease.stranger for lease in leases] == [False, False, True, True, True, True]


async def test_without_strangers_vouched_lanes_have_their_share_too(outbox: Outbox) -> None:
    await carry_out(outbox, *[queued(f"v{number}@example.com") for number in range(4)])
    assert len(await turns(outbox, Share(least=2), 3)) == 3


async def test_a_shut_gate_lets_a_turn_through_as_its_probe_if_nothing_is_ready(outbox: Outbox) -> None:
    shut = await outbox.move_gate(None, Closure(until=time.time() - 1, halted=Halt.FORBIDDEN))
    assert shut is not None
    await carry_out(outbox, *typed(2))
    (lease,) = (await outbox.claim(10, 10, 60, probe=shut)).leases
    assert lease.sign_up
    assert not (await outbox.claim(10, 10, 60, probe=shut)).leases


async def test_a_wait_ends_when_a_turn_may_be_taken(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(2))
    assert len(await turns(outbox, Share(per_hour=200_000), 1)) == 1
    await outbox.wait_ready(0.5)
    assert len(await turns(outbox, Share(per_hour=200_000), 1)) == 1


async def test_the_operator_sees_sign_ups_and_drops_them(outbox: Outbox) -> None:
    for change in (*typed(3), *typed(1, "2001:db8:1:2::/64", 3), *typed(1, "198.51.100.1", 0)):
        await carry_out(outbox, change)
    rows = await outbox.sign_ups(SignUpFilter(), 0, 10)
    assert [(row.address, row.client, row.pushes) for row in rows] == [
        (address(0), "192.0.2.1", 2),
        (address(1), "192.0.2.1", 1),
        (address(2), "192.0.2.1", 1),
        (address(3), "2001:db8:1:2::/64", 1),
        (address(0), "198.51.100.1", 2),
    ]
    assert await outbox.sign_ups(SignUpFilter(), rows[3].seq, 10) == rows[4:]
    assert await outbox.sign_ups(SignUpFilter(pattern="A1@*"), 0, 10) == rows[1:2]
    assert await outbox.drop_sign_ups(SignUpFilter(network="2001:db8::/32"), 10) == 1
    assert await outbox.drop_sign_ups(SignUpFilter(network="192.0.2.0/24"), 2) == 2
    assert [row.address for row in await outbox.sign_ups(SignUpFilter(), 0, 10)] == [address(2)]
    stats = await outbox.stats()
    assert (stats.sign_ups, stats.waiting, stats.counters["discarded"]) == (1, 1, 4)
    assert names(await turns(outbox, ALL)) == [address(2)]
    await carry_out(outbox, sign_up(address(1)))
    assert names(await turns(outbox, ALL)) == [address(1)]


async def test_an_erasure_takes_a_sign_up_out_of_the_queue(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(2))
    await outbox.erase(address(0))
    assert (await put_off(outbox), len(await outbox.sign_ups(SignUpFilter(), 0, 10))) == (1, 1)
    assert names(await turns(outbox, ALL)) == [address(1)]


async def test_a_visitor_whose_sign_up_was_dropped_is_nobodys(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(2), Identified("ada", address(0)), Identified("bob", address(1)))
    assert await outbox.drop_sign_ups(SignUpFilter(pattern=address(0)), 10) == 1
    persons = await read(outbox, lambda facts: [facts.visitor(visitor).person for visitor in ("ada", "bob")])
    assert persons == [NOBODY, address(1)]


async def test_a_change_of_address_to_one_that_waits_for_its_turn_releases_it(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(1))
    await carry_out(outbox, queued("ada@example.com", Attributes(new_email=address(0))), queued("ada@example.com"))
    (lease,) = (await outbox.claim(1, 1, 60, share=Share(per_hour=1))).leases
    await outbox.settle(settled(lease, Fate.DELIVERED))
    assert await put_off(outbox) == 0
    (lease,) = await turns(outbox, Share(per_hour=1))
    assert len(lease.pushes) == 2


async def unvouched(outbox: Outbox) -> int:
    """The same by each way."""
    stats, known = await outbox.stats(), await read(outbox, lambda facts: facts.unvouched_bytes())
    assert stats.unvouched_bytes == known == outbox.unvouched().bytes
    return stats.unvouched_bytes


async def test_bytes_that_nobody_has_vouched_for_are_known_and_given_back(outbox: Outbox) -> None:
    assert (await unvouched(outbox), outbox.unvouched().headroom > 0) == (0, True)
    hold = Hold(push_id(), "v", Track(("a",)))
    await carry_out(outbox, queued("ada@example.com"), *typed(2), hold, Remember(hold.id, "v"))
    push, held = SIZE + PUSH_OVERHEAD + ID_OVERHEAD, SIZE + HELD_OVERHEAD + ID_OVERHEAD
    assert await unvouched(outbox) == 2 * push + held
    leases = await turns(outbox, ALL)
    dead = next(lease for lease in leases if names([lease]) == [address(0)])
    for lease in leases:
        await outbox.settle(settled(lease, Fate.DEAD if lease is dead else Fate.DELIVERED))
    assert await unvouched(outbox) == push + held + ID_OVERHEAD, "a dead letter counts, and so do ids"
    await outbox.erase(address(0))
    assert await unvouched(outbox) == held + 2 * ID_OVERHEAD


async def test_what_a_strangers_log_out_leaves_takes_up_bytes_too(outbox: Outbox) -> None:
    log_outs = [Remember(push_id(), "v", unvouched=True), Remember(push_id(), "v")]
    await carry_out(outbox, *log_outs, log_outs[0])
    assert await unvouched(outbox) == TRACE_BYTES


async def test_it_is_known_since_when_customers_wait_whoever_else_does(outbox: Outbox) -> None:
    await carry_out(outbox, *typed(2), queued("bob@example.com", trust=Trust.ASSERTED))
    assert (await outbox.stats()).ready is None
    await carry_out(outbox, queued("ada@example.com"))
    ready = (await outbox.stats()).ready
    assert ready is not None
    assert abs(ready - outbox.now()) < 30


async def test_ready_lanes_of_strangers_are_claimed_by_a_claim_that_says_nothing_of_them(outbox: Outbox) -> None:
    await carry_out(outbox, queued("bob@example.com", trust=Trust.ASSERTED))
    assert [lease.stranger for lease in await claim(outbox)] == [True]
    assert await counters(outbox) == {"accepted": 1}
