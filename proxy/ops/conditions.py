"""Derives the current problems, as a pure function of what the process knows.

    a snapshot (`Seen`) + earlier snapshots (`Memory`) → conditions

`ops.watch` compares the list with the previous one and logs every condition that begins, lasts or ends; `status`, `check` and `/metrics`
show it. Each condition has a sentence that tells the operator what to do. It holds numbers and fixed texts only: addresses, keys and payload
never get here.
"""

import math
import re
from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import Self

import msgspec

from proxy.core.gate import Closure
from proxy.core.strangers import allowed_bytes
from proxy.delivery.account import ADVICE, VERDICT_ADVICE, DeliveryState
from proxy.delivery.unreached import ADVICE as CONNECTION_ADVICE
from proxy.store.records import Stats

LAG = timedelta(minutes=5)  # an older push is reported
SIGN_UPS_LAG = timedelta(minutes=1)  # sign-ups whose turn comes sooner are not reported
TURNED_AWAY_SECONDS = 10.0  # after the last one, until there is room again
LATELY_SECONDS = 600.0  # for which a past event is shown
FAILING_SECONDS = 1.0  # a single failure that the next request recovers from is not reported
SILENT_SECONDS = 3.0  # without an answer while requests are in flight
RATE_SECONDS = 60.0  # the window of the delivery rate
CLOCK_SECONDS = 30.0  # by which the clock may be set without a word: tokens tolerate as much
_MANY_SLOW = 0.5
_NEARLY_FULL = 0.9
_MB = 1_048_576  # as in SCQ_HOLD_MB


class Kind(StrEnum):
    """The kinds of condition, which are also the label of the metric `scq_problem`."""

    HALTED = "halted"
    DOWN = "down"
    THROTTLED = "throttled"
    FAILING = "failing"
    SILENT = "silent"
    SLOW = "slow"
    FORWARDER = "forwarder"
    LAG = "lag"
    SIGN_UPS = "sign-ups"
    STRANGERS = "strangers"
    STORE = "store"
    REOPENED = "reopened"
    REPLACED = "replaced"
    UNAVAILABLE = "store-unavailable"
    DEFECT = "defect"
    CONNECTIONS = "connections"
    CLOCK = "clock"


_CLOSED = frozenset({Kind.HALTED, Kind.DOWN, Kind.THROTTLED})
_SENDING = _CLOSED | {Kind.FAILING, Kind.SILENT, Kind.SLOW}
# What a condition may turn into: it is then no longer shown, but its cause remains.
_TURNS_INTO = {
    **dict.fromkeys(_SENDING, _SENDING),
    Kind.LAG: _CLOSED | {Kind.SIGN_UPS},
    Kind.SIGN_UPS: _CLOSED | {Kind.LAG},
}


def turned_into(ended: Kind, begun: Iterable[Kind]) -> Kind | None:
    """Returns which of the conditions that have just begun continues one that has just ended, None if that one is resolved."""
    return next((kind for kind in begun if kind in _TURNS_INTO.get(ended, ())), None)


