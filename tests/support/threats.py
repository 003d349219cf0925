"""What the tests of the threat model share: a victim's cookie, and tokens as an attacker or a careless back end makes them."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Sequence
from typing import Any

import httpx

from proxy.core.cookies import CookieCodec
from proxy.core.visitors import Trust, Visitor
from tests.support.server import COOKIE_KEY, IDENTITY_KEY, SHOP, Server, dumps

Json = Any


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


VISITOR = Visitor("a-visitor-of-the-shop", "vic@example.com", Trust.VERIFIED, int(time.time()), int(time.time()))
OURS = CookieCodec([COOKIE_KEY]).encode(VISITOR)


def jws(header: Json, claims: Json, key: bytes = b"", digest: str = "sha256") -> str:
    """A compact JWS, signed by HMAC as nobody's library would: bytes are taken as they are, anything else as JSON."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, claims)]
    signed = f"{encoded(parts[0])}.{encoded(parts[1])}"
    return f"{signed}.{encoded(hmac.digest(key, signed.encode(), digest))}"


def claims(**changes: Json) -> dict[str, Json]:
    now = int(time.time())
    return {"email": "vic@example.com", "iat": now, "exp": now + 600, "aud": "scq"} | changes


KEY = IDENTITY_KEY.encode()


def assert_nothing_failed(server: Server) -> None:
    for sign in ("Traceback", "A request failed", "died", "Exception"):
        assert sign not in server.log, server.log[-2_000:]


def sent(server: Server, body: bytes | Json, headers: Sequence[tuple[bytes, bytes]]) -> httpx.Response:
    """POST to the push endpoint with headers as bytes, which need not be ASCII."""
    content = body if isinstance(body, bytes) else dumps(body)
    return server.client.post("/scq/push", content=content, headers=[(b"Origin", SHOP.encode()), *headers])
