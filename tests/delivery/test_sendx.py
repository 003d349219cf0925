"""Both dialects byte for byte, and what is made of every kind of answer, over real sockets."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import __version__
from proxy.config.types import Acceptance, Dialect, Secret
from proxy.core.calls import Attributes, Track
from proxy.core.retry import Verdict
from proxy.delivery.connection import MAX_ANSWER_BYTES
from proxy.delivery.sendx import MAX_DETAIL, Client, Reply, Upstream, error_detail
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from tests.support.live import eventually, free_port, serving
from tests.support.upstream import Cut, Request
from tests.support.upstream import Reply as Sent
from tests.support.upstream import upstream as answering

KEY = "a-key-that-nobody-may-see"
ADDRESS = "john.doe+x@gmail.com"
NOT_COUNTED = "which SCQ_DELIVERED=json does not count as delivered"
MAINTENANCE = (
    "<html><title>Maintenance</title><style></style><p>Back at 9 &amp; sorry.\nWrite to "
    "<a href='/'>ann&#64;example.com</a> <b>john.doe+x@gmail.com"
)
HALF = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n{"status":"200","mess'
EVERYTHING = Attributes(
    {"company": "C", "birthday": "1990-02-03", "firstName": "Zoë", "lastName": "B"},
    {"Age": "++34"},
    ("x", "y"),
    "n@b.co",
    {"lists": ["l1"], "email": "other@b.co"},
)


@pytest.fixture
def sandbox() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=KEY, team_id="TEAM ID")
    with serving(app) as url:
        yield app.state.sandbox, url


def rest(url: str) -> Upstream:
    return Upstream(Dialect.REST, f"{url}/api/v1/rest", Secret(KEY))


def legacy(url: str) -> Upstream:
    return Upstream(Dialect.LEGACY, f"{url}/api/v1", Secret(KEY), "TEAM ID")


async def send(upstream: Upstream, body: Attributes | Track, *, now: float = 0) -> Reply:
    async with Client(timeout_seconds=50, clock=lambda: now) as client:
        return await client.send(upstream.request_for(ADDRESS, body))


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that records what comes on each connection, answers with these bytes, and closes."""
    received: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        received.append(head + await reader.readexactly(length))
        try:
            writer.write(answer)
            await writer.drain()
        except ConnectionError:
            pass  # the client had seen enough
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received


