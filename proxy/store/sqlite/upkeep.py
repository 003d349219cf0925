"""What an SQLite store needs besides transactions: checkpoints, room on the disk, pages given back; and the numbers about them.

Checkpoints are made here and not by SQLite, so that they come after the answers and that somebody notices when they do not get on. Nothing here
starts a thread: whoever writes to the file calls in between.
"""

from __future__ import annotations

import logging
import mmap
import os
import sqlite3
import statistics
import struct
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from proxy.errors import StoreUnavailable
from proxy.store.records import Health
from proxy.store.sqlite.damage import stores_set_aside
from proxy.store.sqlite.file import file_system, pragma

CHECKPOINT_FRAMES = 1_000  # pages in the log from which it is moved into the file, as in SQLite itself
ALARM_FRAMES = 8_000  # pages (32 MB) that a checkpoint could not move: something holds it up
LARGE_LOG_BYTES = 64 << 20  # a log that grew larger, in a burst, is cut when there is nothing else to do
SPARE_PAGES = 2_048  # free pages that stay in the file for what comes next
VACUUM_PAGES = 64  # given back at a time: a transaction must not get long
_SPACE_CHECK_SECONDS = 1.0
_FRAMES_AT, _MOVED_AT = 16, 96  # in the log's index, see sqlite.org/walformat.html: mxFrame, nBackfill

log = logging.getLogger("proxy.store")


