"""The forwarder: claims lanes, sends their pushes in order, and settles what became of them.

    claimer ── leases ──▶ N senders, each with its own connection ── settlement ──▶ outbox

Within a lane nothing overtakes: one sender has the lane, and stops it at the first push that has to be tried again. Lanes do
not wait for one another; the account as a whole does, when SendX throttles or refuses it (`gate.Gate`). A lease is never used
past its end, a request on the wire is never forgotten, and a settlement under way is finished even when the task is cancelled.

Decisions are made in `retry` and `coalesce`. Addresses, bodies and keys are never logged: a lane is named by its number.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec

from proxy.aio import unbroken, wait
from proxy.core.calls import Attributes, Track
from proxy.core.coalesce import Group, groups_of, singly
from proxy.core.retry import Dead, Delivered, GiveUp, Keep, Retry, Step, Verdict
from proxy.core.visitors import Trust
from proxy.delivery.account import Account, DeliveryState, increments
from proxy.delivery.pacing import Pacer
from proxy.delivery.sendx import Client, Reply, Upstream
from proxy.errors import StoreUnavailable
from proxy.store.outbox import Outbox
from proxy.store.records import DeadReason, Fate, LastIdentify, Lease, Settled, Settlement, Waiting

PER_LANE = 25  # pushes in one lease: bounds what is sent again after a crash
MIN_LEASE_SECONDS = 60.0
LEASE_MARGIN_SECONDS = 2.0  # for the settlement
_IDLE_SECONDS = 1.0

log = logging.getLogger("proxy.delivery")


@dataclass(slots=True)
class _Turn:
    """One lane in the hands of one sender, until it is settled."""

    lease: Lease
    probe: bool  # its next request goes through a shut gate
    at: float | None  # when its next request may start, if that is known
    failures: int
    retry_at: float | None = None
    last: LastIdentify | None = None
    on_wire: Attributes | Track | None = None
    broken: bool = False
    results: dict[int, Settled] = field(default_factory=dict)

    def settlement(self) -> Settlement:
        """What became of every push; those that were not reached stay as they were."""
        kept = (Settled(push.seq, Fate.KEPT, attempted=False) for push in self.lease.pushes)
        results = tuple(self.results.get(result.seq, result) for result in kept)
        return Settlement(self.lease, results, self.failures, self.retry_at, self.last)

    def break_off(self) -> None:
        """The request under way will not be waited for: whether an increment was applied will never be known."""
        self.broken = True
        if self.on_wire is None:
            return
        self.last = None  # nor what SendX has of the contact now
        if not increments(self.on_wire):
            return
        detail = "its outcome is unknown: sending stopped while the request was under way"
        for push in self.lease.pushes:
            if push.seq not in self.results and increments(push.body):
                self.results[push.seq] = Settled(push.seq, Fate.DEAD, reason=DeadReason.AMBIGUOUS, detail=detail)


class Delivery:
    """Sends what waits in the outbox to SendX. `concurrency`: senders; `timeout_seconds`: of one request in total; `rate`: requests a second, of
    all senders of the store, at most (0: no limit).

    `clock` gives Unix seconds as the outbox's does; `rng` spreads the back-offs.
    """

    def __init__(
        self,
        outbox: Outbox,
        upstream: Upstream,
        *,
        concurrency: int,
        timeout_seconds: float,
        max_attempts: int,
        max_age: timedelta,
        identify_refresh: timedelta = timedelta(0),
        rate: float = 0.0,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._outbox = outbox
        self._upstream = upstream
        self._senders = concurrency
        self._identify_refresh_seconds = identify_refresh.total_seconds()
        self._timeout_seconds = timeout_seconds
        self._lease_seconds = max(MIN_LEASE_SECONDS, 3 * timeout_seconds)
        self._clock = clock
        limits = GiveUp(max_attempts, max_age.total_seconds())
        self._account = Account(concurrency=concurrency, limits=limits, clock=clock, rng=rng)
        self._turns = Pacer(outbox, rate)
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._sharing = asyncio.Lock()
        self._found = 0  # lanes, by the last claim
        self._ended = asyncio.Event()
        self._deadline: asyncio.Timeout | None = None
        self._leases: asyncio.Queue[tuple[Lease, bool, float | None] | None] = asyncio.Queue()
        self._busy = 0
        self._probing = False
        self._unreleased = False  # a probe has ended, and the outbox does not know
        self._in_flight = 0

    # --- from outside

    async def run(self) -> None:
        """Deliver until `stop`, or until cancelled. Raises what nobody expected; it may then be called again."""
        self._leases, self._busy, self._probing = asyncio.Queue(), 0, False
        self._ended.clear()
        self._deadline = deadline = asyncio.timeout(None)
        try:
            async with deadline:
                await self._work()
        except TimeoutError:
            if not deadline.expired():
                raise
            log.warning("Stopped at the deadline with requests still under way")
        finally:
            self._deadline = None
            await unbroken(self._give_back(), "delivery-give-back")
            self._ended.set()

    async def stop(self, deadline_seconds: float) -> None:
        """Claim nothing more, let requests on the wire finish up to the deadline, settle, and end `run` for good."""
        self._stopping.set()
        self._changed.set()
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + deadline_seconds)
            await self._ended.wait()

    def use(self, upstream: Upstream) -> None:
        """From the next request on. With another key, a halt is worth a probe at once."""
        self._upstream = upstream
        self._account.probe_now()
        self._changed.set()

    def state(self) -> DeliveryState:
        """A snapshot; costs nothing."""
        return self._account.state(running=self._deadline is not None, in_flight=self._in_flight)

    # --- claiming

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._senders):
                group.create_task(self._keep_sending(), name=f"delivery-sender-{number}")
            group.create_task(self._keep_claiming(), name="delivery-claimer")

    async def _keep_claiming(self) -> None:
        while not self._stopping.is_set():
            self._changed.clear()  # here alone: what changes while a claim is on its way is worth another one
            try:
                room = await self._room()
                if room == 0:
                    await wait(self._changed, self._seconds_to_room())
                    if self._account.gate.closure is None or self._stopping.is_set():
                        continue  # otherwise somebody else may have moved the gate
                self._found = await unbroken(self._claim(room), "delivery-claim")
                if self._found < room:
                    await self._until_worth_a_claim()
            except StoreUnavailable as problem:
                await self._store_failed(problem)
        for _ in range(self._senders):
            self._leases.put_nowait(None)

    async def _room(self) -> int:
        """How many lanes to claim now: with a rate, those with a turn in hand, because what is claimed and waits may count as started.

        Who finds nothing to send reserves no turns, or it would take them away from others: it claims a lane first, then its turn.
        """
        room = self._account.room(self._busy, probing=self._probing)
        if room == 0 or not self._account.admits_all():
            return room
        if self._turns.are_spent() and self._found == 0:
            return 1
        await self._turns.reserve()
        return self._turns.soon(room)

    def _seconds_to_room(self) -> float:
        if self._account.gate.closure is None:
            return self._turns.seconds_to_next(_IDLE_SECONDS)
        return _IDLE_SECONDS if self._probing else self._account.seconds_to_probe(_IDLE_SECONDS)

    async def _claim(self, room: int) -> int:
        """Claims and hands out in one step, so that a cancellation between the two loses no lease."""
        await self._share_gate()
        before = self._account.gate.closure
        probe = before is not None and room > 0
        claim = await self._outbox.claim(room, PER_LANE, self._lease_seconds, probe=before if probe else None)
        if self._account.gate.closure == before == self._account.shared:
            self._account.adopt(claim.closure)
        for lease in claim.leases:
            self._busy += 1
            self._probing = self._probing or probe
            self._leases.put_nowait((lease, probe, self._turns.take()))
        return len(claim.leases)

    async def _share_gate(self, *, probe_is_over: bool = False) -> None:
        """Tells the outbox what this sender has found out about the account, if that is news."""
        account = self._account
        self._unreleased = self._unreleased or probe_is_over
        async with self._sharing:  # two at once would be to each other as two senders, of whom the later probe holds
            before, after = account.shared, account.gate.closure
            if before == after and not self._unreleased:
                return
            closure = await self._outbox.move_gate(before, after)
            self._unreleased = False
            if account.gate.closure == after:
                account.adopt(closure)
            else:
                account.shared = closure  # it has moved on meanwhile

    async def _until_worth_a_claim(self) -> None:
        """Less was found than there is room for. Through a shut gate nothing is found while somebody's probe is out, ready or not."""
        if self._account.gate.closure is None:
            await self._until_ready()
        else:
            await wait(self._changed, _IDLE_SECONDS)

    async def _until_ready(self) -> None:
        ready = asyncio.create_task(self._outbox.wait_ready(_IDLE_SECONDS), name="delivery-ready")
        stop = asyncio.create_task(self._stopping.wait(), name="delivery-stop")
        try:
            await asyncio.wait((ready, stop), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
        finally:
            ready.cancel()
            stop.cancel()
            await asyncio.gather(ready, stop, return_exceptions=True)

    async def _give_back(self) -> None:
        """Settle what was claimed and reached no sender."""
        while not self._leases.empty():
            item = self._leases.get_nowait()
            if item is not None:
                lease, probe, at = item
                await self._end_turn(
                    _Turn(lease, probe, at, failures=lease.failures, last=lease.last, broken=True), probe
                )

    # --- sending

    async def _keep_sending(self) -> None:
        async with Client(timeout_seconds=self._timeout_seconds, clock=self._clock) as client:
            while (item := await self._leases.get()) is not None:
                lease, probe, at = item
                try:
                    await self._take_turn(client, _Turn(lease, probe, at, lease.failures, last=lease.last))
                finally:
                    self._busy -= 1
                    self._probing = self._probing and not probe
                    self._changed.set()

    async def _take_turn(self, client: Client, turn: _Turn) -> None:
        probe = turn.probe
        try:
            for group in groups_of(turn.lease.pushes):
                if not await self._send_group(client, turn, group):
                    break
        except BaseException as error:
            turn.break_off()
            if isinstance(error, Exception):  # a push that breaks this program must not do so all the time
                self._back_off(turn, self._account.retry_at(turn.failures))
            raise
        finally:
            await unbroken(self._end_turn(turn, probe), f"delivery-settle-{turn.lease.lane}")

    async def _send_group(self, client: Client, turn: _Turn, group: Group[Waiting]) -> bool:
        """One request and what follows from it. False: the lane stops here for now."""
        if self._is_unchanged(turn, group):
            for push in group.members:
                turn.results[push.seq] = Settled(push.seq, Fate.DELIVERED, attempted=False, unchanged=True)
            return True
        answer = None
        if await self._may_risk(client, turn, group):
            answer = await self._send_or_introduce(client, turn, group)
        if answer is None:
            turn.on_wire = None
            return False
        retry_at = self._account.retry_at(turn.failures, answer.retry_after_seconds)
        lease = turn.lease
        steps = [self._account.step(answer.verdict, push, lease=lease, retry_at=retry_at) for push in group.members]
        if len(steps) > 1 and any(isinstance(step, Dead) for step in steps):
            turn.on_wire = None
            return await self._send_singly(client, turn, group)
        for push, step in zip(group.members, steps, strict=True):
            self._note(turn, push, step, answer)
        turn.on_wire = None  # not before: whatever fails until here, an increment is not sent again
        turn.last = last_identify(turn.last, group, steps[0], self._clock())
        return self._goes_on(turn, group, steps[0], retry_at)

    async def _send_singly(self, client: Client, turn: _Turn, group: Group[Waiting]) -> bool:
        """A merged request came to nothing: nobody becomes a dead letter for what a neighbour did."""
        for single in singly(group):
            if not await self._send_group(client, turn, single):
                return False
        return True

    def _is_unchanged(self, turn: _Turn, group: Group[Waiting]) -> bool:
        """Sites identify on every page: what SendX has just been told is not told again."""
        if turn.last is None or isinstance(group.body, Track):
            return False
        fresh = self._clock() < turn.last.at + self._identify_refresh_seconds
        return fresh and not turn.probe and identify_digest(group.address, group.body) == turn.last.digest

    async def _may_risk(self, client: Client, turn: _Turn, group: Group[Waiting]) -> bool:
        """An increment cannot be tried twice, so while the gate is shut its contact alone is identified first."""
        if self._account.gate.closure is None or not increments(group.body):
            return True
        await self._send(client, turn, group.address, Attributes())
        turn.on_wire = None
        return self._account.gate.closure is None

    async def _send_or_introduce(self, client: Client, turn: _Turn, group: Group[Waiting]) -> Reply | None:
        """A track whose verified contact SendX does not know: identify the contact, then track again."""
        answer = await self._send(client, turn, group.address, group.body)
        if answer is None or answer.verdict is not Verdict.MISSING or group.trust is not Trust.VERIFIED:
            return answer
        introduced = await self._send(client, turn, group.address, Attributes())
        if introduced is None or introduced.verdict is not Verdict.DELIVERED:
            return introduced
        return await self._send(client, turn, group.address, group.body)

    async def _send(self, client: Client, turn: _Turn, address: str, body: Attributes | Track) -> Reply | None:
        """None: nothing was sent, because of the gate, the lease or the stop."""
        if not self._may_send(turn):
            return None
        try:
            at, turn.at = await self._turns.next() if turn.at is None else turn.at, None
        except StoreUnavailable as problem:
            await self._store_failed(problem)
            return None
        if (seconds := at - time.monotonic()) > 0:
            await wait(self._stopping, seconds)
        if not await self._outbox.holds(turn.lease) or not self._may_send(turn):
            return None
        upstream = self._upstream
        request = upstream.request_for(address, body)
        turn.on_wire = body
        self._in_flight += 1
        try:
            answer = await client.send(request)
        finally:
            self._in_flight -= 1
        if upstream is self._upstream:  # else the answer is about a key that is not used any more
            self._account.observe(answer, lane=turn.lease.lane, probe=turn.probe)
            turn.probe = False
        self._changed.set()
        return answer

    def _may_send(self, turn: _Turn) -> bool:
        remaining = turn.lease.until - self._clock()
        if self._stopping.is_set() or remaining < self._timeout_seconds + LEASE_MARGIN_SECONDS:
            return False
        return turn.probe or self._account.admits_all()

    # --- judging

    def _note(self, turn: _Turn, push: Waiting, step: Step, answer: Reply) -> None:
        if isinstance(step, Delivered):
            turn.results[push.seq] = Settled(push.seq, Fate.DELIVERED)
        elif isinstance(step, Dead):
            reason = DeadReason(step.reason)
            turn.results[push.seq] = Settled(push.seq, Fate.DEAD, reason=reason, detail=answer.detail)
            log.warning("A push of lane %d is a dead letter, %s (HTTP %s)", turn.lease.lane, reason, answer.status)
        else:
            attempted = isinstance(step, Retry) and step.attempted
            turn.results[push.seq] = Settled(push.seq, Fate.KEPT, attempted=attempted, detail=answer.detail)

    def _goes_on(self, turn: _Turn, group: Group[Waiting], step: Step, retry_at: float) -> bool:
        """Whether the lane's next push may be sent now. SendX being down is no reason to lose increment after increment."""
        if isinstance(step, Delivered) or (isinstance(step, Dead) and step.reason in ("rejected", "missing")):
            turn.failures = 0
            # What comes behind a change of address must be claimed again: the store knows the new one.
            return not (isinstance(step, Delivered) and _moves(group.body))
        if not isinstance(step, Keep):  # else the gate decides, which may open before its time
            self._back_off(turn, retry_at)
        return False

    def _back_off(self, turn: _Turn, retry_at: float) -> None:
        turn.retry_at = retry_at
        turn.failures += 1

    # --- settling

    async def _end_turn(self, turn: _Turn, probe: bool) -> None:
        await self._settle(turn)
        with suppress(StoreUnavailable):  # the next claim tells it, and a probe ends with its lease
            await self._share_gate(probe_is_over=probe)

    async def _settle(self, turn: _Turn) -> None:
        """Tell the store. If it cannot listen, try until the lease ends; what is not settled is sent again, or ambiguous."""
        settlement = turn.settlement()
        while True:
            try:
                held = await self._outbox.settle(settlement)
            except StoreUnavailable as problem:
                await self._store_failed(problem)
                if turn.broken or self._stopping.is_set() or self._clock() >= turn.lease.until:
                    return
                continue
            if held:
                self._account.count(settlement.results)
            else:
                self._account.lost_leases += 1
                log.warning("The lease of lane %d was lost: what was sent under it is sent again", turn.lease.lane)
            return

    async def _store_failed(self, problem: StoreUnavailable) -> None:
        self._account.store_failures += 1
        log.warning("The store is not available, next try in %d s: %s", problem.retry_after, problem.message)
        await wait(self._stopping, problem.retry_after)


def identify_digest(address: str, body: Attributes) -> bytes:
    """What makes two identifies the same request."""
    return hashlib.sha256(msgspec.json.encode((address, body), order="sorted")).digest()[:16]


def last_identify(before: LastIdentify | None, group: Group[Waiting], step: Step, now: float) -> LastIdentify | None:
    """What is known of the contact after a request: nothing, once something may have changed what the last identify set."""
    body = group.body
    if isinstance(body, Track):
        return before if isinstance(step, Delivered) and not body.remove_tags else None
    if not isinstance(step, Delivered) or body.increments or body.new_email is not None:
        return None
    return LastIdentify(identify_digest(group.address, body), now)


def _moves(body: Attributes | Track) -> bool:
    return isinstance(body, Attributes) and body.new_email is not None
