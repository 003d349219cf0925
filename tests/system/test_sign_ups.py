"""What one stranger with a newsletter form, or many, can do to the mailing list: sign-ups per client and per hour, traces.

A real server with the sandbox behind it. Time is not turned: a limit that lets two go at once and the third in half an hour shows by what has
arrived once a later push of somebody else has.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from proxy.errors import RequestError
from proxy.sandbox.api import Sandbox
from proxy.web.access import require_host
from proxy.web.application import Application
from tests.support.server import (
    Browser,
    Server,
    arrived,
    arrives,
    identify,
    login,
    new_email,
    new_id,
    requests_about,
    running,
    token,
    track,
)

OFFICE, HOME = "198.51.100.1", "203.0.113.7"
RESET = ["reset"]


# --- The names under which the proxy answers

NAMED = frozenset({"www.example.com", "localhost", "[::1]", "127.0.0.1"})


def host_headers(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"accept", b"*/*"), *((b"host", value.encode("latin-1")) for value in values)]


@pytest.mark.parametrize(
    "host",
    [
        *("www.example.com", "www.example.com:443", "www.example.com:", "WWW.Example.COM", "www.example.com."),
        *("www.example.com.:8443", "localhost:8000", "[::1]", "[::1]:8000", "127.0.0.1:80"),
    ],
)
def test_a_listed_name_is_served_whatever_its_port_and_case(host: str) -> None:
    require_host(host_headers(host), NAMED)


@pytest.mark.parametrize(
    "hosts",
    [
        *([], [""], [":443"], ["."], ["evil.example"], ["www.example.com.evil.example"], ["evil-www.example.com"]),
        *(["example.com"], ["a.www.example.com"], ["www.example.com.."], ["www.example.com:80:80"]),
        *(["www.example.com:x"], ["www.example.com/"], ["user@www.example.com"], ["www.example.com\t"]),
        *(["www.example.com,evil.example"], ["www\xa0.example.com"], ["www.example.com\x00"], ["::1"], ["[::1"]),
        *(["www.example.com", "www.example.com"], ["www.example.com", "evil.example"]),
    ],
    ids=repr,
)
def test_any_other_name_or_none_or_two_are_not_served(hosts: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        require_host(host_headers(*hosts), NAMED)
    assert (refused.value.status, refused.value.code) == (421, "unknown-host")


def test_without_names_there_is_no_guard() -> None:
    assert not Application(nullcontext, []).user_middleware
    assert Application(nullcontext, NAMED).user_middleware


# --- A real server


@pytest.fixture(scope="module")
def frugal(upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Three addresses an hour for each client, two of them at once; which client is said in X-Forwarded-For, as behind a web server."""
    more = {"SCQ_IDENTIFY": "asserted", "SCQ_SIGNUPS_PER_IP": "3"}
    with running(tmp_path_factory.mktemp("frugal"), upstream, **more) as started:
        yield started


def from_office(server: Server) -> Browser:
    """A client address of its own for each test."""
    return Browser(server, x_forwarded_for=f"198.51.100.{next_number()}")


_numbers = iter(range(1, 255))


def next_number() -> int:
    return next(_numbers)


def typed(browser: Browser, *emails: str) -> list[str]:
    """What becomes of addresses that are typed one after the other, each in a browser session of its own at the same client address."""
    return [
        Browser(browser.server, **browser.headers).statuses(identify(email=email, tags=["newsletter"]))[0]
        for email in emails
    ]


def test_what_a_client_types_beyond_its_number_waits_and_what_another_types_does_not(
    frugal: Server, sandbox: Sandbox
) -> None:
    office, home = from_office(frugal), from_office(frugal)
    emails = [new_email() for _ in range(4)]
    assert typed(office, *emails) == ["accepted"] * 4
    for email in emails[:2]:
        arrives(sandbox, email, "+newsletter")
    settle(frugal, sandbox)
    assert not requests_about(sandbox, emails[2])
    assert typed(home, emails[3]) == ["accepted"]
    arrives(sandbox, emails[3], "+newsletter")
    settle(frugal, sandbox)
    assert not requests_about(sandbox, emails[2])


def test_over_its_number_a_clients_own_address_and_log_ins_go_on(frugal: Server, sandbox: Sandbox) -> None:
    office, emails, ann = from_office(frugal), [new_email() for _ in range(3)], new_email("ann")
    reader = Browser(frugal, **office.headers)
    assert reader.statuses(identify(email=emails[0], tags=["newsletter"])) == ["accepted"]
    assert typed(office, *emails) == ["accepted"] * 3
    arrives(sandbox, emails[0], "+newsletter")
    assert reader.statuses(identify(firstName="Ann"), track("typed-1")) == ["accepted", "accepted"]
    arrives(sandbox, emails[0], "+typed-1")
    assert office.statuses(login(ann), track("cart-1")) == ["accepted", "accepted"], "a token is not an assertion"
    assert arrives(sandbox, ann, "+cart-1")[:2] == ["identify", "+cart-1"]


