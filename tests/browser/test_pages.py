"""What a real browser does with the shim and the proxy, judged by what reached the fake SendX.

Every part is the shipped one: the demo and `serve` run as commands, other proxies as `create_app`, and test pages stand on the
proxy's own origin or on one it lists. Each test has a browser profile of its own, in which nothing may be thrown, no error
written to the console and no address or token put into a URL, unless the test takes it as expected (see `tests/support/browser.py`).
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page

from tests.support.browser import Visit, offline
from tests.support.site import TOLD, Site, token
from tests.support.tabs import (
    ANN,
    BOB,
    CLEO,
    EMBED,
    only_failed_loads,
    outcomes,
    push,
    pushed,
    send_apart,
    track,
)

pytestmark = pytest.mark.browser


# success and failure


def test_success_runs_once_and_failure_never_for_what_is_accepted(page: Page, site: Site) -> None:
    push(page, "identify", token(ANN), "identify")
    track(page, "t-1")
    assert outcomes(page, 2) == [["identify", "success", "accepted"], ["t-1", "success", "accepted"]]
    track(page, "t-2")
    assert outcomes(page, 3)[2:] == [["t-2", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2")


def test_success_runs_for_what_is_held(page: Page, site: Site) -> None:
    track(page, "t-1")
    assert outcomes(page, 1) == [["t-1", "success", "held"]]
    send_apart(site.url, "https://www.example.com", token(BOB))
    site.sendx.await_story(BOB, "identify")
    assert len(site.sendx.requests()) == 1


def test_failure_runs_once_and_success_never_for_a_tag_off_the_list(page: Page, site: Site) -> None:
    push(page, "identify", token(ANN))
    track(page, "paid user", "t-1")
    assert outcomes(page, 2) == [["paid user", "failure", "tag-not-allowed"], ["t-1", "success", "accepted"]]
    track(page, "t-2")
    assert len(outcomes(page, 3)) == 3
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2")


def test_a_success_that_is_no_function_is_ignored(page: Page, site: Site) -> None:
    push(page, "identify", {**token(ANN), "success": "yes", "failure": 5, "source": "footer"})
    push(page, "track", {"addTags": ["t-1"], "success": True, "failure": {}})
    push(page, "track", {"addTags": ["paid user"], "success": "yes", "failure": "no"})
    track(page, "t-2")
    assert outcomes(page, 1) == [["t-2", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2")


def test_a_callback_that_throws_stops_no_other_callback_and_no_delivery(page: Page, site: Site, visit: Visit) -> None:
    push(page, "identify", token(ANN))
    page.evaluate("""() => {
      const throwing = () => { outcomes.push(["thrown"]); throw new Error("the page's own mistake"); };
      _scq.push(["track", {addTags: ["t-1"], success: throwing, failure: throwing}]);
      _scq.push(["track", {addTags: ["paid user"], success: throwing, failure: throwing}]);
    }""")
    track(page, "t-2")
    assert outcomes(page, 3) == [["thrown"], ["thrown"], ["t-2", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2")
    track(page, "t-3")
    assert outcomes(page, 4)[3:] == [["t-3", "success", "accepted"]]
    assert [error.partition("the page")[0] for error in visit.take_errors()] == ["thrown: "] * 2


# The queue


def test_what_was_pushed_before_the_script_came_is_replayed_in_order(site: Site, visit: Visit) -> None:
    before = f"""<script>{TOLD} var _scq = _scq || [];
      _scq.push(["track", {{addTags: ["t-0"]}}], ["identify", {json.dumps(token(ANN))}]);
      _scq.push(["track", {{addTags: ["t-1"], ...told("t-1")}}]);
    </script>"""
    page = visit.open(site.put("/", before, EMBED))
    track(page, "t-2")
    assert outcomes(page, 2) == [["t-1", "success", "accepted"], ["t-2", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-0", "+t-1", "+t-2")
    assert page.evaluate("_scq.length") == 0


def test_a_page_can_tell_that_the_script_has_loaded_and_push_gives_a_number_like_an_arrays(
    page: Page, site: Site
) -> None:
    assert page.evaluate("Array.isArray(_scq) && typeof _scq === 'object' && _scq.push !== Array.prototype.push")
    numbers = [
        page.evaluate("(identify) => _scq.push(['identify', identify])", token(ANN)),
        page.evaluate("_scq.push(['track', {addTags: ['t-1']}], ['track', {addTags: ['t-2']}])"),
        page.evaluate("_scq.Push(['track', {addTags: ['t-3']}])"),
        page.evaluate("_scq.push()"),
    ]
    assert [type(number) for number in numbers] == [int] * 4
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2", "+t-3")


def test_a_function_in_the_queue_runs_once_the_script_is_there(site: Site, visit: Visit) -> None:
    ready = f"<script>{TOLD} var _scq = [() => outcomes.push(['ready', _scq.push !== [].push])];</script>"
    page = visit.open(site.put("/", ready, EMBED))
    page.evaluate("() => { _scq.push(() => outcomes.push(['later'])); }")
    assert outcomes(page, 2) == [["ready", True], ["later"]]


POISON = {
    "null": "_scq.push(null, undefined);",
    "nothing at first": "_scq.unshift(null, 0, '');",
    "numbers and text": "_scq.push(42, NaN, 'track', true, Symbol('track'), 10n);",
    "a circular object": "const round = {addTags: ['t-9']}; round.round = round; _scq.push(['track', round]);",
    "a number that JSON has not": "_scq.push(['identify', {customFields: {many: 10n}}]);",
    "a throwing getter": "_scq.push(['track', {get addTags() { throw new Error('poison'); }}]);",
    "a throwing toJSON": "_scq.push(['track', {addTags: ['t-9'], toJSON() { throw new Error('poison'); }}]);",
    "a throwing callback getter": "_scq.push(['track', {addTags: ['t-9'], get success() { throw new Error('poison'); }}]);",
    "a Proxy that throws": "_scq.push(new Proxy(['track', {}], {get() { throw new Error('poison'); }}));",
    "a revoked Proxy": "const gone = Proxy.revocable([], {}); gone.revoke(); _scq.push(gone.proxy);",
    "an array with a throwing element": "_scq.push(Object.defineProperty([0, {}], 0, {get() { throw new Error('poison'); }}));",
    "empty arrays and holes": "_scq.push([], [[]], [,], ['track'], ['track', null], ['identify', 'ann'], {}, {length: 2});",
}


@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_entry_from_before_the_load_harms_no_other(site: Site, visit: Visit, poison: str) -> None:
    before = f"""<script>{TOLD} var _scq = [["identify", {json.dumps(token(ANN))}]]; {{ {POISON[poison]} }}
      _scq.push(["track", {{addTags: ["t-1"]}}]);</script>"""
    page = visit.open(site.put("/", before, EMBED))
    track(page, "t-2")
    assert outcomes(page, 1) == [["t-2", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2")


@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_entry_harms_no_other_and_is_not_thrown_into_the_page(page: Page, site: Site, poison: str) -> None:
    push(page, "identify", token(ANN))
    page.evaluate(f"() => {{ {POISON[poison]} }}")
    track(page, "t-1")
    assert outcomes(page, 1) == [["t-1", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1")


def test_the_script_loaded_twice_sends_once(site: Site, visit: Visit) -> None:
    before = f'<script>{TOLD} var _scq = [["identify", {json.dumps(token(ANN))}]];</script>'
    page = visit.open(site.put("/", before, EMBED, EMBED, '<script async src="/prod/TEAMID.js"></script>'))
    track(page, "t-1")
    assert outcomes(page, 1) == [["t-1", "success", "accepted"]]
    track(page, "t-2")
    assert len(outcomes(page, 2)) == 2
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2")
    assert [call[0] for call in pushed(visit)] == ["identify", "track", "track"]


def test_a_second_copy_of_the_script_notices_the_first_and_does_nothing(page: Page) -> None:
    page.evaluate("() => { window.first = _scq.push; }")
    page.add_script_tag(url="/scq/scq.js")
    assert page.evaluate("_scq.push === first")


# Other people's pages


def test_sendxs_own_install_snippet_works_with_only_the_host_changed(site: Site, visit: Visit) -> None:
    snippet = """<script type="text/javascript">
     var _scq = _scq || [];
     var _scs = _scs || {};
     _scs.teamId = 'TEAMID';
     (function() {
       var dc = document.createElement('script');
       dc.type = 'text/javascript';
       dc.async = true;
       dc.src = '//cdn.sendx.io/prod/TEAMID.js';
       var s = document.getElementsByTagName('script')[0];
       s.parentNode.insertBefore(dc, s);
     })();
    </script>""".replace("cdn.sendx.io", urlsplit(site.url).netloc)
    page = visit.open(site.put("/", snippet, f"<script>{TOLD}</script>"))
    push(page, "identify", token(ANN))
    track(page, "t-1")
    assert outcomes(page, 1) == [["t-1", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1")
    assert {urlsplit(request.url).path for request in visit.requests()} == {"/", "/prod/TEAMID.js", "/prod/push"}


OTHERS = """
  ["setMerchantId", "1A2B3C"], ["setEmail", "x"], ["cart", []], ["go"], ["_setCustomId", "7"], ["_trackPageview"],
  ["_addMember", 1, 2, 3, 4, 5, 6, 7, 8, 9], ["track"], ["track", "page", {addTags: ["t-9"]}], ["identify", "x", 1, 2],
  ["consent"]
