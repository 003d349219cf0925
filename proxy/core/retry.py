"""Decides what follows from SendX's answer for one push: one table from status to verdict, one from verdict to step.

Pure: time and randomness are arguments. The rules, in order of precedence:

1. An increment (`++n`, `--n`) is never sent twice when it is unknown whether the first was applied: it becomes a dead letter
   `ambiguous`. Only a 429, another 4xx or a failed connect proves that it was not applied.
2. While sending is halted no attempt is spent and nothing is dead-lettered, rule 1 aside.
3. `STATUSES` below maps an answer to its meaning, `RULES` to the fate of one push. A push is `exhausted` only after many attempts *and* many days.
   A verdict on one push needs SendX's own body, a JSON object: a gateway's error page is a refusal like a 403.
4. A lone refusal (a firewall that blocks one name) backs its lane off. After an hour in which other lanes were delivered, and at least
   six tries of this push, the push itself is at fault. Its lane stays backed off, as the next push is likely to be refused too.
5. A track that is 404 although its verified contact was just identified is tried three times in all: SendX may be eventually consistent.
6. An asserted push is given up after three counted tries if verified pushes wait behind it: a stranger must not be able to hold back a
   customer with a push that SendX cannot process. Not while SendX as a whole is down.

Never reads a body (`delivery.answers` does), judges the account as a whole (`core.gate`) or carries a step out (`delivery.lane`).
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, StrEnum, auto
from typing import Literal, NamedTuple

import msgspec

MAX_BACKOFF_SECONDS = 300.0
MAX_RETRY_AFTER_SECONDS = 3_600.0
LONE_SECONDS = 3_600.0
LONE_TRIES = 6
MISSING_TRIES = 3
PRESSED_TRIES = 3


class Call(Enum):
    """A call of SendX's API."""

    IDENTIFY = auto()
    TRACK = auto()
    LIST_TAGS = auto()  # harmless: sent ahead of an increment while the gate is shut


class Verdict(StrEnum):
    """The result of one request."""

    DELIVERED = "delivered"
    UNCLEAR = "unclear"  # a 2xx whose body does not confirm it: applied or not
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"  # SendX fails, the connection was lost, the deadline passed: applied or not
    UNREACHED = "unreached"  # no connection: certainly not applied
    BUSY = "busy"  # a transient refusal
    UNAUTHORIZED = "unauthorized"  # the key is at fault
    REFUSED = "refused"  # the account is at fault, or the connection; alone, the push
    MISSING = "missing"  # the contact is unknown
    REDIRECTED = "redirected"  # to another URL: says nothing about the push
    MISDIRECTED = "misdirected"  # the base URL is wrong
    REJECTED = "rejected"  # the push is at fault


class Status(NamedTuple):
    """One row: the meaning of these HTTP statuses, and its source. `track`: the verdict on a track, where it differs."""

    codes: Iterable[int]
    verdict: Verdict
    source: str
    track: Verdict | None = None


# The first row that holds a status decides. RFC numbers without a name are sections of RFC 9110.
# fmt: off
STATUSES = (
    Status(range(200, 300), Verdict.DELIVERED, "SendX docs: 200, 201; RFC 15.3. Its body must confirm it, else UNCLEAR"),
    Status(range(300, 400), Verdict.REDIRECTED, "RFC 15.4; SendX documents none, so something in between or a wrong base URL"),
    Status([400, 409, 422], Verdict.REJECTED, "SendX docs: the body, an address that exists, a malformed address"),
    Status([406, 413, 414, 415, 431], Verdict.REJECTED, "SendX docs: 406; RFC 15.5.7, .14, .15, .16, RFC 6585 5: this one request"),
    Status([401], Verdict.UNAUTHORIZED, "SendX docs: the team id or the API key is not valid"),
    Status([404], Verdict.MISDIRECTED, "SendX docs: identify upserts, so only an unknown path is not found; a track may be for an unknown contact",
        track=Verdict.MISSING),
    Status([405], Verdict.MISDIRECTED, "RFC 15.5.6: SendX has these methods, so this is not its API"),
    Status([408, 421, 423, 425], Verdict.BUSY, "RFC 15.5.9, 15.5.20, RFC 4918 11.3, RFC 8470 5.2: too slow, this connection, a lock, too early"),
    Status([429], Verdict.THROTTLED, "SendX docs: rate limit exceeded, add exponential backoff"),
    Status(range(400, 500), Verdict.REFUSED, "SendX docs: 403; RFC 15.5: 402, 407, ... An unknown code does not show that the push is at fault"),
    Status(range(500, 600), Verdict.UNAVAILABLE, "SendX docs: 500; RFC 15.6"),
)
# fmt: on
_ROWS: Mapping[int, Status] = {code: row for row in reversed(STATUSES) for code in row.codes}


# Only SendX itself can give these verdicts on one push. A gateway's error page (a missing client certificate, a name that does not resolve) may
# apply to every request.
_BY_OTHERS: Mapping[Verdict, Verdict] = {
    Verdict.DELIVERED: Verdict.UNCLEAR,
    Verdict.REJECTED: Verdict.REFUSED,
    Verdict.MISSING: Verdict.MISDIRECTED,
}


