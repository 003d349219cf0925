"""Jobs that arrive while others are on their way to the database, gathered, so that a round trip and a commit are shared by many.

Nobody lingers: a job that finds nothing under way goes at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from proxy.errors import StoreUnavailable

Ask = TypeVar("Ask")
T = TypeVar("T")


class Job(Generic[Ask]):
    """What is asked, and where the answer goes. Whoever waits for it may have gone away."""

    __slots__ = ("alone", "ask", "future")

    def __init__(self, ask: Ask, alone: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.ask, self.alone = ask, alone
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(self, result: object) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Groups(Generic[Ask]):
    """One group at a time, of up to `most` jobs, in the order in which they came. `carry_out` answers each job, or raises for all."""

    def __init__(self, carry_out: Callable[[Sequence[Job[Ask]]], Awaitable[None]], *, most: int, name: str) -> None:
        self._carry_out, self._most, self._name = carry_out, most, name
        self._jobs: deque[Job[Any]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, ask: Ask) -> Any:
        return await self._queue(Job(ask))

    async def alone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Work that begins when what was submitted before it is done, and that nothing is under way beside."""
        result: T = await self._queue(Job(None, work))
        return result

    async def caught_up(self) -> None:
        """Returns when all that was submitted until now is done."""
        if self._jobs or self._task is not None:
            await self.alone(lambda: asyncio.sleep(0))

    async def close(self) -> None:
        """Takes nothing more, and waits for what is under way."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait({self._task})

    def _queue(self, job: Job[Any]) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreUnavailable("The store is closed.", retry_after=1)
        self._jobs.append(job)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=self._name)
        return job.future

    async def _work(self) -> None:
        try:
            while self._jobs:
                await self._next_group()
        finally:
            self._task = None

    async def _next_group(self) -> None:
        jobs = [self._jobs.popleft()]
        while jobs[0].alone is None and self._jobs and self._jobs[0].alone is None and len(jobs) < self._most:
            jobs.append(self._jobs.popleft())
        try:
            if jobs[0].alone is not None:
                jobs[0].answer(await jobs[0].alone())
            else:
                await self._carry_out(jobs)
        except Exception as error:  # noqa: BLE001 - each job gets it as its answer
            for job in jobs:
                job.fail(error)
        except asyncio.CancelledError:
            for job in (*jobs, *self._jobs):
                job.fail(StoreUnavailable("The store is closed.", retry_after=1))
            raise
