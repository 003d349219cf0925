"""Keeps one connection to one server, sends one request at a time over it, and reconnects when it must.

Every exchange ends as an `Answer` or a `Failure`, whatever the server, the network or a library does. Only a request that cannot be
serialised raises, which is a defect of this program. A task reads each connection all the time, so a close or unsolicited data is noticed
before the next request.

Uses anyio for TCP and TLS, and h11 for HTTP. Follows no redirect, decodes no content, ignores the environment's proxies.
"""

import asyncio
import logging
import select
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import anyio
import anyio.abc
import anyio.streams.tls
import h11
import httpx

from proxy.delivery.unreached import CUT_OFF, NO_ANSWER, NO_WHOLE_ANSWER, NOT_IN_TIME, why_unreached
from proxy.errors import describe

MAX_ANSWER_BYTES = 65_536  # of the body; twice as many of the whole answer, headers and framing included
IDLE_SECONDS = 5.0  # servers keep an idle connection for longer
FRESH_SECONDS = 0.5  # for non-idempotent requests: few servers close that soon, and a request on a closing connection has an unknown outcome
_RECEIVE_BYTES = 65_536

log = logging.getLogger("proxy.delivery")


@dataclass(frozen=True, slots=True)
class Failure:
    """An exchange without an answer. `detail`: the cause as a fixed phrase, because a library's own message may quote a URL.

    `reached`: the request may have reached the server. If False, it was certainly not applied.
    """

    detail: str
    reached: bool
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What has come of an answer: the status counts even if the rest of the body never comes. Header names are in lower case.

    `cut`: why the rest of the body never came, if it did not.
    """

    status: int
    headers: Mapping[bytes, bytes]
    content: bytearray = field(default_factory=bytearray)
    cut: Failure | None = None

    @property
    def body(self) -> bytes:
        """Returns the body as far as it was received, at most MAX_ANSWER_BYTES."""
        return bytes(self.content[:MAX_ANSWER_BYTES])

    def header(self, name: str, most: int = 200) -> str | None:
        """Returns a header by its name in lower case; None if it is missing, empty, longer than `most` or not printable ASCII."""
        value = self.headers.get(name.encode("ascii"), b"").decode("latin-1")
        return value if 0 < len(value) <= most and value.isascii() and value.isprintable() else None


class Connection:
    """One connection, reopened as needed. `timeout_seconds`: of a whole exchange, from connecting to the last byte of the answer."""

    def __init__(self, tls: ssl.SSLContext, *, timeout_seconds: float) -> None:
        self._tls = tls
        self._timeout_seconds = timeout_seconds
        self._line: _Line | None = None

    async def exchange(
        self, method: str, address: str, headers: Mapping[str, str], content: bytes, *, repeatable: bool
    ) -> Answer | Failure:
        """Sends a request once. `repeatable`: it is idempotent, so it may use a connection that was idle for a while."""
        url = httpx.URL(address)
        request = _request(method, url, headers, content)
        line: _Line | None = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                line = await self._line_to(url, IDLE_SECONDS if repeatable else FRESH_SECONDS)
                await line.exchange(request, content)
        except Exception as error:  # noqa: BLE001 - the sender needs an outcome for every error
            failure = failure_of(error, reached=line is not None)
            return failure if line is None or line.answer is None else _cut_off(line.answer, failure)
        else:
            return line.answer or Failure(_NO_HTTP, reached=True)
        finally:
            if line is None or not line.whole:  # the rest of the answer would be taken for the next one
                await self.aclose()

    async def aclose(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            await line.aclose()

    async def _line_to(self, url: httpx.URL, most_idle: float) -> "_Line":
        line = self._line
        if line is None or line.origin != _origin(url) or not line.serves_another(most_idle):
            await self.aclose()
            # Half of the timeout: a request that fails to connect was certainly not applied, one that times out later may have been.
            async with asyncio.timeout(self._timeout_seconds / 2):
                line = self._line = _Line(_origin(url), await _connected(url, self._tls))
        return line


class _Line:
    """One HTTP connection over TCP or TLS. `answer`: to the last request, as far as received; `whole`: it is complete."""

    def __init__(self, origin: tuple[bytes, bytes, int | None], stream: anyio.abc.ByteStream) -> None:
        self.origin = origin
        self._stream = stream
        self._socket: socket.socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
        self.answer: Answer | None = None
        self.whole = False
        self._came = asyncio.Event()
        self._came_bytes = 0  # since the last request
        self._broken: Exception | None = None
        self._used_at = time.monotonic()
        self._reader = asyncio.create_task(self._keep_reading(), name="delivery-reader")

    def serves_another(self, most_idle: float) -> bool:
        """Returns whether another request may be sent: the connection is neither closed, too long idle, nor holds unsolicited data."""
        http = self._http
        return (
            time.monotonic() - self._used_at < most_idle
            and self.whole
            and not self._reader.done()
            and http.our_state is h11.DONE
            and http.their_state is h11.DONE
            and not http.trailing_data[0]
            and not _has_news(self._socket)  # which the reader has not read yet
        )

    async def exchange(self, request: h11.Request, content: bytes) -> None:
        http = self._http
        if self.whole:
            http.start_next_cycle()
        self.answer, self.whole, self._came_bytes = None, False, 0
        sent = [http.send(event) or b"" for event in (request, h11.Data(content), h11.EndOfMessage())]
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it may have answered before it closed
            await self._stream.send(b"".join(sent))
        while not self.whole:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                self.answer = Answer(event.status_code, dict(event.headers))
            elif isinstance(event, h11.Data) and self.answer is not None:
                self.answer.content.extend(event.data)
                if len(self.answer.content) >= MAX_ANSWER_BYTES:
                    return
            elif isinstance(event, h11.EndOfMessage):
                self.whole = True
            elif not isinstance(event, h11.InformationalResponse):
                raise EOFError("no answer")
        self._used_at = time.monotonic()

    async def aclose(self) -> None:
        self._reader.cancel()
        with suppress(Exception):
            await self._stream.aclose()
        await asyncio.wait({self._reader})

    async def _next_event(self) -> object:
        while True:
            self._came.clear()
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._broken is not None:
                raise self._broken
            await self._came.wait()

    async def _keep_reading(self) -> None:
        """Reads until the connection ends or fails."""
        try:
            while self._came_bytes <= 2 * MAX_ANSWER_BYTES:
                data = await self._stream.receive(_RECEIVE_BYTES)
                self._came_bytes += len(data)
                self._http.receive_data(data)
                self._came.set()
            self._broken = EOFError("more than an answer")
        except anyio.EndOfStream:
            self._http.receive_data(b"")
        except Exception as error:  # noqa: BLE001 - the exchange raises it, where it is judged
            self._broken = error
        finally:
            self._came.set()


def _request(method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes) -> h11.Request:
    fields = {"Host": url.netloc.decode("ascii"), **headers}
    if content:
        fields["Content-Length"] = str(len(content))
    return h11.Request(method=method, target=url.raw_path, headers=list(fields.items()))


def _origin(url: httpx.URL) -> tuple[bytes, bytes, int | None]:
    return url.raw_scheme, url.raw_host, url.port


async def _connected(url: httpx.URL, tls: ssl.SSLContext) -> anyio.abc.ByteStream:
    host, port = url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
    stream = await anyio.connect_tcp(host, port)
    if url.scheme != "https":
        return stream
    try:
        return await anyio.streams.tls.TLSStream.wrap(
            stream, hostname=host, ssl_context=tls, standard_compatible=False, server_side=False
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


def _has_news(connected: socket.socket) -> bool:
    """Returns whether there is data, or the end of the stream, to read."""
    if connected.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connected.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _cut_off(answer: Answer, failure: Failure) -> Answer:
    return replace(answer, cut=replace(failure, detail=NO_WHOLE_ANSWER if failure.timed_out else CUT_OFF))


# --- what a connection raises

_NO_HTTP = "the connection closed without a valid HTTP answer"

_USUAL = (
    *(OSError, EOFError, ValueError, h11.RemoteProtocolError),
    *(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream),
)


def failure_of(error: Exception, *, reached: bool) -> Failure:
    """Converts any exception of a connection into a failure. Logs an unexpected one, as it may be a defect of this program."""
    if not isinstance(error, _USUAL):
        log.error("A connection to SendX failed with an unexpected error: %s", describe(error))
    timed_out = isinstance(error, TimeoutError)
    if not reached:
        return Failure(NOT_IN_TIME if timed_out else why_unreached(error), reached=False, timed_out=timed_out)
    if timed_out:
        return Failure(NO_ANSWER, reached=True, timed_out=True)
    if isinstance(error, h11.RemoteProtocolError):
        return Failure(_NO_HTTP, reached=True)
    return Failure("the connection broke", reached=True)
