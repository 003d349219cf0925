"""What is over its age in the SQLite outbox, removed in small steps: each is a transaction of its own, so that pushes go in between."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

from proxy.core.cookies import COOKIE_AGE
from proxy.core.reasons import Reason
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.reads import DEAD, HELD_BYTES, HELD_OVERHEAD, HOLDING, MAX_REFUSED_NAMES

SEEN_AGE = timedelta(days=9)  # the contract promises 8
RETIRED_AGE = COOKIE_AGE + timedelta(days=35)  # a retired cookie must have expired before it is forgotten
STEP_ROWS = 1_000

Step = Callable[[float, sqlite3.Connection], float | None]


class Sweep:
    """`now`: Unix seconds; `tallies`: of the transaction that runs a step.

    Each step takes a cursor, 0 at first, and returns the next one, None when it is through.
    """

    def __init__(self, now: float, *, hold_age: timedelta, dead_age: timedelta, tallies: Counter[str]) -> None:
        self._now, self._tallies = now, tallies
        self._hold_age, self._dead_age = hold_age, dead_age
        self.steps: Sequence[Step] = (self._held, self._seen, self._visitors, self._dead, self._lanes, self._rest)

    def _before(self, age: timedelta) -> float:
        return self._now - age.total_seconds()

    def _held(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        sizes = [size for (size,) in connection.execute(SQL["expire_held"], (self._before(self._hold_age), STEP_ROWS))]
        self._tallies.update({"hold_expired": len(sizes), f"refused:{Reason.HOLD_EXPIRED}": len(sizes)})
        self._tallies.update({HOLDING: -len(sizes), HELD_BYTES: -sum(sizes) - HELD_OVERHEAD * len(sizes)})
        return 0 if len(sizes) == STEP_ROWS else None

    def _seen(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        """Ids of what is still held stay known, so the cursor passes over them."""
        old = connection.execute(SQL["old_seen"], (cursor, self._before(SEEN_AGE), STEP_ROWS)).fetchall()
        gone = connection.executemany(SQL["forget_seen"], [(push_id,) for push_id, _ in old]).rowcount
        last: float | None = old[-1][1] if len(old) == STEP_ROWS else None
        return last if gone or last != cursor else None

    def _visitors(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        gone = connection.execute(SQL["forget_visitors"], (self._before(RETIRED_AGE), STEP_ROWS)).rowcount
        return 0 if gone == STEP_ROWS else None

    def _dead(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        gone = connection.execute(SQL["age_out_dead"], (self._before(self._dead_age), STEP_ROWS)).rowcount
        self._tallies.update({"discarded": gone, DEAD: -gone})
        return 0 if gone == STEP_ROWS else None

    def _lanes(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        """Lanes of whom nothing is known and nothing waits."""
        last: float | None = connection.execute(SQL["lane_step"], (cursor, STEP_ROWS)).fetchone()[0]
        if last is not None:
            connection.execute(SQL["forget_lanes"], (cursor, last))
        return last

    def _rest(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        connection.execute(SQL["forget_tombstones"], (self._before(RETIRED_AGE),))
        connection.execute(SQL["trim_not_offered"], (MAX_REFUSED_NAMES,))
        connection.execute(SQL["forget_aliases"])
        return None
