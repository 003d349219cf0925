"""Fills a PostgreSQL store from outside, for `scq-proxy copy`: one transaction into an empty schema, all or nothing.

Rows are streamed by COPY, so memory does not grow with the store. What the database says about an error can quote payload: only its code is
told.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from proxy.errors import StoreRefused
from proxy.store.postgres.causes import cause
from proxy.store.postgres.database import connect_options
from proxy.store.queries import read_queries
from proxy.store.rows import TABLES

_NUMBERED = {"lanes": "id", "pushes": "seq", "held": "seq", "sign_ups": "seq"}
_USED = "The target is not empty ({content}): nothing was copied. Let --to name a database of its own, with nothing but the schema."
_SERVED = (
    "A node is connected to the target: stop it, then copy again. If it is a pooler that keeps connections, let --to name the server "
    "itself. Nothing was copied."
)

_SQL = read_queries(Path(__file__).with_name("load.sql"))


class Load:
    """Made by `loading`. Raises `psycopg.Error`, which `loading` translates."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def begin(self) -> None:
        """Locks the schema. Raises `StoreRefused` if it is in use or not empty."""
        connection = self._connection
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        connection.execute(_SQL["settings"])
        if self._number(_SQL["others"]):
            raise StoreRefused(_SERVED)
        connection.execute(_SQL["lock"])
        content = [f"{count} in {table}" for table, count in connection.execute(_SQL["content"]) if count]
        if content:
            raise StoreRefused(_USED.format(content=", ".join(content)))
        connection.execute(_SQL["clear"])

    def fill(self, table: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[None]:
        """Writes the rows of a table, in the columns of `TABLES`, one each time that it is asked for the next."""
        columns = sql.SQL(", ").join(map(sql.Identifier, TABLES[table]))
        query = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            for row in rows:
                copy.write_row(row)
                yield

    def count_on(self, numbers: Mapping[str, int]) -> None:
        """Has new rows numbered from behind these, by table."""
        for table, column in _NUMBERED.items():
            values = {"table": table, "column": column, "number": numbers.get(table, 0)}
            self._connection.execute(_SQL["number"], values)

    def counts(self, tables: Iterable[str]) -> Mapping[str, int]:
        return {
            table: self._number(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))) for table in tables
        }

    def commit(self) -> None:
        self._connection.execute(_SQL["analyze"])
        self._connection.execute("COMMIT")

    def _number(self, query: LiteralString | sql.Composed) -> int:
        row = self._connection.execute(query).fetchone()
        return int(row[0]) if row else 0


@contextlib.contextmanager
def loading(dsn: str) -> Iterator[Load]:
    """Connects for one copy, which is rolled back unless the block commits it. Raises `StoreRefused`."""
    try:
        with psycopg.connect(dsn, **connect_options(dsn)) as connection:
            yield Load(connection)
    except psycopg.Error as error:
        raise StoreRefused(f"The database would not take the copy ({cause(error)}): nothing was copied.") from None