def established(url: str) -> bool:
    """Whether the server at `url` has not closed its side of a connection yet."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(port) and row[3] == "01" for row in rows)


# --- requests, byte for byte


async def on_the_wire(dialect: Dialect, body: Attributes | Track) -> tuple[str, dict[str, str], str]:
    async with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (url, received):
        answer = await send(rest(url) if dialect is Dialect.REST else legacy(url), body)
    assert answer.verdict is Verdict.DELIVERED
    head, _, content = received[0].partition(b"\r\n\r\n")
    line, *fields = head.decode("ascii").split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    del headers["Host"], headers["Content-Length"]
    return line, headers, content.decode("utf-8")


COMMON = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": f"scq-proxy/{__version__}",
}


async def test_a_rest_identify_is_what_sendx_s_python_sdk_sends() -> None:
    line, headers, content = await on_the_wire(Dialect.REST, EVERYTHING)
    assert line == "POST /api/v1/rest/contact/identify HTTP/1.1"
    assert headers == COMMON | {"X-Team-ApiKey": KEY}
    assert content == (
        '{"email": "john.doe+x@gmail.com", "firstName": "Zo\\u00eb", "lastName": "B", "company": "C", '
        '"birthday": "1990-02-03", "customFields": {"Age": "++34"}, "tags": ["x", "y"], "newEmail": "n@b.co", '
        '"lists": ["l1"]}'
    )


async def test_a_rest_track_is_what_sendx_s_python_sdk_sends() -> None:
    line, headers, content = await on_the_wire(Dialect.REST, Track(("paid user",), ("trial user",)))
    assert line == "POST /api/v1/rest/contact/track HTTP/1.1"
    assert headers == COMMON | {"X-Team-ApiKey": KEY}
    assert content == ('{"email": "john.doe+x@gmail.com", "addTags": ["paid user"], "removeTags": ["trial user"]}')


async def test_a_legacy_identify_has_compact_json_and_the_team_in_the_query() -> None:
    line, headers, content = await on_the_wire(Dialect.LEGACY, Attributes({"firstName": "Zoë"}, tags=("x", "y")))
    assert line == "POST /api/v1/contact/identify?team_id=TEAM%20ID HTTP/1.1"
    assert headers == COMMON | {"api_key": KEY}
    assert content == '{"email":"john.doe+x@gmail.com","firstName":"Zoë","tags":["x","y"]}'


async def test_a_legacy_track_is_what_sendx_s_node_sdk_sends() -> None:
    line, headers, content = await on_the_wire(Dialect.LEGACY, Track(("paid user",)))
    assert line == "POST /api/v1/contact/track?team_id=TEAM%20ID&email=john.doe%2Bx%40gmail.com HTTP/1.1"
    assert headers == COMMON | {"api_key": KEY}
    assert content == '{"addTags":["paid user"],"removeTags":[]}'


@pytest.mark.parametrize(
    ("track", "sent"),
    [
        (Track(("a",)), {"addTags": ["a"]}),
        (Track((), ("b",)), {"removeTags": ["b"]}),
        (Track(), {"addTags": []}),
    ],
)
def test_a_rest_track_leaves_out_what_is_empty(track: Track, sent: dict[str, Any]) -> None:
    assert json.loads(rest("").request_for(ADDRESS, track).content) == {"email": ADDRESS} | sent


def test_an_identify_with_nothing_but_the_address_is_just_that() -> None:
    assert rest("").request_for(ADDRESS, Attributes()).content == b'{"email": "john.doe+x@gmail.com"}'


@pytest.mark.parametrize("address", ["o'neil!*(x)~@example.com", "müller@bücher.example", "a&b=c?#%@example.com"])
async def test_any_address_reaches_sendx_as_it_is(sandbox: tuple[Sandbox, str], address: str) -> None:
    state, url = sandbox
    for upstream in (rest(url), legacy(url)):
        async with Client(timeout_seconds=50) as client:
            for body in (Attributes(), Track(("t",))):
                answer = await client.send(upstream.request_for(address, body))
                assert answer.verdict is Verdict.DELIVERED
    assert [contact.email for contact in state.contacts.newest_first()] == [address]
    assert state.violations == []


@given(
    st.builds(Attributes, tags=st.lists(st.text(min_size=1)).map(tuple), extra=st.dictionaries(st.text(), st.text()))
)
def test_every_identify_is_json_in_both_dialects(body: Attributes) -> None:
    sent = [json.loads(upstream.request_for(ADDRESS, body).content) for upstream in (rest(""), legacy(""))]
    assert sent[0] == sent[1]
    assert sent[0]["email"] == ADDRESS


def test_a_request_shows_neither_address_nor_key_nor_body() -> None:
    for upstream in (rest(""), legacy("")):
        shown = repr(upstream) + repr(upstream.request_for(ADDRESS, Attributes({"firstName": "Zoë"})))
        assert all(secret not in shown for secret in (KEY, "john", "gmail", "Zoë"))


# --- verdicts


@pytest.mark.parametrize(
    ("fault", "verdict", "detail"),
    [
        (Fault(status=422), Verdict.REJECTED, "422 Unprocessable Entity: Request body is not in proper format"),
        (Fault(status=401), Verdict.UNAUTHORIZED, "401 Unauthorized: The Team ID or API Key specified is not valid"),
        (Fault(status=500, body='{"error":"boom"}'), Verdict.UNAVAILABLE, "500 Internal Server Error: boom"),
        (Fault(kind="html", status=502), Verdict.UNAVAILABLE, "502 Bad Gateway"),
        (Fault(status=201), Verdict.DELIVERED, "201 Created"),
        (Fault(kind="empty", status=200), Verdict.UNCLEAR, f"200 OK, {NOT_COUNTED} (empty body)"),
        (Fault(status=204), Verdict.UNCLEAR, f"204 No Content, {NOT_COUNTED} (empty body)"),
        (
            Fault(kind="html", status=200, body=MAINTENANCE),
            Verdict.UNCLEAR,
            f'200 OK, {NOT_COUNTED} (text/html, 141 bytes: "Maintenance Back at 9 & sorry. Write to *** ***")',
        ),
        (
            Fault(status=200, body='{"status":"error"}'),
            Verdict.UNCLEAR,
            f'200 OK, {NOT_COUNTED} (application/json, 18 bytes: "{{"status": "error"}}")',
        ),
        (Fault(kind="reset"), Verdict.UNAVAILABLE, "the connection broke"),
        (Fault(kind="reset", applied=True), Verdict.UNAVAILABLE, "the connection broke"),
    ],
)
async def test_what_is_made_of_a_fault(
    sandbox: tuple[Sandbox, str], fault: Fault, verdict: Verdict, detail: str
) -> None:
    state, url = sandbox
    state.faults.script("*", fault)
    answer = await send(rest(url), Attributes())
    assert (answer.verdict, answer.detail) == (verdict, detail)


async def test_a_request_without_an_answer_ends_at_its_deadline_and_the_next_one_works(
    sandbox: tuple[Sandbox, str],
) -> None:
    state, url = sandbox
    state.faults.script("*", Fault(kind="hang"))
    upstream = rest(url)
    async with Client(timeout_seconds=1) as client:
        hung = await client.send(upstream.request_for(ADDRESS, Attributes()))
        assert (hung.verdict, hung.timed_out, hung.status) == (Verdict.UNAVAILABLE, True, None)
        assert hung.detail == "no answer in time"
        assert (await client.send(upstream.request_for(ADDRESS, Attributes()))).verdict is Verdict.DELIVERED


async def test_a_failed_connect_is_known_as_not_sent() -> None:
    answer = await send(rest(f"http://127.0.0.1:{free_port()}"), Attributes())
    assert (answer.verdict, answer.detail, answer.timed_out) == (
        Verdict.UNREACHED,
        "no connection: connection refused",
        False,
    )


async def test_an_answer_that_is_no_http_leaves_the_outcome_unknown() -> None:
    async with raw_server(b"SSH-2.0-OpenSSH_9.2\r\n") as (url, _):
        assert (await send(rest(url), Attributes())).verdict is Verdict.UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.1 422 Bad\r\nContent-Length: 1000\r\n\r\n{", Verdict.REJECTED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", Verdict.UNAVAILABLE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}", Verdict.DELIVERED),
    ],
)
async def test_a_status_counts_even_if_the_rest_of_the_body_never_comes(answer: bytes, verdict: Verdict) -> None:
    async with raw_server(answer) as (url, _):
        assert (await send(rest(url), Attributes())).verdict is verdict


@pytest.mark.parametrize(
    ("cut", "seconds", "detail"),
    [
        (Cut(len(HALF)), 60.0, "the connection broke within an answer"),
        (Cut(), 0.5, "no whole answer in time"),
    ],
)
async def test_half_an_answer_leaves_the_outcome_unknown_and_does_not_speak_against_the_base_url(
    cut: Cut, seconds: float, detail: str
) -> None:
    async def answer(_: Request) -> Sent:
        return Sent(HALF, cut)

    async with answering(answer) as url, Client(timeout_seconds=seconds) as client:
        reply = await client.send(rest(url).request_for(ADDRESS, Attributes()))
    assert (reply.verdict, reply.detail, reply.timed_out) == (Verdict.UNAVAILABLE, detail, cut.after is None)


async def test_a_success_counts_whatever_its_body_if_the_operator_says_so(sandbox: tuple[Sandbox, str]) -> None:
    state, url = sandbox
    faults = [Fault(kind="html", status=200), Fault(kind="empty", status=200), Fault(status=200, body='{"error":1}')]
    state.faults.script("*", *faults, Fault(status=500))
    upstream = replace(rest(url), acceptance=Acceptance.ANY_2XX)
    verdicts = [(await send(upstream, Attributes())).verdict for _ in range(4)]
    assert verdicts == [Verdict.DELIVERED] * 3 + [Verdict.UNAVAILABLE]


@pytest.mark.parametrize("dialect", [rest, legacy])
async def test_a_request_that_changes_nothing_needs_the_key(
    sandbox: tuple[Sandbox, str], dialect: Callable[[str], Upstream]
) -> None:
    state, url = sandbox
    await send(dialect(url), Attributes(tags=("a",)))
    async with Client(timeout_seconds=50) as client:
        request = dialect(url).request_to_list_tags()
        assert (await client.send(request)).verdict is Verdict.DELIVERED
        wrong = replace(dialect(url), api_key=Secret("wrong")).request_to_list_tags()
        assert (await client.send(wrong)).verdict is Verdict.UNAUTHORIZED
    assert [(one.method, one.contact) for one in state.requests[1:]] == [("GET", None)] * 2
    assert state.violations == []


async def test_one_connection_serves_one_request_after_the_other() -> None:
    opened: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        upstream = rest(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with Client(timeout_seconds=50) as client:
            answers = [await client.send(upstream.request_for(ADDRESS, Attributes())) for _ in range(3)]
    assert [answer.verdict for answer in answers] == [Verdict.DELIVERED] * 3
    assert opened == [1]


@pytest.mark.parametrize("status", [b"421 Misdirected Request", b"408 Request Timeout"])
async def test_an_answer_about_the_connection_has_the_next_request_sent_over_another(status: bytes) -> None:
    opened: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
                said = status if len(opened) == 1 else b"200 OK"
                writer.write(b"HTTP/1.1 " + said + b"\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        upstream = rest(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with Client(timeout_seconds=50) as client:
            answers = [await client.send(upstream.request_for(ADDRESS, Attributes())) for _ in range(2)]
    assert [answer.verdict for answer in answers] == [Verdict.BUSY, Verdict.DELIVERED]


async def test_a_connection_that_sendx_has_closed_is_opened_anew() -> None:
    kept = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"  # so it says
    async with raw_server(kept) as (url, received), Client(timeout_seconds=50) as client:
        for number in range(1, 4):
            answer = await client.send(rest(url).request_for(ADDRESS, Attributes()))
            assert answer.verdict is Verdict.DELIVERED
            assert len(received) == number
            await asyncio.to_thread(eventually, lambda: not established(url))


async def test_a_redirect_is_not_followed() -> None:
    answer = b"HTTP/1.1 307 Elsewhere\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with raw_server(answer) as (url, received):
        assert (await send(rest(url), Attributes())).verdict is Verdict.REDIRECTED
    assert len(received) == 1


async def test_no_more_than_64_kb_of_an_answer_are_read() -> None:
    body = b'{"message":"' + b"x" * 10 * MAX_ANSWER_BYTES
    async with raw_server(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1) + body) as (url, _):
        answer = await send(rest(url), Attributes())
    assert (answer.verdict, answer.detail) == (Verdict.REJECTED, "400 Bad Request")


async def test_proxies_of_the_environment_are_not_used(
    sandbox: tuple[Sandbox, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert (await send(rest(sandbox[1]), Attributes())).verdict is Verdict.DELIVERED


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Fault(status=429), None),
        (Fault(status=429, retry_after=7), 7.0),
        (Fault(status=503, retry_after=7), 7.0),
    ],
)
async def test_retry_after_is_handed_on(sandbox: tuple[Sandbox, str], fault: Fault, seconds: float | None) -> None:
    state, url = sandbox
    state.faults.script("*", fault)
    assert (await send(rest(url), Attributes())).retry_after_seconds == seconds


async def test_retry_after_as_a_date_counts_from_the_clock() -> None:
    date = formatdate(1_000_060, usegmt=True).encode()
    async with raw_server(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: " + date + b"\r\n\r\n") as (url, _):
        answer = await send(rest(url), Attributes(), now=1_000_000)
    assert (answer.verdict, answer.retry_after_seconds) == (Verdict.THROTTLED, 60.0)


# --- what the operator sees


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"message":"no","error":"boom"}', "400 Bad Request: no"),
        (b'{"message":7,"error":"boom"}', "400 Bad Request: boom"),
        (b'{"message":""}', "400 Bad Request"),
        (b'["message"]', "400 Bad Request"),
        (b"\xff\xfe<html>", "400 Bad Request"),
        (b"[" * 60_000, "400 Bad Request"),
        (b'{"message":"two\\nlines\\u0000\\u001b[31m"}', "400 Bad Request: two lines [31m"),
        (b'{"message":"bad \\ud83d"}', "400 Bad Request: bad"),
        (b'{"message":"bad \xed\xa0\xbd, \\udc00\\ud800"}', "400 Bad Request: bad ,"),
        (b'{"message":"\\u202ejohn.doe\\u200b+x@gm\\u00adail.com\\u2028"}', "400 Bad Request: ***"),
        (b'{"message":"<ann@example.com> and bob%40example.com"}', "400 Bad Request: <***> and ***"),
        (b'{"message":"Key A-KEY-that-nobody-may-see for JOHN.doe+x@gmail.com"}', "400 Bad Request: Key *** for ***"),
    ],
)
def test_what_sendx_said_is_shown_without_addresses_and_keys(body: bytes, detail: str) -> None:
    assert error_detail(400, body, hide=(KEY, ADDRESS)) == detail


def test_an_unknown_status_has_no_phrase() -> None:
    assert error_detail(599, b"") == "599"


@given(st.text(max_size=3_000), st.text(max_size=3_000))
def test_no_address_survives_in_a_detail_wherever_it_stands(before: str, after: str) -> None:
    body = json.dumps({"message": f"{before} {ADDRESS} {after}"}).encode()
    detail = error_detail(400, body, hide=(KEY, ADDRESS))
    assert "john.doe" not in detail
    assert len(detail) <= MAX_DETAIL + len("400 Bad Request: ")


@pytest.mark.parametrize("fault", [None, Fault(status=422), Fault(kind="reset")])
async def test_nothing_personal_is_logged_at_any_level(
    sandbox: tuple[Sandbox, str], caplog: pytest.LogCaptureFixture, fault: Fault | None
) -> None:
    state, url = sandbox
    if fault:
        state.faults.script("*", fault)
    with caplog.at_level(logging.DEBUG):
        for upstream in (rest(url), legacy(url)):
            await send(upstream, Track(("secret tag",)))
    records = [record for record in caplog.records if not record.name.startswith("uvicorn")]
    assert all(secret not in record.getMessage() for record in records for secret in (KEY, "john", "secret tag"))


async def test_a_fault_in_the_program_is_raised_and_not_taken_for_an_answer() -> None:
    with pytest.raises(httpx.InvalidURL):
        await send(rest("http://127.0.0.1:not-a-port"), Attributes())
