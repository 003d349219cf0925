"""Keeps an SQLite store in order besides transactions: checkpoints, disk space, free pages given back; and the numbers about them.

Checkpoints are made here and not by SQLite, so that they come after the answers and that a checkpoint held up is noticed. Starts no thread:
the one that writes to the file calls between transactions.
"""

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

import msgspec

from proxy.errors import StoreUnavailable
from proxy.store.records import Counts, Health
from proxy.store.sqlite.damage import pragma, stores_set_aside
from proxy.store.sqlite.file import file_system, wal_path

CHECKPOINT_FRAMES = 1_000  # pages in the log from which it is moved into the file, as in SQLite itself
ALARM_FRAMES = 8_000  # pages (32 MB) that a checkpoint could not move: something holds it up
LARGE_LOG_BYTES = 64 << 20  # a larger log, after a burst or a long-running reader, is truncated once it is checkpointed
SPARE_PAGES = 2_048  # free pages that stay in the file for what comes next
VACUUM_PAGES = 64  # given back at a time: a transaction must not get long
_TICK_SECONDS = 1.0  # between rounds; also without a write, until the store counts as quiet
_SPACE_CHECK_SECONDS = 1.0
_HEAD = struct.Struct("=16xI76xI")  # of the log's index: mxFrame and nBackfill, see sqlite.org/walformat.html

_CLOCK_DOUBTED = (
    "The machine's clock is more than three days off the last removal of old records, so none are removed. Check the clock; if it is right, "
    "removal resumes after a day."
)

log = logging.getLogger("proxy.store")


class Space:
    """The disk space above the floor that ingest leaves alone, looked up once a second. Any thread may ask."""

    def __init__(self, path: Path, *, min_free_bytes: int) -> None:
        self._path, self._min_free_bytes = path, min_free_bytes
        self._headroom_bytes: int | None = None
        self._checked = float("-inf")

    def headroom_bytes(self, *, at_once: bool = False) -> int | None:
        """Returns None if the place is gone and nobody can tell: writing will show."""
        now = time.monotonic()
        if at_once or now - self._checked > _SPACE_CHECK_SECONDS:
            self._checked = now
            try:
                self._headroom_bytes = _free_bytes(self._path) - self._min_free_bytes
            except OSError:
                self._headroom_bytes = None
        return self._headroom_bytes

    def is_short(self) -> bool:
        return (self.headroom_bytes() or 0) < 0


