"""The endpoint without a server: what it does with headers that no HTTP parser lets through, and what it tells of a browser by its cookie alone."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.app import create_app
from proxy.config.settings import load_settings
from proxy.core.cookies import CookieCodec
from proxy.core.visitors import Trust, Visitor
from proxy.web.application import Application
from proxy.web.asgi import Header
from proxy.web.push import PushEndpoint
from tests.support.live import serving
from tests.support.server import COOKIE_KEY, LOCAL, SHOP, environment

DAY = 86_400


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PushEndpoint]:
    environ = environment("http://127.0.0.1:9/api/v1/rest", tmp_path_factory.mktemp("push") / "scq.db", SCQ_PORT="0")
    app = cast("Application", create_app(load_settings(environ, None)))
    with serving(app):
        yield cast("PushEndpoint", app.direct["/scq/push"])


def cookie(trust: Trust, *, key: str = COOKIE_KEY, days: int = 0) -> str:
    """A visitor's cookie. `days`: since the last token."""
    now = int(time.time())
    who = Visitor("v" * 22, "ann@example.com", trust, issued=now, verified=now - days * DAY)
    return CookieCodec([key]).encode(who if trust else Visitor("v" * 22, issued=now))


def asked(**headers: str) -> list[Header]:
    return [(name.replace("_", "-").encode(), text.encode("latin-1")) for name, text in headers.items()]


ANN = f"__Host-scq={cookie(Trust.VERIFIED)}"


@pytest.mark.parametrize(
    ("given", "trust"),
    [
        (ANN, Trust.VERIFIED),
        (f"__Host-scq={cookie(Trust.ASSERTED)}", Trust.ASSERTED),
        (f"__Host-scq={cookie(Trust.VERIFIED, days=31)}", Trust.ASSERTED),
        (f"__Host-scq={cookie(Trust.ANONYMOUS)}", Trust.ANONYMOUS),
        ("", Trust.ANONYMOUS),
        ("__Host-scq=forged", Trust.ANONYMOUS),
        (f"__Host-scq={cookie(Trust.VERIFIED, key='x' * 32)}", Trust.ANONYMOUS),
        (f"{ANN}; {ANN}", Trust.ANONYMOUS),
        (ANN.replace("__Host-", ""), Trust.ANONYMOUS),
    ],
    ids=["verified", "asserted", "faded", "anonymous", "none", "garbage", "another-key", "twice", "plain-name"],
)
def test_a_script_is_told_the_trust_that_the_endpoint_would_see(
    endpoint: PushEndpoint, given: str, trust: Trust
) -> None:
    assert endpoint.trust_of(asked(referer=f"{SHOP}/cart", cookie=given, sec_fetch_site="same-site")) is trust


@pytest.mark.parametrize(
    "page",
    [
        {"referer": f"{SHOP}/"},
        {"origin": SHOP},
        {"referer": "https://own.example/page?x", "sec_fetch_site": "same-origin"},
        {"host": "own.example", "sec_fetch_site": "same-origin"},
    ],
    ids=["listed", "with-cors", "same-origin", "without-referrer"],
)
def test_pages_that_may_push_are_told_it(endpoint: PushEndpoint, page: dict[str, str]) -> None:
    assert endpoint.trust_of(asked(cookie=ANN, **page)) is Trust.VERIFIED


@pytest.mark.parametrize(
    "page",
    [
        {"referer": "https://blog.shop.example/", "sec_fetch_site": "same-site"},
        {"referer": f"{SHOP}/", "sec_fetch_site": "cross-site"},
        {"origin": "https://evil.example", "referer": f"{SHOP}/"},
        {"referer": f"{SHOP}.evil.example/"},
        {"referer": f"{SHOP}@evil.example/"},
        {"referer": "https://["},
        {"referer": "\xff"},
        {"referer": "http://own.example/", "sec_fetch_site": "same-origin"},
        {"host": "[", "sec_fetch_site": "same-origin"},
        {"host": "own.example", "sec_fetch_site": "same-site"},
        {"host": "own.example"},
        {},
        {"referer": f"{SHOP}/", "x": "x" * 40_000},
    ],
)
def test_a_page_that_may_not_push_learns_nothing(endpoint: PushEndpoint, page: dict[str, str]) -> None:
    assert endpoint.trust_of(asked(cookie=ANN, **page)) is Trust.ANONYMOUS


@pytest.mark.parametrize(
    "page", [{"referer": f"{LOCAL}/"}, {"host": "localhost:8000", "sec_fetch_site": "same-origin"}]
)
def test_a_loopback_page_is_known_by_its_plain_cookie(endpoint: PushEndpoint, page: dict[str, str]) -> None:
    assert endpoint.trust_of(asked(cookie=ANN.replace("__Host-", ""), **page)) is Trust.VERIFIED


async def _nothing() -> Any:
    raise AssertionError("the body is not asked for")


@given(origin=st.binary(max_size=40) | st.from_regex(rb"https://[a-z.]{1,9}[\x00-\xff]{0,3}[a-z]*", fullmatch=True))
def test_no_origin_puts_anything_but_an_origin_into_a_header(endpoint: PushEndpoint, origin: bytes) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(endpoint({"type": "http", "method": "POST", "headers": [(b"origin", origin)]}, _nothing, send))
    granted = [value for name, value in sent[0]["headers"] if name == b"access-control-allow-origin"]
    assert sent[0]["status"] == 403
    assert granted in ([], [origin])
    assert not granted or re.fullmatch(rb"[!-~]+", origin)
