"""The one thread that touches an SQLite file: it takes the jobs that wait, runs them in one transaction, and answers.

Group commit without linger: while a commit is syncing, jobs gather; the next transaction takes them all. A job is answered after the
commit that made it durable, and every job of a failed commit fails. It knows nothing of what the jobs do.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from proxy.errors import StoreUnavailable, describe

T = TypeVar("T")
Job = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]"]

MAX_GROUP = 512  # jobs in one transaction: bounds how long a commit can take
MAX_QUEUE = 20_000  # jobs that wait: beyond that the disk does not keep up, and a 503 says so
_RETRY_AFTER = 5

log = logging.getLogger("proxy.store")


class SqliteThread:
    """`connect` opens the connection, on the thread. `before_commit` runs last in each transaction, `rolled_back` after a failed one."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        before_commit: Callable[[sqlite3.Connection], None],
        rolled_back: Callable[[], None],
    ) -> None:
        self._connect = connect
        self._before_commit = before_commit
        self._rolled_back = rolled_back
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="sqlite", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed = self._loop.create_future()
        self._closing = False

    async def open(self) -> None:
        """Starts the thread; raises what `connect` raises."""
        self._thread.start()
        await self._opened

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Runs `work` in a transaction; the result comes once that is durable.

        Fails with `StoreUnavailable` if the transaction fails. If `work` itself raises, it alone fails, and it must not have written.
        """
        if self._closing:
            raise StoreUnavailable("The store is being closed.", retry_after=_RETRY_AFTER)
        if self._jobs.qsize() >= MAX_QUEUE:
            raise StoreUnavailable("The disk does not keep up with what is pushed.", retry_after=_RETRY_AFTER)
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((work, future))
        return future

    async def close(self) -> None:
        """Finishes what was submitted, then closes the connection."""
        if self._closing or not self._thread.is_alive():
            return
        self._closing = True
        self._jobs.put(None)
        await self._closed

    # --- on the thread

    def _work(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:
            self._answer([(self._opened, None, error)])
            return
        self._answer([(self._opened, None, None)])
        last = False
        while not last:
            jobs, last = self._take()
            if jobs:
                self._answer(self._transaction(connection, jobs))
        connection.close()
        self._answer([(self._closed, None, None)])

    def _take(self) -> tuple[list[Job], bool]:
        """All jobs that wait now, at least one; and whether there will be no more."""
        jobs: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= MAX_GROUP:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _transaction(self, connection: sqlite3.Connection, jobs: list[Job]) -> list[Outcome]:
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._run(connection, work, future) for work, future in jobs]
            self._before_commit(connection)
            connection.execute("COMMIT")
        except Exception as error:
            self._rolled_back()
            _roll_back(connection)
            log.error("A transaction of %d jobs failed: %s", len(jobs), _cause(error))
            failure = StoreUnavailable("The store could not write: its log says why.", retry_after=_RETRY_AFTER)
            return [(future, None, failure) for _, future in jobs]
        return outcomes

    def _run(
        self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any]
    ) -> Outcome:
        before = connection.total_changes
        try:
            return future, work(connection), None
        except sqlite3.Error:
            raise
        except Exception as error:
            if connection.total_changes != before:
                raise  # half a job must not be committed
            return future, None, error

    def _answer(self, outcomes: list[Outcome]) -> None:
        self._loop.call_soon_threadsafe(_resolve, outcomes)


Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


def _resolve(outcomes: list[Outcome]) -> None:
    for future, result, error in outcomes:
        if future.done():
            continue  # the caller has gone away; what it asked for is done all the same
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.error("The roll-back failed too: %s", _cause(error))


def _cause(error: Exception) -> str:
    """SQLite's own words (it quotes no values); of anything else only what kind it is and where it was raised."""
    return str(error) if isinstance(error, sqlite3.Error) else describe(error)
