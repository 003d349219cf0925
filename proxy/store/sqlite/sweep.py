"""Removes what is over its age from the SQLite outbox in small steps: each is a transaction of its own, so that pushes go in between."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

from proxy.core.turns import faded
from proxy.store.rows import (
    MAX_REFUSED_NAMES,
    RETIRED_AGE,
    SEEN_AGE,
    SHOWN_AGE,
    discarded,
    expired,
    is_over,
    with_address,
)
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.sign_ups import expire

STEP_ROWS = 1_000
SWEPT = "swept"  # the schedule that holds the time of the last sweep

Step = Callable[[float, sqlite3.Connection], float | None]


class Sweep:
    """The steps of one sweep. `now`: Unix seconds; `tallies`: of the transaction that runs a step.

    Each step takes a cursor, 0 at first, and returns the next one, None when it is done.
    """

    def __init__(self, now: float, *, hold_age: timedelta, dead_age: timedelta, tallies: Counter[str]) -> None:
        self._now, self._tallies = now, tallies
        self._hold_age, self._dead_age = hold_age, dead_age
        self.steps: Sequence[Step] = (
            *(self._held, self._seen, self._visitors, self._shown),
            *(self._dead, self._sign_ups, self._lanes, self._rest),
        )

    def _before(self, age: timedelta) -> float:
        return self._now - age.total_seconds()

    def _held(self, _cursor: float, connection: sqlite3.Connection) -> float | None:
        sizes = [size for (size,) in connection.execute(SQL["expire_held"], (self._before(self._hold_age), STEP_ROWS))]
        self._tallies.update(expired(sizes))
        return 0 if len(sizes) == STEP_ROWS else None

    def _seen(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        """Forgets old ids. Those of pushes that are still held stay, so the cursor passes over them."""
        old = connection.execute(SQL["old_seen"], (cursor, self._before(SEEN_AGE), STEP_ROWS)).fetchall()
        gone = connection.executemany(SQL["forget_seen"], [(push_id,) for push_id, _ in old]).rowcount
        last: float | None = old[-1][1] if len(old) == STEP_ROWS else None
        return last if gone or last != cursor else None

    def _visitors(self, _cursor: float, connection: sqlite3.Connection) -> float | None:
        gone = connection.execute(SQL["forget_visitors"], (self._before(RETIRED_AGE), STEP_ROWS)).rowcount
        return 0 if gone == STEP_ROWS else None

    def _shown(self, _cursor: float, connection: sqlite3.Connection) -> float | None:
        before = self._before(self._hold_age) - SHOWN_AGE.total_seconds()
        gone = connection.execute(SQL["forget_shown"], (before, STEP_ROWS)).rowcount
        return 0 if gone == STEP_ROWS else None

    def _dead(self, _cursor: float, connection: sqlite3.Connection) -> float | None:
        gone = connection.execute(SQL["age_out_dead"], (self._before(self._dead_age), STEP_ROWS)).fetchall()
        self._tallies.update(discarded(gone))
        return 0 if len(gone) == STEP_ROWS else None

    def _sign_ups(self, _cursor: float, connection: sqlite3.Connection) -> float | None:
        """Drops those whose turn has not come for so long, so that the queue ends."""
        gone = expire(connection, self._before(self._hold_age), STEP_ROWS, self._tallies, self._now)
        return 0 if gone == STEP_ROWS else None

    def _lanes(self, cursor: float, connection: sqlite3.Connection) -> float | None:
        """Forgets lanes of which nothing is known and in which nothing waits."""
        last: float | None = connection.execute(SQL["lane_step"], (cursor, STEP_ROWS)).fetchone()[0]
        if last is not None:
            connection.execute(SQL["forget_lanes"], (cursor, last))
        return last

    def _rest(self, _cursor: float, connection: sqlite3.Connection) -> float | None:
        connection.execute(SQL["forget_tombstones"], (self._before(RETIRED_AGE),))
        connection.execute(SQL["trim_not_offered"], (MAX_REFUSED_NAMES,))
        refused_names = connection.execute(SQL["refused_names"], (MAX_REFUSED_NAMES,)).fetchall()
        connection.executemany(SQL["forget_not_offered"], with_address(refused_names))
        connection.execute(SQL["forget_aliases"])
        connection.execute(SQL["forget_networks"], (self._now, faded(self._now)))
        self._forget_gauges(connection)
        return None

    def _forget_gauges(self, connection: sqlite3.Connection) -> None:
        """Ends the gauges of ids that are forgotten: by a tally, so that who counts along sees it, and without a row from the next sweep on."""
        for name, counted in connection.execute(SQL["id_gauges"]).fetchall():
            if is_over(name, self._now) and counted:
                self._tallies[name] -= counted
            elif is_over(name, self._now):
                connection.execute(SQL["forget_counter"], (name,))
