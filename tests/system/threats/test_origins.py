"""Pages of other origins, names of other hosts, and clients who lie about their address."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from proxy.sandbox.api import Sandbox
from tests.support.server import (
    ADMIN_TOKEN,
    HOST,
    LOCAL,
    SHOP,
    Browser,
    Server,
    arrives,
    dumps,
    identify,
    login,
    new_email,
    requests_about,
    running,
    track,
)
from tests.support.wire import batch, error

# Look-alikes of a listed origin.

ORIGINS = r"""
    null https://evil.example https://evilshop.example https://evil-shop.example https://shop.example.evil.example https://shopxexample
    https://shop.exampl https://shop.example. https://www.shop.example https://api.shop.example https://example https://*.example *
    https://shop.example: https://shop.example:443 https://shop.example:8443 https://shop.example:80 http://shop.example
    HTTPS://shop.example https://SHOP.example wss://shop.example ftp://shop.example shop.example //shop.example https:shop.example
    https:/shop.example https:///shop.example https://shop.example/ https://shop.example/x https://shop.example? https://shop.example#
    https://user@shop.example https://shop.example@evil.example https://shop.example%00.evil.example https://shop.example%2eevil.example
    https://shop.example\.evil.example https://shop.example&evil.example https://shop.example,https://evil.example
    https://xn--hop-6ld.example https://ѕhop.example https://shop。example https://shöp.example
    file:// data: about:blank blob:https://shop.example/1 chrome-extension://abcdef javascript:alert(1)
    http://localhost http://localhost:3001 http://127.0.0.1:3000 http://[::1]:3000 https://localhost:3000
