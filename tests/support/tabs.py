"""What tests do in a tab of Playwright's Chromium, and the commands behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.support.browser import Visit
from tests.support.live import PATIENCE_SECONDS

COMMAND = Path(sys.executable).with_name("scq-proxy")
ANN, BOB, CLEO = "ann@example.com", "bob@example.com", "cleo@example.com"

# As `scq-proxy snippet` prints it.
EMBED = '<script>window._scq = window._scq || [];</script><script async src="/scq/scq.js"></script>'


def send_apart(url: str, origin: str, identify: dict[str, Any]) -> None:
    """Push an identify from another browser."""
    pushes = [{"id": os.urandom(16).hex(), "call": ["identify", identify]}]
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    body = json.dumps({"v": 1, "pushes": pushes}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/scq/push", body, headers), timeout=PATIENCE_SECONDS
    ) as answer:
        assert json.load(answer)["results"][0]["status"] == "accepted"


@contextmanager
def running(log: Path, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command `scq-proxy`, its output in `log`. Left alive, it is ended as by Ctrl-C and must then end well."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SCQ_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [COMMAND, *arguments], cwd=log.parent, env=clean | environ, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        sys.stdout.write(log.read_text())  # shown when the test fails


def is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the proxy answers. Raises AssertionError once its process has ended."""
    assert process.poll() is None, "the command has ended: its log says why"
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=PATIENCE_SECONDS):
            return True
    except OSError:
        return False


def push(page: Page, method: str, fields: dict[str, Any], name: str = "") -> None:
    """Push a call; with a name its outcome is written down."""
    script = "([method, fields, name]) => { _scq.push([method, name ? {...fields, ...told(name)} : fields]); }"
    page.evaluate(script, [method, fields, name])


def track(page: Page, *tags: str) -> None:
    """Push one track for each tag, all at once, with callbacks by the tags' names."""
    script = "(tags) => { for (const tag of tags) _scq.push(['track', {addTags: [tag], ...told(tag)}]); }"
    page.evaluate(script, list(tags))


def outcomes(page: Page, expected: int) -> list[list[str]]:
    """Which callbacks have run, in order, once so many have: [name, which, status or reason]."""
    page.wait_for_function("(expected) => outcomes.length >= expected", arg=expected)
    found: list[list[str]] = page.evaluate("outcomes")
    return found


def pushed(visit: Visit) -> list[list[Any]]:
    """The calls of all requests that the pages made to the proxy, repeats included."""
    bodies = [json.loads(request.post_data or "") for request in visit.requests("/push")]
    return [push["call"] for body in bodies for push in body["pushes"]]


def only_failed_loads(errors: list[str]) -> bool:
    """Whether all that was complained about is the browser's own line on a request that failed."""
    return all("Failed to load resource" in error or "blocked by CORS policy" in error for error in errors)


def wire_statuses(page: Page) -> list[int]:
    """The statuses of the answers from here on, also of those that the browser keeps from the page. The list grows."""
    statuses: list[int] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.responseReceivedExtraInfo", lambda event: statuses.append(event["statusCode"]))
    return statuses
