"""Connections to PostgreSQL, and transactions over as few round trips as they need.

Nothing is bound to a session, so that a pooler may stand in between (PgBouncer in transaction mode): every transaction sets for itself
what it relies on. That is a commit that waits for the disk, and limits that keep a node which was stopped in the middle of one from
holding up the others. What the database says about an error can quote payload and passwords, so only its code is told.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, LiteralString, TypeVar

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncPipeline
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from proxy.errors import StoreUnavailable
from proxy.store.postgres.causes import cause, sqlstate, why_unreached
from proxy.store.postgres.sight import Sight
from proxy.store.queries import read_queries
from proxy.store.records import Counts

RETRY_AFTER = 5  # seconds
_TRIES = 8  # of a transaction: more than there are connections, each of which may turn out to be gone
_ANEW_SECONDS = 1.0  # after which a lost connection is not made up for by another one
_CONNECT_SECONDS = 5
_WAIT_SECONDS = 3  # for a connection: while there is none to be had, callers are told so
ANSWER_SECONDS = 20.0  # the timeout of a round trip, after which the connection counts as lost
_COMMIT_SECONDS = 5.0  # of one that commits, which may wait for a standby for ever: giving up does not undo it
LATE_SECONDS = 3.0  # in which a standby has to confirm a commit, before it is reported as missing
_STOPPED_SECONDS = 3.0  # without a word in the middle of a batch of statements
# In milliseconds. A node that was stopped in the middle of a transaction holds up the others no longer than the last.
_LIMITS = {"lock_timeout": 2_000, "statement_timeout": 15_000, "idle_in_transaction_session_timeout": 3_000}
# All that is asked for is found by an index. The planner would read tables of some thousands of rows from end to end, for each group anew.
_PLANNING = {"enable_seqscan": "off", "jit": "off"}

# SQLSTATE: others were in the way. Nothing was changed, and the same may succeed at once.
_CONTENDED = frozenset(("40001", "40P01", "55P03", "57014", "25P03", "23505"))
_NO_ROOM_FOR_LOCKS, _WAITED = "53200", "55P03"
_READ_ONLY = ("25006", "0A000")  # the latter of a transaction that begins on a standby
# Classes of SQLSTATE: the server or the way to it is in trouble; anything else is about one statement.
_TROUBLE = ("08", "25", "28", "3D", "53", "57", "58", "XX")

Connection = AsyncConnection[tuple[Any, ...]]
Query = tuple[str, Mapping[str, object]]  # its name in the file, its parameters
T = TypeVar("T")

log = logging.getLogger("proxy.store")
# Outages are told here, once. The driver and its pool would tell each attempt, in the words of the server, which can quote payload.
logging.getLogger("psycopg").setLevel(logging.ERROR)

SQL = read_queries(
    Path(__file__).with_name("queries.sql"),
    {
        "{now}": "extract(epoch FROM statement_timestamp())::double precision",
        "{shard}": "mod(pg_backend_pid(), 64)",
        ")s::": ")b::",  # in binary, which the driver writes faster
    },
)


class Overtaken(Exception):
    """Others changed what a transaction has read before it could write: it is run again."""


class StatementFailed(StoreUnavailable):
    """The database is well and refused a statement: one of several jobs may be the reason."""


class Rows(msgspec.Struct, frozen=True):
    """What one query of a round trip returned."""

    rows: list[tuple[Any, ...]]
    count: int  # of rows that were returned or changed

    @property
    def value(self) -> Any:
        """The first column of the first row, None if there is no row."""
        return self.rows[0][0] if self.rows else None


def columns(names: str, rows: Sequence[Sequence[object]]) -> dict[str, object]:
    """Returns the rows as one array for each column, in which a query takes many at once."""
    return {name: [row[place] for row in rows] for place, name in enumerate(names.split())}


def filled(queries: Iterable[Query]) -> list[Query]:
    """Leaves out queries with nothing in their first array."""
    return [(name, values) for name, values in queries if next(iter(values.values()))]


class Transaction:
    """A transaction that begins with its first query, and is not used after `commit`."""

    def __init__(
        self, connection: Connection, sight: Sight, *, answer_seconds: float, reads_only: bool = False
    ) -> None:
        self._connection = connection
        self._sight, self._asked = sight, sight.asked()
        self._answer_seconds = answer_seconds
        self._open = contextlib.AsyncExitStack()
        self._pipeline: AsyncPipeline | None = None
        self._reads_only = reads_only
        self.committing = False  # from here on, a lost connection leaves it unknown whether anything was changed

    async def run(self, *queries: Query) -> list[Rows]:
        """Runs all queries in one round trip. Each sees what the one before has done, and what others have committed meanwhile."""
        return await self._send(queries)

    async def commit(self, *queries: Query) -> list[Rows]:
        """Runs all queries in one round trip and commits; returns when that is durable."""
        self.committing = True
        warned: list[object] = []
        self._connection.add_notice_handler(warned.append)
        try:
            results = await self._send(queries, commits=True)
        finally:
            self._connection.remove_notice_handler(warned.append)
        if warned:
            raise StoreUnavailable("The database is not sure of a commit: its log says why.", retry_after=RETRY_AFTER)
        return results

    def now(self) -> float:
        """Returns Unix seconds by the server's clock."""
        return self._sight.now()

    async def look(self) -> None:
        """Observes the server's clock and timeline, without reading a table."""
        asked = self._sight.asked()
        with _cut_off(self._connection, self._answer_seconds):
            row = await (await self._connection.execute(f"SELECT {self._sight.look}")).fetchone()
        if row is not None:
            self._sight.take(asked, row)

    async def end(self) -> None:
        """Rolls back what was not committed. Closes a connection that cannot do that."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                if self._pipeline is not None and self._connection.info.transaction_status != TransactionStatus.IDLE:
                    await self._connection.execute("ROLLBACK")
                await self._open.aclose()
        except (psycopg.Error, TimeoutError):
            await self._connection.close()

    async def _send(self, queries: Sequence[Query], *, commits: bool = False) -> list[Rows]:
        """Makes one round trip. `commits`: it is the transaction's last one."""
        look = position = None
        patience = min(self._answer_seconds, _COMMIT_SECONDS) if commits else self._answer_seconds
        with _cut_off(self._connection, patience):
            if self._pipeline is None:
                self._pipeline = await self._open.enter_async_context(self._connection.pipeline())
                if not self._reads_only:
                    self._asked = self._sight.asked()
                    await self._connection.execute(_BEGIN)
                    look = await self._connection.execute(f"{SETTINGS}, {self._sight.look}")
            cursors = [await self._connection.execute(SQL[name], values, binary=True) for name, values in queries]
            if commits:
                position = await self._connection.execute(f"{_LAST}, {self._sight.position}")
                await self._connection.execute("COMMIT")
            if commits or self._reads_only:
                await self._open.aclose()
            else:
                # The pipeline stays open, because leaving it sends a message that would stop the server's clock for idle transactions.
                await self._pipeline.sync()
        if look is not None and (row := await look.fetchone()) is not None:
            self._sight.take(self._asked, row[-3:])
        if position is not None and (row := await position.fetchone()) is not None:
            self._sight.reached(row[-1], self._asked)
        return [Rows(await cursor.fetchall() if cursor.description else [], cursor.rowcount) for cursor in cursors]


