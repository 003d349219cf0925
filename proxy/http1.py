"""HTTP/1.1 as uvicorn reads it, with what can be turned against others refused.

uvicorn's own reading trusts its peer. Behind a web server that sends many people's requests over one connection, a body that is taken for
a request is answered to somebody else; and what one peer sends without end costs everybody memory. So a connection here has one request at
a time, and is closed over anything else:

- An upgrade is never made. A request that asks for one is answered and is the last; one that has a body too, whose end the parser does not
  find, is refused.
- Requests are not pipelined: one that begins before the answer to the last has begun is not read. No browser and no web server does that.
- A head (request line and headers) has MAX_HEAD bytes. So has whatever else the parser reads without a word: chunk extensions, trailers.
- Trailers are no headers.
- The rest of a body whose request is answered already has as long to arrive as an idle connection may wait.

It writes nothing to the log: what strangers send must not fill it. It knows no path and no setting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from proxy.answers import SECURITY, Header
from proxy.errors import RequestError

MAX_HEAD = 65_536  # bytes

_MALFORMED = RequestError(
    400, "malformed", "The request is not well-formed HTTP/1.1: look at its lines and its length."
)
_UPGRADE = RequestError(400, "malformed", "No upgrade is made here: send the body without Connection: Upgrade.")
_TOO_LARGE = RequestError(431, "headers-too-large", f"The request line and headers are larger than {MAX_HEAD} bytes.")


class _Enough(Exception):
    """Stops the parser within the bytes that it has."""


class Http1(HttpToolsProtocol):
    """One connection; uvicorn makes it. Which of uvicorn's parts it builds upon, `tests/test_http1.py` checks."""

    _answers: _OneWrite
    _deaf = False  # nothing more is read
    _silent_bytes = 0  # read since the parser last found the end of a head, or a part of a body
    _request: RequestResponseCycle | None = None  # the last whose head is complete; None while the next one's is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._answers = _OneWrite(transport, self.loop)
        super().connection_made(self._answers)

    def eof_received(self) -> None:
        self._answers.flush()  # the loop closes the connection beneath us

    def data_received(self, data: bytes) -> None:
        while data and not self._deaf:
            room = MAX_HEAD - self._silent_bytes
            self._read(data[:room])
            data = data[room:]
        if self._request is None or not self._request.response_complete:
            self._unset_keepalive_if_required()  # the rest of a body that is answered already does not keep it alive

    def _read(self, data: bytes) -> None:
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._answer_and_close()
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(_MALFORMED)
        else:
            if self._silent_bytes >= MAX_HEAD:
                self._refuse(_TOO_LARGE)

    # What the parser finds

    def on_message_begin(self) -> None:
        if self._request is not None:
            # Not "complete": a client can have all of an answer whose last, empty part the application has yet to send.
            if not self._request.response_started:
                self._answer_and_close()
                raise _Enough
            if self._request.response_complete:
                self._request = None
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and _has_body(self.headers):
            self._refuse(_UPGRADE)
            raise _Enough
        super().on_headers_complete()
        self._request = self.cycle
        self._silent_bytes = 0
        self.headers = []  # the request keeps its own; trailers end up here

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    # How it ends

    def _answer_and_close(self) -> None:
        self._deaf = True
        self.cycle.keep_alive = False

    def _refuse(self, error: RequestError) -> None:
        """Closes; answers with `error` unless the request at fault has begun to be answered."""
        self._deaf = True
        if self._request is None or not self._request.response_started:
            self.transport.write(_raw(error, self.server_state.default_headers))
        if self._request is not None:
            self._request.disconnected = True  # so that the application's answer does not follow ours
        self.transport.close()


class _OneWrite(asyncio.Transport):
    """Sends what is written in one turn of the loop together: an answer's head and body, which would be two packets and cost two calls."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(bytes(data))
        self._size += len(data)
        if self._size >= MAX_HEAD:
            self.flush()  # so that who writes much is told when the client does not keep up

    def flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            if not self._transport.is_closing():  # the client may have gone since
                self._transport.write(b"".join(parts))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


def _has_body(headers: Iterable[Header]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


def _raw(error: RequestError, default_headers: Iterable[Header]) -> bytes:
    """The answer of `answers.send_error` in bytes: there is no request here to answer through the application."""
    body = msgspec.json.encode({"error": error.code, "message": error.message})
    length = str(len(body)).encode("ascii")
    own = ((b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close"))
    lines = [b"%s: %s\r\n" % header for header in (*default_headers, *SECURITY, *own)]
    return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body])
