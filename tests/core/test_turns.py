"""Turns of sign-ups: how many may leave in an hour, and which network comes next."""

import itertools
import random
from bisect import bisect_left

import pytest

from proxy.core.turns import HOUR, left, next_free, served

NOW = 1_800_000_000.0


def leave(per_hour: int, asked: list[float]) -> list[float]:
    """Returns when those leave that ask one after the other, each as soon as it may."""
    until, now, times = 0.0, 0.0, []
    for at in asked:
        now = max(now, at, next_free(until, per_hour, at))
        until = left(until, per_hour, now)
        times.append(now)
    return times


def most_in_an_hour(times: list[float]) -> int:
    """Counts in every window that begins with one of them; a microsecond is lost to rounding."""
    return max(bisect_left(times, start + HOUR - 1e-6) - number for number, start in enumerate(times))


@pytest.mark.parametrize("per_hour", [1, 2, 3, 4, 10, 251, 1_000])
def test_no_hour_has_more_whenever_they_come(per_hour: int) -> None:
    rng = random.Random(per_hour)  # noqa: S311 - a seeded run
    for pace in (0.0, 1.0, HOUR / per_hour, 2 * HOUR):
        asked = list(itertools.accumulate([NOW] + [rng.uniform(0, 2 * pace) for _ in range(3 * per_hour + 3)]))
        assert most_in_an_hour(leave(per_hour, asked)) <= per_hour


def test_half_of_them_leave_at_once_and_the_rest_evenly() -> None:
    assert [round(at - NOW) for at in leave(4, [NOW] * 6)] == [0, 0, 1_800, 3_600, 5_400, 7_200]


def test_two_hundred_who_come_within_an_hour_leave_within_it() -> None:
    for asked in ([NOW] * 200, [NOW + number * 18 for number in range(200)]):
        assert leave(250, asked)[-1] <= NOW + HOUR


def test_without_a_limit_all_leave_at_once() -> None:
    assert leave(0, [NOW] * 1_000) == [NOW] * 1_000


def test_a_network_that_was_served_less_weighs_less() -> None:
    never, once = 0.0, served(0.0, NOW)
    twice = served(once, NOW + 1)
    assert never < once < twice


def test_turns_fade_within_hours() -> None:
    often = 0.0
    for number in range(1_000):
        often = served(often, NOW + number)
    assert often > served(0.0, NOW + HOUR)
    assert often < served(0.0, NOW + 9 * HOUR)


def test_weights_are_exact_where_it_matters() -> None:
    """A turn more or less is told apart after thousands of them."""
    many = 0.0
    for _ in range(5_000):
        many = served(many, NOW)
    assert served(many, NOW) > many
