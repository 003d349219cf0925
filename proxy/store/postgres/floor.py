"""The time from which on lanes are looked for that are ready.

While a snapshot is held open (`pg_dump`), the index keeps every time that a lane has ever had: a look from the beginning passes over all of
them, and claims become dearer with each delivery. So a look begins a little before the earliest time that a lane was found to have. Lanes of
strangers have a floor of their own: they are claimed behind the others, and may be ready for long.
"""

_SECONDS = 1.0  # between two looks for the earliest time
_WHOLE_SECONDS = 30.0  # between two from the beginning
# A time is that of the statement that set it, and is seen once that has committed. Most commit within these seconds; what takes longer is found
# by a look from the beginning.
_MARGIN_SECONDS = 2.0


class Floor:
    """`value`: Unix seconds of the database's clock, 0 for the beginning."""

    def __init__(self) -> None:
        self.value = 0.0
        self._looked_at = self._began_at = float("-inf")  # on the monotonic clock

    def due(self, now: float) -> float | None:
        """Returns from where on to look for the earliest time; None: it is known well enough. `now`: on the monotonic clock."""
        if now < self._looked_at + _SECONDS:
            return None
        self._looked_at = now
        if now < self._began_at + _WHOLE_SECONDS:
            return self.value
        self._began_at = now
        return 0.0

    def found(self, seconds: float | None, now: float) -> None:
        """Takes in when the first lane is ready, counted from `now`, looked for from the floor on, or from further down; None: not soon."""
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
