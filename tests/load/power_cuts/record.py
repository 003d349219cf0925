"""The record of a run under strace: operations on the store's files, answers, people and their pushes, in one order.

Names of files are their endings: `""` is the database, `-wal` its log, `-journal` the rollback journal of the first seconds.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

DATABASE, LOG, JOURNAL, INDEX = "", "-wal", "-journal", "-shm"
FILES = (DATABASE, LOG, JOURNAL)


class Event(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`at`: Unix seconds when the call began."""

    at: float


class Write(Event, frozen=True):
    file: str
    offset: int
    data: bytes


class Resize(Event, frozen=True):
    file: str
    size: int


class Sync(Event, frozen=True):
    """Of one file: it has returned."""

    file: str


class Create(Event, frozen=True):
    file: str


class Remove(Event, frozen=True):
    file: str


class SyncDirectory(Event, frozen=True):
    """It has returned."""


class Answer(Event, frozen=True):
    """The first byte of an answer is about to leave: the `number`-th on the connection from this port of the client."""

    port: int
    number: int
    status: int


class Ending(StrEnum):
    KILL = "kill -9"
    STOP = "stop"


class Start(Event, frozen=True):
    """A server is started. `after`: how the one before ended."""

    after: Ending | None


AnyEvent = Write | Resize | Sync | Create | Remove | SyncDirectory | Answer | Start
FileEvent = Write | Resize | Sync


class Push(msgspec.Struct, frozen=True):
    """`tag`: no other push has it. `id`: by which the store remembers it; empty for a call of the site's servers."""

    tag: str
    id: str = ""
    increment: bool = False


class Try(msgspec.Struct, frozen=True):
    """A request as it was sent: the `number`-th on the connection from `port` to the server's `life`, both from 0."""

    life: int
    port: int
    number: int


class Request(msgspec.Struct):
    """Repeated until it is acknowledged. `held`: of somebody not identified; `binds`: it identifies."""

    pushes: list[Push]
    held: bool = False
    binds: bool = False
    tries: list[Try] = []


class Person(msgspec.Struct):
    """Requests in order, each acknowledged before the next is sent. `erased`: Unix seconds before and after `scq-proxy erase`."""

    email: str
    requests: list[Request] = []
    erased: tuple[float, float] | None = None


class Record(msgspec.Struct):
    """`applied`: by tag, Unix seconds when SendX first took it."""

    events: list[AnyEvent]
    people: list[Person]
    applied: dict[str, float]
