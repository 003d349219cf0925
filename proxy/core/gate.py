"""What SendX's answers say of the account as a whole: whether anything may be sent now, how much at once, and how fast.

Pure: time and randomness are arguments. The rules:

1. A 429 closes the gate for the whole account (`Retry-After` is a minimum). Then one probe: an answer that is not another 429 opens it.
2. Sending halts on a 401; on a 403 that a second lane gets too with no 2xx between; on a wrong base URL, which is 3xx, 405 or
   404 on identify over five lanes with no 2xx between. Then one probe a minute; success ends the halt.
   400, 409, 422 and 404 on track never halt.
3. So does a run of 5xx, time-outs and failed connections over five lanes with no other answer between: SendX is down. One probe at a
   time, half a minute apart at most, on the lane that has failed least; any answer opens the gate. A contact that alone fails shuts nothing.
4. Answers to requests that were under way when the gate shut neither open it nor lengthen its back-off.

What shuts the gate (`Closure`) is kept in the outbox, for every sender of the account and across restarts; the evidence that leads to
it is each sender's own. What becomes of one push is in `retry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from typing import Literal, NamedTuple

import msgspec

from proxy.core.retry import MAX_RETRY_AFTER_SECONDS, Verdict, backoff_seconds

PROBE_SECONDS = 60.0
MISDIRECTED_LANES = 5
DOWN_LANES = 5
MAX_DOWN_SECONDS = 30.0
_REMEMBERED_REFUSALS = 256  # lanes; beyond that the oldest starts over
_CUT_SECONDS = 1.0  # one overload shows in many answers at once
_GROW_AFTER = 20  # successes


class Halt(StrEnum):
    """Why sending is halted, for the operator."""

    KEY = "401"
    FORBIDDEN = "403"
    WRONG_URL = "wrong base URL"


class Permit(Enum):
    """What may be sent now."""

    ALL = auto()
    PROBE = auto()  # one lane at a time
    NONE = auto()


class Closure(msgspec.Struct, frozen=True):
    """What shuts the gate. `until`: Unix seconds of the next probe. `tries`: times in a row that it was shut, as probes saw it.

    `down`: SendX does not answer; else, unless `halted`, it throttles.
    """

    until: float
    tries: int = 0
    halted: Halt | None = None
    down: bool = False


def merge_closures(stored: Closure | None, before: Closure | None, after: Closure | None) -> Closure | None:
    """What holds for the account when a sender that knew `before` wants `after`, while others may have moved the gate meanwhile.

    Nobody opens a gate that somebody else has shut since, and of two closures the longer one holds.
    """
    if stored == before or stored is None:
        return after
    if after is None:
        return stored
    until, tries = max(stored.until, after.until), max(stored.tries, after.tries)
    return Closure(until, tries, after.halted or stored.halted, stored.down and after.down)


class _Refusal(NamedTuple):
    tries: int
    successes: int  # of the account, when it was last refused


_MISDIRECTED = (Verdict.REDIRECTED, Verdict.MISDIRECTED)
_UNANSWERED = (Verdict.UNAVAILABLE, Verdict.UNREACHED)


class Gate(msgspec.Struct, frozen=True):
    """The account as a whole: open (no `closure`); closed until a time and then half-open; or halted.

    The rest is what the rules need: which lanes got which answers since the last 2xx, and who was refused alone.
    """

    closure: Closure | None = None
    successes: int = 0
    forbidden: frozenset[int] = frozenset()
    misdirected: frozenset[int] = frozenset()
    unanswered: frozenset[int] = frozenset()
    refusals: Mapping[int, _Refusal] = {}

    @property
    def until(self) -> float | None:
        """Unix seconds of the next probe, while the gate is shut."""
        return self.closure.until if self.closure else None

    @property
    def halted(self) -> Halt | None:
        return self.closure.halted if self.closure else None

    def admits(self, now: float) -> Permit:
        if self.closure is None:
            return Permit.ALL
        return Permit.PROBE if now >= self.closure.until else Permit.NONE

    def name(self, now: float) -> Literal["open", "closed", "half-open", "halted"]:
        if self.closure is None:
            return "open"
        if self.closure.halted is not None:
            return "halted"
        return "half-open" if now >= self.closure.until else "closed"

    def lone_refusals(self, lane: int) -> int:
        """How often this lane got 403 while others got through."""
        refusal = self.refusals.get(lane)
        return refusal.tries if refusal else 0

    def after(
        self, verdict: Verdict, *, lane: int, probe: bool, now: float, uniform: float, retry_after: float | None = None
    ) -> Gate:
        """The account after one answer. `probe`: the request was the one that a shut gate let through."""
        gate = self._noting(verdict, lane)
        if (reason := gate._cause(verdict)) is not None:
            return gate._halt(reason, probe=probe, now=now)
        if probe and gate._passed(verdict):
            return gate.moved(None)
        if gate.halted is not None:
            return gate._halt(gate.halted, probe=probe, now=now)
        if verdict is Verdict.THROTTLED:
            return gate._close(probe=probe, now=now, uniform=uniform, retry_after=retry_after)
        if verdict in _UNANSWERED and (probe or len(gate.unanswered) >= DOWN_LANES):
            return gate._wait_for_sendx(probe=probe, now=now, uniform=uniform, retry_after=retry_after)
        return gate

    def moved(self, closure: Closure | None) -> Gate:
        """The gate as it is set. What shut it does not count again after it."""
        gate = _replace(self, closure=closure)
        if closure is None and self.halted is not None:
            gate = _replace(gate, forbidden=frozenset(), misdirected=frozenset())
        return _replace(gate, unanswered=frozenset()) if closure is None else gate

    def within_reason(self, now: float) -> Gate:
        """Nothing shuts the gate for longer than Retry-After may: else a clock was wrong when it was shut."""
        closure = self.closure
        if closure is None or closure.until <= now + MAX_RETRY_AFTER_SECONDS:
            return self
        return _replace(self, closure=_replace(closure, until=now))

    def _noting(self, verdict: Verdict, lane: int) -> Gate:
        if verdict in _UNANSWERED:
            return _replace(self, unanswered=self.unanswered | {lane}) if self.closure is None else self
        return _replace(self, unanswered=frozenset())._noting_answer(verdict, lane)

    def _noting_answer(self, verdict: Verdict, lane: int) -> Gate:
        if verdict is Verdict.DELIVERED:
            return _replace(
                self,
                successes=self.successes + 1,
                forbidden=frozenset(),
                misdirected=frozenset(),
                refusals={key: refusal for key, refusal in self.refusals.items() if key != lane},
            )
        if verdict in _MISDIRECTED and self.halted is None:
            return _replace(self, misdirected=self.misdirected | {lane})
        if verdict is Verdict.FORBIDDEN and self.halted is None:
            return _replace(self, forbidden=self.forbidden | {lane}, refusals=self._refused_again(lane))
        return self

    def _refused_again(self, lane: int) -> Mapping[int, _Refusal]:
        before = self.refusals.get(lane, _Refusal(0, -1))
        others_passed = self.successes > before.successes
        refusals = {key: refusal for key, refusal in self.refusals.items() if key != lane}
        refusals[lane] = _Refusal(before.tries + others_passed, self.successes)
        if len(refusals) > _REMEMBERED_REFUSALS:
            del refusals[next(iter(refusals))]
        return refusals

    def _cause(self, verdict: Verdict) -> Halt | None:
        """Why this answer halts sending, if it does."""
        if verdict is Verdict.UNAUTHORIZED:
            return Halt.KEY
        if self.halted is not None:
            return None
        if len(self.forbidden) > 1:
            return Halt.FORBIDDEN
        return Halt.WRONG_URL if len(self.misdirected) >= MISDIRECTED_LANES else None

    def _passed(self, verdict: Verdict) -> bool:
        """Whether a probe with this answer shows that what shut the gate is over."""
        if self.halted is None:
            return verdict is not Verdict.THROTTLED and verdict not in _UNANSWERED
        if verdict is Verdict.MISSING:  # proves the key, but is what a wrong URL answers, too
            return self.halted is not Halt.WRONG_URL
        return verdict in (Verdict.DELIVERED, Verdict.REJECTED)

    def _halt(self, reason: Halt, *, probe: bool, now: float) -> Gate:
        closure = self.closure
        if closure is not None and closure.halted is not None and not probe:
            return _replace(self, closure=_replace(closure, halted=reason))
        return _replace(self, closure=Closure(now + PROBE_SECONDS, closure.tries if closure else 0, reason))

    def _close(self, *, probe: bool, now: float, uniform: float, retry_after: float | None) -> Gate:
        closure = self.closure
        if closure is not None and not probe:
            until = max(closure.until, now + (retry_after or 0.0))
            return _replace(self, closure=_replace(closure, until=until))
        tries = closure.tries if closure else 0
        wait = backoff_seconds(tries, uniform, retry_after)
        return _replace(self, closure=Closure(now + wait, tries + 1))

    def _wait_for_sendx(self, *, probe: bool, now: float, uniform: float, retry_after: float | None) -> Gate:
        closure = self.closure
        if closure is not None and not probe:
            return self
        tries = closure.tries if closure else 0
        wait = max(uniform * min(MAX_DOWN_SECONDS, 2.0 ** min(tries, 16)), retry_after or 0.0)
        return _replace(self, closure=Closure(now + wait, tries + 1, down=True))


_replace = msgspec.structs.replace


class Concurrency(msgspec.Struct, frozen=True):
    """How many requests may be under way: halved when SendX is overloaded, growing back slowly."""

    maximum: int
    limit: int
    successes: int = 0
    cut_at: float = 0.0

    @classmethod
    def up_to(cls, maximum: int) -> Concurrency:
        return cls(maximum, maximum)

    def after_success(self) -> Concurrency:
        if self.limit == self.maximum:
            return self
        if self.successes + 1 < _GROW_AFTER:
            return _replace(self, successes=self.successes + 1)
        return _replace(self, limit=self.limit + 1, successes=0)

    def after_overload(self, now: float) -> Concurrency:
        """After a 429 or a time-out. Answers that come within a second tell of the same overload."""
        if now < self.cut_at + _CUT_SECONDS:
            return self
        return _replace(self, limit=max(1, self.limit // 2), successes=0, cut_at=now)
