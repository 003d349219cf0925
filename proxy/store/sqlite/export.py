"""Reads an SQLite store from end to end, table by table, for `scq-proxy copy`: under the file's lock, in one transaction that changes nothing."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proxy.core.emails import lane_key
from proxy.errors import StoreRefused
from proxy.store.queries import read_queries
from proxy.store.rows import TABLES, decode_visitor
from proxy.store.sqlite.file import StoreFile

_SQL = read_queries(Path(__file__).with_name("export.sql"))
_ELSE = {"after_key": "NULL"}  # columns that PostgreSQL has to itself

Row = tuple[Any, ...]


class Export:
    """A context manager. Raises `StoreRefused` when the file must not be used, or is in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = StoreFile(path, create=False)
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> "Export":
        self._file.take()
        try:
            self._connection = self._file.open()
            self._connection.execute("BEGIN IMMEDIATE")
            if self._query(_SQL["at_work"]).fetchone()[0]:
                raise StoreRefused(f"{self._path} was used meanwhile: stop the server, then copy again.")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._file.release()

    def counts(self) -> Mapping[str, int]:
        return {table: self._count(table) for table in TABLES}

    def _count(self, table: str) -> int:
        if table == "not_offered":
            return len(list(self.rows(table)))
        count: int = self._query(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - of TABLES
        return count

    def rows(self, table: str) -> Iterator[Row]:
        """Returns all rows of a table, in the columns of `TABLES`, read as they are asked for."""
        columns = ", ".join(_ELSE.get(column, column) for column in TABLES[table])
        rows = self._query(f"SELECT {columns} FROM {table} ORDER BY 1")  # noqa: S608 - of TABLES
        if table == "seen":
            return map(_with_key, rows)
        return iter(_with_names(rows)) if table == "not_offered" else iter(rows)

    def numbers(self) -> Mapping[str, int]:
        """Returns the highest number that was ever given to a row, by table."""
        return dict(self._query(_SQL["numbers"]))

    def _query(self, sql: str) -> sqlite3.Cursor:
        assert self._connection is not None  # noqa: S101 - it is a context manager
        return self._connection.execute(sql)


def _with_key(row: Row) -> Row:
    """Adds the lane key of the address that the browser had after it, by which PostgreSQL finds it for an erasure."""
    *columns, after, _ = row
    visitor = decode_visitor(after)
    return (*columns, after, lane_key(visitor.email) if visitor and visitor.email else None)


def _with_names(rows: sqlite3.Cursor) -> Sequence[Row]:
    """Replaces NUL, which PostgreSQL's texts do not hold. There are few of these names."""
    counts: dict[tuple[str, str], tuple[int, float]] = {}
    for setting, name, count, last in rows:
        named = setting, name.replace("\0", "\ufffd")
        before, latest = counts.get(named, (0, last))
        counts[named] = before + count, max(latest, last)
    return [(*named, *counted) for named, counted in counts.items()]
