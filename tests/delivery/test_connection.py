"""One connection over real sockets: every exchange ends as an answer or as a known kind of failure, whatever server, network or library do."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import h11
import pytest

from proxy.delivery.connection import (
    FRESH_SECONDS,
    IDLE_SECONDS,
    MAX_ANSWER_BYTES,
    Answer,
    Connection,
    Failure,
    failure_of,
)
from tests.support.live import free_port
from tests.support.sending import until
from tests.support.tls import contexts
from tests.support.upstream import ALERT, WHOLE, Cut, Reply, Request, upstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BROKE = Failure("the connection broke", reached=True)
NO_HTTP = Failure("the connection closed without a valid HTTP answer", reached=True)


class Server:
    """Answers with `answer`, cut as `cut` says; `connections`: by which each request came."""

    def __init__(self, answer: bytes | None = OK, cut: Cut = WHOLE) -> None:
        self.reply = Reply(answer, cut)
        self.connections: list[int] = []

    async def __call__(self, request: Request) -> Reply:
        self.connections.append(request.connection)
        return self.reply


def connection() -> Connection:
    return Connection(contexts("localhost").client, timeout_seconds=60)


async def post(to: Connection, url: str, *, repeatable: bool = True) -> Answer | Failure:
    return await to.exchange("POST", f"{url}/contact/identify", {"X-Key": "key"}, b"{}", repeatable=repeatable)


async def once(answer: bytes | None, cut: Cut = WHOLE, *, tls: bool = False) -> Answer | Failure:
    async with upstream(Server(answer, cut), tls=tls) as url:
        to = connection()
        try:
            return await post(to, url)
        finally:
            await to.aclose()


def status(answer: Answer | Failure) -> int | None:
    return answer.status if isinstance(answer, Answer) else None


# --- what an answer may be


@pytest.mark.parametrize("tls", [False, True])
async def test_an_answer_that_is_cut_at_any_byte_is_an_answer_or_a_failure(tls: bool) -> None:
    server = Server()
    async with upstream(server, tls=tls) as url:
        to = connection()
        for after in range(len(OK)):
            server.reply = Reply(OK, Cut(after, reset=after % 2 == 1))
            answer = await post(to, url)
            assert status(answer) == 200 if isinstance(answer, Answer) else answer in {BROKE, NO_HTTP}
        server.reply = Reply(OK)
        assert status(await post(to, url)) == 200
        await to.aclose()
    assert len(server.connections) == len(OK) + 1, "each was sent once"


@pytest.mark.parametrize(
    "cut", [Cut(0, behind=ALERT), Cut(3, behind=ALERT), *(Cut(flip=place) for place in (0, 1, 5, 9, -1))]
)
async def test_an_alert_or_a_bad_record_in_an_answer_is_a_connection_that_broke(cut: Cut) -> None:
    assert await once(OK, cut, tls=True) in {BROKE, NO_HTTP}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA\x00: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: " + b"x" * 4 * MAX_ANSWER_BYTES,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
)
async def test_what_is_no_answer_leaves_the_outcome_unknown(answer: bytes | None) -> None:
    failure = await once(answer, Cut(len(answer or b"")))
    assert isinstance(failure, Failure)
    assert failure.reached


async def test_chunks_that_are_broken_leave_the_status() -> None:
    head = b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
    for rest in (b"zz\r\n", b"ffffffffffffffffffffffff\r\n", b"0\r\nA: b", b"-1\r\n"):
        answer = await once(head + rest, Cut(200))
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body) == (400, b"{}")


@pytest.mark.parametrize(
    ("value", "read"),
    [(b"7", "7"), (b"", None), (b"\xff", None), (b"7\x80", None), (b"9" * 201, None), (b"a\tb", None)],
)
async def test_a_header_is_printable_and_short_or_missing(value: bytes, read: str | None) -> None:
    answer = await once(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: " + value + b"\r\n\r\n")
    assert isinstance(answer, Answer)
    assert answer.header("retry-after") == read


async def test_a_body_of_tiny_chunks_without_end_is_read_to_a_limit() -> None:
    answer = await once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000)
    assert isinstance(answer, Answer)
    assert len(answer.body) <= MAX_ANSWER_BYTES


# --- one answer for one request


@pytest.mark.parametrize("tls", [False, True])
async def test_what_follows_an_answer_is_not_taken_for_the_next_one(tls: bool) -> None:
    server = Server(OK + OK.replace(b"200", b"400"))
    async with upstream(server, tls=tls) as url:
        to = connection()
        assert [status(await post(to, url)) for _ in range(3)] == [200] * 3
        await to.aclose()
    assert server.connections == [1, 2, 3]


@pytest.mark.parametrize("tls", [False, True])
async def test_one_connection_serves_one_request_after_the_other(tls: bool) -> None:
    server = Server()
    async with upstream(server, tls=tls) as url:
        to = connection()
        assert [status(await post(to, url, repeatable=number % 2 == 0)) for number in range(4)] == [200] * 4
        await to.aclose()
    assert server.connections == [1] * 4


@asynccontextmanager
async def idle(server: Server, seconds: float) -> Any:
    """A connection over which one answer came so long ago."""
    async with upstream(server) as url:
        to = connection()
        await post(to, url)
        assert to._line is not None
        to._line._used_at -= seconds
        yield to, url
        await to.aclose()


@pytest.mark.parametrize(
    ("seconds", "repeatable", "connections"),
    [
        (FRESH_SECONDS, True, [1, 1]),
        (FRESH_SECONDS, False, [1, 2]),
        (0.0, False, [1, 1]),
        (IDLE_SECONDS, True, [1, 2]),
    ],
)
async def test_what_cannot_be_repeated_goes_over_a_connection_that_was_just_used(
    seconds: float, repeatable: bool, connections: list[int]
) -> None:
    server = Server()
    async with idle(server, seconds) as (to, url):
        assert status(await post(to, url, repeatable=repeatable)) == 200
    assert server.connections == connections


async def test_what_cannot_be_repeated_never_meets_a_server_that_closes_what_is_idle() -> None:
    """14 requests, each after a while: on a connection that is not new, the server ends instead of answering."""
    asked = list[int]()

    async def answer(request: Request) -> Reply:
        known = request.connection in asked
        asked.append(request.connection)
        return Reply(None, Cut(reset=True)) if known else Reply(OK)

    async with upstream(answer, tls=True) as url:
        to = connection()
        for _ in range(14):
            if to._line is not None:
                to._line._used_at -= FRESH_SECONDS
            assert status(await post(to, url, repeatable=False)) == 200
        await to.aclose()
    assert asked == list(range(1, 15))


async def test_another_origin_gets_another_connection() -> None:
    one, other = Server(), Server()
    async with upstream(one) as url, upstream(other) as elsewhere:
        to = connection()
        for address in (url, elsewhere, url):
            assert status(await post(to, address)) == 200
        await to.aclose()
    assert (one.connections, other.connections) == ([1, 2], [1])


async def test_a_request_that_is_cancelled_leaves_nothing_behind() -> None:
    asked, server = asyncio.Event(), Server()

    async def hang_once(request: Request) -> Reply:
        if request.connection == 1:
            asked.set()
            await asyncio.Event().wait()
        return await server(request)

    async with upstream(hang_once) as url:
        to = connection()
        task = asyncio.create_task(post(to, url))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert status(await post(to, url)) == 200
        await to.aclose()
    assert [each for each in asyncio.all_tasks() if each.get_name() == "delivery-reader"] == []


# --- no connection


@contextmanager
def backlog_full() -> Iterator[str]:
    """A server that takes no connection, as its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        yield f"http://127.0.0.1:{port}"
        for each in waiting:
            each.close()


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        ("http://127.0.0.1:PORT", "no connection: connection refused"),
        (f"http://{'x' * 64}.invalid", "no connection: host name not found (DNS)"),
    ],
)
async def test_a_connect_that_fails_has_not_reached_the_server(url: str, detail: str) -> None:
    assert await post(connection(), url.replace("PORT", str(free_port()))) == Failure(detail, reached=False)


