"""Bounds the index scan for ready lanes from below.

While a snapshot is held open (`pg_dump`), the index keeps dead entries for every time that a lane was ever due: a scan from the start passes
over all of them, and claims become slower with each delivery. So a scan starts a little before the earliest due time that was last found.
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
