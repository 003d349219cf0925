"""What stands beside the push endpoint: the script, the operator's paths, and what the settings change about all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.server import ADMIN_TOKEN, COOKIE_KEY, SHOP, Browser, Server, new_email, outcomes, running, track
from tests.support.server import API_KEY as KEY
from tests.support.wire import LIMIT, attributes, batch, error, one, padded

OTHER_KEY = "another-cookie-signing-key-" + "F" * 10


# The shim and the operator's paths


@pytest.mark.parametrize("path", ["/scq/scq.js", "/prod/TEAMID.js", "/prod/a%20b.js", "/prod/x.y.js"])
def test_the_shim_is_served(server: Server, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 200
    assert "javascript" in response.headers["content-type"]
    assert response.headers["etag"]
    assert 0 < int(re.findall(r"max-age=(\d+)", response.headers["cache-control"])[0]) <= 86_400
    assert "immutable" not in response.headers["cache-control"]
    for stale in ("stale-while-revalidate", "stale-if-error"):
        assert f", {stale}=604800" in response.headers["cache-control"], (
            "a week: it may be needed while the proxy is down"
        )
    assert b"_scq" in response.content
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("coding", ["br", "gzip", "identity", "gzip, deflate, br, zstd", "gzip;q=0", "\xff"])
def test_the_shim_is_the_same_in_every_coding_and_revalidated_by_its_etag(server: Server, coding: str) -> None:
    plain = server.client.get("/scq/scq.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    raw = server.client.build_request("GET", "/scq/scq.js", headers=[(b"Accept-Encoding", coding.encode("latin-1"))])
    response = server.client.send(raw)
    assert response.content == plain.content
    assert "accept-encoding" in response.headers["vary"].lower()
    if coding in ("br", "gzip"):
        assert response.headers["content-encoding"] == coding
    etag = response.headers["etag"]
    for tags in (etag, f"W/{etag}", f'"x", {etag}'):
        again = server.client.get(
            "/scq/scq.js",
            headers={"Accept-Encoding": "identity" if coding == "\xff" else coding, "If-None-Match": tags},
        )
        assert (again.status_code, again.content) == (304, b"")


def test_the_hashed_shim_has_the_same_bytes_and_is_immutable(server: Server) -> None:
    plain = server.client.get("/scq/scq.js")
    digest = re.findall(r"[0-9a-zA-Z_]{8,}", plain.headers["etag"])[0]
    hashed = server.client.get(f"/scq/scq.{digest}.js")
    assert hashed.content == plain.content
    assert "immutable" in hashed.headers["cache-control"]
    other = server.client.get("/scq/scq.0123456789ab.js")
    assert other.status_code == 404 or "immutable" not in other.headers["cache-control"]


def test_head_of_the_shim_has_no_body(server: Server) -> None:
    response = server.client.head("/scq/scq.js")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/scq/push/", "/scq//push", "//scq/push", "///scq//push//", "/prod/push/", "//prod/push", "/prod//push"]
)
def test_slashes_too_many_find_the_endpoint(server: Server, path: str) -> None:
    body = json.dumps(batch(track("cart-1"))).encode()
    head = f"Host: x\r\nOrigin: {SHOP}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    assert b'"held"' in server.raw(f"POST {path} HTTP/1.1\r\n{head}".encode() + body)
    preflight = f"OPTIONS {path} HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nConnection: close\r\n\r\n"
    assert server.raw(preflight.encode()).startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("/scq/scq.js/", "/scq/scq.js"),
        ("//scq/scq.js", "/scq/scq.js"),
        ("/scq//scq.js", "/scq/scq.js"),
        ("/scq//scq.0123456789ab.js//", "/scq/scq.js"),
        ("/scq//scq.debug.js", "/scq/scq.debug.js"),
        ("//prod//a+b.js", "/prod/x.js"),
    ],
)
def test_slashes_too_many_find_the_script(server: Server, path: str, same: str) -> None:
    answer = server.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.partition(b"\r\n\r\n")[2] == server.client.get(same, headers={"Accept-Encoding": "identity"}).content


@pytest.mark.parametrize(
    "path",
    [
        "/healthz/",
        "//healthz",
        "/readyz/",
        "/scq//status",
        "/scq/check/",
        "/metrics/",
        "/prod//",
        "/scq//",
        "//prod/a/b.js",
    ],
)
def test_no_other_path_is_found_by_slashes_too_many(server: Server, path: str) -> None:
    answer = server.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_pushes_are_taken_beside_the_shim_under_prod_too(server: Server, browser: Browser) -> None:
    response = server.send(batch(track("cart-1")), (), "/prod/push")
    assert outcomes(response.json()["results"]) == ["held"]
    assert attributes(response)[0] == "__Host-scq"
    assert error(server.client.get("/prod/push"))[0] == 405


def test_health_and_readiness_are_200_while_it_serves_and_stores(server: Server) -> None:
    assert server.client.get("/healthz").status_code == 200
    assert server.client.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/scq/status"])
def test_without_an_admin_token_the_operators_pages_do_not_exist(server: Server, path: str) -> None:
    nothing = server.client.get("/scq/nothing")
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {ADMIN_TOKEN}"},
        {"Authorization": "Bearer None"},
    ):
        response = server.client.get(path, headers=headers)
        assert error(response) == error(nothing) == (404, "not-found")


def test_without_server_keys_the_servers_api_does_not_exist(server: Server) -> None:
    for path in ("/api/v1/rest/contact/identify", "/api/v1/rest/contact/track", "/api/v1/contact/identify"):
        response = server.client.post(path, json={"email": "ann@example.com"}, headers={"X-Team-ApiKey": KEY})
        assert response.status_code == 404


# Servers of their own


def test_rates_prefixes_and_the_operators_token(upstream: str, tmp_path: Path) -> None:
    more = {"SCQ_RATE_PER_IP": "0.025", "SCQ_PREFIX": "/t/x1", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN}
    with running(tmp_path, upstream, **more) as server:
        assert server.client.get("/t/x1/scq.js").status_code == 200
        assert server.client.get("/scq/scq.js").status_code == 404
        assert server.client.post("/scq/push").status_code == 404

        assert server.post([one(track("cart-1")) for _ in range(5)]).status_code == 202
        fast = server.send(b"x" * (LIMIT + 1))  # 429 goes before 413
        assert error(fast)[0] == 429
        assert 1 <= int(fast.headers["retry-after"]) <= 60
        assert fast.headers["access-control-allow-origin"] == SHOP
        assert error(server.send(b"x" * (LIMIT + 1), origin="https://evil.example"))[0] == 403
        assert error(server.client.get("/t/x1/push"))[0] == 405
        assert server.client.options("/t/x1/push", headers={"Origin": SHOP}).status_code == 204
        # The last hop that is not a trusted proxy is the client; what it says about itself does not count.
        assert server.post([], x_forwarded_for="203.0.113.7").status_code == 202
        assert server.post([], x_forwarded_for="198.51.100.1, 203.0.113.7").status_code == 429
        assert server.post([], x_forwarded_for="203.0.113.7, 198.51.100.2").status_code == 202

        for path in ("/metrics", "/t/x1/status"):
            right = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
            assert server.client.get(path, headers=right).status_code == 200
            for wrong in ("Bearer", f"Bearer {ADMIN_TOKEN}x", f"Basic {ADMIN_TOKEN}", ADMIN_TOKEN, "Bearer \xff"):
                request = server.client.build_request(
                    "GET", path, headers=[(b"Authorization", wrong.encode("latin-1"))]
                )
                assert error(server.client.send(request)) == (404, "not-found")


def test_script_and_endpoint_have_the_names_that_were_set(upstream: str, tmp_path: Path) -> None:
    with running(tmp_path, upstream, SCQ_SCRIPT="t.js", SCQ_ENDPOINT="in", SCQ_PREFIX="/a") as server:
        plain = server.client.get("/a/t.js")
        assert b'"/a/in"' in plain.content
        digest = re.findall(r"[0-9a-f]{12}", plain.headers["etag"])[0]
        hashed = server.client.get(f"/a/t.{digest}.js")
        assert hashed.content == plain.content
        assert "immutable" in hashed.headers["cache-control"]
        assert b'"/a/in"' in server.client.get("/a/t.debug.js").content
        assert b'"/prod/in"' in server.client.get("/prod/TEAMID.js").content
        for path in ("/a/in", "/prod/in"):
            assert outcomes(server.send(batch(track("cart-1")), (), path).json()["results"]) == ["held"]
        for path in ("/a/push", "/prod/push", "/a/scq.js", f"/a/scq.{digest}.js", "/a/scq.debug.js"):
            assert error(server.client.get(path))[0] == 404


def test_below_the_disks_floor_pushes_are_503_and_readiness_says_why(upstream: str, tmp_path: Path) -> None:
    with running(tmp_path, upstream, False, SCQ_MIN_FREE_MB="1000000") as server:
        assert server.client.get("/healthz").status_code == 200
        ready = server.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["message"]
        response = server.post([one(track("cart-1"))])
        assert error(response)[0] == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["access-control-allow-origin"] == SHOP
        assert "set-cookie" not in response.headers
        assert error(server.send(b"{"))[0] == 400
        assert error(server.send(padded(LIMIT + 1)))[0] == 413


def test_cookie_keys_can_be_rolled_over(upstream: str, tmp_path: Path) -> None:
    with running(tmp_path, upstream) as server:
        browser = Browser(server)
        browser.logs_in(new_email())
        server.restart(SCQ_SECRET_KEYS=f"{COOKIE_KEY},{OTHER_KEY}")
        assert browser.statuses(track("cart-1")) == ["accepted"]
        newcomer = Browser(server)
        newcomer.logs_in(new_email())
        server.restart(SCQ_SECRET_KEYS=f"{OTHER_KEY},{COOKIE_KEY}")
        assert newcomer.statuses(track("cart-1")) == ["accepted"]
        server.restart(SCQ_SECRET_KEYS=OTHER_KEY)
        assert newcomer.statuses(track("cart-1")) == ["accepted"]
        assert browser.statuses(track("cart-1")) == ["held"]
