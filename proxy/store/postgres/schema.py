"""Migrates the schema of the PostgreSQL outbox, and assesses whether a server can be trusted with acknowledged pushes.

A migration goes forward only, in one transaction that one migration at a time can hold. Steps only add, so that nodes of the previous
version keep working meanwhile. An assessment changes nothing.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict

from proxy.errors import StoreRefused
from proxy.store.postgres.causes import cause, why_unreached
from proxy.store.postgres.database import LATE_SECONDS, NO_STANDBY, SETTINGS, SQL, Connection, connect_options
from proxy.store.postgres.locks import SCHEMA, lock
from proxy.store.postgres.sight import LOOK
from proxy.store.queries import read_steps

SCHEMA_STEPS = read_steps(Path(__file__).with_name("schema"))
UNSAFE = "SCQ_STORE_UNSAFE=1 uses it all the same."
_OLDEST_SERVER = 140_000
_SITE_KEY_BYTES = 32
_LOCK_TIMEOUT = "10s"  # a change of a table waits for every transaction on it, and everybody behind it waits too
_TABLES = (
    *("aliases", "counters", "dead", "gate", "held", "lanes", "meta", "networks", "not_offered", "pushes"),
    *("schedules", "scq_schema", "seen", "sign_ups", "timelines", "tombstones", "visitors"),
)


class Assessment(msgspec.Struct, frozen=True):
    """What a server says of itself.

    `version`: of the schema, 0 if there is none. `facts`: name to value, for people. `obstacles`: sentences, each with what to do, why an
    outbox cannot be opened here at all. `losses`: why acknowledged pushes could be lost here: refused unless the operator says otherwise.
    `standbys`: commits wait for synchronous standbys. `failover`: a warning about asynchronous standbys, "" if there are none.
    `tells_servers`: the server reports its timeline. `trouble`: why commits do not succeed now, "" if they do.
    """

    version: int
    facts: dict[str, str]
    obstacles: tuple[str, ...]
    losses: tuple[str, ...]
    standbys: bool
    failover: str
    tells_servers: bool
    trouble: str

    @property
    def problems(self) -> tuple[str, ...]:
        return self.obstacles + self.losses


async def migrate(dsn: str) -> tuple[int, int]:
    """Creates the schema or brings it up to date; returns its version before (0: none) and after. Raises `StoreRefused`."""
    async with _connected(dsn) as connection:
        obstacles = server_obstacles(await _server(connection))
        if obstacles:
            raise StoreRefused(" ".join(obstacles))
        async with connection.transaction():
            query, values = lock(((SCHEMA, ""),))
            await connection.execute(SQL[query], values)
            await connection.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
            version, tables = await _version(connection)
            if (problem := _unknown(version, tables)) is not None:
                raise StoreRefused(problem)
            for step in SCHEMA_STEPS[version:]:
                await connection.execute(step)
            if version == 0:
                key = secrets.token_bytes(_SITE_KEY_BYTES)
                await connection.execute("INSERT INTO meta (name, value) VALUES ('site_key', %s)", (key,))
                await connection.execute("INSERT INTO scq_schema (version) VALUES (0)")
            await connection.execute("UPDATE scq_schema SET version = %s", (len(SCHEMA_STEPS),))
    return version, len(SCHEMA_STEPS)


async def assess(dsn: str) -> Assessment:
    """Returns what the server says of itself. Raises `StoreRefused` if it cannot be reached."""
    async with _connected(dsn) as connection, connection.transaction():
        await connection.execute(SETTINGS)
        server = await _server(connection)
        version, tables = await _version(connection)
        look = await _optional(connection, f"SELECT {LOOK}")
        followers = await _optional(connection, SQL["followers"])
        waiting = await (await connection.execute(SQL["unconfirmed"], {"seconds": LATE_SECONDS})).fetchone()
    standbys = server[6].strip()
    facts = {
        "PostgreSQL": server[0],
        "schema": str(version) if version else "none",
        "fsync": server[3],
        "full_page_writes": server[4],
        "synchronous_commit": server[5],
        "synchronous standbys": standbys or "none",
    }
    obstacles = [*server_obstacles(server), *_schema_obstacles(version, tables)]
    losses = tuple(_losses(server, tables))
    failover = _failover(standbys, followers)
    trouble = f"Commits wait: {NO_STANDBY}." if waiting is not None and waiting[0] else ""
    return Assessment(version, facts, tuple(obstacles), losses, bool(standbys), failover, look is not None, trouble)


async def _optional(connection: Connection, query: LiteralString) -> tuple[Any, ...] | None:
    """Returns a row, None where the service or the role does not permit the query."""
    try:
        async with connection.transaction():
            return await (await connection.execute(query)).fetchone()
    except psycopg.Error:
        return None


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Connection]:
    try:
        options = connect_options(dsn)
    except psycopg.Error:
        sentence = "SCQ_STORE is not a URL that PostgreSQL's client understands: postgresql://user@host/database."
        raise StoreRefused(sentence) from None
    try:
        connection = await psycopg.AsyncConnection.connect(dsn, **options)
    except (psycopg.Error, OSError) as error:
        raise StoreRefused(f"{place(dsn)} cannot be used: {why_unreached(error)}") from None
    try:
        yield connection
    except psycopg.Error as error:
        raise StoreRefused(f"{place(dsn)} would not do what it was asked: {cause(error)}.") from None
    finally:
        await connection.close()


def place(dsn: str) -> str:
    """Returns where the database is, without user and password."""
    parts = conninfo_to_dict(dsn)
    host, port, name = parts.get("host", "localhost"), parts.get("port", "5432"), parts.get("dbname", "")
    return f"postgresql://{host}:{port}/{name}"


async def _server(connection: Connection) -> Sequence[Any]:
    row = await (await connection.execute(SQL["server"])).fetchone()
    assert row is not None  # noqa: S101 - it reads settings, of which there is one row
    return row


async def _version(connection: Connection) -> tuple[int, dict[str, bool]]:
    """Returns the version of the schema (0: none), and the tables with our names: whether a crash would empty them."""
    rows = await (await connection.execute(SQL["tables"], {"names": list(_TABLES)})).fetchall()
    tables: dict[str, bool] = dict(rows)
    if "scq_schema" not in tables:
        return 0, tables
    row = await (await connection.execute(SQL["schema_version"])).fetchone()
    return (row[0] if row else 0), tables


def server_obstacles(server: Sequence[Any]) -> list[str]:
    """Returns why the server cannot be used at all. `server`: the row of the query of that name."""
    version, number, encoding, *_, standby = server
    obstacles = []
    if number < _OLDEST_SERVER:
        obstacles.append(f"PostgreSQL {version} is too old: use 14 or newer.")
    if encoding != "UTF8":
        obstacles.append(f"The database's encoding is {encoding}: create one with ENCODING 'UTF8'.")
    if standby:
        obstacles.append(
            "The server is a standby and takes nothing: name the primary, or several hosts and target_session_attrs=read-write."
        )
    return obstacles


def _schema_obstacles(version: int, tables: dict[str, bool]) -> list[str]:
    if (problem := _unknown(version, tables)) is not None:
        return [problem]
    if version < len(SCHEMA_STEPS):
        what = "has no tables for scq-proxy yet" if version == 0 else f"is of an older scq-proxy (schema {version})"
        return [f"The database {what}: run scq-proxy migrate."]
    return []


def _failover(standbys: str, followers: tuple[Any, ...] | None) -> str:
    """Returns a warning about asynchronous standbys, if any. `standbys`: the synchronous ones; `followers`: the row of that query, if permitted."""
    count, waited_for, behind = followers or (0, 0, None)
    if waited_for is None:
        waited_for = count if standbys else 0
    others = count - waited_for
    if others <= 0:
        return ""
    lag = f" (now {behind:,} bytes of the write-ahead log)" if behind is not None else ""
    some = "1 standby is" if others == 1 else f"{others} standbys are"
    return (
        f"{some} asynchronous: a failover to one of them loses acknowledged pushes that have not reached it{lag}. To lose "
        "nothing, list it in synchronous_standby_names."
    )


def _unknown(version: int, tables: dict[str, bool]) -> str | None:
    """Returns a sentence if the tables are of something that this version does not know."""
    known = len(SCHEMA_STEPS)
    if version > known:
        return (
            f"The database was made by a newer scq-proxy (schema {version}, this one knows {known}): install that one."
        )
    if version == 0 and tables:
        return f"The database has tables of another program ({', '.join(tables)}): give scq-proxy one of its own."
    return None


def _losses(server: Sequence[Any], tables: dict[str, bool]) -> list[str]:
    _, _, _, fsync, full_page_writes, *_ = server
    losses = []
    if fsync != "on":
        losses.append(
            "The server runs with fsync=off, so that a crash loses what was acknowledged: turn it on in postgresql.conf."
        )
    if full_page_writes != "on":
        losses.append(
            "The server runs with full_page_writes=off, so that a crash can damage what was acknowledged: turn it on in postgresql.conf."
        )
    emptied = [name for name, is_emptied in tables.items() if is_emptied]
    if emptied:
        losses.append(f"A crash empties {', '.join(emptied)}: ALTER TABLE … SET LOGGED.")
    return losses
