"""The shim's promise on three engines: whatever a page pushed reaches SendX, once and in order, however the page was left.

Chromium, Firefox ESR and WebKitGTK stand before a front that fails by script (`tests.support.front`); behind it are the real `serve` and the
fake SendX. Each test has a site, and so cookies and storage, of its own. What counts is what reached SendX; after every test no
push may have been taken twice, and nothing may have been thrown into a page. What needs one engine only, or Playwright's clock,
is in `test_browser.py`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.engines import NAMES, Engine, EngineError, Tab, engine
from tests.support.front import RETRY_AFTER, Fault, Front, front
from tests.support.live import eventually, serving
from tests.support.server import API_KEY, Server, arrived, new_email, running, token

pytestmark = pytest.mark.browser

SHIM = Path(__file__).parents[2] / "static" / "scq.min.js"
EMBED = '<script async src="/scq/scq.js"></script>'
ELSEWHERE = "<!doctype html><title>Elsewhere</title>"
DOWN: tuple[Fault, ...] = ("503", "429", "reset")
PATIENCE = 30.0  # seconds in which a few back-offs have ended

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

    def await_story(self, email: str, *expected: str, timeout: float = 15.0) -> None:
        """Wait until exactly this has been done to the contact: `identify`, `+tag` or `-tag`, in this order."""
        with suppress(AssertionError):
            eventually(lambda: len(self.story(email)) >= len(expected), timeout)
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


def outcomes(tab: Tab, expected: int, timeout: float = 15.0) -> list[list[Any]]:
    """The callbacks that have run, in order, once so many have: [name, which, status or reason]."""
    with suppress(AssertionError):
        tab.wait(f"outcomes.length >= {expected}", timeout)
    found: list[list[Any]] = tab.run("outcomes")
    return found


def succeeded(*names: str, status: str = "accepted") -> list[list[Any]]:
    return [[name, "success", status] for name in names]


def stored(tab: Tab) -> str:
    """What the shim has in the browser's storage."""
    return str(tab.run(r"JSON.stringify(Object.entries(localStorage).filter(([key]) => /^scq\d/.test(key)))"))


def await_empty_storage(tab: Tab) -> None:
    """Wait until no push is left in storage."""
    eventually(lambda: "addTags" not in stored(tab) and "identify" not in stored(tab))


# Fixtures


class Behind:
    """What is behind all fronts."""

    def __init__(self, server: Server, sandbox: Sandbox) -> None:
        self.server, self.sandbox = server, sandbox


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    app = create_sandbox(key=API_KEY)
    folder = tmp_path_factory.mktemp("engines")
    with serving(app) as url, running(folder, f"{url}/api/v1/rest", SCQ_TAGS="t-*", SCQ_LOG_LEVEL="info") as server:
        yield Behind(server, app.state.sandbox)


