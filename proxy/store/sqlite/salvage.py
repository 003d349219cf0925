"""Copies the readable rows of a store that was set aside into a clean one. Works on a private copy, so that the file stays unchanged.

Pages that the disk cannot read become zeros in the copy, where SQLite reports damage. Unreadable rows are skipped and counted. Decides nothing
about the rows: `adoption` does.
"""

import hashlib
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from proxy.core.emails import lane_key
from proxy.errors import StoreRefused
from proxy.store.rows import DEAD, HOLDING, WAITING, decode_body, decode_visitor
from proxy.store.sqlite.causes import explain
from proxy.store.sqlite.damage import Remedy, pragma, remedy_for, unreadable_commits
from proxy.store.sqlite.file import MAGIC, SCHEMA_STEPS, is_ours, require_not_in_use, wal_path

STEP_ROWS = 500
_CHUNK_BYTES, _PAGE_BYTES = 1 << 20, 4_096
_HEADER_BYTES = 100
_MOST_PAGES = 1 << 24  # 64 GB: a larger size comes from a damaged header
_BEYOND = 1 << 40  # above every row number
_LAST_KEY = b"\xff" * 64  # sorts after all texts and hashes
_PATIENCE = 10_000  # failed reads of one table, after which the smallest range that is split doubles

Row = tuple[Any, ...]


class _Table(NamedTuple):
    """`columns`: the key first. `check`: raises for a row whose content is not whole."""

    columns: str
    check: Callable[[Row], object]


_NUMBERED = {
    "lanes": _Table("id, key, address, verified, put_off", lambda row: lane_key(row[1])),
    "pushes": _Table(
        "seq, lane, id, address, trust, kind, body, since, attempts, increments, started",
        lambda row: (decode_body(row[5], row[6]), lane_key(row[3]), float(row[7])),
    ),
    "held": _Table("seq, visitor, id, body, since", lambda row: (decode_body("track", row[3]), float(row[4]))),
    "dead": _Table(
        "seq, lane, id, address, trust, kind, body, since, attempts, reason, detail, at, key",
        lambda row: (decode_body(row[5], row[6]), lane_key(row[3]), float(row[7]), float(row[11])),
    ),
}
_NAMED = {
    "seen": _Table("id, at, shown, after", lambda row: (decode_visitor(row[3]), float(row[1]))),
    "visitors": _Table("id, at, retired, identified, person, shown, shown_by", lambda row: float(row[1])),
    "aliases": _Table("key, lane, at", lambda row: (lane_key(row[0]), float(row[2]))),
    "tombstones": _Table("hash, at", lambda row: float(row[1])),
    "erasures": _Table("key, at", lambda row: float(row[1])),
    "counters": _Table("name, value", lambda row: int(row[1])),
    "meta": _Table("name, value", lambda row: bytes(row[1])),
}
_MISSING = f"""
WITH kept (name, found) AS (
  SELECT '{WAITING}', count(*) FROM pushes UNION ALL SELECT '{HOLDING}', count(*) FROM held UNION ALL SELECT '{DEAD}', count(*) FROM dead
)
SELECT coalesce(sum(max(0, value - found)), 0), count(*) = 3 FROM kept JOIN counters USING (name)
"""  # noqa: S608 - names of counters
_MEND = """
INSERT OR IGNORE INTO lanes (key, put_off) SELECT lane_key(address), 1 FROM pushes WHERE lane NOT IN (SELECT id FROM lanes);
INSERT OR IGNORE INTO lanes (key) SELECT lane_key(address) FROM dead WHERE lane NOT IN (SELECT id FROM lanes);
UPDATE pushes SET lane = (SELECT id FROM lanes WHERE key = lane_key(address)) WHERE lane NOT IN (SELECT id FROM lanes);
UPDATE dead SET lane = (SELECT id FROM lanes WHERE key = lane_key(address)) WHERE lane NOT IN (SELECT id FROM lanes);
"""


