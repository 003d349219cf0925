"""The forwarder on real parts: the SQLite outbox, real sockets, and a SendX that misbehaves by script."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.config.types import Dialect, Secret
from proxy.core.calls import Attributes, Track
from proxy.core.decision import Decision, Enqueue, Facts
from proxy.core.emails import lane_key
from proxy.core.gate import Closure, Halt
from proxy.core.retry import Verdict
from proxy.core.visitors import Trust
from proxy.delivery.account import DeliveryState
from proxy.delivery.forwarder import Delivery
from proxy.delivery.sendx import Upstream
from proxy.errors import StoreUnavailable
from proxy.sandbox.api import Fault, Recorded, Sandbox, create_sandbox
from proxy.store.outbox import Outbox
from proxy.store.records import Claim, DeadFilter, DeadReason, Settlement
from proxy.store.sqlite.outbox import SqliteOutbox, open_outbox
from tests.support.live import free_port, serving

KEY = "a-key-that-nobody-may-see"
ANN, BOB = "ann@example.com", "bob@example.com"
HELLO = Attributes({"firstName": "Hello"})
COUNT = Attributes(custom_fields={"Visits": "++1"})
numbers = itertools.count()


class AtOnce(random.Random):
    """Makes every back-off end at once; what Retry-After asks for stays."""

    def random(self) -> float:
        return 0.0


class Jitter(random.Random):
    """Back-offs as they are, the same in every run."""


class Clock:
    """Lags behind the real one by `lag` seconds, so that a test can let time pass without waiting."""

    def __init__(self, lag: float = 0.0) -> None:
        self.lag = lag

    def __call__(self) -> float:
        return time.time() - self.lag


@pytest.fixture
def sendx() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=KEY)
    with serving(app) as url:
        yield app.state.sandbox, url


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[SqliteOutbox]:
    opened = await open_outbox(
        tmp_path / "scq.db",
        create=True,
        hold_age=timedelta(days=30),
        dead_age=timedelta(days=90),
        min_free_bytes=0,
    )
    yield opened
    await opened.close()


async def push(outbox: Outbox, address: str, *bodies: Attributes | Track, trust: Trust = Trust.VERIFIED) -> None:
    """Put pushes into the lane of this address."""
    ops = tuple(Enqueue(f"push-{next(numbers):012}", lane_key(address), address, trust, body) for body in bodies)

    def decide(_: Facts) -> Decision[None]:
        return Decision(ops, None)

    await outbox.append(decide)


def forwarder(outbox: Outbox, url: str, **options: Any) -> Delivery:
    settings: dict[str, Any] = {
        "concurrency": 4,
        "timeout_seconds": 10.0,
        "max_attempts": 20,
        "max_age": timedelta(days=3),
        "rng": AtOnce(),
    }
    upstream = Upstream(Dialect.REST, f"{url}/api/v1/rest", Secret(KEY))
    return Delivery(outbox, upstream, **(settings | options))


@asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[Delivery]:
    task = asyncio.create_task(delivery.run(), name="delivery-under-test")
    try:
        yield delivery
    finally:
        await delivery.stop(5)
        await task


async def until(check: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)


async def drained(outbox: Outbox, seconds: float = 10) -> None:
    """Until nothing waits any more."""
    async with asyncio.timeout(seconds):
        while True:
            if not (await outbox.stats()).waiting:
                return
            await asyncio.sleep(0.01)


async def sums_add_up(outbox: Outbox) -> bool:
    stats = await outbox.stats()
    counted = stats.counters
    return counted["accepted"] == counted.get("delivered", 0) + stats.waiting + stats.dead


def sent(records: Sequence[Recorded], address: str) -> list[Any]:
    return [record.body for record in records if record.contact == address]


class Unreliable:
    """The real outbox behind a disk that fails now and then: every call first asks `fails`."""

    def __init__(self, outbox: SqliteOutbox, fails: Callable[[str], bool]) -> None:
        self._outbox = outbox
        self._fails = fails

    async def claim(self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None) -> Claim:
        self._check("claim")
        return await self._outbox.claim(lanes, per_lane, lease_seconds, probe=probe)

    async def settle(self, settlement: Settlement) -> bool:
        self._check("settle")
        return await self._outbox.settle(settlement)

    def _check(self, call: str) -> None:
        if self._fails(call):
            raise StoreUnavailable("The disk is full.", retry_after=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)


# --- the main job


async def test_what_waits_is_delivered_in_order(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO, Track(("a",)), Track((), ("a",)), Track(("b",)), COUNT)
    async with running(forwarder(outbox, url)) as delivery:
        await drained(outbox)
        await until(lambda: delivery.state().delivered == 5)
    contact = sandbox.contact(ANN)
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


async def test_pushes_that_arrive_later_are_delivered_without_polling_the_caller(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    async with running(forwarder(outbox, url)):
        for address in (ANN, BOB):
            await push(outbox, address, HELLO)
            await drained(outbox)
    assert {contact.email for contact in sandbox.contacts} == {ANN, BOB}


async def test_a_retry_does_not_overtake_and_delays_no_other_lane(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.stand(ANN, Fault(status=500))
    await push(outbox, ANN, HELLO, Track(("a",)))
    others = [f"{number}@example.com" for number in range(50)]
    for address in others:
        await push(outbox, address, HELLO, Track(("a",)))
    async with running(forwarder(outbox, url, concurrency=2)):
        await until(lambda: sum(contact.tags == ("a",) for contact in sandbox.contacts) == len(others))
        assert all("firstName" in body for body in sent(sandbox.requests, ANN))
        sandbox.heal()
        await drained(outbox)
    assert "addTags" in sent(sandbox.requests, ANN)[-1]
    assert await sums_add_up(outbox)


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
        sandbox.script(f"{number}@example.com", *chosen)
        await push(outbox, f"{number}@example.com", HELLO, Track(("a",)), Track((), ("a",)), Track(("b",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox, 30)
    assert {(contact.first_name, contact.tags) for contact in sandbox.contacts} == {("Hello", ("b",))}
    assert await sums_add_up(outbox)


async def test_an_upstream_that_is_down_loses_nothing(outbox: SqliteOutbox) -> None:
    port = free_port()
    await push(outbox, ANN, HELLO, COUNT, Track(("a",)))
    app = create_sandbox(key=KEY)
    async with running(forwarder(outbox, f"http://127.0.0.1:{port}")) as delivery:
        await until(lambda: delivery.state().last_error == "no connection")
        with serving(app, port=port):
            await drained(outbox)
            contact = app.state.sandbox.contact(ANN)
    assert (contact.tags, contact.custom_fields) == (("a",), {"Visits": "1"})


# --- increments


@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(status=500, applied=True), Fault(kind="reset"), Fault(kind="reset", applied=True)],
)
async def test_an_increment_whose_outcome_is_unknown_is_never_sent_again(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], fault: Fault
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, fault)
    await push(outbox, ANN, COUNT, Track(("a",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [letter.reason for letter in await outbox.dead_letters(DeadFilter(), 0, 9)] == [DeadReason.AMBIGUOUS]
    assert sum("customFields" in body for body in sent(sandbox.requests, ANN)) == 1
    assert await sums_add_up(outbox)


async def test_an_increment_that_was_throttled_is_sent_again(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(status=429), Fault(status=429))
    await push(outbox, ANN, COUNT, COUNT)
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    contact = sandbox.contact(ANN)
    assert contact is not None
    assert contact.custom_fields == {"Visits": "2"}
    assert (await outbox.stats()).dead == 0


# --- refusals


async def test_a_push_that_sendx_rejects_is_a_dead_letter_and_the_lane_goes_on(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(status=422))
    await push(outbox, ANN, HELLO, Track(("a",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.reason, letter.body) == (DeadReason.REJECTED, HELLO)
    assert letter.detail == "422 Unprocessable Entity: Request body is not in proper format"
    contact = sandbox.contact(ANN)
    assert contact is not None
    assert contact.tags == ("a",)


async def test_a_merged_request_that_is_rejected_is_sent_one_by_one(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(status=422), Fault(kind="ok"), Fault(status=422))
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
    assert [contact.tags for contact in sandbox.contacts] == [("a",)]


async def test_a_track_for_an_unknown_asserted_contact_is_a_dead_letter(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, Track(("a",)), trust=Trust.ASSERTED)
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [letter.reason for letter in await outbox.dead_letters(DeadFilter(), 0, 9)] == [DeadReason.MISSING]
    assert sandbox.contacts == []


async def test_what_a_stranger_asserts_holds_up_no_customer(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, *[Fault(status=500)] * 3)
    await push(outbox, ANN, HELLO, trust=Trust.ASSERTED)
    await push(outbox, ANN, Attributes({"firstName": "Ann"}), Track(("customer",)))
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.trust, letter.reason, letter.attempts) == (Trust.ASSERTED, DeadReason.EXHAUSTED, 3)
    contact = sandbox.contact(ANN)
    assert contact is not None
    assert (contact.first_name, [*contact.tags]) == ("Ann", ["customer"])


async def test_what_is_asserted_and_holds_up_nobody_is_tried_like_everything_else(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, *[Fault(status=500)] * 6)
    await push(outbox, ANN, HELLO, trust=Trust.ASSERTED)
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert (await outbox.stats()).dead == 0


async def test_a_push_is_given_up_only_after_all_its_attempts_and_days(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, *[Fault(status=500)] * 3)
    await push(outbox, ANN, HELLO, Track(("a",)))
    async with running(forwarder(outbox, url, max_attempts=3, max_age=timedelta(0))):
        await drained(outbox)
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.reason, letter.attempts, letter.body) == (DeadReason.EXHAUSTED, 3, HELLO)


async def test_a_403_that_one_contact_gets_becomes_its_own_fault(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.stand(ANN, Fault(status=403))
    await push(outbox, ANN, HELLO)
    async with running(forwarder(outbox, url)) as delivery:
        async with asyncio.timeout(10):
            while not await outbox.dead_letters(DeadFilter(), 0, 1):
                await push(outbox, BOB, HELLO)
        assert delivery.state().halted is None
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert (letter.reason, letter.attempts) == (DeadReason.REJECTED, 1)


# --- the account


async def test_a_429_closes_the_gate_for_everybody_and_one_probe_opens_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script("*", Fault(status=429, retry_after=50))
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
    assert {contact.email for contact in sandbox.contacts} == {ANN, BOB}


@pytest.mark.parametrize(
    ("fault", "addresses", "reason"),
    [
        (Fault(status=401), 1, Halt.KEY),
        (Fault(status=403), 2, Halt.FORBIDDEN),
        (Fault(status=405), 5, Halt.WRONG_URL),
        (Fault(status=404), 5, Halt.WRONG_URL),
    ],
)
async def test_a_halt_spends_nothing_and_ends_with_a_probe(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], fault: Fault, addresses: int, reason: Halt
) -> None:
    sandbox, url = sendx
    sandbox.stand("*", fault)
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
        sandbox.heal()
        clock.lag -= 61
        await drained(outbox)
        assert delivery.state().halted is None
    stats = await outbox.stats()
    assert (stats.dead, stats.counters["delivered"]) == (0, 3 * addresses)
    assert {tuple(contact.custom_fields.items()) for contact in sandbox.contacts} == {(("Visits", "1"),)}


async def test_a_forwarder_that_starts_finds_the_gate_as_the_last_one_left_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script("*", Fault(status=429, retry_after=50))
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


async def test_what_one_forwarder_learns_of_the_account_holds_for_the_others_too(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.stand("*", Fault(status=401))
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
        sandbox.heal()
        clock.lag -= 61
        await drained(outbox)
        await until(lambda: one.state().gate == two.state().gate == "open")


async def test_a_probe_that_is_not_sent_is_free_for_the_next_forwarder(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script("*", Fault(status=401), Fault("hang"))
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


async def test_requests_keep_to_the_rate_that_is_set(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    for number in range(11):
        await push(outbox, f"{number}@example.com", HELLO)
    started = time.time()
    async with running(forwarder(outbox, url, rate=20.0)):
        await drained(outbox)
    times = sorted(record.time.timestamp() for record in sandbox.requests)
    assert len(times) == 11
    for number, at in enumerate(times):
        assert at >= started + number / 20 - 0.01, "a request came before its turn"


async def test_a_slow_rate_keeps_the_order_of_a_lane_and_a_stop_does_not_wait_for_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO, COUNT, Track(("a",)), HELLO)
    delivery = forwarder(outbox, url, rate=0.1)
    task = asyncio.create_task(delivery.run(), name="delivery-under-test")
    await until(lambda: delivery.state().delivered == 1)
    await delivery.stop(5)
    await task
    assert (await outbox.stats()).dead == 0, "an increment that waits for its turn has not been started"
    async with running(forwarder(outbox, url)):
        await drained(outbox)
    assert [record.path.rpartition("/")[2] for record in sandbox.requests] == [
        "identify",
        "identify",
        "track",
        "identify",
    ]
    contact = sandbox.contact(ANN)
    assert contact is not None
    assert contact.custom_fields == {"Visits": "1"}


async def test_a_sendx_that_is_down_is_probed_and_loses_few_increments(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.stand("*", Fault(status=503))
    for number in range(60):
        await push(outbox, f"{number}@example.com", COUNT, HELLO)
    async with running(forwarder(outbox, url, rng=Jitter(7))) as delivery:
        await until(lambda: delivery.state().gate != "open" and delivery.state().requests[Verdict.UNAVAILABLE] > 7, 60)
        sandbox.heal()
        risked = sum("customFields" in record.body for record in sandbox.requests if record.status == 503)
        assert risked <= 5 + 3, "five lanes show it, and three more may have been under way"
        await drained(outbox, 60)
    assert (await outbox.stats()).counters["dead:ambiguous"] == risked
    assert len(sandbox.contacts) == 60


async def test_contacts_of_whom_sendx_always_fails_do_not_hold_up_the_others(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    for number in range(8):
        sandbox.stand(f"bad-{number}@example.com", Fault(status=500))
        await push(outbox, f"bad-{number}@example.com", HELLO, HELLO)
    async with running(forwarder(outbox, url, rng=Jitter(7))) as delivery:
        await until(lambda: delivery.state().gate != "open")
        for number in range(30):
            await push(outbox, f"good-{number}@example.com", HELLO)
        await until(lambda: len(sandbox.contacts) == 30, 60)
        sandbox.heal()
        await drained(outbox, 60)


async def test_a_key_that_is_mended_while_the_halt_is_being_stored_is_probed_at_once(outbox: SqliteOutbox) -> None:
    url = "http://127.0.0.1:9"
    delivery = forwarder(outbox, url)
    account = delivery._account
    account.gate = account.gate.moved(Closure(time.time() + 60, halted=Halt.KEY))
    storing = asyncio.create_task(delivery._share_gate())
    await asyncio.sleep(0)  # it is on its way
    delivery.use(Upstream(Dialect.REST, f"{url}/api/v1/rest", Secret(KEY)))
    await asyncio.gather(storing, delivery._share_gate())
    stored = (await outbox.claim(0, 1, 1.0)).closure
    assert stored == account.gate.closure
    assert stored is not None
    assert stored.until <= time.time()


async def test_while_halted_an_increment_is_not_risked_for_a_probe(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(status=401), Fault(kind="reset"))
    clock = Clock(lag=130)
    await push(outbox, ANN, COUNT)
    async with running(forwarder(outbox, url, clock=clock)) as delivery:
        await until(lambda: delivery.state().halted is Halt.KEY and sandbox.total == 1)
        clock.lag -= 61
        await until(lambda: sandbox.total == 2 and not delivery.state().in_flight)
        clock.lag -= 61
        await drained(outbox)
    assert [body.get("customFields") for body in sent(sandbox.requests, ANN)] == [
        {"Visits": "++1"},
        None,
        None,
        {"Visits": "++1"},
    ]
    assert (await outbox.stats()).dead == 0


async def test_other_4xx_never_halt(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    for status in (400, 409, 422):
        for number in range(6):
            sandbox.stand(f"{number}@s{status}.example.com", Fault(status=status))
            await push(outbox, f"{number}@s{status}.example.com", HELLO)
    async with running(forwarder(outbox, url)) as delivery:
        await drained(outbox)
        assert delivery.state().gate == "open"
    assert (await outbox.stats()).dead == 18


# --- stopping, crashing, storing


async def test_a_stop_lets_the_request_on_the_wire_finish_and_settles_it(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(kind="ok", delay=0.3))
    await push(outbox, ANN, COUNT, Track(("a",)))
    async with running(forwarder(outbox, url)) as delivery:
        await until(lambda: sandbox.total == 1)
    stats = await outbox.stats()
    assert (stats.counters["delivered"], stats.waiting, stats.dead) == (1, 1, 0)
    assert not delivery.state().running


async def test_an_erasure_stops_what_is_sent_for_the_person_and_nothing_overtakes_what_comes_next(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault("ok", delay=0.3))
    await push(outbox, ANN, *[body for number in range(8) for body in (HELLO, Track((f"old-{number}",)))])
    async with running(forwarder(outbox, url)) as delivery:
        await until(lambda: sandbox.total == 1)
        erased = await outbox.erase(ANN)
        await push(outbox, ANN, Attributes({"firstName": "Back"}), Track(("new",)))
        await drained(outbox)
        assert erased.waiting == 16
        await until(lambda: delivery.state().in_flight == 0)
    assert [list(body)[-1] for body in sent(sandbox.requests, ANN)] == ["firstName", "firstName", "addTags"]
    contact = sandbox.contact(ANN)
    assert contact is not None
    assert (contact.first_name, [*contact.tags]) == ("Back", ["new"])
    stats = await outbox.stats()
    assert (stats.counters["delivered"], stats.counters["erased"]) == (2, 16)


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


async def test_an_increment_that_waits_for_its_turn_is_not_ambiguous_after_a_crash(
    tmp_path: Path, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    ages: dict[str, Any] = {"hold_age": timedelta(days=30), "dead_age": timedelta(days=90), "min_free_bytes": 0}
    outbox = await open_outbox(tmp_path / "rated.db", create=True, **ages)
    for number in range(20):
        await push(outbox, f"{number}@example.com", COUNT)
    task = asyncio.create_task(forwarder(outbox, url, rate=2.0).run(), name="delivery-under-test")
    await until(lambda: sandbox.total >= 1)
    claimed = await outbox._thread.submit(
        lambda connection: connection.execute("SELECT count(*) FROM pushes WHERE started").fetchone()[0]
    )
    assert claimed <= 1, "what has to wait for its turn is not claimed"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await outbox.close()


async def test_a_stop_past_its_deadline_gives_the_lane_back_at_once(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(kind="hang"))
    sandbox.script(BOB, Fault(kind="hang"))
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
    assert [contact.tags for contact in sandbox.contacts] == [("a",)]


async def test_cancelling_it_settles_what_is_under_way(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(kind="hang"))
    await push(outbox, ANN, HELLO)
    task = asyncio.create_task(forwarder(outbox, url).run())
    await until(lambda: sandbox.total == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len((await outbox.claim(9, 9, 60)).leases) == 1


async def test_a_forwarder_that_was_stopped_stays_stopped(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    await push(outbox, ANN, HELLO)
    delivery = forwarder(outbox, url)
    await delivery.stop(5)
    await delivery.run()
    assert (sandbox.total, (await outbox.stats()).waiting) == (0, 1)


async def test_a_fault_in_the_program_ends_it_loudly_and_holds_nobody_up(outbox: SqliteOutbox) -> None:
    await push(outbox, ANN, HELLO)
    delivery = forwarder(outbox, "http://127.0.0.1:not-a-port", concurrency=1)
    with pytest.raises(ExceptionGroup):
        await delivery.run()
    assert not delivery.state().running
    assert [lease.failures for lease in (await outbox.claim(9, 9, 60)).leases] == [1]


async def test_a_store_that_fails_now_and_then_doubles_no_increment(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    calls = itertools.count()
    unreliable: Any = Unreliable(outbox, lambda call: next(calls) % 3 > 0)
    for number in range(10):
        await push(outbox, f"{number}@example.com", HELLO, COUNT, COUNT)
    async with running(forwarder(unreliable, url)) as delivery:
        await drained(outbox)
        assert delivery.state().store_failures > 0
    assert {contact.custom_fields["Visits"] for contact in sandbox.contacts} == {"2"}
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


# --- what others see


async def test_the_log_names_no_person_and_no_key(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox, url = sendx
    clock = Clock(lag=130)
    told = Fault(status=422, body=f'{{"message":"{ANN} with {KEY} is no good"}}')
    sandbox.script(ANN, told, Fault(status=429), Fault(status=401), Fault(kind="reset"))
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
    assert any("halted" in record.getMessage() for record in ours)
    assert all(secret not in record.getMessage() for record in ours for secret in (ANN, KEY, "Zoë", "secret tag"))
    (letter,) = await outbox.dead_letters(DeadFilter(), 0, 9)
    assert letter.detail == "422 Unprocessable Entity: *** with *** is no good"


async def test_the_state_tells_what_was_done(outbox: SqliteOutbox, sendx: tuple[Sandbox, str]) -> None:
    sandbox, url = sendx
    sandbox.script(ANN, Fault(status=500), Fault(status=422))
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


# --- identifies that SendX has already


async def delivered_one_by_one(outbox: SqliteOutbox, delivery: Delivery, *bodies: Attributes | Track) -> None:
    """Each after the one before has been settled, so that none are merged."""
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
    async with running(forwarder(outbox, url, identify_refresh=timedelta(hours=1))) as delivery:
        await delivered_one_by_one(outbox, delivery, *bodies)
    assert len(sent(sandbox.requests, ANN)) == requests
    counted = (await outbox.stats()).counters
    assert (counted["delivered"], counted.get("unchanged", 0)) == (len(bodies), len(bodies) - requests)


async def test_an_identify_is_sent_again_when_the_refresh_has_passed(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    clock = Clock(lag=7_200)
    delivery = forwarder(outbox, url, identify_refresh=timedelta(hours=1), clock=clock)
    async with running(delivery):
        await delivered_one_by_one(outbox, delivery, HELLO)
        clock.lag = 0
        await delivered_one_by_one(outbox, delivery, HELLO)
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
