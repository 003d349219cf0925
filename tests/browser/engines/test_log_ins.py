"""A log-in that got no answer, on three engines: whose contact gets what was pushed behind it, on that page and on the next ones."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from tests.support.engines import Tab
from tests.support.front import Fault
from tests.support.live import eventually
from tests.support.server import new_email, token
from tests.support.shim import (
    DOWN,
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

# Not "reset": on a connection that was reset Chromium may send the request of a page that is gone once more, and then the log-in does arrive.
UNREACHED: tuple[Fault, ...] = ("503", "429", "hang")
# `written`: what was put into the page's storage at any time.
WATCHED = """
const storage = localStorage, written = [];
const set = (target, key, value) => { written.push(value); target[key] = value; return true; };
Object.defineProperty(window, "localStorage", {configurable: true, get: () => new Proxy(storage, {set})});
"""


def mark_of(address: str) -> int:
    """Returns what the shim keeps of an address: 32 bits of FNV-1a."""
    mark = 2166136261
    for letter in address.strip().lower():
        mark = ((mark ^ ord(letter)) * 16777619) % 2**32
    return mark


def kept(tab: Tab) -> list[dict[str, Any]]:
    """The pushes in the browser's storage, oldest first."""
    found: dict[str, str] = tab.run("localStorage")
    return [json.loads(found[key]) for key in sorted(found) if re.match(r"scq\d", key)]


def follow(tab: Tab, path: str) -> None:
    """Click at the page's link, and wait until the shim of that page runs."""
    tab.click("#away")
    tab.wait(f"location.pathname === '{path}' && _scq.push !== [].push")


def leave_a_log_in(site: Site, tab: Tab, email: str, fault: Fault) -> None:
    """Log in and push `t-1` while the proxy cannot be reached, or cannot answer; then go to /next, which cannot reach it either.

    A request that hangs goes on hanging, but it is the only one: the next page would wait half a minute.
    """
    site.set(fault)
    tab.run(f"[{identify(email)}, track('t-1')]")
    eventually(lambda: any("identify" in str(attempt.calls) for attempt in site.tries if attempt.fault))
    if fault == "hang":
        site.mend()
    tab.click("#away")
    tab.wait("location.pathname === '/next' && _scq.push !== [].push")
    eventually(lambda: any("reset" in str(attempt.calls) for attempt in site.tries))


def tags_of(site: Site, email: str) -> list[str]:
    return [event for event in site.story(email) if event != "identify"]


def await_tags(site: Site, email: str, *expected: str) -> None:
    """Wait until exactly these tags have been added to the contact, in this order, however often the log-in was forwarded."""
    eventually(lambda: len(tags_of(site, email)) >= len(expected))
    assert tags_of(site, email) == list(expected)


# Somebody else was logged in


@pytest.mark.parametrize("fault", UNREACHED)
def test_a_log_in_that_never_arrived_leaves_nothing_on_the_person_before(site: Site, fault: Fault) -> None:
    onward = site.page("/onward", "track('t-3');")
    tab, ann = site.logged_in(body=link(site.page("/next", "track('t-2');", body=link(onward))))
    bob = new_email("bob")
    leave_a_log_in(site, tab, bob, fault)
    site.mend()
    follow(tab, "/onward")
    assert outcomes(tab, 1) == succeeded("t-3", status="held")
    await_empty_storage(tab)
    log_in(tab, bob)
    site.await_story(bob, "identify", "+t-1", "+t-2", "+t-3")
    assert site.story(ann) == ["identify"]


def test_what_stood_behind_a_log_in_that_never_arrived_is_not_for_a_third_person_either(site: Site) -> None:
    tab, ann = site.logged_in(body=link(site.page("/next")))
    bob, cleo = new_email("bob"), new_email("cleo")
    leave_a_log_in(site, tab, bob, "503")
    site.mend()
    await_empty_storage(tab)
    log_in(tab, cleo)
    tab.run("track('t-2')")
    site.await_story(cleo, "identify", "+t-2")
    assert (site.story(ann), site.story(bob)) == (["identify"], [])


def test_what_follows_a_log_in_that_arrived_and_whose_answer_was_lost_is_the_new_persons(site: Site) -> None:
    tab, ann = site.logged_in(body=link(site.page("/next", "track('t-2');")))
    bob = new_email("bob")
    leave_a_log_in(site, tab, bob, "lost")
    site.mend()
    site.await_story(bob, "identify", "+t-1", "+t-2")
    await_empty_storage(tab)
    tab.run("track('t-3')")
    site.await_story(bob, "identify", "+t-1", "+t-2", "+t-3")
    assert site.story(ann) == ["identify"]


