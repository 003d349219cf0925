"""The threat model, row by row: what somebody could try, and what they get. SECURITY.md names these tests, and here is checked that it does.

Tables of attacks against real servers; then Hypothesis against the same ones; then every defect that was ever found, replayed from
`tests/findings/`. What other test files show already is not repeated here: SECURITY.md points at it.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import BadData, Signer, TimestampSigner
from itsdangerous.encoding import base64_decode

from proxy.config.settings import SPECS
from proxy.core.cookies import CookieCodec, ProbeCodec
from proxy.core.visitors import Trust, Visitor
from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.live import eventually, serving
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    COOKIE_KEY,
    IDENTITY_KEY,
    KID_KEY,
    LOCAL,
    SHOP,
    Browser,
    Server,
    arrives,
    clean_environ,
    command,
    dumps,
    identify,
    is_anywhere,
    login,
    new_email,
    new_id,
    new_ids,
    outcomes,
    requests_about,
    running,
    token,
    track,
)

ROOT = Path(__file__).parents[2]
SERVER_KEY = "server-key-of-the-shop-" + "1" * 20
TEAM = "team-4711"
HOST = "shop.example"
BODY_SECONDS = 60.0  # far beyond the limit for a body, which is 10 s

Json = Any


@pytest.fixture(scope="module")
def sendx() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=API_KEY, team_id=TEAM)
    with serving(app) as url:
        yield app.state.sandbox, url


@pytest.fixture(scope="module")
def sandbox(sendx: tuple[Sandbox, str]) -> Sandbox:
    return sendx[0]


@pytest.fixture(scope="module")
def server(sendx: tuple[Sandbox, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As open as it can be configured: typed addresses, server keys and the operator's pages, and no limits."""
    more = {
        "SCQ_IDENTIFY": "asserted",
        "SCQ_SIGNUPS_PER_IP": "0",
        "SCQ_SIGNUPS_PER_HOUR": "0",
        "SCQ_SERVER_KEYS": SERVER_KEY,
        "SCQ_RATE_PER_KEY": "0",
        "SCQ_ADMIN_TOKEN": ADMIN_TOKEN,
    }
    with running(tmp_path_factory.mktemp("open"), sendx[1] + "/api/v1/rest", **more) as started:
        yield started
        assert_nothing_failed(started)


