"""Watches over the process: looks every second, and logs each condition when it begins, once a minute while it lasts, and when it ends.

`status`, `check` and `/metrics` look as well, through the same eyes, so that what they show is what the log says. What counts as wrong is
decided in `conditions`. The store may hang or fail: then its latest numbers are shown, with that as the first problem.
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
from proxy.ops.conditions import LATELY_SECONDS, Condition, Memory, Seen, conditions
from proxy.ops.report import Report, make_report
from proxy.store.outbox import Outbox
from proxy.store.records import Stats

log = logging.getLogger("proxy.health")


class Pace(msgspec.Struct, frozen=True):
    """In seconds: between looks, between lines about a condition that lasts, and for which what has happened is shown.

    `patience`: for the store to tell its numbers.
    """

    look: float = 1.0
    repeat: float = 60.0
    lately: float = LATELY_SECONDS
    patience: float = 3.0


class _Lasting(msgspec.Struct):
    """A condition since it was first seen. Monotonic seconds."""

    condition: Condition
    since: float
    told: float


class Watch:
    """`delivery`: the forwarder's state now, None if this process has none; `restarts`: how often it had to be restarted.

    `defects`: requests that were not judged because of a fault of this program.
    """

    def __init__(
        self,
        outbox: Outbox,
        delivery: Callable[[], DeliveryState | None],
        restarts: Callable[[], int],
        defects: Callable[[], int],
        *,
        timeout_seconds: float,
        hold_max_bytes: float = math.inf,
        pace: Pace | None = None,
    ) -> None:
        self._outbox, self.delivery, self.restarts, self.defects = outbox, delivery, restarts, defects
        self._timeout_seconds, self._hold_max_bytes = timeout_seconds, hold_max_bytes
        self._pace = pace or Pace()
        self._started = time.monotonic()
        self._stats = Stats(counters={}, waiting=0, holding=0, dead=0, oldest=None, refused_names=())
        self._memory = Memory()
        self._lasting: dict[str, _Lasting] = {}
        self._reading: asyncio.Task[Stats] | None = None

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may see more
                log.error("The state of the proxy could not be looked at: %s", describe(error))
            await asyncio.sleep(self._pace.look)

    async def look(self) -> Report:
        """Returns the state now, and logs what has changed since the last look."""
        trouble = await self._read()
        seen = Seen(
            stats=self._stats,
            now=self._outbox.now(),
            clock=time.monotonic(),
            trouble=trouble,
            delivery=self.delivery(),
            restarts=self.restarts(),
            defects=self.defects(),
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
        """Takes the store's numbers; returns why that could not be done. A store that hangs is asked once, not once a second."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._outbox.stats(), name="health-stats")
            self._reading.add_done_callback(_retrieved)
        try:
            async with asyncio.timeout(self._pace.patience):
                self._stats = await asyncio.shield(self._reading)
        except StoreUnavailable as error:
            return error.message
        except TimeoutError:
            return "It does not answer: look for what locks it, and check its disk."
        return None

    def _tell(self, found: tuple[Condition, ...], clock: float) -> None:
        before, self._lasting = self._lasting, {}
        for condition in found:
            lasting = before.get(condition.key)
            if lasting is None:
                lasting = _Lasting(condition, clock, clock)
                _log_one(logging.ERROR, "problem-began", lasting, clock, "%s", condition.sentence)
            elif clock - lasting.told >= self._pace.repeat:
                lasting.told = clock
                age = _age(clock - lasting.since)
                _log_one(logging.WARNING, "problem-lasts", lasting, clock, "For %s now: %s", age, condition.sentence)
            lasting.condition = condition
            self._lasting[condition.key] = lasting
        for key, lasting in before.items():
            if key not in self._lasting:
                age = _age(clock - lasting.since)
                _log_one(
                    logging.WARNING,
                    "problem-ended",
                    lasting,
                    clock,
                    "Over after %s: %s",
                    age,
                    lasting.condition.sentence,
                )


def _log_one(level: int, event: str, lasting: _Lasting, clock: float, text: str, *arguments: object) -> None:
    fields = {"problem": str(lasting.condition.kind), "seconds": round(clock - lasting.since, 1)}
    log.log(level, text, *arguments, extra={"event": event, "fields": fields})


def _age(seconds: float) -> timedelta:
    return timedelta(seconds=int(seconds))


def _retrieved(reading: "asyncio.Task[Stats]") -> None:
    """Takes note of a failure that came when nobody waited for it any more: the next look asks again."""
    if not reading.cancelled():
        reading.exception()
