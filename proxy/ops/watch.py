"""Watches the health of the process every second, and logs each condition when it begins, once a minute while it lasts, and when it ends.

`status`, `check` and `/metrics` use the same watch, so they show what the log says. `conditions` decides which states count as problems. The
store may hang or fail: then its latest numbers are shown, and that is the first problem.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from datetime import timedelta

import msgspec

from proxy.delivery.account import DeliveryState
from proxy.errors import StoreUnavailable, describe
from proxy.ops.conditions import LATELY_SECONDS, Condition, Kind, Memory, Seen, conditions, turned_into
from proxy.ops.report import Report, make_report
from proxy.store.outbox import Outbox
from proxy.store.records import Stats

_NO_ANSWER = "It does not answer: check its disk, that it runs and can be reached, and for a process that locks it."

log = logging.getLogger("proxy.health")


class Pace(msgspec.Struct, frozen=True):
    """Intervals in seconds. `look`: between checks; `repeat`: between log lines about a lasting condition; `lately`: a past event is shown.

    `patience`: the timeout for reading the store's numbers.
    """

    look: float = 1.0
    repeat: float = 60.0
    lately: float = LATELY_SECONDS
    patience: float = 2.5


class _Lasting(msgspec.Struct):
    """A condition that was seen before. `since`, `told`: when it began and was last logged (monotonic seconds)."""

    condition: Condition
    since: float
    told: float


class Watch:
    """Evaluates the conditions on demand and once a second. `delivery`: the forwarder's state, None if this process has none.

    `restarts`: how often the forwarder was restarted. `defects`: requests that failed because of a fault in this program; `turned_away`: connections
    refused for want of file handles.
    """

    def __init__(
        self,
        outbox: Outbox,
        delivery: Callable[[], DeliveryState | None],
        restarts: Callable[[], int],
        defects: Callable[[], int],
        *,
        timeout_seconds: float,
        turned_away: Callable[[], int] = lambda: 0,
        hold_max_bytes: float = math.inf,
        pace: Pace | None = None,
    ) -> None:
        self._outbox, self.delivery, self.restarts, self.defects = outbox, delivery, restarts, defects
        self._turned_away = turned_away
        self._timeout_seconds, self._hold_max_bytes = timeout_seconds, hold_max_bytes
        self._pace = pace or Pace()
        self._started = time.monotonic()
        self._stats = Stats(counters={}, waiting=0, holding=0, dead=0, oldest=None, refused_names=())
        self._memory = Memory()
        self._lasting: dict[str, _Lasting] = {}
        self._reading: asyncio.Task[Stats] | None = None
        self._cause: str | None = None  # of the last reading that failed, None once one has succeeded

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next check may succeed
                log.error("The health check failed: %s", describe(error))
            await asyncio.sleep(self._pace.look)

    async def look(self) -> Report:
        """Returns the current state, and logs changes since the last check."""
        trouble = await self._read()
        seen = Seen(
            stats=self._stats,
            now=self._outbox.now(),
            clock=time.monotonic(),
            trouble=trouble,
            delivery=self.delivery(),
            restarts=self.restarts(),
            defects=self.defects(),
            turned_away=self._turned_away(),
            timeout_seconds=self._timeout_seconds,
            hold_max_bytes=self._hold_max_bytes,
        )
        self._memory = self._memory.after(seen)
        found = conditions(seen, self._memory, lately=self._pace.lately)
        self._tell(found, seen.clock)
        timed = tuple(
            msgspec.structs.replace(each, seconds=seen.clock - self._lasting[each.key].since) for each in found
        )
        return make_report(seen, self._memory, timed, seen.clock - self._started)

    async def _read(self) -> str | None:
        """Reads the store's numbers; returns why that failed, if it did. A store that hangs is asked once, not once a second."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._outbox.stats(), name="health-stats")
            self._reading.add_done_callback(self._read_late)
        try:
            async with asyncio.timeout(self._pace.patience):
                self._stats = await asyncio.shield(self._reading)
        except StoreUnavailable as error:
            self._cause = self._outbox.trouble or error.cause
            return self._cause
        except TimeoutError:
            return self._outbox.trouble or self._cause or _NO_ANSWER
        self._cause = None
        return None

    def _read_late(self, reading: "asyncio.Task[Stats]") -> None:
        """Keeps the cause of a failure that came when nobody waited for it any more: the next look asks again, and may wait in vain too."""
        if not reading.cancelled() and isinstance(error := reading.exception(), StoreUnavailable):
            self._cause = error.cause

    def _tell(self, found: tuple[Condition, ...], clock: float) -> None:
        before, self._lasting = self._lasting, {}
        begun = [each.kind for each in found if each.key not in before]
        for condition in found:
            lasting = before.get(condition.key)
            if lasting is None:
                lasting = _Lasting(condition, clock, clock)
                _log_one(logging.ERROR, "problem-began", lasting, clock, "%s", condition.sentence)
            elif clock - lasting.told >= self._pace.repeat:
                lasting.told = clock
                age = _age(clock - lasting.since)
                _log_one(
                    logging.WARNING, "problem-lasts", lasting, clock, "Ongoing for %s: %s", age, condition.sentence
                )
            lasting.condition = condition
            self._lasting[condition.key] = lasting
        for key, lasting in before.items():
            if key not in self._lasting:
                _tell_end(lasting, turned_into(lasting.condition.kind, begun), clock)


def _tell_end(lasting: _Lasting, now: Kind | None, clock: float) -> None:
    """Logs that it is resolved, unless it is `now` another problem."""
    age, sentence = _age(clock - lasting.since), lasting.condition.sentence
    if now is None:
        _log_one(logging.WARNING, "problem-ended", lasting, clock, "Resolved after %s: %s", age, sentence)
    else:
        text = "Turned into another problem (%s) after %s: %s"
        _log_one(logging.WARNING, "problem-changed", lasting, clock, text, str(now), age, sentence)


def _log_one(level: int, event: str, lasting: _Lasting, clock: float, text: str, *arguments: object) -> None:
    fields = {"problem": str(lasting.condition.kind), "seconds": round(clock - lasting.since, 1)}
    log.log(level, text, *arguments, extra={"event": event, "fields": fields})


def _age(seconds: float) -> timedelta:
    return timedelta(seconds=int(seconds))
