"""Runs one lease: sends the requests of its lane in order until one must wait, and settles what became of every push.

Within a lane nothing overtakes: the run stops at the first push that must be retried. A lease is never used past its end, a request on the
wire is never forgotten, and a run ends with a settlement whatever ends it: an answer, the gate, a stop, a cancellation or a defect.

Claims nothing, and knows no other lane. The decisions are made in `core.retry` and `core.coalesce`. Addresses, bodies and keys are never
logged: a lane is named by its number.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from proxy.aio import unbroken, wait
from proxy.core.calls import Attributes, Track
from proxy.core.coalesce import Group, groups_of, singly
from proxy.core.retry import Dead, Delivered, Keep, Retry, Step, Verdict
from proxy.core.visitors import Trust
from proxy.delivery.account import Account
from proxy.delivery.pacing import Pacer
from proxy.delivery.sendx import Client, Reply, SendxRequest
from proxy.errors import StoreUnavailable, describe
from proxy.store.outbox import Outbox
from proxy.store.records import DeadReason, Fate, LastIdentify, Lease, Settled, Settlement, Waiting
from proxy.store.rows import increments

LEASE_MARGIN_SECONDS = 2.0  # for the settlement
_NO_DETAIL = "SendX's answer could not be stored: the server's log says why"

log = logging.getLogger("proxy.delivery")

_replace = msgspec.structs.replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all lane runs of one forwarder share. `timeout_seconds` is that of one whole request.

    `stopping`: set once nothing more may be sent. `changed`: set by whatever may make room for another claim.
    """

    outbox: Outbox
    account: Account
    turns: Pacer
    timeout_seconds: float
    identify_refresh_seconds: float
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sharing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def share_gate(self) -> None:
        """Tells the outbox what this sender has learned of the account, if that is news. Raises `StoreUnavailable`."""
        account = self.account
        async with self._sharing:  # two calls at once would merge as if two senders had made them
            if not account.has_news():
                return
            before, after = account.shared, account.gate.closure
            closure = await self.outbox.move_gate(before, after)
            account.probe = account.probe.told()
            if account.gate.closure == after:
                account.adopt(closure)
            else:
                account.shared = closure  # it has moved on meanwhile

    async def store_failed(self, problem: StoreUnavailable) -> None:
        """Counts the failure, and waits as long as the store asks for. Logs at debug only: every sender calls this, and `ops.watch` reports it."""
        self.account.tally.store_failures += 1
        log.debug("The store is unavailable, next try in %d s: %s", problem.retry_after, problem.message)
        await wait(self.stopping, problem.retry_after)


