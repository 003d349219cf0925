"""Remembers, between two requests, what SendX's answers say about the account as a whole and what that allows.

Holds the one gate with its probe, the limit on concurrency and the counts. Puts every answer through the pure rules of `core.gate` and
`core.retry`. Never sends, claims, settles or stores anything, and logs nothing: `ops.watch` logs every change.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from proxy.core.calls import Track
from proxy.core.gate import Closure, Concurrency, Gate, Halt, Permit
from proxy.core.retry import GiveUp, Step, Tried, Verdict, backoff_seconds, next_step
from proxy.core.visitors import Trust
from proxy.delivery.probe import Probe, Stage
from proxy.delivery.sendx import Reply, Upstream
from proxy.store.records import Fate, Lease, Settled, Waiting
from proxy.store.rows import increments

ADVICE: Mapping[Halt, str] = {
    Halt.KEY: "SendX does not accept the API key: check SCQ_API_KEY (and SCQ_TEAM_ID)",
    Halt.FORBIDDEN: "SendX, or a gateway in front of it, refuses this account's requests: check SCQ_API_KEY, SCQ_UPSTREAM, and the "
    "account's status at SendX",
    Halt.WRONG_URL: "the answers are not those of SendX's API: check SCQ_UPSTREAM and SCQ_DIALECT, and whether SendX is under "
    "maintenance; set SCQ_DELIVERED=2xx only if SendX answers like this to what it has taken",
}

# What to do about an answer that is not about one push alone. What a connection runs into has advice of its own, in `unreached`.
VERDICT_ADVICE: Mapping[Verdict, str] = {
    Verdict.UNAUTHORIZED: "Check SCQ_API_KEY (and SCQ_TEAM_ID).",
    Verdict.UNCLEAR: "Check SCQ_UPSTREAM: another server may be answering, or SendX is under maintenance. Set SCQ_DELIVERED=2xx "
    "only if SendX answers like this to what it has taken.",
    Verdict.REFUSED: "Check SCQ_API_KEY, and the account's state at SendX.",
    Verdict.REDIRECTED: "Check SCQ_UPSTREAM: it is not SendX's API that answers.",
    Verdict.MISDIRECTED: "Check SCQ_UPSTREAM and SCQ_DIALECT: it is not SendX's API that answers.",
}

_LATEST = 4  # requests over which `slow_share` is smoothed
_ABOUT_A_PUSH = (Verdict.REJECTED, Verdict.MISSING)


class DeliveryState(msgspec.Struct, frozen=True, kw_only=True):
    """What the forwarder is doing, for status and metrics. Counts are since this process started; times are Unix seconds.

    `until`: the next probe, while the gate is not open; `down`: because SendX does not answer. `requests`: answers by verdict;
    `latency_seconds`: their sum.
    `lost_leases`: settlements that came too late. `store_failures`: calls that found the store unavailable. `failing_since`: when the
    request was sent that had the first answer after the last delivery that says something against the account or the connection.
    `last_verdict`: of `last_error`, None for a defect. `slow_share`: of the latest requests, those that SendX
    took and did not answer in time, from 0 to 1.
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
    last_verdict: Verdict | None = None
    last_delivered_at: float | None = None
    failing_since: float | None = None
    slow_share: float = 0.0
    down: bool = False


class Tally(msgspec.Struct):
    """What `DeliveryState` counts: nothing is decided by it."""

    requests: Counter[Verdict] = msgspec.field(default_factory=Counter)
    latency_seconds: float = 0.0
    last_error: str | None = None
    last_error_at: float | None = None
    last_verdict: Verdict | None = None
    last_delivered_at: float | None = None
    failing_since: float | None = None
    slow_share: float = 0.0
    delivered: int = 0
    dead: int = 0
    in_flight: int = 0
    lost_leases: int = 0
    store_failures: int = 0

    def note(self, answer: Reply, now: float) -> None:
        self.requests[answer.verdict] += 1
        self.latency_seconds += answer.latency_seconds
        slow = answer.timed_out and answer.verdict is Verdict.UNAVAILABLE
        self.slow_share += (slow - self.slow_share) / _LATEST
        if answer.verdict is Verdict.DELIVERED:
            self.last_delivered_at, self.failing_since = now, None
            return
        self.last_error, self.last_error_at, self.last_verdict = answer.detail, now, answer.verdict
        if answer.verdict not in _ABOUT_A_PUSH and self.failing_since is None:
            self.failing_since = now - answer.latency_seconds

    def count(self, results: Iterable[Settled]) -> None:
        for result in results:
            self.delivered += result.fate is Fate.DELIVERED
            self.dead += result.fate is Fate.DEAD


