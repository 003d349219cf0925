"""The shim's promise on three engines: whatever a page pushed reaches SendX, once and in order, however the page was left.

Chromium, Firefox ESR and WebKitGTK stand before a front that fails by script (`tests.support.front`); behind it are the real `serve` and the
fake SendX. Each test has a site, and so cookies and storage, of its own. What counts is what reached SendX; after every test no
push may have been taken twice, and nothing may have been thrown into a page. What needs one engine only, or Playwright's clock,
is in `browser/test_pages.py` and `browser/test_outages.py`.
"""

from __future__ import annotations

import json

import pytest

from tests.support.front import Fault
from tests.support.live import eventually
from tests.support.server import new_email
from tests.support.shim import (
    Site,
    await_empty_storage,
    identify,
    keep_busy,
    link,
    outcomes,
    tags,
)

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "six busy connections"])
def test_what_is_pushed_while_a_link_is_clicked_arrives(site: Site, elsewhere: str, beside: str, busy: bool) -> None:
    tab, email = site.logged_in(body=link(beside if busy else elsewhere, 'track("t-1", "t-2")'))
    if busy:
        keep_busy(tab, site)
    tab.click("#away")
    tab.wait("document.title === 'Elsewhere'")
    site.mend()
    site.await_story(email, "identify", "+t-1", "+t-2")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "six busy connections"])
def test_what_the_page_pushes_in_its_own_pagehide_handler_arrives(
    site: Site, elsewhere: str, beside: str, busy: bool
) -> None:
    tab, email = site.logged_in(body=link(beside if busy else elsewhere))
    tab.run("void addEventListener('pagehide', () => track('t-2', 't-3'))")
    if busy:
        keep_busy(tab, site)
    tab.run("track('t-1')")
    tab.click("#away")
    tab.wait("document.title === 'Elsewhere'")
    site.mend()
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "six busy connections"])
def test_what_was_pushed_right_before_the_tab_closed_arrives(site: Site, busy: bool) -> None:
    tab, email = site.logged_in()
    if busy:
        keep_busy(tab, site)
    tab.run("track('t-1', 't-2')")
    tab.close()
    site.await_story(email, "identify", "+t-1", "+t-2")


def test_two_hundred_pushes_of_a_page_that_is_left_at_once_arrive_with_the_next_page(site: Site) -> None:
    wanted = tags(range(199))
    tab, email = site.logged_in(body=link(site.page("/next"), f"track(...{json.dumps(wanted)})"))
    tab.click("#away")
    tab.wait("location.pathname === '/next'")
    site.await_story(email, "identify", *(f"+{tag}" for tag in wanted))
    await_empty_storage(tab)


def test_a_first_visit_that_is_left_amid_its_log_in_ends_on_the_right_contact_in_order(
    site: Site, elsewhere: str
) -> None:
    email = new_email()
    script = f"function burst() {{ track('t-1'); {identify(email)}; track('t-2'); }}"
    tab = site.browser.open(site.page("/", script, body=link(elsewhere, "burst()")))
    tab.wait("_scq.push !== [].push")
    tab.click("#away")
    site.await_story(email, "identify", "+t-1", "+t-2")


def test_a_first_visit_whose_answer_is_late_ends_on_the_right_contact_in_order(site: Site, elsewhere: str) -> None:
    email = new_email()
    tab = site.browser.open(site.page("/", body=link(elsewhere, 'track("t-3")')))
    tab.wait("_scq.push !== [].push")
    site.set("late")
    tab.run("track('t-1')")
    eventually(lambda: site.tries)
    tab.run(f"[{identify(email)}, track('t-2')]")
    tab.click("#away")
    eventually(lambda: len(site.tries) >= 2)
    site.mend()
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")


# Pages that come back, and pages that are not there yet


@pytest.mark.parametrize("fault", ["late", "hang"])
def test_a_page_out_of_the_back_forward_cache_goes_on_where_it_was(site: Site, fault: Fault) -> None:
    tab, email = site.logged_in(body=link(site.bare("/next")))
    site.set(fault)
    before = len(site.tries)
    tab.run("track('t-1')")
    eventually(lambda: len(site.tries) > before)
    tab.click("#away")
    tab.wait("location.pathname === '/next'")
    site.mend()
    tab.back()
    tab.wait("location.pathname === '/' && window.shows && shows.length")
    if not tab.run("shows.at(-1)"):
        why = "JSON.stringify(performance.getEntriesByType('navigation')[0].notRestoredReasons ?? null)"
        pytest.skip(f"{site.browser.name} did not keep the page in its back/forward cache: {tab.run(why)}")
    tab.run("track('t-2')")
    assert [told[:2] for told in outcomes(tab, 2)] == [["t-1", "success"], ["t-2", "success"]]  # one may be a duplicate
    site.await_story(email, "identify", "+t-1", "+t-2")
    await_empty_storage(tab)


def test_a_prerendered_page_sends_nothing_until_it_is_shown_and_then_everything_once(site: Site) -> None:
    if site.browser.name != "chromium":
        pytest.skip(f"{site.browser.name} does not prerender")
    email = new_email()
    ran = "addEventListener('load', () => setTimeout(() => fetch(`/ran?${document.prerendering}`), 50));"
    shop = site.page("/shop", f"{identify(email)}; track('t-1');", ran)
    rules = json.dumps({"prerender": [{"urls": [shop], "eagerness": "immediate"}]})
    tab = site.browser.open(site.bare("/", f"{link(shop)}<script type=speculationrules>{rules}</script>"))
    eventually(lambda: [path for path, _ in site.gets if path.startswith("/ran")])
    assert "/ran?true" in [path for path, _ in site.gets]
    assert site.tries == []
    tab.click("#away")
    site.await_story(email, "identify", "+t-1")
    assert all("prerender" not in attempt.headers.get("sec-purpose", "") for attempt in site.tries)
