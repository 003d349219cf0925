"""Takes turns to send under SCQ_UPSTREAM_RATE from the schedule that all senders of the store share, a chunk at a time.

`core.pace` decides when a turn is; this module asks the outbox for more of them. Without a rate every turn is due now and the outbox is
never asked.
"""

import asyncio
import time

from proxy.core.pace import Pace
from proxy.store.outbox import Outbox


class Pacer:
    """Turns in hand. `rate`: the most requests per second, of all senders together; 0 for no limit. Times are monotonic seconds."""

    def __init__(self, outbox: Outbox, rate: float) -> None:
        self._outbox = outbox
        self._pace = Pace(rate)
        self._reserving = asyncio.Lock()

    def soon(self, most: int) -> int:
        """Returns how many of the turns in hand are due now or very soon."""
        return self._pace.turns(time.monotonic(), most)

    def are_spent(self) -> bool:
        """Returns whether more must be reserved before the next one."""
        return self._pace.is_spent(time.monotonic())

    def seconds_to_next(self, most: float) -> float:
        """Returns how long it is until the next turn in hand; `most` if it is due, or if there is none: then the caller waits for something else."""
        wait = self._pace.free_at - time.monotonic()
        return min(wait, most) if wait > 0 and not self.are_spent() else most

    async def reserve(self) -> None:
        """Reserves a chunk, if none is left. Raises `StoreUnavailable`."""
        async with self._reserving:
            if self.are_spent():
                turns = self._pace.chunk
                seconds = await self._outbox.reserve(turns, self._pace.rate)
                self._pace = self._pace.reserved(turns, time.monotonic() + seconds)

    def take(self) -> float | None:
        """Takes the next turn in hand. Returns when it is, or None if there is none."""
        self._pace, at = self._pace.taken(time.monotonic())
        return at

    async def next(self) -> float:
        """Takes the next turn, reserved if need be. Returns when it is. Raises `StoreUnavailable`."""
        while (at := self.take()) is None:
            await self.reserve()
        return at
