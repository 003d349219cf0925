"""An SQLite store read from end to end, table by table, for `scq-proxy copy`; the queries are in `export.sql`.

It is read under the file's lock, in one transaction, and nothing in it is changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from proxy.core.emails import lane_key
from proxy.core.visitors import Visitor
from proxy.errors import StoreRefused
from proxy.store.queries import read_queries
from proxy.store.sqlite.file import StoreFile

_SQL = read_queries(Path(__file__).with_name("export.sql"))
TABLES = tuple(name for name in _SQL if name not in ("at_work", "numbers"))

Row = tuple[Any, ...]


class Export:
    """Use as a context manager. Raises `StoreRefused` when the file must not be used, or is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = StoreFile(path, create=False)
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Export:
        self._file.take()
        try:
            self._connection = self._file.open()
            self._connection.execute("BEGIN IMMEDIATE")
            if self._one("at_work")[0][0]:
                raise StoreRefused(f"{self._path} was used meanwhile: stop the server, then copy again.")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._file.release()

    def counts(self) -> Mapping[str, int]:
        """How many rows `rows` gives of each table."""
        return {table: self._count(table) for table in TABLES}

    def _count(self, table: str) -> int:
        if table == "not_offered":
            return len(list(self.rows(table)))
        count: int = self._query(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - of TABLES
        return count

    def rows(self, table: str) -> Iterator[Row]:
        """All rows of a table, read as they are asked for."""
        rows = self._query(_SQL[table])
        if table == "seen":
            return map(_with_key, rows)
        return iter(_with_names(rows)) if table == "not_offered" else iter(rows)

    def numbers(self) -> Mapping[str, int]:
        """By table, the highest number that was ever given to a row of it."""
        return dict(self._one("numbers"))

    def _one(self, name: str) -> Sequence[Row]:
        return self._query(_SQL[name]).fetchall()

    def _query(self, sql: str) -> sqlite3.Cursor:
        assert self._connection is not None  # noqa: S101 - it is a context manager
        return self._connection.execute(sql)


def _with_key(row: Row) -> Row:
    """With the lane key of the address that the browser had after it, by which PostgreSQL finds it for an erasure."""
    *columns, after, _ = row
    email = msgspec.json.decode(after, type=Visitor).email if after is not None else None
    return (*columns, after, lane_key(email) if email else None)


def _with_names(rows: sqlite3.Cursor) -> Sequence[Row]:
    """Without NUL, which PostgreSQL's texts do not hold. There are few of them."""
    counts: dict[tuple[str, str], tuple[int, float]] = {}
    for setting, name, count, last in rows:
        named = setting, name.replace("\0", "\ufffd")
        before, latest = counts.get(named, (0, last))
        counts[named] = before + count, max(latest, last)
    return [(*named, *counted) for named, counted in counts.items()]
