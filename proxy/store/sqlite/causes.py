"""Explains why a store failed: SQLite's message, which quotes no values, and the cause behind it, which SQLite does not name.

Checks file handles, inodes, disk space, memory and locks held by other processes, when the failure is logged. Changes nothing.
"""

import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from proxy.errors import StoreRefused, describe
from proxy.store.sqlite.damage import FileMoved, primary_code

_NO_MEMORY = "memory ran out: raise the memory limit of this process, or find out what uses it"
_NO_INODES = "the disk is out of inodes: delete files, however small"
_NO_SPACE = "the disk is full: free some space"
_LOCK_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PLACE_CODES = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)

# What SQLite locks in the log's index while it writes (sqlite.org/walformat.html, "WAL Locks"), and the lowest byte of what it locks in the file.
_WRITE_LOCK = 120
_FILE_LOCKS = 0x40000000


def explain(error: Exception | None, path: Path) -> str:
    """Returns why the store at the path failed. A defect is described by type and place only, because its message may quote payload."""
    if error is None:
        return "unknown"
    said = str(error) if isinstance(error, (sqlite3.Error, StoreRefused, FileMoved)) else describe(error)
    cause = _cause(error, path)
    return f"{said}: {cause}" if cause else said


def _cause(error: Exception, path: Path) -> str | None:
    code = primary_code(error)
    if code in _LOCK_CODES:
        return f"it is locked by {locked_by(path)}"
    if code == sqlite3.SQLITE_NOMEM or isinstance(error, MemoryError):
        return _NO_MEMORY
    if code in _PLACE_CODES or (
        isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOSPC)
    ):
        return what_is_missing(path)
    return None


def what_is_missing(path: Path) -> str | None:
    """Returns the exhausted resource that keeps a program from creating or writing a file there now, None if there is none."""
    try:
        os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENFILE:
            return "the machine is out of file handles: stop other programs, or raise fs.file-max"
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"this process has used all its {most} file handles: raise its limit (LimitNOFILE of systemd, ulimit -n)"
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return None
    if disk.f_files and not disk.f_favail:
        return _NO_INODES
    return None if disk.f_bavail else _NO_SPACE


def locked_by(path: Path) -> str:
    """Returns which other process writes to the file, or keeps others from writing to it: `sqlite3 (process 4711)`."""
    places = [(path, _FILE_LOCKS, 1 << 62), (path.with_name(path.name + "-shm"), _WRITE_LOCK, _WRITE_LOCK)]
    inodes = {file.stat().st_ino: (low, high) for file, low, high in places if file.exists()}
    found = {pid for pid, inode, first, last in _write_locks() if _overlap(inodes.get(inode), first, last)}
    return " and ".join(map(_named, sorted(found - {os.getpid()}))) or "another program"


def _overlap(place: tuple[int, int] | None, first: int, last: int) -> bool:
    return place is not None and first <= place[1] and last >= place[0]


def _write_locks() -> Iterator[tuple[int, int, int, int]]:
    """Yields process, inode, first and last byte of each exclusive lock that is held; nothing if the kernel does not list locks."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, *words = line.split()
        if len(words) == 7 and words[2] == "WRITE":  # one that waits has an arrow in front
            pid, place, first, last = words[3:]
            yield int(pid), int(place.rpartition(":")[2]), int(first), (1 << 62) if last == "EOF" else int(last)


def _named(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "another program"  # of another container
    return f"{ascii(name)[1:-1]} (process {pid})"
