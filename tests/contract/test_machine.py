"""Every outbox against a model made of plain lists, under whatever sequence of calls Hypothesis can think of.

The model knows the promises of the port (`proxy.store.outbox`, top) and nothing of how an adapter keeps them. After each step the
outbox's numbers and facts must be the model's; what a claim returns must be the model's lane head; at the end the lanes are
drained and must hand out what the model still has, in its order. A lease of no seconds has ended at once, so no time has to pass.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from proxy.core.calls import Attributes, Track
from proxy.core.decision import Bind, Change, Decision, Drop, Enqueue, Facts, Hold, Remember, Retire, Seen
from proxy.core.emails import lane_key
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust, Visitor
from proxy.store.outbox import Outbox
from proxy.store.records import DeadFilter, DeadReason, Erased, Fate, Lease, Settled, Settlement, Stats
from proxy.store.rows import HELD_OVERHEAD, ID_OVERHEAD, PUSH_OVERHEAD
from tests.contract.test_outbox import ADAPTERS, INCREMENT, carry_out, push_id, read, told

T = TypeVar("T")
Body = Attributes | Track

ADDRESSES = ("Ada@example.com", "bob@example.com", "Cy@example.com")
VISITORS = ("visitor-1", "visitor-2")
BODIES = (
    Track(("a",)),
    Track(("b",), ("c",)),
    INCREMENT,
    INCREMENT,
    Attributes({"firstName": "Ada"}),
    Attributes(new_email=ADDRESSES[2]),
)
CLIENT = "192.0.2.1"
FAR = 3_600.0  # seconds of a back-off that does not end within a test
ALL = 1_000


def steps() -> st.SearchStrategy[tuple[Any, ...]]:
    """Calls of the machine's methods, as (name, arguments). Those that lead somewhere come more often."""
    addresses, visitors, few = st.sampled_from(ADDRESSES), st.sampled_from(VISITORS), st.integers(1, 4)
    reasons, picks, seldom = (
        st.sampled_from(list(DeadReason)),
        st.integers(0, 99),
        st.integers(0, 7).map(lambda n: n == 7),
    )
    fates = st.lists(st.sampled_from(["delivered", "dead", "kept", "tried", "unnamed"]), min_size=4, max_size=4)
    chosen = st.tuples(st.none() | reasons, st.none() | addresses, few)
    pushed = st.lists(st.sampled_from(BODIES), min_size=1, max_size=4)
    push = st.tuples(st.just("push"), addresses, pushed, visitors)
    assert_it = st.tuples(st.just("assert_it"), addresses, pushed, st.booleans())
    hold = st.tuples(st.just("hold"), visitors)
    claim = st.tuples(st.just("claim"), few, st.booleans())
    settle = st.tuples(st.just("settle"), picks, fates, reasons, seldom)
    send = st.tuples(st.just("send"), few, fates, reasons, seldom)
    replay = st.tuples(st.just("replay"), chosen)
    others = [
        st.tuples(st.just("push_again"), picks, addresses),
        st.tuples(st.just("bind"), visitors, addresses, st.integers(0, 7), st.booleans()),
        st.tuples(st.just("retire"), visitors),
        st.tuples(st.just("drop"), visitors),
        st.tuples(st.just("discard"), chosen),
        st.tuples(st.just("erase"), addresses),
        st.just(("sweep",)),
        st.just(("restart",)),
    ]
    return st.sampled_from(
        [push] * 3 + [assert_it] * 3 + [hold] * 2 + [claim] * 2 + [settle] * 2 + [send] * 2 + [replay] * 2 + others
    ).flatmap(_itself)


def _itself(strategy: st.SearchStrategy[tuple[Any, ...]]) -> st.SearchStrategy[tuple[Any, ...]]:
    return strategy


@dataclass
class Item:
    """A push that waits or is dead. `seq`: the model's own count of entries into lanes."""

    id: str
    address: str
    body: Body
    seq: int
    trust: Trust
    attempts: int = 0
    reason: DeadReason | None = None

    @property
    def increments(self) -> bool:
        return isinstance(self.body, Attributes) and self.body.increments

    @property
    def vouched(self) -> bool:
        return self.trust is Trust.VERIFIED