def verdict_for(status: int, call: Call, *, borne_out: bool) -> Verdict:
    """Returns the verdict on an answer. `borne_out`: its body could be SendX's own with this status.

    Anything but a final status is UNAVAILABLE.
    """
    row = _ROWS.get(status)
    if row is None:
        return Verdict.UNAVAILABLE
    verdict = row.track if row.track is not None and call is Call.TRACK else row.verdict
    return verdict if borne_out else _BY_OTHERS.get(verdict, verdict)


DeadFor = Literal["rejected", "missing", "exhausted", "ambiguous"]


class Delivered(msgspec.Struct, frozen=True):
    """It leaves the lane."""


class Retry(msgspec.Struct, frozen=True):
    """It is sent again, not before `at` (Unix seconds). `attempted`: this try counts."""

    at: float
    attempted: bool = True


class Dead(msgspec.Struct, frozen=True):
    """It becomes a dead letter. `lone`: because only its lane is refused, so the lane stays backed off."""

    reason: DeadFor
    lone: bool = False


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
    BACK_OFF = auto()  # rule 4: counts only if others were delivered
    REJECT = auto()
    MISS = auto()


RULES: Mapping[Verdict, tuple[Applied, _Then]] = {
    Verdict.DELIVERED: (Applied.YES, _Then.DONE),
    Verdict.UNCLEAR: (Applied.UNKNOWN, _Then.TRY_AGAIN),
    Verdict.THROTTLED: (Applied.NO, _Then.WAIT),
    Verdict.UNAVAILABLE: (Applied.UNKNOWN, _Then.TRY_AGAIN),
    Verdict.UNREACHED: (Applied.NO, _Then.TRY_AGAIN),
    Verdict.BUSY: (Applied.NO, _Then.TRY_AGAIN),
    Verdict.UNAUTHORIZED: (Applied.NO, _Then.WAIT),
    Verdict.REFUSED: (Applied.NO, _Then.BACK_OFF),
    Verdict.MISSING: (Applied.NO, _Then.MISS),
    Verdict.REDIRECTED: (Applied.UNKNOWN, _Then.TRY_AGAIN),
    Verdict.MISDIRECTED: (Applied.NO, _Then.TRY_AGAIN),
    Verdict.REJECTED: (Applied.NO, _Then.REJECT),
}


class GiveUp(msgspec.Struct, frozen=True, kw_only=True):
    """A push is given up only when both are reached."""

    max_attempts: int
    max_age_seconds: float


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """The push that was sent.

    `attempts`: counted before this try. `age_seconds`: since it was acknowledged. `introduced`: a track whose contact may be made known to
    SendX, because a token or a server key vouched for it. `pressed`: it was only asserted, pushes that were vouched for wait behind it,
    and SendX answers others.
    """

    increments: bool
    attempts: int
    age_seconds: float
    introduced: bool = False
    pressed: bool = False


class Lone(msgspec.Struct, frozen=True):
    """The evidence that only this push is refused.

    `seconds`: for how long it was refused while other lanes were delivered; each gap between two tries counts LONE_SECONDS / (LONE_TRIES - 1)
    at most. `proven`: others were delivered since the previous try.
    """

    seconds: float = 0.0
    proven: bool = False


NOT_LONE = Lone()


def next_step(
    verdict: Verdict, tried: Tried, *, limits: GiveUp, retry_at: float, halted: bool = False, lone: Lone = NOT_LONE
) -> Step:
    """Returns what becomes of a push after this verdict.

    `retry_at`: when it may be retried. `halted`, `lone`: the account's state after this answer.
    """
    applied, then = RULES[verdict]
    if then is _Then.DONE:
        return Delivered()
    if tried.increments and applied is Applied.UNKNOWN:
        return Dead("ambiguous")
    if halted or then is _Then.WAIT:
        return Keep()
    if then is _Then.REJECT:
        return Dead("rejected")
    if then is _Then.MISS and not (tried.introduced and tried.attempts + 1 < MISSING_TRIES):
        return Dead("missing")
    if then is _Then.BACK_OFF and lone.seconds >= LONE_SECONDS:
        return Dead("rejected", lone=True)
    if then is _Then.BACK_OFF and not lone.proven:
        return Retry(retry_at, attempted=False)
    if tried.pressed and tried.attempts + 1 >= PRESSED_TRIES:
        return Dead("exhausted")
    if tried.attempts + 1 >= limits.max_attempts and tried.age_seconds >= limits.max_age_seconds:
        return Dead("exhausted")
    return Retry(retry_at)


def backoff_seconds(failures: int, uniform: float, retry_after: float | None = None) -> float:
    """Returns a back-off with full jitter: uniform in 0 … min(5 minutes, 1 s · 2ⁿ), n being the failures in a row before this one.

    `uniform` is a random number in [0, 1). `retry_after`, what the server asks for, is a minimum and never shortens it.
    """
    ceiling = min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures, 16))
    return max(uniform * ceiling, retry_after or 0.0)


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Returns a Retry-After header, given in seconds or as an HTTP-date, in seconds from `now`; None if it is missing or malformed.

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