@pytest.fixture(scope="module", params=NAMES)
def browser(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with engine(request.param) as started:
        yield started


@pytest.fixture
def site(behind: Behind, browser: Engine) -> Iterator[Site]:
    yield from site_of(behind, browser)


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


@pytest.fixture
def elsewhere(behind: Behind) -> Iterator[str]:
    """A page of another site."""
    with front(behind.server.url, Front) as other:
        yield other.put("/", ELSEWHERE)


@pytest.fixture
def beside(behind: Behind, site: Site) -> Iterator[str]:
    """A page of the same site, at another port: it loads though every connection to the first is busy.

    Not of another site: Firefox then ends the process of a page that its back/forward cache cannot take, which one with requests
    on their way is, amid the page's pagehide handlers. What they do after that, storage included, is lost with any script.
    """
    with front(behind.server.url, Front, site.host) as other:
        yield other.put("/", ELSEWHERE)


# Leaving


def keep_busy(tab: Tab, site: Site) -> None:
    """Occupy the six connections that a browser opens to one host, until `mend`: Chromium's cached page holds on to its own."""
    tab.run("void [1, 2, 3, 4, 5, 6].map((i) => fetch(`/busy?${i}`, {cache: 'no-store'}).catch(() => 0))")
    eventually(lambda: site.busy >= 6)


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


# Outages


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
            eventually(lambda site=site: len(site.tries) >= 3, PATIENCE)  # type: ignore[misc]  # bound at once
            tab.run("track('t-3')")
            site.mend()
        for site, tab, email in visits:
            told = outcomes(tab, 3, PATIENCE)  # after ten seconds, a failure by time-out
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


def tags_in(text: str) -> set[str]:
    return {tag for tag in tags(range(10)) + [f"t-{n}" for n in range(10)] if tag in text}


def test_an_outage_that_goes_on_over_two_pages_keeps_the_order_of_both(site: Site) -> None:
    tab, email = site.logged_in(body=link(site.page("/next", "track('t-3');"), 'track("t-1", "t-2")'))
    site.set("503")
    tab.click("#away")
    tab.wait("location.pathname === '/next' && _scq.push !== [].push")
    tab.run("track('t-4')")
    site.mend()
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3", "+t-4", timeout=PATIENCE)
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
    assert outcomes(living, 2, PATIENCE) == succeeded("t-5", "t-6")
    later = site.browser.open(site.page("/later", LATER))
    eventually(lambda: {"+t-1", "+t-2"} <= set(site.story(email)), PATIENCE)
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


# Pages that make it hard


def hold_quota(tab: Tab, site: Site) -> None:
    """Another script's request, never answered, with all that keepalive requests of a page may carry together."""
    busy = site.busy
    tab.run("void fetch('/busy', {method: 'POST', keepalive: true, body: 'x'.repeat(65536)}).catch(() => 0)")
    eventually(lambda: site.busy > busy)


def test_another_scripts_hold_on_the_keepalive_quota_delays_nothing_while_the_page_stays(site: Site) -> None:
    tab, email = site.logged_in()
    hold_quota(tab, site)
    tab.run("track('t-1', 't-2')")
    assert outcomes(tab, 2) == succeeded("t-1", "t-2")
    site.await_story(email, "identify", "+t-1", "+t-2")


def test_what_another_scripts_hold_on_the_keepalive_quota_kept_back_arrives_with_the_next_page(site: Site) -> None:
    tab, email = site.logged_in(body=link(site.page("/next"), 'track("t-1", "t-2")'))
    tab.run("void addEventListener('pagehide', () => track('t-3'))")
    hold_quota(tab, site)
    tab.click("#away")
    tab.wait("location.pathname === '/next'")
    site.await_story(email, "identify", "+t-1", "+t-2", "+t-3")
    await_empty_storage(tab)


def test_a_strict_content_security_policy_needs_to_allow_nothing_but_self(site: Site) -> None:
    email = new_email()
    site.put("/page.js", f"{PRELUDE} {identify(email)}; track('t-1');")
    policy = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'"  # the last for the favicon
    page = document(body="", embed=f'<script src="/page.js"></script>{EMBED}')
    tab = site.browser.open(site.put("/", page, Content_Security_Policy=policy))
    site.await_story(email, "identify", "+t-1")
    assert outcomes(tab, 2) == succeeded("identify", "t-1")


def test_a_sandboxed_frame_is_told_that_it_failed_and_neither_it_nor_its_page_is_harmed(site: Site) -> None:
    told = """addEventListener('load', () => {
      const failure = (reason) => parent.postMessage(['failure', reason, thrown.length], '*');
      parent.postMessage(['pushed', typeof _scq.push(['track', {addTags: ['t-9'], failure}])], '*');
    });"""
    site.page("/frame", FAST_CLOCK, told)
    frame = '<iframe sandbox="allow-scripts" src="/frame"></iframe>'
    heard = "addEventListener('message', ({data}) => outcomes.push(data));"
    email = new_email()
    tab = site.browser.open(site.page("/", heard, body=frame))
    pushed, failed = outcomes(tab, 2)
    assert pushed == ["pushed", "number"]
    assert failed[0] == "failure"
    assert failed[2] == 0
    log_in(tab, email)
    tab.run("track('t-1')")
    assert outcomes(tab, 4)[2:] == succeeded("identify", "t-1")
    site.await_story(email, "identify", "+t-1")


def test_the_script_loaded_twice_and_under_two_names_sends_once(site: Site) -> None:
    twice = f'{EMBED}{EMBED}<script async src="/prod/TEAM.js"></script>'
    email = new_email()
    tab = site.browser.open(site.page("/", f"{identify(email)}; track('t-1');", embed=twice))
    assert outcomes(tab, 2) == succeeded("identify", "t-1")
    tab.run("track('t-2')")
    assert outcomes(tab, 3)[2:] == succeeded("t-2")
    site.await_story(email, "identify", "+t-1", "+t-2")
    assert [call[0] for attempt in site.tries for call in attempt.calls] == ["identify", "track", "track"]


POISON = """
  const throwing = () => { throw new Error("poison"); };
  const round = {addTags: ["t-9"]}; round.round = round;
  const gone = Proxy.revocable([], {}); gone.revoke();
  var theirs = [["setMerchantId", "1A2B3C"], ["_trackPageview"], ["_addMember", 1, 2, 3, 4, 5, 6, 7, 8, 9], ["track"]];
  var poison = [
    null, undefined, 42, "track", Symbol("track"), 10n, [], [,], {}, ["track", null], ["identify", "ann"],
    ["track", round], ["track", {get addTags() { throwing(); }}], ["track", {addTags: ["t-9"], toJSON: throwing}],
    ["track", {addTags: ["t-9"], get success() { throwing(); }}], ["identify", {customFields: {many: 10n}}],
    new Proxy(["track", {}], {get: throwing}), gone.proxy, Object.defineProperty([0, {}], 0, {get: throwing}),
  ];
  var frozen = Object.freeze(["track", Object.freeze({addTags: Object.freeze(["t-frozen"])})]);
"""


def test_a_poisoned_queue_harms_no_neighbour_before_or_after_the_load(site: Site) -> None:
    email = new_email()
    before = f"""{POISON} {identify(email)};
      for (const entry of poison.concat(theirs)) {{ _scq.push(entry, ["track", {{addTags: ["t-1"]}}]); }}
      _scq.push(frozen);
      track("t-2");"""
    tab = site.browser.open(site.page("/", before))
    count = tab.run("poison.length + theirs.length")
    expected = ["identify", *["+t-1"] * count, "+t-frozen", "+t-2"]
    assert outcomes(tab, 2) == succeeded("identify", "t-2")
    site.await_story(email, *coalesced(expected))
    tab.run("void poison.concat(theirs).forEach((entry) => _scq.push(entry, ['track', {addTags: ['t-3']}]))")
    tab.run("void _scq.push(frozen)")
    tab.run("track('t-4')")
    assert outcomes(tab, 3)[2:] == succeeded("t-4")
    assert len(site.accepted()) == 2 * count + 5
    assert tab.run("[..._scq.keys()].filter((i) => theirs.includes(_scq[i])).length") == 2 * tab.run("theirs.length")


def coalesced(story: Sequence[str]) -> list[str]:
    """The same without what repeats the one before: the proxy merges equal neighbours."""
    return [event for event, before in zip(story, ["", *story], strict=False) if event != before]


# Identity and consent


def test_what_follows_a_log_out_at_once_is_not_the_persons_who_left(site: Site, elsewhere: str) -> None:
    script = "_scq.push([`reset`]); track(`t-2`)"
    tab, email = site.logged_in(body=link(elsewhere, f"track(`t-1`); {script}"))
    tab.click("#away")
    site.await_story(email, "identify", "+t-1")
    other, bob = site.browser.open(site.page("/bob")), new_email("bob")
    eventually(lambda: len(site.accepted()) == 4)  # the last is held
    log_in(other, bob)
    other.run("track('t-3')")
    site.await_story(bob, "identify", "+t-3")
    assert site.story(email) == ["identify", "+t-1"]


def test_nothing_is_stored_or_sent_before_consent_is_granted_and_then_everything(site: Site) -> None:
    asking = '<script async src="/scq/scq.js" data-consent="required"></script>'
    email = new_email()
    tab = site.browser.open(site.page("/", f"{identify(email)}; track('t-1');", embed=asking))
    tab.wait("_scq.push !== [].push")
    tab.run("track('t-2')")
    tab.run("new Promise((resolve) => setTimeout(resolve, 50))")
    assert site.tries == []
    assert stored(tab) == "[]"
    tab.run("_scq.push(['consent', 'granted'])")
    site.await_story(email, "identify", "+t-1", "+t-2")
    assert outcomes(tab, 3) == succeeded("identify", "t-1", "t-2")


def test_who_had_denied_consent_and_grants_it_gets_what_was_pushed_before(site: Site) -> None:
    asking = '<script async src="/scq/scq.js" data-consent="required"></script>'
    tab = site.browser.open(site.page("/"))
    tab.wait("_scq.push !== [].push")
    tab.run("_scq.push(['consent', 'denied'])")
    eventually(lambda: [attempt for attempt in site.tries if attempt.results])
    email = new_email()
    tab.go(site.page("/asks", f"{identify(email)}; track('t-1');", embed=asking))
    tab.wait("_scq.push !== [].push")
    tab.run("_scq.push(['consent', 'granted'])")
    assert outcomes(tab, 2) == succeeded("identify", "t-1")
    site.await_story(email, "identify", "+t-1")


def test_a_denial_is_told_though_the_page_is_left_with_pushes_on_their_way(site: Site, elsewhere: str) -> None:
    tab, _ = site.logged_in(body=link(elsewhere, '_scq.push(["consent", "denied"])'))
    site.set("late")
    tab.run("track('t-1', 't-2', 't-3')")
    eventually(lambda: any("t-3" in str(attempt.calls) for attempt in site.tries))
    tab.click("#away")
    eventually(lambda: any(call[0] == "consent" for attempt in site.tries for call in attempt.calls))


def test_a_string_in_the_queue_stops_nothing(site: Site) -> None:
    tab, email = site.logged_in()
    tab.run("_scq.push('reset', 'consent', 'track')")
    tab.run("track('t-1')")
    site.await_story(email, "identify", "+t-1")


def test_what_is_pushed_after_a_log_in_whose_answer_no_page_saw_is_the_new_persons(site: Site) -> None:
    tab, ann = site.logged_in(body=link(site.page("/next")))
    bob = new_email("bob")
    site.set("late")
    log_in(tab, bob)
    eventually(lambda: site.tries[-1].results)
    tab.click("#away")
    tab.wait("location.pathname === '/next' && _scq.push !== [].push")
    site.mend()
    tab.run(f"[{identify(bob)}, track('t-1')]")
    assert outcomes(tab, 2) == succeeded("identify", "t-1")
    site.await_story(bob, "identify", "+t-1")
    assert site.story(ann) == ["identify"]


def test_full_storage_costs_no_push_and_no_session(site: Site) -> None:
    fill = """for (let size = 2 ** 22; size; size >>= 1)
      try { for (let i = 0; i < 9; i++) localStorage.setItem(`full-${size}-${i}`, "x".repeat(size)); } catch (error) {}"""
    email = new_email()
    tab = site.browser.open(site.page("/", fill, f"{identify(email)}; track('t-1');"))
    assert outcomes(tab, 2) == succeeded("identify", "t-1")
    tab.run("track('t-2')")
    site.await_story(email, "identify", "+t-1", "+t-2")
    assert tab.run("localStorage.scq") in (None, "") or len(tab.run("localStorage.scq")) > 20


@pytest.mark.parametrize("found", ["null", "{}", '"text"', "{broken"])
def test_an_item_of_somebody_else_among_ours_in_storage_costs_no_push_and_no_session(site: Site, found: str) -> None:
    tab = site.browser.open(site.bare("/before"))
    tab.run(
        f"localStorage.setItem('scq1700000000000', {json.dumps(found)}), localStorage.setItem('scq', 'a'.repeat(20))"
    )
    tab.go(site.page("/", "track('t-1');"))
    assert outcomes(tab, 1) == succeeded("t-1", status="held")
    assert tab.run("localStorage.scq") == "a" * 20


def test_denied_consent_drops_what_waits_and_says_so(site: Site) -> None:
    asking = '<script async src="/scq/scq.js" data-consent="required"></script>'
    tab = site.browser.open(site.page("/", "track('t-1');", embed=asking))
    tab.wait("_scq.push !== [].push")
    tab.run("_scq.push(['consent', 'denied'])")
    assert outcomes(tab, 1) == [["t-1", "failure", "consent-denied"]]
    assert "addTags" not in stored(tab)
    assert [call for attempt in site.tries for call in attempt.calls if call[0] == "track"] == []


def test_what_stays_in_storage_is_no_id_of_a_push(site: Site) -> None:
    """The id of a log-in is as good as its token, for an hour: a page that lost the answer asks for the cookie again with it."""
    tab, _ = site.logged_in()
    tab.run("track('t-1')")
    outcomes(tab, 1)
    await_empty_storage(tab)
    ids = [result["id"] for attempt in site.tries for result in attempt.results]
    assert len(ids) == 2
    left = tab.run("JSON.stringify(localStorage)")
    assert [each for each in ids if each in left] == []


def test_a_denial_before_the_script_has_come_also_drops_what_an_earlier_page_left_behind(site: Site) -> None:
    tab, email = site.logged_in()
    site.set("503")
    tab.run("track('t-1')")
    eventually(lambda: "t-1" in str([attempt.calls for attempt in site.tries]))
    tab.go(site.page("/denies", "_scq.push(['consent', 'denied'])"))
    site.mend()
    eventually(lambda: any(result["status"] == "accepted" for attempt in site.tries[-1:] for result in attempt.results))
    assert site.tries[-1].calls == [["consent", "denied"]]
    await_empty_storage(tab)
    assert site.story(email) == ["identify"]


def test_a_push_of_an_anonymous_visitor_who_signals_gpc_is_refused_and_told_so(behind: Behind) -> None:
    """In Firefox, whose users can switch the signal on."""
    with engine("firefox", privacy_globalprivacycontrol_enabled=True) as private:
        for site in site_of(behind, private):
            tab = private.open(site.page("/", "track('t-1');"))
            assert outcomes(tab, 1) == [["t-1", "failure", "gpc"]]
            assert [attempt.headers.get("sec-gpc") for attempt in site.tries] == ["1"]
            email = new_email()
            log_in(tab, email)
            tab.run("track('t-2')")
            site.await_story(email, "identify", "+t-2")
