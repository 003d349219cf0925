"""The forwarder on real parts, the SQLite outbox, real sockets and a SendX that misbehaves by script: claims, the gate, stopping."""

import asyncio
import logging
import math
import time
from datetime import timedelta
from typing import Any

import pytest

from proxy.config.types import Dialect, Secret
from proxy.core.calls import Attributes, Track
from proxy.core.gate import Closure, Halt
from proxy.core.retry import Verdict
from proxy.core.turns import Share
from proxy.delivery.account import DeliveryState
from proxy.delivery.connection import FRESH_SECONDS
from proxy.delivery.sendx import Upstream
from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from proxy.store.outbox import NO_SHARE
from proxy.store.records import Claim, DeadFilter, DeadReason, Lease, Settlement
from proxy.store.sqlite.outbox import SqliteOutbox
from tests.support.sending import (
    ANN,
    BOB,
    COUNT,
    HELLO,
    KEY,
    Clock,
    Jitter,
    Unreliable,
    drained,
    forwarder,
    push,
    running,
    until,
)
from tests.support.upstream import Cut, Reply, Request, upstream

UNCLEAR = [
    Fault(kind="html", status=200, body="<html><title>Maintenance</title>We are back soon</html>"),
    Fault(kind="html", status=200, body="<form action='https://wifi.example/login'>Sign in to this network</form>"),
    Fault(status=200, body='{"status":"error"}'),
    Fault(status=204),
    Fault(kind="empty", status=200),
]
_NGINX = "<html><head><title>400 No required SSL certificate was sent</title></head><center>nginx</center></html>"
PAGES = [Fault(kind="html", status=status, body=_NGINX) for status in (400, 404, 413)]


# --- claiming


async def test_pushes_that_arrive_later_are_delivered_without_polling_the_caller(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    async with running(forwarder(outbox, url)):
        for address in (ANN, BOB):
            await push(outbox, address, HELLO)
            await drained(outbox)
    assert {contact.email for contact in sandbox.contacts.newest_first()} == {ANN, BOB}


# --- the gate


async def test_a_429_closes_the_gate_for_everybody_and_one_probe_opens_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script("*", Fault(status=429, retry_after=50))
    clock = Clock(lag=60)
    await push(outbox, ANN, HELLO)
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        await until(lambda: delivery.state().gate == "closed")
        await push(outbox, BOB, HELLO)
        state = delivery.state()
        assert state.until is not None
        assert 45 < state.until - clock() <= 50
        assert (state.limit, sandbox.total) == (2, 1)
        clock.lag = 0
        await drained(outbox)
        assert delivery.state().gate == "open"
    assert {contact.email for contact in sandbox.contacts.newest_first()} == {ANN, BOB}


@pytest.mark.parametrize(
    ("fault", "addresses", "reason"),
    [
        (Fault(status=401), 1, Halt.KEY),
        *((Fault(status=status), 2, Halt.FORBIDDEN) for status in (402, 403, 407, 418)),
        (Fault(status=405), 5, Halt.WRONG_URL),
        (Fault(status=404), 5, Halt.WRONG_URL),
        *((fault, 5, Halt.WRONG_URL) for fault in UNCLEAR),
    ],
)
async def test_a_halt_spends_nothing_and_ends_with_a_probe(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], fault: Fault, addresses: int, reason: Halt
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("*", fault)
    clock = Clock(lag=130)
    lanes = [f"{number}@example.com" for number in range(addresses)]
    for address in lanes:
        await push(outbox, address, HELLO, COUNT, Track(("a",)))
    # With these limits any attempt that counts would be the last. A wrong URL shows only after five.
    strict = {} if reason is Halt.WRONG_URL else {"max_attempts": 1, "max_age": timedelta(days=-1)}
    async with running(forwarder(outbox, url, clock=clock, concurrency=8, **strict)) as delivery:
        await until(lambda: delivery.state().halted is reason and not delivery.state().in_flight)
        before = sandbox.total
        clock.lag -= 61
        await until(lambda: sandbox.total == before + 1 and not delivery.state().in_flight)
        sandbox.faults.clear()
        clock.lag -= 61
        await drained(outbox)
        assert delivery.state().halted is None
    stats = await outbox.stats()
    assert (stats.dead, stats.counters["delivered"]) == (0, 3 * addresses)
    assert {tuple(contact.custom_fields.items()) for contact in sandbox.contacts.newest_first()} == {(("Visits", "1"),)}


async def test_a_key_that_is_mended_while_the_halt_is_being_stored_is_probed_at_once(outbox: SqliteOutbox) -> None:
    url = "http://127.0.0.1:9"
    delivery = forwarder(outbox, url)
    account = delivery._account
    account.gate = account.gate.moved(Closure(time.time() + 60, halted=Halt.KEY))
    storing = asyncio.create_task(delivery._shared.share_gate())
    await asyncio.sleep(0)  # it is on its way
    delivery.use(Upstream(Dialect.REST, f"{url}/api/v1/rest", Secret(KEY)))
    await asyncio.gather(storing, delivery._shared.share_gate())
    stored = (await outbox.claim(0, 1, 1.0)).closure
    assert stored == account.gate.closure
    assert stored is not None
    assert stored.until <= time.time()


async def test_while_halted_an_increment_is_not_risked_for_a_probe(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=401))
    sandbox.faults.script("*", Fault(kind="reset"))
    clock = Clock(lag=130)
    await push(outbox, ANN, COUNT)
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        await until(lambda: delivery.state().halted is Halt.KEY and sandbox.total == 1)
        clock.lag -= 61
        await until(lambda: sandbox.total == 2 and not delivery.state().in_flight)
        clock.lag -= 61
        await drained(outbox)
    assert [(one.method, one.path, one.status) for one in sandbox.requests] == [
        ("POST", "/api/v1/rest/contact/identify", 401),
        ("GET", "/api/v1/rest/tag", None),
        ("GET", "/api/v1/rest/tag", 200),
        ("POST", "/api/v1/rest/contact/identify", 200),
    ]
    assert (await outbox.stats()).dead == 0