def test_the_neighbours_in_one_ipv6_network_count_as_one_client(frugal: Server, sandbox: Sandbox) -> None:
    network = f"2001:db8:{next_number():x}:1"
    browsers = [Browser(frugal, x_forwarded_for=f"{network}::{number}") for number in range(1, 5)]
    emails = [new_email() for _ in browsers]
    for browser, email in zip(browsers, emails, strict=True):
        assert browser.statuses(identify(email=email, tags=["newsletter"])) == ["accepted"]
    for email in emails[:2]:
        arrives(sandbox, email, "+newsletter")
    settle(frugal, sandbox)
    assert not any(requests_about(sandbox, email) for email in emails[2:])


# --- The site as a whole: two at once, the next half an hour later


@pytest.fixture
def slow(upstream: str, tmp_path: Path) -> Iterator[Server]:
    more = {"SCQ_IDENTIFY": "asserted", "SCQ_SIGNUPS_PER_IP": "0", "SCQ_SIGNUPS_PER_HOUR": "4"}
    with running(tmp_path, upstream, **more) as started:
        yield started


def use_up(server: Server, sandbox: Sandbox) -> None:
    """The two sign-ups that go at once; they have arrived when this returns."""
    for email in (new_email("first"), new_email("second")):
        assert Browser(server).statuses(identify(email=email, tags=["newsletter"])) == ["accepted"]
        arrives(sandbox, email, "+newsletter")


def settle(server: Server, sandbox: Sandbox) -> None:
    """By the time that a log-in made now has arrived, whatever could go at once has gone as well."""
    email = new_email("later")
    Browser(server).push(login(email), track("cart-end"))
    arrives(sandbox, email, "+cart-end")
    # One more after that: lanes that became ready in the same moment may still be on their way.
    Browser(server).push(login(other := new_email("later")), track("cart-end"))
    arrives(sandbox, other, "+cart-end")


def test_over_the_hourly_number_sign_ups_are_accepted_and_wait(slow: Server, sandbox: Sandbox) -> None:
    emails = [new_email("typed") for _ in range(6)]
    answers = [Browser(slow).push(identify(email=email, tags=["newsletter"]))[0] for email in emails]
    assert [answer["status"] for answer in answers] == ["accepted"] * 6
    assert len({frozenset(answer) for answer in answers}) == 1, "the answer does not show the wait"
    for email in emails[:2]:
        arrives(sandbox, email, "+newsletter")
    settle(slow, sandbox)
    assert [bool(sandbox.contacts.get(email)) for email in emails] == [True, True, False, False, False, False]


def test_nothing_that_a_stranger_can_push_brings_a_waiting_sign_up_forward(slow: Server, sandbox: Sandbox) -> None:
    use_up(slow, sandbox)
    waiting = new_email("waiting")
    ann = Browser(slow)
    assert ann.statuses(track("newsletter"), identify(email=waiting), track("typed-1")) == [
        "held",
        "accepted",
        "accepted",
    ]
    assert ann.statuses(track("typed-2"), identify(firstName="Ann"), identify(email=waiting)) == ["accepted"] * 3
    assert Browser(slow).statuses(identify(email=waiting.upper()), track("typed-3")) == ["accepted"] * 2
    late = Browser(slow)
    late.s = ann.s
    assert late.statuses(track("typed-4")) == ["held"]
    assert ann.statuses(track("typed-5")) == ["accepted"]
    settle(slow, sandbox)
    assert not requests_about(sandbox, waiting)


def test_a_log_in_of_a_waiting_address_goes_at_once_and_takes_what_waited_along_in_order(
    slow: Server, sandbox: Sandbox
) -> None:
    use_up(slow, sandbox)
    ann = new_email("ann")
    assert Browser(slow).statuses(identify(email=ann, tags=["newsletter"]), track("typed-1")) == ["accepted"] * 2
    settle(slow, sandbox)
    assert not requests_about(sandbox, ann)
    assert Browser(slow).statuses(login(ann, firstName="Ann"), track("cart-1")) == ["accepted"] * 2
    tags = [event for event in arrives(sandbox, ann, "+cart-1") if event != "identify"]
    assert tags == ["+newsletter", "+typed-1", "+cart-1"]


