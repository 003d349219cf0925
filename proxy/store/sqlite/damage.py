"""Says what a failure of SQLite means, in one table; finds damage in a file, and sets a damaged one aside.

Repairs nothing and deletes nothing: a damaged file keeps its content, under a dated name, for anybody who wants to look.
"""

import os
import re
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from errno import EIO
from glob import escape
from pathlib import Path
from typing import Any

CHECKED_BYTES = 1 << 30  # a larger file is not checked: that would take longer than visitors wait
_PAGE_BYTES = 4_096
_WAL_MAGIC = (0x377F0682, 0x377F0683)
_WAL_HEADER, _FRAME_HEADER = 32, 24


class Damaged(Exception):
    """The file is ours and cannot be trusted. The message says what was found."""


class Unchecked(Damaged):
    """SQLite reported damage, in a file that is too large to be checked."""


class FileMoved(Exception):
    """What is open is no longer what stands at the path: it was deleted or replaced."""


class Remedy(Enum):
    FAIL = "the jobs of this transaction fail; nothing is wrong with the file"
    MAKE_ROOM = "they fail, and the log is checkpointed, so that its space can be used again"
    WAIT = "they fail together, because another program has locked the file; only the first of them wait for the lock"
    REOPEN = "they fail, and the file is closed, checked and opened again"
    SUSPECT = "the same, and unless the check clears the file it is set aside"


_REMEDIES = {
    sqlite3.SQLITE_FULL: Remedy.MAKE_ROOM,
    sqlite3.SQLITE_BUSY: Remedy.WAIT,
    sqlite3.SQLITE_LOCKED: Remedy.WAIT,
    sqlite3.SQLITE_IOERR: Remedy.REOPEN,
    sqlite3.SQLITE_CANTOPEN: Remedy.REOPEN,
    sqlite3.SQLITE_READONLY: Remedy.REOPEN,  # a disk with errors is remounted read-only
    sqlite3.SQLITE_PERM: Remedy.REOPEN,
    sqlite3.SQLITE_PROTOCOL: Remedy.REOPEN,
    sqlite3.SQLITE_CORRUPT: Remedy.SUSPECT,
    sqlite3.SQLITE_NOTADB: Remedy.SUSPECT,
}


def remedy_for(error: Exception) -> Remedy:
    """Returns FAIL for what is not in the table: a defect, or one statement's own trouble."""
    if isinstance(error, FileMoved | MemoryError):  # closing the file frees SQLite's memory
        return Remedy.REOPEN
    return _REMEDIES.get(primary_code(error), Remedy.FAIL)


def primary_code(error: Exception) -> int:
    """Returns SQLite's result code without its extension; 0 for an error that is not SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def require_sound(connection: sqlite3.Connection, *, suspect: bool, checked_bytes: int) -> None:
    """Raises `Damaged` if the check finds something, or cannot clear a file of which SQLite has said that it is malformed."""
    size = pragma(connection, "page_count") * pragma(connection, "page_size")
    if size > checked_bytes:
        if suspect:
            raise Unchecked("SQLite reports it as malformed, and it is too large to be checked now")
        return
    # An integrity check also compares the indexes with their tables; quick_check reads every page.
    found = pragma(connection, "integrity_check(1)" if suspect else "quick_check(1)")
    if found == "ok":
        return
    for code in map(int, re.findall(r"error code[ =]+(\d+)", str(found))):
        if code & 0xFF == sqlite3.SQLITE_NOMEM:  # it was the check that failed
            raise MemoryError
        if code & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise OSError(EIO, f"{os.strerror(EIO)}: SQLite's check met error {code}")
    raise Damaged(f"the check says: {' '.join(str(found).split())}")


def read_plainly(path: Path, most_bytes: int) -> int:
    """Reads a file of at most `most_bytes` from end to end; returns its checksum. An OSError is a fault of the disk, not damaged content.

    Call it only while SQLite has the file closed: closing any descriptor of a file drops the locks that SQLite holds on it.
    """
    checksum = 0
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= most_bytes:
            while page := file.read(_PAGE_BYTES):  # page by page, as SQLite does: what fails there fails here
                checksum = zlib.crc32(page, checksum)
    return checksum


def forget_cached(path: Path) -> None:
    """Drops the file from the page cache, so that the next read comes from the disk. SQLite must have it closed."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_failed_io(error: Exception) -> bool:
    """Returns whether the error is a failed read or write, which may succeed on a retry."""
    return primary_code(error) == sqlite3.SQLITE_IOERR or getattr(error, "errno", None) == EIO


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def unreadable_commits(wal: Path, readable_frames: int) -> int:
    """Returns the number of commits in this log behind the frames that SQLite could read.

    A crash leaves one: the transaction that was being written, which was not acknowledged. Each commit is synced before the next
    begins, so two or more mean damage, and that acknowledged pushes are lost. See sqlite.org/fileformat2.html, "The Write-Ahead Log".
    """
    try:
        with wal.open("rb") as file:
            header = file.read(_WAL_HEADER)
            size = os.fstat(file.fileno()).st_size
            if len(header) < _WAL_HEADER:
                return 0
            step = _FRAME_HEADER + struct.unpack_from(">I", header, 8)[0]
            salts = header[16:24]
            if not _is_sound_header(header):
                file.seek(_WAL_HEADER)
                step, salts = _FRAME_HEADER + 4_096, file.read(_FRAME_HEADER)[8:16]
            count = 0
            for offset in range(_WAL_HEADER + readable_frames * step, size - step + 1, step):
                file.seek(offset)
                frame = file.read(_FRAME_HEADER)
                if frame[8:16] == salts and frame[4:8] != b"\0\0\0\0":  # the size of the database: set in a commit only
                    count += 1
    except FileNotFoundError:
        return 0
    return count


def _is_sound_header(header: bytes) -> bool:
    magic, version, page_size = struct.unpack_from(">III", header)
    if magic not in _WAL_MAGIC or version != 3_007_000 or not 512 <= page_size <= 65_536:
        return False
    words = struct.unpack_from(("<" if magic == _WAL_MAGIC[0] else ">") + "6I", header)
    first = second = 0
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack_from(">II", header, 24)


def set_aside(path: Path, parts: Sequence[str] = ("", "-wal", "-shm")) -> Path:
    """Renames the file and those of its -wal and -shm that exist; returns the new path of the file. Raises OSError."""
    aside = _dated(path)
    for suffix in parts:
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    _sync_directory(path.parent)
    return aside


def keep_copy_of_wal(path: Path) -> Path:
    """Copies a log that SQLite will overwrite; returns the path of the copy. Raises OSError."""
    copy = _dated(path)
    copy = copy.with_name(copy.name + "-wal")
    with os.fdopen(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as target:
        with path.with_name(path.name + "-wal").open("rb") as source:
            shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())
    return copy


def stores_set_aside(path: Path) -> tuple[str, ...]:
    """Returns the names of the stores that were set aside beside this one and are still there."""
    try:
        names = [found.name for found in path.parent.glob(f"{escape(path.name)}.corrupt-*")]
    except OSError:
        return ()  # out of file handles, perhaps: reading the store's state must not fail because of it
    return tuple(sorted({name.removesuffix("-wal").removesuffix("-shm") for name in names}))


def _dated(path: Path) -> Path:
    """Returns a path that is not taken: scq.db.corrupt-20261121T031500Z."""
    stamp = f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    taken, number, name = stores_set_aside(path), 1, stamp
    while name in taken:
        number += 1
        name = f"{stamp}-{number}"
    return path.with_name(name)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
