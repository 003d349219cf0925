"""The file behind the SQLite outbox: which file may be used, by whom, and how it is opened so that a commit is durable.

Refused, with what to do: a network file system, a file in use, a file of another user, a file that is no outbox. Durable means WAL with
`synchronous=FULL`, set and read back.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from pathlib import Path
from typing import IO, Any

from proxy.errors import StoreRefused

APPLICATION_ID = 0x73637170  # "scqp"
SCHEMA_VERSION = 1
_NETWORK = frozenset(
    ("9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "vboxsf")
)


def _read_queries() -> dict[str, str]:
    text = Path(__file__).with_name("outbox_sqlite.sql").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in text.split("-- name: ")[1:]]
    return {name.strip(): sql.strip() for name, _, sql in parts}


SQL = _read_queries()


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits durably, on an outbox of this version; the schema is made in an empty file."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    except sqlite3.Error as error:
        raise StoreRefused(f"{path} cannot be opened ({error}).") from None
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    try:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        application = pragma(connection, "application_id")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise StoreRefused(f"{path} cannot be read as an SQLite database ({error}).") from None
    if tables and application != APPLICATION_ID:
        raise StoreRefused(f"{path} is a database of another program: let SCQ_STORE name a file of its own.")
    _require_durable(connection, path)
    if not tables:
        _create(connection)
    version = pragma(connection, "user_version")
    if version != SCHEMA_VERSION:
        raise StoreRefused(
            f"{path} was written by another version of scq-proxy (schema {version}, this one knows {SCHEMA_VERSION})."
        )


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _require_durable(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    mode, level = pragma(connection, "journal_mode"), pragma(connection, "synchronous")
    if mode != "wal" or level < 2:
        raise StoreRefused(f"{path} cannot be made durable: SQLite reports journal_mode={mode}, synchronous={level}.")


def _create(connection: sqlite3.Connection) -> None:
    connection.executescript(f"BEGIN IMMEDIATE;\n{SQL['schema']}")
    connection.execute("INSERT INTO meta (name, value) VALUES ('site_key', ?)", (secrets.token_bytes(32),))
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def require_place(path: Path, *, create: bool) -> None:
    if not path.parent.is_dir():
        raise StoreRefused(f"{path.parent} is no directory: make it, or let SCQ_STORE name another place.")
    kind = file_system(path)
    if kind in _NETWORK:
        raise StoreRefused(f"{path} is on a network file system ({kind}), where SQLite's locks and syncs do not hold.")
    if not path.exists():
        if not create:
            raise StoreRefused(f"There is no store at {path}: scq-proxy serve makes it. Check SCQ_STORE.")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreRefused(f"{path} cannot be made: {error.strerror}.") from None
    if not path.is_file():
        raise StoreRefused(f"{path} is no file: let SCQ_STORE name a file, such as sqlite:///scq.db.")
    if path.stat().st_uid != os.geteuid():
        raise StoreRefused(f"{path} belongs to another user: run this command as the user who runs the server.")


def take_lock(path: Path) -> IO[str]:
    """The OS lock beside the file, held until the returned file is closed. It goes with the process, however that ends."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.fdopen(os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+", encoding="ascii")
    except OSError as error:
        raise StoreRefused(f"{lock_path} cannot be opened: {error.strerror}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StoreRefused(
            f"{path} is in use by another process. SQLite serves one process; for several, set SCQ_STORE to PostgreSQL."
        ) from None
    return lock


def file_system(path: Path) -> str:
    """The type of the file system that the path is on, from the kernel's mount table; `unknown` elsewhere."""
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
