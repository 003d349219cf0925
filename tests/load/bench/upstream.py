"""SendX for a benchmark: answers every POST after a fixed time, always the same. Small, so that it is not what is measured.

It runs in the harness's own event loop. It understands requests with a Content-Length, one after the other on a connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self, cast

_JSON = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
_OK_BODY, _SHUT_BODY = (
    b'{"status":"200","message":"OK"}',
    b'{"status":"error","message":"Rate limit exceeded"}',
)
OK = _JSON % (b"200 OK", b"", len(_OK_BODY), _OK_BODY)
SHUT = _JSON % (b"429 Too Many Requests", b"Retry-After: 3600\r\n", len(_SHUT_BODY), _SHUT_BODY)


class Upstream:
    """One address. `latency_seconds`: from request to answer; `shut`: every answer is a 429 that asks for an hour's patience.

    `requests` are counted when they are complete; their bodies are kept in `bodies` if that is a list.
    """

    def __init__(self, *, latency_seconds: float = 0.0, shut: bool = False, bodies: list[bytes] | None = None) -> None:
        self.latency_seconds, self.answer, self.bodies = latency_seconds, SHUT if shut else OK, bodies
        self.requests = 0
        self.port = 0
        self.connections: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.come_up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def come_up(self) -> None:
        """Listens, on the same port as before."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=2_048)
        self.port = self._server.sockets[0].getsockname()[1]

    def go_down(self) -> None:
        """Every connection is reset, new ones are refused."""
        if self._server is not None:
            self._server.close()
        for transport in [*self.connections]:
            transport.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._upstream.connections.add(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._upstream.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        while (head_end := buffer.find(b"\r\n\r\n")) >= 0:
            end = head_end + 4 + content_length(buffer[:head_end])
            if len(buffer) < end:
                return
            self._take(buffer[head_end + 4 : end])
            self._buffer = buffer = buffer[end:]

    def _take(self, body: bytes) -> None:
        upstream = self._upstream
        upstream.requests += 1
        if upstream.bodies is not None:
            upstream.bodies.append(body)
        if upstream.latency_seconds:
            self._loop.call_later(upstream.latency_seconds, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        with suppress(ConnectionError):
            if not self._transport.is_closing():
                self._transport.write(self._upstream.answer)


def content_length(head: bytes) -> int:
    """0 if there is none."""
    head = head.lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    end = head.find(b"\r\n", at + 17)
    return int(head[at + 17 : end if end >= 0 else len(head)])
