"""Requests that are refused as a whole, whatever they push, and what pages of other origins may read of the answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.server import LOCAL, SHOP, Browser, Server, new_id, new_ids, outcomes, track
from tests.support.wire import LIMIT, batch, error, one, padded

# Whole-request errors


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE"])
def test_other_methods_are_405_whatever_else_is_wrong(server: Server, method: str) -> None:
    response = server.client.request(method, "/scq/push", content=b"x" * (LIMIT + 1))
    assert error(response)[0] == 405
    assert "POST" in response.headers["allow"]


def test_head_is_405_too(server: Server) -> None:
    assert server.client.head("/scq/push").status_code == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": ""},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "https://shop.example.evil.example"},
        {"origin": "https://shop.example:8443"},
        {"origin": "http://shop.example"},
        {"origin": "https://SHOP.example/"},
        {"origin": "https://sub.shop.example", "sec_fetch_site": "same-site"},
        {"origin": "https://evil.example", "sec_fetch_site": "cross-site"},
        {"origin": "https://evil.example", "sec_fetch_site": "none"},
        {"origin": "", "sec_fetch_site": "same-origin"},
        {"origin": "null", "sec_fetch_site": "same-origin"},
        {"origin": "http://shop.example", "sec_fetch_site": "same-origin"},
        {"origin": "https://[", "sec_fetch_site": "same-origin"},
        {"origin": "javascript:x", "sec_fetch_site": "same-origin"},
        {"origin": "http://127.0.0.1.evil.example", "sec_fetch_site": "same-origin"},
        {"origin": "http://localhost@evil.example", "sec_fetch_site": "same-origin"},
    ],
)
def test_other_origins_are_403_before_anything_is_read(server: Server, headers: dict[str, str]) -> None:
    response = server.send(b"x" * (LIMIT + 1), **headers)
    assert error(response)[0] == 403
    assert response.headers.get("access-control-allow-origin", headers["origin"]) == headers["origin"]
    assert "set-cookie" not in response.headers


def test_a_listed_origin_on_another_site_is_refused_and_told_what_to_do(server: Server) -> None:
    response = server.send(batch(track("cart-1")), sec_fetch_site="cross-site")
    assert error(response)[0] == 403
    assert "own domain" in response.json()["message"]
    assert response.headers["access-control-allow-origin"] == SHOP


@pytest.mark.parametrize("site", ["same-origin", "same-site", ""])
def test_a_listed_origin_may_push(server: Server, site: str) -> None:
    assert server.send(batch(track("cart-1")), sec_fetch_site=site).status_code == 202


@pytest.mark.parametrize(
    "origin", ["https://unlisted.example", "http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"]
)
def test_the_same_origin_needs_no_entry(server: Server, origin: str) -> None:
    response = server.send(batch(track("cart-1")), origin=origin, sec_fetch_site="same-origin")
    assert response.status_code == 202


def test_two_origin_headers_are_refused(server: Server) -> None:
    assert error(server.send(batch(), (("Origin", SHOP),)))[0] == 403
    assert error(server.send(batch(), (("Origin", "https://evil.example"),)))[0] == 403


def test_64_kb_are_read_and_a_byte_more_is_413(server: Server) -> None:
    assert server.send(padded(LIMIT)).status_code == 202
    assert error(server.send(padded(LIMIT + 1)))[0] == 413
    assert error(server.send(b"x" * (LIMIT + 1)))[0] == 413


def test_50_pushes_are_taken_and_51_are_413(server: Server) -> None:
    assert len(server.post([one(track("cart-1")) for _ in range(50)]).json()["results"]) == 50
    assert error(server.post([one(track("cart-1")) for _ in range(51)]))[0] == 413
    assert error(server.post([None] * 51))[0] == 413


def test_too_many_pushes_count_before_what_else_is_malformed(server: Server) -> None:
    assert error(server.send({"v": 2, "pushes": [one(track("cart-1")) for _ in range(51)]}))[0] == 413


def test_a_413_of_too_many_stores_none_of_them(server: Server) -> None:
    ids = new_ids(51)
    assert server.post([one(track("cart-1"), push_id) for push_id in ids]).status_code == 413
    again = server.post([one(track("cart-1"), ids[0])])
    assert outcomes(again.json()["results"]) == ["held"]


MALFORMED: list[bytes] = [
    b"",
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"{}",
    b"{",
    b'{"v":1,"pushes":[}',
    b'{"v":1,"pushes":[]}x',
    b'{"v":1}',
    b'{"v":1,"pushes":{}}',
    b'{"v":1,"pushes":null}',
    b'{"v":2,"pushes":[]}',
    b'{"v":NaN,"pushes":[]}',
    b'{"v":1,"pushes":[NaN]}',
    b"\xff\xfe{\x00}\x00",
    b'{"v":1,"pushes":["\xc3\x28"]}',
    b'{"v":1,"pushes":[\x00]}',
    b"[" * 60_000,
    b'{"a":' * 12_000,
    b"[" * 30_000 + b"]" * 30_000,
    b"--boundary\r\nContent-Disposition: form-data\r\n\r\n",
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_body_is_400(server: Server, body: bytes) -> None:
    response = server.send(body)
    assert error(response)[0] == 400
    assert response.headers["access-control-allow-origin"] == SHOP


NASTY: list[bytes] = [
    b'{"id":"%s","call":["track",{"addTags":["cart-\\ud83d"]}]}',
    b'{"id":"%s","call":["track",{"addTags":["cart-\\u0000"]}]}',
    b'{"id":"%s","call":["track",{"addTags":[1e999]}]}',
    b'{"id":"%s","call":["track",{"addTags":[' + b"9" * 6000 + b"]}]}",
    b'{"id":"%s","call":["identify",{"firstName":' + b"9" * 6000 + b"}]}",
    b'{"id":"%s","call":["identify",{"customFields":{"\\ud800":"\\udfff","x":-1e999}}]}',
    b'{"id":"%s","call":["identify",{"\\ud83d":"x","":"y","__proto__":{"a":1}}]}',
    b'{"id":"%s","call":["track",' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"]}",
    b'{"id":"%s","id":"twice","call":["track",{}],"call":[]}',
    b'{"id":"%s","call":["identify",{"email":"\\ud83d@example.com"}]}',
    b'{"id":"%s","call":["identify",{"birthday":"0000-99-99"}]}',
    b'{"id":"%s","call":["identify",{"tags":{"a":"b"},"firstName":{"a":[]}}]}',
    b'{"id":"%s","call":[["track"],{}]}',
    b'{"id":"%s","call":[null,null,null]}',
]


@pytest.mark.parametrize("push", NASTY, ids=range(len(NASTY)))
def test_a_nasty_push_is_judged_alone_and_its_neighbours_go_on(ann: Browser, push: bytes) -> None:
    neighbours = [json.dumps(one(track("cart-1"))).encode() for _ in range(2)]
    pushes = b",".join([neighbours[0], push.replace(b"%s", new_id().encode()), neighbours[1]])
    response = ann.server.send(b'{"v":1,"pushes":[' + pushes + b"]}", cookie=f"__Host-scq={ann.cookie}")
    assert response.status_code == 202
    results = response.json()["results"]
    assert [results[0]["status"], results[2]["status"]] == ["accepted", "accepted"]
    assert results[1]["status"] in ("accepted", "refused")


@pytest.mark.parametrize("s", [None, 7, "", "x", "a" * 5000, ["a"], {}, "\ud800", "\x00" * 20, 1e999, True])
def test_an_odd_session_value_is_no_obstacle(server: Server, s: Any) -> None:
    response = server.send(batch(track("cart-1")) | {"s": s})
    assert outcomes(response.json()["results"]) == ["held"]


def test_unknown_keys_of_the_request_are_ignored(server: Server) -> None:
    response = server.send(batch(track("cart-1")) | {"future": {"x": [1]}, "results": []})
    assert response.status_code == 202


@pytest.mark.parametrize("chunk", [1, 700, 9_000])
def test_a_chunked_body_is_read_up_to_the_limit(server: Server, chunk: int) -> None:
    def chunked(body: bytes) -> bytes:
        head = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        parts = (body[at : at + chunk] for at in range(0, len(body), chunk))
        return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    assert server.raw(chunked(json.dumps(batch(track("cart-1"))).encode())).startswith(b"HTTP/1.1 202")
    if chunk > 1:
        assert server.raw(chunked(padded(LIMIT))).startswith(b"HTTP/1.1 202")
        assert server.raw(chunked(padded(LIMIT + 1))).startswith(b"HTTP/1.1 413")


def test_a_length_over_the_limit_is_413_before_the_body_arrives(server: Server) -> None:
    head = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nContent-Length: 99999999\r\n\r\n"
    assert server.raw(head.encode()).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: -5",
        "Content-Length: abc",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Content-Length: 99999999999999999999999999",
        "X-\x00: y",
        "Content-Length: 2\r\nX: " + "y" * 200_000,
        "Content-Length: 2\r\nCookie: __Host-scq=\xff\xfe; \xc3\x28=\x80",
        "Content-Length: 2\r\nCookie: ;;;=;=;__Host-scq;__Host-scq==",
        "Content-Length: 2\r\nSec-Fetch-Site: \xff\r\nSec-GPC: \xff",
        "Content-Length: 2\r\nX-Forwarded-For: [::1, :::, 1.2.3.4:99999, %eth0, , \xff",
        "Content-Length: 2\r\nContent-Type: text/\xff;;;",
        "Content-Length: 2\r\nContent-Encoding: gzip",
        "Content-Length: 2\r\nExpect: 100-continue",
        "Content-Length: 2\r\nUpgrade: websocket\r\nConnection: Upgrade",
    ],
)
def test_nasty_headers_are_never_a_5xx(server: Server, head: str) -> None:
    request = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\n{head}\r\n\r\n{{}}".encode("latin-1")
    answer = server.raw(request)
    assert not answer or re.match(rb"HTTP/1\.1 (100|202|4\d\d) ", answer)
    assert server.post([]).status_code == 202


@pytest.mark.parametrize(
    "path",
    ["/", "/scq", "/scq/", "/scq/pu/sh", "/prod/", "/prod/push/x", "/%00", "/%ff", "//push", "/scq/../push", "/x.js"],
)
def test_an_unknown_path_is_a_404_in_json(server: Server, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    answer = server.raw(request)
    assert answer.startswith(b"HTTP/1.1 404")
    assert sorted(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error", "message"]


# CORS


def test_a_preflight_of_a_listed_origin_is_204_with_credentials_allowed(server: Server) -> None:
    for origin in (SHOP, LOCAL):
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        response = server.client.options("/scq/push", headers=headers)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == origin
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "POST" in response.headers["access-control-allow-methods"]
        assert "content-type" in response.headers["access-control-allow-headers"].lower()


def test_a_preflight_of_another_origin_is_403(server: Server) -> None:
    for headers in ({}, {"Origin": "https://evil.example"}, {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}):
        response = server.client.options("/scq/push", headers=headers)
        assert error(response)[0] == 403
        assert "access-control-allow-origin" not in response.headers


def test_answers_and_errors_can_be_read_by_the_listed_origin_and_by_no_other(server: Server) -> None:
    for response in (server.post([one(track("cart-1"))]), server.send(b"x"), server.send(padded(LIMIT + 1))):
        assert response.headers["access-control-allow-origin"] == SHOP
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "origin" in response.headers["vary"].lower()
        assert "no-store" in response.headers["cache-control"]
