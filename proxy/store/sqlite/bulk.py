"""Inserts many rows per statement: `executemany` releases and retakes the GIL for every row, which costs more than the row itself."""

import itertools
import re
import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Any

from proxy.store.sqlite.file import SQL

_CHUNKS = (32, 8)  # rows in a statement: few sizes, so that each is compiled once
_VALUES = re.compile(r"(?<=VALUES )\([?, ]+\)")


def insert_rows(connection: sqlite3.Connection, query: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Runs the query, a single-row INSERT, for all rows in order."""
    done = 0
    for size in _CHUNKS:
        while len(rows) - done >= size:
            chunk = rows[done : done + size]
            connection.execute(_repeated(query, size), list(itertools.chain.from_iterable(chunk)))
            done += size
    if done < len(rows):
        connection.executemany(SQL[query], rows[done:])


@cache
def _repeated(query: str, size: int) -> str:
    statement, count = _VALUES.subn(lambda row: ", ".join([row[0]] * size), SQL[query])
    if count != 1:
        raise ValueError(f"{query} does not insert one row of plain values")
    return statement
