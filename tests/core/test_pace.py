"""The pace under SCQ_UPSTREAM_RATE."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.pace import Pace

NOW = 1_000_000.0


def test_without_a_rate_every_turn_is_now() -> None:
    assert Pace().taken(NOW) == (Pace(), NOW)
    assert Pace().turns(NOW, 8) == 8
    assert not Pace().is_spent(NOW)


@given(st.floats(0.1, 1_000), st.lists(st.floats(0, 100), min_size=2, max_size=50))
def test_turns_are_never_closer_than_the_rate_allows_and_never_before_they_are_asked_for(
    rate: float, pauses: list[float]
) -> None:
    pace, now, turns, free = Pace(rate), NOW, [], NOW
    for pause in pauses:
        now += pause
        if pace.is_spent(now):
            pace, free = pace.reserved(pace.chunk, max(now, free)), max(now, free) + pace.chunk / rate
        pace, at = pace.taken(now)
        assert at is not None
        assert at >= now
        turns.append(at)
    assert all(later - earlier >= 1 / rate - 1e-6 for earlier, later in pairwise(turns))


@given(st.floats(0.1, 1_000), st.lists(st.floats(0, 0.5), min_size=1, max_size=50))
def test_a_turn_is_taken_in_its_place_of_the_schedule_or_not_at_all(rate: float, pauses: list[float]) -> None:
    pace, now = Pace(rate).reserved(8, NOW), NOW
    slots = [NOW + number / rate for number in range(8)]
    for pause in pauses:
        now += pause
        pace, at = pace.taken(now)
        if at is None:
            return
        late = max(1 / rate, 0.02) + 1e-6  # so much is in time
        assert slots[0] <= at <= slots[-1] + late, "a turn was taken out of its place"


@pytest.mark.parametrize(("rate", "turns"), [(0.1, 1), (10, 1), (100, 3), (1_000, 8)])
def test_only_turns_that_come_very_soon_are_given_out(rate: float, turns: int) -> None:
    pace = Pace(rate).reserved(100, NOW)
    assert pace.turns(NOW, 8) == turns
    for _ in range(turns + 30):
        pace, _ = pace.taken(NOW)
    assert pace.turns(NOW, 8) == 0
    assert pace.turns(pace.free_at, 8) == turns


def test_turns_are_reserved_for_a_quarter_of_a_second_at_a_time() -> None:
    assert [Pace(rate).chunk for rate in (0.1, 4, 20, 10_000)] == [1, 1, 5, 2_500]
    pace = Pace(20.0)
    assert pace.is_spent(NOW)
    pace = pace.reserved(pace.chunk, NOW + 3)
    for number in range(5):
        pace, at = pace.taken(NOW)
        assert at == pytest.approx(NOW + 3 + number / 20)
    assert pace.taken(NOW) == (pace, None)