class Salvage:
    """The readable rows of `file`, once `steps` is exhausted. `work`: a directory for this alone, which `close` removes.

    `digest`: of the file and its log. `whole`: everything was readable. `missing`: the number of unreadable pushes, None if the counters
    were unreadable too. Use from one thread at a time.
    """

    def __init__(self, file: Path, work: Path) -> None:
        self._file, self._work = file.resolve(), work
        self.digest = b""
        self.whole = True
        self.missing: int | None = 0
        self._damaged: sqlite3.Connection | None = None
        self._clean: sqlite3.Connection | None = None

    def steps(self) -> Iterator[None]:
        """Does all the work, yielding now and then. Raises `StoreRefused` if the file is not a store that can be recovered."""
        try:
            yield from self._steps()
        except (OSError, sqlite3.Error) as error:
            reason = explain(error, self._work) if isinstance(error, sqlite3.Error) else error.strerror
            raise StoreRefused(f"{self._file} cannot be recovered now, and nothing was changed: {reason}.") from None

    def _steps(self) -> Iterator[None]:
        require_not_in_use(self._file)
        sources = [path for path in (self._file, wal_path(self._file)) if path.exists()]
        if not sources:
            raise StoreRefused(f"There is no store at {self._file}. scq-proxy status names those that were set aside.")
        self.close()
        self._require_room(sum(path.stat().st_size for path in sources))
        self._work.mkdir(mode=0o700)
        yield from self._copy(sources)
        self._damaged = self._open_copy()
        self._clean = _new_store(self._work / "clean.db")
        for tables, read in ((_NUMBERED, self._by_number), (_NAMED, self._by_name)):
            for name, table in tables.items():
                for rows in read(name, table.columns):
                    self._keep(name, table, rows)
                    yield
        self._count_missing()
        self._clean.executescript(_MEND)

    def rows(self, query: str, *arguments: object) -> list[Row]:
        assert self._clean is not None  # noqa: S101 - after `steps`
        return self._clean.execute(query, arguments).fetchall()

    def close(self) -> None:
        for connection in (self._damaged, self._clean):
            if connection is not None:
                connection.close()
        self._damaged = self._clean = None
        shutil.rmtree(self._work, ignore_errors=True)

    # --- the copy

    def _require_room(self, size: int) -> None:
        needed = 3 * size + (4 << 20)
        if shutil.disk_usage(self._work.parent).free < needed:
            raise StoreRefused(f"This needs {needed >> 20} MB beside the store while it runs. Free some space.")

    def _copy(self, sources: list[Path]) -> Iterator[None]:
        digest = hashlib.sha256()
        for source in sources:
            target = self._work / source.name.replace(self._file.name, "copy.db")
            with source.open("rb", buffering=0) as read, target.open("wb") as write:
                for offset in range(0, os.fstat(read.fileno()).st_size, _CHUNK_BYTES):
                    chunk = _chunk(read, offset)
                    digest.update(chunk)
                    write.write(chunk)
                    yield
        self.digest = digest.digest()

    def _open_copy(self) -> sqlite3.Connection:
        path = self._work / "copy.db"
        path.touch()
        with path.open("r+b") as file:
            header = file.read(_HEADER_BYTES)
            if header and not header.startswith(MAGIC):
                file.seek(0)
                file.write(MAGIC)
            file.truncate(max(path.stat().st_size, _whole_size(header)))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.create_function("lane_key", 1, lane_key, deterministic=True)
            connection.execute("PRAGMA writable_schema=ON")  # so that SQLite reads a file that is cut off
            if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] or not is_ours(connection):
                raise StoreRefused(f"{self._file} is not a store of scq-proxy, and nothing was changed.")
            version = pragma(connection, "user_version")
            if version > len(SCHEMA_STEPS):
                raise StoreRefused(f"{self._file} was written by a newer scq-proxy. Install that version.")
            self.whole = _bring_up_to_date(connection, version)
            _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            lost = unreadable_commits(wal_path(path), max(frames, 0))
            self.whole = self.whole and lost < 2  # one was being written
        except sqlite3.Error as error:
            connection.close()
            raise StoreRefused(f"Nothing in {self._file} can be read ({error}).") from None
        except BaseException:
            connection.close()
            raise
        return connection

    # --- its rows

    def _by_number(self, table: str, columns: str) -> Iterator[list[Row]]:
        """Reads a table by row number, bisecting each range that fails until the readable rows are separated from the rest."""
        key = columns.partition(",")[0]
        query = (
            f"SELECT {columns} FROM {table} NOT INDEXED WHERE {key} BETWEEN ? AND ? ORDER BY {key} LIMIT {STEP_ROWS}"  # noqa: S608 - of _NUMBERED
        )
        stretches, narrowest, successes, failures = [(0, _BEYOND)], 1, 0, 0
        while stretches:
            low, high = stretches.pop()
            rows = self._read(query, low, high)
            if rows is not None:
                successes += 1
            elif not successes and failures > _PATIENCE:
                return  # not even the inner pages of the tree can be read
            if rows is None:
                failures += 1
                narrowest *= 1 + (failures % _PATIENCE == 0)
                middle = (low + high) // 2
                stretches += [(middle + 1, high), (low, middle)] if high - low >= narrowest else []
                rows = []
            elif len(rows) == STEP_ROWS:
                stretches.append((rows[-1][0] + 1, high))
            yield rows

    def _by_name(self, table: str, columns: str) -> Iterator[list[Row]]:
        """Reads a table from its first key forward and, if something in between is unreadable, from its last key backward."""
        key = columns.partition(",")[0]
        low: Any = ""
        high: Any = _LAST_KEY
        for order in ("ASC", "DESC"):
            query = f"SELECT {columns} FROM {table} WHERE {key} > ? AND {key} < ? ORDER BY {key} {order} LIMIT ?"  # noqa: S608 - of _NAMED
            step = STEP_ROWS
            while step:
                rows = self._read(query, low, high, step)
                if rows == []:
                    return
                if rows is None:
                    step //= 2
                    continue
                yield rows
                low, high = (rows[-1][0], high) if order == "ASC" else (low, rows[-1][0])

    def _read(self, query: str, *arguments: object) -> list[Row] | None:
        assert self._damaged is not None  # noqa: S101 - `steps` has opened it
        try:
            return self._damaged.execute(query, arguments).fetchall()
        except sqlite3.Error:
            self.whole = False
            return None

    def _keep(self, name: str, table: _Table, rows: list[Row]) -> None:
        assert self._clean is not None  # noqa: S101 - `steps` has opened it
        sound = [row for row in rows if _is_sound(table, row)]
        self.whole = self.whole and len(sound) == len(rows)
        marks = ", ".join("?" * len(table.columns.split(",")))
        self._clean.executemany(f"INSERT OR IGNORE INTO {name} ({table.columns}) VALUES ({marks})", sound)  # noqa: S608 - of _NUMBERED and _NAMED

    def _count_missing(self) -> None:
        ((missing, told),) = self.rows(_MISSING)
        self.missing = missing if told or self.whole else None
        self.whole = self.whole and not missing


