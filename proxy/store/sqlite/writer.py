"""The one thread that touches an SQLite file: takes the jobs that wait, runs them in one transaction, and answers.

Group commit without linger: while a commit is syncing, jobs gather, and the next transaction takes them all. A job is answered after the
commit that made it durable, and every job of a failed commit fails. What follows from a failure is decided in `recovery` and carried out
here. Knows nothing of what the jobs do.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from proxy.core.decision import Reads
from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.sqlite.causes import explain, locked_by
from proxy.store.sqlite.damage import FileMoved, Remedy, remedy_for
from proxy.store.sqlite.file import LOCK_SECONDS, StoreFile
from proxy.store.sqlite.recovery import Recovery, State
from proxy.store.sqlite.upkeep import Upkeep

T = TypeVar("T")
Job = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]", Reads | None]
Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]

MAX_GROUP = 512  # jobs in one transaction: bounds how long a commit can take
MAX_QUEUE = 20_000  # jobs that wait: beyond that the disk does not keep up, and a 503 says so
_RETRY_AFTER = 5
_IDLE_SECONDS = 1.0  # without a job, until upkeep has its turn

_REOPENING = State.REOPENING  # `submit` runs for every push, and Python 3.11 finds a member of an enumeration slowly

_FAILED = "The store could not write: the log of the proxy says why."
_BLOCKED = "Another program has the store locked: the log of the proxy says which."
_LOCKED = (
    "The store is locked by %s, and all writes are refused until the lock is released. Copy %s without locking it, as sqlite3's .backup does, "
    "or stop that program"
)
_BROKEN = "It could not write, and is checked and opened again: %s"

log = logging.getLogger("proxy.store")


class Opened(Protocol):
    """Called on the thread when the file was opened, for the first time or again."""

    def __call__(self, connection: sqlite3.Connection, *, first: bool) -> None: ...


class Gathering(Protocol):
    """Called on the thread: `begun` first and `before_commit` last in a transaction, `rolled_back` after one that failed.

    `reads`: what its jobs announced.
    """

    def begun(self, connection: sqlite3.Connection, reads: Sequence[Reads]) -> None: ...
    def before_commit(self, connection: sqlite3.Connection) -> None: ...
    def rolled_back(self) -> None: ...


class Writer:
    """Runs jobs on `file`. `failed` has a result once the store has failed for good: the reason, for a person."""

    def __init__(self, file: StoreFile, upkeep: Upkeep, gathering: Gathering, *, opened: Opened) -> None:
        self._file, self._upkeep, self._gathering, self._opened = file, upkeep, gathering, opened
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self.failed: asyncio.Future[str] = self._loop.create_future()
        self._closed: asyncio.Future[None] | None = None  # None until it is being closed; the loop's
        self._recovery = Recovery()  # the thread's; the loop only looks
        self._connection: sqlite3.Connection | None = None  # None while the file is closed
        self._why = ""  # the last failure, as it was logged; "" once an append is written
        self._gone = False  # when it was last closed, its path held another file or none

    @property
    def writes(self) -> bool:
        """Returns whether no transaction has failed since the last append was written."""
        return not self._recovery.failures

    async def open(self) -> None:
        """Starts the thread and opens the file. Raises `StoreRefused`."""
        opened = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, args=(opened,), name="sqlite", daemon=True)
        self._thread.start()
        await opened

    def submit(self, work: Callable[[sqlite3.Connection], T], reads: Reads | None = None) -> asyncio.Future[T]:
        """Runs `work` in a transaction; the result comes once that is durable.

        `reads`: for an append, and only for one. Fails with `StoreUnavailable` if the transaction fails. If `work` itself raises, it alone
        fails: what it wrote is undone, and the other jobs of its transaction are run again without it.
        """
        if self._closed is not None:
            raise StoreUnavailable("The store is being closed.", retry_after=_RETRY_AFTER)
        if self._recovery.state is _REOPENING:
            raise _refused("The store is being checked: its log says why.", self._why)
        if self._jobs.qsize() >= MAX_QUEUE:
            raise StoreUnavailable("The disk does not keep up with what is pushed.", retry_after=_RETRY_AFTER)
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((work, future, reads))
        return future

    async def close(self) -> None:
        if self._closed is not None or self._thread is None or not self._thread.is_alive():
            return
        self._closed = self._loop.create_future()
        self._jobs.put(None)
        await self._closed

    # --- on the thread

    def _work(self, opened: asyncio.Future[None]) -> None:
        try:
            self._connect()
        except BaseException as error:  # noqa: BLE001 - `open` raises it to its caller
            self._recovery = self._recovery.closed()
            self._answer([(opened, None, error)])
            return
        self._answer([(opened, None, None)])
        last = False
        while not last:
            jobs: list[Job] = []
            try:
                last = self._take(jobs)
                self._serve(jobs)
            except Exception as error:  # noqa: BLE001 - a defect; a thread that ended here would leave everybody waiting
                self._give_up(jobs, error)
        self._disconnect()
        self._recovery = self._recovery.closed()
        if self._closed is not None:
            self._answer([(self._closed, None, None)])

    def _serve(self, jobs: list[Job]) -> None:
        if self._connection is None and self._recovery.state is State.BROKEN:
            self._reopen()
        while jobs:
            jobs = self._transaction(jobs)
        self._keep_up()

    def _give_up(self, jobs: list[Job], error: Exception) -> None:
        """Fails all jobs after a defect. Retries until there is enough memory to do so."""
        while True:
            try:
                self._disconnect()
                self._recovery = self._recovery.defect_found(error)
                self._answer(self._refusals(jobs))
                self._tell_failure()
            except MemoryError:
                time.sleep(_IDLE_SECONDS)
            else:
                return

    def _take(self, jobs: list[Job]) -> bool:
        """Appends all waiting jobs to the list, or none after an idle timeout; returns whether they are the last."""
        try:
            job = self._jobs.get(timeout=_IDLE_SECONDS)
            while job is not None:
                jobs.append(job)
                if len(jobs) >= MAX_GROUP:
                    return False
                job = self._jobs.get_nowait()
        except queue.Empty:
            return False
        return True

    def _transaction(self, jobs: list[Job]) -> list[Job]:
        """Runs and answers them; returns those that have to be run again, because of another that failed."""
        connection = self._connection
        if connection is None:
            self._answer(self._refusals(jobs))
            return []
        started, changes = time.monotonic(), connection.total_changes
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._gathering.begun(connection, [reads for _, _, reads in jobs if reads is not None])
            outcomes = [self._run(connection, job) for job in jobs]
            self._gathering.before_commit(connection)
            connection.execute("COMMIT")
            self._file.require_in_place()
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            self._gathering.rolled_back()
            _roll_back(connection)
            return self._after_failure(jobs, error)
        self._answer(outcomes)
        if connection.total_changes != changes:
            self._upkeep.committed(len(jobs), started)
            if self.writes or any(reads is not None for _, _, reads in jobs):
                self._note_write()
        return []

    def _run(self, connection: sqlite3.Connection, job: Job) -> Outcome:
        work, future, _ = job
        try:
            return future, work(connection), None
        except Exception as error:
            if remedy_for(error) is not Remedy.FAIL:
                raise  # the file's trouble is everybody's
            raise _JobFailed(job, error) from None

    def _answer(self, outcomes: list[Outcome]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_resolve, outcomes)

    # --- on the thread, after a failure

    def _after_failure(self, jobs: list[Job], error: Exception) -> list[Job]:
        """Answers jobs of a transaction that was rolled back; returns those to be run again."""
        if isinstance(error, _JobFailed):
            self._answer([error.outcome()])
            return [job for job in jobs if job is not error.job]
        if len(jobs) > 1 and remedy_for(error) is Remedy.FAIL:
            for job in jobs:  # what one of them gathered cannot be written: each for itself
                self._transaction([job])
            return []
        self._note_failure(jobs, error)
        self._answer(self._refusals(jobs, _BLOCKED if remedy_for(error) is Remedy.WAIT else _FAILED))
        if remedy_for(error) is Remedy.MAKE_ROOM:
            self._keep_up(urgent=True)
        elif self._recovery.state is State.BROKEN:
            self._reopen()
        return []

    def _note_failure(self, jobs: list[Job], error: Exception) -> None:
        """Counts a failure. Logs each; of a full disk or a foreign lock, only the first in a row."""
        remedy = remedy_for(error)
        self._recovery = self._recovery.transaction_failed(error)
        self._upkeep.counts.failed_commits += 1
        if remedy is Remedy.WAIT:
            self._be_patient(0.0)
            if self._recovery.failures == 1:
                self._why = _LOCKED % (locked_by(self._file.path), self._file.path)
                log.error(self._why)
        elif self._recovery.failures == 1 or remedy is not Remedy.MAKE_ROOM:
            reason = self._explain(error)
            self._why = _BROKEN % reason
            log.error("A transaction failed (jobs: %d): %s", len(jobs), reason)

    def _be_patient(self, seconds: float) -> None:
        """Sets the timeout for another program's lock."""
        if self._connection is not None:
            self._connection.execute(f"PRAGMA busy_timeout={int(seconds * 1_000)}")

    def _note_write(self) -> None:
        if self._recovery.failures:
            self._be_patient(LOCK_SECONDS)
            log.warning("The store writes again, after %d transactions that failed", self._recovery.failures)
            self._why = ""
        self._recovery = self._recovery.wrote()

    def _reopen(self) -> None:
        if self._connection is not None:  # as long as the file is open, another one cannot have its inode
            self._gone = not self._file.is_in_place()
        self._disconnect()
        self._recovery = self._recovery.tried(time.monotonic())
        if self._recovery.state is State.FAILED:
            self._tell_failure()
        if self._recovery.state is not State.REOPENING:
            return
        try:
            self._connect()
        except (StoreRefused, sqlite3.Error, OSError, MemoryError) as error:
            self._recovery = self._recovery.refused(error)
            self._why = f"The store could not be reopened: {self._explain(error)}"
            log.error(self._why)
        else:
            self._upkeep.counts.reopened += 1
            self._upkeep.counts.replaced += self._gone
            log.warning("The store was closed, checked and reopened")

    def _refusals(self, jobs: list[Job], message: str = _FAILED) -> list[Outcome]:
        return [(future, None, _refused(message, self._why)) for _, future, _ in jobs]

    def _explain(self, error: Exception | None) -> str:
        return explain(error, self._file.path)

    def _tell_failure(self) -> None:
        text = f"The store at {self._file.path} keeps failing: {self._explain(self._recovery.cause)}"
        log.critical("%s The process exits, so that it can be restarted", text)
        self._answer([(self.failed, text, None)])

    def _connect(self) -> None:
        connection = self._file.open(after=self._recovery.failure)
        try:
            self._opened(connection, first=self._recovery.state is State.OPENING)
            self._upkeep.attach()
        except sqlite3.Error as error:
            connection.close()
            raise StoreRefused(f"{self._file.path} cannot be written ({self._explain(error)}).") from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._recovery = self._recovery.opened()

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._upkeep.detach()
            self._connection = None

    def _keep_up(self, *, urgent: bool = False) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            self._upkeep.after_commit(connection, urgent=urgent)
            if self._upkeep.is_due():
                self._file.require_in_place()
                self._upkeep.tick(connection)
        except (sqlite3.Error, OSError, FileMoved, MemoryError) as error:
            self._recovery = self._recovery.upkeep_failed(error)
            if self._recovery.state is State.BROKEN:
                log.error("The store's upkeep failed: %s", self._explain(error))
                self._reopen()


class _JobFailed(Exception):
    """One job of a transaction has raised, and may have written."""

    def __init__(self, job: Job, error: Exception) -> None:
        self.job, self.error = job, error

    def outcome(self) -> Outcome:
        _, future, _ = self.job
        if not isinstance(self.error, sqlite3.Error):
            return future, None, self.error
        log.error("A job failed: %s", self.error)
        return future, None, _refused()


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
        except (sqlite3.Error, MemoryError) as error:  # it is closed after either
            log.error("The rollback failed too: %s", error)


def _refused(message: str = _FAILED, why: str = "") -> StoreUnavailable:
    return StoreUnavailable(message, retry_after=_RETRY_AFTER, cause=why)
