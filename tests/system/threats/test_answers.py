"""What answers say and do not say: no header of the attacker's, no file, and how each may be used."""

from __future__ import annotations

import re
import secrets

import pytest

from proxy.sandbox.api import Sandbox
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    COOKIE_KEY,
    HOST,
    IDENTITY_KEY,
    SERVER_KEY,
    SHOP,
    Browser,
    Json,
    Server,
    arrives,
    dumps,
    identify,
    login,
    new_email,
    new_id,
    requests_about,
    token,
    track,
)
from tests.support.wire import batch

# Header injection, in answers, in cookies and on the way to SendX

CRLF = "\r\nX-Evil: 1\r\nSet-Cookie: evil=1\r\n\r\n"


def test_line_breaks_in_values_end_up_in_no_header(server: Server, sandbox: Sandbox, ann: Browser) -> None:
    email = new_email()
    ann.push(login(email, firstName=f"B{CRLF}", customFields={f"F{CRLF}": CRLF}, tags=[f"vip{CRLF}"]))
    hostile: list[Json] = [
        track(f"cart-{CRLF}"),
        track(CRLF),
        identify(firstName=CRLF, lastName=CRLF, customFields={CRLF: CRLF}, tags=[CRLF]),
        identify(email=f"a@b.co{CRLF}"),
        identify(email=f'"{CRLF}"@example.com'),
        identify(token=f"a.b.c{CRLF}"),
        [f"track{CRLF}", {}],
    ]
    response = ann.request(*hostile, track("cart-end"), s=f"{ann.s}{CRLF}")
    ids = [{"id": f"{new_id()}{CRLF}", "call": track("cart-1")}]
    for each in (response, server.post(ids), server.send(f"{{{CRLF}".encode())):
        assert "x-evil" not in each.headers
        assert "evil" not in each.headers.get("set-cookie", "")
    arrives(sandbox, email, "+cart-end")
    assert sandbox.violations == []
    for record in requests_about(sandbox, email):
        assert "x-evil" not in record.headers
        assert (record.path.count("\n"), record.query) == (0, "")


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /%0d%0aX-Evil:%201 HTTP/1.1",
        "GET /scq/scq.js%0d%0aX-Evil:1 HTTP/1.1",
        "GET /prod/x%0d%0aX-Evil:%201.js HTTP/1.1",
    ],
)
def test_line_breaks_in_a_path_end_up_in_no_header(server: Server, request_line: str) -> None:
    head = server.raw(f"{request_line}\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")[0]
    assert re.match(rb"HTTP/1.1 (200|404) ", head)
    assert b"evil" not in head.lower()


@pytest.mark.parametrize(
    "local",
    [
        "a&team_id=evil",
        "a#frag",
        "a?x=1",
        "a/%2e%2e/x",
        "a%0d%0aX-Evil",
        "a=b&email=eve%40example.com",
        "a+b",
        "a{b}|c^d`e~f",
        "a'b!c*d",
    ],
)
def test_an_address_stays_one_value_in_sendxs_urls(strict: Server, sandbox: Sandbox, local: str) -> None:
    email, before = f"{local}.{secrets.token_hex(4)}@example.com", len(sandbox.violations)
    ann = Browser(strict, host=HOST)
    assert ann.statuses(identify(token=token(email)), track("cart-1")) == ["accepted", "accepted"]
    assert arrives(sandbox, email, "+cart-1") == ["identify", "+cart-1"]
    assert len(sandbox.violations) == before
    assert not any("x-evil" in record.headers for record in requests_about(sandbox, email))


# Path traversal

WAYS_OUT = [
    "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5cetc%5cpasswd", "..\\..\\etc",
    "%252e%252e%252fetc%252fpasswd", "..;/..;/etc/passwd", "....//....//etc/passwd", "%c0%ae%c0%ae/etc/passwd", "/etc/passwd", "%2fetc%2fpasswd",
    "..%00/etc/passwd", "scq.js/../../../etc/passwd", "~root/.ssh/id_rsa", "file:///etc/passwd", ".env", "scq.db", "..", ".", "%00", "static/scq.js",
]  # fmt: skip


@pytest.mark.parametrize(
    "place", ["/scq/%s", "/scq/scq.%s.js", "/prod/%s", "/prod/%s.js", "/%s", "/healthz/%s", "/metrics/%s", "/api/v1/%s"]
)
def test_no_path_leads_to_a_file(server: Server, place: str) -> None:
    shim = server.client.get("/prod/x.js" if place.startswith("/prod/") else "/scq/scq.js").content
    for way in WAYS_OUT:
        answer = server.raw(f"GET {place % way} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200 "):
            assert place.endswith(".js")
            assert body == shim
        else:
            assert re.match(rb"HTTP/1.1 4\d\d ", head), (place % way, head)
        assert b"root:" not in body


# What every answer says about itself


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("POST", "/scq/push", 202), ("GET", "/scq/push", 405), ("GET", "/nowhere", 404), ("POST", "/healthz", 405)),
        *(("GET", "/healthz", 200), ("GET", "/readyz", 200), ("GET", "/metrics", 200), ("GET", "/scq/status", 200)),
        *(("GET", "/scq/check", 404), ("POST", "/api/v1/rest/contact/track", 403), ("PUT", "/scq/scq.js", 405)),
    ],
)
def test_answers_are_kept_by_no_cache_and_taken_for_nothing_else(
    server: Server, method: str, path: str, status: int
) -> None:
    headers = {"Origin": SHOP, "Authorization": f"Bearer {ADMIN_TOKEN}"}
    response = server.client.request(method, path, content=dumps(batch()), headers=headers)
    assert response.status_code == status
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["content-type"].partition(";")[0] in ("application/json", "text/plain")
    assert "server" not in response.headers


def test_the_status_page_runs_no_script_and_stands_in_no_frame(server: Server) -> None:
    tag = "<script>alert(1)</script>"
    Browser(server).push(track(tag))
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": "text/html"}
    response = server.client.get("/scq/status", headers=headers)
    assert response.headers["content-type"].startswith("text/html")
    assert tag not in response.text
    assert "&lt;script&gt;" in response.text
    policy = response.headers["content-security-policy"]
    for part in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):
        assert part in policy
    assert "script-src" not in policy
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/scq/scq.js", "/prod/TEAM.js", "/scq/scq.0123456789ab.js"])
def test_the_script_is_the_same_for_every_page_and_visitor(server: Server, ann: Browser, path: str) -> None:
    headers = {
        "Origin": "https://sub.shop.example",
        "Cookie": f"__Host-scq={ann.cookie}",
        "Sec-Fetch-Site": "same-site",
    }
    response = server.client.get(path, headers=headers)
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers
    assert "set-cookie" not in response.headers
    assert response.content == server.client.get(path).content


def test_the_operators_pages_do_not_open_to_other_secrets(server: Server) -> None:
    for bearer in (
        SERVER_KEY,
        API_KEY,
        COOKIE_KEY,
        IDENTITY_KEY,
        ADMIN_TOKEN[:-1],
        ADMIN_TOKEN.lower(),
        "*",
        "null",
        "é",
    ):
        headers = [(b"Authorization", f"Bearer {bearer}".encode())]
        for path in ("/metrics", "/scq/status"):
            assert server.client.get(path, headers=headers).status_code == 404
    for name in ("Authorization", "Cookie", "X-Scq-Check"):
        assert server.client.get("/scq/check", headers={name: ADMIN_TOKEN}).status_code == 404
