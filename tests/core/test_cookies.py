"""The visitor cookie, and the probe of `scq-proxy check`: what is believed, and what is treated as if it were not there."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import pytest

from proxy.core.cookies import CookieCodec, ProbeCodec, cookie_name, read_cookie, set_cookie
from proxy.core.visitors import Trust, Visitor

OLD, NEW, OTHER = "o" * 32, "n" * 32, "x" * 32
NOW = 1_800_000_000.0
ADA = Visitor("visitor", "ada@example.com", Trust.VERIFIED, issued=int(NOW), verified=int(NOW))


def test_a_cookie_comes_back_as_it_was_signed() -> None:
    codec = CookieCodec([NEW])
    assert codec.decode(codec.encode(ADA), NOW) == ADA


def test_a_cookie_of_an_older_key_still_counts_and_the_last_key_signs() -> None:
    both = CookieCodec([OLD, NEW])
    assert both.decode(CookieCodec([OLD]).encode(ADA), NOW) == ADA
    assert CookieCodec([NEW]).decode(both.encode(ADA), NOW) == ADA


def forged_cookies() -> dict[str, str]:
    genuine = CookieCodec([NEW]).encode(ADA)
    payload, _, signature = genuine.rpartition(".")
    eve = (
        base64.urlsafe_b64encode(json.dumps({"id": "visitor", "email": "eve@example.com"}).encode())
        .decode()
        .rstrip("=")
    )
    return {
        "another key": CookieCodec([OTHER]).encode(ADA),
        "another purpose": ProbeCodec([NEW]).sign(NOW),
        "another payload": f"{eve}.{signature}",
        "cut off": genuine[:-1],
        "no signature": payload,
        "no payload": f".{signature}",
        "too long": genuine + "A" * 2_000,
        "not ascii": genuine + "é",
        "empty": "",
        "rubbish": "%00.%00",
    }


@pytest.mark.parametrize("kind", list(forged_cookies()))
def test_a_forged_cookie_is_no_cookie(kind: str) -> None:
    assert CookieCodec([NEW]).decode(forged_cookies()[kind], NOW) is None


@pytest.mark.parametrize(
    ("age", "believed"),
    [
        (timedelta(0), True),
        (timedelta(days=365), True),
        (timedelta(days=365, seconds=1), False),
        (timedelta(days=-1), True),
        (timedelta(days=-1, seconds=-1), False),
    ],
)
def test_a_cookie_counts_for_a_year_and_from_a_clock_a_day_ahead(age: timedelta, believed: bool) -> None:
    codec = CookieCodec([NEW])
    assert (codec.decode(codec.encode(ADA), NOW + age.total_seconds()) is not None) is believed


def test_a_cookie_from_the_future_is_no_proof_against_an_erasure_of_today() -> None:
    codec = CookieCodec([NEW])
    for minutes in (6, 60, 1_440):
        read = codec.decode(codec.encode(ADA), NOW - 60 * minutes)
        assert read is not None
        assert read.issued == NOW - 86_400
    near = codec.decode(codec.encode(ADA), NOW - 300)
    assert near == ADA


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("scq=a", "a"),
        ("x=1; scq=a; y=2", "a"),
        ("scq=a; scq=a", None),
        ("scq=a; scq=b", None),
        ("xscq=a", None),
        ("", None),
        ("scq", ""),
    ],
)
def test_a_cookie_that_occurs_twice_is_not_believed(header: str, value: str | None) -> None:
    assert read_cookie(header, "scq") == value


def test_the_cookie_is_host_bound_and_secure_on_https_and_plain_on_loopback_http() -> None:
    secure = set_cookie(cookie_name("https://www.example.com"), "v")
    assert secure == "__Host-scq=v; Path=/; Max-Age=31536000; Secure; HttpOnly; SameSite=Lax"
    assert (
        set_cookie(cookie_name("http://127.0.0.1:8000"), "v")
        == "scq=v; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax"
    )


def test_a_probe_proves_the_signing_key_for_a_few_minutes() -> None:
    probes = ProbeCodec([NEW])
    assert probes.holds(probes.sign(NOW), NOW + 299)
    assert not probes.holds(probes.sign(NOW), NOW + 301)
    assert not probes.holds(ProbeCodec([OTHER]).sign(NOW), NOW)
    assert not probes.holds(CookieCodec([NEW]).encode(ADA), NOW)
    assert not probes.holds("", NOW)
