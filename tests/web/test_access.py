"""Origins, client addresses and rates."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_network

import pytest

from proxy.errors import RequestError
from proxy.web.access import ClientAddresses, RateLimit, require_origin, scan

LISTED = frozenset({"https://www.example.com", "http://localhost:3000"})


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]


@pytest.mark.parametrize(
    ("origin", "site", "listed"),
    [
        ("https://www.example.com", None, True),
        ("https://www.example.com", "same-site", True),
        ("https://www.example.com", "same-origin", True),
        ("http://localhost:3000", None, True),
        ("https://other.example.com", "same-origin", False),
        ("http://127.0.0.1:8000", "same-origin", False),
        ("http://[::1]:8000", "same-origin", False),
    ],
)
def test_a_page_of_the_site_may_push(origin: str, site: str | None, listed: bool) -> None:
    given = headers(origin=origin) + (headers(sec_fetch_site=site) if site else [])
    assert require_origin(scan(given), LISTED) == origin
    assert (scan(given).origin in LISTED) is listed


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (None, None),
        (None, "same-origin"),
        ("null", None),
        ("null", "same-origin"),
        ("https://evil.example", None),
        ("https://www.example.com.evil.example", None),
        ("https://www.example.com:8443", None),
        ("http://www.example.com", None),
        ("http://www.example.com", "same-origin"),
        ("https://www.example.com/", None),
        ("HTTPS://WWW.EXAMPLE.COM", None),
        ("https://www.example.com", "cross-site"),
        ("https://other.example.com", "same-site"),
        ("https://[", "same-origin"),
        ("", "same-origin"),
    ],
)
def test_a_page_of_elsewhere_may_not(origin: str | None, site: str | None) -> None:
    given = (headers(origin=origin) if origin is not None else []) + (headers(sec_fetch_site=site) if site else [])
    with pytest.raises(RequestError) as refused:
        require_origin(scan(given), LISTED)
    assert (refused.value.status, refused.value.code) == (403, "origin-not-allowed")


def test_two_origins_are_none() -> None:
    with pytest.raises(RequestError):
        require_origin(scan(headers(origin="https://www.example.com") * 2), LISTED)


TRUSTED = ClientAddresses([ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"), ip_network("::1")])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "1.2.3.4, 198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "1.2.3.4, 198.51.100.1, 10.0.0.9", "198.51.100.1"),
        ("127.0.0.1", "rubbish, 198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "198.51.100.1, rubbish", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("::1", "[2001:db8:1:2:3:4:5:6]:4711", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "", "203.0.113.7"),
        ("64:ff9b::203.0.113.7", "", "203.0.113.7"),
        ("::1", "64:ff9b::203.0.113.7", "203.0.113.7"),
        ("2002:cb00:7107:9::1", "", "203.0.113.7"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "", "192.0.2.45"),
        ("64:ff9b::127.0.0.1", "198.51.100.1", "127.0.0.1"),
        ("::ffff:127.0.0.1", "198.51.100.1", "198.51.100.1"),
        (None, "198.51.100.1", "198.51.100.1"),
        (None, "", "unknown"),
        ("testclient", "", "unknown"),
    ],
)
def test_the_client_is_whoever_stands_before_the_trusted_proxies(
    peer: str | None, forwarded_for: str, address: str
) -> None:
    assert TRUSTED.of(peer, forwarded_for) == address


def test_an_address_that_pushes_too_fast_waits_and_delays_nobody_else() -> None:
    rate = RateLimit(2)
    rate.require("a", 0.0)
    rate.spend("a", 50, 0.0)
    with pytest.raises(RequestError) as refused:
        rate.require("a", 1.0)
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "too-fast", 10)
    rate.require("b", 1.0)
    rate.require("a", 10.5)


def test_what_was_let_in_at_once_costs_its_address_no_more_than_some_seconds() -> None:
    rate = RateLimit(1)
    rate.spend("a", 5_000, 0.0)
    with pytest.raises(RequestError) as refused:
        rate.require("a", 0.0)
    assert refused.value.retry_after == 11


def test_no_rate_is_no_limit() -> None:
    rate = RateLimit(0)
    rate.spend("a", 1_000_000, 0.0)
    rate.require("a", 0.0)


def test_what_was_let_in_together_is_not_taken_together() -> None:
    """Bodies whose last byte is held back pass the first look at the rate together, each with a hundred pushes."""
    rate = RateLimit(50)
    for _ in range(40):
        rate.require("a", 0.0)
        rate.spend("a", 1, 0.0)
    taken = 0
    for _ in range(40):
        with suppress(RequestError):
            rate.require_paid("a", 0.0)
            rate.spend("a", 99, 0.0)
            taken += 1
    assert taken == 1


def test_memory_for_addresses_is_bounded_and_a_fast_one_is_not_forgotten_soon() -> None:
    rate = RateLimit(1)
    rate.spend("old", 50, 0.0)
    rate.spend("fast", 50, 0.0)
    for number in range(99_999):
        rate.spend(f"address {number}", 1, 0.0)
    with pytest.raises(RequestError):
        rate.require("fast", 1.0)
    rate.require("old", 1.0)  # the least recent is forgotten, and it alone
    assert len(rate._buckets) == 100_000