def test_a_known_contacts_assertion_is_never_delayed(slow: Server, sandbox: Sandbox) -> None:
    ann = new_email("ann")
    Browser(slow).push(login(ann), track("cart-1"))
    arrives(sandbox, ann, "+cart-1")
    use_up(slow, sandbox)
    assert Browser(slow).statuses(identify(email=ann, tags=["newsletter"])) == ["accepted"]
    arrives(sandbox, ann, "+newsletter")


def test_a_visitor_who_identifies_on_every_page_uses_up_nobodys_turn(slow: Server, sandbox: Sandbox) -> None:
    reader, newcomer = Browser(slow), new_email("newcomer")
    reader.push(identify(email=(email := new_email("reader"))))
    for page in range(5):
        assert reader.statuses(identify(email=email, firstName=f"Page {page}")) == ["accepted"]
        arrives(sandbox, email, "identify")
        reader.push(track(f"typed-{page}"))
        arrives(sandbox, email, f"+typed-{page}")
    assert Browser(slow).statuses(identify(email=newcomer, tags=["newsletter"])) == ["accepted"]
    arrives(sandbox, newcomer, "+newsletter")


def test_what_was_used_up_and_what_waits_survive_kill_9(slow: Server, sandbox: Sandbox) -> None:
    use_up(slow, sandbox)
    before, after = new_email("before"), new_email("after")
    assert Browser(slow).statuses(identify(email=before)) == ["accepted"]
    slow.kill()
    slow.start()
    assert Browser(slow).statuses(identify(email=after)) == ["accepted"]
    settle(slow, sandbox)
    assert not requests_about(sandbox, before)
    assert not requests_about(sandbox, after)
    Browser(slow).push(identify(token=token(before)))
    assert arrives(sandbox, before, "identify")[0] == "identify", "and it is not lost"


# --- What log-outs of nobody leave behind


def rows(server: Server) -> int:
    """What the stopped server's store remembers of ids and visitors."""
    with closing(sqlite3.connect(f"file:{server.store}?mode=ro", uri=True)) as store:
        return sum(store.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("seen", "visitors"))  # noqa: S608 - two constants


def test_log_outs_of_nobody_leave_a_bounded_trace(upstream: str, tmp_path: Path) -> None:
    with running(tmp_path, upstream, SCQ_HOLD_MB="1", SCQ_IDENTIFY="asserted") as server:
        for _ in range(10):
            nobody = Browser(server)
            assert nobody.statuses(*[RESET] * 40) == ["accepted"] * 40
            assert nobody.statuses(["consent", "denied"], ["consent", "granted"]) == ["accepted"] * 2
        assert server.stop() == 0
        # An eighth of one MB at 500 bytes a trace over nine days makes two or three at once; one leaves its id and up to two visitors.
        assert 0 < rows(server) <= 3 * 4


def test_a_known_visitors_log_out_counts_however_many_others_log_out(upstream: str, tmp_path: Path) -> None:
    with running(tmp_path, upstream, SCQ_HOLD_MB="1") as server:
        for _ in range(3):
            Browser(server).push(*[RESET] * 40)
        ann, push_id = Browser(server), new_id()
        ann.logs_in(new_email())
        before = dict(ann.cookies)
        assert ann.statuses(RESET, ids=[push_id]) == ["accepted"]
        ann.cookies = before
        assert ann.statuses(track("cart-1")) == ["held"], "the old cookie is retired"
        assert ann.statuses(RESET, ids=[push_id]) == ["duplicate"]

        bob = Browser(server)
        bob.logs_in(new_email())
        tab = Browser(server)  # of the same browser, whose cookie has not reached it yet
        tab.s = bob.s
        assert tab.statuses(RESET) == ["accepted"]
        assert [result["reason"] for result in bob.push(track("cart-1"))] == ["identity-changed"]
        bob.s = tab.s
        assert bob.statuses(track("cart-1")) == ["held"]


def test_what_nobody_does_after_the_share_is_used_up_still_works(
    sandbox: Sandbox, upstream: str, tmp_path: Path
) -> None:
    with running(tmp_path, upstream, SCQ_HOLD_MB="1") as server:
        Browser(server).push(*[RESET] * 40)
        browser, ann = Browser(server), new_email()
        old = browser.s
        assert browser.statuses(RESET, track("cart-1")) == ["accepted", "held"]
        assert browser.s != old
        assert browser.statuses(["consent", "denied"], track("cart-2")) == ["accepted", "consent-denied"]
        assert browser.statuses(["consent", "granted"], login(ann), track("cart-3")) == ["accepted"] * 3
        arrives(sandbox, ann, "+cart-3")
        assert "+cart-2" not in arrived(sandbox, ann)
