"""The ledger: what the store knows, as decisions see it, and the rows that carry them out. Both adapters use it.

    read(wants) → Known ─┐
                         ├─ Ledger: decide(ledger) → carry_out(its changes) → Writes → write(writes)
    ask(kind, name) ◀────┘  a name that has not been read

Nothing here touches a store. A decision sees what was read plus what the decisions before it have changed, whether that is written yet or
not. An adapter that can answer at once (SQLite) reads what is asked for and carries on. One that cannot (PostgreSQL)
notes the name and shows the decision nothing under it; once it has been read, the decision is made again, which costs only time, because
decisions are pure.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import msgspec

from proxy.core import decision
from proxy.core.calls import Kind, Track
from proxy.core.reasons import DROPPED_VALUES, Reason
from proxy.core.visitors import Trust
from proxy.store.facts import Ask, HeldRow, Known, LaneChange, VisitorChange, Writes
from proxy.store.rows import (
    HELD_OVERHEAD,
    HOLDING,
    ID_OVERHEAD,
    PUSH_OVERHEAD,
    TRACE_BYTES,
    UNVOUCHED_BYTES,
    WAITING,
    id_gauge,
)

_encode = msgspec.json.Encoder().encode
_TRACK, _IDENTIFY = Kind.TRACK.value, Kind.IDENTIFY.value


class Ledger:
    """Implements `decision.Facts` and carries out decisions. `ask`: called for a name that is not in `known`, which it may put there.

    `writes` is what is to be written; `tallies` what is to be counted, in the same transaction.
    """

    def __init__(self, known: Known, ask: Ask, tallies: Counter[str] | None = None) -> None:
        self.known = known
        self.site_key = known.site_key
        self.writes = Writes()
        self.tallies: Counter[str] = Counter() if tallies is None else tallies
        self._ask = ask
        # Facts as this group has changed them; each stands in front of what was read.
        self._seen: dict[str, decision.Seen] = {}
        self._visitors: dict[str, decision.VisitorFacts] = {}
        self._visitors_read = known.visitors
        self._schedules: dict[str, float] = {}

    def seen(self, push_id: str) -> decision.Seen | None:
        known = self.known.seen
        if push_id not in known:
            self._ask("ids", push_id)
        return known.get(push_id) or self._seen.get(push_id)

    def visitor(self, visitor_id: str) -> decision.VisitorFacts:
        return self._visitors.get(visitor_id) or self._visitors_read.get(visitor_id) or self._visitor_read(visitor_id)

    def _visitor_read(self, visitor_id: str) -> decision.VisitorFacts:
        known = self.known.visitors
        if visitor_id not in known:
            self._ask("visitors", visitor_id)
        return known.get(visitor_id, _NO_VISITOR)

    def lane(self, key: str) -> decision.LaneFacts:
        known = self.known.lanes
        if key not in known:
            self._ask("keys", key)
        facts, change = known.get(key) or _NO_LANE, self.writes.lanes.get(key)
        if change is None:
            return facts
        waiting, size = facts.waiting + change.gained, facts.bytes + change.bytes
        put_off = (facts.put_off or (facts.waiting == 0 and change.put_off)) and not change.vouched
        return decision.LaneFacts(facts.verified or change.verify, waiting, size, put_off)

    def alias(self, key: str) -> decision.Alias | None:
        known = self.known.aliases
        if key not in known:
            self._ask("keys", key)
        return None if key in self.writes.ended_aliases else known.get(key)

    def erased_at(self, key: str) -> float | None:
        known = self.known.erased
        if key not in known:
            self._ask("keys", key)
        return known.get(key)

    def held(self, visitor_id: str) -> Sequence[decision.HeldPush]:
        rows = self._held(visitor_id)
        return [decision.HeldPush(row.id, msgspec.json.decode(row.body, type=Track), row.since) for row in rows]

    def unvouched_bytes(self) -> int:
        return self.known.unvouched_bytes + self.tallies[UNVOUCHED_BYTES] + self.tallies[id_gauge(self.known.now)]

    def schedule(self, name: decision.Schedule) -> float:
        known = self.known.schedules
        if name not in known:
            self._ask("schedules", name)
        return self._schedules.get(name) or known.get(name, 0.0)

    def _held(self, visitor_id: str) -> list[HeldRow]:
        """Returns the rows of this visitor in order; the store is asked only if it holds any."""
        new = self.writes.held.get(visitor_id, [])
        if not self._visitor_read(visitor_id).holding:
            return list(new)
        known = self.known.held
        if visitor_id not in known:
            self._ask("held", visitor_id)
        return [row for row in known.get(visitor_id, ()) if row.seq not in self.writes.unheld] + new

    def carry_out(self, changes: Iterable[decision.Change]) -> None:
        """Adds their rows to `writes` and `tallies`, and asks for whatever they touch. If this raises, all of it is of no use any more."""
        for change in changes:
            self._apply[type(change)](self, change)

    def take_writes(self) -> Writes:
        """Hands over what is to be written now. `known` is as the store will be; lanes and held pushes have to be read anew."""
        known, (writes, self.writes) = self.known, (self.writes, Writes())
        known.lanes.clear()
        known.held.clear()
        known.seen.update(self._seen)
        known.visitors.update(self._visitors)
        known.schedules.update(self._schedules)
        known.aliases.update(dict.fromkeys(writes.ended_aliases))
        self._forget_changes()
        return writes

    def forget(self) -> None:
        """Drops what is to be written and all that is known: it was not stored, or somebody else has written since."""
        self.writes = Writes()
        self.known.forget()
        self._forget_changes()

    def _forget_changes(self) -> None:
        self._seen.clear()
        self._visitors.clear()
        self._schedules.clear()

    def _enqueue(self, change: decision.Enqueue) -> None:
        body = change.body
        kind, increments = (_TRACK, 0) if isinstance(body, Track) else (_IDENTIFY, int(body.increments))
        key, trust, since = change.key, change.trust, self.known.now
        stored = _encode(body)
        verified = trust is Trust.VERIFIED
        self._gain(key, len(stored), change.sign_up, verified=verified)
        if not verified:
            self.tallies[UNVOUCHED_BYTES] += len(stored) + PUSH_OVERHEAD
            self.tallies[id_gauge(since)] += ID_OVERHEAD
        self.writes.pushes.append((key, change.id, change.address, int(trust), kind, stored, since, increments))
        self.tallies["accepted"] += 1

    def _gain(self, key: str, size: int, sign_up: str = "", *, verified: bool) -> None:
        known, lane = self.known, self.writes.lanes.get(key)
        if key not in known.lanes:
            self._ask("keys", key)
        facts = known.lanes.get(key) or _NO_LANE
        if sign_up and not facts.verified:
            self.schedule(decision.Schedule.SIGN_UPS)  # a store that cannot answer at once must have locked it
        else:
            sign_up = ""
        if facts.put_off and verified:
            self.schedule(decision.Schedule.SIGN_UPS)
        if lane is None:
            lane = self.writes.lanes[key] = LaneChange()
        if lane.gained == 0:
            lane.put_off = bool(sign_up)
        elif lane.put_off and verified:
            lane.put_off = False
        if sign_up:
            lane.sign_ups.add(sign_up)
        lane.gained += 1
        lane.bytes += size
        lane.vouched = lane.vouched or verified
        self.tallies[WAITING] += 1

    def _hold(self, change: decision.Hold) -> None:
        row = HeldRow(None, change.id, _encode(change.track), self.known.now)
        self.writes.held.setdefault(change.visitor, []).append(row)
        self._change_holding(change.visitor, 1)
        tallies = self.tallies  # one by one: `update` takes far longer
        tallies["held"] += 1
        tallies[HOLDING] += 1
        tallies[UNVOUCHED_BYTES] += len(row.body) + HELD_OVERHEAD
        tallies[id_gauge(row.since)] += ID_OVERHEAD

    def _bind(self, change: decision.Bind) -> None:
        held = {row.id: row for row in self._held(change.visitor)}
        for push_id in change.keep:
            row = held.pop(push_id, None)
            if row is not None:
                self._unhold(change.visitor, row)
                self._gain(change.key, len(row.body), verified=change.trust is Trust.VERIFIED)
                at = (change.key, push_id, change.address, int(change.trust))
                self.writes.pushes.append((*at, _TRACK, row.body, row.since, 0))
                self.tallies["bound"] += 1
                if change.trust is not Trust.VERIFIED:
                    self.tallies[UNVOUCHED_BYTES] += len(row.body) + PUSH_OVERHEAD
        for push_id, reason in change.refuse:
            row = held.pop(push_id, None)
            if row is not None:
                self._refuse(change.visitor, row, reason)

    def _unhold(self, visitor: str, row: HeldRow) -> None:
        if row.seq is None:
            self.writes.held[visitor].remove(row)
        else:
            self.writes.unheld.add(row.seq)
        self._change_holding(visitor, -1)
        self.tallies.update({HOLDING: -1, UNVOUCHED_BYTES: -len(row.body) - HELD_OVERHEAD})

    def _change_holding(self, visitor: str, difference: int) -> None:
        facts = self.visitor(visitor)
        self._visitors[visitor] = msgspec.structs.replace(facts, holding=facts.holding + difference)

    def _refuse(self, visitor: str, row: HeldRow, reason: Reason) -> None:
        self._unhold(visitor, row)
        self.tallies.update({"hold_refused": 1, reason.counter: 1})

    def _refuse_held(self, change: decision.Retire | decision.Drop) -> None:
        for row in self._held(change.visitor):
            self._refuse(change.visitor, row, change.reason)

    def _retire(self, change: decision.Retire) -> None:
        self._change_visitor(change.visitor, retired=True)
        self._refuse_held(change)

    def _born(self, change: decision.Born) -> None:
        self._change_visitor(change.visitor, person=change.person)

    def _identified(self, change: decision.Identified) -> None:
        self._change_visitor(change.visitor, identified=True, person=change.person)

    def _shown(self, change: decision.Shown) -> None:
        facts = self.visitor(change.visitor)
        if facts.shown is not None and facts.identified is not None:
            return  # nothing would change
        row = self.writes.visitors.setdefault(change.visitor, VisitorChange())
        row.shown_by = row.shown_by or change.by
        if facts.shown is None:
            facts = msgspec.structs.replace(facts, shown=self.known.now, shown_by=change.by)
        self._visitors[change.visitor] = facts

    def _change_visitor(
        self, visitor: str, *, retired: bool = False, identified: bool = False, person: str | None = None
    ) -> None:
        """Changes a visitor. The time of an identified one becomes that of the change, as in the tables; not so in `_shown`."""
        facts, row = self.visitor(visitor), self.writes.visitors.setdefault(visitor, VisitorChange())
        row.retired, row.identified = row.retired or retired, row.identified or identified
        row.person = person or row.person
        self._visitors[visitor] = msgspec.structs.replace(
            facts,
            retired=facts.retired or retired,
            identified=self.known.now if identified or facts.identified is not None else None,
            person=person or facts.person,
        )

    def _verify(self, change: decision.Verify) -> None:
        if not self.lane(change.key).verified:
            self.writes.lanes.setdefault(change.key, LaneChange()).verify = True

    def _end_alias(self, change: decision.EndAlias) -> None:
        if self.alias(change.key) is not None:
            self.writes.ended_aliases.add(change.key)

    def _forgotten(self, _: decision.Forgotten) -> None:
        self.tallies.update({"accepted": 1, "erased": 1})

    def _remember(self, change: decision.Remember) -> None:
        """What is known of an id already stays."""
        if self.seen(change.id) is None:
            self.writes.remembered.append(change)
            self._seen[change.id] = decision.Seen(change.shown, change.after, self.known.now)
            if change.unvouched:
                self.tallies[id_gauge(self.known.now)] += TRACE_BYTES

    def _refused(self, change: decision.Refused) -> None:
        self.tallies[change.reason.counter] += 1

    def _not_offered(self, change: decision.NotOffered) -> None:
        self.writes.not_offered[change.setting, change.name] += 1

    def _dropped(self, change: decision.Dropped) -> None:
        self.tallies[DROPPED_VALUES] += change.count

    def _scheduled(self, change: decision.Scheduled) -> None:
        self.schedule(change.name)  # a store that cannot answer at once must have locked it
        self.writes.schedules[change.name] = self._schedules[change.name] = change.until

    _apply: ClassVar[dict[type[decision.Change], Callable[..., None]]] = {
        decision.Enqueue: _enqueue,
        decision.Hold: _hold,
        decision.Bind: _bind,
        decision.Retire: _retire,
        decision.Born: _born,
        decision.Identified: _identified,
        decision.Shown: _shown,
        decision.Drop: _refuse_held,
        decision.Dropped: _dropped,
        decision.Verify: _verify,
        decision.EndAlias: _end_alias,
        decision.Forgotten: _forgotten,
        decision.Remember: _remember,
        decision.Refused: _refused,
        decision.NotOffered: _not_offered,
        decision.Scheduled: _scheduled,
    }


_NO_LANE, _NO_VISITOR = decision.LaneFacts(), decision.VisitorFacts()
