"""What appends read and write in the SQLite outbox, gathered over a transaction, because a statement costs more than what it does.

What many requests of a transaction will ask for is read together; what they add is written together, at its end or before anybody else in
the transaction looks. What is asked for again and again, and changes seldom, is remembered from one transaction to the next: about
visitors and people, for as long as nothing but appends has touched them. Whoever else changes that says `forget`. All on the store's thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from proxy.core.calls import Kind, Track
from proxy.core.decision import (
    Alias,
    Bind,
    Born,
    Change,
    Decision,
    Drop,
    EndAlias,
    Enqueue,
    Forgotten,
    HeldPush,
    Hold,
    Identified,
    LaneFacts,
    NotOffered,
    Reads,
    Refused,
    Remember,
    Retire,
    Schedule,
    Scheduled,
    Seen,
    Verify,
    VisitorFacts,
)
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust, Visitor
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.reads import HELD_BYTES, HELD_OVERHEAD, HOLDING, MAX_REFUSED_NAMES, WAITING, tombstone, value

_REMEMBERED = 20_000  # visitors, and people: some 5 MB

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class _Lane:
    """A lane as this transaction leaves it. `gained`: pushes that are not written yet."""

    __slots__ = ("gained", "gained_verified", "id", "verified", "waiting")

    def __init__(self, lane_id: int, verified: bool, waiting: int) -> None:
        self.id, self.verified, self.waiting = lane_id, verified, waiting
        self.gained, self.gained_verified = 0, False


class Appends:
    """`decision.Facts`, and what carries out a plan. `tallies` are written with the transaction by its owner."""

    def __init__(self, tallies: Counter[str]) -> None:
        self.site_key = b""
        self.ready_lanes = False  # some lane has gained a push since this was last cleared
        self._tallies = tallies
        self._connection: sqlite3.Connection
        self._now = 0.0
        # Of this transaction.
        self._asked: set[str] = set()  # ids that were looked up, whether found or not
        self._seen: dict[str, Seen] = {}
        self._lanes: dict[str, _Lane] = {}
        self._pushes: list[tuple[Any, ...]] = []  # rows that are not written yet
        self._ids: list[tuple[Any, ...]] = []
        # From one transaction to the next.
        self._visitors: dict[str, VisitorFacts] = {}
        self._aliases: dict[str, Alias | None] = {}
        self._erased: dict[str, float | None] = {}

    # --- the transaction

    def begin(self, connection: sqlite3.Connection, reads: Sequence[Reads]) -> None:
        """A transaction has begun, whose appends will ask for this."""
        self._connection = connection
        self._asked = {push_id for each in reads for push_id in each.ids}
        self._seen.clear()
        self._lanes.clear()
        if not reads:
            return
        for push_id, *row in connection.execute(SQL["seen_of_many"], (_as_json(self._asked),)):
            self._seen[push_id] = _seen(*row)
        keys = {each.key for each in reads if each.key is not None}
        for key, *lane in connection.execute(SQL["lanes_of_many"], (_as_json(keys),)):
            self._lanes[key] = _Lane(*lane)

    def flush(self) -> None:
        """Writes what is gathered: the transaction ends, or somebody else in it is to see it."""
        if self._pushes:
            self._connection.executemany(SQL["enqueue"], self._pushes)
            self._pushes = []
            gains = [
                (lane.id, lane.gained, self._now, lane.gained_verified) for lane in self._lanes.values() if lane.gained
            ]
            self._connection.executemany(SQL["lanes_gain"], gains)
        if self._ids:
            self._connection.executemany(SQL["remember"], self._ids)
            self._ids = []
        self._lanes.clear()

    def undone(self) -> None:
        """The transaction was rolled back."""
        self._pushes, self._ids = [], []
        self.ready_lanes = False
        self.forget()

    def forget(self) -> None:
        """Somebody else has written what is remembered here."""
        for remembered in (self._asked, self._seen, self._lanes, self._visitors, self._aliases, self._erased):
            remembered.clear()

    # --- facts

    def seen(self, push_id: str) -> Seen | None:
        if push_id not in self._asked:
            row = self._connection.execute(SQL["seen"], (push_id,)).fetchone()
            self._asked.add(push_id)
            if row is not None:
                self._seen[push_id] = _seen(*row)
        return self._seen.get(push_id)

    def visitor(self, visitor_id: str) -> VisitorFacts:
        facts = self._visitors.get(visitor_id)
        if facts is None:
            row = self._connection.execute(SQL["visitor"], (visitor_id,)).fetchone()
            retired, identified, left, holding = row
            facts = _keep(self._visitors, visitor_id, VisitorFacts(bool(retired), identified, left, holding))
        return facts

    def lane(self, key: str) -> LaneFacts:
        lane = self._lanes.get(key) or self._read_lane(key)
        return LaneFacts(lane.verified, lane.waiting) if lane is not None else _NO_LANE

    def alias(self, key: str) -> Alias | None:
        if key not in self._aliases:
            row = self._connection.execute(SQL["alias"], (key,)).fetchone()
            _keep(self._aliases, key, Alias(*row) if row else None)
        return self._aliases[key]

    def erased_at(self, key: str) -> float | None:
        if key not in self._erased:
            _keep(self._erased, key, value(self._connection, "tombstone", tombstone(key, self.site_key)))
        return self._erased[key]

    def held(self, visitor_id: str) -> list[HeldPush]:
        rows = self._connection.execute(SQL["held"], (visitor_id,))
        return [HeldPush(push_id, msgspec.json.decode(body, type=Track), since) for push_id, body, since in rows]

    def schedule(self, name: Schedule) -> float:
        return value(self._connection, "schedule", name) or 0.0

    def held_bytes(self) -> int:
        return (value(self._connection, "counter", HELD_BYTES) or 0) + self._tallies[HELD_BYTES]

    # --- a plan

    def carry_out(self, decision: Decision[Any]) -> None:
        self._now = time.time()
        for change in decision.changes:
            self._apply[type(change)](self, change)

    def _enqueue(self, change: Enqueue) -> None:
        self._queue(change, _encode(change.body), self._now)
        self._tallies["accepted"] += 1

    def _queue(self, change: Enqueue, body: bytes, since: float) -> None:
        if isinstance(change.body, Track):
            kind, increments = Kind.TRACK, False
        else:
            kind, increments = Kind.IDENTIFY, change.body.increments
        verified = change.trust is Trust.VERIFIED
        lane = self._lanes.get(change.key) or self._read_lane(change.key)
        if lane is None or change.not_before > self._now:
            lane = self._put_off(change.key, change.not_before, verified, lane)
        else:
            lane.gained += 1
            lane.gained_verified = lane.gained_verified or verified
        lane.waiting += 1
        self._pushes.append((lane.id, change.id, change.address, change.trust, kind, body, since, increments))
        self._tallies[WAITING] += 1
        self.ready_lanes = True

    def _put_off(self, key: str, not_before: float, verified: bool, lane: _Lane | None) -> _Lane:
        """A lane that is new, or whose push is not to be sent yet: at once, as the time it is ready at depends on what it was."""
        if lane is not None and lane.gained:
            self.flush()
            lane = self._read_lane(key)
        times = (max(self._now, not_before), not_before > self._now, verified)
        (lane_id,) = self._connection.execute(SQL["lane_gains"], (key, *times)).fetchone()
        if lane is None:
            lane = self._lanes[key] = _Lane(lane_id, False, 0)
        return lane

    def _read_lane(self, key: str) -> _Lane | None:
        row = self._connection.execute(SQL["lane"], (key,)).fetchone()
        if row is None:
            return None
        lane = self._lanes[key] = _Lane(*row)
        return lane

    def _hold(self, change: Hold) -> None:
        body = _encode(change.track)
        self._connection.execute(SQL["hold"], (change.visitor, change.id, body, self._now))
        self._visitors.pop(change.visitor, None)
        self._tallies.update({"held": 1, HOLDING: 1, HELD_BYTES: len(body) + HELD_OVERHEAD})

    def _bind(self, change: Bind) -> None:
        for push_id in change.keep:
            row = self._connection.execute(SQL["held_push"], (change.visitor, push_id)).fetchone()
            if row is None:
                continue
            body, since = row
            self._tallies["bound"] += 1
            self.unhold("unhold", change.visitor, push_id)
            track = msgspec.json.decode(body, type=Track)
            self._queue(Enqueue(push_id, change.key, change.address, change.trust, track), body, since)
        for push_id, reason in change.refuse:
            count = self.unhold("unhold", change.visitor, push_id)
            self._tallies.update({"hold_refused": count, f"refused:{reason}": count})

    def _retire(self, change: Retire) -> None:
        self._connection.execute(SQL["retire"], (change.visitor, self._now))
        self._refuse_held(change.visitor, change.reason)

    def _drop(self, change: Drop) -> None:
        self._refuse_held(change.visitor, change.reason)

    def _refuse_held(self, visitor: str, reason: Reason) -> None:
        count = self.unhold("unhold_visitor", visitor)
        self._tallies.update({"hold_refused": count, f"refused:{reason}": count})

    def unhold(self, query: str, visitor: str, *push_id: str) -> int:
        """Removes what is held, all of it or one push; how many it were."""
        self._visitors.pop(visitor, None)
        sizes = [size for (size,) in self._connection.execute(SQL[query], (visitor, *push_id))]
        self._tallies.update({HOLDING: -len(sizes), HELD_BYTES: -sum(sizes) - HELD_OVERHEAD * len(sizes)})
        return len(sizes)

    def _born(self, change: Born) -> None:
        self._connection.execute(SQL["born"], (change.visitor, self._now, change.left))
        self._visitors.pop(change.visitor, None)

    def _identified(self, change: Identified) -> None:
        self._connection.execute(SQL["identified"], (change.visitor, self._now))
        self._visitors.pop(change.visitor, None)

    def _verify(self, change: Verify) -> None:
        lane = self._lanes.get(change.key) or self._read_lane(change.key)
        if lane is None:
            self._connection.execute(SQL["verify"], (change.key,))
        elif not lane.verified:
            self._connection.execute(SQL["verify"], (change.key,))
            lane.verified = True

    def _end_alias(self, change: EndAlias) -> None:
        if self.alias(change.key) is not None:
            self._connection.execute(SQL["end_alias"], (change.key,))
            self._aliases[change.key] = None

    def _forgotten(self, change: Forgotten) -> None:
        self._tallies.update({"accepted": 1, "erased": 1})

    def _remember(self, change: Remember) -> None:
        self._ids.append((change.id, self._now, change.shown, _encode(change.after) if change.after else None))
        self._asked.add(change.id)
        self._seen.setdefault(change.id, Seen(change.shown, change.after, self._now))

    def _refused(self, change: Refused) -> None:
        self._tallies[f"refused:{change.reason}"] += 1

    def _not_offered(self, change: NotOffered) -> None:
        self._connection.execute(SQL["not_offered"], (change.setting, change.name, self._now, MAX_REFUSED_NAMES))

    def _scheduled(self, change: Scheduled) -> None:
        self._connection.execute(SQL["set_schedule"], (change.name, change.until))

    _apply: ClassVar[dict[type[Change], Callable[..., None]]] = {
        Enqueue: _enqueue,
        Hold: _hold,
        Bind: _bind,
        Retire: _retire,
        Born: _born,
        Identified: _identified,
        Drop: _drop,
        Verify: _verify,
        EndAlias: _end_alias,
        Forgotten: _forgotten,
        Remember: _remember,
        Refused: _refused,
        NotOffered: _not_offered,
        Scheduled: _scheduled,
    }


_NO_LANE = LaneFacts()


def _keep(memory: dict[str, T], key: str, found: T) -> T:
    """Everything at once makes room: simpler than the oldest first, and as good for something so cheap to find again."""
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = found
    return found


def _seen(shown: str, after: bytes | None, at: float) -> Seen:
    return Seen(shown, msgspec.json.decode(after, type=Visitor) if after is not None else None, at)


def _as_json(texts: set[str]) -> str:
    return _encode(list(texts)).decode()
