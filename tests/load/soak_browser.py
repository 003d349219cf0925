"""A thousand pages left at once, on each engine, against the real proxy: `python -m tests.load.soak_browser --leaves 1000 --engine all`.

A visitor who has logged in opens page after page. Each pushes one to three tags and is left in the same moment: by a click on a link,
by navigation, by closing the tab, in turns. At the end one more page is opened, which may bring what was left in storage. Then
every tag has to be at SendX (else it is lost), and the proxy must have taken every push once. `make soak-browser` runs it.

Exit code 1 unless both are so. Order is counted too, and only told: requests of two pages may overtake each other on their way.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.engines import NAMES, Engine, Tab, engine
from tests.support.front import Front, front
from tests.support.live import PATIENCE_SECONDS, eventually, serving
from tests.support.server import API_KEY, arrived, new_email, running, token

WAYS = ("click", "navigate", "close")
ROUND = 999  # leaves behind one sandbox, which remembers the last 10,000 requests; a multiple of the ways

# Pushes one to three tags; `leave` then goes on to the next page. The second of every three does so by itself, once loaded.
PAGE = """<!doctype html><title>Leaf</title><a id=on>On</a><script src="/scq/scq.js"></script><script>
const number = +location.search.slice(1), on = document.querySelector("#on");
on.href = `?${number + 1}`;
const push = () => { for (let i = 0; i <= number % 3; i++) _scq.push(["track", {addTags: [`t-${number}-${i}`]}]); };
const leave = () => { push(); number % 3 ? location.assign(on.href) : on.click(); };
addEventListener("load", () => setTimeout(() => number % 3 == 1 ? leave() : window.ready = true));
</script>"""


class Result(NamedTuple):
    """What became of the pushes of one engine. `swapped`: pushes that arrived behind a later one."""

    leaves: int
    pushes: int
    lost: int
    twice: int
    swapped: int
    seconds: float


class Stand(NamedTuple):
    """One round's site, and the sandbox behind it."""

    site: Front
    sandbox: Sandbox


def wanted(leaves: int) -> list[str]:
    return [f"t-{number}-{i}" for number in range(leaves) for i in range(number % 3 + 1)]


@contextmanager
def stand() -> Iterator[Stand]:
    app = create_sandbox(key=API_KEY)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(app) as url,
        running(Path(folder), f"{url}/api/v1/rest", SCQ_TAGS="*", SCQ_LOG_LEVEL="warning") as server,
        front(server.url, Front) as site,
    ):
        yield Stand(site, app.state.sandbox)


def soak(browser: Engine, leaves: int) -> Result:
    """Leave so many pages, and count."""
    with stand() as (site, sandbox):
        page = site.put("/leaf", PAGE)
        email, started = new_email(), time.monotonic()
        log_in(browser.open(f"{page}?2"), email, sandbox)
        for number in range(0, leaves, len(WAYS)):
            leave_three(browser, page, number)
        seconds = time.monotonic() - started
        browser.open(f"{page}?2")
        missing = await_all(sandbox, email, wanted(leaves))
        browser.close_tabs()
        story = [event for event in arrived(sandbox, email) if event != "identify"]
        order = {f"+{tag}": index for index, tag in enumerate(wanted(leaves))}
        swapped = sum(order[one] > order[next_] for one, next_ in itertools.pairwise(story))
        twice = sum(times > 1 for times in site.accepted().values())
        return Result(leaves, len(wanted(leaves)), missing, twice, swapped, seconds)


def log_in(tab: Tab, email: str, sandbox: Sandbox) -> None:
    tab.run(f"void _scq.push(['identify', {{token: '{token(email)}'}}])")
    eventually(lambda: arrived(sandbox, email) == ["identify"], PATIENCE_SECONDS)


def leave_three(browser: Engine, page: str, number: int) -> None:
    """In all three ways: a click, a navigation, a closed tab."""
    tab = browser.open(f"{page}?{number}")
    tab.wait("window.ready")
    tab.run("leave()")
    tab.wait(f"number === {number + 2} && window.ready", PATIENCE_SECONDS)
    tab.run("push()")
    tab.close()
    browser.tabs.remove(tab)


def await_all(sandbox: Sandbox, email: str, tags: list[str]) -> int:
    """Wait for all of these tags; returns how many have not come."""

    def missing() -> int:
        return len({f"+{tag}" for tag in tags} - set(arrived(sandbox, email)))

    with suppress(AssertionError):
        eventually(lambda: not missing(), PATIENCE_SECONDS)
    return missing()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Leave many pages at once and see that no push is lost or taken twice."
    )
    parser.add_argument(
        "--leaves", type=int, default=1000, metavar="N", help="pages to leave on each engine, rounded up to threes"
    )
    parser.add_argument("--engine", choices=[*NAMES, "all"], default="all")
    given = parser.parse_args()
    failed = False
    print(f"{'engine':9} {'leaves':>7} {'pushes':>7} {'lost':>5} {'twice':>6} {'swapped':>8} {'seconds':>8}")
    for name in NAMES if given.engine == "all" else [given.engine]:
        leaves = -(-given.leaves // len(WAYS)) * len(WAYS)
        rounds = [min(ROUND, leaves - done) for done in range(0, leaves, ROUND)]
        with engine(name) as browser:
            total = Result(*(sum(column) for column in zip(*(soak(browser, n) for n in rounds), strict=True)))
        failed |= bool(total.lost or total.twice)
        row = f"{name:9} {total.leaves:7} {total.pushes:7} {total.lost:5} {total.twice:6} {total.swapped:8}"
        print(f"{row} {total.seconds:8.1f}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