def size(items: Sequence[Item]) -> int:
    """Returns how many bytes the store keeps of the bodies."""
    return sum(len(msgspec.json.encode(item.body)) for item in items)


@dataclass(eq=False)
class Lane:
    """A person. `address`: since a change of address. `parked`: in a back-off that does not end here.

    `put_off`: waits for its turn, which here comes at once. `stranger`: nothing was vouched for since it was empty, or at the last claim.
    """

    key: str
    address: str | None = None
    items: list[Item] = field(default_factory=list)
    lease: Lease | None = None
    ended: bool = False  # the lease is over, and may be claimed by somebody else
    parked: bool = False
    put_off: bool = False
    stranger: bool = True

    def gain(self, *, vouched: bool, sign_up: bool = False) -> None:
        """Something is about to enter."""
        if not self.items:
            self.stranger = True
            self.put_off = sign_up and not vouched and self.lease is None
        self.stranger = self.stranger and not vouched
        if self.put_off and vouched:
            self.put_off = self.parked = False

    def head(self, per_lane: int) -> list[Item]:
        """An increment goes alone."""
        for number, item in enumerate(self.items[:per_lane]):
            if item.increments:
                return self.items[: max(number, 1)]
        return self.items[:per_lane]

    def destination(self, item: Item) -> str:
        moved = self.address is not None and lane_key(item.address) != self.key
        return self.address if moved and self.address is not None else item.address


