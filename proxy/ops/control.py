"""How a command reaches a running server: a Unix socket beside the store, one JSON line asked, JSON lines answered.

A command is a struct with a tag; `dead_letters`, `sign_ups` and `pages` define theirs beside what answers them.

SQLite belongs to one process, so `scq-proxy status` and its kin ask that process. The socket is for the file's owner only (0600), and made
again if something removes it. A path too long for a socket (108 bytes) moves to a short one in the directory for temporary files, made from
the store's own path; since anybody can make files there, a command talks only to a socket of its own user.

A database is asked directly, but only its processes know what they see: each has a socket in the directory for temporary files, and tells
commands of its own user on the same machine.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import msgspec

from proxy.errors import ScqError, StoreRefused, StoreUnavailable, describe
from proxy.ops.audit import at_the_socket, caller

MAX_PATH = 100  # bytes; the kernel's limit is 108 with the terminating zero
MAX_LINE = 1_048_576
_SECONDS = 30.0
_WATCH_SECONDS = 1.0

log = logging.getLogger("proxy.control")


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """What is asked. A field that the server does not know is refused, because one that overlooked a condition would do too much."""


C = TypeVar("C", bound=Command)
T = TypeVar("T")
Handler = Callable[[C], AsyncIterator[Any]]  # answers are anything that msgspec encodes
Handlers = Mapping[type[Command], Handler[Any]]


def socket_path(store: Path) -> Path:
    store = store.absolute()
    beside = store.with_name(store.name + ".sock")
    if len(os.fsencode(beside)) <= MAX_PATH:
        return beside
    digest = hashlib.sha256(os.fsencode(store)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"scq-proxy-{os.geteuid()}-{digest}.sock"


def process_path(place: str) -> Path:
    """Returns what stands for the store's path in a process that works on the database there. `place`: without a password."""
    return Path(f"{_database_path(place)}-{os.getpid()}")


def processes_at(place: str) -> Sequence[Path]:
    """Returns the `process_path` of each process here that has left a socket, whether it still runs or not."""
    beginning = _database_path(place)
    return sorted(each.with_suffix("") for each in beginning.parent.glob(f"{beginning.name}-*.sock"))


def _database_path(place: str) -> Path:
    digest = hashlib.sha256(place.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"scq-proxy-{os.geteuid()}-{digest}"


class Control:
    def __init__(self, store: Path, handlers: Handlers, *, watch_seconds: float = _WATCH_SECONDS) -> None:
        self._path = socket_path(store)
        self._handlers = handlers
        self._decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Union[tuple(handlers)])  # noqa: UP007 - of types known at run time only
        self._watch_seconds = watch_seconds
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Under the store's lock, so a socket that lies there is of a process that is gone. Raises `StoreRefused`."""
        try:
            await self._listen()
        except OSError as error:
            raise StoreRefused(f"{self._path} cannot be made ({error.strerror}): remove what stands there.") from None
        self._watch = asyncio.create_task(self._keep_listening(), name="control-watch")

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            if self._is_in_place():
                self._path.unlink(missing_ok=True)

    async def _listen(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE)

    async def _keep_listening(self) -> None:
        while True:
            await asyncio.sleep(self._watch_seconds)
            if self._is_in_place():
                continue
            if self._server is not None:
                self._server.close()
            try:
                await self._listen()
            except OSError as error:
                log.error("%s is gone and cannot be made again: %s", self._path, error.strerror)
            else:
                log.warning("%s was removed and is made again", self._path)

    def _is_in_place(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller.set(at_the_socket(writer.get_extra_info("socket")))
        try:
            async with asyncio.timeout(_SECONDS):
                line = await reader.readline()
            async for answer in self._answers(line):
                writer.write(msgspec.json.encode({"ok": answer}) + b"\n")
                await writer.drain()
            writer.write(b'{"done":true}\n')
            await writer.drain()
        except StoreUnavailable as error:
            writer.write(msgspec.json.encode({"error": error.cause}) + b"\n")
        except ScqError as error:
            writer.write(msgspec.json.encode({"error": error.message}) + b"\n")
        except (ConnectionError, TimeoutError):
            pass  # the command was given up
        except Exception as error:  # noqa: BLE001 - whatever it is, the command gets an answer
            log.error("A command failed: %s", describe(error))
            writer.write(b'{"error":"The command failed: the log of the server says more."}\n')
        finally:
            writer.close()

    def _answers(self, line: bytes) -> AsyncIterator[Any]:
        try:
            command = self._decoder.decode(line)
            handler = self._handlers[type(command)]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
            raise StoreRefused("The running server does not know this command: it is of another version.") from None
        return handler(command)


async def ask(store: Path, command: Command) -> AsyncGenerator[Any, None]:
    """The command's end: answers as they come. Raises `StoreRefused` with the server's words, `ConnectionError` if none runs."""
    reader, writer = await _connect(store)
    try:
        writer.write(msgspec.json.encode(command) + b"\n")
        await writer.drain()
        while line := await _next_line(reader):
            answer = msgspec.json.decode(line)
            if "error" in answer:
                raise StoreRefused(answer["error"])
            if "done" in answer:
                return
            yield answer["ok"]
        raise StoreRefused("The running server disconnected. Run the command again.")
    finally:
        writer.close()


async def ask_once(store: Path, command: Command, kind: type[T]) -> T:
    """Returns the first answer, as a `kind`. Raises as `ask` does."""
    async with contextlib.aclosing(ask(store, command)) as answers:
        return msgspec.convert(await anext(answers), kind)


async def ask_processes(place: str, command: Command, kind: type[T]) -> list[T]:
    """Returns the answers of those that run here on the database there. Any that does not answer is left out: the database is asked instead."""
    answers = []
    for process in processes_at(place):
        try:
            answers.append(await ask_once(process, command, kind))
        except ConnectionRefusedError:
            socket_path(process).unlink(missing_ok=True)  # it was killed
        except (ConnectionError, StoreRefused):
            continue
    return answers


async def _connect(store: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    path = socket_path(store)
    try:
        if path.stat().st_uid != os.geteuid():
            raise PermissionError
        return await asyncio.open_unix_connection(str(path), limit=MAX_LINE)
    except FileNotFoundError:
        raise ConnectionRefusedError from None
    except PermissionError:
        raise StoreRefused(
            f"{path} belongs to another user: run this command as the user who runs the server."
        ) from None


async def _next_line(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(_SECONDS):
            return await reader.readline()
    except TimeoutError:
        raise StoreRefused(f"The running server does not answer within {_SECONDS:.0f} seconds.") from None