"""


def test_another_products_calls_stay_in_the_queue_in_order_and_nothing_is_sent(site: Site, visit: Visit) -> None:
    page = visit.open(site.put("/", f"<script>{TOLD} var _scq = [{OTHERS}];</script>", EMBED))
    assert page.evaluate(f"JSON.stringify(_scq) === JSON.stringify([{OTHERS}])")
    assert page.evaluate(f"_scq.push({OTHERS})") == 22
    assert page.evaluate(f"JSON.stringify(_scq) === JSON.stringify([{OTHERS}, {OTHERS}])")
    track(page, "t-1")
    outcomes(page, 1)
    assert pushed(visit) == [["track", {"addTags": ["t-1"]}]]
    assert page.evaluate("_scq.length") == 22


def test_another_products_push_still_gets_what_is_its_own(site: Site, visit: Visit) -> None:
    theirs = f"""<script>{TOLD} var _scq = [["setMerchantId", "before"]];
      var seen = []; _scq.push = (...calls) => seen.push(...calls);</script>"""
    page = visit.open(site.put("/", theirs, EMBED))
    page.evaluate("() => { _scq.push(['setMerchantId', 'after']); }")
    push(page, "identify", token(ANN))
    track(page, "t-1")
    assert outcomes(page, 1) == [["t-1", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1")
    everything = page.evaluate("[..._scq, ...seen].map((call) => call[1])")
    assert everything == ["before", "after"]


# Pages that make it hard


def test_a_page_with_a_strict_content_security_policy_needs_nothing_but_self(site: Site, visit: Visit) -> None:
    script = f"{TOLD} var _scq = _scq || []; _scq.push(['identify', {json.dumps(token(ANN))}]);"
    site.pages.put("/page.js", f"{script} _scq.push(['track', {{addTags: ['t-1'], ...told('t-1')}}]);")
    policy = "default-src 'none'; script-src 'self'; connect-src 'self'"
    embed = '<script src="/page.js"></script><script async src="/scq/scq.js"></script>'
    page = visit.open(site.put("/", embed, Content_Security_Policy=policy))
    assert outcomes(page, 1) == [["t-1", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1")


def test_a_fetch_that_throws_is_not_thrown_into_the_page_and_fails_once_at_the_most(site: Site, visit: Visit) -> None:
    url = site.put("/", f"<script>{TOLD}</script>", EMBED)
    page = visit.context.new_page()
    page.clock.install()
    page.goto(url)
    page.evaluate("() => { window.real = fetch; window.fetch = () => { throw new Error('blocked'); }; }")
    push(page, "identify", token(ANN))
    track(page, "t-1")
    page.clock.fast_forward(11_000)
    assert outcomes(page, 1) == [["t-1", "failure", "timeout"]]
    page.evaluate("() => { window.fetch = real; }")
    page.clock.fast_forward(61_000)
    site.sendx.await_story(ANN, "identify", "+t-1")
    track(page, "t-2")
    assert outcomes(page, 2)[1:] == [["t-2", "success", "accepted"]]


def test_a_sandboxed_frame_is_refused_and_neither_it_nor_its_page_is_harmed(site: Site, visit: Visit) -> None:
    inner = "parent.postMessage(typeof _scq.push(['track', {addTags: ['t-9']}]), '*');"
    site.put("/frame", EMBED, f"<script>addEventListener('load', () => {{ {inner} }});</script>")
    heard = "addEventListener('message', (event) => outcomes.push(['frame', event.data]));"
    frame = '<iframe sandbox="allow-scripts" src="/frame"></iframe>'
    with visit.context.expect_event("requestfailed") as refused:
        page = visit.open(site.put("/", f"<script>{TOLD} {heard}</script>", EMBED, frame))
    assert refused.value.url == f"{site.url}/scq/push"
    assert outcomes(page, 1) == [["frame", "number"]]
    push(page, "identify", token(ANN))
    track(page, "t-1")
    assert outcomes(page, 2)[1:] == [["t-1", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1")
    page.close()
    errors = visit.take_errors()
    assert only_failed_loads(errors)
    assert any("from origin 'null' has been blocked" in error for error in errors)


# Leaving, and outages


@pytest.mark.parametrize("when", ["before", "behind"])
def test_what_the_page_pushes_in_its_own_pagehide_handler_arrives(site: Site, visit: Visit, when: str) -> None:
    """Whether its handler runs before the shim's own or behind it."""
    handler = "<script>addEventListener('pagehide', () => _scq.push(['track', {addTags: ['t-left']}]));</script>"
    page = visit.open(site.put("/", *((handler, EMBED) if when == "before" else (EMBED,))))
    if when == "behind":
        page.evaluate("() => addEventListener('pagehide', () => _scq.push(['track', {addTags: ['t-left']}]))")
    push(page, "identify", token(ANN))
    site.sendx.await_story(ANN, "identify")
    page.goto(site.put("/next", "no script of ours"))
    site.sendx.await_story(ANN, "identify", "+t-left")


