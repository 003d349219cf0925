"""Pages, scripts and web servers around the script: none of them stops more than it is about. On three engines."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import Engine
from tests.support.front import front
from tests.support.live import eventually
from tests.support.server import new_email
from tests.support.shim import (
    EMBED,
    SHIM,
    Behind,
    Site,
    await_empty_storage,
    identify,
    link,
    log_in,
    outcomes,
    stored,
    succeeded,
)

pytestmark = pytest.mark.browser

BAD = "' UNION SELECT"
FORBIDDEN = "<html><h1>Forbidden</h1>"
# Timers ten times as fast: what takes twenty seconds takes two.
QUICK = "const timer = setTimeout; window.setTimeout = (run, ms, ...rest) => timer(run, ms / 10, ...rest);" + (
    "const clock = Date.now, start = clock(); Date.now = () => start + (clock() - start) * 10;"
)
REFUSALS = [
    (403, FORBIDDEN),
    (400, '{"message": "Bad Request"}'),
    (413, ""),
    (406, '{"error": "Forbidden", "message": "x"}'),
]


def told(tab: Any, count: int) -> dict[str, str]:
    """Returns the outcomes by name; the time-out of a push that is tried on is none."""
    return {name: outcome for name, _, outcome in outcomes(tab, count)}


# One push never holds up the others


@pytest.mark.parametrize(("status", "page"), REFUSALS, ids=["html", "json", "empty-413", "other-error"])
def test_a_push_that_a_firewall_refuses_is_given_up_and_its_neighbours_arrive(
    site: Site, status: int, page: str
) -> None:
    tab, email = site.logged_in(path="/", body="")
    tab.go(site.page("/quick", QUICK))
    tab.wait("_scq.push !== [].push")
    site.firewall = (BAD.encode(), status, page)
    tab.run(f"""track("t-1", "{BAD}", "{BAD} 2", "t-2")""")
    site.await_story(email, "identify", "+t-1", "+t-2")
    tab.wait("outcomes.length >= 4")
    reasons = {name: outcome for name, _, outcome in tab.run("outcomes")}
    assert reasons["t-1"] == "accepted"
    assert reasons[BAD] in ("blocked", "timeout")  # told of the time-out first: nothing is told twice
    await_empty_storage(tab)


def test_where_everything_is_refused_the_road_is_at_fault_and_nothing_is_dropped(site: Site) -> None:
    tab, email = site.logged_in()
    tab.go(site.page("/quick", QUICK))
    tab.wait("_scq.push !== [].push")
    site.firewall = (b"pushes", 403, FORBIDDEN)
    tab.run("track('t-1', 't-2', 't-3')")
    tab.wait("outcomes.length >= 3")  # ten seconds of that clock
    site.firewall = None
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")
    await_empty_storage(tab)


def test_what_stands_behind_a_blocked_log_in_fails_with_it_up_to_the_next_log_out(site: Site) -> None:
    tab, ann = site.logged_in()
    tab.go(site.page("/quick", QUICK))
    tab.wait("_scq.push !== [].push")
    bob = new_email("bob")
    site.firewall = (b"eyJ", 403, FORBIDDEN)
    tab.run(f"[{identify(bob)}, track('t-1'), _scq.push(['reset', told('reset')]), track('t-2')]")
    await_empty_storage(tab)
    site.firewall = None
    tab.run("track('t-3')")
    tab.wait("outcomes.length >= 5")
    assert site.story(ann) == ["identify"]
    log_in(tab, bob)
    eventually(lambda: site.story(bob))
    assert "+t-1" not in site.story(bob)


def test_what_is_over_64_kb_is_refused_in_the_page(site: Site) -> None:
    tab, email = site.logged_in()
    tab.run("track('x'.repeat(150000), 't-1')")
    found = tab.wait("outcomes.length >= 2 && outcomes.map(([, , outcome]) => outcome)")
    assert found == ["too-long", "accepted"]
    site.await_story(email, "identify", "+t-1")


# It posts to the proxy, or nowhere


WRAPPERS = {
    "a string is expected": "const real = fetch; window.fetch = (u, o) => (u.startsWith('/') || u.split('/'), o.headers['x'], real(u, o));",
    "a GET is made of anything else": "const real = fetch; window.fetch = (u, o) => real(u, typeof u == 'string' ? o : {});",
    "the answer has been read": "const real = fetch; window.fetch = (u, o) => real(u, o).then(async (r) => (await r.text(), r));",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_around_fetch_costs_nothing(site: Site, wrapper: str) -> None:
    email = new_email()
    tab = site.browser.open(site.page("/", f"{WRAPPERS[wrapper]}; {identify(email)}; track('t-1');"))
    site.await_story(email, "identify", "+t-1")
    tab.wait("outcomes.length == 2")
    assert {outcome[1] for outcome in tab.run("outcomes")} == {"success"}


HOW = {
    "evaluated as text": "fetch('/scq/scq.js').then((r) => r.text()).then((text) => "
    "document.head.appendChild(Object.assign(document.createElement('script'), {text})));",
    "a module": "document.head.append(Object.assign(document.createElement('script'), {type: 'module', src: '/scq/scq.js'}));",
    "imported": "import('/scq/scq.js');",
    "a copy of a cache": "document.head.append(Object.assign(document.createElement('script'), {src: '/wp-content/cache/x.js'}));",
}


@pytest.mark.parametrize("how", HOW)
def test_however_it_is_loaded_it_posts_to_its_own_endpoint(site: Site, how: str) -> None:
    site.put("/wp-content/cache/x.js", SHIM.read_text("utf-8"))
    email = new_email()
    tab = site.browser.open(site.page("/shop/", f"{identify(email)}; track('t-1');", HOW[how], embed=""))
    site.await_story(email, "identify", "+t-1")
    tab.wait("outcomes.length == 2")


def test_data_src_says_where_the_script_was_served(site: Site) -> None:
    email = new_email()
    site.put("/copy.js", SHIM.read_text("utf-8"))
    embed = '<script async src="/copy.js" data-src="/scq/scq.js"></script>'
    site.browser.open(site.page("/", f"{identify(email)}; track('t-1');", embed=embed))
    site.await_story(email, "identify", "+t-1")


def test_an_element_of_its_name_does_not_choose_where_pushes_go(site: Site, elsewhere: str) -> None:
    email = new_email()
    clobber = f'<img name="currentScript" src="{elsewhere}scq/scq.js" data-src="{elsewhere}scq/scq.js">'
    site.browser.open(site.page("/", f"{identify(email)}; track('t-1');", embed=clobber + EMBED))
    site.await_story(email, "identify", "+t-1")


# Consent, and logging out, as people write them


def test_only_required_waits_for_consent(site: Site) -> None:
    email = new_email()
    embed = EMBED.replace("async", 'async data-consent="analytics"')
    site.browser.open(site.page("/", f"{identify(email)}; track('t-1');", embed=embed))
    site.await_story(email, "identify", "+t-1")


@pytest.mark.parametrize("word", ["false", "'revoked'", "'grant'", "'denied'", "null", "{}"])
def test_every_other_word_denies(site: Site, word: str) -> None:
    tab, email = site.logged_in()
    tab.run(f"[_scq.push(['consent', {word}]), track('t-1')]")
    eventually(lambda: ["consent", "denied"] in [call for attempt in site.tries for call in attempt.calls])
    tab.run("_scq.push(['consent', true])")
    assert outcomes(tab, 1) == succeeded("t-1")
    site.await_story(email, "identify", "+t-1")


@pytest.mark.parametrize("argument", ["undefined", "null", "true", "() => 1", "'now', 2"])
def test_any_reset_logs_out(site: Site, argument: str) -> None:
    tab, email = site.logged_in()
    tab.run(f"[_scq.push(['reset', {argument}]), track('t-1')]")
    assert outcomes(tab, 1) == succeeded("t-1", status="held")
    assert site.story(email) == ["identify"]


# Nothing is lost in silence


def test_odd_objects_are_taken_and_told_of_once(site: Site) -> None:
    tab, email = site.logged_in()
    tab.run(
        """[_scq.push(["track", {addTags: ["t-1"], toString: () => "x", ...told("t-1")}]),
            _scq.push(["track", {addTags: ["t-2"], toString() { throw 1; }, ...told("t-2")}, "more"]),
            (function () { _scq.push(arguments); })("track", {addTags: ["t-3"], ...told("t-3")})]"""
    )
    assert outcomes(tab, 3) == succeeded("t-1", "t-2", "t-3")
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")


def test_an_old_to_json_of_arrays_loses_nothing(site: Site) -> None:
    tab, email = site.logged_in()
    tab.run("void (Array.prototype.toJSON = function () { return '[' + this.join() + ']'; })")
    tab.run("void _scq.push(['track', {addTags: ['t-1', 't-2'], ...told('t-1')}])")
    site.await_story(email, "identify", "+t-1", "+t-2")
    tab.run("void delete Array.prototype.toJSON")
    assert outcomes(tab, 1) == succeeded("t-1")


# Storage is a guest's


def test_an_endpoint_that_is_down_leaves_the_site_its_storage(site: Site) -> None:
    tab, _ = site.logged_in()
    site.set("reset")
    slowest = tab.run(
        """(() => {
          let slowest = 0;
          for (let i = 0; i < 5000; i++) {
            let start = performance.now();
            _scq.push(["track", {addTags: ["t-" + i]}]);
            slowest = Math.max(slowest, performance.now() - start);
          }
          return slowest;
        })()"""
    )
    assert slowest < 1_000  # of a push; the figure is no measurement
    eventually(lambda: len(stored(tab)) > 1_000)
    tab.run("track('last')")
    tab.wait("Object.entries(localStorage).join().includes('last')")
    size = tab.run(
        "Object.entries(localStorage).map(([key, text]) => key.length + text.length).reduce((a, b) => a + b)"
    )
    assert 100_000 < size <= 262_144
    tab.run("void localStorage.setItem('site', 'x'.repeat(1e6))")
    assert tab.run("localStorage.site.length") == 1_000_000


CLOCK = "const clock = Date.now, ahead = {ms}; Date.now = () => clock() + ahead;"


@pytest.mark.parametrize("ms", [-3_600_000, 10 * 365 * 86_400_000], ids=["an hour back", "ten years ahead"])
def test_a_clock_that_is_set_between_two_pages_keeps_the_order(site: Site, ms: int) -> None:
    ahead = ms > 0
    last = site.page("/last", "track('t-3');")
    second = site.page("/second", CLOCK.format(ms=0 if ahead else ms), "track('t-2');", body=link(last))
    tab, email = site.logged_in(path="/", body="")
    tab.go(site.page("/first", CLOCK.format(ms=ms if ahead else 0), body=link(second)))
    tab.wait("_scq.push !== [].push")
    site.set("503")
    tab.run("track('t-1')")
    eventually(lambda: "t-1" in stored(tab))
    tab.click("#away")
    tab.wait("location.pathname === '/second'")
    eventually(lambda: "t-2" in stored(tab))
    site.mend()
    tab.click("#away")
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")
    await_empty_storage(tab)


def test_tabs_do_not_multiply_what_one_of_them_left(behind: Behind, browser: Engine) -> None:
    with front(behind.server.url, Site) as site:
        site.browser, site.sandbox = browser, behind.sandbox
        tab, email = site.logged_in()
        site.set("503")
        tab.run("void Array.from({length: 60}, (_, i) => _scq.push(['track', {addTags: ['t-' + i]}]))")
        eventually(lambda: len(site.tries) > 2)
        for number in range(4):
            browser.open(site.page(f"/tab-{number}"))
        before = len(site.tries)
        site.mend()
        eventually(lambda: len(site.story(email)) == 61)
        await_empty_storage(tab)
        sent = sum(len(attempt.ids) for attempt in site.tries[before:] if attempt.fault is None)
        assert sent < 60 * 4  # each of the five tabs has all of them