def _whole_size(header: bytes) -> int:
    """Returns the size in SQLite's header, as the file may be truncated. One page for an empty file, or SQLite would delete its log."""
    if len(header) < _HEADER_BYTES:
        return _PAGE_BYTES
    page_bytes, pages = struct.unpack_from(">H10xI", header, 16)
    return int(pages * page_bytes) if pages < _MOST_PAGES else 0


def _chunk(file: BinaryIO | Any, offset: int) -> bytes:
    """Returns a chunk of the file, with zeros where the disk cannot read it."""
    size = min(_CHUNK_BYTES, os.fstat(file.fileno()).st_size - offset)
    with suppress(OSError):
        return _exactly(os.pread(file.fileno(), size, offset), size)
    pages = []
    for at in range(offset, offset + size, _PAGE_BYTES):
        length = min(_PAGE_BYTES, offset + size - at)
        page = b""
        for _ in range(3):
            with suppress(OSError):
                page = os.pread(file.fileno(), length, at)
                break
        pages.append(_exactly(page, length))
    return b"".join(pages)


def _exactly(content: bytes, size: int) -> bytes:
    return content + bytes(size - len(content))


def _is_sound(table: _Table, row: Row) -> bool:
    try:
        table.check(row)
    except (msgspec.DecodeError, ValueError, TypeError, AttributeError, RecursionError):
        return False
    return isinstance(row[0], (int, str, bytes))


def _bring_up_to_date(connection: sqlite3.Connection, version: int) -> bool:
    """Runs the steps of the schema that a damaged copy has not seen, as far as it can be read; returns whether all of it could."""
    whole, statement = True, ""
    for line in "\n".join(SCHEMA_STEPS[version:]).splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            try:
                connection.execute(statement)
            except sqlite3.DatabaseError as error:
                if remedy_for(error) is not Remedy.SUSPECT:
                    raise
                whole = False
            statement = ""
    return whole


def _new_store(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.create_function("lane_key", 1, lane_key, deterministic=True)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    for step in SCHEMA_STEPS:
        connection.executescript(step)
    connection.execute("DELETE FROM counters")  # only those read from the file count
    return connection