def test_a_log_in_and_what_follows_it_arrive_in_order_though_the_page_is_left_at_once(
    page: Page, site: Site, visit: Visit
) -> None:
    script = """([identify, next]) => {
      addEventListener("pagehide", () => _scq.push(["track", {addTags: ["t-left"]}]));
      _scq.push(["identify", identify], ["track", {addTags: ["t-1"]}]);
      location.href = next;
    }"""
    page.evaluate(script, [token(ANN), site.put("/next", "no script of ours")])
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-left")


@pytest.mark.parametrize("leave", ["navigate", "close"])
def test_what_is_pushed_while_every_connection_is_busy_outlives_the_page(page: Page, site: Site, leave: str) -> None:
    page.evaluate("() => { for (let i = 0; i < 6; i++) fetch(`/busy?${i}`, {cache: 'no-store'}).catch(() => {}); }")
    page.evaluate("() => addEventListener('pagehide', () => _scq.push(['track', {addTags: ['t-left']}]))")
    push(page, "identify", token(ANN))
    track(page, "t-1")
    if leave == "close":
        with page.expect_event("close"):
            page.close(run_before_unload=True)
    else:
        page.goto("about:blank")
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-left")


def test_two_hundred_pushes_at_once_arrive_once_each_and_in_order(page: Page, site: Site, visit: Visit) -> None:
    tags = [f"t-{number:03}" for number in range(199)]
    page.evaluate(
        "const { stringify } = JSON; window.texts = 0; JSON.stringify = (...all) => (texts++, stringify(...all))"
    )
    push(page, "identify", token(ANN))
    track(page, *tags)
    page.wait_for_function("outcomes.length >= 199")
    assert page.evaluate("texts") < 5_000, "each push is written again for every other"
    assert page.evaluate("outcomes.map(([tag]) => tag)") == tags
    site.sendx.await_story(ANN, "identify", *(f"+{tag}" for tag in tags))
    # At 50 pushes a second and address the proxy slows such a page down.
    assert {error.partition("429")[1] for error in visit.take_errors()} <= {"429"}


