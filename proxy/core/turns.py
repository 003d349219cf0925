"""Whose turn it is among sign-ups that wait: how many may leave in an hour, and which network has been served least.

Pure. The stores keep the numbers, and carry out what is decided here.
"""

from math import exp, log1p

import msgspec

HOUR = 3_600.0  # seconds
_FADE_HOURS = 4.0  # after which a turn counts for less than 2 %


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What a claim gives to lanes of strangers, in which nothing waits that somebody has vouched for.

    `least`: lanes of theirs to claim even if vouched lanes would fill the claim; `per_lane`: pushes in one of their leases, at most.
    `per_hour`: sign-ups that may leave in an hour, and `per_client` those of one client address; 0 for no limit.
    """

    least: int = 0
    per_lane: int = 1_000
    per_hour: int = 0
    per_client: int = 0


def next_free(until: float, per_hour: int, now: float) -> float:
    """Returns when the next one may leave (Unix seconds), `now` or earlier if at once. `until`: what `left` returned last, 0 at first.

    Half of an hour's number may leave at once, the rest evenly, so that no window of an hour has more.
    """
    if not per_hour:
        return now
    burst, interval = _pace(per_hour)
    return until - (burst - 1) * interval


def left(until: float, per_hour: int, now: float) -> float:
    """Returns what to keep once one has left: until when all that has left so far would have taken at the even pace."""
    return max(until, now) + _pace(per_hour)[1] if per_hour else until


def _pace(per_hour: int) -> tuple[int, float]:
    """Returns how many may leave at once, and the seconds between the others."""
    burst = (per_hour + 1) // 2
    return burst, HOUR / max(1, per_hour - burst)


def unserved(now: float) -> float:
    """Returns the weight of a network that never had a turn: less than that of any that had, and less the longer it has been waiting."""
    return now / 1e9


def faded(now: float) -> float:
    """Returns the weight of a network whose turns are so long ago that it need not be told from one that had none."""
    return now / HOUR - _FADE_HOURS


def served(weight: float, now: float) -> float:
    """Returns the weight of a network that has its turn now. `weight`: what it was, see `unserved`.

    The number of its turns counts for less by a factor of e with every hour that has passed. As that goes for all networks alike, they can be
    compared, and kept in an index, without a clock: the weight is the logarithm of the number, as of the epoch.
    """
    hours = now / HOUR
    return hours + log1p(exp(min(weight - hours, 700.0)))
