"""HTTP/1.1 as uvicorn reads it, with what can be turned against others refused.

uvicorn's own reading trusts its peer. Behind a web server that sends many people's requests over one connection, a body that is taken for
a request is answered to somebody else; and what one peer sends without end costs everybody memory. So a connection here has one request at
a time, and is closed over anything else:

- It never upgrades. A request that asks for an upgrade is answered, and the connection closed. One with a body, whose end the parser does not
  find, is refused, unless it offers HTTP/2 (h2c), as Java's HttpClient does with each request: then it is parsed again without the offer.
- Requests are not pipelined: one that begins before the answer to the last has begun is not read. No browser and no web server does that.
- A head (request line and headers) has MAX_HEAD bytes. So has whatever else the parser reads without a word: chunk extensions, trailers.
- Trailers are no headers.
- The rest of a body whose request is answered already has as long to arrive as an idle connection may wait.

A peer's error is refused (400, 431) and not logged, because strangers must not fill the log. Any other failure is a fault in this program or its
libraries: it is answered 503, closes the connection and is counted in `defects`. The two are never confused, because a page drops pushes that
were refused for good and keeps the others. Knows no path and no setting.
"""

import asyncio
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from proxy.errors import RequestError
from proxy.web.asgi import AT_HAND, SECURITY, Header, error_body, retry_after
from proxy.web.defects import Defects

MAX_HEAD = 65_536  # bytes

_MALFORMED = RequestError(
    400, "malformed", "The request is not well-formed HTTP/1.1: look at its lines and its length."
)
_UPGRADE = RequestError(400, "malformed", "No upgrade is made here: send the body without Connection: Upgrade.")
_TOO_LARGE = RequestError(431, "headers-too-large", f"The request line and headers are larger than {MAX_HEAD} bytes.")
_DEFECT = RequestError(503, "defect", "The proxy failed here: its log says more.", retry_after=30)
_STOPPING = RequestError(503, "stopping", "The proxy is being stopped: try again.", retry_after=5)
_NO_ROOM = RequestError(503, "too-many-connections", "Too many connections are open: try again.", retry_after=5)
_OF_THE_OFFER = (b"upgrade", b"http2-settings", b"connection")


class _Enough(Exception):
    """Stops the parser within the bytes that it has."""


