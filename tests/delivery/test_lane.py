"""One lane on real parts, the SQLite outbox, real sockets and a SendX that misbehaves by script: order, retries, increments, settling."""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.visitors import Trust
from proxy.delivery.lane import LaneRun
from proxy.delivery.sendx import Client
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from proxy.store.records import DeadFilter, DeadReason, Fate
from proxy.store.sqlite.outbox import SqliteOutbox
from tests.support.live import free_port, serving
from tests.support.sending import (
    ANN,
    BOB,
    COUNT,
    HELLO,
    KEY,
    Clock,
    Unreliable,
    drained,
    forwarder,
    push,
    running,
    sent,
    shared_by_lanes,
    sums_add_up,
    until,
)

# --- order


async def test_what_waits_is_delivered_in_order(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO, Track(("a",)), Track((), ("a",)), Track(("b",)), COUNT)
    async with running(forwarder(outbox, url)) as delivery:
        await drained(outbox)
        await until(lambda: delivery.state().delivered == 5)
    contact = sandbox.contacts.get(ANN)
    assert contact is not None
    assert (contact.first_name, contact.tags, contact.custom_fields) == ("Hello", ("b",), {"Visits": "1"})
    assert [record.path.rpartition("/")[2] for record in sandbox.requests] == [
        "identify",
        "track",
        "track",
        "identify",
    ]
    assert sandbox.violations == []
    assert await sums_add_up(outbox)


