"""Decides what SendX's answers say about the account as a whole: whether anything may be sent now, and how much at once.

Pure: time and randomness are arguments. The rules:

1. A 429 closes the gate for the whole account (`Retry-After` is a minimum). Then one probe: an answer that is not another 429 opens it.
2. Sending halts on a 401; on refusals (403 and its like) of two lanes with no delivery between; on a wrong base URL, which is 3xx, 405, 404
   on identify or an unclear success on five lanes with no delivery between; on an unclear success of a probe. Then one probe a minute,
   sooner at first if a push was delivered within the last hour: a stray refusal should not stop all contacts for long. A success ends the
   halt. Answers about one push (400, 409, 422, 404 on track and their like) never halt.
3. 5xx, timeouts, failed connects, 408 and its like on five lanes with no other answer between shut the gate: SendX is down. One probe at a
   time, half a minute apart at most, on the lane that has failed least; any answer opens the gate. A contact that fails alone shuts nothing.
4. Answers to requests that were on the wire when the gate shut neither open it nor lengthen its back-off.

A `Closure`, which shuts the gate, is kept in the outbox, for every sender of the account and across restarts; the evidence that leads to
it is each sender's own. The fate of one push is decided in `core.retry`.
"""

from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from typing import Literal, NamedTuple, Self

import msgspec

from proxy.core.retry import LONE_SECONDS, LONE_TRIES, MAX_RETRY_AFTER_SECONDS, NOT_LONE, Lone, Verdict, backoff_seconds

PROBE_SECONDS = 60.0
RECENT_SECONDS = 3_600.0
MISDIRECTED_LANES = 5
DOWN_LANES = 5
MAX_DOWN_SECONDS = 30.0
_MAX_DOWN_TRIES = 5  # failed probes at which a throttle that ends an outage goes on
_REMEMBERED_REFUSALS = 256  # lanes; further ones wait for a free place, so that the first can complete their hour
_DOUBLINGS = 6  # of one second, to reach PROBE_SECONDS
_CUT_SECONDS = 1.0  # one overload shows in many answers at once
_GROW_AFTER = 20  # successes


class Halt(StrEnum):
    KEY = "401"
    FORBIDDEN = "403"
    WRONG_URL = "wrong base URL"


class Permit(Enum):
    ALL = auto()
    PROBE = auto()  # one lane at a time
    NONE = auto()


class Closure(msgspec.Struct, frozen=True):
    """The cause that shuts the gate.

    `until`: Unix seconds of the next probe, by the outbox's clock. `tries`: failed probes in a row, from which the wait for the next one is
    computed. `down`: SendX does not answer; else, unless `halted`, it throttles.
    """

    until: float
    tries: int = 0
    halted: Halt | None = None
    down: bool = False


def merge_closures(stored: Closure | None, before: Closure | None, after: Closure | None) -> Closure | None:
    """Returns what holds for the account when a sender that knew `before` wants `after`, and others may have moved the gate meanwhile.

    No sender opens a gate that another has shut since, and of two closures the longer one holds.
    """
    if stored == before or stored is None:
        return after
    if after is None:
        return stored
    until, tries = max(stored.until, after.until), max(stored.tries, after.tries)
    return Closure(until, tries, after.halted or stored.halted, stored.down and after.down)


class _Refusal(NamedTuple):
    """The last refusal of the push at the head of a lane. `at`: Unix seconds; `successes`: the account's count at that time."""

    push: int
    at: float
    successes: int
    lone: Lone = NOT_LONE


_MISDIRECTED = (Verdict.REDIRECTED, Verdict.MISDIRECTED, Verdict.UNCLEAR)
_UNANSWERED = (Verdict.UNAVAILABLE, Verdict.UNREACHED, Verdict.BUSY)
_replace = msgspec.structs.replace


