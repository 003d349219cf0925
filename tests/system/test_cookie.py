"""The visitor cookie on the wire: which one a page gets, when it is renewed, and which are not believed."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from tests.support.server import LOCAL, SHOP, Browser, Server, aged, identify, login, new_email, outcomes, track
from tests.support.wire import attributes, one


def test_an_https_page_gets_a_host_cookie(server: Server) -> None:
    name, given_attributes = attributes(server.post([one(track("cart-1"))], origin=SHOP))
    assert name == "__Host-scq"
    assert given_attributes == {"secure", "httponly", "samesite=lax", "path=/", "max-age=31536000"}


def test_a_page_on_loopback_http_gets_a_plain_cookie(server: Server) -> None:
    for origin, site in ((LOCAL, ""), ("http://127.0.0.1:9", "same-origin")):
        name, given_attributes = attributes(server.post([one(track("cart-1"))], origin=origin, sec_fetch_site=site))
        assert name == "scq"
        assert given_attributes == {"httponly", "samesite=lax", "path=/", "max-age=31536000"}


def test_a_loopback_page_is_known_by_its_plain_cookie_and_an_https_page_is_not(server: Server) -> None:
    local = Browser(server, origin=LOCAL)
    local.logs_in(new_email())
    assert local.statuses(track("cart-1")) == ["accepted"]
    response = server.post([one(track("cart-1"))], cookie=f"scq={local.cookie}")
    assert outcomes(response.json()["results"]) == ["held"]


def test_a_cookie_names_no_domain_and_shows_no_expiry_of_a_session(server: Server) -> None:
    header = server.post([one(track("cart-1"))]).headers["set-cookie"].lower()
    assert "domain" not in header


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value[:-1],
        lambda value: value + "x",
        lambda value: "x" + value,
        lambda value: value.partition(".")[0],
        lambda value: value.partition(".")[0] + "." + "A" * 43,
        lambda value: value.upper(),
        lambda value: f'"{value}"x',
        lambda value: "",
        lambda value: "." * 50,
        lambda value: value * 40,
    ],
)
def test_a_forged_cookie_is_no_cookie(ann: Browser, spoil: Any) -> None:
    assert ann.cookie
    response = ann.request(track("cart-1"), identify(firstName="Eve"), cookies={"__Host-scq": spoil(ann.cookie)})
    assert outcomes(response.json()["results"]) == ["held", "unverified-identity"]


def test_a_cookie_name_that_occurs_twice_is_no_cookie(ann: Browser) -> None:
    mine = f"__Host-scq={ann.cookie}"
    for pair in (f"{mine}; {mine}", f"__Host-scq=planted; {mine}", f"{mine};__Host-scq=", f"{mine}; a=b; __Host-scq=x"):
        response = ann.server.post([one(track("cart-1"))], cookie=pair)
        assert outcomes(response.json()["results"]) == ["held"]
    body = {"v": 1, "pushes": [one(track("cart-1"))]}
    response = ann.server.send(body, (("Cookie", mine), ("Cookie", "__Host-scq=planted")))
    assert outcomes(response.json()["results"]) == ["held"]


def test_other_cookies_do_not_matter(ann: Browser) -> None:
    mine = f'_ga=1; scq=planted; __host-scq=x; x__Host-scq=y; broken; =; __Host-scq={ann.cookie}; z="q; r"'
    response = ann.server.post([one(track("cart-1"))], cookie=mine)
    assert outcomes(response.json()["results"]) == ["accepted"]


def test_a_cookie_is_renewed_only_when_older_than_7_days(ann: Browser) -> None:
    ann.push(track("cart-1"))
    assert ann.last is not None
    assert "set-cookie" not in ann.last.headers
    fresh = ann.cookie
    assert fresh
    ann.cookies["__Host-scq"] = aged(fresh, issued_days=6.9)
    ann.push(track("cart-1"))
    assert "set-cookie" not in ann.last.headers
    ann.cookies["__Host-scq"] = aged(fresh, issued_days=7.1)
    ann.push(track("cart-1"))
    assert attributes(ann.last)[0] == "__Host-scq"
    assert ann.statuses(track("cart-1")) == ["accepted"]
    assert "set-cookie" not in ann.last.headers


def test_an_expired_cookie_is_no_cookie_and_an_old_one_is(ann: Browser) -> None:
    assert ann.cookie
    expired = {"__Host-scq": aged(ann.cookie, issued_days=366)}
    assert outcomes(ann.request(track("cart-1"), cookies=expired).json()["results"]) == ["held"]
    old = {"__Host-scq": aged(ann.cookie, issued_days=364)}
    assert outcomes(ann.request(track("cart-1"), cookies=old).json()["results"]) == ["accepted"]


def test_a_clock_that_was_ahead_for_up_to_a_day_makes_nobody_anonymous(ann: Browser) -> None:
    assert ann.cookie
    hour = 1 / 24
    for hours in (4 / 60, 1, 23):
        ahead = {"__Host-scq": aged(ann.cookie, issued_days=-hours * hour)}
        assert outcomes(ann.request(track("cart-1"), cookies=ahead).json()["results"]) == ["accepted"]
    far = {"__Host-scq": aged(ann.cookie, issued_days=-25 * hour)}
    assert outcomes(ann.request(track("cart-1"), cookies=far).json()["results"]) == ["held"]


def test_a_new_cookie_is_set_only_when_the_visitor_changes(browser: Browser) -> None:
    seen = []
    for call in (
        track("cart-1"),
        track("cart-2"),
        login(email := new_email()),
        login(email),
        track("cart-3"),
        ["reset"],
    ):
        browser.push(call)
        assert browser.last is not None
        seen.append("set-cookie" in browser.last.headers)
    assert seen == [True, False, True, False, False, True]


def test_the_longest_address_fits_into_the_cookie(browser: Browser) -> None:
    tail = "@" + ".".join(["d" * 60] * 3) + ".com"
    email = new_email("l").partition("@")[0].ljust(64, "x") + tail
    assert len(email) > 250 or len(email.partition("@")[0]) == 64
    browser.logs_in(email)
    assert browser.statuses(track("cart-1")) == ["accepted"]


def test_an_address_beyond_ascii_fits_into_the_cookie(browser: Browser) -> None:
    browser.logs_in(f"änn.{secrets.token_hex(4)}@exämple.com")
    assert browser.statuses(track("cart-1")) == ["accepted"]
