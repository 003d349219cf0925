"""What SendX's answers say about the account as a whole, and what that allows: the memory of `delivery` between two requests.

It holds the one gate, the limit on concurrency and the counts, puts every answer through the pure rules of `gate` and `retry`,
and says in the log when sending stops or goes on. It sends, claims, settles and stores nothing.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from proxy.core.calls import Attributes, Track
from proxy.core.gate import Closure, Concurrency, Gate, Halt, Permit
from proxy.core.retry import GiveUp, Step, Tried, Verdict, backoff_seconds, next_step
from proxy.core.visitors import Trust
from proxy.delivery.sendx import Reply
from proxy.store.records import Fate, Lease, Settled, Waiting

ADVICE: Mapping[Halt, str] = {
    Halt.KEY: "SendX does not accept the API key: check SCQ_API_KEY (and SCQ_TEAM_ID)",
    Halt.FORBIDDEN: "SendX refuses what this account sends (403): check SCQ_API_KEY, and the account's state at SendX",
    Halt.WRONG_URL: "what answers is not SendX's API: check SCQ_UPSTREAM and SCQ_DIALECT",
}

log = logging.getLogger("proxy.delivery")


class DeliveryState(msgspec.Struct, frozen=True):
    """What the forwarder is doing, for status and metrics. Counts are since this process started; times are Unix seconds.

    `until`: the next probe, while the gate is not open. `requests`: answers by verdict; `latency_seconds`: their sum.
    `lost_leases`: settlements that came too late. `store_failures`: calls that found the store not available.
    """

    running: bool
    gate: Literal["open", "closed", "half-open", "halted"]
    until: float | None
    halted: Halt | None
    in_flight: int
    limit: int
    concurrency: int
    delivered: int
    dead: int
    requests: Mapping[Verdict, int]
    latency_seconds: float
    lost_leases: int
    store_failures: int
    last_error: str | None
    last_error_at: float | None


class Account:
    """`concurrency`: requests at the same time, at most. `clock` gives Unix seconds.

    `shared`: what shuts the gate as far as the outbox is known to say so.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        limits: GiveUp,
        clock: Callable[[], float],
        rng: random.Random | None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self.gate = Gate()
        self.shared: Closure | None = None
        self._concurrency = Concurrency.up_to(concurrency)
        self._requests: Counter[Verdict] = Counter()
        self._settled: Counter[Fate] = Counter()
        self._latency_seconds = 0.0
        self._last_error: tuple[str, float] | None = None
        self.lost_leases = 0
        self.store_failures = 0

    def room(self, busy: int, *, probing: bool) -> int:
        """How many lanes may be claimed now, `busy` being out already. `probing`: one of them is a probe."""
        admission = self.gate.admits(self._clock())
        if admission is Permit.ALL:
            return max(0, self._concurrency.limit - busy)
        return min(1, self._concurrency.maximum - busy) if admission is Permit.PROBE and not probing else 0

    def admits_all(self) -> bool:
        return self.gate.admits(self._clock()) is Permit.ALL

    def adopt(self, closure: Closure | None) -> None:
        """The gate as the outbox has it."""
        before, self.shared = self.gate, closure
        if closure != before.closure:
            self.gate = before.moved(closure).within_reason(self._clock())
            _log_change(before, self.gate, self._clock())

    def probe_now(self) -> None:
        """While sending is halted: what halted it may be mended."""
        closure = self.gate.closure
        if closure is not None and closure.halted is not None:
            self.gate = self.gate.moved(msgspec.structs.replace(closure, until=self._clock()))

    def seconds_to_probe(self, most: float) -> float:
        """How long to wait while the gate is shut and no probe is out."""
        return most if self.gate.until is None else min(max(self.gate.until - self._clock(), 0.0), most)

    def observe(self, answer: Reply, *, lane: int, probe: bool) -> None:
        """Take in one answer. `probe`: its request was let through a shut gate."""
        now = self._clock()
        self._requests[answer.verdict] += 1
        self._latency_seconds += answer.latency_seconds
        if answer.verdict is Verdict.DELIVERED:
            self._concurrency = self._concurrency.after_success()
        else:
            self._last_error = answer.detail, now
        if answer.verdict is Verdict.THROTTLED or answer.timed_out:
            self._concurrency = self._concurrency.after_overload(now)
        before = self.gate
        self.gate = before.after(
            answer.verdict,
            lane=lane,
            probe=probe,
            now=now,
            uniform=self._rng.random(),
            retry_after=answer.retry_after_seconds,
        )
        _log_change(before, self.gate, now)

    def step(self, verdict: Verdict, push: Waiting, *, lease: Lease, retry_at: float) -> Step:
        """What becomes of a push after an answer that was observed."""
        lane = lease.lane
        introduced = isinstance(push.body, Track) and push.trust is Trust.VERIFIED
        pressed = lease.pressed and push.trust is Trust.ASSERTED and self.gate.closure is None
        tried = Tried(increments(push.body), push.attempts, self._clock() - push.since, introduced, pressed)
        return next_step(
            verdict,
            tried,
            limits=self._limits,
            retry_at=retry_at,
            halted=self.gate.halted is not None,
            lone_refusals=self.gate.lone_refusals(lane),
        )

    def retry_at(self, failures: int, retry_after: float | None = None) -> float:
        """When a lane may be tried again (Unix seconds), `failures` being those in a row before this one."""
        return self._clock() + backoff_seconds(failures, self._rng.random(), retry_after)

    def count(self, results: Iterable[Settled]) -> None:
        self._settled.update(result.fate for result in results)

    def state(self, *, running: bool, in_flight: int) -> DeliveryState:
        last_error, last_error_at = self._last_error or (None, None)
        return DeliveryState(
            running=running,
            gate=self.gate.name(self._clock()),
            until=self.gate.until,
            halted=self.gate.halted,
            in_flight=in_flight,
            limit=self._concurrency.limit,
            concurrency=self._concurrency.maximum,
            delivered=self._settled[Fate.DELIVERED],
            dead=self._settled[Fate.DEAD],
            requests=dict(self._requests),
            latency_seconds=self._latency_seconds,
            lost_leases=self.lost_leases,
            store_failures=self.store_failures,
            last_error=last_error,
            last_error_at=last_error_at,
        )


def increments(body: Attributes | Track) -> bool:
    return isinstance(body, Attributes) and body.increments


def _log_change(before: Gate, after: Gate, now: float) -> None:
    """Once for each change of kind: a probe that finds nothing new is no news."""
    if after.halted is not before.halted:
        if after.halted is None:
            log.warning("Sending goes on")
        else:
            log.error("Sending is halted (%s): %s. One probe a minute", after.halted, ADVICE[after.halted])
    elif after.closure is None:
        if before.closure is not None:
            log.warning("SendX answers again" if before.closure.down else "SendX accepts requests again")
    elif after.halted is None and (before.closure is None or before.closure.down is not after.closure.down):
        what = "does not answer" if after.closure.down else "throttles this account"
        log.warning("SendX %s: next probe in %.1f s", what, max(0.0, after.closure.until - now))
