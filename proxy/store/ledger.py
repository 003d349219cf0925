"""A group of appends as it takes shape before anything is written: for a store that is asked over a network, and cannot answer in between.

Pure: `Known` is what has been read for the group; a `Draft` shows it to decisions, with what the plans before them change, and gathers
the rows to be written. Nothing here asks the store. Instead of a fact that was not read a decision is shown the likeliest one, and what it
missed is noted (`Draft.missed`): it is to be read, and the decision made again. Decisions are pure, so that costs nothing but time, and
because a guess is mostly right, a decision mostly names all that it needs the first time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

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
from proxy.core.visitors import Trust

HELD_BYTES, WAITING, HOLDING, DEAD = "gauge:held_bytes", "gauge:waiting", "gauge:holding", "gauge:dead"
HELD_OVERHEAD = 300  # bytes that a held push costs beside its body: its row, its indexes, its id in `seen`

_encode = msgspec.json.Encoder().encode


Kinds = Literal["ids", "keys", "visitors", "held", "schedules"]


class Wants:
    """What is to be read: push `ids`; `keys` of people: lane, alias, erasure; `visitors`; those of whom what is `held`; `schedules`."""

    __slots__ = ("held", "ids", "keys", "schedules", "visitors")

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.keys: set[str] = set()
        self.visitors: set[str] = set()
        self.held: set[str] = set()
        self.schedules: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.ids or self.keys or self.visitors or self.held or self.schedules)

    def add(self, other: Wants) -> None:
        self.ids |= other.ids
        self.keys |= other.keys
        self.visitors |= other.visitors
        self.held |= other.held
        self.schedules |= other.schedules


class HeldRow(msgspec.Struct, frozen=True):
    """`seq`: None for one that is not written yet. `body`: as JSON."""

    seq: int | None
    id: str
    body: bytes
    since: float


class Known:
    """What has been read of the store in one transaction. What was asked for (`asked`) and not found is not there.

    `now`: the store's clock (Unix seconds); `ahead`: by how many seconds it is ahead of this process's clock.
    """

    def __init__(self, site_key: bytes) -> None:
        self.site_key = site_key
        self.now = 0.0
        self.ahead = 0.0
        self.asked = Wants()
        self.seen: dict[str, Seen] = {}
        self.lanes: dict[str, LaneFacts] = {}
        self.aliases: dict[str, Alias] = {}
        self.erased: dict[str, float] = {}
        self.visitors: dict[str, VisitorFacts] = {}
        self.held: dict[str, list[HeldRow]] = {}
        self.held_bytes = 0
        self.schedules: dict[Schedule, float] = {}


class LaneChange(msgspec.Struct):
    """What a group adds to a lane.

    `delay` (seconds) and `put_off`: when it is ready, and whether that is a putting off, if nothing waits in it. `vouched`: something was
    added that goes no matter how long the lane was put off.
    """

    gained: int = 0
    delay: float = 0.0
    put_off: bool = False
    vouched: bool = False
    verify: bool = False


class VisitorChange(msgspec.Struct):
    """`left`: lane key of who logged out where it began. None: that stays as it is, unless it is `identified`; then it no longer matters."""

    retired: bool = False
    identified: bool = False
    left: str | None = None


class PushRow(msgspec.Struct, frozen=True):
    id: str
    key: str
    address: str
    trust: Trust
    kind: Kind
    body: bytes
    since: float
    increments: bool


class Draft:
    """Implements `decision.Facts`, and gathers what carries out the plans: the attributes that have no underscore are for whoever writes them."""

    def __init__(self, known: Known) -> None:
        self.site_key = known.site_key
        self.missed = Wants()
        self.ask: Callable[[Kinds, str], None] | None = (
            None  # instead of a guess, if somebody is there who can read it at once
        )
        self._known = known
        self._unheld_of: Counter[str] = Counter()  # how many of those that were read as held are gone, by visitor
        self._remembered: dict[str, Seen] = {}
        self.lanes: dict[str, LaneChange] = {}
        self.pushes: list[PushRow] = []
        self.visitors: dict[str, VisitorChange] = {}
        self.held_rows: dict[str, list[HeldRow]] = {}  # new ones, by visitor
        self.unheld: set[int] = set()  # seq
        self.ended_aliases: set[str] = set()
        self.remembered: list[Remember] = []
        self.not_offered: Counter[tuple[str, str]] = Counter()  # by setting and name
        self.schedules: dict[Schedule, float] = {}
        self.tallies: Counter[str] = Counter()

    # --- facts

    def seen(self, push_id: str) -> Seen | None:
        self._want("ids", push_id)
        return self._known.seen.get(push_id) or self._remembered.get(push_id)

    def visitor(self, visitor_id: str) -> VisitorFacts:
        known = self._known
        self._want("visitors", visitor_id)
        facts, change = known.visitors.get(visitor_id, _NO_VISITOR), self.visitors.get(visitor_id)
        holding = facts.holding - self._unheld_of[visitor_id] + len(self.held_rows.get(visitor_id, ()))
        if change is None:
            return facts if holding == facts.holding else msgspec.structs.replace(facts, holding=holding)
        identified = known.now if change.identified or facts.identified is not None else None
        left = change.left or (None if change.identified else facts.left)
        return VisitorFacts(facts.retired or change.retired, identified, left, holding)

    def lane(self, key: str) -> LaneFacts:
        self._want("keys", key)
        facts, change = self._known.lanes.get(key, _NO_LANE), self.lanes.get(key)
        if change is None:
            return facts
        return LaneFacts(facts.verified or change.verify, facts.waiting + change.gained)

    def alias(self, key: str) -> Alias | None:
        self._want("keys", key)
        return None if key in self.ended_aliases else self._known.aliases.get(key)

    def erased_at(self, key: str) -> float | None:
        self._want("keys", key)
        return self._known.erased.get(key)

    def held(self, visitor_id: str) -> Sequence[HeldPush]:
        rows = self._held_of(visitor_id)
        return [HeldPush(row.id, msgspec.json.decode(row.body, type=Track), row.since) for row in rows]

    def held_bytes(self) -> int:
        return self._known.held_bytes + self.tallies[HELD_BYTES]

    def schedule(self, name: Schedule) -> float:
        self._want("schedules", name)
        return self.schedules.get(name) or self._known.schedules.get(name, 0.0)

    def _want(self, kind: Kinds, name: str) -> None:
        if name in getattr(self._known.asked, kind):
            return
        if self.ask is not None:
            self.ask(kind, name)
        else:
            getattr(self.missed, kind).add(name)

    def _held_of(self, visitor_id: str) -> list[HeldRow]:
        self._want("held", visitor_id)
        rows = [row for row in self._known.held.get(visitor_id, ()) if row.seq not in self.unheld]
        return rows + self.held_rows.get(visitor_id, [])

    # --- a plan

    def look_up(self, decision: Decision[Any]) -> None:
        """Notes as missed what has to be known before the plan is carried out."""
        for change in decision.changes:
            match change:
                case Enqueue(key=key) | Verify(key=key) | EndAlias(key=key):
                    self._want("keys", key)
                case Remember(id=push_id):
                    self.seen(push_id)
                case Bind(key=key, visitor=visitor):
                    self._want("keys", key)
                    self._want_held(visitor)
                case Retire(visitor=visitor) | Drop(visitor=visitor):
                    self._want_held(visitor)
                case Hold(visitor=visitor) | Born(visitor=visitor) | Identified(visitor=visitor):
                    self.visitor(visitor)
                case Scheduled(name=name):
                    self.schedule(name)

    def _want_held(self, visitor_id: str) -> None:
        self.visitor(visitor_id)
        self._want("held", visitor_id)

    def carry_out(self, decision: Decision[Any]) -> None:
        """Everything that the plan needs is known (`look_up`). If this raises, the draft is of no use any more."""
        for change in decision.changes:
            self._apply[type(change)](self, change)

    def _enqueue(self, change: Enqueue) -> None:
        self._queue(change, _encode(change.body), self._known.now)
        self.tallies["accepted"] += 1

    def _queue(self, change: Enqueue, body: bytes, since: float) -> None:
        kind, increments = Kind.TRACK, False
        if not isinstance(change.body, Track):
            kind, increments = Kind.IDENTIFY, change.body.increments
        verified = change.trust is Trust.VERIFIED
        delay = max(0.0, change.not_before + self._known.ahead - self._known.now)
        lane = self._lane(change.key)
        if lane.gained == 0:
            lane.delay, lane.put_off = delay, delay > 0
        elif lane.put_off and verified:
            lane.delay, lane.put_off = 0.0, False
        lane.gained += 1
        lane.vouched = lane.vouched or verified
        self.pushes.append(PushRow(change.id, change.key, change.address, change.trust, kind, body, since, increments))
        self.tallies[WAITING] += 1

    def _lane(self, key: str) -> LaneChange:
        return self.lanes.setdefault(key, LaneChange())

    def _visitor(self, visitor_id: str) -> VisitorChange:
        return self.visitors.setdefault(visitor_id, VisitorChange())

    def _hold(self, change: Hold) -> None:
        row = HeldRow(None, change.id, _encode(change.track), self._known.now)
        self.held_rows.setdefault(change.visitor, []).append(row)
        self.tallies.update({"held": 1, HOLDING: 1, HELD_BYTES: len(row.body) + HELD_OVERHEAD})

    def _bind(self, change: Bind) -> None:
        held = {row.id: row for row in self._held_of(change.visitor)}
        for push_id in change.keep:
            row = held.pop(push_id, None)
            if row is not None:
                self._unhold(change.visitor, row)
                self.tallies["bound"] += 1
                track = msgspec.json.decode(row.body, type=Track)
                self._queue(Enqueue(push_id, change.key, change.address, change.trust, track), row.body, row.since)
        for push_id, reason in change.refuse:
            row = held.pop(push_id, None)
            if row is not None:
                self._unhold(change.visitor, row)
                self.tallies.update({"hold_refused": 1, f"refused:{reason}": 1})

    def _unhold(self, visitor: str, row: HeldRow) -> None:
        if row.seq is None:
            self.held_rows[visitor].remove(row)
        else:
            self.unheld.add(row.seq)
            self._unheld_of[visitor] += 1
        self.tallies.update({HOLDING: -1, HELD_BYTES: -len(row.body) - HELD_OVERHEAD})

    def _refuse_held(self, visitor: str, reason: Reason) -> None:
        for row in self._held_of(visitor):
            self._unhold(visitor, row)
            self.tallies.update({"hold_refused": 1, f"refused:{reason}": 1})

    def _retire(self, change: Retire) -> None:
        self._visitor(change.visitor).retired = True
        self._refuse_held(change.visitor, change.reason)

    def _drop(self, change: Drop) -> None:
        self._refuse_held(change.visitor, change.reason)

    def _born(self, change: Born) -> None:
        self._visitor(change.visitor).left = change.left

    def _identified(self, change: Identified) -> None:
        visitor = self._visitor(change.visitor)
        visitor.identified, visitor.left = True, None

    def _verify(self, change: Verify) -> None:
        if not self.lane(change.key).verified:
            self._lane(change.key).verify = True

    def _end_alias(self, change: EndAlias) -> None:
        if self.alias(change.key) is not None:
            self.ended_aliases.add(change.key)

    def _forgotten(self, change: Forgotten) -> None:
        self.tallies.update({"accepted": 1, "erased": 1})

    def _remember(self, change: Remember) -> None:
        """What is known of an id already stays."""
        if self.seen(change.id) is None:
            self.remembered.append(change)
            self._remembered[change.id] = Seen(change.shown, change.after, self._known.now)

    def _refused(self, change: Refused) -> None:
        self.tallies[f"refused:{change.reason}"] += 1

    def _not_offered(self, change: NotOffered) -> None:
        self.not_offered[change.setting, change.name] += 1

    def _scheduled(self, change: Scheduled) -> None:
        self.schedules[change.name] = change.until

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


_NO_LANE, _NO_VISITOR = LaneFacts(), VisitorFacts()