class Condition(msgspec.Struct, frozen=True):
    """One problem. `seconds`: how long it has lasted, as far as the process that was asked knows."""

    kind: Kind
    sentence: str
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """Returns an identifier that stays the same while the condition lasts. Several of the store differ by more than numbers."""
        return self.kind + re.sub(r"[0-9]+", "", self.sentence) if self.kind is Kind.STORE else self.kind


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the process. `now`: Unix seconds; `clock`: monotonic seconds.

    `stats`: the latest that the store returned. `trouble`: why the store could not be read now. `delivery`: None if this process does not
    deliver. `defects`: requests since the start that failed because of a fault in this program; `turned_away`: connections
    refused for want of file handles. `timeout_seconds`: SCQ_UPSTREAM_TIMEOUT; `hold_max_bytes`: SCQ_HOLD_MB, infinite if no server was asked.
    """

    stats: Stats
    now: float
    clock: float
    trouble: str | None = None
    delivery: DeliveryState | None = None
    restarts: int = 0
    defects: int = 0
    turned_away: int = 0
    timeout_seconds: float = 0.0
    hold_max_bytes: float = math.inf


class Happened(msgspec.Struct, frozen=True):
    """A counter of events. `at`: when it last rose (monotonic seconds)."""

    count: int = 0
    at: float | None = None

    def counted(self, count: int, clock: float) -> Self:
        return msgspec.structs.replace(self, count=count, at=clock if count > self.count else self.at)

    def ago(self, clock: float, within: float) -> timedelta | None:
        """Returns the time since the last event, None if that is longer than `within` seconds or there was none."""
        if self.at is None or clock - self.at >= within:
            return None
        return timedelta(seconds=int(clock - self.at))


class Jump(msgspec.Struct, frozen=True):
    """A clock that was set. `seconds`: by how much, negative if back; `at`: when (monotonic seconds)."""

    seconds: float
    at: float


class Memory(msgspec.Struct, frozen=True):
    """The state carried from one snapshot to the next. `delivered`: samples of the counter over the last minute, oldest first, with their times.

    `answers`: the number of answers from SendX; `silent_since`: since when none has come although requests are in flight.
    `offset`: by which the clock was ahead of the monotonic one.
    """

    reopened: Happened = Happened()
    replaced: Happened = Happened()
    restarted: Happened = Happened()
    failed: Happened = Happened()
    turned_away: Happened = Happened()
    delivered: tuple[tuple[float, int], ...] = ()
    answers: int = 0
    silent_since: float | None = None
    offset: float | None = None
    jump: Jump | None = None

    def after(self, seen: Seen) -> Self:
        clock, health, delivery = seen.clock, seen.stats.health, seen.delivery
        sample = (clock, seen.stats.counters.get("delivered", 0))
        answers = sum(delivery.requests.values()) if delivery is not None else 0
        busy = delivery is not None and delivery.in_flight > 0
        offset = seen.now - clock
        jump = Jump(offset - self.offset, clock) if self.offset is not None else None
        same = busy and self.silent_since is not None and answers == self.answers
        return msgspec.structs.replace(
            self,
            reopened=self.reopened.counted(health.reopened, clock),
            replaced=self.replaced.counted(health.replaced, clock),
            restarted=self.restarted.counted(seen.restarts, clock),
            failed=self.failed.counted(seen.defects, clock),
            turned_away=self.turned_away.counted(seen.turned_away, clock),
            delivered=(*(each for each in self.delivered if each[0] > clock - RATE_SECONDS), sample),
            answers=answers,
            offset=offset,
            jump=jump if jump is not None and abs(jump.seconds) > CLOCK_SECONDS else self.jump,
            silent_since=self.silent_since if same else clock if busy else None,
        )

    @property
    def rate(self) -> float | None:
        """Returns deliveries per second, None while that is unknown."""
        if not self.delivered:
            return None
        (begin, first), (end, last) = self.delivered[0], self.delivered[-1]
        return max(0, last - first) / (end - begin) if end - begin >= 1 else None


def conditions(seen: Seen, memory: Memory, *, lately: float = LATELY_SECONDS) -> tuple[Condition, ...]:
    """Returns the current conditions, worst first. `memory`: includes this snapshot. `lately`: seconds for which a past event is shown."""
    found = [
        *(*_of_the_store(seen, memory, lately), *_of_requests(seen, memory, lately)),
        *(*_of_sending(seen, memory, lately), *_of_what_waits(seen, memory), *_of_strangers(seen)),
        *_of_the_clock(seen, memory, lately),
    ]
    return tuple(Condition(kind, sentence) for kind, sentence in found)


def _of_the_store(seen: Seen, memory: Memory, lately: float) -> Iterable[tuple[Kind, str]]:
    if seen.trouble is not None:
        yield Kind.UNAVAILABLE, f"Pushes are refused (503) because the store is unavailable. {seen.trouble}"
    if (ago := memory.replaced.ago(seen.clock, lately)) is not None:
        yield (
            Kind.REPLACED,
            f"The store was deleted or replaced while in use ({ago} ago), and the pushes in it will not be sent. Find out what did that; to "
            "recover them, stop the server and restore the files.",
        )
    elif (ago := memory.reopened.ago(seen.clock, lately)) is not None:
        yield (
            Kind.REOPENED,
            f"The store failed and was reopened ({ago} ago). See the log for the cause, and check the disk or the connection to the database.",
        )
    for sentence in seen.stats.health.problems:
        yield Kind.STORE, sentence


def _of_the_clock(seen: Seen, memory: Memory, lately: float) -> Iterable[tuple[Kind, str]]:
    """Tells of a clock that was set. No clock tells which of the two was right."""
    jump = memory.jump
    if jump is None or seen.clock - jump.at >= lately:
        return
    by, ago = timedelta(seconds=round(abs(jump.seconds))), timedelta(seconds=int(seen.clock - jump.at))
    how = f"ahead by {by}, or this machine was suspended" if jump.seconds > 0 else f"back by {by}"
    yield (
        Kind.CLOCK,
        f"The clock was set {how} ({ago} ago). If it is wrong now, log-ins fail (expired-token, "
        "bad-token): check the time and NTP. If it was wrong before, there is nothing to do.",
    )


def _of_requests(seen: Seen, memory: Memory, lately: float) -> Iterable[tuple[Kind, str]]:
    if memory.turned_away.ago(seen.clock, TURNED_AWAY_SECONDS) is not None:
        yield (
            Kind.CONNECTIONS,
            f"Connections are turned away (503, {seen.turned_away} since the start), because this process has no file handles to spare: raise "
            "its limit (LimitNOFILE of systemd, ulimit -n), or find out who keeps so many connections open.",
        )
    if (ago := memory.failed.ago(seen.clock, lately)) is not None:
        yield (
            Kind.DEFECT,
            f"Requests failed because of a fault in this program or because memory ran out ({seen.defects} since the start, the "
            f"last {ago} ago). The server's log says which; please report a fault.",
        )


def _of_sending(seen: Seen, memory: Memory, lately: float) -> Iterable[tuple[Kind, str]]:
    delivery = seen.delivery
    closure = seen.stats.closure if delivery is None else _closure_of(delivery)
    if delivery is not None and not delivery.running:
        yield (
            Kind.FORWARDER,
            "The forwarder is down and is being restarted. The log says why; please report it as a bug.",
        )
    elif (ago := memory.restarted.ago(seen.clock, lately)) is not None:
        yield (
            Kind.FORWARDER,
            f"The forwarder died and was restarted ({seen.restarts} times in all, last {ago} ago). The log says why; please report it as a bug.",
        )
    if closure is not None:
        yield _of_closure(closure, delivery, seen.now)
        return
    if delivery is None:
        return
    if delivery.failing_since is not None and seen.stats.waiting and _is_failing(delivery, seen.now):
        yield (
            Kind.FAILING,
            f"The last request failed, and nothing has been delivered since: {delivery.last_error}. {_advice(delivery)}",
        )
    elif memory.silent_since is not None and seen.clock - memory.silent_since >= SILENT_SECONDS:
        silence = int(seen.clock - memory.silent_since)
        yield (
            Kind.SILENT,
            f"SendX has not answered for {silence} s: it is slow or down. A request times out after {seen.timeout_seconds:g} s "
            "(SCQ_UPSTREAM_TIMEOUT): raise that if SendX is only slow.",
        )
    if delivery.slow_share >= _MANY_SLOW and seen.stats.waiting:
        yield (
            Kind.SLOW,
            f"Most requests time out after {seen.timeout_seconds:g} s: SendX is slow or down. If it is slow, raise SCQ_UPSTREAM_TIMEOUT "
            f"(50 at most), or lower SCQ_UPSTREAM_CONCURRENCY ({delivery.concurrency}) if it cannot handle so many requests at once.",
        )


def _is_failing(delivery: DeliveryState, now: float) -> bool:
    since = delivery.failing_since
    return since is not None and not 0 <= now - since < FAILING_SECONDS  # a clock that was put back proves nothing


def _of_closure(closure: Closure, delivery: DeliveryState | None, now: float) -> tuple[Kind, str]:
    error = delivery.last_error if delivery is not None else None
    said = f" ({error})" if error else ""
    seconds = max(0, round(closure.until - now))
    if closure.halted is not None:
        return (
            Kind.HALTED,
            f"Sending is halted ({closure.halted}): {ADVICE[closure.halted]}{said}. Nothing is lost; SendX is probed at least once a minute.",
        )
    if closure.down:
        return (
            Kind.DOWN,
            f"SendX does not answer{said}. Nothing is lost, and sending resumes by itself; the next probe is in {seconds} s. {_advice(delivery)}",
        )
    return (
        Kind.THROTTLED,
        f"SendX throttles this account{said}. Nothing is lost, and sending resumes by itself; the next probe is in {seconds} s. If this happens "
        "often, set SCQ_UPSTREAM_RATE to your rate limit at SendX, or ask SendX to raise it.",
    )


def _closure_of(delivery: DeliveryState) -> Closure | None:
    if delivery.until is None:
        return None
    return Closure(delivery.until, halted=delivery.halted, down=delivery.down)


def _advice(delivery: DeliveryState | None) -> str:
    if delivery is None or delivery.last_error is None:
        return "The log of the process that sends says why."
    verdict = delivery.last_verdict
    of_answers = VERDICT_ADVICE.get(verdict) if verdict is not None else None
    return CONNECTION_ADVICE.get(delivery.last_error) or of_answers or "If it lasts, contact SendX."


def _of_what_waits(seen: Seen, memory: Memory) -> Iterable[tuple[Kind, str]]:
    if seen.stats.closure is not None:
        return
    lag, sign_ups = lag_seconds(seen), seen.stats.sign_ups
    if sign_ups and lag > SIGN_UPS_LAG.total_seconds():
        ready = seen.stats.ready
        lag = seen.now - ready if ready is not None else 0.0  # of customers: they have to wait for nobody's turn
        yield (
            Kind.SIGN_UPS,
            f"{_counted(sign_ups, 'typed address waits', 'typed addresses wait')} to be sent, because no more are sent in an hour than "
            "SCQ_SIGNUPS_PER_HOUR and SCQ_SIGNUPS_PER_IP allow. Customers do not wait, and a newcomer from another network is next. If you are not "
            "running a campaign, the form is being abused: scq-proxy signups list --networks shows from where, scq-proxy signups drop "
            "drops them.",
        )
    if lag > LAG.total_seconds():
        yield (
            Kind.LAG,
            f"The oldest push has waited for {timedelta(seconds=int(lag))}: {_why_it_waits(seen, memory.rate)}",
        )


def _of_strangers(seen: Seen) -> Iterable[tuple[Kind, str]]:
    """Tells of their budget before it is used up to the end: networks have shares of what is left of it. A full disk is the store's to tell."""
    used, headroom = seen.stats.unvouched_bytes, seen.stats.health.headroom_bytes
    allowed = allowed_bytes(seen.hold_max_bytes, used, math.inf if headroom is None else headroom)
    if used <= 0 or used < allowed * _NEARLY_FULL or (headroom is not None and headroom <= 0):
        return
    by_disk = allowed < seen.hold_max_bytes
    bound = "a quarter of the disk that is free above SCQ_MIN_FREE_MB" if by_disk else "SCQ_HOLD_MB"
    yield (
        Kind.STRANGERS,
        f"What nobody has vouched for takes {used / _MB:.1f} of {allowed / _MB:.1f} MB ({bound}): more typed addresses (lane-full) and visitors "
        "who are not identified (hold-full) are refused, customers are not. scq-proxy signups list --networks shows where sign-ups come from, "
        f"scq-proxy signups drop drops them; dead letters count too. If you expect as many, {'free disk space' if by_disk else 'raise it'}.",
    )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _why_it_waits(seen: Seen, rate: float | None) -> str:
    delivery = seen.delivery
    if delivery is None:
        return "SendX is slow or down, or no process delivers. Check that scq-proxy serve or deliver is running, and its log."
    speed = (
        f"{rate or 0:.1f} per second are delivered, with {delivery.limit} of {delivery.concurrency} concurrent requests"
    )
    left = backlog_seconds(seen.stats, rate)
    until = f", so the backlog takes {timedelta(seconds=int(left))}" if left is not None else ""
    return (
        f"{speed}{until}. If SendX allows more, raise SCQ_UPSTREAM_CONCURRENCY (and SCQ_UPSTREAM_RATE, if it is set)."
    )


def lag_seconds(seen: Seen) -> float:
    """Returns the age of the oldest waiting push, 0 if none waits."""
    oldest = seen.stats.oldest
    return max(0.0, seen.now - oldest) if oldest is not None else 0.0


def backlog_seconds(stats: Stats, rate: float | None) -> float | None:
    """Returns the time to drain the backlog at this rate, without the sign-ups, which wait for turns; None if nothing is delivered."""
    return max(0, stats.waiting - stats.sign_ups) / rate if rate else None
