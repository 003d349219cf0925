"""Leaves a line in the log for everything that an operator does to the store or the secrets: what, how much of it, and who it was.

A person is named by a keyed hash only, which is the same each time and from which nothing can be read back.
"""

import hmac
import logging
import os
import socket
import struct
from contextvars import ContextVar
from datetime import UTC, datetime

log = logging.getLogger("proxy.audit")

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: man 7 unix, SO_PEERCRED

# Who has given the command that this task carries out.
caller: ContextVar[str] = ContextVar("caller", default="this process")


def audit(event: str, text: str, *, by: str | None = None, **fields: object) -> None:
    """`event`: a word that stays the same; `text`: what was done, for a person; `by`: other than `caller`; `fields`: its facts."""
    who = by or caller.get()
    log.warning("%s; by %s", text, who, extra={"event": event, "fields": {**fields, "by": who}})


def at_the_socket(connection: socket.socket) -> str:
    """Returns who is at the other end of a Unix socket."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"control socket, user id {uid}, process {pid}"


def at_the_command_line(database_user: str | None) -> str:
    """Returns who runs this process. `database_user`: as whom it works on a database, None for a file."""
    as_whom = f", database user {database_user}" if database_user is not None else ""
    return f"command line, user id {os.geteuid()}{as_whom}"


def pseudonym(key: str, site_key: bytes) -> str:
    """Returns what stands for the person with this lane key."""
    return hmac.digest(site_key, b"audit:" + key.encode("utf-8", "replace"), "sha256").hex()[:16]


def utc(at: float) -> str:
    """Returns a time (Unix seconds) as ISO 8601."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
