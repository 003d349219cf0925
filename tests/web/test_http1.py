"""HTTP/1.1 at its edges, byte by byte over raw sockets: what a peer can send that is no request as it should be.

Every test also shows that the log stays as it was: whoever can write lines into it can fill a disk with them.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import re
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.web.asgi import Gone, Header, read_body, send_json
from proxy.web.defects import Defects
from proxy.web.http1 import MAX_HEAD, Http1, http1
from tests.support.live import PATIENCE_SECONDS, eventually, nowhere
from tests.support.server import ADMIN_TOKEN, SERVER_KEY, SHOP, Server, dumps, new_id, track

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
PUSH = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nContent-Type: text/plain\r\n".encode()
UPGRADE = b"Connection: Upgrade\r\nUpgrade: foo\r\n"


@pytest.fixture(scope="module")
def upstream() -> str:
    """SendX is not there: what is pushed here is held."""
    return nowhere()


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {
        "SCQ_ADMIN_TOKEN": ADMIN_TOKEN,
        "SCQ_SERVER_KEYS": SERVER_KEY,
        "SCQ_HOLD_MAX": "100000",
        "SCQ_LOG_LEVEL": "info",
    }


@pytest.fixture(autouse=True)
def quiet(server: Server) -> Iterator[None]:
    before = server.log
    yield
    assert server.log == before


class Wire:
    """One connection to a server."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send, as far as the server takes it: it may close in the middle."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def answer(self, *, head_only: bool = False) -> bytes:
        """Exactly one answer; what follows it is kept for the next."""
        while b"\r\n\r\n" not in self._unread:
            self._receive()
        head, _, rest = self._unread.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        size = int(length[1]) if length and not head_only else 0
        while len(rest) < size:
            self._receive()
            rest = self._unread.partition(b"\r\n\r\n")[2]
        self._unread = rest[size:]
        return head + b"\r\n\r\n" + rest[:size]

    def rest(self) -> bytes:
        """Everything until the server closes."""
        with suppress(ConnectionError):
            while True:
                self._receive()
        return self._unread

    def is_closed(self) -> bool:
        """Whether the server has closed, without waiting for it."""
        readable, _, _ = select.select([self.socket], [], [], 0)
        with suppress(ConnectionResetError):
            return bool(readable) and self.socket.recv(65_536) == b""
        return True

    def _receive(self) -> None:
        if not (chunk := self.socket.recv(65_536)):
            raise ConnectionError(f"closed after {self._unread[:200]!r}")
        self._unread += chunk


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with closing(Wire(server.port)) as opened:
        yield opened


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


