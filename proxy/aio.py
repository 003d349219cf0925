"""Two ways to wait that asyncio has not: for an event with a limit, and for work that is finished though the caller is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_CLEANUP_SECONDS = 5.0

log = logging.getLogger("proxy.tasks")


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, but not longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def unbroken(work: Coroutine[Any, Any, T], name: str) -> T:
    """Run to the end even if the caller is cancelled meanwhile."""
    task = asyncio.create_task(work, name=name)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_CLEANUP_SECONDS)
        if not task.done():
            task.cancel()
        elif not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed while being cancelled: %s", name, type(error).__name__)
        raise
