"""Spaces requests evenly under SCQ_UPSTREAM_RATE. Pure: reserves nothing itself (`delivery.pacing` does)."""

import math
from typing import Self

import msgspec

_CHUNK_SECONDS = 0.25  # worth of turns that are reserved at a time: one call to the store for all of them
_SOON_SECONDS = 0.02  # turns are given out so far ahead: an increment that waits for its turn counts as started

_replace = msgspec.structs.replace


class Pace(msgspec.Struct, frozen=True):
    """Requests at an even pace: at most `rate` a second, 0 for as many as there are.

    Turns are reserved in chunks, from the one schedule that all senders of the store share: `left` turns remain of the last chunk, the
    first of them at `slot`; `last` is when the turn before it was. All in monotonic seconds.
    """

    rate: float = 0.0
    slot: float = 0.0
    left: int = 0
    last: float = float("-inf")

    @property
    def chunk(self) -> int:
        """Returns how many turns to reserve at a time."""
        return max(1, int(self.rate * _CHUNK_SECONDS))

    @property
    def free_at(self) -> float:
        """Returns when the next turn in hand is. A turn taken late delays the next one: they are never closer than the rate allows."""
        return max(self.slot, self.last + 1 / self.rate) if self.rate else self.slot

    def reserved(self, turns: int, at: float) -> Self:
        """Returns the pace with a new chunk, whose first turn is at `at`."""
        return _replace(self, slot=at, left=turns)

    def taken(self, now: float) -> tuple[Self, float | None]:
        """Takes a turn: returns the pace after it, and when it is, or None if another chunk must be reserved first."""
        if self.rate == 0:
            return self, now
        pace = self._without_missed(now)
        if pace.left == 0:
            return pace, None
        at = max(now, pace.free_at)
        return _replace(pace, slot=pace.slot + 1 / self.rate, left=pace.left - 1, last=at), at

    def turns(self, now: float, most: int) -> int:
        """Returns how many of the turns in hand are due now or very soon."""
        if self.rate == 0:
            return most
        pace = self._without_missed(now)
        soon = now + _SOON_SECONDS - max(pace.free_at, now)
        return min(most, pace.left, math.floor(soon * self.rate) + 1) if soon >= 0 else 0

    def is_spent(self, now: float) -> bool:
        """Returns whether another chunk is needed before the next turn."""
        return self.rate > 0 and self._without_missed(now).left == 0

    def _without_missed(self, now: float) -> Self:
        """Drops turns that nobody took in time: other senders have taken their place by now."""
        late = now - self.slot - max(1 / self.rate, _SOON_SECONDS)
        if late <= 0 or self.left == 0:
            return self
        missed = min(self.left, math.ceil(late * self.rate))
        return _replace(self, slot=self.slot + missed / self.rate, left=self.left - missed)