class Account:
    """One account at SendX, as this sender knows it. `clock` gives Unix seconds.

    `concurrency`: the most requests at the same time. `upstream`: where requests go, and with which key. `probe`: this sender's own.
    `shared`: what shuts the gate as far as the outbox is known to say so.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        concurrency: int,
        limits: GiveUp,
        clock: Callable[[], float],
        rng: random.Random | None,
    ) -> None:
        self.upstream = upstream
        self._limits = limits
        self.clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self.gate = Gate()
        self.probe = Probe()
        self.shared: Closure | None = None
        self._concurrency = Concurrency.up_to(concurrency)
        self.tally = Tally()

    def room(self, busy: int) -> int:
        """Returns how many lanes may be claimed now, `busy` being out already."""
        permit = self.gate.admits(self.clock())
        if permit is Permit.ALL:
            return max(0, self._concurrency.limit - busy)
        return min(1, self._concurrency.maximum - busy) if permit is Permit.PROBE and not self.probe.busy else 0

    def admits(self, lease: Lease) -> bool:
        return self.gate.closure is None or self.probe.passes(lease)

    def seconds_to_probe(self, most: float) -> float:
        """Returns how long to wait while the gate is shut; `most` while a probe is out."""
        if self.gate.until is None or self.probe.busy:
            return most
        return min(max(self.gate.until - self.clock(), 0.0), most)

    def has_news(self) -> bool:
        """Returns whether the outbox has to be told of the gate, or of the end of a probe."""
        return self.shared != self.gate.closure or self.probe.stage is Stage.OVER

    def adopt(self, closure: Closure | None) -> None:
        before, self.shared = self.gate, closure
        if closure != before.closure:
            self.gate = before.moved(closure).within_reason(self.clock())

    def use(self, upstream: Upstream) -> None:
        """Sends there from the next request on. A halt is worth a probe at once: what caused it may have been fixed."""
        self.upstream = upstream
        closure = self.gate.closure
        if closure is not None and closure.halted is not None:
            self.gate = self.gate.moved(msgspec.structs.replace(closure, until=self.clock()))

    def observe(self, answer: Reply, *, upstream: Upstream, lease: Lease, push: int, ahead: bool = False) -> None:
        """Updates the account's state from one answer. Ignores answers to requests made with a key that was replaced since.

        `push`: the number of the push that was tried. `ahead`: the answer is to a request sent ahead of a probe; if that succeeded, the probe
        is still to come.
        """
        if upstream is not self.upstream:
            return
        now = self.clock()
        self.tally.note(answer, now)
        if answer.verdict is Verdict.DELIVERED:
            self._concurrency = self._concurrency.after_success()
        if answer.verdict is Verdict.THROTTLED or answer.timed_out:
            self._concurrency = self._concurrency.after_overload(now)
        if ahead and answer.verdict is Verdict.DELIVERED:
            return
        self.gate = self.gate.after(
            answer.verdict,
            lane=lease.lane,
            push=push,
            probe=self.probe.passes(lease),
            now=now,
            uniform=self._rng.random(),
            retry_after=answer.retry_after_seconds,
        )
        self.probe = self.probe.answered(lease)

    def step(self, verdict: Verdict, push: Waiting, *, lease: Lease, retry_at: float) -> Step:
        """Returns what becomes of a push after an answer that was observed."""
        tried = Tried(
            increments=increments(push.body),
            attempts=push.attempts,
            age_seconds=self.clock() - push.since,
            introduced=isinstance(push.body, Track) and push.trust is Trust.VERIFIED,
            pressed=lease.pressed and push.trust is Trust.ASSERTED and self.gate.closure is None,
        )
        return next_step(
            verdict,
            tried,
            limits=self._limits,
            retry_at=retry_at,
            halted=self.gate.halted is not None,
            lone=self.gate.lone(lease.lane, push.seq),
        )

    def retry_at(self, failures: int, retry_after: float | None = None) -> float:
        """Returns when a lane may be retried (Unix seconds), `failures` being those in a row before this one."""
        return self.clock() + backoff_seconds(failures, self._rng.random(), retry_after)

    def state(self, *, running: bool) -> DeliveryState:
        counts = msgspec.structs.asdict(self.tally) | {"requests": dict(self.tally.requests)}
        return DeliveryState(
            running=running,
            gate=self.gate.name(self.clock()),
            until=self.gate.until,
            halted=self.gate.halted,
            down=self.gate.closure is not None and self.gate.closure.down,
            limit=self._concurrency.limit,
            concurrency=self._concurrency.maximum,
            **counts,
        )
