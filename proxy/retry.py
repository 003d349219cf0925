"""What follows from SendX's answer: the one table from verdict to step, and the state of the whole account.

Pure: time and randomness are arguments. The rules, in the order in which they count:

1. An increment (`++n`, `--n`) is never sent twice when it is unknown whether the first was applied: it becomes a dead letter
   `ambiguous`. Known as not applied is only what got a 429, another 4xx or no connection.
2. While sending is halted no attempt is spent and nothing is dead-lettered, rule 1 aside.
3. `RULES` below says what becomes of one push. A push is `exhausted` only after many attempts *and* many days.
4. A 429 closes the gate for the whole account (`Retry-After` is a minimum). Then one probe: success opens it.
5. Sending halts on a 401; on a 403 that a second lane gets too with no 2xx between; on a wrong base URL, which is 3xx, 405 or
   404 on identify over five lanes with no 2xx between. Then one probe a minute; success ends the halt.
   400, 409, 422 and 404 on track never halt.
6. A lone 403 (a firewall that dislikes one name) backs its lane off. After five tries between which other lanes got through,
   it is the push's own fault.
7. A track that is 404 although its verified contact was just identified is tried three times in all: SendX may be slow to know.

What the answers mean is read in `sendx`; what is done about a step is `delivery`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, StrEnum, auto
from typing import Literal, NamedTuple

import msgspec

MAX_BACKOFF_SECONDS = 300.0
MAX_RETRY_AFTER_SECONDS = 3_600.0
PROBE_SECONDS = 60.0
MISDIRECTED_LANES = 5
LONE_REFUSALS = 5
MISSING_TRIES = 3
_REMEMBERED_REFUSALS = 256  # lanes; beyond that the oldest starts over
_CUT_SECONDS = 1.0  # one overload shows in many answers at once
_GROW_AFTER = 20  # successes


class Verdict(StrEnum):
    """What one request came to. 404 is two verdicts: SendX upserts on identify, so there it means a wrong URL."""

    DELIVERED = "delivered"  # 2xx
    THROTTLED = "throttled"  # 429
    UNAVAILABLE = "unavailable"  # 5xx, connection lost, time-out: applied or not
    UNREACHED = "unreached"  # no connection: certainly not applied
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403
    MISSING = "missing"  # 404 on track
    REDIRECTED = "redirected"  # 3xx: nothing is known of the push
    MISDIRECTED = "misdirected"  # 404 on identify, 405
    REJECTED = "rejected"  # any other 4xx


# --- One push ----------------------------------------------------------------------------------------------------------

DeadFor = Literal["rejected", "missing", "exhausted", "ambiguous"]


class Delivered(msgspec.Struct, frozen=True):
    """Done."""


class Retry(msgspec.Struct, frozen=True):
    """Send it again, not before `at` (Unix seconds). `attempted`: this try counts."""

    at: float
    attempted: bool = True


class Dead(msgspec.Struct, frozen=True):
    """It becomes a dead letter; the lane goes on."""

    reason: DeadFor


class Keep(msgspec.Struct, frozen=True):
    """It stays as it was: the account is at fault, not the push."""


Step = Delivered | Retry | Dead | Keep


class Applied(Enum):
    YES = auto()
    NO = auto()
    UNKNOWN = auto()


class _Then(Enum):
    DONE = auto()
    WAIT = auto()  # the gate or the halt decides when
    TRY_AGAIN = auto()
    BACK_OFF = auto()  # rule 6
    REJECT = auto()
    MISS = auto()


class _Rule(NamedTuple):
    applied: Applied
    then: _Then


RULES: Mapping[Verdict, _Rule] = {
    Verdict.DELIVERED: _Rule(Applied.YES, _Then.DONE),
    Verdict.THROTTLED: _Rule(Applied.NO, _Then.WAIT),
    Verdict.UNAVAILABLE: _Rule(Applied.UNKNOWN, _Then.TRY_AGAIN),
    Verdict.UNREACHED: _Rule(Applied.NO, _Then.TRY_AGAIN),
    Verdict.UNAUTHORIZED: _Rule(Applied.NO, _Then.WAIT),
    Verdict.FORBIDDEN: _Rule(Applied.NO, _Then.BACK_OFF),
    Verdict.MISSING: _Rule(Applied.NO, _Then.MISS),
    Verdict.REDIRECTED: _Rule(Applied.UNKNOWN, _Then.TRY_AGAIN),
    Verdict.MISDIRECTED: _Rule(Applied.NO, _Then.TRY_AGAIN),
    Verdict.REJECTED: _Rule(Applied.NO, _Then.REJECT),
}


class Limits(msgspec.Struct, frozen=True):
    """A push is given up only when both are reached."""

    max_attempts: int
    max_age_seconds: float


class Tried(msgspec.Struct, frozen=True):
    """The push that was sent. `attempts`: counted before this try; `age_seconds`: since it was acknowledged.

    `introduced`: a track whose contact may be made known to SendX, because a token or a server key vouched for it.
    """

    increments: bool
    attempts: int
    age_seconds: float
    introduced: bool = False


def next_step(
    verdict: Verdict, tried: Tried, *, limits: Limits, retry_at: float, halted: bool = False, lone_refusals: int = 0
) -> Step:
    """What becomes of a push after this verdict.

    `retry_at`: when it may be sent again, if it is; `halted` and `lone_refusals`: the account's state with this answer in it.
    """
    applied, then = RULES[verdict]
    if then is _Then.DONE:
        return Delivered()
    if tried.increments and applied is Applied.UNKNOWN:
        return Dead("ambiguous")
    if halted or then is _Then.WAIT:
        return Keep()
    if then is _Then.REJECT or (then is _Then.BACK_OFF and lone_refusals >= LONE_REFUSALS):
        return Dead("rejected")
    if then is _Then.MISS and not (tried.introduced and tried.attempts + 1 < MISSING_TRIES):
        return Dead("missing")
    if then is _Then.BACK_OFF:
        return Retry(retry_at, attempted=False)
    if tried.attempts + 1 >= limits.max_attempts and tried.age_seconds >= limits.max_age_seconds:
        return Dead("exhausted")
    return Retry(retry_at)


def backoff_seconds(failures: int, uniform: float, retry_after: float | None = None) -> float:
    """Full jitter: uniform in 0 … min(5 minutes, 1 s · 2ⁿ), n being the failures in a row before this one.

    `uniform` is a random number in [0, 1). What the server asks for is a minimum and never shortens it.
    """
    ceiling = min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures, 16))
    return max(uniform * ceiling, retry_after or 0.0)


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """A Retry-After header, in seconds or as an HTTP-date, in seconds from `now`; None if there is none to be read.

    Never negative and never over an hour: a server whose clock is wrong must not stop us for a year.
    """
    if value is None:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    try:
        date = parsedate_to_datetime(text)
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(at - now, 0.0), MAX_RETRY_AFTER_SECONDS)


# --- The account -------------------------------------------------------------------------------------------------------


class Halt(StrEnum):
    """Why sending is halted, for the operator."""

    KEY = "401"
    FORBIDDEN = "403"
    WRONG_URL = "wrong base URL"


class Admission(Enum):
    """What may be sent now."""

    ALL = auto()
    PROBE = auto()  # one lane at a time
    NONE = auto()


class _Refusal(NamedTuple):
    tries: int
    successes: int  # of the account, when it was last refused


_MISDIRECTED = (Verdict.REDIRECTED, Verdict.MISDIRECTED)


class Gate(msgspec.Struct, frozen=True):
    """The account as a whole: open; closed until a time and then half-open; or halted.

    `until`: Unix seconds of the next probe while closed or halted, else None. `throttles`: 429s in a row, as probes saw them.
    The rest is what rules 5 and 6 need: which lanes got which answers since the last 2xx, and who was refused alone.
    """

    until: float | None = None
    halted: Halt | None = None
    throttles: int = 0
    successes: int = 0
    forbidden: frozenset[int] = frozenset()
    misdirected: frozenset[int] = frozenset()
    refusals: Mapping[int, _Refusal] = {}

    def admits(self, now: float) -> Admission:
        if self.until is None:
            return Admission.ALL
        return Admission.PROBE if now >= self.until else Admission.NONE

    def name(self, now: float) -> Literal["open", "closed", "half-open", "halted"]:
        if self.halted is not None:
            return "halted"
        if self.until is None:
            return "open"
        return "half-open" if now >= self.until else "closed"

    def lone_refusals(self, lane: int) -> int:
        """How often this lane got 403 while others got through."""
        refusal = self.refusals.get(lane)
        return refusal.tries if refusal else 0

    def after(
        self, verdict: Verdict, *, lane: int, probe: bool, now: float, uniform: float, retry_after: float | None = None
    ) -> Gate:
        """The account after one answer. `probe`: the request was the one that a shut gate let through.

        Answers to requests that were under way when the gate shut neither open it nor lengthen its back-off.
        """
        gate = self._noting(verdict, lane)
        if (reason := gate._cause(verdict)) is not None:
            return gate._halt(reason, probe=probe, now=now, retry_after=retry_after)
        if probe and gate._passed(verdict):
            return gate._opened()
        if gate.halted is not None:
            return gate._halt(gate.halted, probe=probe, now=now, retry_after=retry_after)
        if verdict is Verdict.THROTTLED:
            return gate._close(probe=probe, now=now, uniform=uniform, retry_after=retry_after)
        return gate

    def _noting(self, verdict: Verdict, lane: int) -> Gate:
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
            return verdict not in (Verdict.THROTTLED, Verdict.UNAVAILABLE, Verdict.UNREACHED)
        if verdict is Verdict.MISSING:  # proves the key, but is what a wrong URL answers, too
            return self.halted is not Halt.WRONG_URL
        return verdict in (Verdict.DELIVERED, Verdict.REJECTED)

    def _opened(self) -> Gate:
        gate = _replace(self, until=None, throttles=0)
        if self.halted is None:
            return gate
        return _replace(gate, halted=None, forbidden=frozenset(), misdirected=frozenset())

    def _halt(self, reason: Halt, *, probe: bool, now: float, retry_after: float | None) -> Gate:
        if self.halted is not None and self.until is not None and not probe:
            return _replace(self, halted=reason)
        return _replace(self, halted=reason, until=now + max(PROBE_SECONDS, retry_after or 0.0))

    def _close(self, *, probe: bool, now: float, uniform: float, retry_after: float | None) -> Gate:
        if self.until is not None and not probe:
            return _replace(self, until=max(self.until, now + (retry_after or 0.0)))
        wait = backoff_seconds(self.throttles, uniform, retry_after)
        return _replace(self, until=now + wait, throttles=self.throttles + 1)


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
