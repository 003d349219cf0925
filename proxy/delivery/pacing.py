"""Turns to send under SCQ_UPSTREAM_RATE, taken from the schedule that all senders of the store share, a chunk at a time.

When a turn is, `gate.Pace` says; this asks the outbox for more of them. Without a rate every turn is at once and the outbox is never asked.
"""

from __future__ import annotations

import asyncio
import time

from proxy.core.pace import Pace
from proxy.store.outbox import Outbox


class Pacer:
    """`rate`: requests in a second, of all senders together, at most; 0 for no limit. Times are of the clock that never goes back."""

    def __init__(self, outbox: Outbox, rate: float) -> None:
        self._outbox = outbox
        self._pace = Pace(rate)
        self._reserving = asyncio.Lock()

    def soon(self, most: int) -> int:
        """How many of the turns in hand come at once or very soon."""
        return self._pace.turns(time.monotonic(), most)

    def are_spent(self) -> bool:
        """Whether more have to be reserved before the next one."""
        return self._pace.is_spent(time.monotonic())

    def seconds_to_next(self, most: float) -> float:
        """Until the next turn in hand; `most` if it is there already, or there is none: then something else is waited for."""
        wait = self._pace.free_at - time.monotonic()
        return min(wait, most) if wait > 0 and not self.are_spent() else most

    async def reserve(self) -> None:
        """A chunk, if there is none left. Raises `StoreUnavailable`."""
        async with self._reserving:
            if self.are_spent():
                turns = self._pace.chunk
                seconds = await self._outbox.reserve(turns, self._pace.rate)
                self._pace = self._pace.reserved(turns, time.monotonic() + seconds)

    def take(self) -> float | None:
        """The next turn in hand: when it is. None: there is none."""
        self._pace, at = self._pace.taken(time.monotonic())
        return at

    async def next(self) -> float:
        """The next turn, reserved if need be. Raises `StoreUnavailable`."""
        while (at := self.take()) is None:
            await self.reserve()
        return at
