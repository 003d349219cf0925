"""What strangers may send although vouched lanes wait: an eighth, whatever the number of senders and the length of lanes."""

from __future__ import annotations

from itertools import cycle, islice, pairwise

import pytest

from proxy.core.calls import Track
from proxy.core.visitors import Trust
from proxy.delivery.credit import STRANGERS_PER_LANE, Credit
from proxy.store.records import Lease, Waiting


def lease(pushes: int, *, stranger: bool) -> Lease:
    trust = Trust.ASSERTED if stranger else Trust.VERIFIED
    waiting = tuple(Waiting(seq, f"push-{seq}", "a@b.test", trust, Track(("a",)), 0.0, 0, 9) for seq in range(pushes))
    return Lease(lane=1, epoch=1, until=0.0, failures=0, pushes=waiting, stranger=stranger)


def claimed(limit: int, rounds: int, *lengths: int) -> list[Lease]:
    """What so many senders claim, each sending a push in a round, while vouched lanes of these lengths and lanes of strangers wait all the time."""
    vouched, credit, found = cycle(lengths), Credit(), list[Lease]()
    out: list[tuple[int, Lease]] = []  # and the round in which its last push has been sent
    for now in range(rounds):
        out = [each for each in out if each[0] > now]
        forced = credit.least(limit, sum(each.stranger for _, each in out))
        room = limit - len(out)
        new = [lease(STRANGERS_PER_LANE, stranger=True)] * min(forced, room)
        new += [lease(length, stranger=False) for length in islice(vouched, room - len(new))]
        credit = credit.after(new, limit)
        out += [(now + len(each.pushes), each) for each in new]
        found += new
        assert sum(each.stranger for _, each in out) <= max(1, limit // 8)
    return found


def share(found: list[Lease]) -> float:
    pushes = [(each.stranger, len(each.pushes)) for each in found]
    return sum(size for stranger, size in pushes if stranger) / sum(size for _, size in pushes)


@pytest.mark.parametrize("limit", [1, 2, 4, 8, 16, 64])
def test_strangers_have_an_eighth_of_what_is_sent(limit: int) -> None:
    assert 0.12 < share(claimed(limit, 1_000, 1)) < 0.126
    assert 0.09 < share(claimed(limit, 1_000, 1, 2, 3)) < 0.126


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_long_vouched_lanes_leave_them_a_lane_behind_each(limit: int) -> None:
    found = claimed(limit, 1_000, 25)
    assert share(found) > 0.05
    assert not any(one.stranger and two.stranger for one, two in pairwise(found))


def test_without_vouched_lanes_nothing_is_forced() -> None:
    assert Credit().after([lease(2, stranger=True)] * 100, 8).least(8, 0) == 0


def test_what_strangers_had_for_nothing_is_not_counted_against_them() -> None:
    credit = Credit().after([lease(2, stranger=True)] * 100, 8).after([lease(1, stranger=False)] * 14, 8)
    assert credit.least(8, 0) == 1
    assert credit.least(8, 1) == 0, "one is out already"


def test_a_long_time_without_strangers_saves_up_one_lane_only() -> None:
    credit = Credit().after([lease(25, stranger=False)] * 100, 8)
    assert credit.least(8, 0) == 1
    assert credit.after([lease(2, stranger=True)], 8).least(8, 0) == 0


def test_fewer_requests_at_once_leave_strangers_fewer_senders() -> None:
    credit = Credit().after([lease(25, stranger=False)] * 100, 64)
    assert [credit.least(limit, 0) for limit in (64, 17, 1)] == [8, 2, 1]
