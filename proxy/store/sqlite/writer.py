"""The one thread that touches an SQLite file: it takes the jobs that wait, runs them in one transaction, and answers.

Group commit without linger: while a commit is syncing, jobs gather; the next transaction takes them all. A job is answered after the
commit that made it durable, and every job of a failed commit fails. What a failure means is decided in `damage`; here it is carried
out: the file is closed and opened again, and when that does not help, the store has failed for good. It knows nothing of what the jobs do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from proxy.core.decision import Reads
from proxy.errors import StoreRefused, StoreUnavailable, describe
from proxy.store.sqlite.damage import FileMoved, Remedy, gives_up, remedy_for
from proxy.store.sqlite.file import StoreFile
from proxy.store.sqlite.upkeep import Upkeep

T = TypeVar("T")
Job = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]", Reads | None]

MAX_GROUP = 512  # jobs in one transaction: bounds how long a commit can take
MAX_QUEUE = 20_000  # jobs that wait: beyond that the disk does not keep up, and a 503 says so
_RETRY_AFTER = 5
_IDLE_SECONDS = 1.0  # between rounds of upkeep, and between tries to open the file

log = logging.getLogger("proxy.store")


class SqliteThread:
    """Runs jobs on `file`. All hooks run on the thread: `opened` after the file was opened (True: for the first time), `begun` first in each
    transaction, with what its jobs said they would read, `before_commit` last in it, `rolled_back` after a failed one.
    """

    def __init__(
        self,
        file: StoreFile,
        upkeep: Upkeep,
        *,
        opened: Callable[[sqlite3.Connection, bool], None],
        begun: Callable[[sqlite3.Connection, Sequence[Reads]], None],
        before_commit: Callable[[sqlite3.Connection], None],
        rolled_back: Callable[[], None],
    ) -> None:
        self._file, self._upkeep = file, upkeep
        self._opened_hook = opened
        self._begun, self._before_commit = begun, before_commit
        self._rolled_back = rolled_back
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="sqlite", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.failed: asyncio.Future[str] = self._loop.create_future()
        self._closing = False
        self._opening = False  # once more, which can take a while: nobody is to wait for it
        self._connection: sqlite3.Connection | None = None  # None: not open at the moment
        self._failure: Exception | None = None  # what made it necessary to open the file again
        self._obstacle: Exception | None = None  # why that did not work
        self._tries: list[float] = []  # to open it again, since something was last written
        self._next_try = 0.0
        self._failures = 0  # transactions in a row
        self._written = self._ticked = float("-inf")  # when something was last written, and upkeep last done
        self.writes = True  # the last transaction that wanted to write has written

    async def open(self) -> None:
        """Starts the thread and opens the file. Raises `StoreRefused`."""
        self._thread.start()
        await self._opened

    def submit(self, work: Callable[[sqlite3.Connection], T], reads: Reads | None = None) -> asyncio.Future[T]:
        """Runs `work` in a transaction; the result comes once that is durable.

        Fails with `StoreUnavailable` if the transaction fails. If `work` itself raises, it alone fails: what it wrote is undone, and the
        other jobs of its transaction are run again without it.
        """
        if self._closing:
            raise StoreUnavailable("The store is being closed.", retry_after=_RETRY_AFTER)
        if self._opening:
            raise StoreUnavailable("The store is being checked: its log says why.", retry_after=_RETRY_AFTER)
        if self._jobs.qsize() >= MAX_QUEUE:
            raise StoreUnavailable("The disk does not keep up with what is pushed.", retry_after=_RETRY_AFTER)
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((work, future, reads))
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
            self._connect()
        except BaseException as error:
            self._answer([(self._opened, None, error)])
            return
        self._answer([(self._opened, None, None)])
        last = False
        while not last:
            jobs, last = self._take()
            try:
                self._serve(jobs)
            except Exception as error:  # a defect; a thread that ended here would leave everybody waiting
                self._answer(_refusals(jobs))
                self._failure = error
                self._disconnect()
                self._fail()
        self._disconnect()
        self._answer([(self._closed, None, None)])

    def _serve(self, jobs: list[Job]) -> None:
        if self._connection is None:
            self._try_again()
        while jobs:
            jobs = self._transaction(jobs)
        self._keep_up()

    def _take(self) -> tuple[list[Job], bool]:
        """All jobs that wait now, none if there are none for a while; and whether there will be no more."""
        jobs: list[Job] = []
        try:
            job = self._jobs.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            return jobs, False
        while job is not None:
            jobs.append(job)
            if len(jobs) >= MAX_GROUP:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _transaction(self, jobs: list[Job]) -> list[Job]:
        """Runs and answers them; returns those that have to be run again, because of another that failed."""
        connection = self._connection
        if connection is None:
            self._answer(_refusals(jobs))
            return []
        started, changes = time.monotonic(), connection.total_changes
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._begun(connection, [reads for _, _, reads in jobs if reads is not None])
            outcomes = [self._run(connection, job) for job in jobs]
            self._before_commit(connection)
            connection.execute("COMMIT")
            self._file.require_in_place()
        except Exception as error:
            self._rolled_back()
            _roll_back(connection)
            if isinstance(error, _JobFailed):
                self._answer([error.outcome()])
                return [job for job in jobs if job is not error.job]
            if len(jobs) > 1 and remedy_for(error) is Remedy.FAIL:
                for job in jobs:  # what one of them gathered cannot be written: each for itself
                    self._transaction([job])
                return []
            self._answer(_refusals(jobs))
            self._note_failure(jobs, error)
            self._recover(error)
            return []
        self._answer(outcomes)
        if connection.total_changes != changes:
            self._upkeep.committed(len(jobs), time.monotonic() - started)
            self._note_written()
        return []

    def _run(self, connection: sqlite3.Connection, job: Job) -> Outcome:
        work, future, _ = job
        try:
            return future, work(connection), None
        except Exception as error:
            if remedy_for(error) is not Remedy.FAIL:
                raise  # the file's trouble is everybody's
            raise _JobFailed(job, error) from None

    # --- failures

    def _note_failure(self, jobs: list[Job], error: Exception) -> None:
        """The first failure in a row is told; the rest are counted."""
        self.writes = False
        self._failures += 1
        self._upkeep.failed_commits += 1
        if self._failures == 1 or remedy_for(error) is not Remedy.MAKE_ROOM:
            log.error("A transaction of %d jobs failed: %s", len(jobs), _cause(error))

    def _note_written(self) -> None:
        if self._failures:
            log.warning("The store writes again, after %d transactions that failed", self._failures)
        self.writes = True
        self._written = time.monotonic()
        self._failures = 0
        self._tries.clear()

    def _recover(self, error: Exception) -> None:
        remedy = remedy_for(error)
        if remedy is Remedy.MAKE_ROOM:
            self._keep_up(urgent=True)
        elif remedy is not Remedy.FAIL:
            self._failure = error
            self._disconnect()
            self._try_again()

    def _try_again(self) -> None:
        now = time.monotonic()
        if now < self._next_try:
            return
        if gives_up(self._tries, now):
            self._fail()
            return
        self._tries.append(now)
        self._next_try = now + _IDLE_SECONDS
        self._opening = True
        try:
            self._connect()
        except (StoreRefused, sqlite3.Error, OSError) as error:
            self._obstacle = error
            log.error("The store could not be opened again: %s", _cause(error))
        else:
            self._obstacle = None
            self._upkeep.reopened += 1
            log.warning("The store was closed, checked and opened again")
        finally:
            self._opening = False

    def _fail(self) -> None:
        text = f"The store at {self._file.path} fails again and again: {_cause(self._obstacle or self._failure)}"
        log.critical("%s The process ends, so that it can be started anew", text)
        self._answer([(self.failed, text, None)])
        self._next_try = float("inf")  # jobs are refused until the process ends

    def _connect(self) -> None:
        connection = self._file.open(after=self._failure)
        try:
            self._opened_hook(connection, self._failure is None)
            self._upkeep.attach()
        except sqlite3.Error as error:
            connection.close()
            raise StoreRefused(f"{self._file.path} cannot be written ({error}).") from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._upkeep.detach()
            self._connection = None

    def _keep_up(self, *, urgent: bool = False) -> None:
        connection, now = self._connection, time.monotonic()
        if connection is None:
            return
        try:
            self._upkeep.after_commit(connection)
            if urgent:
                self._upkeep.checkpoint(connection)
            if now - self._ticked >= _IDLE_SECONDS:
                self._ticked = now
                self._file.require_in_place()
                self._upkeep.tick(connection, quiet=now - self._written >= _IDLE_SECONDS)
        except (sqlite3.Error, OSError, FileMoved) as error:
            if remedy_for(error) in (Remedy.REOPEN, Remedy.SUSPECT):
                log.error("The store's upkeep failed: %s", _cause(error))
                self._recover(error)

    # --- answers

    def _answer(self, outcomes: list[Outcome]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_resolve, outcomes)


class _JobFailed(Exception):
    """One job of a transaction has raised, and may have written."""

    def __init__(self, job: Job, error: Exception) -> None:
        self.job, self.error = job, error

    def outcome(self) -> Outcome:
        _, future, _ = self.job
        if not isinstance(self.error, sqlite3.Error):
            return future, None, self.error
        log.error("A job failed: %s", _cause(self.error))
        return future, None, _refused()


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


def _refusals(jobs: list[Job]) -> list[Outcome]:
    failure = _refused()
    return [(future, None, failure) for _, future, _ in jobs]


def _refused() -> StoreUnavailable:
    return StoreUnavailable("The store could not write: its log says why.", retry_after=_RETRY_AFTER)


def _cause(error: Exception | None) -> str:
    """The words of SQLite (it quotes no values) or our own; of anything else only what kind it is and where it was raised."""
    if isinstance(error, (sqlite3.Error, StoreRefused, FileMoved)):
        return str(error)
    return describe(error) if error is not None else "unknown"
