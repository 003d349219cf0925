"""A site for browsers to visit: what reached the fake SendX, pages that a test writes, and the settings of the proxy between them."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.core.tokens import TokenCodec
from tests.support.live import PATIENCE_SECONDS, eventually

KEY = "an-identity-key-of-the-tests-long-enough"

# `told(name)` makes the callbacks of a push; `outcomes` lists them as they run.
TOLD = """
window.outcomes = [];
window.told = (name) => ({
  success: (result) => outcomes.push([name, "success", result.status]),
  failure: (reason) => outcomes.push([name, "failure", reason]),
});
"""


class SendX:
    """What reached the fake SendX at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def requests(self) -> list[dict[str, Any]]:
        """Everything that arrived, in order."""
        found: list[dict[str, Any]] = _read(f"{self.url}/sandbox/requests")["requests"]
        return found

    def contact(self, email: str) -> dict[str, Any] | None:
        contacts: list[dict[str, Any]] = _read(f"{self.url}/sandbox/contacts")["contacts"]
        return next((contact for contact in contacts if contact["email"] == email), None)

    def story(self, email: str) -> list[str]:
        """What was done to the contact, in order: `identify`, `+tag added`, `-tag removed`; merged requests count as single ones."""
        told: list[str] = []
        for request in self.requests():
            if request["contact"] == email:
                body = request["body"]
                told += ["identify"] if request["path"].endswith("/identify") else []
                told += [f"+{tag}" for tag in body.get("addTags") or body.get("tags") or []]
                told += [f"-{tag}" for tag in body.get("removeTags") or []]
        return told

    def await_story(self, email: str, *expected: str) -> None:
        """Wait until exactly this has been done to the contact."""
        try:
            eventually(lambda: len(self.story(email)) >= len(expected))
        finally:
            assert self.story(email) == list(expected)

    def violations(self) -> int:
        total: int = _read(f"{self.url}/sandbox/violations")["total"]
        return total


def _read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


class Pages:
    """A web server whose pages the tests write; `/busy` answers nobody who waits for it."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[str, dict[str, str]]] = {}
        self.app = Starlette(routes=[Route("/{path:path}", self._answer)])

    def put(self, path: str, text: str, **headers: str) -> None:
        """Serve `text` at `path`; underscores in the names of headers stand for dashes."""
        self._pages[path] = (text, {name.replace("_", "-"): value for name, value in headers.items()})

    async def _answer(self, request: Request) -> Response:
        if request.url.path == "/busy":
            await _until_left(request)
        if request.url.path in ("/busy", "/favicon.ico"):
            return Response()
        text, headers = self._pages[request.url.path]
        return Response(text, 200, headers, "text/javascript" if request.url.path.endswith(".js") else "text/html")


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Site:
    """A site with its proxy: `url` is the proxy's origin, `pages` are on the same one unless said otherwise."""

    url: str
    sendx: SendX
    pages: Pages = field(default_factory=Pages)

    def put(self, path: str, *parts: str, **headers: str) -> str:
        """Serve a page made of these parts; returns its address."""
        self.pages.put(path, f'<!doctype html><meta charset="utf-8"><title>Test</title>{"".join(parts)}', **headers)
        return self.url + path


def environment(folder: Path, sendx: SendX, **given: str) -> dict[str, str]:
    """Settings for a proxy in front of the fake SendX. The tags on offer are `t-…`."""
    return {
        "SCQ_API_KEY": "sandbox",
        "SCQ_UPSTREAM": f"{sendx.url}/api/v1/rest",
        "SCQ_SECRET_KEYS": "a-cookie-key-of-the-tests-long-enough",
        "SCQ_IDENTITY_KEYS": KEY,
        "SCQ_ORIGINS": "https://www.example.com",  # pages on the proxy's own origin need no entry
        "SCQ_TAGS": "t-*",
        "SCQ_STORE": f"sqlite:///{folder}/scq.db",
        "SCQ_MIN_FREE_MB": "1",
        **given,
    }


def token(email: str) -> dict[str, str]:
    """The argument of an identify for whom the site's back end has signed a token."""
    return {"token": TokenCodec([(None, KEY)]).mint(email, time.time(), timedelta(minutes=10))}