class Model:
    """What the port promises, as lists and counts."""

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self.aliases: dict[str, Lane] = {}
        self.held: dict[str, list[Hold]] = {visitor: [] for visitor in VISITORS}
        self.retired: set[str] = set()
        self.seen: dict[str, Seen] = {}
        self.dead: list[tuple[Lane, Item]] = []
        self.erased: set[str] = set()
        self.counters: Counter[str] = Counter()
        self.unvouched_ids = 0
        self._entries = 0

    @property
    def waiting(self) -> int:
        return sum(len(lane.items) for lane in self.lanes.values())

    @property
    def unvouched_bytes(self) -> int:
        items = [item for lane in self.lanes.values() for item in lane.items] + [item for _, item in self.dead]
        asserted = [item for item in items if not item.vouched]
        held = [msgspec.json.encode(op.track) for ops in self.held.values() for op in ops]
        pushes = size(asserted) + PUSH_OVERHEAD * len(asserted)
        return pushes + sum(map(len, held)) + HELD_OVERHEAD * len(held) + ID_OVERHEAD * self.unvouched_ids

    def enter(self, key: str, push: str, address: str, body: Body, trust: Trust, *, sign_up: bool = False) -> None:
        self._entries += 1
        lane = self.lanes.setdefault(key, Lane(key))
        lane.gain(vouched=trust is Trust.VERIFIED, sign_up=sign_up)
        lane.items.append(Item(push, address, body, self._entries, trust))

    def bury(self, lane: Lane, item: Item, reason: DeadReason, *, attempted: bool) -> None:
        lane.items.remove(item)
        item.reason, item.attempts = reason, item.attempts + attempted
        self.dead.append((lane, item))
        self.dead.sort(key=lambda entry: entry[1].seq)
        self.counters[f"dead:{reason}"] += 1

    def end_lease(self, lane: Lane) -> None:
        """Nobody settles it any more: an increment under it may have been applied."""
        assert lane.lease is not None
        sent = {push.id for push in lane.lease.pushes}
        lane.lease, lane.ended = None, False
        for item in [item for item in lane.items if item.id in sent and item.increments]:
            self.bury(lane, item, DeadReason.AMBIGUOUS, attempted=True)

    def refuse_held(self, visitor: str, reason: Reason) -> None:
        self.counters["hold_refused"] += len(self.held[visitor])
        self.counters[f"refused:{reason}"] += len(self.held[visitor])
        self.held[visitor] = []

    def move(self, lane: Lane, address: str) -> None:
        """A confirmed change of address."""
        old, new = lane.key, lane_key(address)
        if old == new:
            return
        self.aliases.pop(new, None)
        del self.lanes[old]
        other = self.lanes.get(new)
        if other is None:
            lane.key, lane.address = new, address
            self.lanes[new] = self.aliases[old] = lane
            return
        for item in lane.items:
            self._entries += 1
            item.seq = self._entries
        released = bool(lane.items) and not lane.stranger
        if other.put_off and released:
            other.put_off = other.parked = False
        other.stranger = (other.stranger or not other.items) and not released
        other.items += lane.items
        other.address = address
        self.dead = [(other if owner is lane else owner, item) for owner, item in self.dead]
        self.aliases = {key: other if target is lane else target for key, target in self.aliases.items()}
        self.aliases[old] = other

    def replay(self, matching: DeadFilter, limit: int) -> int:
        found = self.matching(matching)[:limit]
        for lane, item in found:
            self.dead.remove((lane, item))
            self.enter(lane.key, item.id, item.address, item.body, item.trust)
        self.counters["replayed"] += len(found)
        return len(found)

    def discard(self, matching: DeadFilter, limit: int) -> int:
        found = self.matching(matching)[:limit]
        self.dead = [entry for entry in self.dead if entry not in found]
        self.counters["discarded"] += len(found)
        return len(found)

    def matching(self, asked: DeadFilter) -> list[tuple[Lane, Item]]:
        """A contact is a person, under an old address too."""
        key = asked.contact
        person = self.lanes.get(key, self.aliases.get(key)) if key is not None else None
        return [
            (lane, item)
            for lane, item in self.dead
            if asked.reason in (None, item.reason) and (key is None or lane is person)
        ]

    def erase(self, key: str) -> Erased:
        keys = {key} | ({self.aliases[key].key} if key in self.aliases else set())
        lanes = [self.lanes[each] for each in keys if each in self.lanes]
        keys |= {alias for alias, target in self.aliases.items() if target in lanes}
        lanes = [self.lanes[each] for each in keys if each in self.lanes]
        known = [(push, seen.after) for push, seen in self.seen.items() if seen.after is not None]
        gone = {push: after.id for push, after in known if after.email is not None and lane_key(after.email) in keys}
        self.seen |= {push: Seen("", None) for push in gone}
        held = sum(len(self.held[visitor]) for visitor in set(gone.values()))
        self.held |= {visitor: [] for visitor in gone.values()}
        dead = [(owner, item) for owner, item in self.dead if owner in lanes or lane_key(item.address) in keys]
        self.dead = [entry for entry in self.dead if entry not in dead]
        self.aliases = {alias: target for alias, target in self.aliases.items() if alias not in keys}
        waiting = sum(len(lane.items) for lane in lanes)
        for lane in lanes:
            lane.items, lane.address, lane.parked, lane.put_off = [], None, False, False
            if lane.lease is None:  # else what comes next waits for whoever holds it
                del self.lanes[lane.key]
        self.erased |= keys
        self.counters["erased"] += waiting + len(dead)
        self.counters["hold_erased"] += held
        return Erased(waiting, held, len(dead), len(gone))


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self, open_outbox: Callable[[Path], Awaitable[Outbox]]) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._runner = asyncio.Runner()
        self._open = open_outbox
        self.model = Model()
        self.leases: list[Lease] = []  # all that were ever given
        self.outbox = self.run(self._opened())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _opened(self) -> Outbox:
        return await self._open(Path(self._directory.name))

    def carry_out(self, *ops: Change) -> None:
        self.run(carry_out(self.outbox, *ops))

    @rule(step=steps())
    def do(self, step: tuple[Any, ...]) -> None:
        """The one rule: of many, Hypothesis leaves some out of a whole run, and then hardly gets from a push to a replay."""
        name, *arguments = step
        getattr(self, name)(*arguments)

    # What comes in

    def push(self, address: str, pushed: list[Body], visitor: str) -> None:
        """An identify also says who the browser is after it."""
        key, ops = lane_key(address), list[Change]()
        for body in pushed:
            push = push_id()
            after = Visitor(visitor, address, Trust.VERIFIED) if isinstance(body, Attributes) else None
            ops += [Enqueue(push, key, address, Trust.VERIFIED, body), Remember(push, visitor, after)]
            self.model.enter(key, push, address, body, Trust.VERIFIED)
            self.model.seen[push] = Seen(visitor, after)
        self.carry_out(*ops)
        self.model.counters["accepted"] += len(pushed)

    def assert_it(self, address: str, pushed: list[Body], sign_up: bool) -> None:
        """Nobody has vouched for it. `sign_up`: an empty lane is put off."""
        key, ops = lane_key(address), list[Change]()
        for body in pushed:
            push = push_id()
            ops.append(Enqueue(push, key, address, Trust.ASSERTED, body, CLIENT if sign_up else ""))
            self.model.enter(key, push, address, body, Trust.ASSERTED, sign_up=sign_up)
        self.carry_out(*ops)
        self.model.counters["accepted"] += len(pushed)
        self.model.unvouched_ids += len(pushed)

    def push_again(self, pick: int, address: str) -> None:
        """A known id is not stored a second time, by whoever asks before he stores; what is known of it stays."""
        if not self.model.seen:
            return
        push = list(self.model.seen)[pick % len(self.model.seen)]

        def decide(facts: Facts) -> Decision[None]:
            enqueue = Enqueue(push, lane_key(address), address, Trust.VERIFIED, Track(("a",)))
            return Decision((Remember(push, "another"),) if facts.seen(push) else (enqueue,), None)

        self.run(self.outbox.append(decide))

    def hold(self, visitor: str) -> None:
        op = Hold(push_id(), visitor, Track(("a",)))
        self.carry_out(op, Remember(op.id, visitor))
        self.model.held[visitor].append(op)
        self.model.seen[op.id] = Seen(visitor, None)
        self.model.counters["held"] += 1
        self.model.unvouched_ids += 1

    def bind(self, visitor: str, address: str, kept: int, vouched: bool) -> None:
        """Those whose bit is set in `kept` (by threes) go to the lane, the others are refused."""
        held = self.model.held[visitor]
        keep = [op for number, op in enumerate(held) if kept >> number % 3 & 1]
        refuse = [(op.id, Reason.TAG_NOT_ALLOWED) for op in held if op not in keep]
        key, ids = lane_key(address), tuple(op.id for op in keep)
        trust = Trust.VERIFIED if vouched else Trust.ASSERTED
        self.carry_out(Bind(visitor, key, address, trust, ids, tuple(refuse)))
        for op in keep:
            self.model.enter(key, op.id, address, op.track, trust)
        self.model.held[visitor] = []
        self.model.counters.update(
            {"bound": len(keep), "hold_refused": len(refuse), f"refused:{Reason.TAG_NOT_ALLOWED}": len(refuse)}
        )

    def retire(self, visitor: str) -> None:
        self.carry_out(Retire(visitor))
        self.model.retired.add(visitor)
        self.model.refuse_held(visitor, Reason.IDENTITY_CHANGED)

    def drop(self, visitor: str) -> None:
        self.carry_out(Drop(visitor, Reason.CONSENT_DENIED))
        self.model.refuse_held(visitor, Reason.CONSENT_DENIED)

    # What goes out

    def claim(self, per_lane: int, ended: bool) -> None:
        """`ended`: the leases are over as soon as they are given."""
        leases = self.run(self.outbox.claim(ALL, per_lane, 0 if ended else FAR)).leases
        expected: dict[str, Lane] = {}
        for lane in self.model.lanes.values():
            if lane.ended:
                self.model.end_lease(lane)
            if lane.lease is None and not lane.parked and lane.items:
                expected[lane.head(1)[0].id] = lane
        assert {lease.pushes[0].id for lease in leases} == expected.keys()
        for lease in leases:
            lane = expected[lease.pushes[0].id]
            self._check_lease(lease, lane, per_lane)
            lane.lease, lane.ended, lane.put_off, lane.stranger = lease, ended, False, lease.stranger
        self.leases += leases

    def _check_lease(self, lease: Lease, lane: Lane, per_lane: int) -> None:
        shown = [(push.id, push.address, push.body, push.attempts) for push in lease.pushes]
        assert shown == [(item.id, lane.destination(item), item.body, item.attempts) for item in lane.head(per_lane)]
        assert lease.stranger == (not any(item.vouched for item in lane.items))
        assert lease.sign_up == (CLIENT if lane.put_off else "")
        assert all(lease.epoch > other.epoch for other in self.leases if other.lane == lease.lane)

    def settle(self, pick: int, chosen: list[str], reason: DeadReason, park: bool) -> None:
        """Any lease that was ever given; one that was lost changes nothing. Later ones are picked more often."""
        if self.leases:
            self._settle(self.leases[-1 - pick % min(len(self.leases), 5 if pick < 80 else 99)], chosen, reason, park)

    def send(self, per_lane: int, chosen: list[str], reason: DeadReason, park: bool) -> None:
        """What a sender does: claim, then settle."""
        before = len(self.leases)
        self.claim(per_lane, ended=False)
        for lease in self.leases[before:]:
            self._settle(lease, chosen, reason, park)

    def _settle(self, lease: Lease, chosen: list[str], reason: DeadReason, park: bool) -> None:
        """`chosen`: what becomes of each push, in order. `park`: the lane then backs off."""
        results = tuple(
            result
            for push, fate in zip(lease.pushes, chosen, strict=False)
            for result in _settled(push.seq, fate, reason)
        )
        retry_at = time.time() + FAR if park else None
        held = self.run(self.outbox.settle(Settlement(lease, results, failures=1, retry_at=retry_at)))
        lane = next((lane for lane in self.model.lanes.values() if lane.lease is lease), None)
        assert held == (lane is not None)
        if lane is not None:
            fate_of = dict(zip([push.id for push in lease.pushes], chosen, strict=False))
            self._settle_in_model(lane, fate_of, reason)
            lane.parked = park and bool(lane.items) and self.model.lanes.get(lane.key) is lane

    def _settle_in_model(self, lane: Lane, fate_of: dict[str, str], reason: DeadReason) -> None:
        assert lane.lease is not None
        erased = lane.lease.pushes[0].id not in [item.id for item in lane.items]
        stays = not erased and not any(fate_of.get(push.id) in ("delivered", "dead") for push in lane.lease.pushes)
        lane.put_off = stays and bool(lane.lease.sign_up) and lane.stranger
        lane.lease, lane.ended = None, False
        moved: list[str] = []
        for item in [item for item in lane.items if item.id in fate_of]:
            fate = fate_of[item.id]
            if fate == "delivered":
                lane.items.remove(item)
                self.model.counters["delivered"] += 1
                if isinstance(item.body, Attributes) and item.body.new_email is not None:
                    moved.append(item.body.new_email)
            elif fate == "dead":
                self.model.bury(lane, item, reason, attempted=True)
            elif fate == "tried":
                item.attempts += 1
        for address in moved[:1]:  # they all move to the same one
            self.model.move(lane, address)

    # What the operator does

    def replay(self, chosen: tuple[DeadReason | None, str | None, int]) -> None:
        matching, limit = _matching(*chosen)
        assert self.run(self.outbox.replay(matching, limit)) == self.model.replay(matching, limit)

    def discard(self, chosen: tuple[DeadReason | None, str | None, int]) -> None:
        matching, limit = _matching(*chosen)
        assert self.run(self.outbox.discard(matching, limit)) == self.model.discard(matching, limit)

    def erase(self, address: str) -> None:
        assert self.run(self.outbox.erase(lane_key(address))) == self.model.erase(lane_key(address))

    def sweep(self) -> None:
        """Nothing here is over its age; lanes that have nothing to tell may go."""
        self.run(self.outbox.sweep())

    def restart(self) -> None:
        """Leases were of the old process."""
        self.run(self.outbox.close())
        self.outbox = self.run(self._opened())
        for lane in self.model.lanes.values():
            if lane.lease is not None:
                self.model.end_lease(lane)

    # What must be true after each of them

    @invariant()
    def numbers_are_the_models(self) -> None:
        stats = self.run(self.outbox.stats())
        held = sum(len(ops) for ops in self.model.held.values())
        assert (stats.waiting, stats.holding, stats.dead) == (self.model.waiting, held, len(self.model.dead))
        assert Counter(stats.counters) == self.model.counters
        assert stats.sign_ups == sum(lane.put_off for lane in self.model.lanes.values())
        assert stats.unvouched_bytes == self.model.unvouched_bytes
        assert_sums_add_up(stats)

    @invariant()
    def facts_are_the_models(self) -> None:
        def ask(facts: Facts) -> None:
            for key in map(lane_key, ADDRESSES):
                lane, moved = self.model.lanes.get(key), self.model.aliases.get(key)
                waits = lane.items if lane else []
                assert (facts.lane(key).waiting, facts.lane(key).bytes) == (len(waits), size(waits))
                assert facts.lane(key).put_off == (lane is not None and lane.put_off)
                alias = facts.alias(key)
                assert (alias.address if alias else None) == (moved.address if moved else None)
                assert (facts.erased_at(key) is not None) == (key in self.model.erased)
            for visitor, ops in self.model.held.items():
                assert [(push.id, push.track) for push in facts.held(visitor)] == [(op.id, op.track) for op in ops]
                known = facts.visitor(visitor)
                assert (known.holding, known.retired) == (len(ops), visitor in self.model.retired)
            assert facts.unvouched_bytes() == self.model.unvouched_bytes
            for push, seen in self.model.seen.items():
                assert told(facts.seen(push)) == seen

        self.run(read(self.outbox, ask))
        assert self.outbox.unvouched().bytes == self.model.unvouched_bytes, "as of this append"

    @invariant()
    def dead_letters_are_the_models(self) -> None:
        letters = self.run(self.outbox.dead_letters(DeadFilter(), 0, ALL))
        shown = [(letter.id, letter.body, letter.reason, letter.attempts) for letter in letters]
        assert shown == [(item.id, item.body, item.reason, item.attempts) for _, item in self.model.dead]

    def teardown(self) -> None:
        try:
            self._drain()
        finally:
            self.run(self.outbox.close())
            self._runner.close()
            self._directory.cleanup()

    def _drain(self) -> None:
        """Whatever can still be sent comes in the model's order."""
        self.restart()
        while any(lane.items and not lane.parked for lane in self.model.lanes.values()):
            self.send(4, ["delivered"] * 4, DeadReason.REJECTED, park=False)
            self.numbers_are_the_models()