def error(answer: bytes, *, date: bool = True) -> str:
    """The code of an error, from an answer as the proxy gives them. `date`: it has one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    for header in (b"content-type: application/json", b"cache-control: no-store", *([b"date: "] if date else [])):
        assert header in head
    code: str = json.loads(body)["error"]
    return code


def assert_only_answer(received: bytes) -> None:
    assert received.count(b"HTTP/1.1 ") == 1, received
    assert b"\r\nconnection: close\r\n" in received


def chunked(body: bytes, trailers: bytes = b"") -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)


def pushed() -> bytes:
    return dumps({"v": 1, "pushes": [{"id": new_id(), "call": track("cart-1")}]})


# --- Upgrades


@pytest.mark.parametrize("upgrade", [UPGRADE, b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n"])
@pytest.mark.parametrize("length", [b"Content-Length: %d\r\n" % len(HEALTH), b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("request_line", [b"POST /scq/push", b"GET /healthz", b"POST /nothing", b"CONNECT x:443"])
def test_the_body_behind_a_request_for_an_upgrade_is_not_read(
    wire: Wire, request_line: bytes, length: bytes, upgrade: bytes
) -> None:
    head = f"Host: x\r\nOrigin: {SHOP}\r\n".encode()
    wire.send(request_line + b" HTTP/1.1\r\n" + head + upgrade + length + b"\r\n")
    answer = wire.answer()
    wire.send(HEALTH)
    assert (status(answer), error(answer)) == (400, "malformed")
    assert_only_answer(answer + wire.rest())


def test_that_holds_when_head_and_body_arrive_together(wire: Wire) -> None:
    wire.send(PUSH + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(HEALTH) + HEALTH + HEALTH)
    received = wire.rest()
    assert status(received) == 400
    assert_only_answer(received)


@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n"])
def test_a_request_for_an_upgrade_without_a_body_is_answered_as_the_last(wire: Wire, length: bytes) -> None:
    wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + UPGRADE + length + b"\r\n" + HEALTH)
    received = wire.rest()
    assert status(received) == 200
    assert_only_answer(received)


# As Java's HttpClient and Spring's RestClient send it, recorded from Java 17
JAVA = (
    b"POST /scq/push HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n%bHost: x\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\nUser-Agent: Java-http-client/17.0.15\r\n"
    + f"Content-Type: text/plain\r\nOrigin: {SHOP}\r\n".encode()
)


def java(body: bytes, *, in_chunks: bool = False) -> bytes:
    if in_chunks:
        return JAVA % b"Transfer-encoding: chunked\r\n" + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return JAVA % (b"Content-Length: %d\r\n" % len(body)) + b"\r\n" + body


@pytest.mark.parametrize(
    "behind", [b"", HEALTH, HEALTH * 1_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"no request\r\n\r\n"]
)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_request_with_a_body_that_offers_http2_is_read_as_http1_and_is_the_last(
    wire: Wire, in_chunks: bool, behind: bytes
) -> None:
    wire.send(java(pushed(), in_chunks=in_chunks) + behind)
    received = wire.rest()
    assert status(received) == 202
    assert b'"status":"held"' in received
    assert_only_answer(received)


@pytest.mark.parametrize("in_chunks", [False, True])
def test_it_may_arrive_in_pieces_and_behind_another_request(wire: Wire, in_chunks: bool) -> None:
    wire.send(HEALTH)
    assert status(wire.answer()) == 200
    for byte in java(pushed(), in_chunks=in_chunks):
        wire.send(bytes([byte]))
    received = wire.rest()
    assert status(received) == 202
    assert_only_answer(received)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Upgrade: h2c", b"Upgrade: h2c, foo"),
        (b"Upgrade: h2c", b"Upgrade: h2c\r\nUpgrade: websocket"),
        (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n"),
        (b"POST /scq/push", b"CONNECT x:443"),
    ],
)
def test_any_other_offer_with_a_body_is_refused(wire: Wire, old: bytes, new: bytes) -> None:
    wire.send(java(HEALTH).replace(old, new) + HEALTH)
    received = wire.rest()
    assert (status(received), error(received)) == (400, "malformed")
    assert_only_answer(received)


def test_a_body_that_turns_bad_behind_an_offer_is_400(wire: Wire) -> None:
    wire.send(JAVA % b"Transfer-encoding: chunked\r\n" + b"\r\nzz\r\n" + HEALTH)
    received = wire.rest()
    assert (status(received), error(received)) == (400, "malformed")
    assert_only_answer(received)


def test_a_head_of_an_offer_has_its_limit(wire: Wire) -> None:
    wire.send(java(pushed()).replace(b"Host: x", b"Host: x\r\nX: " + b"y" * MAX_HEAD))
    received = wire.rest()
    assert status(received) == 431
    assert_only_answer(received)


def test_an_upgrade_header_that_is_not_asked_for_by_connection_changes_nothing(wire: Wire) -> None:
    body = pushed()
    wire.send(PUSH + b"Upgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert status(wire.answer()) == 202
    wire.send(HEALTH)
    assert status(wire.answer()) == 200


def test_uvicorn_still_has_what_this_builds_upon() -> None:
    """The tests of this file show what each part does; this one tells first, and by name, which is gone after an update."""
    own = {name for name, value in vars(Http1).items() if inspect.isfunction(value)}
    asyncio_s = ("connection_made", "data_received", "eof_received", "connection_lost")
    hooks = {name for name in own if name in asyncio_s or name.startswith("on_")}
    assert hooks <= set(vars(HttpToolsProtocol)), "no longer called"
    assert not (own - hooks) & set(vars(HttpToolsProtocol)), "hidden by ours, by mistake"
    text = inspect.getsource(inspect.getmodule(HttpToolsProtocol) or HttpToolsProtocol)
    for name in ("_unset_keepalive_if_required", "server_state.default_headers"):
        assert f"self.{name}" in text
    for name in ("keep_alive", "response_started", "response_complete", "disconnected", "scope", "on_response"):
        assert re.search(rf"class RequestResponseCycle:.*self\.{name}\b", text, re.DOTALL)


# --- One request at a time


@pytest.mark.parametrize("first", [HEALTH, PUSH + chunked(b"{}"), b"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize("behind", [HEALTH, HEALTH * 50_000, b"no request\r\n\r\n", b"GET /he"])
def test_what_is_sent_behind_a_request_before_its_answer_is_not_read(wire: Wire, first: bytes, behind: bytes) -> None:
    wire.send(first + behind)
    assert_only_answer(wire.rest())


@pytest.mark.parametrize("request_", [HEALTH, PUSH + b"Content-Length: 2\r\n\r\n{}"])
def test_a_client_that_says_nothing_more_is_answered(wire: Wire, request_: bytes) -> None:
    wire.send(request_)
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.rest().count(b"HTTP/1.1 ") == 1


def test_a_client_that_says_close_is_answered_once(wire: Wire) -> None:
    wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + HEALTH)
    assert_only_answer(wire.rest())


def many_requests(server: Server, count: int) -> list[int]:
    """One request after the other on one connection, each at once when the answer to the last was read to its end."""
    large = b"x" * 70_000
    with closing(Wire(server.port)) as wire:
        statuses = []
        for number in range(count):
            body = pushed()
            match number % 7:
                case 0:
                    wire.send(HEALTH)
                case 1:
                    wire.send(b"HEAD /scq/scq.js HTTP/1.1\r\nHost: x\r\n\r\n")
                case 2:
                    wire.send(PUSH.replace(b"POST", b"OPTIONS", 1) + b"\r\n")
                case 3:
                    wire.send(PUSH + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                case 4:
                    wire.send(PUSH + chunked(body, b"X: y\r\n"))
                case 5:
                    wire.send(b"GET /scq/scq.js HTTP/1.1\r\nHost: x\r\n\r\n")
                case 6:
                    wire.send(PUSH + b"Content-Length: %d\r\n\r\n" % len(large))
            answer = wire.answer(head_only=number % 7 == 1)
            assert b"connection: close" not in answer
            statuses.append(status(answer))
            if number % 7 == 6:
                wire.send(large)  # refused before it was read, and sent all the same
    return statuses


def test_whoever_reads_each_answer_before_the_next_request_is_never_cut_off(server: Server) -> None:
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda _: many_requests(server, 1_050), range(8)))
    assert runs == [[200, 200, 204, 202, 202, 200, 413] * 150] * 8


def test_a_request_in_many_pieces_is_whole(wire: Wire) -> None:
    body = pushed()
    for _ in range(3):
        for byte in PUSH + b"Content-Length: %d\r\n\r\n" % len(body) + body:
            wire.send(bytes([byte]))
        assert status(wire.answer()) == 202
        wire.send(b"\r\n")  # old browsers sent a line break behind a body


@contextmanager
def slow_end() -> Iterator[tuple[int, threading.Event]]:
    """A server whose answers are all there before the application ends them: when the event is set."""
    release = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await asyncio.to_thread(release.wait, PATIENCE_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with answering(app, Http1) as port:
        try:
            yield port, release
        finally:
            release.set()


@contextmanager
def answering(app: ASGIApp, protocol: type[HttpToolsProtocol]) -> Iterator[int]:
    """The port of a server with this application."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, date_header=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="answering")
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_client_may_have_all_of_an_answer_before_the_application_has_ended_it() -> None:
    with slow_end() as (port, release), closing(Wire(port)) as wire:
        wire.send(HEALTH)
        assert status(wire.answer()) == 200
        wire.send(HEALTH)
        release.set()
        assert status(wire.answer()) == 200