def test_a_log_in_that_the_next_page_overtakes_still_logs_in(site: Site) -> None:
    """The next page, in another tab, speaks first of a log-in that the first tab goes on trying."""
    tab, ann = site.logged_in()
    bob = new_email("bob")
    site.set("429")
    tab.run(f"[{identify(bob)}, track('t-1')]")
    eventually(lambda: site.tries[-1].fault)
    other = site.browser.open(site.page("/other"))
    other.wait("_scq.push !== [].push")
    eventually(lambda: any("reset" in str(attempt.calls) for attempt in site.tries))
    site.mend()
    eventually(lambda: "+t-1" in site.story(bob))
    other.run("track('t-2')")
    await_tags(site, bob, "+t-1", "+t-2")
    assert site.story(ann) == ["identify"]


# The same person was, or nobody


@pytest.mark.parametrize("fault", UNREACHED)
def test_an_outage_over_several_pages_neither_logs_out_who_logs_in_on_every_page_nor_loses_a_tag(
    site: Site, fault: Fault
) -> None:
    plain = site.page("/plain", "track('t-4');")
    tab, ann = site.logged_in()
    third = site.page("/third", f"{identify(ann)}; track('t-3');", body=link(plain))
    second = site.page("/second", f"{identify(ann)}; track('t-2');", body=link(third))
    first = site.page("/first", f"{identify(ann)}; track('t-1');", body=link(second))
    site.set(fault)
    tab.go(first)
    for number, path in enumerate(("/second", "/third"), 1):
        tab.wait("_scq.push !== [].push")
        eventually(lambda number=number: f"t-{number}" in stored(tab))  # type: ignore[misc]  # bound at once
        follow(tab, path)
    eventually(lambda: "t-3" in stored(tab))
    site.mend()
    follow(tab, "/plain")
    await_tags(site, ann, "+t-1", "+t-2", "+t-3", "+t-4")
    await_empty_storage(tab)
    tab.run("track('t-5')")
    await_tags(site, ann, "+t-1", "+t-2", "+t-3", "+t-4", "+t-5")


@pytest.mark.parametrize("fault", [*UNREACHED, "lost"])
def test_what_stood_behind_a_first_log_in_without_an_answer_is_that_persons_after_the_next_one(
    site: Site, fault: Fault
) -> None:
    tab = site.browser.open(site.page("/", "track('t-0');", body=link(site.page("/next", "track('t-2');"))))
    assert outcomes(tab, 1) == succeeded("t-0", status="held")
    ann = new_email()
    leave_a_log_in(site, tab, ann, fault)
    site.mend()
    await_empty_storage(tab)
    log_in(tab, ann)
    tab.run("track('t-3')")
    await_tags(site, ann, "+t-0", "+t-1", "+t-2", "+t-3")


# What is kept of it, and what is sent


@pytest.mark.parametrize("fault", DOWN)
def test_another_page_sends_a_log_out_under_the_id_of_a_log_in_without_an_answer(site: Site, fault: Fault) -> None:
    tab, _ = site.logged_in(body=link(site.page("/next")))
    bob = new_email("bob")
    leave_a_log_in(site, tab, bob, fault)
    own = [attempt for attempt in site.tries if attempt.calls[0][0] == "identify" and attempt.fault]
    (log_in_id,) = {attempt.ids[0] for attempt in own}
    assert all("eyJ" in str(attempt.calls[0]) for attempt in own)  # the page that has the token
    kept_log_in, kept_track = kept(tab)
    assert set(kept_log_in) >= {"id", "call", "t", "scq"} <= set(kept_track)
    assert kept_log_in["id"] == log_in_id
    assert kept_log_in["call"] == ["reset", mark_of(bob)]
    assert kept_log_in["scq"] == kept_track["scq"]
    site.mend()
    await_empty_storage(tab)
    # Not the first to get through, perhaps: a browser may repeat by itself the request of a page that is gone.
    later = next(attempt for attempt in site.tries if attempt.results and attempt.calls[0][0] == "reset")
    assert later.ids[0] == log_in_id
    assert later.calls[0] == ["reset", mark_of(bob)]
    assert [call for attempt in site.tries for call in attempt.calls][-1] == ["track", {"addTags": ["t-1"]}]


def test_the_page_itself_repeats_the_log_in_with_its_token(site: Site) -> None:
    tab, ann = site.logged_in()
    bob = new_email("bob")
    site.set("503")
    tab.run(f"[{identify(bob)}, track('t-1')]")
    eventually(lambda: len([attempt for attempt in site.tries if attempt.fault]) >= 2)
    assert [push["call"][0] for push in kept(tab)] == ["reset", "track"]
    site.mend()
    site.await_story(bob, "identify", "+t-1")
    assert "reset" not in {call[0] for attempt in site.tries for call in attempt.calls}
    assert site.story(ann) == ["identify"]


