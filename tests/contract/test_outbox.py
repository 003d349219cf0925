"""What every outbox promises, on each adapter. Decisions are made by the tests themselves: plain plans, no policy."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.decision import (
    Alias,
    Bind,
    Born,
    Change,
    Decision,
    Drop,
    EndAlias,
    Enqueue,
    Facts,
    Forgotten,
    Hold,
    Identified,
    LaneFacts,
    NotOffered,
    Refused,
    Remember,
    Retire,
    Schedule,
    Scheduled,
    Seen,
    Shown,
    Verify,
    VisitorFacts,
)
from proxy.core.gate import Closure, Halt
from proxy.core.reasons import Reason
from proxy.core.turns import Share
from proxy.core.visitors import NOBODY, Trust, Visitor
from proxy.errors import StoreUnavailable
from proxy.store.outbox import Outbox
from proxy.store.postgres.outbox import open_outbox as open_postgres_outbox
from proxy.store.records import (
    Claim,
    DeadFilter,
    DeadReason,
    Erased,
    Fate,
    LastIdentify,
    Lease,
    Settled,
    Settlement,
    Stats,
)
from proxy.store.sqlite.outbox import open_outbox
from tests.support.postgres import database

INCREMENT = Attributes(custom_fields={"Visits": "++1"})
SIZE = len(msgspec.json.encode(Track(("a",))))


async def open_sqlite(tmp_path: Path) -> Outbox:
    return await open_outbox(
        tmp_path / "scq.db", create=True, hold_age=timedelta(days=30), dead_age=timedelta(days=90), min_free_bytes=0
    )


async def open_postgres(tmp_path: Path) -> Outbox:
    """Opened again at the same path, it is the same database."""
    place = tmp_path / "database"
    if not place.exists():
        place.write_text(database(), encoding="utf-8")
    dsn = place.read_text(encoding="utf-8")
    return await open_postgres_outbox(dsn, hold_age=timedelta(days=30), dead_age=timedelta(days=90))


ADAPTERS = {"sqlite": open_sqlite, "postgres": open_postgres}
DURABLE = {
    "sqlite": {"synchronous": "FULL", "journal_mode": "wal"},
    "postgres": {"synchronous_commit": "on", "fsync": "on", "full_page_writes": "on"},
}


@pytest.fixture(params=list(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def outbox(adapter: str, tmp_path: Path) -> AsyncIterator[Outbox]:
    opened = await ADAPTERS[adapter](tmp_path)
    yield opened
    await opened.close()


def push_id() -> str:
    return str(uuid.uuid4())


def queued(address: str, body: Attributes | Track | None = None, *, trust: Trust = Trust.VERIFIED) -> Enqueue:
    return Enqueue(push_id(), address.lower(), address, trust, body or Track(("a",)))


def sign_up(address: str, client: str = "192.0.2.1", body: Attributes | Track | None = None) -> Enqueue:
    return msgspec.structs.replace(queued(address, body, trust=Trust.ASSERTED), sign_up=client)


async def carry_out(outbox: Outbox, *ops: Change) -> None:
    await outbox.append(lambda facts: Decision(ops, None))


async def read(outbox: Outbox, ask: object) -> object:
    """What a decision sees."""
    assert callable(ask)
    return (await outbox.append(lambda facts: Decision((), ask(facts)))).answer


def told(seen: Seen | None) -> Seen | None:
    """Without the time, which is the store's."""
    return msgspec.structs.replace(seen, at=0.0) if seen else None


async def visitor(outbox: Outbox, visitor_id: str) -> VisitorFacts:
    return (await outbox.append(lambda facts: Decision((), facts.visitor(visitor_id)))).answer


def ids(lease: Lease) -> list[str]:
    return [push.id for push in lease.pushes]


def settled(lease: Lease, fate: Fate, **changes: object) -> Settlement:
    return Settlement(lease, tuple(Settled(push.seq, fate, **changes) for push in lease.pushes))  # type: ignore[arg-type]


async def claim(outbox: Outbox, lanes: int = 10, per_lane: int = 10, seconds: float = 60) -> Sequence[Lease]:
    return (await outbox.claim(lanes, per_lane, seconds)).leases


async def counters(outbox: Outbox) -> dict[str, int]:
    return {name: count for name, count in (await outbox.stats()).counters.items() if count}


async def test_a_lane_is_claimed_in_the_order_in_which_it_was_filled(outbox: Outbox) -> None:
    pushes = [queued("ada@example.com") for _ in range(5)]
    for push in pushes:
        await carry_out(outbox, push)
    (lease,) = await claim(outbox)
    assert ids(lease) == [push.id for push in pushes]
    assert lease.pushes[0].address == "ada@example.com"


async def test_two_spellings_of_an_address_share_a_lane_and_keep_their_spelling(outbox: Outbox) -> None:
    await carry_out(outbox, queued("Ada@example.com"), queued("ada@example.com"))
    (lease,) = await claim(outbox)
    assert [push.address for push in lease.pushes] == ["Ada@example.com", "ada@example.com"]


