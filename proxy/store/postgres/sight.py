"""Tracks the server behind the connections: its clock, its timeline and its position in the write-ahead log.

A pooler may switch servers silently, so every transaction observes it anew. A failover to an asynchronous standby loses pushes that have not
reached it, so this remembers the ids that were acknowledged last. Sends no queries itself.
"""

import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, LiteralString, NamedTuple

SKEW_SECONDS = 5.0  # between two clocks; a larger skew is reported
ACKNOWLEDGED = 4_096  # the most ids that are remembered, of the last day
_ACKNOWLEDGED_SECONDS = 86_400.0  # the store itself forgets ids after some days

_CLOCK: LiteralString = "extract(epoch FROM statement_timestamp())::double precision"
_POSITION: LiteralString = (
    "CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint END"
)
_FILE: LiteralString = "CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END"
LOOK: LiteralString = f"{_CLOCK}, {_POSITION}, {_FILE}"


class Asked(NamedTuple):
    """When an observation began (monotonic seconds), and the state known then."""

    at: float
    moves: int
    position: int


class Sight:
    """One process's view of the server. `timeline`: None until it is known; each promotion of a standby begins a new one.

    `moved`: the server has changed or went back to an earlier state, and lost pushes have not been looked for yet; also set at the first
    observation, which is the first of the `moves`. `look`, `position`: columns to select. `tells_servers`: the service reports its timeline
    and position; not all do.
    """

    def __init__(self, *, tells_servers: bool = True) -> None:
        self.look: LiteralString = LOOK if tells_servers else f"{_CLOCK}, NULL, NULL"
        self.position: LiteralString = _POSITION if tells_servers else "NULL"
        self.looked_at = float("-inf")  # on the monotonic clock
        self.timeline: int | None = None
        self.moved = False
        self.moves = 0
        self._position = 0  # in bytes of the write-ahead log
        self._offset = time.time() - time.monotonic()
        self._told_time = False
        self._acknowledged = deque[tuple[float, list[str]]]()
        self._count = 0

    # --- its clock

    def now(self) -> float:
        """Returns Unix seconds by the server's clock; by this machine's until the server was observed."""
        return time.monotonic() + self._offset

    @property
    def ahead_seconds(self) -> float:
        """Returns by how much the server's clock is ahead of this machine's."""
        return self.now() - time.time()

    def skew(self) -> str:
        """Returns a sentence if the two clocks disagree, else ""."""
        ahead = self.ahead_seconds
        if abs(ahead) <= SKEW_SECONDS:
            return ""
        return (
            f"This machine's clock is {abs(ahead):,.0f} seconds {'behind' if ahead > 0 else 'ahead of'} the database's, which is used for tokens, "
            "retries and ages. Synchronise both with NTP."
        )

    def _set_clock(self, server: float, sent: float, received: float) -> None:
        # The server read its clock between the two, so the offset is known as an interval. No correction is needed while it lies within.
        earliest, latest = server - received, server - sent
        middle = (earliest + latest) / 2
        self._offset = min(max(self._offset, earliest), latest) if self._told_time else middle
        self._told_time = True

    # --- its place

    def asked(self) -> Asked:
        return Asked(time.monotonic(), self.moves, self._position)

    def take(self, asked: Asked, row: Sequence[Any]) -> None:
        """Updates the view from the columns of `look`. Observations overlap, so a position went back only if it is below the one known before."""
        clock, position, file = row
        self.looked_at = time.monotonic()
        self._set_clock(clock, asked.at, self.looked_at)
        if file is None:
            return
        timeline = int(file[:8], 16)
        is_behind = asked.moves == self.moves and position < asked.position
        if timeline != self.timeline or is_behind:
            self.timeline, self._position, self.moved = timeline, position, True
            self.moves += 1
        self._position = max(self._position, position)

    def reached(self, position: int | None, asked: Asked) -> None:
        """Records a position that a commit of this process has passed."""
        if position is not None and asked.moves == self.moves:
            self._position = max(self._position, position)

    # --- what it took

    def acknowledge(self, ids: list[str]) -> None:
        if not ids:
            return
        self._acknowledged.append((time.monotonic(), ids))
        self._count += len(ids)
        while self._count > ACKNOWLEDGED and len(self._acknowledged) > 1:
            self._count -= len(self._acknowledged.popleft()[1])

    def acknowledged(self) -> list[str]:
        """Returns the acknowledged ids, which the server must have."""
        oldest = time.monotonic() - _ACKNOWLEDGED_SECONDS
        return [each for at, ids in self._acknowledged if at > oldest for each in ids]

    def forget(self, lost: Collection[str]) -> None:
        """Forgets ids whose loss was reported."""
        gone = frozenset(lost)
        self._acknowledged = deque((at, [each for each in ids if each not in gone]) for at, ids in self._acknowledged)
        self._count = sum(len(ids) for _, ids in self._acknowledged)