_BEGIN: LiteralString = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
# PostgreSQL reports a commit as done if it is cancelled while it waits for a standby, so no timeout of the server may cancel it.
_LAST: LiteralString = "SELECT set_config('statement_timeout', '0', true)"


@contextlib.contextmanager
def _cut_off(connection: Connection, seconds: float) -> Iterator[None]:
    """Shuts the connection down and raises TimeoutError after so many seconds.

    Does not cancel the statement: a commit that is cancelled while it waits for a standby becomes visible, and a failover would lose it. An
    abandoned commit keeps waiting, and holds its locks, until a standby confirms it.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds, _shut_down, connection)
    try:
        yield
    except psycopg.OperationalError:
        if loop.time() >= timer.when():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def _shut_down(connection: Connection) -> None:
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)


# Settings of every transaction. synchronous_commit is never weaker than `on`, whatever the role or the database sets; remote_apply is stronger.
SETTINGS = (
    "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' "
    "ELSE 'on' END, true), "
    + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in (_LIMITS | _PLANNING).items())
)


class Database:
    """Runs transactions on a pool of connections. `sight`: collects what each transaction observes of the server."""

    def __init__(
        self, dsn: str, *, pool_size: int, answer_seconds: float = ANSWER_SECONDS, sight: Sight | None = None
    ) -> None:
        self.counts = Counts()
        self.sight = sight or Sight()
        self.trouble: str | None = None  # why the last transaction failed, if it did
        self.written = float("-inf")  # when something was last committed, on the monotonic clock
        self._closed = False
        self._answer_seconds = answer_seconds
        self._unreached: str | None = None  # why the last connect failed, if it did
        self._unconfirmed = False  # a commit timed out, and may still be waiting for a standby
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            open=False,
            min_size=1,
            max_size=pool_size,
            timeout=_WAIT_SECONDS,
            reconnect_timeout=2,  # seconds; after that, whoever wants a connection makes the next attempt
            max_waiting=0,
            name="scq-proxy",
            connection_class=_noting(self._note_connect),
            kwargs=connect_options(dsn),
        )

    async def open(self) -> None:
        await self._pool.open(wait=False)

    async def close(self) -> None:
        self._closed = True
        await self._pool.close()

    async def run(self, work: Callable[[Transaction], Awaitable[T]], *, reads_only: bool = False) -> T:
        """Does `work` in a transaction, again if others were in the way. Work that does not commit is rolled back.

        Raises `StoreUnavailable`. If that happens during a commit, it is unknown whether the commit took place.
        """
        if self._unconfirmed and not reads_only:
            await self._require_confirmed()
        begun, reason = time.monotonic(), "others were in the way, again and again"
        for attempt in range(_TRIES):
            if self._closed:
                break
            try:
                return await self._once(work, reads_only=reads_only)
            except Overtaken:
                continue
            except _Contended as contended:
                if str(contended) == _WAITED:
                    await self._end_stopped()
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311 - no secret
            except _Lost as lost:
                reason = str(lost)
                if time.monotonic() - begun > _ANEW_SECONDS:
                    break
        raise self._refusal("it is closed" if self._closed else reason)

    async def _require_confirmed(self) -> None:
        """Refuses further commits while one that timed out still waits: each would tie up another connection of the server."""
        values = {"seconds": min(self._answer_seconds, _COMMIT_SECONDS) / 2}
        try:
            async with self._pool.connection() as connection:
                with _cut_off(connection, min(_CONNECT_SECONDS, self._answer_seconds)):
                    row = await (await connection.execute(SQL["unconfirmed"], values)).fetchone()
        except (psycopg.Error, TimeoutError, OSError) as error:
            raise self._refusal(self._cause(error)) from None
        if row is not None and row[0]:
            raise self._refusal(NO_STANDBY)
        self._unconfirmed = False

    async def _end_stopped(self) -> None:
        """Ends transactions of a node that was stopped while sending: the timeouts do not, because the server takes it for busy."""
        with contextlib.suppress(psycopg.Error, TimeoutError, OSError):
            async with asyncio.timeout(_CONNECT_SECONDS), self._pool.connection() as connection:
                cursor = await connection.execute(SQL["end_stopped"], {"limit": _STOPPED_SECONDS})
                row = await cursor.fetchone()
                if row is not None and row[0]:
                    log.warning("A node that does not go on held up others: %d of its transactions were ended", row[0])

    async def look(self) -> None:
        await self.run(Transaction.look, reads_only=True)

    async def read(self, *queries: Query) -> list[Rows]:
        """Runs all queries in one round trip, each on a snapshot of its own."""
        return await self.run(lambda transaction: transaction.run(*queries), reads_only=True)

    async def _once(self, work: Callable[[Transaction], Awaitable[T]], *, reads_only: bool) -> T:
        transaction: Transaction | None = None
        started = time.monotonic()
        try:
            async with self._pool.connection() as connection:
                transaction = Transaction(
                    connection, self.sight, answer_seconds=self._answer_seconds, reads_only=reads_only
                )
                try:
                    result = await work(transaction)
                except psycopg.Error as error:
                    if sqlstate(error) in _READ_ONLY:  # it leads to a standby; a new connection may lead to the primary
                        await connection.close()
                    raise
                finally:
                    await transaction.end()
        except (psycopg.Error, TimeoutError, OSError) as error:
            raise self._judged(error, transaction) from None
        if transaction.committing:
            self._note_commit(time.monotonic() - started)
        return result

    def _judged(self, error: Exception, transaction: Transaction | None) -> Exception:
        state = sqlstate(error)
        if state in _CONTENDED:
            return _Contended(state)
        self.counts.failed_commits += 1
        if (
            state is not None
            and state not in _READ_ONLY
            and (state == _NO_ROOM_FOR_LOCKS or not state.startswith(_TROUBLE))
        ):
            log.error("A statement failed: %s", cause(error))
            return StatementFailed(_SENTENCE, retry_after=RETRY_AFTER)
        if transaction is None:
            return self._refusal(self._cause(error))
        self.counts.reopened += 1
        self._unconfirmed |= transaction.committing and isinstance(error, TimeoutError)
        return self._refusal(cause(error)) if transaction.committing else _Lost(cause(error))

    @property
    def known_trouble(self) -> str | None:
        """Why nothing is stored now, as far as is known without asking: the last attempt to connect knows it before those do who wait."""
        return self._unreached or self.trouble

    def _cause(self, error: Exception) -> str:
        """The pool says only that it has no connection, and its last attempt to make one says why."""
        return self._unreached if isinstance(error, PoolTimeout) and self._unreached is not None else cause(error)

    def _note_connect(self, error: Exception | None) -> None:
        self._unreached = None if error is None else why_unreached(error).removesuffix(".")

    def _refusal(self, reason: str) -> StoreUnavailable:
        if self.trouble != reason:
            log.error("The database could not do what it was asked: %s", reason)
        self.trouble = reason
        return StoreUnavailable(
            _SENTENCE, retry_after=RETRY_AFTER, cause=f"The database could not take this: {reason}."
        )

    def _note_commit(self, seconds: float) -> None:
        if self.trouble is not None:
            log.warning("The database takes pushes again")
        self.trouble = self._unreached = None
        self.counts.commits += 1
        self.counts.commit_seconds += seconds
        self.written = time.monotonic()


NO_STANDBY = "no synchronous standby confirms commits: bring one back, or remove those that are gone from synchronous_standby_names"
_SENTENCE = "The database could not take this: the log of the proxy says why."


class _Contended(Exception):
    """Others were in the way; the message is the SQLSTATE. Nothing was changed, and the same may succeed at once."""


class _Lost(Exception):
    """The connection was lost before anything was changed. Another may do: after a restart, all idle ones are gone."""


def _noting(note: Callable[[Exception | None], None]) -> type[Connection]:
    """Returns a class of connections that says of each attempt why it failed, which the pool keeps to itself."""

    class Noting(AsyncConnection[tuple[Any, ...]]):
        @classmethod
        async def connect(cls, conninfo: str = "", **options: Any) -> "Noting":
            try:
                connection = await super().connect(conninfo, **options)
            except (psycopg.Error, OSError) as error:
                note(error)
                raise
            note(None)
            return connection

    return Noting


def connect_options(dsn: str) -> dict[str, Any]:
    """Returns what every connection is opened with, except for what the DSN says itself."""
    usual = {"connect_timeout": _CONNECT_SECONDS, "application_name": "scq-proxy", "client_encoding": "utf8"}
    said = conninfo_to_dict(dsn)
    chosen = {name: value for name, value in usual.items() if name not in said}
    return {"autocommit": True, "prepare_threshold": None, **chosen}