async def test_a_retry_does_not_overtake_and_delays_no_other_lane(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand(ANN, Fault(status=500))
    await push(outbox, ANN, HELLO, Track(("a",)))
    others = [f"{number}@example.com" for number in range(50)]
    for address in others:
        await push(outbox, address, HELLO, Track(("a",)))
    async with running(forwarder(outbox, url, concurrency=2)):
        await until(lambda: sum(contact.tags == ("a",) for contact in sandbox.contacts.newest_first()) == len(others))
        assert all("firstName" in body for body in sent(sandbox.requests, ANN))
        sandbox.faults.clear()
        await drained(outbox)
    assert "addTags" in sent(sandbox.requests, ANN)[-1]
    assert await sums_add_up(outbox)


async def test_an_erasure_stops_what_is_sent_for_the_person_and_nothing_overtakes_what_comes_next(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault("ok", delay=0.3))
    await push(outbox, ANN, *[body for number in range(8) for body in (HELLO, Track((f"old-{number}",)))])
    async with running(forwarder(outbox, url)) as delivery:
        await until(lambda: sandbox.total == 1)
        erased = await outbox.erase(ANN)
        await push(outbox, ANN, Attributes({"firstName": "Back"}), Track(("new",)))
        await drained(outbox)
        assert erased.waiting == 16
        await until(lambda: delivery.state().in_flight == 0)
    assert [list(body)[-1] for body in sent(sandbox.requests, ANN)] == ["firstName", "firstName", "addTags"]
    contact = sandbox.contacts.get(ANN)
    assert contact is not None
    assert (contact.first_name, [*contact.tags]) == ("Back", ["new"])
    stats = await outbox.stats()
    assert (stats.counters["delivered"], stats.counters["erased"]) == (2, 16)


# --- retries


async def test_every_kind_of_outage_ends_with_everything_delivered(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    outages = [
        Fault(status=500),
        Fault(kind="html", status=502),
        Fault(kind="reset"),
        Fault(kind="reset", applied=True),
        Fault(status=429),
        Fault(status=503, delay=0.05),
    ]
    for number, chosen in zip(range(20), itertools.permutations(outages, 4), strict=False):
        sandbox.faults.script(f"{number}@example.com", *chosen)
        await push(outbox, f"{number}@example.com", HELLO, Track(("a",)), Track((), ("a",)), Track(("b",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert {(contact.first_name, contact.tags) for contact in sandbox.contacts.newest_first()} == {("Hello", ("b",))}
    assert await sums_add_up(outbox)


async def test_an_upstream_that_is_down_loses_nothing(outbox: SqliteOutbox) -> None:
    port = free_port()
    await push(outbox, ANN, HELLO, COUNT, Track(("a",)))
    app = create_sandbox(key=KEY)
    async with running(forwarder(outbox, f"http://127.0.0.1:{port}")) as delivery:
        await until(lambda: delivery.state().last_error == "no connection: connection refused")
        with serving(app, port=port):
            await drained(outbox)
            contact = app.state.sandbox.contacts.get(ANN)
    assert (contact.tags, contact.custom_fields) == (("a",), {"Visits": "1"})


async def test_a_push_is_given_up_only_after_all_its_attempts_and_days(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, *[Fault(status=500)] * 3)
    await push(outbox, ANN, HELLO, Track(("a",)))
    async with running(forwarder(outbox, url, max_attempts=3, max_age=timedelta(0))):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.reason, letter.attempts, letter.body) == (DeadReason.EXHAUSTED, 3, HELLO)


async def test_what_a_stranger_asserts_holds_up_no_customer(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, *[Fault(status=500)] * 3)
    await push(outbox, ANN, HELLO, trust=Trust.ASSERTED)
    await push(outbox, ANN, Attributes({"firstName": "Ann"}), Track(("customer",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.trust, letter.reason, letter.attempts) == (Trust.ASSERTED, DeadReason.EXHAUSTED, 3)
    contact = sandbox.contacts.get(ANN)
    assert contact is not None
    assert (contact.first_name, [*contact.tags]) == ("Ann", ["customer"])


async def test_what_is_asserted_and_holds_up_nobody_is_tried_like_everything_else(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, *[Fault(status=500)] * 6)
    await push(outbox, ANN, HELLO, trust=Trust.ASSERTED)
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert (await outbox.stats()).dead == 0


@pytest.mark.parametrize("status", [403, 402, 418])
async def test_a_refusal_that_one_contact_gets_becomes_each_push_s_own_fault_after_an_hour(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], status: int
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand(ANN, Fault(status=status))
    await push(outbox, ANN, HELLO, Track(("a",)))
    clock = Clock(lag=20_000)
    shared = shared_by_lanes(outbox, url, clock)
    started, died, tried = clock(), list[float](), list[int]()
    async with Client(timeout_seconds=shared.timeout_seconds) as client:
        while len(died) < 2:
            await push(outbox, BOB, HELLO)
            for lease in (await outbox.claim(2, 9, 60)).leases:
                ended = await LaneRun(shared, client, lease, None).run()
                assert (ended.failures > 0) == (lease.pushes[0].address == ANN), "its lane stays backed off"
            if (await outbox.stats()).dead > len(died):
                died.append(clock() - started)
                tried.append(len(sent(sandbox.requests, ANN)))
            clock.lag -= 240
    assert shared.account.gate.halted is None
    assert died[0] >= 3_600
    assert died[1] - died[0] >= 3_600
    assert min(tried[0], tried[1] - tried[0]) >= 6
    letters = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert [letter.reason for letter in letters] == [DeadReason.REJECTED] * 2
    assert await sums_add_up(outbox)


async def test_a_refusal_of_what_a_stranger_asserts_holds_up_no_customer(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, *[Fault(status=403)] * 1_000)
    await push(outbox, ANN, HELLO, trust=Trust.ASSERTED)
    await push(outbox, ANN, Attributes({"firstName": "Ann"}))
    async with running(forwarder(outbox, url)):
        async with asyncio.timeout(120):
            while not await outbox.dead_letters(DeadFilter(), 0, 1):
                await push(outbox, BOB, HELLO)
                await asyncio.sleep(0.01)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.trust, letter.reason, letter.attempts) == (Trust.ASSERTED, DeadReason.EXHAUSTED, 3)


# --- increments


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=500, applied=True),
        Fault(kind="reset"),
        Fault(kind="reset", applied=True),
        Fault(kind="html", status=200),
        Fault(kind="empty", status=200, applied=True),
    ],
)
async def test_an_increment_whose_outcome_is_unknown_is_never_sent_again(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], fault: Fault
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, fault)
    await push(outbox, ANN, COUNT, Track(("a",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [letter.reason for letter in await outbox.dead_letters(DeadFilter(), 0, 9)] == [DeadReason.AMBIGUOUS]
    assert sum("customFields" in body for body in sent(sandbox.requests, ANN)) == 1
    assert await sums_add_up(outbox)


async def test_an_increment_that_was_throttled_is_sent_again(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=429), Fault(status=429))
    await push(outbox, ANN, COUNT, COUNT)
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    contact = sandbox.contacts.get(ANN)
    assert contact is not None
    assert contact.custom_fields == {"Visits": "2"}
    assert (await outbox.stats()).dead == 0


# --- refusals, and merged requests


async def test_a_push_that_sendx_rejects_is_a_dead_letter_and_the_lane_goes_on(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=422))
    await push(outbox, ANN, HELLO, Track(("a",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.reason, letter.body) == (DeadReason.REJECTED, HELLO)
    assert letter.detail == "422 Unprocessable Entity: Request body is not in proper format"
    contact = sandbox.contacts.get(ANN)
    assert contact is not None
    assert contact.tags == ("a",)


async def test_a_merged_request_that_is_rejected_is_sent_one_by_one(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=422), Fault(kind="ok"), Fault(status=422))
    await push(outbox, ANN, *(Attributes(tags=(tag,)) for tag in "abc"))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [body["tags"] for body in sent(sandbox.requests, ANN)] == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert [letter.body for letter in await outbox.dead_letters(DeadFilter(), 0, 9)] == [Attributes(tags=("b",))]
    assert await sums_add_up(outbox)


async def test_a_track_for_an_unknown_verified_contact_identifies_it_first(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, Track(("a",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [record.status for record in sandbox.requests] == [404, 200, 200]
    assert sent(sandbox.requests, ANN)[1] == {"email": ANN}
    assert [contact.tags for contact in sandbox.contacts.newest_first()] == [("a",)]


async def test_a_track_for_an_unknown_asserted_contact_is_a_dead_letter(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, Track(("a",)), trust=Trust.ASSERTED)
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [letter.reason for letter in await outbox.dead_letters(DeadFilter(), 0, 9)] == [DeadReason.MISSING]
    assert sandbox.contacts.newest_first() == []


# --- settling


async def test_a_run_returns_what_it_settled(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=422), Fault(status=500))
    await push(outbox, ANN, HELLO, Track(("a",)), Track((), ("a",)))
    (lease,) = (await outbox.claim(1, 9, 60)).leases
    shared = shared_by_lanes(outbox, url)
    async with Client(timeout_seconds=shared.timeout_seconds) as client:
        settlement = await LaneRun(shared, client, lease, None).run()
    assert [result.fate for result in settlement.results] == [Fate.DEAD, Fate.KEPT, Fate.KEPT]
    assert [result.attempted for result in settlement.results] == [True, True, False]
    assert (settlement.lease, settlement.failures) == (lease, 1)
    assert not await outbox.settle(settlement), "it is settled already"


async def test_cancelling_it_settles_what_is_under_way(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(kind="hang"))
    await push(outbox, ANN, HELLO)
    task = asyncio.create_task(forwarder(outbox, url).run())
    await until(lambda: sandbox.total == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len((await outbox.claim(9, 9, 60)).leases) == 1


async def test_a_store_that_fails_now_and_then_doubles_no_increment(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    calls = itertools.count()
    unreliable: Any = Unreliable(outbox, lambda _: next(calls) % 3 > 0)
    for number in range(10):
        await push(outbox, f"{number}@example.com", HELLO, COUNT, COUNT)
    async with running(forwarder(unreliable, url)) as delivery:
        await drained(outbox)
        assert delivery.state().store_failures > 0
    assert {contact.custom_fields["Visits"] for contact in sandbox.contacts.newest_first()} == {"2"}
    assert await sums_add_up(outbox)


async def test_a_lease_that_is_nearly_over_is_not_used(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO)
    clock = Clock(lag=-55)  # this process believes that of the 60 seconds 5 are left, and a request may take 10
    async with running(forwarder(outbox, url, clock=clock)):
        await asyncio.gather(*(push(outbox, BOB, HELLO) for _ in range(20)))
        assert sandbox.total == 0
        clock.lag = 0
        await drained(outbox)


# --- identifies that SendX has already


async def delivered_one_by_one(outbox: SqliteOutbox, *bodies: Attributes | Track) -> None:
    """Pushes each body after the one before has been settled, so that none are merged."""
    for body in bodies:
        await push(outbox, ANN, body)
        await drained(outbox)


@pytest.mark.parametrize(
    ("bodies", "requests"),
    [
        ((HELLO, HELLO, HELLO), 1),
        ((HELLO, Track(("a",)), HELLO), 2),
        ((HELLO, Track((), ("a",)), HELLO), 3),
        ((HELLO, Attributes({"firstName": "Other"}), HELLO), 3),
        ((COUNT, COUNT), 2),
        ((HELLO, COUNT, HELLO), 3),
        ((HELLO, Attributes({"firstName": "Hello"}, tags=("a",)), Attributes({"firstName": "Hello"}, tags=("a",))), 2),
    ],
)
async def test_an_identify_is_not_sent_again_while_nothing_could_have_changed_what_it_set(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], bodies: Sequence[Attributes | Track], requests: int
) -> None:
    sandbox, url = sendx
    async with running(forwarder(outbox, url, identify_refresh=timedelta(hours=1))):
        await delivered_one_by_one(outbox, *bodies)
    assert len(sent(sandbox.requests, ANN)) == requests
    counted = (await outbox.stats()).counters
    assert (counted["delivered"], counted.get("unchanged", 0)) == (len(bodies), len(bodies) - requests)


async def test_a_contact_that_sendx_did_not_know_gets_its_fields_again(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    async with running(forwarder(outbox, url, identify_refresh=timedelta(hours=1))):
        await delivered_one_by_one(outbox, HELLO)
        sandbox.faults.script(ANN, Fault(status=404))
        await delivered_one_by_one(outbox, Track(("a",)), HELLO)
    assert [record.status for record in sandbox.requests] == [200, 404, 200, 200, 200]
    assert "firstName" in sent(sandbox.requests, ANN)[-1]


async def test_an_identify_is_sent_again_when_the_refresh_has_passed(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    clock = Clock(lag=7_200)
    async with running(forwarder(outbox, url, identify_refresh=timedelta(hours=1), clock=clock)):
        await delivered_one_by_one(outbox, HELLO)
        clock.lag = 0
        await delivered_one_by_one(outbox, HELLO)
    assert len(sent(sandbox.requests, ANN)) == 2


async def test_an_identify_of_another_spelling_or_contact_is_another(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    async with running(forwarder(outbox, url, identify_refresh=timedelta(hours=1))):
        for address in (ANN, ANN.upper(), BOB):
            await push(outbox, address, HELLO)
            await drained(outbox)
    assert len(sandbox.requests) == 3
