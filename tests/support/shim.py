"""A site with the shim before the real proxy, and what tests do and find in its pages, on any engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxy.sandbox.api import Sandbox
from tests.support.engines import Engine, EngineError, Tab
from tests.support.front import Fault, Front, front
from tests.support.live import eventually
from tests.support.server import Server, arrived, new_email, token

SHIM = Path(__file__).parents[2] / "static" / "scq.min.js"
EMBED = '<script async src="/scq/scq.js"></script>'
ELSEWHERE = "<!doctype html><title>Elsewhere</title>"
DOWN: tuple[Fault, ...] = ("503", "429", "reset")

# `told(name)` makes the callbacks of a push, `outcomes` lists them as they run; `track(tag, …)` pushes one track for each tag.
# `thrown` lists what went wrong in the page, `shows` whether it came out of the back/forward cache.
PRELUDE = """
var _scq = window._scq || [], outcomes = [], thrown = [], shows = [];
const told = (name) => ({
  success: (result) => outcomes.push([name, "success", result.status]),
  failure: (reason) => outcomes.push([name, "failure", reason]),
});
const track = (...tags) => { for (const tag of tags) _scq.push(["track", {addTags: [tag], ...told(tag)}]); };
addEventListener("error", (event) => thrown.push(String(event.message)));
addEventListener("unhandledrejection", (event) => thrown.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => thrown.push(event.blockedURI));
addEventListener("pageshow", (event) => shows.push(event.persisted));
"""
# A page whose clock runs twenty times as fast, timers too: the shim's ten seconds are half of one.
FAST_CLOCK = """
const timer = setTimeout, clock = Date.now, start = clock();
window.setTimeout = (run, ms, ...rest) => timer(run, ms / 20, ...rest);
Date.now = () => start + (clock() - start) * 20;
"""
# A page visited a minute later: what a page left behind has been untouched for so long.
LATER = "const clock = Date.now; Date.now = () => clock() + 60000;"


class Site(Front):
    """A front whose pages have the shim, the sandbox behind it, and the one browser that visits."""

    browser: Engine
    sandbox: Sandbox

    def page(self, path: str, *scripts: str, body: str = "", embed: str = EMBED, **headers: str) -> str:
        """Serve a page that runs these scripts before the shim; returns its address."""
        return self.put(path, document(PRELUDE, *scripts, body=body, embed=embed), **headers)

    def bare(self, path: str, body: str = "") -> str:
        """Serve a page without the shim."""
        return self.put(path, document(body=body, embed=""))

    def logged_in(self, path: str = "/", **given: str) -> tuple[Tab, str]:
        """A tab on a page whose visitor has logged in, with everything answered; and their address."""
        tab, email = self.browser.open(self.page(path, **given)), new_email()
        tab.wait("_scq.push !== [].push")
        log_in(tab, email)
        self.await_story(email, "identify")
        tab.wait("outcomes.length")
        tab.run("void (outcomes.length = 0)")
        return tab, email

    def story(self, email: str) -> list[str]:
        return arrived(self.sandbox, email)

    def await_story(self, email: str, *expected: str) -> None:
        """Wait until exactly this has been done to the contact: `identify`, `+tag` or `-tag`, in this order."""
        with suppress(AssertionError):
            eventually(lambda: len(self.story(email)) >= len(expected))
        assert self.story(email) == list(expected)


def document(*scripts: str, body: str, embed: str) -> str:
    inline = "".join(f"<script>{script}</script>" for script in scripts)
    return f'<!doctype html><meta charset="utf-8"><title>Test</title>{inline}{embed}<body>{body}'


def link(url: str, script: str = "") -> str:
    """A link to click at; the page runs the script while it is clicked."""
    return f"<a id=away href='{url}' onclick='{script}'>Away</a>"


def identify(email: str) -> str:
    """The push of a log-in, as JavaScript."""
    return f'_scq.push(["identify", {{...{json.dumps({"token": token(email)})}, ...told("identify")}}])'


def log_in(tab: Tab, email: str) -> None:
    tab.run(identify(email))


def tags(numbers: Sequence[int]) -> list[str]:
    return [f"t-{number:03}" for number in numbers]


def outcomes(tab: Tab, expected: int) -> list[list[Any]]:
    """The callbacks that have run, in order, once so many have: [name, which, status or reason]."""
    with suppress(AssertionError):
        tab.wait(f"outcomes.length >= {expected}")
    found: list[list[Any]] = tab.run("outcomes")
    return found


def succeeded(*names: str, status: str = "accepted") -> list[list[Any]]:
    return [[name, "success", status] for name in names]


def stored(tab: Tab) -> str:
    """What the shim has in the browser's storage."""
    return str(tab.run(r"JSON.stringify(Object.entries(localStorage).filter(([key]) => /^scq\d/.test(key)))"))


def await_empty_storage(tab: Tab) -> None:
    """Wait until no push is left in storage."""
    eventually(lambda: not any(name in stored(tab) for name in ("addTags", "identify", "reset")))


class Behind:
    """What is behind all fronts."""

    def __init__(self, server: Server, sandbox: Sandbox) -> None:
        self.server, self.sandbox = server, sandbox


def site_of(behind: Behind, browser: Engine) -> Iterator[Site]:
    with front(behind.server.url, Site) as site:
        site.browser, site.sandbox = browser, behind.sandbox
        yield site
        thrown = [problem for tab in browser.tabs for problem in thrown_in(tab)]
        browser.close_tabs()
        assert thrown == []
        assert [push for push, times in site.accepted().items() if times > 1] == []


def thrown_in(tab: Tab) -> list[str]:
    with suppress(EngineError):
        found: list[str] = tab.run("window.thrown || []")
        return found
    return []  # closed


def keep_busy(tab: Tab, site: Site) -> None:
    """Occupy the six connections that a browser opens to one host, until `mend`: Chromium's cached page holds on to its own."""
    tab.run("void [1, 2, 3, 4, 5, 6].map((i) => fetch(`/busy?${i}`, {cache: 'no-store'}).catch(() => 0))")
    eventually(lambda: site.busy >= 6)


# Runs the script at once, and counts how often it asks for the page's storage.
COUNTED = """(() => {
  let touched = 0;
  const storage = localStorage;
  Object.defineProperty(window, "localStorage", {configurable: true, get: () => (touched++, storage)});
  window.touched = () => touched;
  const script = document.createElement("script");
  script.dataset.src = "/scq/scq.js";
  script.textContent = %s;
  document.head.append(script);
  return touched;
})()"""


def tags_in(text: str) -> set[str]:
    return {tag for tag in tags(range(10)) + [f"t-{n}" for n in range(10)] if tag in text}