async def test_a_lane_under_a_lease_is_not_claimed_again_while_others_are(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"))
    await claim(outbox)
    await carry_out(outbox, queued("a@example.com"), queued("b@example.com"))
    (lease,) = await claim(outbox)
    assert lease.pushes[0].address == "b@example.com"


async def test_what_is_delivered_is_gone_and_the_rest_of_the_lane_follows(outbox: Outbox) -> None:
    first, second = queued("a@example.com"), queued("a@example.com")
    await carry_out(outbox, first, second)
    (lease,) = await claim(outbox, per_lane=1)
    assert await outbox.settle(settled(lease, Fate.DELIVERED))
    (lease,) = await claim(outbox)
    assert ids(lease) == [second.id]
    assert await outbox.settle(settled(lease, Fate.DELIVERED))
    assert not await claim(outbox)
    assert (await outbox.stats()).waiting == 0


async def test_a_push_that_is_kept_stays_at_the_head_and_counts_its_attempts(outbox: Outbox) -> None:
    first, second = queued("a@example.com"), queued("a@example.com")
    await carry_out(outbox, first, second)
    for attempts in range(3):
        (lease,) = await claim(outbox)
        assert ids(lease) == [first.id, second.id]
        assert lease.pushes[0].attempts == attempts
        assert lease.failures == attempts
        kept = (Settled(lease.pushes[0].seq, Fate.KEPT),)
        assert await outbox.settle(Settlement(lease, kept, failures=attempts + 1))


async def test_a_lane_in_back_off_waits_and_delays_no_other(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"))
    (lease,) = await claim(outbox)
    await outbox.settle(Settlement(lease, (), failures=1, retry_at=lease.until + 3_600))
    await carry_out(outbox, queued("a@example.com"), queued("b@example.com"))
    (other,) = await claim(outbox)
    assert other.pushes[0].address == "b@example.com"


async def test_what_is_put_off_waits_until_somebody_who_is_vouched_for_comes(outbox: Outbox) -> None:
    later, none = time.time() + 3_600, Share(per_hour=1)
    await carry_out(outbox, sign_up("b@example.com"))
    assert len((await outbox.claim(10, 10, 60, share=none)).leases) == 1
    await carry_out(outbox, sign_up("a@example.com"), queued("a@example.com", trust=Trust.ASSERTED))
    assert not (await outbox.claim(10, 10, 60, share=none)).leases
    await carry_out(outbox, queued("a@example.com"))
    (lease,) = await claim(outbox)
    assert len(lease.pushes) == 3
    await outbox.settle(Settlement(lease, (), 1, later))
    await carry_out(outbox, queued("a@example.com"))
    assert not await claim(outbox), "a back-off is no putting off"


async def test_a_schedule_is_kept(outbox: Outbox) -> None:
    assert await read(outbox, lambda facts: facts.schedule(Schedule.SIGN_UPS)) == 0
    await carry_out(outbox, Scheduled(Schedule.SIGN_UPS, 5.5), Scheduled(Schedule.SIGN_UPS, 7.5))
    assert await read(outbox, lambda facts: facts.schedule(Schedule.SIGN_UPS)) == 7.5
    assert await read(outbox, lambda facts: facts.schedule(Schedule.TRACES)) == 0


async def test_a_lease_that_has_ended_is_claimed_again_and_its_late_settlement_changes_nothing(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"))
    (late,) = await claim(outbox, seconds=0)
    (lease,) = await claim(outbox)
    assert ids(lease) == ids(late)
    assert lease.epoch > late.epoch
    assert not await outbox.settle(settled(late, Fate.DELIVERED))
    assert (await outbox.stats()).waiting == 1
    assert await outbox.settle(settled(lease, Fate.DELIVERED))
    assert not await outbox.settle(settled(lease, Fate.DELIVERED))
    assert (await counters(outbox))["delivered"] == 1


async def test_an_increment_is_claimed_alone(outbox: Outbox) -> None:
    pushes = [queued("a@example.com"), queued("a@example.com", INCREMENT), queued("a@example.com")]
    await carry_out(outbox, *pushes)
    for push in pushes:
        (lease,) = await claim(outbox)
        assert ids(lease) == [push.id]
        await outbox.settle(settled(lease, Fate.DELIVERED))


async def test_an_increment_whose_lease_ends_unsettled_is_a_dead_letter_and_the_lane_goes_on(outbox: Outbox) -> None:
    increment, track = queued("a@example.com", INCREMENT), queued("a@example.com")
    await carry_out(outbox, increment, track)
    await claim(outbox, seconds=0)
    (lease,) = await claim(outbox)
    assert ids(lease) == [track.id]
    (dead,) = await outbox.dead_letters(DeadFilter(), 0, 10)
    assert (dead.id, dead.reason, dead.body) == (increment.id, DeadReason.AMBIGUOUS, INCREMENT)


async def test_an_increment_that_was_not_sent_is_claimed_again(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com", INCREMENT))
    (lease,) = await claim(outbox)
    assert await outbox.settle(settled(lease, Fate.KEPT, attempted=False))
    (again,) = await claim(outbox)
    assert (ids(again), again.pushes[0].attempts) == (ids(lease), 0)


async def test_a_dead_letter_keeps_what_it_was_and_why_it_died(outbox: Outbox) -> None:
    push = queued("Ada@example.com", Track(("a",), ("b",)))
    await carry_out(outbox, push)
    (lease,) = await claim(outbox)
    await outbox.settle(settled(lease, Fate.DEAD, reason=DeadReason.REJECTED, detail="HTTP 422"))
    (dead,) = await outbox.dead_letters(DeadFilter(), 0, 10)
    assert (dead.id, dead.address, dead.body) == (push.id, "Ada@example.com", push.body)
    assert (dead.reason, dead.detail, dead.attempts) == (DeadReason.REJECTED, "HTTP 422", 1)
    stats = await outbox.stats()
    assert (stats.waiting, stats.dead) == (0, 1)


async def test_a_known_id_is_seen_with_who_the_browser_was_after_it(outbox: Outbox) -> None:
    known = push_id()
    after = Visitor("v2", "ada@example.com", Trust.ASSERTED, issued=7)
    await carry_out(outbox, Remember(known, "v1", after))
    assert await read(outbox, lambda facts: told(facts.seen(known))) == Seen("v1", after)
    never = push_id()
    assert await read(outbox, lambda facts: facts.seen(never)) is None


async def test_held_pushes_go_behind_what_waits_when_they_are_bound_and_keep_their_order(outbox: Outbox) -> None:
    held = [Hold(push_id(), "v", Track((name,))) for name in "abc"]
    identify = queued("ada@example.com", Attributes())
    await carry_out(outbox, *held)
    assert await read(outbox, lambda facts: [(push.id, push.track) for push in facts.held("v")]) == [
        (hold.id, hold.track) for hold in held
    ]
    assert await read(outbox, lambda facts: facts.visitor("v")) == VisitorFacts(holding=3)
    keep, refuse = (held[0].id, held[2].id), ((held[1].id, Reason.TAG_NOT_ALLOWED),)
    bind = Bind("v", "ada@example.com", "ada@example.com", Trust.ASSERTED, keep, refuse)
    later = queued("ada@example.com")
    await carry_out(outbox, identify, bind, later)
    (lease,) = await claim(outbox)
    assert ids(lease) == [identify.id, *keep, later.id]
    assert lease.pushes[1].trust is Trust.ASSERTED
    assert await read(outbox, lambda facts: facts.visitor("v")) == VisitorFacts()
    assert await counters(outbox) == {
        "accepted": 2,
        "bound": 2,
        "held": 3,
        "hold_refused": 1,
        "refused:tag-not-allowed": 1,
    }


async def test_a_retired_visitor_stays_retired_and_what_it_held_is_refused(outbox: Outbox) -> None:
    await carry_out(outbox, Hold(push_id(), "v", Track(("a",))), Hold(push_id(), "w", Track(("a",))), Retire("v"))
    assert await read(outbox, lambda facts: facts.visitor("v")) == VisitorFacts(retired=True)
    assert await read(outbox, lambda facts: facts.visitor("w")) == VisitorFacts(holding=1)
    assert (await counters(outbox))["refused:identity-changed"] == 1


async def test_dropping_what_is_held_leaves_the_visitor(outbox: Outbox) -> None:
    await carry_out(outbox, Hold(push_id(), "v", Track(("a",))), Drop("v", Reason.CONSENT_DENIED))
    assert await read(outbox, lambda facts: facts.visitor("v")) == VisitorFacts()
    assert (await counters(outbox))["refused:consent-denied"] == 1


async def test_a_visitor_born_of_a_log_out_knows_who_left_until_it_is_identified(outbox: Outbox) -> None:
    await carry_out(outbox, Born("v", "ada@example.com"))
    assert await read(outbox, lambda facts: facts.visitor("v")) == VisitorFacts(person="ada@example.com")
    await carry_out(outbox, Identified("v", "bob@example.com"))
    known = await visitor(outbox, "v")
    assert (known.identified is not None, known.person) == (True, "bob@example.com")


async def test_a_visitor_is_shown_once_and_an_identified_one_keeps_its_time(outbox: Outbox) -> None:
    await carry_out(outbox, Shown("v", "v"), Identified("w", "ada@example.com"))
    first, identified = (await visitor(outbox, "v")).shown, (await visitor(outbox, "w")).identified
    assert first == pytest.approx(time.time(), abs=60)
    await carry_out(outbox, Shown("v", "v"), Shown("w", "w"))
    assert (await visitor(outbox, "v")).shown == first
    shown = await visitor(outbox, "w")
    assert (shown.identified, shown.person) == (identified, "ada@example.com")
    assert shown.shown is not None
    await carry_out(outbox, Shown("w", "w"), Retire("w"))
    assert await visitor(outbox, "w") == msgspec.structs.replace(
        shown, retired=True, identified=(await visitor(outbox, "w")).identified
    )


async def test_what_the_store_knows_of_a_visitor_outlives_a_restart(
    adapter: str, outbox: Outbox, tmp_path: Path
) -> None:
    """As does the time of identification, which being shown must not move."""
    await carry_out(outbox, Identified("v", "ada@example.com"), Born("w", "ada@example.com"), Shown("x", "x"))
    before = [await visitor(outbox, name) for name in "vwx"]
    await carry_out(outbox, Shown("v", "v"))
    await outbox.close()
    reopened = await ADAPTERS[adapter](tmp_path)
    try:
        v, w, x = [await visitor(reopened, name) for name in "vwx"]
        assert (w, x.retired, x.person) == (before[1], False, None)
        assert None not in (v.identified, v.shown)
        assert v.identified == pytest.approx(before[0].identified, abs=0.5)
        assert v.identified < v.shown  # type: ignore[operator]  # neither is None
        assert x.shown == pytest.approx(before[2].shown, abs=0.5)
        assert v.person == "ada@example.com"
    finally:
        await reopened.close()


async def test_a_lane_knows_whether_its_address_was_ever_vouched_for_and_how_much_waits(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"), queued("a@example.com"), Verify("b@example.com"))
    assert await read(outbox, lambda facts: facts.lane("a@example.com")) == LaneFacts(waiting=2, bytes=2 * SIZE)
    assert await read(outbox, lambda facts: facts.lane("b@example.com")) == LaneFacts(verified=True)
    assert await read(outbox, lambda facts: facts.lane("c@example.com")) == LaneFacts()


async def test_refusals_are_counted_and_what_was_not_offered_is_listed(outbox: Outbox) -> None:
    await carry_out(outbox, Refused(Reason.TAG_NOT_ALLOWED), NotOffered("paid user", "SCQ_TAGS"))
    await carry_out(outbox, Refused(Reason.TAG_NOT_ALLOWED), NotOffered("paid user", "SCQ_TAGS"))
    stats = await outbox.stats()
    assert stats.counters["refused:tag-not-allowed"] == 2
    assert [(name.name, name.setting, name.count) for name in stats.refused_names] == [("paid user", "SCQ_TAGS", 2)]


async def test_a_name_with_an_address_that_an_older_version_kept_is_not_shown(outbox: Outbox) -> None:
    await carry_out(outbox, NotOffered("for ann@example.com", "SCQ_TAGS"), NotOffered("paid user", "SCQ_FIELDS"))
    assert [name.name for name in (await outbox.stats()).refused_names] == ["paid user"]


async def test_a_decision_that_fails_stores_nothing_and_harms_no_other(outbox: Outbox) -> None:
    def fail(facts: Facts) -> Decision[None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await outbox.append(fail)
    await carry_out(outbox, queued("a@example.com"))
    assert (await outbox.stats()).waiting == 1


async def test_a_plan_that_cannot_be_written_harms_no_other_that_shares_its_transaction(outbox: Outbox) -> None:
    unwritable = Enqueue("half a pair \ud800", "a@example.com", "a@example.com", Trust.VERIFIED, Track(("a",)))
    plans = [queued("a@example.com"), queued("b@example.com"), unwritable, queued("a@example.com")]
    outcomes = await asyncio.gather(*(carry_out(outbox, plan) for plan in plans), return_exceptions=True)
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, False, True, False]
    assert (await outbox.stats()).waiting == 3


async def test_everything_is_there_after_a_restart_and_leases_of_the_old_process_are_void(
    outbox: Outbox, adapter: str, tmp_path: Path
) -> None:
    known, track, increment = push_id(), queued("a@example.com"), queued("b@example.com", INCREMENT)
    await carry_out(outbox, track, increment, Remember(known, "v"), Retire("old"), Hold(push_id(), "v", Track(("a",))))
    leases = await claim(outbox)
    site_key = outbox.site_key
    await outbox.close()
    reopened = await ADAPTERS[adapter](tmp_path)
    try:
        assert reopened.site_key == site_key
        assert not await reopened.settle(settled(leases[0], Fate.DELIVERED))
        assert [ids(lease) for lease in await claim(reopened)] == [[track.id]]
        assert [dead.id for dead in await reopened.dead_letters(DeadFilter(), 0, 10)] == [increment.id]
        assert await read(reopened, lambda facts: told(facts.seen(known))) == Seen("v", None)
        assert await read(reopened, lambda facts: facts.visitor("old")) == VisitorFacts(retired=True)
        assert (await reopened.stats()).holding == 1
    finally:
        await reopened.close()


async def test_the_sums_of_what_was_accepted_and_held_add_up(outbox: Outbox) -> None:
    await carry_out(outbox, *[queued(f"{name}@example.com") for name in "abcd"])
    await carry_out(outbox, *[Hold(f"{number:032}", "v", Track(("a",))) for number in range(4)])
    await carry_out(outbox, Bind("v", "a@example.com", "a@example.com", Trust.ASSERTED, ("0" * 32,), ()))
    leases = await claim(outbox)
    await outbox.settle(settled(leases[0], Fate.DELIVERED))
    await outbox.settle(settled(leases[1], Fate.DEAD, reason=DeadReason.REJECTED))
    stats = await outbox.stats()
    total = stats.counters
    assert total["accepted"] + total["bound"] == total["delivered"] + stats.waiting + stats.dead
    assert total["held"] == total["bound"] + stats.holding


async def test_the_sums_add_up_at_every_moment(outbox: Outbox) -> None:
    appends = [carry_out(outbox, queued("a@example.com")) for _ in range(50)]
    *_, stats = await asyncio.gather(*appends, outbox.stats())
    assert isinstance(stats, Stats)
    assert stats.counters["accepted"] == stats.waiting == 50


async def test_waiting_for_work_ends_when_there_is_some(outbox: Outbox) -> None:
    await outbox.wait_ready(0)
    await carry_out(outbox, queued("a@example.com"))
    await outbox.wait_ready(600)
    (lease,) = await claim(outbox)
    await outbox.settle(Settlement(lease, (), retry_at=lease.until - 60.0))
    await outbox.wait_ready(600)


async def test_nothing_is_taken_once_the_outbox_is_closed(outbox: Outbox) -> None:
    await outbox.close()
    with pytest.raises(StoreUnavailable):
        await carry_out(outbox, queued("a@example.com"))


async def test_durability_is_told_as_read_back(outbox: Outbox, adapter: str) -> None:
    durability = await outbox.durability()
    assert durability.facts.items() >= DURABLE[adapter].items()


async def buried(outbox: Outbox, *addresses: str) -> list[str]:
    """Dead letters, one for each address, in order."""
    pushes = [queued(address) for address in addresses]
    for push in pushes:
        await carry_out(outbox, push)
        (lease,) = await claim(outbox)
        await outbox.settle(settled(lease, Fate.DEAD, reason=DeadReason.REJECTED))
    return [push.id for push in pushes]


async def test_dead_letters_are_listed_in_order_page_by_page_and_by_condition(outbox: Outbox) -> None:
    first, second, third = await buried(outbox, "a@example.com", "B@example.com", "a@example.com")
    page = await outbox.dead_letters(DeadFilter(), 0, 2)
    assert [letter.id for letter in page] == [first, second]
    assert [letter.id for letter in await outbox.dead_letters(DeadFilter(), page[-1].seq, 2)] == [third]
    by_contact = await outbox.dead_letters(DeadFilter(contact="b@example.com"), 0, 10)
    assert [letter.id for letter in by_contact] == [second]
    by_seq = await outbox.dead_letters(DeadFilter(seqs=(page[0].seq,)), 0, 10)
    assert [letter.id for letter in by_seq] == [first]
    assert not await outbox.dead_letters(DeadFilter(reason=DeadReason.AMBIGUOUS), 0, 10)
    assert not await outbox.dead_letters(DeadFilter(before=page[0].at), 0, 10)


async def test_a_replayed_dead_letter_goes_to_the_tail_of_its_lane_as_if_never_tried(outbox: Outbox) -> None:
    (dead,) = await buried(outbox, "a@example.com")
    waiting = queued("a@example.com")
    await carry_out(outbox, waiting)
    assert await outbox.replay(DeadFilter(), 10) == 1
    (lease,) = await claim(outbox)
    assert ids(lease) == [waiting.id, dead]
    assert lease.pushes[1].attempts == 0
    stats = await outbox.stats()
    assert (stats.dead, stats.waiting, stats.counters["replayed"]) == (0, 2, 1)


async def test_a_replayed_increment_is_still_claimed_alone(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com", INCREMENT))
    await claim(outbox, seconds=0)
    assert not await claim(outbox)
    await carry_out(outbox, queued("a@example.com"))
    assert await outbox.replay(DeadFilter(reason=DeadReason.AMBIGUOUS), 10) == 1
    (lease,) = await claim(outbox)
    assert len(lease.pushes) == 1


async def test_a_discarded_dead_letter_is_gone_and_counted(outbox: Outbox) -> None:
    await buried(outbox, "a@example.com", "b@example.com")
    assert await outbox.discard(DeadFilter(contact="a@example.com"), 10) == 1
    stats = await outbox.stats()
    assert (stats.dead, stats.counters["discarded"]) == (1, 1)
    assert stats.counters["accepted"] == stats.counters["discarded"] + stats.waiting + stats.dead


async def test_dead_letters_are_found_by_the_ids_of_their_pushes(outbox: Outbox) -> None:
    first, _, third = await buried(outbox, "a@example.com", "b@example.com", "c@example.com")
    asked = DeadFilter(ids=(third, first, push_id()))
    assert [letter.id for letter in await outbox.dead_letters(asked, 0, 10)] == [first, third]
    assert await outbox.discard(asked, 10) == 2


async def delivered_move(outbox: Outbox, old: str, new: str) -> None:
    """The person at `old` changes to `new`, and SendX confirms it; nothing else of theirs is waiting before."""
    await carry_out(outbox, queued(old, Attributes(new_email=new)))
    lease = next(lease for lease in await claim(outbox, per_lane=1) if lease.pushes[0].address == old)
    assert await outbox.settle(settled(lease, Fate.DELIVERED))


async def test_after_a_confirmed_change_of_address_the_lane_goes_on_at_the_new_one(outbox: Outbox) -> None:
    move, after = queued("old@example.com", Attributes(new_email="New@example.com")), queued("old@example.com")
    await carry_out(outbox, move, after)
    (lease,) = await claim(outbox, per_lane=1)
    await outbox.settle(settled(lease, Fate.DELIVERED))
    later = queued("new@example.com")
    await carry_out(outbox, later)
    (lease,) = await claim(outbox)
    assert [(push.id, push.address) for push in lease.pushes] == [
        (after.id, "New@example.com"),
        (later.id, "new@example.com"),
    ]
    alias = await read(outbox, lambda facts: facts.alias("old@example.com"))
    assert isinstance(alias, Alias)
    assert alias.address == "New@example.com"


async def test_a_change_of_address_that_is_refused_changes_nothing(outbox: Outbox) -> None:
    move, after = queued("old@example.com", Attributes(new_email="new@example.com")), queued("old@example.com")
    await carry_out(outbox, move, after)
    (lease,) = await claim(outbox, per_lane=1)
    await outbox.settle(settled(lease, Fate.DEAD, reason=DeadReason.REJECTED))
    (lease,) = await claim(outbox)
    assert [(push.id, push.address) for push in lease.pushes] == [(after.id, "old@example.com")]
    assert await read(outbox, lambda facts: facts.alias("old@example.com")) is None


async def test_if_the_new_address_has_a_lane_what_waits_there_goes_first_and_then_both_are_one(outbox: Outbox) -> None:
    move, moved = queued("old@example.com", Attributes(new_email="new@example.com")), queued("old@example.com")
    await carry_out(outbox, Verify("old@example.com"), move, moved)
    (lease,) = await claim(outbox, per_lane=1)
    there = [queued("new@example.com"), queued("new@example.com")]
    await carry_out(outbox, *there)
    (other,) = await claim(outbox, per_lane=1)
    await outbox.settle(settled(lease, Fate.DELIVERED))
    assert not await claim(outbox), "the lane of the new address is under a lease"
    await outbox.settle(settled(other, Fate.DELIVERED))
    (lease,) = await claim(outbox)
    assert [(push.id, push.address) for push in lease.pushes] == [
        (there[1].id, "new@example.com"),
        (moved.id, "new@example.com"),
    ]
    assert await read(outbox, lambda facts: facts.lane("new@example.com")) == LaneFacts(
        verified=True, waiting=2, bytes=2 * SIZE
    )
    assert await read(outbox, lambda facts: facts.lane("old@example.com")) == LaneFacts()


@pytest.mark.parametrize("has_lane", [True, False])
async def test_visitors_of_a_person_who_moves_stay_that_persons(outbox: Outbox, has_lane: bool) -> None:
    """The next owner of the old address is somebody else."""
    if has_lane:
        await carry_out(outbox, Verify("new@example.com"))
    await carry_out(
        outbox, Identified("v", "old@example.com"), Born("w", "old@example.com"), Born("x", "b@example.com")
    )
    before = (await visitor(outbox, "v")).identified
    await delivered_move(outbox, "old@example.com", "new@example.com")
    known = [await visitor(outbox, name) for name in "vwx"]
    assert [each.person for each in known] == ["new@example.com", "new@example.com", "b@example.com"]
    assert known[0].identified == pytest.approx(before, abs=0.5)


async def test_an_address_that_moves_twice_and_back_keeps_one_person(outbox: Outbox) -> None:
    await delivered_move(outbox, "a@example.com", "b@example.com")
    await delivered_move(outbox, "b@example.com", "c@example.com")
    for old in ("a@example.com", "b@example.com"):
        alias = await read(outbox, lambda facts, key=old: facts.alias(key))
        assert isinstance(alias, Alias)
        assert alias.address == "c@example.com"
    await delivered_move(outbox, "c@example.com", "a@example.com")
    assert await read(outbox, lambda facts: facts.alias("a@example.com")) is None


async def test_an_alias_ends_when_somebody_is_verified_at_the_old_address(outbox: Outbox) -> None:
    await delivered_move(outbox, "old@example.com", "new@example.com")
    await carry_out(outbox, EndAlias("old@example.com"), queued("old@example.com"))
    assert await read(outbox, lambda facts: facts.alias("old@example.com")) is None
    (lease,) = await claim(outbox)
    assert lease.pushes[0].address == "old@example.com"


async def test_a_replayed_dead_letter_follows_the_change_of_address(outbox: Outbox) -> None:
    await buried(outbox, "old@example.com")
    await delivered_move(outbox, "old@example.com", "new@example.com")
    assert await outbox.replay(DeadFilter(), 10) == 1
    (lease,) = await claim(outbox)
    assert lease.pushes[0].address == "new@example.com"


async def test_dead_letters_stay_with_the_person_though_somebody_else_gets_the_old_address(outbox: Outbox) -> None:
    (dead,) = await buried(outbox, "ÄNN@example.com")
    await delivered_move(outbox, "änn@example.com", "new@example.com")
    assert [letter.id for letter in await outbox.dead_letters(DeadFilter(contact="änn@example.com"), 0, 9)] == [dead]
    await carry_out(outbox, Verify("änn@example.com"), EndAlias("änn@example.com"), queued("änn@example.com"))
    assert not await outbox.dead_letters(DeadFilter(contact="änn@example.com"), 0, 9)
    assert await outbox.replay(DeadFilter(contact="new@example.com"), 9) == 1
    addresses = {lease.pushes[0].id == dead: lease.pushes[0].address for lease in await claim(outbox)}
    assert addresses == {True: "new@example.com", False: "änn@example.com"}


async def test_erasing_an_address_takes_letters_to_its_former_owner_along(outbox: Outbox) -> None:
    await buried(outbox, "ÄNN@example.com")
    await delivered_move(outbox, "änn@example.com", "new@example.com")
    await carry_out(outbox, EndAlias("änn@example.com"))
    assert (await outbox.erase("änn@example.com")).dead == 1
    assert await outbox.erase("new@example.com") == Erased(0, 0, 0, 0)


async def test_erasing_a_person_leaves_nothing_of_them_but_a_hash(outbox: Outbox, tmp_path: Path) -> None:
    await buried(outbox, "secret-name@example.com")
    after = Visitor("v", "Secret-Name@example.com", Trust.VERIFIED, issued=1)
    identify = push_id()
    await carry_out(
        outbox, Remember(identify, "v", after), Born("w", "secret-name@example.com"), Verify("secret-name@example.com")
    )
    await carry_out(outbox, Identified("x", "secret-name@example.com"), Shown("x", "x"))
    await carry_out(
        outbox, queued("Secret-Name@example.com"), Hold(push_id(), "v", Track(("a",))), queued("b@example.com")
    )
    erased = await outbox.erase("secret-name@example.com")
    assert erased == Erased(waiting=1, held=1, dead=1, identities=1)
    assert await read(outbox, lambda facts: told(facts.seen(identify))) == Seen("", None)
    assert await visitor(outbox, "w") == VisitorFacts(person=NOBODY)
    assert (await visitor(outbox, "x")).person == NOBODY
    assert await read(outbox, lambda facts: facts.lane("secret-name@example.com")) == LaneFacts()
    assert isinstance(await read(outbox, lambda facts: facts.erased_at("secret-name@example.com")), float)
    assert await read(outbox, lambda facts: facts.erased_at("b@example.com")) is None
    stats = await outbox.stats()
    total = stats.counters
    assert total["accepted"] == total["erased"] + stats.waiting + stats.dead
    assert total["held"] == total["hold_erased"] + stats.holding
    await outbox.close()
    assert not [path for path in tmp_path.iterdir() if b"ecret-" in path.read_bytes()], "the name is still in a file"


async def test_erasing_by_an_old_address_erases_the_person_who_moved(outbox: Outbox) -> None:
    await delivered_move(outbox, "old@example.com", "new@example.com")
    await carry_out(outbox, queued("new@example.com"))
    assert (await outbox.erase("old@example.com")).waiting == 1
    for key in ("old@example.com", "new@example.com"):
        assert await read(outbox, lambda facts, key=key: facts.erased_at(key)) is not None
    assert await read(outbox, lambda facts: facts.alias("old@example.com")) is None


async def test_a_lease_on_an_erased_person_is_void_and_what_comes_next_waits_for_its_end(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"), queued("a@example.com", Attributes(new_email="b@example.com")))
    (lease,) = await claim(outbox)
    assert await outbox.holds(lease)
    await outbox.erase("a@example.com")
    assert not await outbox.holds(lease)
    back = queued("a@example.com")
    await carry_out(outbox, back)
    assert not await claim(outbox), "a request under the void lease may still be on the wire"
    await outbox.settle(settled(lease, Fate.DELIVERED))
    assert await read(outbox, lambda facts: facts.alias("a@example.com")) is None
    (again,) = await claim(outbox)
    assert (ids(again), again.last) == ([back.id], None)
    assert await outbox.settle(settled(again, Fate.DELIVERED))
    stats = await outbox.stats()
    assert (stats.waiting, stats.counters["erased"], stats.counters["delivered"]) == (0, 2, 1)


async def test_a_void_lease_whose_holder_is_gone_ends_like_any_other(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com", INCREMENT))
    await claim(outbox, seconds=0)
    await outbox.erase("a@example.com")
    back = queued("a@example.com")
    await carry_out(outbox, back)
    (lease,) = await claim(outbox)
    assert ids(lease) == [back.id]
    assert (await outbox.stats()).dead == 0


async def test_who_comes_back_while_an_erasure_goes_on_is_not_forgotten_again(outbox: Outbox) -> None:
    before, after = push_id(), push_id()
    gone = Visitor("v", "a@example.com", Trust.VERIFIED, issued=1)
    await carry_out(outbox, Remember(before, "v", gone))
    erasing = asyncio.create_task(outbox.erase("a@example.com"))
    await asyncio.sleep(0)
    back = Visitor("w", "a@example.com", Trust.VERIFIED, issued=2)
    await carry_out(outbox, Remember(after, "w", back), Hold(push_id(), "w", Track(("a",))))
    await erasing
    assert await read(outbox, lambda facts: told(facts.seen(before))) == Seen("", None)
    assert await read(outbox, lambda facts: told(facts.seen(after))) == Seen("w", back)
    assert (await outbox.stats()).holding == 1


async def test_what_is_known_of_a_contact_does_not_outlive_a_merge(outbox: Outbox) -> None:
    await carry_out(
        outbox, queued("new@example.com"), queued("old@example.com", Attributes(new_email="new@example.com"))
    )
    leases = {lease.pushes[0].address: lease for lease in await claim(outbox)}
    await outbox.settle(settled(leases["old@example.com"], Fate.DELIVERED))
    late = msgspec.structs.replace(
        settled(leases["new@example.com"], Fate.DELIVERED), last=LastIdentify(b"digest", time.time())
    )
    await outbox.settle(late)
    await carry_out(outbox, queued("new@example.com"))
    (lease,) = await claim(outbox)
    assert lease.last is None


async def test_a_lane_that_is_empty_again_has_no_back_off(outbox: Outbox) -> None:
    await carry_out(outbox, queued("ada@example.com"))
    (lease,) = await claim(outbox)
    gone = settled(lease, Fate.DEAD, reason=DeadReason.EXHAUSTED)
    await outbox.settle(msgspec.structs.replace(gone, failures=3, retry_at=time.time() + 3_600))
    await carry_out(outbox, queued("ada@example.com"))
    (lease,) = await claim(outbox)
    assert lease.failures == 0


async def test_after_a_lease_that_ended_it_is_not_known_what_sendx_has(outbox: Outbox) -> None:
    await carry_out(outbox, queued("ada@example.com"))
    (lease,) = await claim(outbox)
    known = LastIdentify(b"digest", time.time())
    assert await outbox.settle(msgspec.structs.replace(settled(lease, Fate.DELIVERED), last=known))
    await carry_out(outbox, queued("ada@example.com"))
    (lease,) = await claim(outbox, seconds=0)
    assert lease.last == known
    (again,) = await claim(outbox)  # the first holder may have sent
    assert again.last is None


async def test_a_late_retry_for_an_erased_person_is_counted_as_accepted_and_erased(outbox: Outbox) -> None:
    await carry_out(outbox, Forgotten())
    counted = await counters(outbox)
    assert (counted["accepted"], counted["erased"]) == (1, 1)


# --- the gate

SHUT = Closure(until=1_000.0, tries=2, halted=Halt.KEY)


async def test_nothing_is_claimed_through_a_shut_gate_but_one_probe(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"), queued("b@example.com"))
    assert await outbox.move_gate(None, SHUT) == SHUT
    assert await outbox.claim(9, 9, 60) == Claim((), SHUT)
    probe = await outbox.claim(9, 9, 60, probe=SHUT)
    assert (len(probe.leases), probe.closure) == (1, SHUT)
    assert not (await outbox.claim(9, 9, 60, probe=SHUT)).leases, "two probes are out at once"
    later = Closure(until=2_000.0)
    assert await outbox.move_gate(SHUT, later) == later, "the probe has come back, and the gate stays shut"
    assert not (await outbox.claim(9, 9, 60, probe=SHUT)).leases, "it is not due any more"
    assert len((await outbox.claim(9, 9, 60, probe=later)).leases) == 1
    assert await outbox.move_gate(later, None) is None
    await carry_out(outbox, queued("c@example.com"))
    opened = await outbox.claim(9, 9, 60)
    assert (len(opened.leases), opened.closure) == (1, None)


async def test_a_probe_that_never_comes_back_ends_with_its_lease(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"))
    await outbox.move_gate(None, SHUT)
    assert (await outbox.claim(9, 9, 0, probe=SHUT)).leases
    assert (await outbox.claim(9, 9, 60, probe=SHUT)).leases


async def test_a_probe_takes_the_lane_that_has_failed_least(outbox: Outbox) -> None:
    await carry_out(outbox, queued("a@example.com"), queued("b@example.com"))
    for lease in await claim(outbox):
        failures = 3 if lease.pushes[0].address == "a@example.com" else 0
        await outbox.settle(Settlement(lease, (), failures, time.time() - 60 * failures))
    await outbox.move_gate(None, SHUT)
    (probe,) = (await outbox.claim(9, 9, 60, probe=SHUT)).leases
    assert probe.pushes[0].address == "b@example.com"


async def test_without_a_lane_to_send_no_probe_is_out(outbox: Outbox) -> None:
    await outbox.move_gate(None, SHUT)
    assert not (await outbox.claim(9, 9, 60, probe=SHUT)).leases
    await carry_out(outbox, queued("a@example.com"))
    assert (await outbox.claim(9, 9, 60, probe=SHUT)).leases


async def test_senders_who_move_the_gate_at_the_same_time_agree(outbox: Outbox) -> None:
    longer = Closure(until=2_000.0)
    await outbox.move_gate(None, SHUT)
    assert await outbox.move_gate(None, longer) == Closure(2_000.0, 2, Halt.KEY)
    assert await outbox.move_gate(SHUT, None) == Closure(2_000.0, 2, Halt.KEY), "it knew of another closure"


async def test_a_shut_gate_stays_shut_over_a_restart_and_its_probe_is_free(adapter: str, tmp_path: Path) -> None:
    outbox = await ADAPTERS[adapter](tmp_path)
    await carry_out(outbox, queued("a@example.com"))
    await outbox.move_gate(None, SHUT)
    await outbox.claim(9, 9, 600, probe=SHUT)
    await outbox.close()
    outbox = await ADAPTERS[adapter](tmp_path)
    assert await outbox.claim(9, 9, 60) == Claim((), SHUT)
    assert (await outbox.claim(9, 9, 60, probe=SHUT)).leases
    await outbox.close()


async def test_sends_are_evenly_spaced_over_all_who_reserve_them(outbox: Outbox) -> None:
    waits = [await outbox.reserve(10, 2.0) for _ in range(4)]
    assert waits[0] == pytest.approx(0.0, abs=0.001)
    for number, seconds in enumerate(waits):
        assert 5.0 * number - 1.0 < seconds <= 5.0 * number + 0.001, "two have the same turn, or a turn is nobody's"
    at_another_rate = await outbox.reserve(1, 100.0)
    assert at_another_rate == pytest.approx(20.0, abs=1.0)


async def test_time_in_which_nobody_sends_is_not_saved_up(outbox: Outbox) -> None:
    assert await outbox.reserve(1, 1_000.0) == pytest.approx(0.0, abs=0.001)
    while await outbox.reserve(1, 1e9) > 0:  # until the millisecond is over
        pass
    assert await outbox.reserve(10, 2.0) == pytest.approx(0.0, abs=0.001)
    assert await outbox.reserve(10, 2.0) > 4.0
