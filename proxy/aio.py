"""Waits for an event with a timeout, and finishes work although its caller is cancelled: two things that asyncio lacks."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_CLEANUP_SECONDS = 5.0

log = logging.getLogger("proxy.aio")


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Returns when the event is set or the seconds are over, whichever comes first."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def unbroken(work: Coroutine[Any, Any, T], name: str) -> T:
    """Runs `work` in a task called `name`, and returns its result. If the caller is cancelled, the work still has _CLEANUP_SECONDS to end."""
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
