"""SQL files: queries found by name, schema steps in order, and each query in the section of a module that uses it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import proxy.store
from proxy.store.queries import read_queries, read_steps

STORE = Path(proxy.store.__file__).parent
ADAPTERS = ("sqlite", "postgres")
SECTION, NAME = "-- ──── ", "-- name: "


def test_a_query_is_found_by_name_and_without_comments(tmp_path: Path) -> None:
    (tmp_path / "queries.sql").write_text(
        "-- About the file.\n\n-- ──── leases\n\n-- name: one\n-- Why.\nSELECT 1\nFROM a;\n\n-- ──── reads\n\n-- name: two\nSELECT 2;\n"
    )
    assert read_queries(tmp_path / "queries.sql") == {"one": "SELECT 1\nFROM a;", "two": "SELECT 2;"}


def test_a_placeholder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "queries.sql").write_text("-- name: clock\nSELECT {now};\n")
    assert read_queries(tmp_path / "queries.sql", {"{now}": "now()"}) == {"clock": "SELECT now();"}


def test_steps_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"{number:03}.sql").write_text(str(number))
    assert read_steps(tmp_path) == ("1", "2", "10")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_steps_of_a_schema_have_no_gaps(adapter: str) -> None:
    names = sorted(path.name for path in (STORE / adapter / "schema").iterdir())
    assert names == [f"{number:03}.sql" for number in range(1, len(names) + 1)]
    assert names


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_query_stands_once_in_the_section_of_a_module_that_uses_it(adapter: str) -> None:
    text = (STORE / adapter / "queries.sql").read_text(encoding="utf-8")
    names = re.findall(rf"^{NAME}(\S+)$", text, re.MULTILINE)
    assert len(names) == len(set(names))
    _, *sections = text.split(SECTION)
    misplaced = []
    for section in sections:
        module, _, queries = section.partition("\n")
        code = (STORE / adapter / f"{module}.py").read_text(encoding="utf-8")
        placed = re.findall(rf"^{NAME}(\S+)$", queries, re.MULTILINE)
        misplaced += [name for name in placed if not re.search(rf"[\"']{name}[\"']", code)]
        names = [name for name in names if name not in placed]
    assert (misplaced, names) == ([], [])
