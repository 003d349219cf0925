"""Strangers beside customers, on the SQLite outbox and real sockets: who is sent first, how much at a time, and how many sign-ups leave."""

import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.turns import Share
from proxy.core.visitors import Trust
from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from proxy.store.sqlite.outbox import SqliteOutbox
from tests.support.sending import ANN, HELLO, drained, forwarder, push, running, until

UNMERGEABLE = [body for number in range(3) for body in (Attributes({"firstName": str(number)}), Track((f"t{number}",)))]


async def stranger(outbox: SqliteOutbox, address: str, *, sign_up: str = "") -> None:
    await push(outbox, address, *UNMERGEABLE, trust=Trust.ASSERTED, sign_up=sign_up)


def contacts(sandbox: Sandbox) -> list[str]:
    """Whom each request was about, in order."""
    return [str(record.contact) for record in sandbox.requests]


async def test_a_stranger_has_two_pushes_and_then_it_is_the_next_ones_turn(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    for name in "ab":
        await stranger(outbox, f"{name}@example.com")
    async with running(forwarder(outbox, url, concurrency=1)):
        await drained(outbox)
    assert [contact[0] for contact in contacts(sandbox)] == [*"aabbaabbaabb"]


@pytest.mark.parametrize("senders", [1, 4, 8])
async def test_customers_go_first_and_leave_strangers_an_eighth(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str], senders: int
) -> None:
    sandbox, url = sendx
    for number in range(12):
        await stranger(outbox, f"stranger-{number}@example.com")
    for number in range(70):
        await push(outbox, f"customer-{number}@example.com", HELLO)
    async with running(forwarder(outbox, url, concurrency=senders)):
        await drained(outbox)
    sent = contacts(sandbox)
    last = max(place for place, contact in enumerate(sent) if contact.startswith("customer"))
    before = sum(contact.startswith("stranger") for contact in sent[:last])
    assert 2 <= before <= 10 + 2 * senders


async def test_strangers_have_all_senders_while_nobody_else_waits_and_a_customer_waits_for_one_short_lease(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    for number in range(40):
        await stranger(outbox, f"stranger-{number}@example.com")
        sandbox.faults.stand(f"stranger-{number}@example.com", Fault("ok", delay=0.02))
    async with running(forwarder(outbox, url, concurrency=4)) as delivery:
        await until(lambda: delivery.state().in_flight == 4 and sandbox.total > 8)
        await push(outbox, ANN, HELLO)
        before = sandbox.total
        await until(lambda: ANN in contacts(sandbox))
        assert contacts(sandbox).index(ANN) - before <= 4 * 2
        await drained(outbox)


async def test_half_of_the_sign_ups_of_an_hour_leave_at_once_and_the_others_wait(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    for number in range(6):
        await push(outbox, f"{number}@example.com", HELLO, trust=Trust.ASSERTED, sign_up=f"198.51.100.{number}")
    async with running(forwarder(outbox, url, share=Share(per_hour=4))):
        await until(lambda: sandbox.total == 2)
        await push(outbox, ANN, HELLO)
        await until(lambda: ANN in contacts(sandbox))
        assert (await outbox.stats()).sign_ups == 4
    assert sandbox.total == 3


async def test_a_sign_up_whose_answer_was_bad_waits_for_another_turn(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    sandbox.faults.stand("a@example.com", Fault(status=500))
    await push(outbox, "a@example.com", HELLO, trust=Trust.ASSERTED, sign_up="198.51.100.1")
    async with running(forwarder(outbox, url, share=Share(per_hour=4))):
        await until(lambda: sandbox.total == 2)
        await push(outbox, ANN, HELLO)
        await until(lambda: ANN in contacts(sandbox))
        assert (await outbox.stats()).sign_ups == 1, "two turns were all that may leave at once"
    assert sandbox.total == 3


async def test_a_newcomer_from_elsewhere_is_next_however_many_wait(
    outbox: SqliteOutbox, sendx: tuple[Sandbox, str]
) -> None:
    sandbox, url = sendx
    for number in range(60):
        client = f"2001:db8:{number % 7}:{number}::/64"
        await push(outbox, f"flood-{number}@example.com", HELLO, trust=Trust.ASSERTED, sign_up=client)
    await push(outbox, ANN, HELLO, trust=Trust.ASSERTED, sign_up="203.0.113.7")
    async with running(forwarder(outbox, url, concurrency=1, share=Share(per_hour=4))):
        await until(lambda: sandbox.total == 2)
    assert ANN in contacts(sandbox)