class LaneRun:
    """One lease in the hands of one sender. `at`: the turn taken for its first request (monotonic seconds), None if it has to take one."""

    __slots__ = ("_at", "_client", "_lease", "_on_wire", "_outcome", "_results", "_shared")

    def __init__(self, shared: Shared, client: Client, lease: Lease, at: float | None) -> None:
        self._shared = shared
        self._client = client
        self._lease = lease
        self._at = at
        self._outcome = Settlement(lease, (), failures=lease.failures, last=lease.last)  # without its results
        self._results: dict[int, Settled] = {}
        self._on_wire: Attributes | Track | None = None  # until its answer has been judged

    async def run(self) -> Settlement:
        """Returns the settlement that was made. Raises what nobody expected, once that is settled as well."""
        try:
            await self._send_in_order(groups_of(self._lease.pushes))
        except BaseException as error:
            self._break_off()
            if isinstance(error, Exception):  # a push that breaks this program must not do so all the time
                self._back_off()
            try:
                await self._end(insist=False)
            except Exception as second:  # noqa: BLE001 - the first error is raised, a cancellation above all
                log.error("Lane %d could not be settled either: %s", self._lease.lane, describe(second))
            raise
        return await self._end(insist=True)

    # --- sending

    async def _send_in_order(self, groups: list[Group[Waiting]]) -> bool:
        """Returns False if the lane stops here for now."""
        for group in groups:
            if not await self._send_group(group):
                return False
        return True

    async def _send_group(self, group: Group[Waiting]) -> bool:
        """Sends one request and judges the answer. Returns False if the lane stops here for now."""
        if self._is_unchanged(group):
            for push in group.members:
                self._results[push.seq] = Settled(push.seq, Fate.DELIVERED, attempted=False, unchanged=True)
            return True
        answer = await self._send_or_introduce(group) if await self._may_risk(group) else None
        if answer is None:
            self._on_wire = None
            return False
        account, lease = self._shared.account, self._lease
        retry_at = account.retry_at(self._outcome.failures, answer.retry_after_seconds)
        steps = [account.step(answer.verdict, push, lease=lease, retry_at=retry_at) for push in group.members]
        if len(steps) > 1 and any(isinstance(step, Dead) for step in steps):
            self._on_wire = None
            return await self._send_in_order(singly(group))  # nobody becomes a dead letter for what a neighbour did
        for push, step in zip(group.members, steps, strict=True):
            self._note(push, step, answer)
        self._on_wire = None  # not before: whatever fails until here, an increment is not sent again
        self._outcome = after_step(self._outcome, group, steps[0], retry_at=retry_at, now=self._shared.account.clock())
        return goes_on(group, steps[0])

    def _is_unchanged(self, group: Group[Waiting]) -> bool:
        """Sites identify on every page: what SendX has just been told is not told again, unless it is a probe."""
        last = self._outcome.last
        if last is None or isinstance(group.body, Track):
            return False
        fresh = self._shared.account.clock() < last.at + self._shared.identify_refresh_seconds
        probes = self._shared.account.probe.passes(self._lease)
        return fresh and not probes and identify_digest(group.address, group.body) == last.digest

    async def _may_risk(self, group: Group[Waiting]) -> bool:
        """Returns whether the group may be sent. An increment cannot be retried.

        While the gate is shut, a harmless request is sent ahead of it; the increment becomes the probe only if that succeeds.
        """
        account = self._shared.account
        if account.gate.closure is None or not increments(group.body):
            return True
        answer = await self._send(group, None)
        return answer is not None and account.admits(self._lease)

    async def _send_or_introduce(self, group: Group[Waiting]) -> Reply | None:
        """Sends the group; a track whose verified contact SendX does not know again, once the contact is identified."""
        answer = await self._send(group, group.body)
        if answer is None or answer.verdict is not Verdict.MISSING or group.trust is not Trust.VERIFIED:
            return answer
        self._outcome = _replace(self._outcome, last=None)  # what was identified before is gone
        introduced = await self._send(group, Attributes())
        if introduced is None or introduced.verdict is not Verdict.DELIVERED:
            return introduced
        return await self._send(group, group.body)

    async def _send(self, group: Group[Waiting], body: Attributes | Track | None) -> Reply | None:
        """Sends a body to the contact of the group; without one, a harmless request.

        Returns None if nothing was sent, because of the gate, the lease or the stop.
        """
        shared, account = self._shared, self._shared.account
        if not self._may_send() or not await self._turn_comes():
            return None
        if not await shared.outbox.holds(self._lease) or not self._may_send():
            return None
        upstream = account.upstream
        request = upstream.request_to_list_tags() if body is None else upstream.request_for(group.address, body)
        self._on_wire = body
        account.tally.in_flight += 1
        try:
            answer = await self._client.send(request, repeatable=body is None or not increments(body))
        finally:
            account.tally.in_flight -= 1
        tried = group.members[0].seq
        account.observe(answer, upstream=upstream, lease=self._lease, push=tried, ahead=body is None)
        if log.isEnabledFor(logging.DEBUG):
            _log_request(self._lease.lane, request, answer)
        shared.changed.set()
        return answer

    def _may_send(self) -> bool:
        shared = self._shared
        remaining = self._lease.until - shared.account.clock()
        if shared.stopping.is_set() or remaining < shared.timeout_seconds + LEASE_MARGIN_SECONDS:
            return False
        return shared.account.admits(self._lease)

    async def _turn_comes(self) -> bool:
        """Waits for the next turn to send. Returns False if the store cannot give one."""
        shared = self._shared
        try:
            at, self._at = await shared.turns.next() if self._at is None else self._at, None
        except StoreUnavailable as problem:
            await shared.store_failed(problem)
            return False
        if (seconds := at - time.monotonic()) > 0:
            await wait(shared.stopping, seconds)
        return True

    # --- the outcome

    def _note(self, push: Waiting, step: Step, answer: Reply) -> None:
        result = settled(push, step, answer.detail)
        self._results[push.seq] = result
        if log.isEnabledFor(logging.DEBUG):
            _log_push(self._lease.lane, push, result)
        if result.fate is Fate.DEAD:
            lane, reason = self._lease.lane, result.reason
            log.warning(
                "A push of lane %d is a dead letter, %s (HTTP %s): see scq-proxy dead list", lane, reason, answer.status
            )

    def _break_off(self) -> None:
        """Gives up on the request on the wire: whether it was applied will never be known."""
        if self._on_wire is None:
            return
        self._outcome = _replace(self._outcome, last=None)  # nor what SendX has of the contact now
        if not increments(self._on_wire):
            return
        detail = "its outcome is unknown: sending stopped while the request was under way"
        for push in self._lease.pushes:
            if push.seq not in self._results and increments(push.body):
                self._results[push.seq] = Settled(push.seq, Fate.DEAD, reason=DeadReason.AMBIGUOUS, detail=detail)

    def _back_off(self) -> None:
        failures = self._outcome.failures
        retry_at = self._shared.account.retry_at(failures)
        self._outcome = _replace(self._outcome, failures=failures + 1, retry_at=retry_at)

    async def _end(self, *, insist: bool) -> Settlement:
        settlement = _replace(self._outcome, results=results_of(self._lease, self._results))
        await unbroken(finish(self._shared, settlement, insist=insist), f"delivery-settle-{self._lease.lane}")
        return settlement


