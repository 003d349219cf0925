"""Identity survives whatever else is wrong with a log-in: whose contact gets what follows, played with the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proxy.sandbox.api import Sandbox
from tests.support.server import (
    SERVER_KEY,
    Browser,
    Server,
    arrives,
    dumps,
    identify,
    is_anywhere,
    login,
    new_email,
    new_id,
    outcomes,
    requests_about,
    running,
    token,
    track,
)
from tests.support.trifles import LONG, TRIFLES

Json = Any
WHERE = ("token", "page")
BEFORE = ("anonymous", "the same person", "another person", "another person, typed")


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {
        "SCQ_IDENTIFY": "asserted",
        "SCQ_FIELDS": "*",
        "SCQ_ASSERTED_FIELDS": "*",
        "SCQ_SERVER_KEYS": SERVER_KEY,
        "SCQ_SIGNUPS_PER_IP": "0",
    }


def tag() -> str:
    return f"cart-{new_id()[:8]}"


def before(browser: Browser, who: str, bob: str) -> str:
    """Makes the browser that person's; returns the address of another person."""
    ann = new_email("ann")
    if who == "another person, typed":
        assert browser.statuses(identify(email=ann)) == ["accepted"]
    elif who != "anonymous":
        browser.logs_in(bob if who == "the same person" else ann)
    return ann


@pytest.mark.parametrize("who", BEFORE)
@pytest.mark.parametrize("where", WHERE)
def test_a_trifle_beside_a_log_in_costs_nobody_their_identity(
    where: str, who: str, server: Server, sandbox: Sandbox
) -> None:
    """One browser per trifle; the pushes behind each log-in are looked for once all are through."""
    followed: list[tuple[str, str, str, str]] = []
    for kind, (trifle, *_) in TRIFLES.items():
        bob, browser, mark = new_email("bob"), Browser(server), tag()
        ann = before(browser, who, bob)
        in_page = identify(token=token(bob), email="", **trifle)
        log_in = login(bob, **trifle) if where == "token" else in_page
        results = browser.push(log_in, track(mark), ["identify", {"lastName": mark}])
        assert outcomes(results) == ["accepted"] * 3, kind
        followed.append((kind, ann, bob, mark))
    for kind, ann, bob, mark in followed:
        arrives(sandbox, bob, f"+{mark}")
        assert not any(mark in record.raw for record in requests_about(sandbox, ann)), kind
        assert sandbox.contacts.get(bob) is not None


@pytest.mark.parametrize("who", BEFORE[:2])
def test_a_trifle_beside_a_typed_address_costs_nothing_but_itself(who: str, server: Server, sandbox: Sandbox) -> None:
    for trifle, *_ in TRIFLES.values():
        bob, browser, mark = new_email("bob"), Browser(server), f"typed-{new_id()[:8]}"
        before(browser, who, bob)
        assert (
            browser.statuses(identify(email=bob, **trifle), track("cart-1" if who != "anonymous" else mark))
            == ["accepted"] * 2
        )
        arrives(sandbox, bob, "+cart-1" if who != "anonymous" else f"+{mark}")


def test_a_trifle_in_a_servers_call_costs_nothing_but_itself(server: Server, sandbox: Sandbox) -> None:
    for kind, (trifle, *_) in TRIFLES.items():
        one, two, three = new_email(), new_email(), new_email()
        given = {"firstName": "B", **trifle}
        for path, body in (
            ("identify", {"email": one, **given}),
            ("identify/bulk", [{"email": two, **given}, {"email": three}]),
        ):
            answer = call(server, path, body)
            assert (answer.status_code, answer.json()["message"]) in (
                (200, "OK"),
                (200, "All contacts processed successfully"),
            ), kind
        for address in (one, two, three):
            arrives(sandbox, address, "identify")


def call(server: Server, path: str, body: Json) -> httpx.Response:
    headers = {"X-Team-ApiKey": SERVER_KEY}
    return server.client.post(f"/api/v1/rest/contact/{path}", content=dumps(body), headers=headers)