def test_behind_an_answer_that_has_not_ended_one_request_waits_and_no_more() -> None:
    with slow_end() as (port, release), closing(Wire(port)) as wire:
        wire.send(HEALTH)
        wire.answer()
        wire.send(HEALTH * 1_000)
        release.set()
        assert_only_answer(wire.rest())


# --- Answers

OK, TWO = (b"Content-Type", b"text/plain"), (b"content-length", b"2")
SECRET = "ann@example.com"  # what an error may quote
ANSWERS: dict[str, tuple[int, list[Header], list[bytes]]] = {
    "/whole": (200, [OK, TWO], [b"ok"]),
    "/cookies": (202, [TWO, (b"set-cookie", b"a=1"), (b"Set-Cookie", b"b=2")], [b"ok"]),
    "/empty": (200, [(b"content-length", b"0")], [b""]),
    "/no-length": (200, [OK], [b"ok"]),
    "/chunked": (200, [OK, (b"transfer-encoding", b"chunked")], [b"ok"]),
    "/in-parts": (200, [TWO], [b"o", b"k"]),
    "/nothing-to-say": (204, [], [b""]),
    "/not-modified": (304, [(b"etag", b"x")], [b""]),
    "/last": (200, [TWO, (b"connection", b"close")], [b"ok"]),
    "/short": (200, [(b"content-length", b"3")], [b"ok"]),
    "/long": (200, [(b"content-length", b"1")], [b"ok"]),
    "/bad-name": (200, [TWO, (b"a b", b"x")], [b"ok"]),
    "/bad-value": (200, [TWO, (b"a", b"x\r\ny: z")], [b"ok"]),
    "/fails-at-once": (0, [], []),
    "/fails-after-its-head": (200, [TWO], []),
}


