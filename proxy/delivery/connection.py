"""Keeps one connection to one server, as a transport for httpx, and reconnects when it must.

httpx's own transport asks a pool for each request, which assigns requests to connections and looks through all of both to do so. That is
much of the cost of a request, and of no use to a client that sends one request at a time. Connecting, TLS and HTTP are httpcore's, as
beneath httpx.
"""

import ssl
from collections.abc import AsyncIterable, AsyncIterator
from typing import cast

import httpcore
import httpx

IDLE_SECONDS = 5.0  # as httpx: servers keep an idle connection for longer


class OneConnection(httpx.AsyncBaseTransport):
    """Sends one request at a time: the next one when the answer to the last was read or closed. Raises what httpx raises."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._connection: httpcore.AsyncHTTPConnection | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        wanted = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=cast("AsyncIterable[bytes]", request.stream),
            extensions=request.extensions,
        )
        try:
            connection = await self._usable(wanted.url.origin)
            answer = await connection.handle_async_request(wanted)
        except _RAISED as error:
            raise _as_httpx(error) from error
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _usable(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        connection = self._connection
        if (
            connection is None
            or not connection.can_handle_request(origin)
            or not connection.is_available()
            or connection.has_expired()  # too long idle, or closed by the server
        ):
            await self.aclose()
            connection = self._connection = httpcore.AsyncHTTPConnection(origin, self._tls, IDLE_SECONDS)
        return connection


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in cast("AsyncIterable[bytes]", self._answer.stream):
                yield part
        except _RAISED as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        await self._answer.aclose()


_RAISED = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol)


def _as_httpx(error: Exception) -> httpx.TransportError:
    """Returns httpx's error of the same name: it has one for each of these."""
    kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__)
    return kind(str(error))
