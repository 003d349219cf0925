"""An upstream that sends arbitrary bytes, in the clear or over TLS whose records it may corrupt, and closes at any time.

It speaks on raw sockets: HTTP libraries would refuse to say most of it. What to answer is decided by whoever uses it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from tests.support.tls import contexts

ALERT = b"\x15\x03\x03\x00\x02\x02\x28"  # a TLS record: fatal, handshake_failure


class Cut(NamedTuple):
    """How the bytes of an answer reach the wire.

    `after`: of how many of them, encrypted where they are, the connection ends; None: of all, and it stays open. `flip`: the place of a
    byte that arrives as another. `behind`: bytes that follow as they are, without encryption. `reset`: it ends with RST and not with FIN.
    """

    after: int | None = None
    flip: int | None = None
    behind: bytes = b""
    reset: bool = False


WHOLE = Cut()


class Request(NamedTuple):
    """`connection`: its number, from 1."""

    connection: int
    head: bytes
    body: bytes


class Reply(NamedTuple):
    """`answer` is None where there is none: the connection ends."""

    answer: bytes | None
    cut: Cut = WHOLE


Answering = Callable[[Request], Awaitable[Reply]]


class _Wire:
    """Bytes to and from a client: TLS where there is a context, without a library that closes things in its own way."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext | None
    ) -> None:
        self.writer = writer
        self._reader = reader
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True) if context is not None else None
        self._unread = b""

    async def handshake(self) -> None:
        while self._tls is not None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.writer.write(self._outgoing.read())
                self._incoming.write(await self._arrived())
            else:
                self.writer.write(self._outgoing.read())
                return

    async def take(self, wanted: Callable[[bytes], int]) -> bytes:
        """The next bytes from the client: as many as `wanted` says, once it says so and does not answer 0."""
        while not (size := wanted(self._unread)) or len(self._unread) < size:
            self._unread += await self._more()
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    def bid_farewell(self) -> None:
        """As servers do that close an idle connection."""
        if self._tls is not None:
            with suppress(ssl.SSLError):  # it would wait for the client's
                self._tls.unwrap()
            self.writer.write(self._outgoing.read())

    def encrypted(self, text: bytes) -> bytes:
        if self._tls is None or not text:
            return text
        self._tls.write(text)
        return self._outgoing.read()

    async def _more(self) -> bytes:
        if self._tls is None:
            return await self._arrived()
        while True:
            try:
                if found := self._tls.read(65_536):
                    return found
                raise EOFError
            except ssl.SSLWantReadError:
                self._incoming.write(await self._arrived())

    async def _arrived(self) -> bytes:
        if not (data := await self._reader.read(65_536)):
            raise EOFError
        return data


@asynccontextmanager
async def upstream(answering: Answering, *, tls: bool = False, idle_seconds: float | None = None) -> AsyncIterator[str]:
    """Answers every request as `answering` says; yields its URL. `idle_seconds`: after which a connection that has had an answer is closed."""
    connections = 0
    context = contexts("localhost").server if tls else None
    serving = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        wire, number = _Wire(reader, writer, context), connections
        if (task := asyncio.current_task()) is not None:
            serving.add(task)
            task.add_done_callback(serving.discard)
        with suppress(OSError, EOFError, asyncio.CancelledError):  # the last when the block is left
            await wire.handshake()
            idle = None
            while await _answered(wire, number, answering, idle):
                idle = idle_seconds
        writer.close()
        with suppress(OSError, ssl.SSLError, asyncio.CancelledError):  # the block may be left while this waits
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


async def _answered(wire: _Wire, number: int, answering: Answering, idle_seconds: float | None) -> bool:
    """Returns whether the connection stays open."""
    try:
        async with asyncio.timeout(idle_seconds):
            head = await wire.take(lambda unread: unread.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in unread else 0)
    except TimeoutError:
        wire.bid_farewell()
        return False
    size = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    body = await wire.take(lambda _: size) if size else b""
    reply = await answering(Request(number, head, body))
    if reply.answer is None:
        if reply.cut.reset:
            wire.writer.transport.abort()
        return False
    sent, cut = bytearray(wire.encrypted(reply.answer)), reply.cut
    if cut.flip is not None and sent:
        sent[cut.flip % len(sent)] ^= 0x20
    wire.writer.write(bytes(sent[: cut.after]) + cut.behind)
    if cut.reset:
        await asyncio.sleep(0)
        wire.writer.transport.abort()
    return cut.after is None