async def test_what_changes_nothing_being_answered_opens_no_gate(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    lanes = [f"{number}@example.com" for number in range(20)]
    for address in lanes:
        sandbox.faults.stand(address, Fault(status=503))  # SendX reads, and cannot write
        await push(outbox, address, COUNT)
    await outbox.move_gate(None, Closure(until=0.0, tries=1, down=True))
    clock = Clock(lag=100)
    async with running(forwarder(outbox, url, clock=clock, rng=Jitter(7))) as delivery:
        await until(lambda: delivery.state().requests.get(Verdict.UNAVAILABLE) == 1)
        await until(lambda: delivery.state().gate == "closed" and not delivery.state().in_flight)
        assert [record.method for record in sandbox.requests] == ["GET", "POST"]
        sandbox.faults.clear()
        clock.lag = 0
        await drained(outbox)
    assert (await outbox.stats()).counters["dead:ambiguous"] == 1


@pytest.mark.parametrize("fault", UNCLEAR)
async def test_a_success_that_sendx_did_not_give_delivers_nothing(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], fault: Fault
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("*", fault)
    for number in range(35):
        await push(outbox, f"{number}@example.com", HELLO, Track(("a",)), Track((), ("a",)))
    clock = Clock(lag=130)
    async with running(forwarder(outbox, url, clock=clock, concurrency=8)) as delivery:
        await until(lambda: delivery.state().halted is Halt.WRONG_URL and not delivery.state().in_flight)
        assert "SCQ_DELIVERED=json does not count as delivered" in str(delivery.state().last_error)
        assert (await outbox.stats()).waiting == 105
        sandbox.faults.clear()
        clock.lag -= 61
        await drained(outbox)
    assert {contact.first_name for contact in sandbox.contacts.newest_first()} == {"Hello"}
    assert (await outbox.stats()).counters["delivered"] == 105


async def test_an_outage_that_turns_into_a_maintenance_page_loses_few_increments(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("*", Fault(kind="html", status=200))
    for number in range(20):
        await push(outbox, f"{number}@example.com", COUNT)
    await outbox.move_gate(None, Closure(until=0.0, tries=1, down=True))
    clock = Clock(lag=130)
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        await until(lambda: delivery.state().halted is Halt.WRONG_URL and not delivery.state().in_flight)
        sandbox.faults.clear()
        clock.lag -= 61
        await drained(outbox)
    assert (await outbox.stats()).dead == 0


async def test_one_stray_401_among_a_hundred_stops_nobody_for_long(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script("50@example.com", Fault(status=401))
    clock = Clock(lag=5)
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        for number in range(100):
            await push(outbox, f"{number}@example.com", HELLO)
        await until(lambda: delivery.state().halted is Halt.KEY)
        assert (delivery.state().until or 0) - clock() <= 1
        clock.lag -= 1
        await drained(outbox)
    assert len(sandbox.contacts.newest_first()) == 100


@pytest.mark.parametrize("status", [408, 421, 423, 425])
async def test_what_is_about_the_moment_makes_no_dead_letter_and_costs_no_increment(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], status: int
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("*", Fault(status=status))
    for number in range(20):
        await push(outbox, f"{number}@example.com", HELLO, COUNT, Track(("a",)))
    async with running(forwarder(outbox, url)) as delivery:
        await until(lambda: delivery.state().requests.get(Verdict.BUSY, 0) > 7)
        sandbox.faults.clear()
        await drained(outbox)
    stats = await outbox.stats()
    assert (stats.counters["delivered"], stats.dead) == (60, 0)


async def test_other_4xx_never_halt(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    for status in (400, 406, 409, 413, 414, 415, 422, 431):
        for number in range(6):
            sandbox.faults.stand(f"{number}@s{status}.example.com", Fault(status=status))
            await push(outbox, f"{number}@s{status}.example.com", HELLO)
    async with running(forwarder(outbox, url)) as delivery:
        await drained(outbox)
        assert delivery.state().gate == "open"
    assert (await outbox.stats()).dead == 48


@pytest.mark.parametrize("fault", PAGES)
async def test_a_gateway_s_page_to_everybody_halts_and_makes_no_dead_letters(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], fault: Fault
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("*", fault)
    clock = Clock(lag=130)
    for number in range(10):
        await push(outbox, f"{number}@example.com", *((Track(("a",)), COUNT) if number % 2 else (COUNT, HELLO)))
    async with running(forwarder(outbox, url, clock=clock, concurrency=10)) as delivery:
        await until(lambda: delivery.state().halted is not None and not delivery.state().in_flight)
        assert "SSL certificate" in (delivery.state().last_error or "")
        sandbox.faults.clear()
        clock.lag = 0
        await drained(outbox)
    stats = await outbox.stats()
    assert (stats.counters["delivered"], stats.dead) == (20, 0)


async def test_a_gateway_s_page_about_one_push_holds_up_its_lane_only(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, PAGES[0], PAGES[0])
    await push(outbox, ANN, HELLO)
    await push(outbox, BOB, HELLO)
    async with running(forwarder(outbox, url)) as delivery:
        await drained(outbox)
        assert delivery.state().gate == "open"
    stats = await outbox.stats()
    assert (stats.counters["delivered"], stats.dead) == (2, 0)


async def test_a_sendx_that_is_down_is_probed_and_loses_few_increments(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("*", Fault(status=503))
    for number in range(60):
        await push(outbox, f"{number}@example.com", COUNT, HELLO)
    async with running(forwarder(outbox, url, rng=Jitter(7))) as delivery:
        await until(lambda: delivery.state().gate != "open" and delivery.state().requests[Verdict.UNAVAILABLE] > 7)
        sandbox.faults.clear()
        risked = sum("customFields" in record.raw for record in sandbox.requests if record.status == 503)
        assert risked <= 5 + 3, "five lanes show it, and three more may have been under way"
        await drained(outbox)
    assert (await outbox.stats()).counters["dead:ambiguous"] == risked
    assert len(sandbox.contacts.newest_first()) == 60


async def test_contacts_of_whom_sendx_always_fails_do_not_hold_up_the_others(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    for number in range(8):
        sandbox.faults.stand(f"bad-{number}@example.com", Fault(status=500))
        await push(outbox, f"bad-{number}@example.com", HELLO, HELLO)
    async with running(forwarder(outbox, url, rng=Jitter(7))) as delivery:
        await until(lambda: delivery.state().gate != "open")
        for number in range(30):
            await push(outbox, f"good-{number}@example.com", HELLO)
        await until(lambda: len(sandbox.contacts.newest_first()) == 30)
        sandbox.faults.clear()
        await drained(outbox)


# --- the gate and other senders


async def test_a_forwarder_that_starts_finds_the_gate_as_the_last_one_left_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script("*", Fault(status=429, retry_after=50))
    clock = Clock(lag=60)
    await push(outbox, ANN, HELLO)
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        await until(lambda: delivery.state().gate == "closed")
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        await until(lambda: delivery.state().gate == "closed")
        await push(outbox, BOB, HELLO)
        await outbox.stats()  # both have had their turn on the store's thread
        assert sandbox.total == 1
        clock.lag = 0
        await drained(outbox)
        assert delivery.state().gate == "open"


async def test_a_forwarder_that_starts_behind_a_shut_gate_probes_at_once(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = sendx
    monkeypatch.setattr("proxy.delivery.forwarder._IDLE_SECONDS", 3_600.0)
    await push(outbox, ANN, HELLO)
    await outbox.move_gate(None, Closure(until=0.0, tries=1))
    async with running(forwarder(outbox, url)):
        await drained(outbox, 20)


async def test_what_one_forwarder_learns_of_the_account_holds_for_the_others_too(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("*", Fault(status=401))
    clock = Clock(lag=130)
    async with running(forwarder(outbox, url, clock=clock)) as one, running(forwarder(outbox, url, clock=clock)) as two:
        await push(outbox, ANN, HELLO)
        await until(lambda: one.state().halted is two.state().halted is Halt.KEY)
        before = sandbox.total
        for number in range(20):
            await push(outbox, f"{number}@example.com", HELLO)
        clock.lag -= 61
        await until(lambda: sandbox.total > before and not one.state().in_flight + two.state().in_flight)
        assert sandbox.total == before + 1, "one probe for the whole account"
        sandbox.faults.clear()
        clock.lag -= 61
        await drained(outbox)
        await until(lambda: one.state().gate == two.state().gate == "open")


class OpenedByAnother(Unreliable):
    """Another sender opens the gate just before this one claims its probe."""

    async def claim(
        self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None, share: Share = NO_SHARE
    ) -> Claim:
        if probe is not None:
            await self._outbox.move_gate(probe, None)
        return await super().claim(lanes, per_lane, lease_seconds, probe=probe, share=share)


async def test_a_lane_claimed_through_a_gate_that_another_has_opened_is_no_probe(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script("*", Fault(status=429, retry_after=50))
    clock = Clock(lag=60)
    await push(outbox, ANN, HELLO)
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        await until(lambda: delivery.state().gate == "closed")
    clock.lag = 0
    sandbox.faults.stand(ANN, Fault(status=500))
    async with running(forwarder(OpenedByAnother(outbox, lambda _: False), url, clock=clock)) as delivery:
        await until(lambda: delivery.state().requests.get(Verdict.UNAVAILABLE, 0) >= 2)
        assert delivery.state().gate == "open", "one contact that fails shuts nothing"
        sandbox.faults.clear()
        await drained(outbox)


async def test_a_probe_that_is_not_sent_is_free_for_the_next_forwarder(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script("*", Fault(status=401), Fault("hang"))
    clock = Clock(lag=130)
    await push(outbox, ANN, HELLO)
    delivery = forwarder(outbox, url, clock=clock)
    task = asyncio.create_task(delivery.run(), name="delivery-under-test")
    await until(lambda: delivery.state().halted is Halt.KEY)
    clock.lag -= 61
    await until(lambda: sandbox.total == 2)
    await delivery.stop(0)
    await task
    clock.lag -= 61
    async with running(forwarder(outbox, url, clock=clock)):
        await drained(outbox)


class OnceFailing(Unreliable):
    """Its first `move_gate` fails."""

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        self._check("move_gate")
        return await self._outbox.move_gate(before, after)


async def test_a_probe_whose_end_could_not_be_stored_holds_nobody_up(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    _, url = sendx
    for number in range(3):
        await push(outbox, f"{number}@example.com", HELLO)
    await outbox.move_gate(None, Closure(until=0.0, tries=1))
    failures = iter([True])
    calls: list[str] = []

    def fails(call: str) -> bool:
        calls.append(call)
        return call == "move_gate" and next(failures, False)

    unreliable: Any = OnceFailing(outbox, fails)
    async with running(forwarder(unreliable, url)):
        await drained(outbox)
    assert len(calls) < 60, "it asked again and again"


async def test_a_forwarder_that_waits_for_the_probe_of_another_does_not_spin(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    _, url = sendx
    shut = Closure(until=0.0, tries=1)
    await push(outbox, ANN, HELLO)
    await push(outbox, BOB, HELLO)
    await outbox.move_gate(None, shut)
    (probe,) = (await outbox.claim(1, 9, 60, probe=shut)).leases
    calls: list[str] = []

    def fails(call: str) -> bool:
        calls.append(call)
        return False

    watched: Any = Unreliable(outbox, fails)
    async with running(forwarder(watched, url)):
        await until(lambda: len(calls) >= 2)
        assert await outbox.settle(Settlement(probe, ()))
        await outbox.move_gate(shut, None)
        await drained(outbox)
    assert len(calls) < 60, "it asked again and again"


# --- stopping and failing


async def test_a_stop_lets_the_request_on_the_wire_finish_and_settles_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(kind="ok", delay=0.3))
    await push(outbox, ANN, COUNT, Track(("a",)))
    async with running(forwarder(outbox, url)) as delivery:
        await until(lambda: sandbox.total == 1)
    stats = await outbox.stats()
    assert (stats.counters["delivered"], stats.waiting, stats.dead) == (1, 1, 0)
    assert not delivery.state().running


async def test_a_stop_past_its_deadline_gives_the_lane_back_at_once(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(kind="hang"))
    sandbox.faults.script(BOB, Fault(kind="hang"))
    await push(outbox, ANN, HELLO, Track(("a",)))
    await push(outbox, BOB, COUNT)
    delivery = forwarder(outbox, url)
    task = asyncio.create_task(delivery.run())
    await until(lambda: sandbox.total == 2)
    await delivery.stop(0)
    await task
    assert [letter.reason for letter in await outbox.dead_letters(DeadFilter(), 0, 9)] == [DeadReason.AMBIGUOUS]
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [contact.tags for contact in sandbox.contacts.newest_first()] == [("a",)]


async def test_a_forwarder_that_was_stopped_stays_stopped(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO)
    delivery = forwarder(outbox, url)
    await delivery.stop(5)
    await delivery.run()
    assert (sandbox.total, (await outbox.stats()).waiting) == (0, 1)


async def test_half_a_surrogate_pair_in_what_sendx_says_stops_nobody(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=400, body='{"message":"bad \\ud83d"}'))
    sandbox.faults.script(BOB, Fault("ok", delay=0.1))
    await push(outbox, ANN, HELLO)
    await push(outbox, BOB, COUNT, HELLO)
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.address, letter.detail) == (ANN, "400 Bad Request: bad")
    assert "defect" not in caplog.text


async def test_an_increment_does_not_meet_the_end_of_a_connection_that_was_idle(outbox: SqliteOutbox) -> None:
    used: dict[int, float] = {}

    async def close_if_idle(request: Request) -> Reply:
        now, before = time.monotonic(), used.get(request.connection, math.inf)
        used[request.connection] = now
        if now - before > 0.9 * FRESH_SECONDS:
            return Reply(None)  # it had closed just before the request came
        return Reply(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"status":"200"}')

    async with upstream(close_if_idle) as url, running(forwarder(outbox, url, concurrency=1)):
        for address in (ANN, BOB):
            await push(outbox, address, COUNT)
            await drained(outbox)
            await asyncio.sleep(FRESH_SECONDS)  # nothing happens meanwhile that could be waited for
    assert (await outbox.stats()).dead == 0
    assert len(used) == 2


async def test_fourteen_increments_one_at_a_time_reach_a_server_that_closes_behind_each_answer(
    outbox: SqliteOutbox,
) -> None:
    answer, asked = b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"status":"200"}', list[int]()

    async def answer_and_close(request: Request) -> Reply:
        asked.append(request.connection)
        return Reply(answer, Cut(len(answer)))

    async with upstream(answer_and_close) as url, running(forwarder(outbox, url, concurrency=1)):
        for number in range(14):
            await push(outbox, f"{number}@example.com", COUNT)
            await drained(outbox)
    assert (await outbox.stats()).dead == 0
    assert asked == list(range(1, 15))


class Defective(Unreliable):
    """Its calls raise what nobody expects while `defect` names them: of Ann's lane only, where the call is about a lane."""

    def __init__(self, outbox: SqliteOutbox, *defects: str) -> None:
        super().__init__(outbox, lambda _: False)
        self.defects = {*defects}

    def _break(self, call: str, lease: Lease | None = None) -> None:
        if call in self.defects and (lease is None or lease.pushes[0].address == ANN):
            raise TypeError("a value of ann@example.com")

    async def claim(
        self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None, share: Share = NO_SHARE
    ) -> Claim:
        self._break("claim")
        return await super().claim(lanes, per_lane, lease_seconds, probe=probe, share=share)

    async def holds(self, lease: Lease) -> bool:
        self._break("holds", lease)
        return await self._outbox.holds(lease)

    async def settle(self, settlement: Settlement) -> bool:
        self._break("settle", settlement.lease)
        if any(result.detail.startswith("422") for result in settlement.results):
            self._break("settle details", settlement.lease)
        return await self._outbox.settle(settlement)


async def test_a_defect_in_one_lane_cuts_off_nobody_else_and_is_told(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(BOB, Fault("ok", delay=0.2))
    await push(outbox, BOB, COUNT)
    defective: Any = Defective(outbox, "holds")
    async with running(forwarder(defective, url, rng=Jitter(7))) as delivery:
        await until(lambda: sandbox.total == 1)
        await push(outbox, ANN, HELLO)
        await until(lambda: "A fault in this program delays lane" in caplog.text)
        assert "the server's log says where" in str(delivery.state().last_error)
        await until(lambda: delivery.state().delivered == 1)
        defective.defects.clear()
        await drained(outbox)
    assert (await outbox.stats()).dead == 0
    assert "TypeError at test_forwarder.py" in caplog.text
    assert ANN not in caplog.text


async def test_a_defect_in_claiming_ends_the_run_once_what_is_under_way_is_settled(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(BOB, Fault("ok", delay=0.2))
    await push(outbox, BOB, COUNT)
    defective: Any = Defective(outbox)
    delivery = forwarder(defective, url)
    run = asyncio.create_task(delivery.run(), name="delivery-under-test")
    await until(lambda: sandbox.total == 1)
    defective.defects.add("claim")
    with pytest.raises(TypeError):
        await run
    assert not delivery.state().running
    stats = await outbox.stats()
    assert (stats.dead, stats.waiting, stats.counters["delivered"]) == (0, 0, 1)


async def test_what_sendx_said_is_left_out_where_the_store_does_not_take_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=422))
    await push(outbox, ANN, HELLO, Track(("a",)))
    async with running(forwarder(Defective(outbox, "settle details"), url)):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.reason, letter.detail) == (
        DeadReason.REJECTED,
        "SendX's answer could not be stored: the server's log says why",
    )
    assert "without SendX's error texts, which the store refused: TypeError at" in caplog.text


async def test_a_lane_that_cannot_be_settled_at_all_holds_up_nobody_else(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO)
    async with running(forwarder(Defective(outbox, "settle"), url)):
        await until(lambda: "A fault in this program delays lane" in caplog.text)
        await push(outbox, BOB, HELLO)
        await until(lambda: sandbox.contacts.get(BOB))
    assert sandbox.total == 2, "its lease has not ended yet"


# --- what others see


async def test_the_log_names_no_person_and_no_key(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox, url = sendx
    clock = Clock(lag=130)
    told = Fault(status=422, body=f'{{"message":"{ANN} with {KEY} is no good"}}')
    sandbox.faults.script(ANN, told, Fault(status=429), Fault(status=401), Fault(kind="reset"))
    with caplog.at_level(logging.DEBUG):
        await push(outbox, ANN, Attributes({"firstName": "Zoë"}), Track(("secret tag",)))
        async with running(forwarder(outbox, url, clock=clock)) as delivery:
            await until(lambda: delivery.state().halted)
            clock.lag -= 61
            await until(lambda: sandbox.total == 4 and not delivery.state().in_flight)
            clock.lag -= 61
            await drained(outbox)
    ours = [record for record in caplog.records if not record.name.startswith("uvicorn")]
    assert any("dead letter" in record.getMessage() for record in ours)
    assert all(secret not in record.getMessage() for record in ours for secret in (ANN, KEY, "Zoë", "secret tag"))
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert letter.detail == "422 Unprocessable Entity: *** with *** is no good"


async def test_the_state_tells_what_was_done(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.faults.script(ANN, Fault(status=500), Fault(status=422))
    await push(outbox, ANN, HELLO, Track(("a",)))
    delivery = forwarder(outbox, url)
    assert not delivery.state().running
    async with running(delivery):
        await drained(outbox)
        await until(lambda: delivery.state().delivered == 1)
        state = delivery.state()
    assert isinstance(state, DeliveryState)
    assert (state.running, state.gate, state.in_flight, state.delivered, state.dead) == (True, "open", 0, 1, 1)
    assert state.requests == {"unavailable": 1, "rejected": 1, "missing": 1, "delivered": 2}
    assert state.last_error == "404 Not Found: Resource not found"
    assert state.last_error_at is not None
