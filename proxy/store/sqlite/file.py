"""The file behind the SQLite outbox: which file may be used, by whom, and how it is opened so that a commit is durable.

Refused, with what to do: a network file system, a file in use, a file of another user, a file that is no outbox, a place that cannot be
written. Durable means WAL with `synchronous=FULL`, set and read back. A damaged outbox is set aside, and a new one takes its place.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import sqlite3
import time
from pathlib import Path
from typing import IO

from proxy.core.emails import lane_key
from proxy.errors import StoreRefused
from proxy.store.queries import read_queries, read_steps
from proxy.store.sqlite.causes import explain, what_is_missing
from proxy.store.sqlite.damage import (
    CHECKED_BYTES,
    Damaged,
    FileMoved,
    Remedy,
    Unchecked,
    forget_cached,
    is_failed_io,
    keep_copy_of_wal,
    pragma,
    primary_code,
    read_plainly,
    remedy_for,
    require_sound,
    set_aside,
    unreadable_commits,
)

APPLICATION_ID = 0x73637170  # "scqp"
START_CHECKED_BYTES = 64 << 20  # a larger file is checked after a failure only: starting must not take long
LOCK_SECONDS = 2.0  # the timeout for another program's lock
LOOKS = 4  # attempts on a file that cannot be read, or reads differently each time
APART_SECONDS = 0.5  # between two attempts
SUSPECT_SECONDS = 3_600.0  # in which SQLite must complain twice of a file that is too large to be checked
_SITE_KEY_BYTES = 32
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
MAGIC = b"SQLite format 3\0"  # the head of every SQLite file …
_APPLICATION_ID_AT, _HEADER_BYTES = 68, 72  # … and the place of the application id in it
_LOG_ONLY = ("-wal", "-shm")
_NETWORK = frozenset(
    ("9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "vboxsf")
)

SQL = read_queries(Path(__file__).with_name("queries.sql"))
SCHEMA_STEPS = read_steps(Path(__file__).with_name("schema"))  # forward only: opening an older store runs the rest

log = logging.getLogger("proxy.store")


class StoreFile:
    """The file, while this process has it. `create`: a missing one is made. Everything but `take` and `release` runs on one thread."""

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self.site_key = b""
        self._create = create
        self._lock: IO[str] | None = None
        self._identities: dict[Path, tuple[int, int]] = {}
        self._suspected = float("-inf")  # when SQLite last called it malformed and it was too large to check

    def take(self) -> None:
        """Checks the place and takes the lock, again if somebody deleted it. Raises `StoreRefused`."""
        require_place(self.path, create=self._create)
        held = _identity(self._lock.fileno()) if self._lock is not None else None
        if held is None or held != _identity(_lock_path(self.path)):
            lock = take_lock(self.path)
            self.release()
            self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def open(self, *, after: Exception | None = None) -> sqlite3.Connection:
        """Opens the file. `after`: the failure after which it is reopened. Raises `StoreRefused`."""
        missing = not self.path.exists()
        self.take()
        if missing and after is not None:
            log.error("%s is gone: a new store takes its place, and what waited in the old one is not sent", self.path)
        try:
            self._part_from_log()
            connection = self._open_or_replace(after)
        except (sqlite3.Error, OSError) as error:
            raise StoreRefused(f"{self.path} cannot be opened ({explain(error, self.path)}).") from None
        watched = (self.path, wal_path(self.path), _lock_path(self.path))
        self._identities = {path: found for path in watched if (found := _identity(path)) is not None}
        return connection

    def has_open(self, path: Path) -> bool:
        return (_identity(path) or (0, 0)) in self._identities.values()

    def require_in_place(self) -> None:
        """Raises `FileMoved` if the open file is not the one at the path: commits to it would be gone at the next start."""
        for path, identity in self._identities.items():
            if _identity(path) != identity:
                raise FileMoved(f"{path} was deleted or replaced while in use")

    def is_in_place(self) -> bool:
        """Returns whether the open file is still the one at the path. Does not check its log or lock file."""
        return _identity(self.path) == self._identities.get(self.path)

    def _part_from_log(self) -> None:
        """Sets aside the log of a file that is gone: it must not be applied to the one that stands there now."""
        wal = wal_path(self.path)
        had = self._identities.get(wal)
        if had is not None and _identity(wal) == had and _identity(self.path) != self._identities[self.path]:
            log.error("%s belongs to a file that is gone. It is set aside as %s", wal, set_aside(self.path, _LOG_ONLY))

    def _open_or_replace(self, after: Exception | None) -> sqlite3.Connection:
        """Opens the file, or sets it aside once the same damage was found in the same content twice, some time apart."""
        before: tuple[str, int] | None = None
        for look in range(LOOKS):
            if look:
                time.sleep(APART_SECONDS)
                forget_cached(self.path)
            try:
                found = self._look(after)
            except (sqlite3.Error, OSError) as error:
                if not is_failed_io(error) or look == LOOKS - 1:
                    raise
                log.warning("%s cannot be read or written (%s). Check the disk; trying again", self.path, error)
                before = None
                continue
            if isinstance(found, sqlite3.Connection):
                return found
            if found == before:
                self._replace(found[0])
                return self._open_sound(None)
            before = found
            log.warning("%s may be damaged (%s): reading it again, to be sure", self.path, found[0])
        raise StoreRefused(f"{self.path} reads differently each time. Check the disk and the memory.")

    def _look(self, after: Exception | None) -> sqlite3.Connection | tuple[str, int]:
        """Opens the file, or returns the damage and a checksum of the content. Raises OSError if the content cannot be read."""
        try:
            return self._open_sound(after)
        except Unchecked as suspicion:
            if self._is_suspected_anew():
                return self._open_sound(None)
            return str(suspicion), 0
        except Damaged as damage:
            return str(damage), read_plainly(self.path, CHECKED_BYTES)

    def _is_suspected_anew(self) -> bool:
        """Records a suspicion that cannot be verified; returns whether it is the first for a while, so that the file stays in use."""
        before, self._suspected = self._suspected, time.monotonic()
        forget_cached(self.path)
        return self._suspected - before > SUSPECT_SECONDS

    def _open_sound(self, after: Exception | None) -> sqlite3.Connection:
        header = self._recognisable_header()
        checked_bytes = START_CHECKED_BYTES if after is None else CHECKED_BYTES
        read_plainly(self.path, checked_bytes)
        connection = sqlite3.connect(self.path, isolation_level=None, cached_statements=256, timeout=LOCK_SECONDS)
        try:
            self._prepare(connection)
            suspect = after is not None and remedy_for(after) is Remedy.SUSPECT
            require_sound(connection, suspect=suspect, checked_bytes=checked_bytes)
            self._bring_up_to_date(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            if remedy_for(error) is not Remedy.SUSPECT:
                raise
            raise self._judged(header, str(error)) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _recognisable_header(self) -> bytes:
        """Reads the header before SQLite does, which would delete the log beside an empty file, and apply one to any other file."""
        with self.path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        wal = wal_path(self.path)
        if not header and wal.exists() and wal.stat().st_size > 0:
            raise Damaged("the file is empty, and its write-ahead log is not")
        if header and not header.startswith(MAGIC) and not self._is_half_made():
            raise self._judged(header, "file is not a database")
        return header

    def _is_half_made(self) -> bool:
        """Returns whether the power failed while SQLite created the file, which it rolls back from its journal."""
        try:
            with self.path.with_name(self.path.name + "-journal").open("rb") as journal:
                return journal.read(len(_JOURNAL_MAGIC)) == _JOURNAL_MAGIC
        except FileNotFoundError:
            return False

    def _judged(self, header: bytes, words: str) -> Exception:
        """Returns `Damaged` for a file of ours that SQLite cannot read, and a refusal for anybody else's."""
        was_open = self._identities.get(self.path, (0, 0)) == _identity(self.path)
        if was_open or header[_APPLICATION_ID_AT:] == APPLICATION_ID.to_bytes(4, "big"):
            return Damaged(words)
        return StoreRefused(
            f"{self.path} cannot be read as an SQLite database ({words}). Move it away, or change SCQ_STORE; if it was a store of "
            "scq-proxy, its beginning is damaged: restore it from a backup."
        )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.create_function("lane_key", 1, lane_key, deterministic=True)
        connection.execute("PRAGMA wal_autocheckpoint=0")  # `upkeep` does it, after the answers are out
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables and not is_ours(connection):
            raise StoreRefused(f"{self.path} is a database of another program. Set SCQ_STORE to a file of its own.")
        self._take_in_log(connection)  # first of all that writes: it would be written over
        if not tables:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # in a file with content it would write to no effect
        _require_durable(connection, self.path)
        version, known = pragma(connection, "user_version"), len(SCHEMA_STEPS)
        if version > known:
            newer = f"schema {version}, this one knows {known}"
            raise StoreRefused(f"{self.path} was written by a newer scq-proxy ({newer}): install that one.")

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        """Runs the steps of the schema that the file has not seen, in one transaction."""
        version = pragma(connection, "user_version")
        if version < len(SCHEMA_STEPS):
            steps = "\n".join(SCHEMA_STEPS[version:])
            connection.executescript(f"BEGIN IMMEDIATE;\n{steps}")
            if version == 0:
                site_key = self.site_key or secrets.token_bytes(_SITE_KEY_BYTES)
                connection.execute("INSERT INTO meta (name, value) VALUES ('site_key', ?)", (site_key,))
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={len(SCHEMA_STEPS)}")
            connection.execute("COMMIT")
        self.site_key = bytes(connection.execute("SELECT value FROM meta WHERE name = 'site_key'").fetchone()[0])

    def _take_in_log(self, connection: sqlite3.Connection) -> None:
        """Moves what the log holds into the file and syncs it: after a failed sync, only that is sure to be on the disk.

        Before the log is overwritten, logs how many of its commits SQLite cannot read.
        """
        try:
            _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_FULL:
                raise
            return  # what was acknowledged stays in the log, and deliveries make room
        lost = unreadable_commits(wal_path(self.path), max(frames, 0))
        if lost > 1:
            sentence = (
                "%s is damaged: up to %d commits behind the damage cannot be read, and pushes acknowledged in them are lost. "
                "It is kept as %s. Check the disk"
            )
            log.error(sentence, wal_path(self.path), lost, keep_copy_of_wal(self.path))

    def _replace(self, damage: str) -> None:
        if not self._create:
            raise StoreRefused(f"{self.path} is damaged ({damage}): scq-proxy serve sets it aside and makes a new one.")
        aside = set_aside(self.path)
        self.site_key = _read_site_key(aside) or self.site_key
        require_place(self.path, create=True)
        sentence = (
            "%s is damaged (%s). It is set aside as %s, and a new store takes its place: pushes are accepted again, and those in the damaged "
            "one are not sent. Check the disk, then recover them as far as they can be read: scq-proxy store adopt %s"
        )
        log.error(sentence, self.path, damage, aside, aside)