class Http1(HttpToolsProtocol):
    """One connection; uvicorn makes it. Which of uvicorn's parts it builds upon, `tests/web/test_http1.py` checks."""

    defects: ClassVar[Defects] = Defects()  # see `http1`
    room: ClassVar[int] = sys.maxsize  # connections at once, see `http1`
    _deaf = False  # nothing more is read
    _plain: bytes | None = None  # the head of a request that offers HTTP/2, without the offer, until it is parsed again
    _silent_bytes = 0  # read since the parser last found the end of a head, or a part of a body
    _request: RequestResponseCycle | None = None  # the last whose head is complete; None while the next one's is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.room:
            self.defects.turned_away += 1
            self._refuse(_NO_ROOM)

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
        except httptools.HttpParserUpgrade as upgrade:
            if self._plain is None:
                self._answer_and_close()
            else:
                self._read_plain(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause: BaseException | None = error.__context__
            if not isinstance(cause, _Enough):
                self._fail(error if cause is None else cause)
        except httptools.HttpParserError:
            self._refuse(_MALFORMED)
        except Exception as error:  # noqa: BLE001 - the parser's own fault, or no memory left
            self._fail(error)
        else:
            if self._silent_bytes >= MAX_HEAD:
                self._refuse(_TOO_LARGE)

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
            if not self._offers_http2():
                self._refuse(_UPGRADE)
                raise _Enough
            self._plain = self._head_without_offer()
            return  # the parser ends the request here, and then raises
        self._begin(self._describe())
        self._request = self.cycle
        self._silent_bytes = 0
        self.headers = []  # the request keeps its own; trailers end up here

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain is None and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def _offers_http2(self) -> bool:
        offers = [value.lower() for name, value in self.headers if name == b"upgrade"]
        return offers == [b"h2c"] and self.parser.get_http_version() == "1.1" and self.parser.get_method() != b"CONNECT"

    def _head_without_offer(self) -> bytes:
        """Returns the head without the offer and with `connection: close`, as this request is the connection's last."""
        kept = [(name, value) for name, value in self.headers if name not in _OF_THE_OFFER]
        lines = [b"%s: %s\r\n" % header for header in (*kept, (b"connection", b"close"))]
        return b"".join([self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n", *lines, b"\r\n"])

    def _read_plain(self, rest: bytes) -> None:
        head, self._plain = self._plain or b"", None
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(
            lenient_data_after_close=True
        )  # as in uvicorn: anything after the last request is ignored
        self._silent_bytes = 0
        self._read(head)
        if rest and not self._deaf:
            self._read(rest)

    def _describe(self) -> Any:
        """Returns the ASGI scope; refuses a request whose target is not a valid URL."""
        scope: Any = self.scope
        version = self.parser.get_http_version()
        url: Any  # its path can be missing, whatever httptools declares
        try:
            url = httptools.parse_url(self.url)
        except httptools.HttpParserError:
            url = None
        if url is None or url.path is None or not url.path.isascii():
            self._refuse(_MALFORMED)
            raise _Enough
        if version != "1.1":
            scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        path = url.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        return scope

    def _begin(self, scope: Any) -> None:
        """Like uvicorn, but for what is never on here: upgrades, a root path, a limit of connections."""
        last: RequestResponseCycle | None = self.cycle
        self.cycle = _Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=scope["http_version"] != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle.defects = self.defects
        # Of the connection: a request that knew itself would be left to the collector.
        scope["extensions"] = {AT_HAND: self._body_at_hand}
        if last is None or last.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # all but the empty end of the last answer is sent
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _body_at_hand(self) -> bytes | None:
        """All of the body, if it has come: nobody has to wait, nor to watch for how long."""
        request = self.cycle
        if request.more_body or request.disconnected or request.response_started:
            return None
        body, request.body = bytes(request.body), bytearray()
        return body

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._request is not None:
            self._request.scope.pop("extensions", None)

    def _answer_and_close(self) -> None:
        self._deaf = True
        self.cycle.keep_alive = False

    def _refuse(self, error: RequestError) -> None:
        """Closes; answers with `error` unless the request at fault has begun to be answered."""
        self._end(_raw(error, self.server_state.default_headers))

    def _fail(self, error: BaseException) -> None:
        """Closes after a fault in this program; answers 503 unless the request at fault has begun to be answered."""
        self.defects.note(error)
        self._end(_DEFECT_ANSWER)

    def _end(self, answer: bytes) -> None:
        self._deaf = True
        try:
            if self._request is None or not self._request.response_started:
                self.transport.write(answer)
        finally:
            if self._request is not None:
                self._request.disconnected = True  # so that the application's answer does not follow ours
            self.transport.close()


def http1(defects: Defects, room: int = sys.maxsize) -> type[Http1]:
    """Returns a protocol class bound to `defects`: uvicorn takes a class, and creates the connections itself.

    `room`: the most connections at once. Further ones are answered 503, so that file handles are left for the store, SendX and the operator.
    """
    return type("Http1", (Http1,), {"defects": defects, "room": room})


class _Cycle(RequestResponseCycle):
    """A request and its answer. One that is whole goes out in one piece, and its headers are put into bytes once for all that are alike."""

    defects: Defects
    _start: Any = None  # the head, which waits for the first part of the body

    async def run_asgi(self, app: Any) -> None:
        """Runs the application as uvicorn does, but answers 503 to an exception and logs no traceback, which could quote payload."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                raise RuntimeError("the application has not answered")
        except Exception as error:  # noqa: BLE001 - whatever it is, the client waits for an answer
            self.defects.note(error)
            self._break_off(_DEFECT_ANSWER)
        except BaseException:  # the server stops, and has waited long enough
            self._break_off(_STOPPING_ANSWER)
            raise
        finally:
            self.on_response = _ignore

    def _break_off(self, answer: bytes) -> None:
        if self.response_complete or self.disconnected:
            return
        try:
            if not self.response_started:
                self.response_started = self.response_complete = True
                self.transport.write(_head_of(answer) if self.scope["method"] == "HEAD" else answer)
        finally:
            self.transport.close()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message  # or instead of the one that waits: what was to follow it has failed
            return
        start, self._start = self._start, None
        if start is None:
            await super().send(message)
        elif not await self._send_whole(start, message):
            await super().send(start if self.keep_alive else _closing(start))
            await super().send(message)

    async def _send_whole(self, start: Any, message: Any) -> bool:
        """False: nothing was sent, as this is not all of it, or no plain answer to a plain request."""
        body = message.get("body", b"")
        length, head = _rendered(tuple(start.get("headers", ())))
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not whole or length != len(body) or self.scope["method"] == "HEAD":
            return False
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return True
        self.response_started = self.response_complete = True
        own = b"".join([b"%s: %s\r\n" % header for header in self.default_headers])
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((STATUS_LINE[start["status"]], own, head, end, body)))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True


def _closing(start: Any) -> Any:
    """Returns the head with `connection: close`, which uvicorn adds itself from 0.53 on."""
    headers = list(start.get("headers", ()))
    if any(name.lower() == b"connection" for name, _ in headers):
        return start
    return {**start, "headers": [*headers, (b"connection", b"close")]}


@lru_cache(maxsize=512)
def _rendered(headers: tuple[Header, ...]) -> tuple[int, bytes]:
    """The body's length and the headers in bytes. -1: uvicorn is to look at these headers."""
    names = {name.lower(): value for name, value in headers}
    length = names.get(b"content-length", b"")
    if not length.isdigit() or names.keys() & {b"connection", b"transfer-encoding"} or len(names) < len(headers):
        return -1, b""
    if any(HEADER_RE.search(name) or HEADER_VALUE_RE.search(value) for name, value in headers):
        return -1, b""
    return int(length), b"".join([b"%s: %s\r\n" % (name.lower(), value) for name, value in headers])


def _has_body(headers: Iterable[Header]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


def _raw(error: RequestError, default_headers: Iterable[Header]) -> bytes:
    """Returns the answer of `asgi.send_error` in bytes: there is no request here to answer through the application."""
    body = error_body(error)
    length = str(len(body)).encode("ascii")
    own = ((b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close"))
    lines = [b"%s: %s\r\n" % header for header in (*default_headers, *SECURITY, *own, *retry_after(error))]
    return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body])


def _ignore() -> None:
    """Replaces a method of the connection, which would form a reference cycle."""


def _head_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


_DEFECT_ANSWER = _raw(_DEFECT, ())  # made beforehand: there may be no memory left to make it with
_STOPPING_ANSWER = _raw(_STOPPING, ())