@pytest.fixture(scope="module")
def strict(sendx: tuple[Sandbox, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As it should face the internet: tokens only, one host name, and nobody's word about the client address."""
    more = {
        "SCQ_HOSTS": HOST,
        "SCQ_TRUSTED_PROXIES": "203.0.113.0/24",
        "SCQ_DIALECT": "legacy",
        "SCQ_TEAM_ID": TEAM,
    }
    with running(tmp_path_factory.mktemp("strict"), sendx[1] + "/api/v1", **more) as started:
        yield started
        assert_nothing_failed(started)


def assert_nothing_failed(server: Server) -> None:
    for sign in ("Traceback", "could not be judged", "died", "Exception"):
        assert sign not in server.log, server.log[-2_000:]


@pytest.fixture
def browser(server: Server) -> Browser:
    return Browser(server)


@pytest.fixture
def ann(server: Server) -> Browser:
    """A browser on which somebody has logged in."""
    browser = Browser(server)
    browser.logs_in(new_email())
    return browser


def one(call: Json) -> Json:
    return {"id": new_id(), "call": call}


def batch(*calls: Json) -> Json:
    return {"v": 1, "pushes": [one(call) for call in calls]}


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sent(server: Server, body: bytes | Json, headers: Sequence[tuple[bytes, bytes]]) -> httpx.Response:
    """POST to the push endpoint with headers as bytes, which need not be ASCII."""
    content = body if isinstance(body, bytes) else dumps(body)
    return server.client.post("/scq/push", content=content, headers=[(b"Origin", SHOP.encode()), *headers])


# --- Slow bodies: begun before everything else, judged at the end, so that nobody waits for the limit


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
        each.join(BODY_SECONDS)


# --- Cookies: forged, cut off, re-signed, expired, swapped

VISITOR = Visitor("a-visitor-of-the-shop", "vic@example.com", Trust.VERIFIED, int(time.time()), int(time.time()))
PAYLOAD = base64.urlsafe_b64encode(json.dumps({"id": "x" * 22, "email": "vic@example.com", "trust": 2}).encode())
FRESH = PAYLOAD.rstrip(b"=").decode()
OURS = CookieCodec([COOKIE_KEY]).encode(VISITOR)
SALT = "scq-proxy.visitor-cookie.v1"


def resigned(salt: str = SALT, key: str = COOKIE_KEY, **changed: Any) -> str:
    """The victim's payload under a signature that is nearly ours."""
    payload = OURS.rpartition(".")[0]
    how: dict[str, Any] = {"key_derivation": "hmac", "digest_method": hashlib.sha256, **changed}
    return Signer(key, salt=salt, **how).sign(payload).decode()


FORGED_COOKIES: dict[str, str] = {
    "no signature": FRESH,
    "an empty signature": f"{FRESH}.",
    "the signature of another payload": f"{FRESH}.{OURS.rpartition('.')[2]}",
    "cut off": OURS[:-1],
    "cut in two": OURS[: len(OURS) // 2],
    "without its first character": OURS[1:],
    "something behind it": OURS + "A",
    "twice": f"{OURS}.{OURS}",
    "with another separator": OURS.replace(".", ":"),
    "quoted": f'"{OURS}"',
    "percent-encoded": OURS.replace(".", "%2E"),
    "signed with another key": resigned(key="x" * 40),
    "signed with the identity key": resigned(key=IDENTITY_KEY),
    "signed with SendX's key": resigned(key=API_KEY),
    "signed with an empty key": resigned(key=""),
    "signed for another purpose": resigned("scq-proxy.check.v1"),
    "signed with the library's own salt": resigned("itsdangerous.Signer"),
    "signed with SHA-1": resigned(digest_method=hashlib.sha1),
    "signed with SHA-512": resigned(digest_method=hashlib.sha512),
    "signed with the key itself": resigned(key_derivation="none"),
    "signed with a key derived in another way": resigned(key_derivation="concat"),
    "signed with a time": TimestampSigner(COOKIE_KEY, salt=SALT, key_derivation="hmac", digest_method=hashlib.sha256)
    .sign(FRESH)
    .decode(),
    "a genuine proof for another purpose": ProbeCodec([COOKIE_KEY]).sign(time.time()),
    "an identity token": token("vic@example.com"),
    "an identity token signed with the cookie key": token("vic@example.com", key=COOKIE_KEY),
    "a year and a day old": CookieCodec([COOKIE_KEY]).encode(
        Visitor("y" * 22, "vic@example.com", Trust.VERIFIED, int(time.time()) - 366 * 86_400)
    ),
    "from the future": CookieCodec([COOKIE_KEY]).encode(
        Visitor("z" * 22, "vic@example.com", Trust.VERIFIED, int(time.time()) + 86_400)
    ),
}


@pytest.mark.parametrize("what", FORGED_COOKIES)
def test_a_forged_cookie_makes_nobody(browser: Browser, what: str) -> None:
    calls = [track("cart-1"), identify(firstName="Eve"), identify(email="vic@example.com", company="C")]
    response = browser.request(*calls, cookies={"__Host-scq": FORGED_COOKIES[what]})
    results = response.json()["results"]
    assert outcomes(results) == ["held", "unverified-identity", "accepted"]
    assert results[2]["dropped"] == ["company"], "asserted, not verified"


def test_a_genuine_cookie_is_believed(browser: Browser) -> None:
    response = browser.request(track("cart-1"), identify(firstName="Vic"), cookies={"__Host-scq": OURS})
    assert outcomes(response.json()["results"]) == ["accepted", "accepted"]


# --- Cookies that somebody else has planted: a sibling sub-domain, a page on plain http

PLANTED: dict[str, bytes] = {
    "doubled": b"__Host-scq=%s; __Host-scq=%s",
    "doubled, ours last": b"__Host-scq=x; __Host-scq=%s",
    "doubled, ours first": b"__Host-scq=%s; __Host-scq=",
    "without the prefix": b"scq=%s",
    "the prefix in lower case": b"__host-scq=%s",
    "the prefix in upper case": b"__HOST-SCQ=%s",
    "the other prefix": b"__Secure-scq=%s",
    "a no-break space before the name": b"\xa0__Host-scq=%s",
    "a next-line character before the name": b"\x85__Host-scq=%s",
    "the same in UTF-8": b"\xc2\xa0__Host-scq=%s",
    "a wide space before the name": b"\xe2\x80\x80__Host-scq=%s",
    "a wide space behind another cookie": b"a=b;\xa0__Host-scq=%s",
    "a blank behind the name": b"__Host-scq =%s",
    "a no-break space behind the name": b"__Host-scq\xa0=%s",
    "a blank before the value": b"__Host-scq= %s",
    "in quotes": b'__Host-scq="%s"',
    "behind a comma": b"a=b, __Host-scq=%s",
    "in another cookie's value": b"a=__Host-scq=%s",
    "in another cookie's quotes": b'a="b; __Host-scq=%s"',
    "with brackets": b"__Host-scq[]=%s",
    "as an attribute": b"$Version=1; $__Host-scq=%s",
    "without a name": b"=__Host-scq=%s",
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_planted_cookie_is_not_believed(server: Server, ann: Browser, how: str) -> None:
    genuine = (ann.cookie or "").encode()
    header = PLANTED[how].replace(b"%s", genuine)
    response = sent(server, batch(track("cart-1")), [(b"Cookie", header)])
    assert outcomes(response.json()["results"]) == ["held"]


def test_a_cookie_of_another_name_beside_ours_changes_nothing(server: Server, ann: Browser) -> None:
    mallory = Browser(server)
    mallory.logs_in(new_email("mallory"))
    for planted in ("scq={m}", "__Host-scq2={m}", "__Host-scq.={m}", "Path=/; Domain=shop.example; x={m}"):
        header = f"{planted.format(m=mallory.cookie)}; __Host-scq={ann.cookie}"
        results = ann.push(track("cart-1"), identify(firstName="Ann"))
        assert outcomes(results) == ["accepted", "accepted"]
        response = server.post([one(identify(firstName="Ann"))], cookie=header, s=ann.s)
        assert outcomes(response.json()["results"]) == ["accepted"]
        assert "set-cookie" not in response.headers


# --- Identity tokens: forged, re-signed, confused


def jws(header: Json, claims: Json, key: bytes = b"", digest: str = "sha256") -> str:
    """A compact JWS, signed by HMAC as nobody's library would: bytes are taken as they are, anything else as JSON."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, claims)]
    signed = f"{encoded(parts[0])}.{encoded(parts[1])}"
    return f"{signed}.{encoded(hmac.digest(key, signed.encode(), digest))}"


def claims(**changes: Json) -> dict[str, Json]:
    now = int(time.time())
    return {"email": "vic@example.com", "iat": now, "exp": now + 600, "aud": "scq"} | changes


KEY = IDENTITY_KEY.encode()
EVES_KEY = b"a key of Eve's own, long enough!"
UNSIGNED, ENCRYPTED = encoded(b'{"alg":"none"}'), encoded(b'{"alg":"dir","enc":"A256GCM"}')
EVES_JWK = {"kty": "oct", "k": encoded(EVES_KEY), "alg": "HS256", "kid": "eve"}


AUDIENCES: list[Json] = [
    "other",
    "SCQ",
    "scq ",
    "scq\x00",
    "",
    None,
    7,
    True,
    [],
    ["other"],
    ["scq", 7],
    [["scq"]],
    {"scq": 1},
]
KIDS: list[tuple[Json, bytes]] = [
    *(("../../../../../../dev/null", b""), ("/dev/null", b""), ("/proc/sys/kernel/randomize_va_space", b"2\n")),
    *(("x' UNION SELECT 'eve", b"eve"), ("| echo eve", b"eve"), ("https://evil.example/k", EVES_KEY), ("", b"")),
    *(
        ("backend", KEY),
        ("backend\x00", b"\x00"),
        (["backend"], KID_KEY.encode()),
        ({"backend": 1}, KID_KEY.encode()),
        (0, KEY),
    ),
]


def forged_tokens() -> dict[str, str]:
    good = token("vic@example.com")
    head, body, signature = good.split(".")
    nested = jws({"alg": "HS256", "cty": "JWT"}, good.encode(), KEY)
    return {
        **{
            f"alg {alg!r}, unsigned": f"{encoded(json.dumps({'alg': alg}).encode())}.{body}."
            for alg in ("none", "None", "NONE", "nOnE", "", None, "HS256")
        },
        "alg none, with the signature of a good one": f"{UNSIGNED}.{body}.{signature}",
        "HS512 with our key": jws({"alg": "HS512"}, claims(), KEY, "sha512"),
        "HS384 with our key": jws({"alg": "HS384"}, claims(), KEY, "sha384"),
        "RS256 that says so, our key taken as the public one": jws({"alg": "RS256"}, claims(), KEY),
        "ES256 that says so": jws({"alg": "ES256"}, claims(), KEY),
        "alg in lower case": jws({"alg": "hs256"}, claims(), KEY),
        "alg with a blank": jws({"alg": "HS256 "}, claims(), KEY),
        "alg as a list": jws({"alg": ["HS256"]}, claims(), KEY),
        "no alg": jws({"typ": "JWT"}, claims(), KEY),
        "a header that is no object": jws(["HS256"], claims(), KEY),
        "an empty key": jws({"alg": "HS256"}, claims(), b""),
        "a key of Eve's": jws({"alg": "HS256"}, claims(), EVES_KEY),
        "a key of Eve's in jwk": jws({"alg": "HS256", "jwk": EVES_JWK}, claims(), EVES_KEY),
        "a key of Eve's at jku": jws(
            {"alg": "HS256", "jku": "https://evil.example/k", "kid": "eve"}, claims(), EVES_KEY
        ),
        "a key of Eve's at x5u": jws({"alg": "HS256", "x5u": "https://evil.example/c"}, claims(), EVES_KEY),
        "a key of Eve's in x5c": jws({"alg": "HS256", "x5c": [encoded(EVES_KEY)]}, claims(), EVES_KEY),
        **{f"kid {kid!r}": jws({"alg": "HS256", "kid": kid}, claims(), key) for kid, key in KIDS},
        "crit that nobody knows": jws({"alg": "HS256", "crit": ["mfa"], "mfa": True}, claims(), KEY),
        "crit that is empty": jws({"alg": "HS256", "crit": []}, claims(), KEY),
        "b64 false": jws({"alg": "HS256", "b64": False, "crit": ["b64"]}, claims(), KEY),
        "nested": nested,
        "nested twice": jws({"alg": "HS256", "cty": "JWT"}, nested.encode(), KEY),
        "encrypted, as it says": ".".join([ENCRYPTED, *[body] * 4]),
        "in JSON": json.dumps({"payload": body, "protected": head, "signature": signature}),
        "signed with the cookie key": jws({"alg": "HS256"}, claims(), COOKIE_KEY.encode()),
        "signed with SendX's key": jws({"alg": "HS256"}, claims(), API_KEY.encode()),
        "signed with a server key": jws({"alg": "HS256"}, claims(), SERVER_KEY.encode()),
        "signed with the operator's token": jws({"alg": "HS256"}, claims(), ADMIN_TOKEN.encode()),
        "a cookie": OURS,
        "a server key": SERVER_KEY,
        "cut off": good[:-1],
        "without a signature": f"{head}.{body}.",
        "without its last part": f"{head}.{body}",
        "with another's signature": f"{head}.{body}.{token('eve@example.com').rpartition('.')[2]}",
        "with another's claims": f"{head}.{token('eve@example.com').split('.')[1]}.{signature}",
        "with a line break": f"{good}\n",
        "with a zero byte": f"{good}\x00",
        "as a bearer": f"Bearer {good}",
        "for nobody in particular": jws({"alg": "HS256"}, {k: v for k, v in claims().items() if k != "aud"}, KEY),
        **{f"aud {aud!r}": jws({"alg": "HS256"}, claims(aud=aud), KEY) for aud in AUDIENCES},
        **{
            f"email {email!r}": jws({"alg": "HS256"}, claims(email=email), KEY)
            for email in ("vic@example.com\x00", "vic@example.com, eve@example.com", "vic@", "", {"a": 1}, True)
        },
        "two hours": jws({"alg": "HS256"}, claims(exp=int(time.time()) + 7_200), KEY),
        "not yet": jws({"alg": "HS256"}, claims(nbf=int(time.time()) + 300), KEY),
        "without end": jws({"alg": "HS256"}, b'{"email":"vic@example.com","iat":1,"exp":1e999,"aud":"scq"}', KEY),
        "deep": jws({"alg": "HS256"}, b"[" * 2_000 + b"]" * 2_000, KEY),
        "claims that are a list": jws({"alg": "HS256"}, [claims()], KEY),
    }


@pytest.mark.parametrize("what", forged_tokens())
def test_a_forged_token_identifies_nobody(browser: Browser, what: str) -> None:
    assert browser.statuses(identify(token=forged_tokens()[what]), track("cart-1")) == ["bad-token", "held"]


@pytest.mark.parametrize("seconds", [31 + 5, 3_600, 86_400 * 400])
def test_an_expired_token_identifies_nobody(browser: Browser, seconds: int) -> None:
    old = identify(token=token("vic@example.com", iat_in=-seconds - 60, exp_in=-seconds))
    assert browser.statuses(old, track("cart-1")) == ["expired-token", "held"]


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "jwk": EVES_JWK},
        {"alg": "HS256", "jku": "https://evil.example/k", "x5u": "https://evil.example/c", "x5c": ["AAAA"]},
        {"alg": "HS256", "kid": "../../../../dev/null"},
        b'{"alg":"none","alg":"HS256"}',
    ],
)
def test_where_a_token_says_its_key_is_does_not_matter(browser: Browser, sandbox: Sandbox, header: Json) -> None:
    """What our key has signed counts; nothing is fetched, nothing is opened."""
    email = new_email()
    assert browser.statuses(identify(token=jws(header, claims(email=email), KEY))) == ["accepted"]
    assert arrives(sandbox, email, "identify") == ["identify"]


def test_of_claims_that_occur_twice_all_readers_here_take_the_last(browser: Browser, sandbox: Sandbox) -> None:
    first, last, now = new_email("first"), new_email("last"), int(time.time())
    text = f'{{"email":"{first}","email":"{last}","iat":{now},"exp":{now + 60},"aud":"other","aud":"scq"}}'
    assert (
        browser.statuses(identify(token=jws({"alg": "HS256"}, text.encode(), KEY)), track("cart-1")) == ["accepted"] * 2
    )
    arrives(sandbox, last, "+cart-1")
    assert not is_anywhere(sandbox, first)


def test_a_leaked_token_is_good_for_an_hour_at_most(browser: Browser) -> None:
    """What is not claimed: a token that is still good logs in whoever has it."""
    leaked = token(new_email())
    assert browser.statuses(identify(token=leaked)) == ["accepted"]
    assert Browser(browser.server).statuses(identify(token=leaked)) == ["accepted"]
    assert jwt.decode(leaked, options={"verify_signature": False})["exp"] <= time.time() + 3_600
    assert browser.statuses(identify(token=token(new_email(), exp_in=3_700))) == ["bad-token"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_read_from_a_link(server: Server, sandbox: Sandbox, method: str) -> None:
    email = new_email("linked")
    query = {"email": email, "token": token(email), "s": "x" * 22, "pushes": json.dumps(batch(login(email))["pushes"])}
    for path in ("/scq/push", "/scq/scq.js", "/prod/push", "/nowhere"):
        response = server.client.request(
            method, path, params=query, content=dumps(batch(track("cart-1"))), headers={"Origin": SHOP}
        )
        if response.status_code == 202:
            assert outcomes(response.json()["results"]) == ["held"]
    Browser(server).push(login(other := new_email()))
    arrives(sandbox, other, "identify")
    assert not requests_about(sandbox, email)


# --- Origins: look-alikes

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
def test_a_look_alike_origin_is_refused_and_not_reflected(server: Server, ann: Browser, origin: str) -> None:
    for site in ("", "same-site", "none", "cross-site"):
        for method in ("POST", "OPTIONS"):
            headers = [(b"Origin", origin.encode()), (b"Cookie", f"__Host-scq={ann.cookie}".encode())]
            headers += [(b"Sec-Fetch-Site", site.encode())] if site else []
            response = server.client.request(method, "/scq/push", content=dumps(batch(["reset"])), headers=headers)
            assert (response.status_code, response.json()["error"]) == (403, "origin-not-allowed")
            assert response.headers["vary"] == "Origin"
            assert not grants(response)
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
def test_no_answer_is_readable_by_an_unlisted_origin(server: Server, path: str, method: str, body: bytes) -> None:
    for origin in (None, "null", "https://evil.example", SHOP, LOCAL):
        headers = {"Origin": origin} if origin else {}
        response = server.client.request(method, path, content=body, headers=headers)
        assert "origin" in response.headers["vary"].lower()
        if origin in (SHOP, LOCAL):
            assert response.headers["access-control-allow-origin"] == origin
        else:
            assert not grants(response)


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/scq/status", "/scq/check", "/nowhere", "/api/v1/x"]
)
def test_no_other_path_grants_a_page_anything(server: Server, path: str) -> None:
    for headers in ({"Origin": SHOP}, {"Origin": SHOP, "Authorization": f"Bearer {ADMIN_TOKEN}"}):
        for method in ("GET", "OPTIONS"):
            assert not grants(server.client.request(method, path, headers=headers))


# --- Header injection, in answers, in cookies and on the way to SendX

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


# --- Path traversal

WAYS_OUT = [
    "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5cetc%5cpasswd", "..\\..\\etc",
    "%252e%252e%252fetc%252fpasswd", "..;/..;/etc/passwd", "....//....//etc/passwd", "%c0%ae%c0%ae/etc/passwd", "/etc/passwd", "%2fetc%2fpasswd",
    "..%00/etc/passwd", "scq.js/../../../etc/passwd", "~root/.ssh/id_rsa", "file:///etc/passwd", ".env", "scq.db", "..", ".", "%00", "static/scq.js",
]  # fmt: skip


@pytest.mark.parametrize(
    "place", ["/scq/%s", "/scq/scq.%s.js", "/prod/%s", "/prod/%s.js", "/%s", "/healthz/%s", "/metrics/%s", "/api/v1/%s"]
)
def test_no_path_leads_to_a_file(server: Server, place: str) -> None:
    shim = server.client.get("/scq/scq.js").content
    for way in WAYS_OUT:
        answer = server.raw(f"GET {place % way} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200 "):
            assert place.endswith(".js")
            assert body == shim
        else:
            assert re.match(rb"HTTP/1.1 4\d\d ", head), (place % way, head)
        assert b"root:" not in body


# --- Enumeration: nothing tells whether an address is known


def person(name: str) -> str:
    """An address of the same length for every name of the same length."""
    return f"{name}.{secrets.token_hex(6)}@example.com"


def scq(server: Server, *arguments: str) -> None:
    environ = clean_environ(server.settings)
    subprocess.run(command(*arguments), cwd=server.directory, env=environ, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def people(server: Server, sandbox: Sandbox) -> Mapping[str, str]:
    """An address of every kind that there is, known to SendX as well where it is known here."""
    found = {name: person(name) for name in ("nobod", "typed", "known", "erase", "moved", "queue", "serve", "upper")}
    Browser(server).push(identify(email=found["typed"], tags=["newsletter"]))
    for name in ("known", "erase", "moved", "upper"):
        Browser(server).push(login(found[name], firstName="F", tags=["vip"]), track("cart-1"))
        arrives(sandbox, found[name], "+cart-1")
    Browser(server).push(login(found["moved"], newEmail=person("movto")))
    eventually(lambda: sandbox.contact(found["moved"]) is None)
    scq(server, "erase", found["erase"])
    erased_at = time.time()  # cookies count in whole seconds
    eventually(lambda: int(time.time()) > erased_at)
    path = "/api/v1/rest/contact/identify"
    assert (
        server.client.post(path, json={"email": found["serve"]}, headers={"X-Team-ApiKey": SERVER_KEY}).status_code
        == 200
    )
    Browser(server).push(login(found["queue"]), *[track(f"cart-{number}") for number in range(40)])
    found["upper"] = found["upper"].upper()
    return found


def transcript(server: Server, conversations: Sequence[Sequence[Json]], email: str, **headers: str) -> list[Json]:
    """All that a stranger learns from typing the address and going on, with what differs from visitor to visitor taken out."""
    stranger, said = Browser(server, **headers), []
    for calls in conversations:
        ids = new_ids(len(calls))
        response = stranger.request(*[json.loads(json.dumps(call).replace("EMAIL", email)) for call in calls], ids=ids)
        stranger.adopt(response)
        text = response.text.replace(stranger.s or "-", "S")
        for number, push_id in enumerate(ids):
            text = text.replace(push_id, f"ID{number}")
        names = {name: value for name, value in response.headers.items() if name not in ("date", "set-cookie")}
        cookie = re.sub(
            r"=[^;]+\.", lambda found: f"={len(found[0])}.", response.headers.get("set-cookie", ""), count=1
        )
        said.append((response.status_code, text, names, re.sub(r"\.[\w-]+;", f".{43};", cookie)))
    return said


TALKS: dict[str, Sequence[Sequence[Json]]] = {
    "a newsletter form": [[identify(email="EMAIL", tags=["newsletter"], firstName="A")]],
    "more than is offered": [
        [identify(email="EMAIL", tags=["vip", "newsletter"], company="C", customFields={"a": 1}, newEmail="x@y.co")]
    ],
    "tracks behind it": [
        [identify(email="EMAIL"), track("typed-1"), track("cart-1"), track("newsletter", remove=["newsletter"])]
    ],
    "tracks before it": [[track("typed-1"), track("cart-1")], [identify(email="EMAIL")], [track("typed-2")]],
    "again and again": [[identify(email="EMAIL", lastName="B")]] * 3
    + [[identify(lastName="C"), identify(email="EMAIL")]],
    "a log-out": [[identify(email="EMAIL")], [["reset"]], [track("cart-1")], [identify(email="EMAIL")]],
    "consent": [
        [identify(email="EMAIL")],
        [["consent", "denied"]],
        [track("typed-1")],
        [["consent", "granted"], track("typed-1")],
    ],
    "a token that is none": [[identify(email="EMAIL", token="a.b.c")], [identify(token="EMAIL")]],
}


@pytest.mark.parametrize("talk", TALKS)
def test_no_answer_tells_whether_an_address_is_known(server: Server, people: Mapping[str, str], talk: str) -> None:
    heard = {name: transcript(server, TALKS[talk], email) for name, email in people.items()}
    for name, said in heard.items():
        assert said == heard["nobod"], name


@pytest.mark.parametrize(
    "talk", ["a newsletter form", "more than is offered", "a token that is none", "again and again"]
)
def test_no_refusal_tells_whether_an_address_is_known(strict: Server, sandbox: Sandbox, talk: str) -> None:
    known, nobody = person("known"), person("nobod")
    Browser(strict, host=HOST).push(login(known), track("cart-1"))
    arrives(sandbox, known, "+cart-1")
    heard = [transcript(strict, TALKS[talk], email, host=HOST) for email in (known, nobody, known.upper())]
    assert heard[0] == heard[1] == heard[2]
    assert '"refused"' in heard[0][0][1]


# --- What a page may not take: tags, fields and addresses off the lists


HOMOGLYPH = "саrt-1"  # with Cyrillic letters
NEARLY = """
vip Cart-1 CART-1 xcart-1 cart Blogger paid __proto__ constructor * ? [c]art-1 %63art-1 ﬁ \u200bcart-1 cart\u20111
"""
OFF_THE_LIST = [
    *NEARLY.split(),
    HOMOGLYPH,
    " cart-1",
    "blogger ",
    "blogger\n",
    "blogger\x00",
    "paid  user",
    "paid user,vip",
]


@pytest.mark.parametrize("tag", OFF_THE_LIST, ids=ascii)
def test_a_tag_off_the_list_is_taken_by_nobody(server: Server, sandbox: Sandbox, tag: str) -> None:
    email, guest, nobody = new_email(), Browser(server), Browser(server)
    ann = Browser(server)
    ann.logs_in(email)
    guest.push(identify(email=(typed := new_email("typed"))))
    for browser in (ann, guest, nobody):
        for call in (track(tag), track("newsletter", tag), track(remove=[tag])):
            assert browser.statuses(call) == ["tag-not-allowed"]
    for browser in (ann, guest):
        assert browser.push(identify(tags=[tag]))[0]["dropped"] == [f"tags.{tag}"]
    ann.push(track("cart-end"))
    guest.push(track("typed-end"))
    events = arrives(sandbox, email, "+cart-end") + arrives(sandbox, typed, "+typed-end")
    assert not [event for event in events if event[1:] == tag]


BEYOND = {
    "newEmail": "eve@example.com",
    "lists": ["l1"],
    "id": "x",
    "contact": {"tags": ["vip"]},
    "verified": True,
    "trust": 2,
    "customFields": {"Plan": "gold", "isAdmin": True, "++": "++1"},
    "tags": ["paid user", "vip"],
    "Email": "eve@example.com",
    "firstname": "Eve",
    "__proto__": {"email": "eve@example.com"},
    "success": {"email": "eve@example.com"},
}


def test_a_field_off_the_list_is_taken_by_nobody(server: Server, sandbox: Sandbox) -> None:
    email, typed = new_email(), new_email("typed")
    ann, guest = Browser(server), Browser(server)
    ann.logs_in(email)
    ann.push(identify(firstName="Ann", **BEYOND), track("cart-end"))
    guest.push(identify(email=typed, firstName="T", company="C", birthday="2000-01-01", **BEYOND), track("typed-end"))
    arrives(sandbox, email, "+cart-end")
    arrives(sandbox, typed, "+typed-end")
    told = [
        record.body for mail in (email, typed) for record in requests_about(sandbox, mail) if "identify" in record.path
    ]
    assert {"email": email, "firstName": "Ann", "tags": ["paid user"]} in told, "offered to whoever is verified"
    assert {"email": typed, "firstName": "T"} in told
    assert not is_anywhere(sandbox, "eve@example.com")


def test_an_assertion_only_adds_offered_tags_to_a_verified_contact(server: Server, sandbox: Sandbox) -> None:
    email, eve = new_email(), Browser(server)
    says = {
        "firstName": "Ann",
        "lastName": "A",
        "company": "C",
        "customFields": {"Plan": "gold"},
        "tags": ["vip", "newsletter"],
    }
    Browser(server).push(login(email, **says))
    arrives(sandbox, email, "+vip")
    before = sandbox.contact(email)
    taken = {
        "firstName": "E",
        "lastName": "E",
        "company": "E",
        "birthday": "2000-01-01",
        "customFields": {"Plan": "free"},
    }
    for spelling in (email, email.upper(), f" {email} "):
        eve.push(identify(email=spelling, newEmail=new_email("eve"), **taken))
        eve.push(identify(newEmail=new_email("eve"), **taken))
    assert eve.statuses(track(remove=["newsletter"]), track("cart-1", "typed-1"), track("typed-end")) == [
        "tag-not-allowed",
        "tag-not-allowed",
        "accepted",
    ]
    arrives(sandbox, email, "+typed-end")
    after = sandbox.contact(email)
    assert before is not None
    assert after is not None
    assert (after.first_name, after.last_name, after.company, after.birthday) == ("Ann", "A", "C", "")
    assert (after.custom_fields, after.email) == ({"Plan": "gold"}, email)
    assert set(after.tags) == {*before.tags, "typed-end"}


# --- Host names and client addresses


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


def test_an_untrusted_peer_cannot_choose_its_address(sendx: tuple[Sandbox, str], tmp_path: Path) -> None:
    more = {"SCQ_IDENTIFY": "asserted", "SCQ_SIGNUPS_PER_IP": "2", "SCQ_TRUSTED_PROXIES": "203.0.113.0/24"}
    names = ["X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"]
    with running(tmp_path, sendx[1] + "/api/v1/rest", **more) as server:
        first = [Browser(server).statuses(identify(email=new_email()))[0] for _ in range(2)]
        assert first == ["accepted", "accepted"]
        for number, name in enumerate(names):
            for value in (
                f"203.0.113.{number}",
                f"198.51.100.{number}, 203.0.113.1",
                "127.0.0.1",
                "::1",
                f"for=192.0.2.{number}",
            ):
                eve = Browser(server, **{name: value})
                assert eve.statuses(identify(email=new_email())) == ["too-many-addresses"]


# --- What every answer says about itself


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


# --- Anything at all. `test_wire` and `test_server_api` do the same with bodies; here is the rest.


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


# --- Past findings: each a file that tells what went wrong, what is sent, and what must come of it


FINDINGS = sorted((ROOT / "tests" / "findings").glob("*.json"))


class Replay:
    """One finding against the running server. In its texts, $name is an address and #name a tag, one for each name, and %name an id."""

    def __init__(self, server: Server, sandbox: Sandbox) -> None:
        self.server, self.sandbox = server, sandbox
        self._names: dict[str, str] = {}
        self._browsers: dict[str, Browser] = {}

    def fill(self, value: Json) -> Json:
        """The value with its names and pieces put in: {"repeat": text, "times": n}, {"join": [...]}, {"nest": levels}, {"sign": claims} …"""
        if isinstance(value, str):
            return re.sub(r"([$#%])([a-z]+)\b", self._named, value)
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not isinstance(value, dict):
            return value
        match value:
            case {"repeat": text, "times": times}:
                return self.fill(text) * times
            case {"join": parts}:
                return "".join(self.fill(part) for part in parts)
            case {"nest": levels}:
                return json.loads("[" * levels + "]" * levels)
            case {"sign": said}:
                return token(**self.fill(said))
            case {"float": text}:
                return float(text)
            case {"power": digits}:
                return 10**digits
        return {self.fill(key): self.fill(item) for key, item in value.items()}

    def _named(self, found: re.Match[str]) -> str:
        make = {"$": new_email, "#": lambda: f"cart-{new_id()[:8]}", "%": new_id}[found[1]]
        return self._names.setdefault(found[0], make())

    def browser(self, name: str) -> Browser:
        return self._browsers.setdefault(name, Browser(self.server))

    def step(self, step: dict[str, Json]) -> None:
        """A request as it is written, a body, calls of a browser, or what must have arrived at SendX in the end."""
        self._names = {name: text for name, text in self._names.items() if not name.startswith("%")}
        if "raw" in step:
            answer = self.server.raw(self.fill(step["raw"]).encode("latin-1"))
            assert re.match(rf"HTTP/1.1 ({step['answer']}) ", answer.decode("latin-1")), answer[:200]
        elif "body" in step:
            response = self.server.send(self.fill(step["body"]).encode())
            assert response.status_code in step["status"]
            assert response.status_code != 202 or outcomes(response.json()["results"]) == step.get("outcomes", [])
        elif "calls" in step:
            self._calls(self.browser(step.get("browser", "a")), step)
        else:
            self._arrives(self.fill(step["arrives"]), self.fill(step.get("nowhere", [])))

    def _calls(self, browser: Browser, step: dict[str, Json]) -> None:
        calls = self.fill(step["calls"])
        if "with_s_of" in step:
            browser.s = self.browser(step["with_s_of"]).s
        if "cookie" in step:
            header = step["cookie"].replace("GENUINE", browser.cookie).encode("latin-1")
            results = sent(self.server, batch(*calls), [(b"Cookie", header)]).json()["results"]
        else:
            results = browser.push(*calls)
        assert outcomes(results) == step["outcomes"]

    def _arrives(self, expected: dict[str, list[str]], nowhere: list[str]) -> None:
        for address, tags in expected.items():
            events = arrives(self.sandbox, address, tags[-1])
            assert [event for event in events if event != "identify"] == tags, "identifies may have been merged"
        for text in nowhere:
            assert not is_anywhere(self.sandbox, text)


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_what_was_found_once_stays_mended(server: Server, sandbox: Sandbox, path: Path) -> None:
    finding = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(finding) == ["found", "now", "steps"]
    replay = Replay(server, sandbox)
    for step in finding["steps"]:
        replay.step(step)
    assert_nothing_failed(server)


def test_the_corpus_of_findings_is_not_lost() -> None:
    assert len(FINDINGS) >= 20


# --- SECURITY.md


SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", SECURITY))
    assert len(named) > 40
    for file, name in named:
        assert name in functions_of(file), f"{file}::{name}"


def test_every_row_of_the_threat_model_names_its_test() -> None:
    model = SECURITY.split("\n## Threat model\n")[1].split("\n## ")[0]
    rows = [line for line in model.splitlines() if line.startswith("|") and not re.match(r"\|( they try|-)", line)]
    assert len(rows) > 40
    assert not [row for row in rows if "::test_" not in row]


def test_what_the_hardening_list_names_exists() -> None:
    known = {spec.name for spec in SPECS} | {f"{spec.name}_FILE" for spec in SPECS if spec.secret}
    assert set(re.findall(r"\bSCQ_[A-Z_]*[A-Z]\b", SECURITY)) <= known
    for path in re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", SECURITY):
        assert (ROOT / path).exists(), path
    assert max(len(line) for line in SECURITY.splitlines() if not line.startswith("|")) < 150


# --- Slow bodies, begun before all the others


def test_a_body_that_does_not_come_is_answered_408(dawdlers: list[Dawdler]) -> None:
    for dawdler in dawdlers:
        dawdler.join(BODY_SECONDS)
        assert not dawdler.is_alive()
        assert dawdler.answer.startswith(b"HTTP/1.1 408 "), dawdler.answer[:200]