FAILING = ("/fails-at-once", "/fails-after-its-head")  # where uvicorn says 500, or the head of an answer and no more


async def answer_of_the_table(scope: Scope, receive: Receive, send: Send) -> None:
    code, headers, parts = ANSWERS[scope["path"]]
    if code:
        await send({"type": "http.response.start", "status": code, "headers": headers})
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    if not parts:
        raise RuntimeError(SECRET)
    await send({"type": "http.response.body", "body": parts[-1]})


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("start", ["GET %s HTTP/1.1", "HEAD %s HTTP/1.1", "GET %s HTTP/1.0"])
def test_an_application_s_answer_is_what_uvicorn_makes_of_it(path: str, start: str) -> None:
    told = []
    for protocol in (HttpToolsProtocol, Http1):
        with answering(answer_of_the_table, protocol) as port, closing(Wire(port)) as wire:
            wire.send((start % path).encode() + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
            told.append(wire.rest())
    if path in FAILING:
        assert status(told[1]) == 503
        assert told[1].endswith(b"\r\n\r\n") is start.startswith("HEAD")
    else:
        assert told[1] == told[0]


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    with suppress(Gone):
        await read_body(scope, receive, None)
        await send_json(send, 200, b"{}")


def test_a_request_leaves_nothing_behind_for_the_collector_to_find() -> None:
    """It would stop the process for milliseconds again and again, and memory would grow in between."""
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    with answering(read_all, Http1) as port, closing(Wire(port)) as wire:
        wire.send(request)
        wire.answer()
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                wire.send(request)
                assert status(wire.answer()) == 200
            assert gc.collect() < 200
        finally:
            gc.enable()


def test_answers_follow_one_another_on_a_connection() -> None:
    with answering(answer_of_the_table, Http1) as port, closing(Wire(port)) as wire:
        for path in ("/whole", "/cookies", "/whole", "/in-parts", "/empty", "/whole"):
            wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = wire.answer()
            assert status(answer) == ANSWERS[path][0]
            assert answer.endswith(b"\r\n\r\n" + b"".join(ANSWERS[path][2]))


# --- Faults of ours


class Broken:
    """A parser with a fault of its own."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def feed_data(self, data: bytes) -> None:
        raise self._error


def broken_protocol(defects: Defects, place: str, error: Exception) -> type[Http1]:
    """Raises `error` in a method of the protocol, or in the parser."""

    def fail(self: Http1, *_: object) -> None:
        raise error

    def break_parser(self: Http1, transport: asyncio.Transport) -> None:
        HttpToolsProtocol.connection_made(self, transport)
        self.parser = Broken(error)  # type: ignore[assignment] # httptools' own cannot be made to fail

    part = {"connection_made": break_parser} if place == "parser" else {place: fail}
    return type("BrokenHttp1", (http1(defects),), part)


PLACES = ["on_message_begin", "on_url", "on_header", "_describe", "_start_asgi_task", "on_body", "on_message_complete"]
FAULTS = [AttributeError("_start_asgi_task"), MemoryError(), SystemError(), RecursionError()]


@pytest.mark.parametrize("place", [*PLACES, "parser"])
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_of_ours_is_503_and_the_end_counted_and_logged_once(
    place: str, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    defects = Defects()
    with answering(read_all, broken_protocol(defects, place, fault)) as port:
        for _ in range(3):
            with closing(Wire(port)) as wire:
                wire.send(PUSH + b"Content-Length: 2\r\n\r\n{}" + HEALTH)
                received = wire.rest()
            assert (status(received), error(received, date=False)) == (503, "defect")
            assert b"\r\nretry-after: 30\r\n" in received
            assert_only_answer(received)
    assert defects.count == 3
    (line,) = caplog.messages
    says = (
        "memory ran out" if isinstance(fault, MemoryError) else f"a fault in this program: {type(fault).__name__} at "
    )
    assert says in line


@pytest.mark.parametrize("path", FAILING)
def test_so_is_one_of_the_application_and_the_log_does_not_quote_it(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    defects = Defects()
    with answering(answer_of_the_table, http1(defects)) as port:
        for _ in range(2):
            with closing(Wire(port)) as wire:
                wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                received = wire.rest()
            assert (status(received), error(received, date=False)) == (503, "defect")
            assert_only_answer(received)
    assert defects.count == 2
    (line,) = caplog.messages
    assert "fault in this program: RuntimeError at test_http1.py" in line
    assert SECRET not in line


def test_a_fault_behind_an_answer_that_has_begun_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError

    defects = Defects()
    with answering(app, http1(defects)) as port, closing(Wire(port)) as wire:
        wire.send(HEALTH)
        assert wire.rest().endswith(b"4\r\nhalf\r\n")
    assert defects.count == 1


def test_what_the_application_raises_behind_its_answer_is_counted_too(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 503, b"{}")
        raise RuntimeError

    defects = Defects()
    with answering(app, http1(defects)) as port, closing(Wire(port)) as wire:
        for count in (1, 2):
            wire.send(HEALTH)
            assert status(wire.answer()) == 503
            eventually(lambda: defects.count == count)  # noqa: B023 - called at once
    assert len(caplog.messages) == 1


def test_an_application_that_does_not_answer_has_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    defects = Defects()
    with answering(app, http1(defects)) as port, closing(Wire(port)) as wire:
        wire.send(HEALTH)
        assert status(wire.rest()) == 503
    assert defects.count == 1


@pytest.mark.parametrize("request_line", [b"GET http://x HTTP/1.1", b"GET x HTTP/1.1", b"GET /\xff HTTP/1.1"])
def test_an_address_that_is_none_is_the_client_s_fault(request_line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    defects = Defects()
    with answering(read_all, http1(defects)) as port, closing(Wire(port)) as wire:
        wire.send(request_line + b"\r\nHost: x\r\n\r\n")
        assert status(wire.rest()) == 400
    assert (defects.count, caplog.messages) == (0, [])


# --- Size


def head_of(size: int) -> bytes:
    start = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "
    return start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"


def test_a_head_may_have_64_kb(wire: Wire) -> None:
    for _ in range(3):
        wire.send(head_of(MAX_HEAD))
        assert status(wire.answer()) == 200


def test_one_byte_more_is_431(wire: Wire) -> None:
    wire.send(HEALTH)
    assert status(wire.answer()) == 200
    wire.send(head_of(MAX_HEAD + 1))
    received = wire.rest()
    assert (status(received), error(received)) == (431, "headers-too-large")
    assert_only_answer(received)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\nX: ", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\n", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 10_000),
        (b"", b"\r\n" * 30_000),
        (PUSH + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 65_536),
        (PUSH + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ", b"a" * 65_536),
        (PUSH + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"a: b\r\n" * 10_000),
    ],
    ids=["url", "header", "name", "headers", "line breaks", "chunk extension", "trailer", "trailers"],
)
def test_what_has_no_end_is_refused(wire: Wire, start: bytes, more: bytes) -> None:
    wire.send(start)
    for _ in range(100):
        wire.send(more)
    received = wire.rest()
    assert status(received) in (400, 431)
    assert error(received) in ("malformed", "headers-too-large")
    assert_only_answer(received)


# --- Trailers


@pytest.mark.parametrize(
    ("head", "trailer", "refused"),
    [
        ("POST /scq/push HTTP/1.1\r\n", f"Origin: {SHOP}", 403),
        ("POST /api/v1/rest/contact/track HTTP/1.1\r\n", f"X-Team-ApiKey: {SERVER_KEY}", 401),
        ("GET /metrics HTTP/1.1\r\n", f"Authorization: Bearer {ADMIN_TOKEN}", 404),
    ],
)
def test_a_trailer_is_no_header(wire: Wire, head: str, trailer: str, refused: int) -> None:
    wire.send(f"{head}Host: x\r\n".encode() + chunked(b"{}", f"{trailer}\r\n".encode()))
    assert status(wire.answer()) == refused


def test_a_trailer_cannot_spoil_a_header_either(wire: Wire) -> None:
    wire.send(PUSH + chunked(pushed(), b"Origin: https://evil.example\r\n"))
    assert status(wire.answer()) == 202


# --- What drips


def test_a_body_that_drips_on_after_its_refusal_is_cut_off(server: Server) -> None:
    unlisted = PUSH.replace(SHOP.encode(), b"https://evil.example")
    starts = [
        (403, unlisted + b"Content-Length: 60000\r\n\r\n"),
        (403, unlisted + b"Transfer-Encoding: chunked\r\n\r\nfff0\r\n"),
        (413, PUSH + b"Content-Length: 70000\r\n\r\n"),
        (404, b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"),
    ]
    with ExitStack() as stack:
        wires = [stack.enter_context(closing(Wire(server.port))) for _ in starts]
        for wire, (refused, start) in zip(wires, starts, strict=True):
            wire.send(start)
            assert status(wire.answer()) == refused
        assert_all_close_while(wires, b"x")


def test_only_a_request_keeps_an_idle_connection(server: Server, wire: Wire) -> None:
    with closing(Wire(server.port)) as idle:
        for each in (wire, idle):
            each.send(HEALTH)
            assert status(each.answer()) == 200
        wire.send(HEALTH[:10])
        assert_all_close_while([idle], b"\r\n")
    wire.send(HEALTH[10:])
    assert status(wire.answer()) == 200


def assert_all_close_while(wires: list[Wire], drop: bytes) -> None:
    def all_closed() -> bool:
        for wire in wires:
            wire.send(drop)
        return all(wire.is_closed() for wire in wires)

    eventually(all_closed, PATIENCE_SECONDS)


# --- What is not HTTP


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /%0aWARNING:%20forged HTTP/1.1\r\nHost: x\r\nX\x1b[31m: y\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        PUSH + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        PUSH + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        PUSH + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        PUSH + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEALTH[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        PUSH.replace(b"POST", b"OPTIONS", 1) + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_400_and_the_end(wire: Wire, request_bytes: bytes) -> None:
    wire.send(request_bytes + HEALTH)
    received = wire.rest()
    assert (status(received), error(received)) == (400, "malformed")
    assert_only_answer(received)


def test_a_body_that_turns_bad_while_it_is_read_is_400(wire: Wire) -> None:
    wire.send(PUSH + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert status(wire.answer()) == 100
    wire.send(b"2\r\n{}\r\nzz\r\n")
    received = wire.rest()
    assert (status(received), error(received)) == (400, "malformed")
    assert_only_answer(received)


def test_a_body_that_turns_bad_after_its_refusal_gets_no_second_answer(wire: Wire) -> None:
    wire.send(PUSH.replace(SHOP.encode(), b"https://evil.example") + b"Transfer-Encoding: chunked\r\n\r\n")
    assert status(wire.answer()) == 403
    wire.send(b"zz\r\n" + HEALTH)
    assert wire.rest() == b""