async def finish(shared: Shared, settlement: Settlement, *, insist: bool) -> None:
    """Ends a lease: settles it, and shares what was learned of the account under it.

    If the store is unavailable: `insist` retries until the lease ends. What is not settled is sent again, or is ambiguous.
    """
    try:
        await _settle(shared, settlement, insist=insist)
    finally:
        shared.account.probe = shared.account.probe.ended(settlement.lease)
    with suppress(StoreUnavailable):  # the next claim tells it, and a probe ends with its lease
        await shared.share_gate()


async def _settle(shared: Shared, settlement: Settlement, *, insist: bool) -> None:
    lease, tally = settlement.lease, shared.account.tally
    while True:
        try:
            held = await shared.outbox.settle(settlement)
        except StoreUnavailable as problem:
            await shared.store_failed(problem)
            if not insist or shared.stopping.is_set() or shared.account.clock() >= lease.until:
                return
            continue
        except Exception as error:
            plain = without_details(settlement)
            if settlement == plain:
                raise
            log.error(
                "Lane %d was settled without SendX's error texts, which the store refused: %s",
                lease.lane,
                describe(error),
            )
            settlement = plain
            continue
        if held:
            tally.count(settlement.results)
        else:
            tally.lost_leases += 1
            # The store logs a warning if that causes pushes to be sent again.
            log.info("The lease of lane %d expired before it was settled, and nothing was changed", lease.lane)
        return


# --- logging at `debug`: by lane and by the push's id, never by address or value


def _log_request(lane: int, request: SendxRequest, answer: Reply) -> None:
    fields = {
        "lane": lane,
        "call": request.call.name.lower(),
        "outcome": str(answer.verdict),
        "status": answer.status,
        "seconds": round(answer.latency_seconds, 3),
    }
    text = "Request of lane %(lane)d: %(call)s, %(outcome)s (HTTP %(status)s, %(seconds)s s)"
    log.debug(text, fields, extra={"event": "request", "fields": fields})


def _log_push(lane: int, push: Waiting, result: Settled) -> None:
    fields = {"id": push.id, "lane": lane, "outcome": str(result.reason or result.fate.name.lower())}
    log.debug("Push %(id)s of lane %(lane)d: %(outcome)s", fields, extra={"event": "delivery", "fields": fields})


# --- judging: pure


def results_of(lease: Lease, known: Mapping[int, Settled]) -> tuple[Settled, ...]:
    """Returns the results of all pushes; those that were not reached stay as they were."""
    return tuple(known.get(push.seq) or Settled(push.seq, Fate.KEPT, attempted=False) for push in lease.pushes)


def without_details(settlement: Settlement) -> Settlement:
    """Returns the settlement with a fixed text for every detail: texts from outside are the only part that a store can refuse."""
    results = (_replace(each, detail=_NO_DETAIL if each.detail else "") for each in settlement.results)
    return _replace(settlement, results=tuple(results))


def settled(push: Waiting, step: Step, detail: str) -> Settled:
    if isinstance(step, Delivered):
        return Settled(push.seq, Fate.DELIVERED)
    if isinstance(step, Dead):
        return Settled(push.seq, Fate.DEAD, reason=DeadReason(step.reason), detail=detail)
    return Settled(push.seq, Fate.KEPT, attempted=isinstance(step, Retry) and step.attempted, detail=detail)


def after_step(before: Settlement, group: Group[Waiting], step: Step, *, retry_at: float, now: float) -> Settlement:
    """Returns what holds of the lane after one request: its back-off, and the last identify."""
    last = last_identify(before.last, group, step, now)
    if _clears_lane(step):
        return _replace(before, failures=0, last=last)
    if isinstance(step, Keep):  # no `retry_at`: the gate decides when, and it may open sooner
        return _replace(before, last=last)
    return _replace(before, failures=before.failures + 1, retry_at=retry_at, last=last)


def goes_on(group: Group[Waiting], step: Step) -> bool:
    """Returns whether the next push of the lane may be sent now.

    What follows a change of address must be claimed again: the store knows the new one.
    """
    moves = isinstance(group.body, Attributes) and group.body.new_email is not None
    return _clears_lane(step) and not (moves and isinstance(step, Delivered))


def _clears_lane(step: Step) -> bool:
    """Returns whether the lane goes on. An ambiguous, exhausted or lone refused push stops it: an outage must not cost increment after increment."""
    return isinstance(step, Delivered) or (
        isinstance(step, Dead) and step.reason in ("rejected", "missing") and not step.lone
    )


def identify_digest(address: str, body: Attributes) -> bytes:
    return hashlib.sha256(msgspec.json.encode((address, body), order="sorted")).digest()[:16]


def last_identify(before: LastIdentify | None, group: Group[Waiting], step: Step, now: float) -> LastIdentify | None:
    """Returns what is known of the contact after a request: nothing, once something may have changed what the last identify set."""
    body = group.body
    if isinstance(body, Track):
        return before if isinstance(step, Delivered) and not body.remove_tags else None
    if not isinstance(step, Delivered) or body.increments or body.new_email is not None:
        return None
    return LastIdentify(identify_digest(group.address, body), now)
