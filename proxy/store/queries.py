"""Reads the SQL files of an adapter: its queries by name, and the steps of its schema in order."""

from collections.abc import Mapping
from pathlib import Path
from typing import LiteralString

_NAME = "-- name: "


def read_queries(file: Path, placeholders: Mapping[str, str] | None = None) -> dict[str, LiteralString]:
    """Returns the queries of a file by the name in the comment above each, without comments.

    `placeholders`: text to be replaced, and what replaces it. Both come from this package, so the result is as literal as the file.
    """
    text = file.read_text(encoding="utf-8")
    for placeholder, replacement in (placeholders or {}).items():
        text = text.replace(placeholder, replacement)
    parts = [part.partition("\n") for part in text.split(_NAME)[1:]]
    return {name.strip(): _without_comments(query) for name, _, query in parts}


def read_steps(folder: Path) -> tuple[LiteralString, ...]:
    """Returns the steps of a schema in the order of their numbers: 001.sql, 002.sql and so on."""
    return tuple(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.sql")))


def _without_comments(sql: str) -> str:
    lines = (line for line in sql.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip()
