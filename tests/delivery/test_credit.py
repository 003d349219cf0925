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


def claimed(limit: int, rounds: int, *lengths: int, turns: int = 100) -> list[Lease]:
    """What so many senders claim, each sending a push in a round, while vouched lanes of these lengths and lanes of strangers wait all the time.

    `turns`: lanes that the rate allows to begin in a round.
    """
    vouched, credit, found = cycle(lengths), Credit(), list[Lease]()
    out: list[tuple[int, Lease]] = []  # and the round in which its last push has been sent
    for now in range(rounds):
        out = [each for each in out if each[0] > now]
        room = min(limit - len(out), turns)
        least = credit.least(len(out) + room, sum(each.stranger for _, each in out))
        new = [lease(STRANGERS_PER_LANE, stranger=True)] * min(least, room)
        new += [lease(length, stranger=False) for length in islice(vouched, room - len(new))]
        credit = credit.after(new)
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


def test_strangers_have_an_eighth_of_the_senders_however_long_the_lanes_of_others_are() -> None:
    assert 0.11 < share(claimed(8, 1_000, 25)) < 0.126
    assert 0.11 < share(claimed(64, 1_000, 25)) < 0.126


@pytest.mark.parametrize(("limit", "turns", "length"), [(1, 9, 1), (1, 9, 25), (2, 9, 25), (8, 1, 1)])
def test_where_few_can_begin_at_once_two_of_their_lanes_do_not_follow_one_another(
    limit: int, turns: int, length: int
) -> None:
    found = claimed(limit, 1_000, length, turns=turns)
    assert not any(one.stranger and two.stranger for one, two in pairwise(found))
    assert share(found) > 0.07


def test_without_vouched_lanes_nothing_is_forced_on_few_senders() -> None:
    assert Credit().after([lease(2, stranger=True)] * 100).least(7, 0) == 0


def test_what_strangers_had_for_nothing_is_not_counted_against_them() -> None:
    credit = Credit().after([lease(2, stranger=True)] * 100).after([lease(1, stranger=False)] * 14)
    assert credit.least(4, 0) == 1
    assert credit.least(4, 1) == 0, "one is out already"


def test_a_long_time_without_strangers_saves_up_one_lane_only() -> None:
    credit = Credit().after([lease(25, stranger=False)] * 100)
    assert credit.least(4, 0) == 1
    assert credit.after([lease(2, stranger=True)]).least(4, 0) == 0