def _identity(file: Path | int) -> tuple[int, int] | None:
    """Returns device and inode of what stands at a path or is open, None if nothing is there any more."""
    try:
        found = os.fstat(file) if isinstance(file, int) else file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_nlink else None


def is_ours(connection: sqlite3.Connection) -> bool:
    return bool(pragma(connection, "application_id") == APPLICATION_ID)


def wal_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _read_site_key(aside: Path) -> bytes | None:
    """Reads the key of a damaged store, so that visitors keep their ids. Nothing in it changes."""
    for option in ("mode=ro", "immutable=1"):  # with its log, or without
        with contextlib.suppress(sqlite3.Error):
            with contextlib.closing(sqlite3.connect(f"{aside.absolute().as_uri()}?{option}", uri=True)) as connection:
                connection.execute("PRAGMA writable_schema=ON")  # so that SQLite reads a file that is cut off
                row = connection.execute("SELECT value FROM meta WHERE name = 'site_key'").fetchone()
            if row and isinstance(row[0], bytes) and len(row[0]) == _SITE_KEY_BYTES:
                return row[0]
    return None


def _require_durable(connection: sqlite3.Connection, path: Path) -> None:
    # secure_delete: what was delivered or erased is not to be found in the file
    for setting in ("cache_size=-16384", "journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}")
    mode, level = pragma(connection, "journal_mode"), pragma(connection, "synchronous")
    if mode != "wal" or level < 2:
        raise StoreRefused(f"{path} cannot be made durable: SQLite reports journal_mode={mode}, synchronous={level}.")


