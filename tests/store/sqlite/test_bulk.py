"""Rows inserted many at a time: all of them, in their order, and each with its conflict clause."""

from __future__ import annotations

import sqlite3

import pytest

from proxy.store.sqlite.bulk import insert_rows
from proxy.store.sqlite.file import SCHEMA_STEPS


@pytest.fixture
def connection() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA_STEPS[0])
    return connection


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 31, 32, 33, 39, 40, 41, 64, 107])
def test_all_rows_are_inserted_in_their_order(connection: sqlite3.Connection, count: int) -> None:
    rows = [(f"visitor-{number % 3}", f"id-{number}", b"body %d" % number, number / 2) for number in range(count)]
    insert_rows(connection, "hold", rows)
    assert connection.execute("SELECT visitor, id, body, since FROM held ORDER BY seq").fetchall() == rows


def test_what_is_there_already_stays_whether_before_or_among_the_rows(connection: sqlite3.Connection) -> None:
    insert_rows(connection, "remember", [("id-5", 1.0, "first", None)])
    insert_rows(connection, "remember", [(f"id-{number % 20}", 2.0, f"shown-{number}", None) for number in range(40)])
    found = dict(connection.execute("SELECT id, shown FROM seen"))
    assert found == {f"id-{number}": f"shown-{number}" for number in range(20)} | {"id-5": "first"}


def test_only_an_insert_of_one_row_of_plain_values_is_repeated(connection: sqlite3.Connection) -> None:
    with pytest.raises(ValueError, match="not_offered does not insert one row"):
        insert_rows(connection, "not_offered", [("SCQ_TAGS", "a", 1, 1.0, 10)] * 8)
