"""`s` is readable by every script and recorder of a page, and proves nothing: played on both stores, waiting for the minute in which it counts.

The tests of one store share one wait: each makes its victim first, and `settled` ends once the proxy no longer takes a bare session value for a
visitor who was there before all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from proxy.sandbox.api import Sandbox
from tests.support import postgres
from tests.support.live import eventually
from tests.support.server import (
    COOKIE_KEY,
    IDENTITY_KEY,
    Browser,
    Cookies,
    Server,
    arrives,
    identify,
    is_anywhere,
    login,
    new_email,
    new_id,
    outcomes,
    requests_about,
    running,
    track,
)


@dataclass
class Victims:
    """Browsers of people whose session values somebody else knows."""

    server: Server
    logged_in: Browser
    ann: str
    anonymous: Browser
    taken_over: Browser  # its script has drawn a new session value: it is not the cookie's
    back_again: Browser  # will come back with a cookie whose key was dropped
    mark: str
    copied: Cookies = field(default_factory=dict)  # of `taken_over`, from before its log-in


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    more = {"SCQ_STORE": postgres.database()} if request.param == "postgresql" else {}
    with running(tmp_path_factory.mktemp("session"), upstream, SCQ_IDENTIFY="asserted", **more) as server:
        yield server


@pytest.fixture(scope="module")
def settled(server: Server) -> Victims:
    ann, mark = new_email("ann"), f"cart-{new_id()[:8]}"
    victims = Victims(server, Browser(server), ann, Browser(server), Browser(server), Browser(server), mark)
    victims.logged_in.logs_in(ann)
    victims.anonymous.push(track(mark))
    victims.anonymous.push(track("cart-0"))  # shows its cookie
    victims.taken_over.push(track("cart-0"))
    victims.copied = dict(victims.taken_over.cookies)
    victims.taken_over.logs_in(ann)
    victims.taken_over.s = new_id()
    victims.taken_over.push(track("cart-0"))
    victims.back_again.push(track("cart-0"))
    victims.back_again.push(track("cart-0"))
    last = Browser(server)
    last.push(track("cart-0"))
    last.push(track("cart-0"))
    eventually(lambda: "s" in last.request(track("cart-0"), cookies={}).json())
    return victims


def stranger(victim: Browser) -> Browser:
    """Somebody who knows the session value, and nothing else."""
    browser = Browser(victim.server)
    browser.s = victim.s
    return browser


def test_a_stranger_who_knows_it_logs_nobody_out(settled: Victims, sandbox: Sandbox) -> None:
    for victim in (settled.logged_in, settled.taken_over):
        eve = stranger(victim)
        assert eve.statuses(login(new_email("eve")), ["reset"]) == ["accepted", "accepted"]
        assert outcomes(stranger(victim).push(["reset"])) == ["accepted"]
        end = f"cart-{new_id()[:8]}"
        assert victim.statuses(login(settled.ann), track(end)) == ["accepted", "accepted"]
        arrives(sandbox, settled.ann, f"+{end}")


def test_somebody_with_a_cookie_of_their_own_logs_nobody_out_either(settled: Victims) -> None:
    eve = Browser(settled.server)
    eve.logs_in(new_email("eve"))
    for victim in (settled.logged_in, settled.anonymous, settled.taken_over):
        answer = eve.request(login(new_email("eve")), ["reset"], s=victim.s)
        assert outcomes(answer.json()["results"]) == ["accepted", "accepted"]
    assert settled.logged_in.statuses(track("cart-1")) == ["accepted"]
    assert settled.taken_over.statuses(track("cart-1")) == ["accepted"]
    assert settled.anonymous.statuses(track("cart-1")) == ["held"]


def test_a_copied_cookie_from_before_the_log_in_logs_nobody_out_either(settled: Victims) -> None:
    victim = settled.taken_over
    for calls in ([["reset"]], [login(new_email("eve")), ["reset"]], [["consent", "denied"], ["reset"]]):
        answer = victim.request(*calls, cookies=settled.copied)
        assert set(outcomes(answer.json()["results"])) == {"accepted"}
    assert victim.statuses(track("cart-1")) == ["accepted"]


@pytest.mark.parametrize("by", ["token", "typed"])
def test_a_stranger_who_knows_it_takes_nothing_and_leaves_nothing(by: str, settled: Victims, sandbox: Sandbox) -> None:
    eve, planted = new_email("eve"), f"cart-{new_id()[:8]}"
    browser = stranger(settled.anonymous)
    browser.push(track(planted))
    assert browser.s != settled.anonymous.s
    assert browser.cookie is not None
    log_in = login(eve) if by == "token" else identify(email=eve)
    again = stranger(settled.anonymous)
    assert outcomes(again.push(log_in, track("newsletter"))) == ["accepted", "accepted"]
    arrives(sandbox, eve, "+newsletter")
    assert not any(settled.mark in record.raw for record in requests_about(sandbox, eve))


def test_the_visitors_own_pushes_are_still_theirs(settled: Victims, sandbox: Sandbox) -> None:
    """Runs behind the strangers' tests: nothing of theirs got here."""
    ann = new_email("anns-other")
    assert settled.anonymous.statuses(login(ann), track("cart-end")) == ["accepted", "accepted"]
    events = arrives(sandbox, ann, "+cart-end")
    assert events[:3] == ["identify", f"+{settled.mark}", "+cart-0"]
    assert {event for event in events if event not in ("+cart-0", "+cart-1")} == {
        "identify",
        f"+{settled.mark}",
        "+cart-end",
    }


def test_after_a_key_was_dropped_visitors_are_new_and_nothing_of_theirs_is_refused(
    settled: Victims, sandbox: Sandbox
) -> None:
    """The last test: it restarts the server."""
    settled.server.restart(SCQ_SECRET_KEYS=COOKIE_KEY.replace("B", "Z"))
    for browser in (settled.back_again, settled.logged_in):
        bob, mark = new_email("bob"), f"cart-{new_id()[:8]}"
        before = browser.s
        assert browser.statuses(track(mark)) == ["held"]
        assert browser.s != before
        assert browser.statuses(login(bob), track("cart-end")) == ["accepted", "accepted"]
        arrives(sandbox, bob, "+cart-end")
        assert arrives(sandbox, bob, f"+{mark}")[:2] == ["identify", f"+{mark}"]
        assert not is_anywhere(sandbox, IDENTITY_KEY)


def test_the_id_of_a_typed_log_in_logs_in_under_its_own_session_value_only(server: Server) -> None:
    ann, push_id, browser = new_email("ann"), new_id(), Browser(server)
    typed = identify(email=ann)
    browser.request(typed, ids=[push_id])  # the answer is lost
    thief = Browser(server)
    assert thief.statuses(typed, track("newsletter"), ids=[push_id, new_id()]) == ["duplicate", "held"]
    assert browser.statuses(typed, track("newsletter"), ids=[push_id, new_id()]) == ["duplicate", "accepted"]
