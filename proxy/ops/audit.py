"""Logs everything that an operator does to the store or the secrets: the action, its extent and who did it.

A person appears only as a keyed hash, which is the same each time and cannot be reversed.
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

# The operator whose command this task carries out.
caller: ContextVar[str] = ContextVar("caller", default="this process")


def audit(event: str, text: str, *, by: str | None = None, **fields: object) -> None:
    """Logs one action. `event`: its stable name; `text`: a description for people; `by`: overrides `caller`; `fields`: its data."""
    who = by or caller.get()
    log.warning("%s; by %s", text, who, extra={"event": event, "fields": {**fields, "by": who}})


def at_the_socket(connection: socket.socket) -> str:
    """Returns a description of the peer of a Unix socket."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"control socket, user id {uid}, process {pid}"


def at_the_command_line(database_user: str | None) -> str:
    """Returns a description of the user who runs this process. `database_user`: the role it connects as, None for a file."""
    as_whom = f", database user {database_user}" if database_user is not None else ""
    return f"command line, user id {os.geteuid()}{as_whom}"


def pseudonym(key: str, site_key: bytes) -> str:
    """Returns the pseudonym of the person with this lane key."""
    return hmac.digest(site_key, b"audit:" + key.encode("utf-8", "replace"), "sha256").hex()[:16]


def utc(at: float) -> str:
    """Returns a time (Unix seconds) as ISO 8601."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
