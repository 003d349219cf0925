"""A real, headless Chromium for the tests, and a record of what the pages in it asked for and complained about.

`chromium` starts Debian's Chromium; `visiting` opens a fresh profile in it and hands out a `Visit`; `offline` cuts one
page off the network. It downloads no browser, replaces no part of a page, and answers no request itself.

Use `chromium` from a fixture of scope `module`, not `session`: while Playwright's synchronous API is open, its event loop
counts as running in this thread, and no async test of another file could start one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, WebError, sync_playwright

from tests.support.live import PATIENCE_SECONDS

CHROMIUM = Path("/usr/bin/chromium")
INSTALL = "apt-get install -y --no-install-recommends chromium"
ARGUMENTS = (
    "--no-sandbox",  # Chromium's own sandbox refuses to start as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium while the block runs. Where it is missing the test is skipped, or with `CI` set fails."""
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is missing; install it with: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        with closing(browser):
            yield browser


class Visit:
    """One visitor's browser: its tabs share cookies and storage, and nothing with another `Visit`."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self._errors: list[str] = []
        self._requests: list[Request] = []
        context.on("weberror", self._on_thrown)
        context.on("console", self._on_console)
        context.on("request", self._on_request)

    def open(self, url: str) -> Page:
        """A new tab at `url`, loaded with all its scripts."""
        page = self.context.new_page()
        page.goto(url)
        return page

    def requests(self, ending: str = "") -> list[Request]:
        """What the pages asked for so far, in order, with addresses that end like this."""
        self._catch_up()
        return [request for request in self._requests if request.url.endswith(ending)]

    def take_errors(self) -> list[str]:
        """What pages threw or wrote to the console as errors since the last call: a test takes those it expects."""
        self._catch_up()
        taken, self._errors[:] = self._errors.copy(), []
        return taken

    def telling_urls(self) -> list[str]:
        """The requested addresses that hold an e-mail address or the beginning of a JWT."""
        self._catch_up()
        urls = [unquote(request.url) for request in self._requests]
        return [url for url in urls if "@" in url or "eyJ" in url]

    def _on_thrown(self, problem: WebError) -> None:
        self._errors.append(f"thrown: {problem.error}")

    def _on_request(self, request: Request) -> None:
        self._requests.append(request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._errors.append(f"console: {message.text}")

    def _catch_up(self) -> None:
        """Playwright hands on events only during a call, in order: after this one, those before it have come."""
        for page in self.context.pages:
            page.evaluate("0")


@contextmanager
def visiting(browser: Browser) -> Iterator[Visit]:
    """Open a fresh profile. At the end nothing may be left that the test did not expect (`take_errors`)."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_SECONDS * 1_000)
    with closing(context):
        visit = Visit(context)
        yield visit
        errors, urls = visit.take_errors(), visit.telling_urls()
        assert not errors, errors
        assert not urls, urls


@contextmanager
def offline(page: Page) -> Iterator[None]:
    """Cut one tab off the network while the block runs; its other tabs stay on. Fires `offline` and `online`."""
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    session.send("Network.emulateNetworkConditions", {"offline": True, **conditions})
    yield
    session.send("Network.emulateNetworkConditions", {"offline": False, **conditions})