def _matching(reason: DeadReason | None, address: str | None, limit: int) -> tuple[DeadFilter, int]:
    return DeadFilter(reason=reason, contact=lane_key(address) if address else None), limit


def _settled(seq: int, fate: str, reason: DeadReason) -> Sequence[Settled]:
    return {
        "delivered": (Settled(seq, Fate.DELIVERED),),
        "dead": (Settled(seq, Fate.DEAD, reason=reason, detail="as told"),),
        "tried": (Settled(seq, Fate.KEPT),),
        "kept": (Settled(seq, Fate.KEPT, attempted=False),),
        "unnamed": (),
    }[fate]


def assert_sums_add_up(stats: Stats) -> None:
    total: Counter[str] = Counter(stats.counters)
    gone = total["delivered"] + total["discarded"] + total["erased"]
    assert total["accepted"] + total["bound"] == gone + stats.waiting + stats.dead
    unheld = total["bound"] + total["hold_expired"] + total["hold_refused"] + total["hold_erased"]
    assert total["held"] == unheld + stats.holding


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_whatever_is_done_to_it_an_outbox_does_what_lists_would_do(adapter: str) -> None:
    run_state_machine_as_test(
        lambda: OutboxMachine(ADAPTERS[adapter]),  # type: ignore[arg-type]  # it takes any factory
        settings=settings(
            max_examples=60 if adapter == "sqlite" else 20,  # a step takes ten times as long over a network
            stateful_step_count=40,
            derandomize=True,  # a run of the suite says the same of the same code; seek new paths with more examples
        ),
    )