class LogIndex:
    """Reads the head of the log's index, where SQLite counts frames: asking by a statement would make a checkpoint."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path.with_name(path.name + "-shm"), os.O_RDONLY | os.O_CLOEXEC)
        # Mapped, as SQLite itself does: a call to read it would hand the interpreter to the other thread at every commit.
        self._head = mmap.mmap(self._descriptor, _HEAD.size, prot=mmap.PROT_READ)

    def frames(self) -> int:
        written, moved = _HEAD.unpack_from(self._head)
        left: int = written - moved
        return max(0, left)

    def close(self) -> None:
        """Only after the file was closed: closing any descriptor of a file drops the locks that SQLite has on it."""
        self._head.close()
        os.close(self._descriptor)


class Upkeep:
    """`min_free_bytes`: disk space that ingest leaves alone. `counts`: written by the store's thread, read by any."""

    def __init__(self, path: Path, *, min_free_bytes: int) -> None:
        self.path = path
        self.counts = Counts()
        self.adopted: frozenset[str] = frozenset()  # names of stores that were set aside and have been recovered
        self.clock_doubted: float | None = None  # since when, in monotonic seconds
        self._space = Space(path, min_free_bytes=min_free_bytes)
        self._index: LogIndex | None = None
        self._frames = 0
        self._next_checkpoint = CHECKPOINT_FRAMES
        self._alarmed = False
        self._cut_due = False
        self._written = self._ticked = float("-inf")  # when something was last written, and the last round made

    # --- on any thread

    def require_space(self, *, at_once: bool = False) -> None:
        """Raises `StoreUnavailable` while the disk still has room, because a full disk cannot even delete."""
        headroom = self._space.headroom_bytes(at_once=at_once)
        if headroom is not None and headroom < 0:
            sentence = "The disk is nearly full: free some space, or lower SCQ_MIN_FREE_MB."
            raise StoreUnavailable(sentence, retry_after=30)

    def headroom_bytes(self) -> int | None:
        """Returns the disk space above the floor, None if nobody can tell."""
        return self._space.headroom_bytes()

    def cut_log_soon(self) -> None:
        """Called after an erasure: what it removed from the file still stands in the log."""
        self._cut_due = True

    # --- on the store's thread

    def doubt_clock(self) -> None:
        if self.clock_doubted is None:
            self.clock_doubted = time.monotonic()
            log.error("%s", _CLOCK_DOUBTED)

    def trust_clock(self) -> None:
        if self.clock_doubted is not None:
            self.clock_doubted = None
            log.warning("The machine's clock is trusted again, and old records are removed")

    def attach(self) -> None:
        self._index = LogIndex(self.path)
        self._next_checkpoint = CHECKPOINT_FRAMES

    def detach(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    def committed(self, jobs: int, started: float) -> None:
        self._written = now = time.monotonic()
        self.counts.commits += 1
        self.counts.jobs += jobs
        self.counts.commit_seconds += now - started

    def after_commit(self, connection: sqlite3.Connection, *, urgent: bool = False) -> None:
        if self._index is not None:
            self._frames = self._index.frames()
        if urgent or self._frames >= self._next_checkpoint:
            self.checkpoint(connection)

    def is_due(self) -> bool:
        return time.monotonic() - self._ticked >= _TICK_SECONDS

    def tick(self, connection: sqlite3.Connection) -> None:
        """Does deferred work if nothing was written for a while, and frees space if the disk is nearly full or the log is large.

        Called after `after_commit`, which counts the frames.
        """
        self._ticked = now = time.monotonic()
        quiet = now - self._written >= _TICK_SECONDS
        short = self._space.is_short()
        if short and pragma(connection, "freelist_count"):
            connection.executescript(f"PRAGMA incremental_vacuum({SPARE_PAGES})")
        if self._frames and not self._cut_due and (quiet or short):
            self.checkpoint(connection)
        elif self._cut_due:
            self._cut_log(connection)
            self._cut_due = bool(_size(wal_path(self.path)))
        elif quiet and short and _size(wal_path(self.path)):
            self._cut_log(connection)
        elif self._frames < CHECKPOINT_FRAMES and _size(wal_path(self.path)) > LARGE_LOG_BYTES:
            self._cut_log(connection)  # also under load: nearly all of it is checkpointed, so this is quick

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        """Moves what it can from the log into the file; delays nobody."""
        _, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._frames = left = frames - moved
        self._next_checkpoint = left + CHECKPOINT_FRAMES
        was_alarmed, self._alarmed = self._alarmed, left > ALARM_FRAMES
        if self._alarmed and not was_alarmed:
            log.error("%s", _held_up(left))
        elif was_alarmed and not self._alarmed:
            log.warning("The write-ahead log is checkpointed again")

    def _cut_log(self, connection: sqlite3.Connection) -> None:
        patience = pragma(connection, "busy_timeout")
        connection.execute("PRAGMA busy_timeout=0")  # a program that reads the store must not stop us
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute(f"PRAGMA busy_timeout={patience}")

    def health(self) -> Health:
        aside = [name for name in stores_set_aside(self.path) if name not in self.adopted]
        return Health(
            **msgspec.structs.asdict(self.counts),
            log_frames=self._frames,
            headroom_bytes=self._space.headroom_bytes(),
            set_aside=len(aside),
            problems=tuple(self._problems(aside)),
        )

    def _problems(self, aside: Iterable[str]) -> Iterable[str]:
        if self._space.is_short():
            yield "The disk is nearly full, and pushes are refused: free some space, or lower SCQ_MIN_FREE_MB."
        if self.clock_doubted is not None:
            yield _CLOCK_DOUBTED
        if self._alarmed:
            yield _held_up(self._frames)
        for name in aside:
            yield (
                f"{self.path.with_name(name)} was damaged and set aside, and the pushes in it are not sent. Check the disk, then recover them: "
                f"scq-proxy store adopt {self.path.with_name(name)}"
            )


def vacuum_step(connection: sqlite3.Connection) -> bool:
    """Gives some of the file's free pages back to the disk; returns whether there are more to give."""
    free = int(pragma(connection, "freelist_count"))
    for _ in range(min(free - SPARE_PAGES, VACUUM_PAGES)):
        connection.execute("PRAGMA incremental_vacuum(1)")  # sqlite3 steps such a statement once, which is one page
    # A file that somebody has vacuumed without auto_vacuum gives nothing back.
    return free - SPARE_PAGES > VACUUM_PAGES and int(pragma(connection, "freelist_count")) < free


def place_facts(path: Path) -> Mapping[str, str]:
    """Returns what is known of the place where the store is; blocks for some syncs."""
    seconds = _sync_seconds(path.parent)
    return {
        "file": str(path),
        "file system": file_system(path),
        "free space": f"{_free_bytes(path) / 1e9:.1f} GB",
        "sync": f"{seconds * 1_000:.1f} ms" if seconds is not None else "not measured: the disk takes no more",
    }


def _sync_seconds(directory: Path) -> float | None:
    """Returns how long the disk takes to make a page durable: the median of a few. None if it takes no more."""
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
