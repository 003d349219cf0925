"""What was pushed in an outage is delivered after it, on three engines, by the page or by the next one."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.support.engines import Engine
from tests.support.front import RETRY_AFTER, Fault, front
from tests.support.live import eventually
from tests.support.server import new_email
from tests.support.shim import (
    COUNTED,
    DOWN,
    LATER,
    SHIM,
    Behind,
    Site,
    await_empty_storage,
    identify,
    link,
    outcomes,
    stored,
    succeeded,
    tags_in,
)

pytestmark = pytest.mark.browser


def test_what_is_pushed_in_an_outage_is_delivered_by_itself_after_it(behind: Behind, browser: Engine) -> None:
    """All kinds of outages at once, each on a site and in a tab of its own: the time is that of the longest."""
    with (
        front(behind.server.url, Site) as down,
        front(behind.server.url, Site) as busy,
        front(behind.server.url, Site) as gone,
    ):
        visits = []
        for site, fault in zip((down, busy, gone), DOWN, strict=True):
            site.browser, site.sandbox = browser, behind.sandbox
            visits.append((site, *site.logged_in()))
            site.set(fault)
        for _, tab, _ in visits:  # from here on no tab goes out of sight
            tab.run("track('t-1', 't-2')")
        for site, tab, _ in visits:
            eventually(lambda site=site: len(site.tries) >= 3)  # type: ignore[misc]  # bound at once
            tab.run("track('t-3')")
            site.mend()
        for site, tab, email in visits:
            told = outcomes(tab, 3)  # after ten seconds, a failure by time-out
            assert sorted(name for name, *_ in told) == ["t-1", "t-2", "t-3"]
            site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")
            await_empty_storage(tab)
        tried = [attempt.at for attempt in busy.tries if attempt.fault == "429"]
        assert all(later - earlier >= RETRY_AFTER - 0.05 for earlier, later in itertools.pairwise(tried))


@pytest.mark.parametrize("fault", [*DOWN, "hang"])
def test_what_was_pushed_in_an_outage_that_the_page_did_not_outlive_goes_first_on_the_next_page(
    site: Site, fault: Fault
) -> None:
    back = site.page("/back", "track('t-3');")
    tab, email = site.logged_in(body=link(site.bare("/next", link(back)), 'track("t-2")'))
    site.set(fault)
    tab.run("track('t-1')")
    tab.click("#away")
    tab.wait("location.pathname === '/next'")
    assert {"t-1", "t-2"} <= tags_in(stored(tab))
    site.mend()
    tab.click("#away")
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")
    tab.wait("location.pathname === '/back'")
    await_empty_storage(tab)


def test_loading_does_not_wait_for_storage_yet_a_page_that_pushes_nothing_delivers_what_another_left(
    site: Site,
) -> None:
    tab, email = site.logged_in()
    site.set("503")
    tab.run("track('t-1')")
    tab.go(site.bare("/idle"))
    site.mend()
    assert tab.run(COUNTED % json.dumps(SHIM.read_text("utf-8"))) == 0
    tab.wait("_scq.push !== [].push && touched() > 0")
    site.await_story(email, "identify", "+t-1")
    await_empty_storage(tab)


def test_an_outage_that_goes_on_over_two_pages_keeps_the_order_of_both(site: Site) -> None:
    tab, email = site.logged_in(body=link(site.page("/next", "track('t-3');"), 'track("t-1", "t-2")'))
    site.set("503")
    tab.click("#away")
    tab.wait("location.pathname === '/next' && _scq.push !== [].push")
    tab.run("track('t-4')")
    site.mend()
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3", "+t-4")
    await_empty_storage(tab)


def test_an_identity_token_is_never_stored(site: Site) -> None:
    email = new_email()
    tab = site.browser.open(site.page("/", body=link(site.page("/next"))))
    tab.wait("_scq.push !== [].push")
    site.set("reset")
    tab.run(f"[{identify(email)}, track('t-1')]")
    eventually(lambda: site.tries)
    eventually(lambda: "t-1" in stored(tab))
    assert "eyJ" not in stored(tab)
    tab.click("#away")
    tab.wait("location.pathname === '/next'")
    assert "eyJ" not in stored(tab)


def test_what_a_closed_tab_left_behind_is_delivered_by_a_later_page_beside_a_tab_that_lives(site: Site) -> None:
    orphan, email = site.logged_in()
    living = site.browser.open(site.page("/living"))
    living.wait("_scq.push !== [].push")
    site.set("503")
    orphan.run("track('t-1', 't-2')")
    living.run("track('t-5', 't-6')")
    orphan.close()
    site.mend()
    assert outcomes(living, 2) == succeeded("t-5", "t-6")
    later = site.browser.open(site.page("/later", LATER))
    eventually(lambda: {"+t-1", "+t-2"} <= set(site.story(email)))
    story = site.story(email)
    assert sorted(story) == ["+t-1", "+t-2", "+t-5", "+t-6", "identify"]
    assert story.index("+t-1") < story.index("+t-2")
    assert story.index("+t-5") < story.index("+t-6")
    await_empty_storage(later)


def test_what_a_crashed_tab_left_behind_is_delivered_by_a_later_page(site: Site) -> None:
    tab, email = site.logged_in()
    later = site.page("/later", LATER, "track('t-3');")
    site.set("503")
    tab.run("track('t-1', 't-2')")
    eventually(lambda: len(site.tries) >= 2)
    try:
        tab.crash()
    except NotImplementedError:
        pytest.skip(f"{site.browser.name} cannot crash one tab on command")
    site.mend()
    site.browser.open(later)
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")


def test_what_is_pushed_offline_is_delivered_once_online(site: Site) -> None:
    tab, email = site.logged_in()
    try:
        site.browser.set_offline(tab, True)
    except NotImplementedError:
        pytest.skip(f"{site.browser.name} cannot be taken offline on command")
    tab.run("track('t-1', 't-2')")
    tab.wait("!navigator.onLine")
    site.browser.set_offline(tab, False)
    assert outcomes(tab, 2) == succeeded("t-1", "t-2")
    site.await_story(email, "identify", "+t-1", "+t-2")
