"""Anything at all, by Hypothesis, and bodies that come slowly or never: nothing makes the server fail.

`system/test_anything.py` and `web/test_server_api.py` do the same with bodies; here is the rest.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import BadData
from itsdangerous.encoding import base64_decode

from tests.support.live import PATIENCE_SECONDS
from tests.support.server import LOCAL, SERVER_KEY, SHOP, Json, Server, dumps, identify, outcomes, token, track
from tests.support.threats import KEY, OURS, claims, jws
from tests.support.wire import batch

# Slow bodies: begun before everything else, judged at the end, so that nobody waits for the limit


class Dawdler(threading.Thread):
    """A client whose request never ends: silent, or with a byte now and then. `answer`: what it was told in the end."""

    def __init__(self, server: Server, head: str, trickle: bytes) -> None:
        super().__init__(name="dawdler", daemon=True)
        self.answer = b""
        self.given_up = False
        self._head, self._trickle = head, trickle
        self._connection = socket.create_connection(("127.0.0.1", server.port), timeout=0.2)

    def run(self) -> None:
        with self._connection as connection, suppress(ConnectionError):
            connection.sendall(self._head.encode())
            while b"\r\n\r\n" not in self.answer and not self.given_up:
                try:
                    received = connection.recv(65_536)
                except TimeoutError:
                    connection.sendall(self._trickle)
                    continue
                if not received:
                    return
                self.answer += received


PUSH_HEAD = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\n"
CALL_HEAD = f"POST /api/v1/rest/contact/identify HTTP/1.1\r\nHost: x\r\nX-Team-ApiKey: {SERVER_KEY}\r\n"


@pytest.fixture(scope="module", autouse=True)
def dawdlers(server: Server) -> Iterator[list[Dawdler]]:
    started = [
        Dawdler(server, PUSH_HEAD + "Content-Length: 500\r\n\r\n{", b""),
        Dawdler(server, PUSH_HEAD + "Content-Length: 50000\r\n\r\n{", b" "),
        Dawdler(server, PUSH_HEAD + "Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        Dawdler(server, CALL_HEAD + "Content-Length: 50000\r\n\r\n{", b" "),
    ]
    for each in started:
        each.start()
    yield started
    for each in started:
        each.given_up = True
        each.join(PATIENCE_SECONDS)


def fuzz(examples: int) -> settings:
    """The same inputs in every run."""
    return settings(max_examples=examples, derandomize=True, database=None)


STATUS = re.compile(rb"HTTP/1\.[01] ([1-4]\d\d|503) ")


def exchange(
    server: Server, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> bytes:
    """One request as it is written, on a connection of its own."""
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    head = b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\nConnection: close\r\n\r\n" % (method, target, lines, len(body))
    return server.raw(head + body)


KNOWN_HEADERS = b"""
Origin Cookie Host Referer Accept Accept-Encoding Authorization X-Forwarded-For X-Forwarded-Proto Forwarded Sec-Fetch-Site Sec-Fetch-Mode
Sec-GPC Content-Type Content-Encoding If-None-Match Range X-Team-ApiKey api_key Idempotency-Key X-Scq-Check User-Agent Via Date
"""
HEADER_NAMES = st.sampled_from(KNOWN_HEADERS.split()) | st.from_regex(
    rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True
).filter(
    lambda name: name.lower() not in (b"connection", b"content-length", b"transfer-encoding", b"upgrade", b"expect")
)
HEADER_VALUES = st.sampled_from(
    [SHOP.encode(), LOCAL.encode(), b"null", b"same-origin", b"1", b"text/html", b"*", OURS.encode()]
) | st.binary(max_size=60).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\x00", b""))
HEADERS = st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=8)
METHODS = st.sampled_from(
    [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"get", b"QUERY", b"M-SEARCH"]
)
SEGMENTS = st.sampled_from(
    b"scq push scq.js scq.0123456789ab.js prod api v1 rest contact identify track bulk healthz readyz metrics status check . .. %2e%2e %2f %00 %ff"
    b" %C3%28 * ; x.js".split()
) | st.from_regex(rb"[!-~]{0,6}", fullmatch=True)
TARGETS = st.lists(SEGMENTS, max_size=6).map(lambda parts: b"/" + b"/".join(parts))


@fuzz(250)
@given(method=METHODS, target=TARGETS, headers=HEADERS, body=st.binary(max_size=40))
def test_no_method_path_and_headers_make_it_fail(
    server: Server, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    answer = exchange(server, method, target, [(b"Host", b"x"), *headers], body)
    assert STATUS.match(answer), answer[:200]
    assert b"Traceback" not in answer


@fuzz(200)
@given(headers=HEADERS, body=st.binary(max_size=120) | st.just(dumps(batch(track("cart-1")))))
def test_no_headers_make_a_push_fail(server: Server, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    given = [(b"Host", b"x"), (b"Origin", SHOP.encode()), *headers]
    answer = exchange(server, b"POST", b"/scq/push", given, body)
    assert STATUS.match(answer), answer[:200]
    if sum(name.lower() == b"origin" for name, _ in given) > 1:
        assert b" 403 " in answer[:14] or b" 400 " in answer[:14]


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.="


def mutants(genuine: str) -> st.SearchStrategy[str]:
    """Texts that are nearly the genuine one: pieces of it changed, taken out, doubled or put in."""
    places = st.integers(0, len(genuine))
    pieces = st.text(ALPHABET, max_size=4) | st.sampled_from([".", "..", "=", "%", "é", '"', " ", "A" * 1_100])
    edits = st.tuples(places, st.integers(0, 6), pieces)

    def edited(changes: list[tuple[int, int, str]]) -> str:
        text = genuine
        for at, out, put in changes:
            text = text[:at] + put + text[at + out :]
        return text

    return st.lists(edits, min_size=1, max_size=3).map(edited) | st.tuples(places, places).map(
        lambda ends: genuine[min(ends) : max(ends)]
    )


def is_genuine(text: str, genuine: str) -> bool:
    """Whether a mutant still is what was signed, under the signature that was made: base64 can be spelled in several ways."""
    signed, _, signature = text.strip(" ").rpartition(".")
    with suppress(BadData):
        return signed == genuine.rpartition(".")[0] and base64_decode(signature) == base64_decode(
            genuine.rpartition(".")[2]
        )
    return False


@fuzz(250)
@given(cookie=mutants(OURS))
def test_no_mutant_of_a_cookie_is_believed(server: Server, cookie: str) -> None:
    headers = [(b"Host", b"x"), (b"Origin", SHOP.encode()), (b"Cookie", b"__Host-scq=" + cookie.encode())]
    answer = exchange(server, b"POST", b"/scq/push", headers, dumps(batch(identify(firstName="V"))))
    assert answer.startswith(b"HTTP/1.1 202 "), answer[:200]
    assert is_genuine(cookie, OURS) or b'"unverified-identity"' in answer


TOKEN = token("vic@example.com", contact={"firstName": "V"}, exp_in=3_500)


@fuzz(250)
@given(text=mutants(TOKEN))
def test_no_mutant_of_a_token_is_believed(server: Server, text: str) -> None:
    response = server.send(batch(identify(token=text)))
    assert response.status_code == 202
    (result,) = response.json()["results"]
    assert result.get("reason") in ("bad-token", "too-long") or is_genuine(text, TOKEN)


JWT_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["scq", "a@b.co", "backend", "HS256"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CLAIM_NAMES = st.sampled_from(["email", "iat", "exp", "nbf", "aud", "contact", "sub", "iss", "jti", "x"])
HEADER_PARTS = st.sampled_from(["alg", "kid", "typ", "cty", "crit", "b64", "zip", "jwk", "jku", "x5u", "x5c", "enc"])
CONTACTS = st.dictionaries(
    st.sampled_from(["firstName", "tags", "customFields", "newEmail", "email", "token", "x"]), JWT_VALUES, max_size=4
)


@fuzz(150)
@given(
    header=st.dictionaries(HEADER_PARTS, JWT_VALUES, max_size=3),
    changes=st.dictionaries(CLAIM_NAMES, JWT_VALUES, max_size=4),
    contact=st.none() | CONTACTS,
)
def test_whatever_a_back_end_signs_by_mistake_is_judged(
    server: Server, header: dict[str, Json], changes: dict[str, Json], contact: Json
) -> None:
    """Signed with the right key, so every part of it is looked at."""
    said = claims(**({"contact": contact} if contact is not None else {}), **({} if contact is not None else changes))
    response = server.send(batch(identify(token=jws({"alg": "HS256", **header}, said, KEY)), track("cart-1")))
    assert response.status_code == 202
    statuses = outcomes(response.json()["results"])
    assert statuses in (["accepted", "accepted"], ["bad-token", "held"], ["expired-token", "held"])


CONTACT = {
    "email": "vic@example.com", "firstName": "V", "lastName": "I", "company": "C", "birthday": "1990-01-01", "newEmail": "",
    "customFields": {"a": "1", "n": "++1"}, "tags": ["t"], "lists": ["l"], "addTags": ["t"], "removeTags": ["u"],
}  # fmt: skip
CALLS = [
    "/api/v1/rest/contact/identify",
    "/api/v1/rest/contact/identify/bulk",
    "/api/v1/rest/contact/track",
    "/api/v1/contact/identify",
    "/api/v1/contact/track",
]
SPOILED = st.tuples(
    st.sampled_from([CONTACT, [CONTACT], [CONTACT, CONTACT]]).map(dumps),
    st.integers(0, 400),
    st.integers(0, 5),
    st.binary(max_size=4),
).map(lambda parts: parts[0][: parts[1]] + parts[3] + parts[0][parts[1] + parts[2] :])


@fuzz(250)
@given(path=st.sampled_from(CALLS), query=st.from_regex(rb"[!-~]{0,20}", fullmatch=True), headers=HEADERS, body=SPOILED)
def test_no_call_of_a_server_makes_it_fail(
    server: Server, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    given = [(b"Host", b"x"), (b"X-Team-ApiKey", SERVER_KEY.encode()), (b"api_key", SERVER_KEY.encode()), *headers]
    answer = exchange(server, b"POST", path.encode() + b"?" + query.replace(b"#", b""), given, body)
    assert STATUS.match(answer), answer[:200]
    assert b"vic@example.com" not in answer or b" 200 " in answer[:14]


# Slow bodies, begun before all the others


def test_a_body_that_does_not_come_is_answered_408(dawdlers: list[Dawdler]) -> None:
    for dawdler in dawdlers:
        dawdler.join(PATIENCE_SECONDS)
        assert not dawdler.is_alive()
        assert dawdler.answer.startswith(b"HTTP/1.1 408 "), dawdler.answer[:200]
