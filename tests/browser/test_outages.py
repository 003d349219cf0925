"""A page whose proxy goes away or refuses, and pages of other origins, in a real browser."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.app import create_app
from proxy.config.settings import load_settings
from tests.support.browser import Visit
from tests.support.live import eventually, free_port, serving
from tests.support.site import TOLD, Pages, SendX, environment, token
from tests.support.tabs import (
    ANN,
    BOB,
    is_up,
    only_failed_loads,
    outcomes,
    push,
    running,
    send_apart,
    track,
    wire_statuses,
)

pytestmark = pytest.mark.browser


@dataclass
class Served:
    """A page on one port and `scq-proxy serve` on another, which a test may stop and start."""

    page: str
    sendx: SendX
    start: Callable[..., Any]  # a context manager; takes settings


@pytest.fixture
def served(tmp_path: Path, sendx: SendX) -> Iterator[Served]:
    port, pages = free_port(), Pages()
    url = f"http://127.0.0.1:{port}"
    with serving(pages.app) as origin:
        pages.put("/", f'<!doctype html><script>{TOLD} var _scq = [];</script><script src="{url}/scq/scq.js"></script>')

        @contextmanager
        def start(**given: str) -> Iterator[subprocess.Popen[bytes]]:
            environ = environment(tmp_path, sendx, SCQ_PORT=str(port), SCQ_ORIGINS=origin, **given)
            with running(tmp_path / "serve.log", "serve", **environ) as process:
                eventually(lambda: is_up(url, process))
                yield process

        yield Served(f"{origin}/", sendx, start)


def test_what_is_pushed_while_the_proxy_is_down_arrives_once_and_in_order_when_it_is_up_again(
    served: Served, visit: Visit
) -> None:
    page = visit.context.new_page()
    page.clock.install()
    with served.start():
        page.goto(served.page)
        push(page, "identify", token(ANN), "identify")
        outcomes(page, 1)
        served.sendx.await_story(ANN, "identify")
    page.clock.pause_at(datetime.now(UTC) + timedelta(minutes=1))  # however long the proxy takes to start
    with visit.context.expect_event("requestfailed"):
        track(page, "t-1")
    track(page, "t-2", "t-3")
    with served.start():
        page.clock.run_for(1_000)
        page.clock.resume()
        expected = [[name, "success", "accepted"] for name in ("identify", "t-1", "t-2", "t-3")]
        assert outcomes(page, 4) == expected
        served.sendx.await_story(ANN, "identify", "+t-1", "+t-2", "+t-3")
        track(page, "t-4")
        assert outcomes(page, 5) == [*expected, ["t-4", "success", "accepted"]]
    assert only_failed_loads(visit.take_errors())


def test_what_a_full_disk_turned_away_is_kept_and_tried_again_by_itself(served: Served, visit: Visit) -> None:
    page = visit.context.new_page()
    page.clock.install()
    with served.start(SCQ_MIN_FREE_MB="1000000"):
        page.goto(served.page)
        with visit.context.expect_event("response", lambda response: response.url.endswith("/push")) as answer:
            push(page, "identify", token(ANN), "identify")
        track(page, "t-1", "t-2")
        assert answer.value.status == 503
        assert answer.value.all_headers()["retry-after"] == "30"
        page.clock.fast_forward(29_000)
        assert outcomes(page, 3) == [[name, "failure", "timeout"] for name in ("identify", "t-1", "t-2")]
        assert len(visit.requests("/push")) == 1  # Retry-After is a minimum
    with served.start():
        page.clock.fast_forward(3_000)
        served.sendx.await_story(ANN, "identify", "+t-1", "+t-2")
        track(page, "t-3")
        assert outcomes(page, 4)[3:] == [["t-3", "success", "accepted"]]
    assert only_failed_loads(visit.take_errors())


# Origins


def test_a_page_on_a_listed_origin_of_the_same_site_has_its_visitor_remembered(served: Served, visit: Visit) -> None:
    with served.start():
        page = visit.open(served.page)
        statuses = wire_statuses(page)
        push(page, "identify", token(ANN), "identify")
        outcomes(page, 1)
        assert 202 in statuses
        assert 204 not in statuses  # no preflight
        page.reload()
        track(page, "t-1")
        assert outcomes(page, 1) == [["t-1", "success", "accepted"]]
        served.sendx.await_story(ANN, "identify", "+t-1")
        cookies = [(cookie["name"], cookie["httpOnly"], cookie["sameSite"]) for cookie in visit.context.cookies()]
        assert cookies == [("scq", True, "Lax")]


def test_a_page_of_another_site_is_refused_even_when_listed_and_not_harmed(
    visit: Visit, tmp_path: Path, sendx: SendX
) -> None:
    pages = Pages()
    with serving(pages.app) as elsewhere:
        origin = elsewhere.replace("127.0.0.1", "localhost")
        settings = load_settings(environment(tmp_path, sendx, SCQ_ORIGINS=origin), None)
        with serving(create_app(settings)) as url:
            pages.put("/", f'<script>{TOLD} var _scq = [];</script><script src="{url}/scq/scq.js"></script>')
            page = visit.open(origin)
            statuses = wire_statuses(page)
            push(page, "identify", token(ANN), "identify")
            assert outcomes(page, 1) == [["identify", "failure", "origin-not-allowed"]]
            assert 403 in statuses
            assert page.evaluate("typeof _scq.push(['track', {addTags: ['t-1']}])") == "number"
            send_apart(url, origin, token(BOB))
            sendx.await_story(BOB, "identify")
            assert sendx.story(ANN) == []
            assert visit.context.cookies() == []
            page.close()
    assert only_failed_loads(visit.take_errors())
