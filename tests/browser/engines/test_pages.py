"""Pages that make it hard, log-ins and consent, on three engines."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from typer import BadParameter

from proxy.cli.snippet import queue_name
from tests.support.engines import Tab, engine
from tests.support.live import eventually
from tests.support.server import new_email
from tests.support.shim import (
    EMBED,
    FAST_CLOCK,
    PRELUDE,
    Behind,
    Site,
    await_empty_storage,
    document,
    identify,
    link,
    log_in,
    outcomes,
    site_of,
    stored,
    succeeded,
)

pytestmark = pytest.mark.browser


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


def may_be_a_queue(name: str) -> bool:
    try:
        return queue_name(name) == name
    except BadParameter:
        return False


def test_no_engine_has_a_global_of_a_name_that_a_queue_may_have(site: Site) -> None:
    tab = site.browser.open(site.bare("/"))
    names = tab.run("""(() => {
      const names = [];
      for (let object = self; object; object = Object.getPrototypeOf(object)) names.push(...Object.getOwnPropertyNames(object));
      return names;
    })()""")
    assert {"location", "top", "hasOwnProperty", "__proto__"} <= set(names)
    assert [name for name in names if may_be_a_queue(name)] == []
