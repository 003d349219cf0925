"""What a lease is made of and what its end changes, without a store."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.visitors import Trust
from proxy.store.leases import (
    Burial,
    LaneRow,
    Release,
    changes_of,
    changes_of_abandoned,
    head_of,
    last_identify,
    new_addresses,
    sent_again,
)
from proxy.store.records import DeadReason, Fate, LastIdentify, Lease, Settled, Settlement, Waiting

KEY, LANE = "a@example.com", 7
TRACK = Track(("a",))
COUNTS = Attributes(custom_fields={"visits": "++1"})
LAST = LastIdentify(b"digest", 5.0)


def lane(**changes: Any) -> LaneRow:
    return msgspec.structs.replace(
        LaneRow(LANE, leased=False, failures=0, key=KEY, address=None, digest=None, digest_at=None), **changes
    )


def row(
    seq: int, *, address: str = "A@example.com", trust: Trust = Trust.VERIFIED, alone: bool = False
) -> tuple[Any, ...]:
    return (seq, f"id{seq}", address, int(trust), "track", b'{"addTags":["a"]}', 1.0, 0, alone)


def waiting(seq: int, body: Attributes | Track = TRACK) -> Waiting:
    """`size`: a number that tells which it was."""
    return Waiting(seq, f"id{seq}", KEY, Trust.VERIFIED, body, 1.0, 0, size=10**seq)


def lease(*pushes: Waiting, last: LastIdentify | None = None) -> Lease:
    return Lease(lane=LANE, epoch=1, until=9.0, failures=0, pushes=pushes, last=last)


def seqs(*rows: tuple[Any, ...]) -> tuple[list[int], bool]:
    head = head_of(lane(), rows)
    return [push.seq for push in head.pushes], head.starts


# --- a lease begins


def test_a_head_goes_up_to_the_next_increment() -> None:
    assert seqs(row(1), row(2), row(3, alone=True), row(4)) == ([1, 2], False)


def test_an_increment_goes_alone_and_is_to_be_started() -> None:
    assert seqs(row(1, alone=True), row(2)) == ([1], True)


def test_a_claimed_push_has_the_size_of_its_body_as_stored() -> None:
    assert [push.size for push in head_of(lane(), [row(1)]).pushes] == [len(b'{"addTags":["a"]}')]


def test_a_lane_without_pushes_has_no_head() -> None:
    assert seqs() == ([], False)


def test_what_was_pushed_for_an_address_that_has_moved_goes_to_the_new_one() -> None:
    moved = lane(key="new@example.com", address="New@example.com")
    head = head_of(moved, [row(1), row(2, address="NEW@example.com")])
    assert [push.address for push in head.pushes] == ["New@example.com", "NEW@example.com"]


@pytest.mark.parametrize("trust", Trust)
def test_a_head_is_asserted_if_its_first_push_is(trust: Trust) -> None:
    assert head_of(lane(), [row(1, trust=trust), row(2)]).asserted == (trust is Trust.ASSERTED)


def test_the_last_identify_is_not_known_after_a_lease_that_nobody_settled() -> None:
    known = {"digest": LAST.digest, "digest_at": LAST.at}
    assert last_identify(lane(**known)) == LAST
    assert last_identify(lane(**known, leased=True)) is None
    assert last_identify(lane()) is None


# --- and ends


def test_each_fate_changes_its_own_rows_and_moves_the_counters() -> None:
    results = (
        Settled(1, Fate.DELIVERED),
        Settled(2, Fate.DELIVERED, attempted=False, unchanged=True),
        Settled(3, Fate.DEAD, reason=DeadReason.MISSING, detail="HTTP 404"),
        Settled(4, Fate.KEPT),
        Settled(5, Fate.KEPT, attempted=False),
    )
    changes = changes_of([Settlement(lease(*map(waiting, range(1, 7))), results, failures=2, retry_at=60.0)])
    assert changes.delivered == [1, 2]
    assert changes.buried == [Burial(3, attempted=True, reason=DeadReason.MISSING, detail="HTTP 404")]
    assert (changes.attempted, changes.unstarted) == ([4], [])
    assert changes.releases == [Release(LANE, 3, 1_110, failures=2, retry_at=60.0, learned=False)]
    assert changes.tallies == {
        "delivered": 2,
        "unchanged": 1,
        "dead:missing": 1,
        "gauge:waiting": -3,
        "gauge:dead": 1,
    }


def test_a_settlement_without_results_moves_no_counter() -> None:
    changes = changes_of([Settlement(lease(waiting(1)), ())])
    assert (changes.releases, changes.tallies) == ([Release(LANE, 0, learned=False)], {})


@pytest.mark.parametrize(("fate", "unstarted"), [(Fate.DELIVERED, []), (Fate.DEAD, []), (Fate.KEPT, [1])])
def test_an_increment_that_stays_counts_as_not_started(fate: Fate, unstarted: list[int]) -> None:
    assert changes_of([Settlement(lease(waiting(1, COUNTS)), (Settled(1, fate),))]).unstarted == unstarted


def test_what_is_known_of_the_contact_is_written_only_if_it_changed() -> None:
    (same,) = changes_of([Settlement(lease(waiting(1), last=LAST), (), last=LAST)]).releases
    (other,) = changes_of([Settlement(lease(waiting(1)), (), last=LAST)]).releases
    (void,) = changes_of([Settlement(lease(waiting(1), last=LAST), ())]).releases
    assert [(each.learned, each.last) for each in (same, other, void)] == [(False, LAST), (True, LAST), (True, None)]


def test_a_person_who_was_erased_under_the_lease_only_loses_the_lease() -> None:
    settlement = Settlement(lease(waiting(1)), (Settled(1, Fate.DELIVERED),), last=LAST)
    changes = changes_of([settlement], erased=[LANE])
    assert (changes.releases, changes.delivered, changes.tallies) == ([Release(LANE, 0, learned=False)], [], {})


def test_an_abandoned_lease_buries_what_was_started_and_forgets_the_contact() -> None:
    changes = changes_of_abandoned([LANE, 8], [(8, 3, 40)])
    assert changes.releases == [Release(LANE, 0, learned=True), Release(8, 1, 40, learned=True)]
    (burial,) = changes.buried
    assert (burial.seq, burial.attempted, burial.reason) == (3, True, DeadReason.AMBIGUOUS)
    assert changes.tallies == {"dead:ambiguous": 1, "gauge:waiting": -1, "gauge:dead": 1}


def test_only_a_delivered_change_of_address_moves_a_lane() -> None:
    pushes = [waiting(seq, Attributes(new_email=f"{seq}@example.com")) for seq in (1, 2, 3)]
    results = (Settled(3, Fate.DELIVERED), Settled(1, Fate.DELIVERED), Settled(2, Fate.KEPT))
    assert new_addresses(Settlement(lease(*pushes, waiting(4)), results)) == ["1@example.com", "3@example.com"]


# --- a lease is lost


def test_what_had_its_answer_and_still_waits_is_sent_again_and_nothing_else_is() -> None:
    lost = lease(waiting(1), waiting(2), waiting(3), waiting(4))
    results = (
        Settled(1, Fate.DELIVERED),
        Settled(2, Fate.DELIVERED, attempted=False, unchanged=True),
        Settled(3, Fate.KEPT, attempted=False),
        Settled(4, Fate.DELIVERED),
    )
    settlement = Settlement(lost, results)
    assert sent_again(settlement, [(each, f"id{each}") for each in (1, 2, 3, 4)]) == 2
    assert sent_again(settlement, [(1, "id1"), (4, "of another store")]) == 1
    assert sent_again(settlement, []) == 0