def test_what_a_trifle_cost_is_named(browser: Browser, server: Server) -> None:
    """To a page in `dropped`, to a server in a header."""
    trifle = {"company": LONG, "birthday": "", "firstName": "Bob"}
    [result] = browser.push(login(new_email(), **trifle))
    assert set(result["dropped"]) == {"contact.company", "contact.birthday"}
    answer = call(server, "identify/bulk", [{"email": new_email()}, {"email": new_email(), **trifle}])
    assert set(answer.headers["Scq-Dropped"].replace(" ", "").split(",")) == {"1.company", "1.birthday"}


ADDRESSES = ["try..this..0511@docomo.ne.jp", "bob.@ezweb.ne.jp", "bob@company.local", "user@my_domain.com"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_vouched_address_is_taken_if_it_can_do_no_harm(
    address: str, browser: Browser, server: Server, sandbox: Sandbox
) -> None:
    address, mark = f"{new_id()[:8]}{address}", tag()
    browser.logs_in(new_email("ann"))
    assert browser.statuses(login(f"\u200b{address}\ufeff"), track(mark)) == ["accepted", "accepted"]
    arrives(sandbox, address, f"+{mark}")
    assert call(server, "track", {"email": address, "addTags": [f"{mark}-2"]}).status_code == 200
    arrives(sandbox, address, f"+{mark}-2")


# A log-in that cannot be taken in


FAILING: dict[str, Json] = {
    "expired": {"exp_in": -60, "iat_in": -660},
    "good for too long": {"exp_in": 90_000},
    "from the future": {"iat_in": 3_600},
    "without an expiry": {"leave_out": ["exp"]},
    "without an issue time": {"leave_out": ["iat"]},
}


@pytest.mark.parametrize("kind", FAILING)
@pytest.mark.parametrize("who", BEFORE)
def test_what_follows_a_log_in_that_is_refused_is_that_persons_or_nobodys(
    who: str, kind: str, server: Server, sandbox: Sandbox
) -> None:
    bob, browser, mark, end = new_email("bob"), Browser(server), tag(), tag()
    ann = before(browser, who, bob)
    refused, follows = browser.statuses(identify(token=token(bob, **FAILING[kind])), track(mark))
    assert refused in ("expired-token", "bad-token")
    assert follows == ("accepted" if who == "the same person" else "held")
    browser.push(track(end))
    browser.logs_in(bob)
    assert arrives(sandbox, bob, f"+{end}")[-2:] == [f"+{mark}", f"+{end}"]
    assert not any(mark in record.raw for record in requests_about(sandbox, ann))


def test_a_token_without_an_address_ends_who_was_here_too(browser: Browser, sandbox: Sandbox) -> None:
    ann, mark = new_email(), tag()
    browser.logs_in(ann)
    assert browser.statuses(identify(token=token(None)), track(mark)) == ["bad-token", "held"]
    assert browser.statuses(login(ann), track("cart-end")) == ["accepted", "accepted"]
    arrives(sandbox, ann, "+cart-end")
    assert not is_anywhere(sandbox, mark)


def test_a_token_that_does_not_verify_changes_nothing(browser: Browser, sandbox: Sandbox) -> None:
    ann, mark = new_email(), tag()
    browser.logs_in(ann)
    forged = [token(new_email(), key="x" * 40), token(new_email(), aud="other"), "not a token"]
    assert browser.statuses(*[identify(token=each) for each in forged], track(mark)) == ["bad-token"] * 3 + ["accepted"]
    arrives(sandbox, ann, f"+{mark}")


@pytest.fixture
def narrow(upstream: str, tmp_path: Any) -> Iterator[Server]:
    """Nothing is sent, and a lane takes one push."""
    with running(tmp_path, "http://127.0.0.1:9", SCQ_LANE_MAX="1") as server:
        yield server


def test_a_full_lane_ends_who_was_here(narrow: Server) -> None:
    bob, browser = new_email("bob"), Browser(narrow)
    Browser(narrow).logs_in(bob)
    browser.logs_in(new_email("ann"))
    assert browser.statuses(login(bob), track("cart-1")) == ["lane-full", "held"]
    assert browser.statuses(track("cart-2")) == ["held"]


def test_denied_consent_ends_who_was_here_and_stores_nobody(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob, mark = new_email("ann"), new_email("bob"), tag()
    browser.logs_in(ann)
    assert browser.statuses(["consent", "denied"], login(bob), track(mark)) == [
        "accepted",
        "consent-denied",
        "consent-denied",
    ]
    assert browser.statuses(["consent", "granted"], track(mark)) == ["accepted", "held"]
    browser.logs_in(ann)
    assert browser.statuses(track("cart-end")) == ["accepted"]
    arrives(sandbox, ann, "+cart-end")
    assert not is_anywhere(sandbox, mark)
    assert not is_anywhere(sandbox, bob)


# A log-in that got no answer: the next page sends a log-out in its place, with the fingerprint of its address


def fingerprint(address: str) -> int:
    value = 2_166_136_261
    for letter in address.lower():
        value = (value ^ ord(letter)) * 16_777_619 % 2**32
    return value


@pytest.mark.parametrize("who", BEFORE)
def test_a_lost_log_in_waits_for_its_person(who: str, server: Server, sandbox: Sandbox) -> None:
    bob, browser, mark = new_email("bob"), Browser(server), tag()
    ann = before(browser, who, bob)
    lost, follows = browser.statuses(["reset", fingerprint(bob)], track(mark))
    assert (lost, follows) == ("accepted", "accepted" if who == "the same person" else "held")
    browser.logs_in(bob)
    arrives(sandbox, bob, f"+{mark}")
    assert not any(mark in record.raw for record in requests_about(sandbox, ann))


@pytest.mark.parametrize("next_in", ["ann", "carl"])
def test_what_stood_behind_a_lost_log_in_is_for_nobody_else(next_in: str, browser: Browser, sandbox: Sandbox) -> None:
    ann, mark = new_email("ann"), tag()
    browser.logs_in(ann)
    browser.push(["reset", fingerprint(new_email("bob"))], track(mark))
    later = ann if next_in == "ann" else new_email("carl")
    assert browser.statuses(login(later), track("cart-end")) == ["accepted", "accepted"]
    arrives(sandbox, later, "+cart-end")
    assert not is_anywhere(sandbox, mark)


@pytest.mark.parametrize("call", [["reset"], None])
def test_a_lost_log_in_that_reached_the_server_says_who(call: Json, browser: Browser, sandbox: Sandbox) -> None:
    ann, bob, push_id, mark = new_email("ann"), new_email("bob"), new_id(), tag()
    browser.logs_in(ann)
    browser.request(login(bob), ids=[push_id])  # the answer is lost
    call = call or ["reset", fingerprint(bob)]
    assert browser.statuses(call, track(mark), ids=[push_id, new_id()]) == ["duplicate", "accepted"]
    assert browser.statuses(track("cart-end")) == ["accepted"]
    assert arrives(sandbox, bob, "+cart-end") == ["identify", f"+{mark}", "+cart-end"]
    assert not any(mark in record.raw for record in requests_about(sandbox, ann))


def test_a_log_in_that_comes_after_the_next_page_gave_it_up_counts(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob, push_id, mark = new_email("ann"), new_email("bob"), new_id(), tag()
    browser.logs_in(ann)
    cookies, s = dict(browser.cookies), browser.s
    assert browser.statuses(["reset", fingerprint(bob)], track(mark), ids=[push_id, new_id()]) == ["accepted", "held"]
    late = browser.request(login(bob, firstName="Bob"), ids=[push_id], cookies=cookies, s=s)
    assert outcomes(browser.adopt(late)) == ["accepted"]
    assert browser.statuses(track("cart-end")) == ["accepted"]
    assert arrives(sandbox, bob, "+cart-end") == ["identify", f"+{mark}", "+cart-end"]
    assert requests_about(sandbox, bob)[0].body["firstName"] == "Bob"