async def test_a_connect_that_gets_no_answer_has_not_reached_the_server() -> None:
    with backlog_full() as url:
        failure = await post(Connection(contexts("localhost").client, timeout_seconds=0.4), url)
    assert failure == Failure("no connection in time", reached=False, timed_out=True)


@pytest.mark.parametrize(
    ("trusted", "host", "detail"),
    [
        ("localhost", "127.0.0.1", "the certificate is for another host name"),
        ("other.example", "localhost", "the certificate is not trusted"),
    ],
)
async def test_a_certificate_that_does_not_vouch_for_the_host_is_named(trusted: str, host: str, detail: str) -> None:
    async with upstream(Server(), tls=True) as url:
        to = Connection(contexts(trusted).client, timeout_seconds=60)
        failure = await post(to, url.replace("localhost", host))
    assert failure == Failure(f"no connection: {detail}", reached=False)


async def test_tls_with_a_server_that_does_not_speak_it_has_not_reached_it() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        failure = await post(connection(), f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert failure == Failure("no connection: TLS handshake failed", reached=False)


# --- every exception is of a known kind


def expired() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_code = 10
    return error


@pytest.mark.parametrize(
    ("error", "unreached", "reached"),
    [
        (TimeoutError(), "no connection in time", "no answer in time"),
        (expired(), "no connection: the certificate has expired", BROKE.detail),
        (ssl.SSLError(), "no connection: TLS handshake failed", BROKE.detail),
        (ConnectionResetError(), "no connection", BROKE.detail),
        (
            OSError(24, "Too many open files"),
            "no connection: no file handles left on this machine",
            BROKE.detail,
        ),
        (UnicodeError(), "no connection", BROKE.detail),
        (EOFError(), "no connection", BROKE.detail),
        (h11.RemoteProtocolError("?"), "no connection", NO_HTTP.detail),
        (anyio.BrokenResourceError(), "no connection", BROKE.detail),
        (anyio.ClosedResourceError(), "no connection", BROKE.detail),
        (anyio.EndOfStream(), "no connection", BROKE.detail),
    ],
)
def test_what_a_connection_raises_is_of_a_known_kind(
    error: Exception, unreached: str, reached: str, caplog: pytest.LogCaptureFixture
) -> None:
    timed_out = isinstance(error, TimeoutError)
    assert failure_of(error, reached=False) == Failure(unreached, reached=False, timed_out=timed_out)
    assert failure_of(error, reached=True) == Failure(reached, reached=True, timed_out=timed_out)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("of ann@example.com"), ExceptionGroup("of ann@example.com", [KeyError(), KeyError()])]
)
def test_an_unexpected_error_is_a_failure_too_and_is_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert failure_of(error, reached=True) == BROKE
    assert "unexpected" in caplog.text
    assert "ann@example.com" not in caplog.text


async def test_a_request_that_cannot_be_written_down_is_a_defect_and_raised() -> None:
    with pytest.raises(h11.LocalProtocolError):
        await connection().exchange("GET", "http://127.0.0.1:9/", {"X-Key": "two\r\nlines"}, b"", repeatable=True)


# --- while nothing is asked


@pytest.mark.parametrize("cut", [Cut(behind=ALERT), Cut(behind=b"HTTP/1.1 408 Idle\r\n\r\n")])
async def test_what_comes_while_nothing_is_asked_ends_the_connection(cut: Cut) -> None:
    server, later = Server(), asyncio.Event()

    async def talk(request: Request) -> Reply:
        later.set()
        return await server(request)

    server.reply = Reply(OK, cut)
    async with upstream(talk, tls=True) as url:
        to = connection()
        assert status(await post(to, url)) == 200
        line = to._line
        assert line is not None
        await until(line._reader.done)
        server.reply = Reply(OK)
        assert status(await post(to, url, repeatable=False)) == 200
        await to.aclose()
    assert server.connections == [1, 2]