def test_neither_a_token_nor_its_address_is_ever_in_storage(site: Site) -> None:
    third = site.page("/third", WATCHED)
    second = site.page("/next", WATCHED, body=link(third))
    tab, _ = site.logged_in()
    bob = new_email("bob")
    tab.go(site.page("/", WATCHED, body=link(second)))
    tab.wait("_scq.push !== [].push")
    argument = {"token": token(bob, contact={"firstName": "Robert"}), "email": bob, "firstName": "Roberta"}
    everything: list[str] = []

    def look() -> None:
        everything.extend(tab.run("[...written, ...Object.values(localStorage)]"))

    site.set("503")
    tab.run(f"void _scq.push(['identify', {json.dumps(argument)}], ['track', {{addTags: ['t-1']}}])")
    eventually(lambda: len([attempt for attempt in site.tries if attempt.fault]) >= 2)
    look()
    follow(tab, "/next")
    eventually(lambda: any(attempt.calls[0][0] == "reset" for attempt in site.tries))
    look()
    site.mend()
    follow(tab, "/third")
    await_empty_storage(tab)
    look()
    log_in(tab, bob)
    assert outcomes(tab, 1) == succeeded("identify")
    look()
    told = " ".join(everything)
    assert str(mark_of(bob)) in told
    assert "t-1" in told
    assert [secret for secret in ("eyJ", "@", "bob", "ann", "Robert", "token") if secret in told] == []


def signed(payload: str) -> str:
    """Something like a token around this text."""
    encoded = base64.urlsafe_b64encode(payload.encode()).decode().rstrip("=")
    return f"eyJhbGciOiJIUzI1NiJ9.{encoded}.c2ln"


def test_an_address_leaves_the_same_mark_however_its_token_is_written(site: Site) -> None:
    tokens = {
        signed('{"email":"ann@example.com"}'): mark_of("ann@example.com"),
        signed('{"exp":1, "email" : " Ann@Example.COM\\n", "newEmail": "x@example.com"}'): mark_of("ann@example.com"),
        signed('{"name":"???>>>~~~ÿþ","email":"a?b~c>d@example.com"}'): mark_of("a?b~c>d@example.com"),
        signed('{"contact":{"email":"x@example.com"},"email":"ann+1@example.com"}'): mark_of("ann+1@example.com"),
        signed('{"email":"j\\u00fcrgen@example.com"}'): mark_of("jürgen@example.com"),
        signed('{"email":"jürgen@example.com"}'): mark_of("jürgen@example.com".encode().decode("latin-1")),
    }
    assert any("-" in each.split(".")[1] and "_" in each.split(".")[1] for each in tokens)
    tab = site.browser.open(site.page("/"))
    tab.wait("_scq.push !== [].push")
    site.set("503")
    tab.run(f"void {json.dumps(list(tokens))}.map((token) => _scq.push(['identify', {{token}}]))")
    eventually(lambda: len(kept(tab)) == len(tokens))
    assert [push["call"] for push in kept(tab)] == [["reset", mark] for mark in tokens.values()]
    assert all(0 <= mark < 2**32 for mark in tokens.values())
    assert any(mark >= 2**31 for mark in tokens.values())
    tab.run("_scq.push(['consent', 'denied'])")
    site.mend()
    await_empty_storage(tab)


@pytest.mark.parametrize(
    "found",
    ["secret", "a.b", "a.b.c", "..", signed("ann@example.com"), signed('{"sub":"ann"}'), signed('{"email":["ann"]}')],
)
def test_of_a_token_that_names_nobody_nothing_is_kept(site: Site, found: str) -> None:
    tab = site.browser.open(site.page("/"))
    tab.wait("_scq.push !== [].push")
    site.set("503")
    tab.run(f"[_scq.push(['identify', {{token: '{found}', ...told('identify')}}]), track('t-1')]")
    eventually(lambda: "t-1" in stored(tab))
    assert [push["call"][0] for push in kept(tab)] == ["track"]
    site.mend()
    assert outcomes(tab, 2) == [["identify", "failure", "bad-token"], *succeeded("t-1", status="held")]


def test_a_page_cannot_push_such_a_log_out_by_mistake(site: Site) -> None:
    """Whatever stands behind `reset`, it is an ordinary log-out, and no mark of somebody else."""
    tab, ann = site.logged_in()
    tab.run("void _scq.push(['reset', 1], ['reset', '2166136261'], ['reset', [1]], ['reset', 'x'], ['reset', 1, 2])")
    tab.run("track('t-1')")
    assert outcomes(tab, 1) == succeeded("t-1", status="held")
    await_empty_storage(tab)
    assert site.story(ann) == ["identify"]
    assert [call for attempt in site.tries for call in attempt.calls if call[0] == "reset"] == [["reset", {}]] * 5


def test_a_denial_drops_a_log_in_that_an_earlier_page_left_behind_and_what_stood_behind_it(site: Site) -> None:
    tab, ann = site.logged_in(body=link(site.page("/next")))
    bob = new_email("bob")
    leave_a_log_in(site, tab, bob, "503")
    tab.run("void _scq.push(['consent', 'denied'])")
    site.mend()
    await_empty_storage(tab)
    assert (site.story(ann), site.story(bob)) == (["identify"], [])