class Upkeep:
    """`min_free_bytes`: disk space that ingest leaves alone. Numbers are written by the store's thread and read by any."""

    def __init__(self, path: Path, *, min_free_bytes: int) -> None:
        self.path = path
        self.commits, self.jobs, self.commit_seconds = 0, 0, 0.0
        self.failed_commits, self.reopened = 0, 0
        self._min_free_bytes = min_free_bytes
        self._headroom_bytes: int | None = None
        self._space_checked = float("-inf")
        self._index: int | None = None
        self._index_head: mmap.mmap | None = None
        self._frames = 0
        self._next_checkpoint = CHECKPOINT_FRAMES
        self._alarmed = False
        self._cut_due = False

    # --- space

    def require_space(self, *, at_once: bool = False) -> None:
        """Ingest stops while the disk still has room, because a full disk cannot even delete."""
        if self._is_short(at_once):
            raise StoreUnavailable(
                "The disk is nearly full: free some space, or lower SCQ_MIN_FREE_MB.", retry_after=30
            )

    def _is_short(self, at_once: bool = False) -> bool:
        headroom = self._headroom(at_once)
        return headroom is not None and headroom < 0

    def _headroom(self, at_once: bool = False) -> int | None:
        """Bytes above the floor; None if nobody can tell, because the place is gone: writing will show."""
        now = time.monotonic()
        if at_once or now - self._space_checked > _SPACE_CHECK_SECONDS:
            self._space_checked = now
            try:
                self._headroom_bytes = _free_bytes(self.path) - self._min_free_bytes
            except OSError:
                self._headroom_bytes = None
        return self._headroom_bytes

    def cut_log_soon(self) -> None:
        """After an erasure: what it removed from the file still stands in the log."""
        self._cut_due = True

    # --- on the store's thread

    def attach(self) -> None:
        """After the file was opened."""
        self._index = os.open(self.path.with_name(self.path.name + "-shm"), os.O_RDONLY | os.O_CLOEXEC)
        # Mapped, as SQLite itself does: a call to read it would hand the interpreter to the other thread at every commit.
        self._index_head = mmap.mmap(self._index, _MOVED_AT + 4, prot=mmap.PROT_READ)
        self._next_checkpoint = CHECKPOINT_FRAMES

    def detach(self) -> None:
        """After the file was closed, and not before: closing any descriptor of a file drops the locks that SQLite has on it."""
        if self._index_head is not None:
            self._index_head.close()
            self._index_head = None
        if self._index is not None:
            os.close(self._index)
            self._index = None

    def committed(self, jobs: int, seconds: float) -> None:
        self.commits += 1
        self.jobs += jobs
        self.commit_seconds += seconds

    def after_commit(self, connection: sqlite3.Connection) -> None:
        self._count_frames()
        if self._frames >= self._next_checkpoint:
            self.checkpoint(connection)

    def tick(self, connection: sqlite3.Connection, *, quiet: bool) -> None:
        """From time to time: what was put off, if it is quiet, and all that makes room, if the disk is nearly full."""
        self._count_frames()
        short = self._is_short()
        if short and pragma(connection, "freelist_count"):
            connection.executescript(f"PRAGMA incremental_vacuum({SPARE_PAGES})")
        if self._frames and not self._cut_due and (quiet or short):
            self.checkpoint(connection)
        elif self._cut_due:
            self._cut_log(connection)
            self._cut_due = bool(_size(self.path.with_name(self.path.name + "-wal")))
        elif quiet and _size(self.path.with_name(self.path.name + "-wal")) > (0 if short else LARGE_LOG_BYTES):
            self._cut_log(connection)

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        """Moves what it can from the log into the file; delays nobody."""
        _, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._frames = left = frames - moved
        self._next_checkpoint = left + CHECKPOINT_FRAMES
        if (left > ALARM_FRAMES) is self._alarmed:
            return
        self._alarmed = not self._alarmed
        if self._alarmed:
            log.error("%s", _held_up(left))
        else:
            log.warning("The write-ahead log is checkpointed again")

    def _cut_log(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA busy_timeout=0")  # a program that reads the store must not stop us
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute("PRAGMA busy_timeout=5000")

    def _count_frames(self) -> None:
        """From the head of the log's index, where SQLite keeps it: asking by a statement would make a checkpoint."""
        if self._index_head is not None:
            head = self._index_head[:]
            self._frames = max(0, _word(head, _FRAMES_AT) - _word(head, _MOVED_AT))

    # --- for people

    def health(self) -> Health:
        aside = stores_set_aside(self.path)
        return Health(
            self.commits,
            self.jobs,
            self.commit_seconds,
            self.failed_commits,
            self.reopened,
            self._frames,
            self._headroom(),
            len(aside),
            tuple(self._problems(aside)),
        )

    def _problems(self, aside: Iterable[str]) -> Iterable[str]:
        if self._is_short():
            yield "The disk is nearly full, and pushes are refused: free some space, or lower SCQ_MIN_FREE_MB."
        if self._alarmed:
            yield _held_up(self._frames)
        for name in aside:
            yield (
                f"{self.path.with_name(name)} was damaged and set aside: what waited in it is not sent. Check the disk; "
                "recover the file or remove it."
            )


def vacuum_step(connection: sqlite3.Connection) -> bool:
    """Gives some of the file's free pages back to the disk; whether there are more to give."""
    free = int(pragma(connection, "freelist_count"))
    for _ in range(min(free - SPARE_PAGES, VACUUM_PAGES)):
        connection.execute("PRAGMA incremental_vacuum(1)")  # sqlite3 steps such a statement once, which is one page
    # A file that somebody has vacuumed without auto_vacuum gives nothing back.
    return free - SPARE_PAGES > VACUUM_PAGES and int(pragma(connection, "freelist_count")) < free


def place_facts(path: Path) -> Mapping[str, str]:
    """What is known of the place where the store is; blocks for some syncs."""
    seconds = _sync_seconds(path.parent)
    return {
        "file": str(path),
        "file system": file_system(path),
        "free space": f"{_free_bytes(path) / 1e9:.1f} GB",
        "sync": f"{seconds * 1_000:.1f} ms" if seconds is not None else "not measured: the disk takes no more",
    }


def _sync_seconds(directory: Path) -> float | None:
    """How long the disk takes to make a page durable: the median of a few."""
    taken = []
    with suppress(OSError), tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(5):
            started = time.perf_counter()
            file.write(bytes(4_096))
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    return statistics.median(taken) if taken else None


def _held_up(frames: int) -> str:
    return (
        f"The write-ahead log holds {frames} pages that cannot be moved into the file, and grows: end the program that reads the "
        "store beside the server."
    )


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _word(head: bytes, offset: int) -> int:
    word: int = struct.unpack_from("=I", head, offset)[0]
    return word