class Gate(msgspec.Struct, frozen=True):
    """The account as a whole: open (no `closure`); closed until a time and then half-open; or halted.

    The rest is the evidence that the rules need: which lanes got which answers since the last 2xx, and which were refused alone.
    """

    closure: Closure | None = None
    successes: int = 0
    delivered_at: float | None = None
    forbidden: frozenset[int] = frozenset()
    misdirected: frozenset[int] = frozenset()
    unanswered: frozenset[int] = frozenset()
    refusals: Mapping[int, _Refusal] = {}

    @property
    def until(self) -> float | None:
        """Returns when the next probe is due (Unix seconds), while the gate is shut."""
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

    def lone(self, lane: int, push: int) -> Lone:
        """Returns the evidence that only this push is refused."""
        refusal = self.refusals.get(lane)
        return refusal.lone if refusal is not None and refusal.push == push else NOT_LONE

    def after(
        self,
        verdict: Verdict,
        *,
        lane: int,
        push: int,
        probe: bool,
        now: float,
        uniform: float,
        retry_after: float | None = None,
    ) -> "Gate":
        """Returns the account after one answer to a push of a lane. `probe`: the request was the probe that passed the shut gate."""
        gate = _with_evidence(self, verdict, lane, push, now)
        if (reason := _cause(gate, verdict, probe=probe)) is not None:
            return _halt(gate, reason, probe=probe, now=now, uniform=uniform)
        if probe and _is_mended(gate, verdict):
            return gate.moved(None)
        if gate.halted is not None:
            return _halt(gate, gate.halted, probe=probe, now=now, uniform=uniform)
        if verdict is Verdict.THROTTLED:
            return _close(gate, probe=probe, now=now, uniform=uniform, retry_after=retry_after)
        if verdict in _UNANSWERED and (probe or len(gate.unanswered) >= DOWN_LANES):
            return _wait_for_sendx(gate, probe=probe, now=now, uniform=uniform, retry_after=retry_after)
        return gate

    def moved(self, closure: Closure | None) -> "Gate":
        """Returns the gate as it is set. Once it opens, the evidence that shut it does not count again."""
        gate = _replace(self, closure=closure)
        if closure is None and self.halted is not None:
            gate = _replace(gate, forbidden=frozenset(), misdirected=frozenset())
        return _replace(gate, unanswered=frozenset()) if closure is None else gate

    def within_reason(self, now: float) -> "Gate":
        """Returns the gate, shut for no longer than Retry-After may: else a clock was wrong when it was shut."""
        closure = self.closure
        if closure is None or closure.until <= now + MAX_RETRY_AFTER_SECONDS:
            return self
        return _replace(self, closure=_replace(closure, until=now))


def _with_evidence(gate: Gate, verdict: Verdict, lane: int, push: int, now: float) -> Gate:
    if verdict in _UNANSWERED:
        return _replace(gate, unanswered=gate.unanswered | {lane}) if gate.closure is None else gate
    gate = _replace(gate, unanswered=frozenset())
    if verdict is Verdict.DELIVERED:
        return _replace(
            gate,
            successes=gate.successes + 1,
            delivered_at=now,
            forbidden=frozenset(),
            misdirected=frozenset(),
            refusals=_without(gate.refusals, lane) if lane in gate.refusals else gate.refusals,
        )
    if verdict in _MISDIRECTED and gate.halted is None:
        return _replace(gate, misdirected=gate.misdirected | {lane})
    if verdict is Verdict.REFUSED and gate.halted is None:
        return _replace(gate, forbidden=gate.forbidden | {lane}, refusals=_refused_again(gate, lane, push, now))
    return gate


def _without(refusals: Mapping[int, _Refusal], lane: int) -> dict[int, _Refusal]:
    return {key: refusal for key, refusal in refusals.items() if key != lane}


def _refused_again(gate: Gate, lane: int, push: int, now: float) -> Mapping[int, _Refusal]:
    before, refusals = gate.refusals.get(lane), _without(gate.refusals, lane)
    if len(refusals) == _REMEMBERED_REFUSALS:
        oldest = next(iter(refusals))
        if refusals[oldest].at > now - LONE_SECONDS:
            return gate.refusals
        del refusals[oldest]
    lone = _alone_for_longer(before, gate.successes, now) if before is not None and before.push == push else NOT_LONE
    refusals[lane] = _Refusal(push, now, gate.successes, lone)
    return refusals


