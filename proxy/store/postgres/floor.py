"""Bounds the index scan for ready lanes from below.

While a snapshot is held open (`pg_dump`), the index keeps every time that a lane has ever had: a look from the beginning passes over all of
them, and claims become dearer with each delivery. So a look begins a little before the earliest time that a lane was found to have. Lanes of
strangers have a floor of their own: they are claimed behind the others, and may be ready for long.
"""

_SECONDS = 1.0  # between two searches for the earliest time
_WHOLE_SECONDS = 30.0  # between two full scans
# A due time is set at the start of a statement, and becomes visible at its commit. Most commit within these seconds; a full scan finds the rest.
_MARGIN_SECONDS = 2.0


class Floor:
    """The lower bound. `value`: Unix seconds of the database's clock, 0 for a full scan."""

    def __init__(self) -> None:
        self.value = 0.0
        self._looked_at = self._began_at = float("-inf")  # on the monotonic clock

    def due(self, now: float) -> float | None:
        """Returns where to start searching for the earliest time, None if the bound is recent enough. `now`: monotonic seconds."""
        if now < self._looked_at + _SECONDS:
            return None
        self._looked_at = now
        if now < self._began_at + _WHOLE_SECONDS:
            return self.value
        self._began_at = now
        return 0.0

    def found(self, seconds: float | None, now: float) -> None:
        """Updates the bound from a row of the query `next_ready`, which searched from the bound or from below it."""
        self.value = now + min(0.0, seconds or 0.0) - _MARGIN_SECONDS


class Floors:
    """The floors of vouched lanes, and of lanes of strangers."""

    def __init__(self) -> None:
        self.vouched, self.strangers = Floor(), Floor()

    def due(self, now: float) -> dict[str, float] | None:
        """Returns from where on to look for the earliest times, as parameters of queries. `now`: on the monotonic clock."""
        vouched, strangers = self.vouched.due(now), self.strangers.due(now)
        return (
            {"floor": vouched, "stranger_floor": strangers} if vouched is not None and strangers is not None else None
        )

    @property
    def values(self) -> dict[str, float]:
        return {"floor": self.vouched.value, "stranger_floor": self.strangers.value}

    def found(self, row: tuple[float | None, float | None, float]) -> float | None:
        """Takes in a row of the query `next_ready`; returns the seconds until the first lane is ready, None: not soon."""
        vouched, strangers, now = row
        self.vouched.found(vouched, now)
        self.strangers.found(strangers, now)
        return min((each for each in (vouched, strangers) if each is not None), default=None)