"""
LOOK_ALIKES = [*ORIGINS.split(), "https://shop.example https://evil.example", "https://shop.example\t;x"]


@pytest.mark.parametrize("origin", LOOK_ALIKES)
def test_a_look_alike_origin_is_refused_and_reads_no_more_than_that(server: Server, ann: Browser, origin: str) -> None:
    for site in ("", "same-site", "none", "cross-site"):
        for method in ("POST", "OPTIONS"):
            headers = [(b"Origin", origin.encode()), (b"Cookie", f"__Host-scq={ann.cookie}".encode())]
            headers += [(b"Sec-Fetch-Site", site.encode())] if site else []
            response = server.client.request(method, "/scq/push", content=dumps(batch(["reset"])), headers=headers)
            assert (response.status_code, response.json()["error"]) == (403, "origin-not-allowed")
            assert response.headers["vary"] == "Origin"
            assert response.headers.get("access-control-allow-origin") in (
                (None, origin) if method == "POST" else (None,)
            )
            assert "set-cookie" not in response.headers
            assert origin not in response.text or len(origin) < 5
    assert ann.statuses(track("cart-1")) == ["accepted"], "nobody was logged out"


def test_no_origin_at_all_is_refused(server: Server, ann: Browser) -> None:
    response = server.send(batch(["reset"]), origin="", cookie=f"__Host-scq={ann.cookie}")
    assert (response.status_code, response.json()["error"]) == (403, "origin-not-allowed")
    assert ann.statuses(track("cart-1")) == ["accepted"]


def grants(response: httpx.Response) -> list[str]:
    """The headers by which a page of another origin may read an answer."""
    return [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/scq/push", "/prod/push"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("body", [b"", b"{", b" " * 70_000])
def test_an_unlisted_origin_reads_that_it_is_refused_and_nothing_else(
    server: Server, path: str, method: str, body: bytes
) -> None:
    for origin in (None, "null", "https://evil.example", SHOP, LOCAL):
        headers = {"Origin": origin} if origin else {}
        response = server.client.request(method, path, content=body, headers=headers)
        assert "origin" in response.headers["vary"].lower()
        if origin in (SHOP, LOCAL):
            assert response.headers["access-control-allow-origin"] == origin
        elif origin == "https://evil.example" and method == "POST":
            assert error(response) == (403, "origin-not-allowed")
            assert response.headers["access-control-allow-origin"] == origin
            assert response.headers["access-control-allow-credentials"] == "true"
        else:
            assert not grants(response)


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        ("https://evil.example", ""),
        ("https://evil.example", "same-site"),
        ("https://evil.example", "cross-site"),
        ("http://evil.example", "same-origin"),
        (SHOP, "cross-site"),
    ],
)
def test_a_refused_origin_reads_the_same_whoever_the_visitor_is_and_whatever_was_pushed(
    server: Server, ann: Browser, origin: str, site: str
) -> None:
    page = {"origin": origin, "sec_fetch_site": site}
    bare = server.send(b"", **page)
    assert "set-cookie" not in bare.headers
    for body, cookie in (
        (dumps(batch(["reset"])), f"__Host-scq={ann.cookie}"),
        (b" " * 70_000, "__Host-scq=x"),
        (b"{", ""),
    ):
        response = server.send(body, **page, cookie=cookie)
        assert (response.status_code, response.content) == (403, bare.content)
        assert response.headers.multi_items() == bare.headers.multi_items()
    assert ann.statuses(track("cart-1")) == ["accepted"], "nobody was logged out"


def test_a_refusal_of_an_origin_does_not_wait_for_the_body(server: Server) -> None:
    head = "POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nContent-Length: 9\r\n\r\n"
    assert server.raw(head.encode()).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "origin",
    [
        *(b"https://evil.example\tX-Evil: 1", b"https://evil.example\x0bX-Evil: 1", b"https://evil.example\x00", b"https://evil.example\x7f"),
        *(b"https://evil.example\xc4\x8dX-Evil: 1", b"https://evil.example\x85X-Evil: 1", b"https://\xff", b'https://evil.example"', b"*", b""),
        *(b"https://evil.example\rX-Evil: 1", b"https://evil.example\r\n X-Evil: 1", b"https://evil.example%0d%0aX:1", b"https://" + b"a" * 9_000),
    ],
)  # fmt: skip
def test_a_hostile_origin_puts_nothing_into_the_answer(server: Server, origin: bytes) -> None:
    request = b"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: %b\r\nConnection: close\r\n\r\n" % origin
    answer = server.raw(request)
    assert re.match(rb"HTTP/1.1 40[03] ", answer)
    assert b"access-control-" not in answer
    assert b"evil" not in answer.lower()


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/scq/status", "/scq/check", "/nowhere", "/api/v1/x"]
)
def test_no_other_path_grants_a_page_anything(server: Server, path: str) -> None:
    for headers in ({"Origin": SHOP}, {"Origin": SHOP, "Authorization": f"Bearer {ADMIN_TOKEN}"}):
        for method in ("GET", "OPTIONS"):
            assert not grants(server.client.request(method, path, headers=headers))


# Host names and client addresses


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1",
        "localhost",
        "shop.example.evil.example",
        "evil.example:443",
        "shop.example@evil.example",
        "",
        "shop.example evil",
    ],
)
def test_a_host_name_that_is_not_served_gets_nothing(strict: Server, host: str) -> None:
    for target in ("/scq/push", "/scq/scq.js", "/prod/x.js", "/metrics", "/nowhere", f"https://{HOST}/scq/scq.js"):
        for more in ("", f"X-Forwarded-Host: {HOST}\r\nForwarded: host={HOST}\r\nX-Host: {HOST}\r\n"):
            request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nOrigin: {SHOP}\r\n{more}Connection: close\r\n\r\n"
            head, _, body = strict.raw(request.encode()).partition(b"\r\n\r\n")
            assert re.match(rb"HTTP/1.1 (421|400) ", head)
            assert b"_scq" not in body
            assert not host or host.encode() not in body
    assert strict.client.get("/healthz").status_code == 200, "but whoever supervises the process goes by address"


@pytest.mark.parametrize(
    ("version", "lines"),
    [("1.0", []), ("1.1", []), ("1.1", [HOST, "evil.example"]), ("1.1", ["evil.example", HOST]), ("1.1", [HOST, HOST])],
)
def test_no_host_or_two_are_refused(strict: Server, version: str, lines: list[str]) -> None:
    hosts = "".join(f"Host: {line}\r\n" for line in lines)
    answer = strict.raw(f"GET /scq/scq.js HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n".encode())
    assert re.match(rb"HTTP/1.[01] (421|400) ", answer)


def test_the_name_that_is_served_is_served(strict: Server) -> None:
    for host in (HOST, f"{HOST}:443", HOST.upper()):
        assert strict.client.get("/scq/scq.js", headers={"Host": host}).status_code == 200


def test_an_untrusted_peer_cannot_choose_its_address(sandbox: Sandbox, upstream: str, tmp_path: Path) -> None:
    more = {"SCQ_IDENTIFY": "asserted", "SCQ_SIGNUPS_PER_IP": "2", "SCQ_TRUSTED_PROXIES": "203.0.113.0/24"}
    names = ["X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"]
    with running(tmp_path, upstream, **more) as server:
        first, emails = new_email(), list[str]()
        assert Browser(server).statuses(identify(email=first)) == ["accepted"]
        arrives(sandbox, first, "identify")  # one of two leaves at once
        for number, name in enumerate(names):
            for value in (
                f"203.0.113.{number}",
                f"198.51.100.{number}, 203.0.113.1",
                "127.0.0.1",
                "::1",
                f"for=192.0.2.{number}",
            ):
                emails.append(new_email())
                assert Browser(server, **{name: value}).statuses(identify(email=emails[-1])) == ["accepted"]
        for _ in range(2):  # by then whatever could go at once has gone as well
            Browser(server).push(login(late := new_email()), track("cart-end"))
            arrives(sandbox, late, "+cart-end")
        assert not any(requests_about(sandbox, email) for email in emails)
