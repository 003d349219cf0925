"""`scq-proxy migrate`, and commands on a store whose client is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import scq


def test_an_sqlite_store_needs_no_migration(tmp_path: Path) -> None:
    said = scq("migrate", cwd=tmp_path, SCQ_STORE="sqlite:///scq.db")
    assert (said.code, list(tmp_path.iterdir())) == (0, [])
    assert "scq-proxy serve brings it up to date" in said.out


@pytest.mark.parametrize("arguments", [["migrate"], ["status"], ["dead", "list"], ["erase", "ann@example.com"]])
def test_a_client_that_is_not_installed_is_named(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available')")
    given = {"SCQ_STORE": "postgresql://scq:~hush~@127.0.0.1:1/scq", "PYTHONPATH": str(tmp_path)}
    said = scq(*arguments, cwd=tmp_path, **given)
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "Store: PostgreSQL at 127.0.0.1:1/scq\n"
        "PostgreSQL needs a client that is not installed: pip install 'scq-proxy[postgres]'.\n"
    )