# One browser, several tabs and people


@pytest.fixture
def other(page: Page, site: Site, visit: Visit) -> Page:
    """A second tab of the same visitor."""
    return visit.open(page.url)


def test_two_tabs_are_one_visitor_before_and_after_the_log_in(page: Page, other: Page, site: Site) -> None:
    track(page, "t-1")
    assert outcomes(page, 1) == [["t-1", "success", "held"]]
    push(other, "identify", token(ANN), "identify")
    outcomes(other, 1)
    track(page, "t-2")
    assert outcomes(page, 2)[1:] == [["t-2", "success", "accepted"]]
    site.sendx.await_story(ANN, "identify", "+t-1", "+t-2")


def test_what_a_tab_pushed_before_the_log_out_in_another_never_lands_on_the_next_person(
    page: Page, other: Page, site: Site, visit: Visit
) -> None:
    push(page, "identify", token(ANN), "ann")
    outcomes(page, 1)
    with offline(other):
        track(other, "t-late")
        push(page, "reset", {}, "reset")
        push(page, "identify", token(BOB), "bob")
        assert outcomes(page, 3)[1:] == [["reset", "success", "accepted"], ["bob", "success", "accepted"]]
    assert outcomes(other, 1) == [["t-late", "failure", "identity-changed"]]
    track(other, "t-1")
    assert outcomes(other, 2)[1:] == [["t-1", "success", "accepted"]]
    site.sendx.await_story(BOB, "identify", "+t-1")
    assert site.sendx.story(ANN) == ["identify"]
    assert only_failed_loads(visit.take_errors())


def test_what_a_tab_pushed_before_the_log_out_is_refused_after_it_too_when_nobody_has_come(
    page: Page, other: Page, site: Site, visit: Visit
) -> None:
    push(page, "identify", token(ANN), "ann")
    outcomes(page, 1)
    with offline(other):
        track(other, "t-late")
        push(page, "reset", {}, "reset")
        outcomes(page, 2)
    assert outcomes(other, 1) == [["t-late", "failure", "identity-changed"]]
    push(page, "identify", token(BOB), "bob")
    track(page, "t-1")
    site.sendx.await_story(BOB, "identify", "+t-1")
    assert only_failed_loads(visit.take_errors())


def test_what_a_tab_pushes_after_the_log_out_in_another_is_held_and_not_for_the_next_person(
    page: Page, other: Page, site: Site
) -> None:
    push(page, "identify", token(ANN), "ann")
    push(page, "reset", {}, "reset")
    outcomes(page, 2)
    track(other, "t-1")
    assert outcomes(other, 1) == [["t-1", "success", "held"]]
    push(page, "identify", token(CLEO))
    track(page, "t-2")
    site.sendx.await_story(CLEO, "identify", "+t-2")
    assert site.sendx.story(ANN) == ["identify"]