def _alone_for_longer(before: _Refusal, successes: int, now: float) -> Lone:
    if successes == before.successes:  # nothing was delivered: it may be the account
        return Lone(before.lone.seconds)
    since = min(
        max(now - before.at, 0.0), LONE_SECONDS / (LONE_TRIES - 1)
    )  # an outage or a jump of the clock is not an hour's evidence
    return Lone(before.lone.seconds + since, proven=True)


def _cause(gate: Gate, verdict: Verdict, *, probe: bool) -> Halt | None:
    """Returns why this answer halts sending, if it does."""
    if verdict is Verdict.UNAUTHORIZED:
        return Halt.KEY
    if gate.halted is not None:
        return None
    if len(gate.forbidden) > 1:
        return Halt.FORBIDDEN
    # An outage that turns into a maintenance page is not over, and the next requests could be increments.
    unclear = probe and verdict is Verdict.UNCLEAR
    return Halt.WRONG_URL if unclear or len(gate.misdirected) >= MISDIRECTED_LANES else None


def _is_mended(gate: Gate, verdict: Verdict) -> bool:
    """Returns whether a probe with this answer shows that the cause of the closure is over."""
    if gate.halted is None:
        return verdict is not Verdict.THROTTLED and verdict not in _UNANSWERED
    if verdict is Verdict.MISSING:  # proves the key, but a wrong URL answers that, too
        return gate.halted is not Halt.WRONG_URL
    return verdict in (Verdict.DELIVERED, Verdict.REJECTED)


def _halt(gate: Gate, reason: Halt, *, probe: bool, now: float, uniform: float) -> Gate:
    closure = gate.closure
    goes_on = closure is not None and closure.halted is not None
    if closure is not None and goes_on and not probe:
        return _replace(gate, closure=_replace(closure, halted=reason))
    if closure is not None and goes_on:
        tries = closure.tries
    else:
        recent = gate.delivered_at is not None and now < gate.delivered_at + RECENT_SECONDS
        tries = 0 if recent else _DOUBLINGS
    wait = min(PROBE_SECONDS, 2.0 ** min(tries, _DOUBLINGS)) * (0.75 + uniform / 4)
    return _replace(gate, closure=Closure(now + wait, tries + 1, reason))


def _close(gate: Gate, *, probe: bool, now: float, uniform: float, retry_after: float | None) -> Gate:
    closure = gate.closure
    if closure is not None and not probe:
        until = max(closure.until, now + (retry_after or 0.0))
        return _replace(gate, closure=_replace(closure, until=until))
    tries = closure.tries if closure else 0
    wait = backoff_seconds(tries, uniform, retry_after)
    return _replace(gate, closure=Closure(now + wait, tries + 1))


def _wait_for_sendx(gate: Gate, *, probe: bool, now: float, uniform: float, retry_after: float | None) -> Gate:
    closure = gate.closure
    if closure is not None and not probe:
        return gate
    tries = min(closure.tries, _MAX_DOWN_TRIES) if closure else 0
    wait = max(uniform * min(MAX_DOWN_SECONDS, 2.0**tries), retry_after or 0.0)
    return _replace(gate, closure=Closure(now + wait, min(tries + 1, _MAX_DOWN_TRIES), down=True))


class Concurrency(msgspec.Struct, frozen=True):
    """The limit on requests at the same time: halved when SendX is overloaded, growing back slowly."""

    maximum: int
    limit: int
    successes: int = 0
    cut_at: float = 0.0

    @classmethod
    def up_to(cls, maximum: int) -> Self:
        return cls(maximum, maximum)

    def after_success(self) -> Self:
        if self.limit == self.maximum:
            return self
        if self.successes + 1 < _GROW_AFTER:
            return _replace(self, successes=self.successes + 1)
        return _replace(self, limit=self.limit + 1, successes=0)

    def after_overload(self, now: float) -> Self:
        """Returns the limit after a 429 or a timeout. Answers within one second are about the same overload."""
        if now < self.cut_at + _CUT_SECONDS:
            return self
        return _replace(self, limit=max(1, self.limit // 2), successes=0, cut_at=now)
