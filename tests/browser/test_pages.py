"""What a real browser does with the shim, the proxy and the demo, judged by what reached the fake SendX.

Every part is the shipped one: the demo and `serve` run as commands, other proxies as `create_app`, and test pages stand on the
proxy's own origin or on one it lists. Each test has a browser profile of its own, in which nothing may be thrown, no error
written to the console and no address or token put into a URL, unless the test takes it as expected (see `tests/support/browser.py`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page

from proxy.app import create_app
from proxy.config.settings import load_settings
from tests.support.browser import Visit, offline
from tests.support.live import eventually, free_port, serving
from tests.support.site import TOLD, Pages, SendX, Site, environment, token

pytestmark = pytest.mark.browser

COMMAND = Path(sys.executable).with_name("scq-proxy")
ANN, BOB, CLEO = "ann@example.com", "bob@example.com", "cleo@example.com"

# As `scq-proxy snippet` prints it.
EMBED = '<script>window._scq = window._scq || [];</script><script async src="/scq/scq.js"></script>'

# The parts


def send_apart(url: str, origin: str, identify: dict[str, Any]) -> None:
    """Push an identify from another browser."""
    pushes = [{"id": os.urandom(16).hex(), "call": ["identify", identify]}]
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    body = json.dumps({"v": 1, "pushes": pushes}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/scq/push", body, headers), timeout=10) as answer:
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
            assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        sys.stdout.write(log.read_text())  # shown when the test fails


def is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the proxy answers. Raises AssertionError once its process has ended."""
    assert process.poll() is None, "the command has ended: its log says why"
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=10):
            return True
    except OSError:
        return False


# Fixtures


@pytest.fixture
def page(site: Site, visit: Visit) -> Page:
    """A tab on a page with the embed tag."""
    return visit.open(site.put("/", f"<script>{TOLD}</script>", EMBED))


class Demo(NamedTuple):
    shop: str
    sendx: SendX


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo as a new user starts it. One for all its tests: each uses addresses of its own."""
    log = tmp_path_factory.mktemp("demo") / "demo.log"
    ports = free_port(), free_port()
    with running(log, "demo", f"--port={ports[0]}", f"--sandbox-port={ports[1]}") as process:
        shop, sendx = (f"http://127.0.0.1:{port}" for port in ports)
        eventually(lambda: is_up(shop, process), 30)
        assert shop in log.read_text()
        assert sendx in log.read_text()
        yield Demo(shop, SendX(sendx))
    assert "@" not in log.read_text()


# Steps


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


def log_in(page: Page, email: str) -> None:
    page.click("#login")
    page.fill("#email", email)
    page.click("#login-form button")
    page.wait_for_selector("#logout")
    newest(page, "identify", "accepted")


def newest(page: Page, call: str, status: str) -> str:
    """Wait until the newest push on the shop's panel is this one, with this outcome; returns what is shown of it."""
    item = page.locator("#log li").first
    selector = f'#log li:first-child[data-status="{status}"] code'
    page.wait_for_function(
        "([selector, call]) => document.querySelector(selector)?.textContent.includes(call)", arg=[selector, call]
    )
    return item.inner_text()


# The demo, in a new user's hands


def test_the_tag_of_who_logs_in_and_fills_the_cart_lands_on_the_sandboxs_page(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "ada@demo.test")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "accepted")
    demo.sendx.await_story("ada@demo.test", "identify", "+cart: Teapot")
    with shop.expect_popup() as opened:
        shop.click("#sandbox")
    contact = opened.value.locator("#contacts .item", has_text="ada@demo.test")
    contact.locator(".tag", has_text="cart: Teapot").wait_for()


def test_what_was_put_into_the_cart_before_the_log_in_is_held_and_arrives_behind_the_identify(
    demo: Demo, visit: Visit
) -> None:
    shop = visit.open(demo.shop)
    shop.click("#add-sencha")
    newest(shop, "cart: Sencha", "held")
    shop.click("#add-cups")
    newest(shop, "cart: Pair of cups", "held")
    log_in(shop, "grace@demo.test")
    demo.sendx.await_story("grace@demo.test", "identify", "+cart: Sencha", "+cart: Pair of cups")