def require_place(path: Path, *, create: bool) -> None:
    """Raises `StoreRefused` if a store at the path could not be durable or could not be written. `create`: makes a missing file."""
    if not path.parent.is_dir():
        raise StoreRefused(f"{path.parent} is not a directory. Create it or change SCQ_STORE.")
    kind = file_system(path)
    if kind in _NETWORK:
        raise StoreRefused(f"{path} is on a network file system ({kind}), where SQLite's locks and syncs do not hold.")
    if not path.exists():
        if not create:
            raise StoreRefused(f"There is no store at {path}. scq-proxy serve creates it; check SCQ_STORE.")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            remedy = what_is_missing(path) or "give this user write access, or change SCQ_STORE"
            raise StoreRefused(f"{path} cannot be created ({error.strerror}): {remedy}.") from None
    if not path.is_file():
        raise StoreRefused(f"{path} is not a file. Set SCQ_STORE to a file, such as sqlite:///scq.db.")
    if path.stat().st_uid != os.geteuid():
        raise StoreRefused(f"{path} belongs to another user: run this command as the user who runs the server.")
    if not os.access(path.parent, os.W_OK | os.X_OK) or not os.access(path, os.W_OK):
        remedy = "mount or chmod them so, or change SCQ_STORE"
        raise StoreRefused(f"{path} and its directory must be writable, and are not: {remedy}.")


def take_lock(path: Path) -> IO[str]:
    """Takes the OS lock beside the file, held until the returned file is closed or the process ends."""
    lock_path = _lock_path(path)
    try:
        lock = os.fdopen(os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+", encoding="ascii")
    except OSError as error:
        raise StoreRefused(f"{lock_path} cannot be opened: {what_is_missing(path) or error.strerror}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        remedy = "SQLite serves one process; for several, set SCQ_STORE to PostgreSQL"
        raise StoreRefused(f"{path} is in use by another process. {remedy}.") from None
    return lock


def require_not_in_use(path: Path) -> None:
    """Raises `StoreRefused` if a process holds the lock file. Does not create one."""
    try:
        lock = os.open(_lock_path(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        raise StoreRefused(f"{path} is in use by another process. Stop that one first.") from None
    finally:
        os.close(lock)


def file_system(path: Path) -> str:
    """Returns the type of the file system that the path is on, from the kernel's mount table; `unknown` without one."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    best, kind = -1, "unknown"
    place = path.parent.resolve()
    for line in mounts:
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].replace("\\040", " "))
        if place.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), after.split()[0]
    return kind
