"""What may happen only so often in an hour, an hour's worth of it at once. Pure: what has happened so far is kept by the outbox."""

from __future__ import annotations

from proxy.core.decision import Change, Facts, Schedule, Scheduled

_HOUR = 3_600.0  # seconds


class HourlyQuota:
    """The turns that one request takes. `changes`: where it says so; `now`: Unix seconds."""

    def __init__(self, facts: Facts, changes: list[Change], now: float) -> None:
        self._facts, self._changes, self._now = facts, changes, now
        self._taken: dict[Schedule, float] = {}  # as this request leaves them

    def is_free(self, name: Schedule) -> bool:
        """Whether the next turn comes at once."""
        return (self._taken.get(name) or self._facts.schedule(name)) <= self._now + _HOUR

    def take(self, name: Schedule, per_hour: float) -> float:
        """The next turn: when it comes (Unix seconds)."""
        if not per_hour:
            return self._now
        until = max(self._taken.get(name) or self._facts.schedule(name), self._now) + _HOUR / per_hour
        self._taken[name] = until
        self._changes.append(Scheduled(name, until))
        return max(until - _HOUR, self._now)