def test_what_is_pushed_after_the_log_out_is_held_and_reaches_nobody(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "joan@demo.test")
    shop.click("#logout")
    shop.wait_for_selector("#login")
    newest(shop, "reset", "accepted")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "held")
    log_in(shop, "kay@demo.test")  # the next person at the same browser
    shop.click("#add-cups")
    demo.sendx.await_story("kay@demo.test", "identify", "+cart: Pair of cups")
    assert demo.sendx.story("joan@demo.test") == ["identify"]


def test_a_held_push_goes_to_the_person_who_left_when_they_come_back(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "lois@demo.test")
    shop.click("#logout")
    shop.wait_for_selector("#login")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "held")
    send_apart(demo.shop, demo.shop, {"email": "another@demo.test"})
    demo.sendx.await_story("another@demo.test", "identify")
    assert demo.sendx.story("lois@demo.test") == ["identify"]
    log_in(shop, "lois@demo.test")
    eventually(lambda: "+cart: Teapot" in demo.sendx.story("lois@demo.test"))


@pytest.mark.parametrize("logged_in", [True, False])
def test_the_page_cannot_take_the_tag_that_only_the_back_end_gives(demo: Demo, visit: Visit, logged_in: bool) -> None:
    email = "mary@demo.test" if logged_in else "nobody-yet@demo.test"
    shop = visit.open(demo.shop)
    if logged_in:
        log_in(shop, email)
    shop.click("#steal")
    shown = newest(shop, "paid user", "refused")
    assert "tag-not-allowed" in shown
    assert "do not let a browser give this tag" in shown
    if not logged_in:
        log_in(shop, email)
    shop.click("#add-teapot")
    demo.sendx.await_story(email, "identify", "+cart: Teapot")


def test_an_upgrade_lands_as_the_tag_that_the_back_end_vouches_for(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "nan@demo.test")
    shop.click("#upgrade")
    shop.wait_for_selector("#paid:visible")
    newest(shop, "identify", "accepted")
    demo.sendx.await_story("nan@demo.test", "identify", "+clicked upgrade", "identify", "+paid user")


def sign_up(shop: Page, email: str) -> None:
    shop.fill("#newsletter-name", "Olga")
    shop.fill("#newsletter-email", email)
    shop.click("#newsletter-form button")
    shop.wait_for_function("document.getElementById('newsletter-result').textContent.includes('you are on the list')")


def test_the_newsletter_form_works_for_somebody_who_is_not_logged_in(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    sign_up(shop, "olga@demo.test")
    demo.sendx.await_story("olga@demo.test", "identify", "+newsletter")
    contact = demo.sendx.contact("olga@demo.test")
    assert contact is not None
    assert contact["firstName"] == "Olga"


def test_a_colleagues_address_in_the_newsletter_form_leaves_the_visitor_who_they_are(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "pat@demo.test")
    sign_up(shop, "colleague@demo.test")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "accepted")
    demo.sendx.await_story("colleague@demo.test", "identify", "+newsletter")
    demo.sendx.await_story("pat@demo.test", "identify", "+cart: Teapot")


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
  ["consent"], ["reset", 1]
"""


def test_another_products_calls_stay_in_the_queue_in_order_and_nothing_is_sent(site: Site, visit: Visit) -> None:
    page = visit.open(site.put("/", f"<script>{TOLD} var _scq = [{OTHERS}];</script>", EMBED))
    assert page.evaluate(f"JSON.stringify(_scq) === JSON.stringify([{OTHERS}])")
    assert page.evaluate(f"_scq.push({OTHERS})") == 24
    assert page.evaluate(f"JSON.stringify(_scq) === JSON.stringify([{OTHERS}, {OTHERS}])")
    track(page, "t-1")
    outcomes(page, 1)
    assert pushed(visit) == [["track", {"addTags": ["t-1"]}]]
    assert page.evaluate("_scq.length") == 24


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
    page.wait_for_function("outcomes.length >= 199", timeout=30_000)
    assert page.evaluate("texts") < 5_000, "each push is written again for every other"
    assert page.evaluate("outcomes.map(([tag]) => tag)") == tags
    site.sendx.await_story(ANN, "identify", *(f"+{tag}" for tag in tags))
    # At 50 pushes a second and address the proxy slows such a page down.
    assert {error.partition("429")[1] for error in visit.take_errors()} <= {"429"}


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
                eventually(lambda: is_up(url, process), 30)
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
