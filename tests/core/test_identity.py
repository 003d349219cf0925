"""Cookies and tokens: what is believed, and what is treated as if it were not there."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest

from proxy.core.calls import Attributes
from proxy.core.cookies import CookieCodec, ProbeCodec, cookie_name, read_cookie, set_cookie
from proxy.core.reasons import Reason
from proxy.core.tokens import TokenCodec, TokenProblem, Vouched
from proxy.core.visitors import Trust, Visitor, derived_visitor, next_session

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
        (timedelta(minutes=-5), True),
        (timedelta(minutes=-5, seconds=-1), False),
    ],
)
def test_a_cookie_counts_for_a_year_and_from_a_clock_five_minutes_ahead(age: timedelta, believed: bool) -> None:
    codec = CookieCodec([NEW])
    assert (codec.decode(codec.encode(ADA), NOW + age.total_seconds()) is not None) is believed


def test_a_verification_fades_to_an_assertion() -> None:
    month = timedelta(days=30)
    assert ADA.trust_at(NOW + month.total_seconds(), month) is Trust.VERIFIED
    assert ADA.trust_at(NOW + month.total_seconds() + 1, month) is Trust.ASSERTED


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


def test_visitor_ids_are_derived_per_site_and_per_purpose() -> None:
    assert derived_visitor("s", b"a") == derived_visitor("s", b"a")
    assert (
        len(
            {
                derived_visitor("s", b"a"),
                derived_visitor("s", b"b"),
                derived_visitor("t", b"a"),
                next_session("s", b"a"),
            }
        )
        == 4
    )


def claims(**changes: Any) -> dict[str, Any]:
    made = {"email": "ada@example.com", "iat": int(NOW), "exp": int(NOW) + 600, "aud": "scq"} | changes
    return {name: value for name, value in made.items() if value is not None}


def token(key: str = NEW, *, kid: str | None = None, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def test_a_token_vouches_for_its_address_and_contact() -> None:
    contact = {"firstName": "Ada", "customFields": {"Plan": "pro"}, "tags": ["paid user"], "lists": ["x"]}
    assert TokenCodec([(None, NEW)]).verify(token(contact=contact), NOW) == Vouched(
        "ada@example.com", Attributes({"firstName": "Ada"}, {"Plan": "pro"}, ("paid user",)), ("contact.lists",), NOW
    )


def test_a_minted_token_is_believed() -> None:
    for keys in ([(None, NEW)], [("k1", NEW)], [("k1", OLD), (None, NEW)]):
        codec = TokenCodec(keys)
        minted = codec.mint("ada@example.com", NOW, timedelta(minutes=5), {"tags": ["a"]})
        assert codec.verify(minted, NOW) == Vouched("ada@example.com", Attributes(tags=("a",)), issued=NOW)


UNSIGNED = jwt.encode(claims(), None, algorithm="none")
REFUSED_TOKENS: dict[str, tuple[str, Reason, str]] = {
    "of another key": (token(OTHER), Reason.BAD_TOKEN, "signature"),
    "unsigned": (UNSIGNED, Reason.BAD_TOKEN, "HS256"),
    "of another algorithm": (token("h" * 64, algorithm="HS512"), Reason.BAD_TOKEN, "HS256"),
    "for another audience": (token(aud="other"), Reason.BAD_TOKEN, "aud"),
    "without audience": (token(aud=None), Reason.BAD_TOKEN, "aud"),
    "without an expiry": (token(exp=None), Reason.BAD_TOKEN, "exp"),
    "without an issue time": (token(iat=None), Reason.BAD_TOKEN, "iat"),
    "without an address": (token(email=None), Reason.BAD_TOKEN, "email"),
    "with a bad address": (token(email="ada"), Reason.BAD_TOKEN, "e-mail"),
    "expired": (token(exp=int(NOW) - 31), Reason.EXPIRED_TOKEN, "expired"),
    "good for too long": (token(exp=int(NOW) + 3_631), Reason.BAD_TOKEN, "hour"),
    "from the future": (token(iat=int(NOW) + 31), Reason.BAD_TOKEN, "clocks"),
    "not valid yet": (token(nbf=int(NOW) + 31), Reason.BAD_TOKEN, "clocks"),
    "with a text as expiry": (token(exp=f"{int(NOW)}"), Reason.BAD_TOKEN, ""),
    "with infinity as expiry": (token(exp=float("inf")), Reason.BAD_TOKEN, ""),
    "with a contact that is none": (token(contact=["x"]), Reason.BAD_TOKEN, "contact"),
    "with a bad contact": (token(contact={"tags": "x"}), Reason.BAD_TOKEN, "contact"),
    "that is none": ("a.b.c", Reason.BAD_TOKEN, "JWT"),
    "that is empty": ("", Reason.BAD_TOKEN, "JWT"),
    "of an unknown kid": (token(NEW, kid="unknown"), Reason.BAD_TOKEN, ""),
}


@pytest.mark.parametrize("kind", list(REFUSED_TOKENS))
def test_a_token_is_refused(kind: str) -> None:
    text, reason, detail = REFUSED_TOKENS[kind]
    keys = [("k1", NEW)] if "kid" in kind else [(None, NEW)]
    problem = TokenCodec(keys).verify(text, NOW)
    assert isinstance(problem, TokenProblem)
    assert problem.reason is reason
    assert detail in problem.detail
    assert "ada" not in problem.detail


def test_thirty_seconds_of_leeway_are_given() -> None:
    codec = TokenCodec([(None, NEW)])
    assert isinstance(codec.verify(token(exp=int(NOW) - 30), NOW), Vouched)
    assert isinstance(codec.verify(token(exp=int(NOW) + 3_630), NOW), Vouched)
    assert isinstance(codec.verify(token(iat=int(NOW) + 30), NOW), Vouched)


def test_a_kid_names_the_key_and_an_unknown_one_falls_back_to_those_without() -> None:
    codec = TokenCodec([("k1", OLD), (None, NEW)])
    assert isinstance(codec.verify(token(OLD, kid="k1"), NOW), Vouched)
    assert isinstance(codec.verify(token(NEW, kid="unknown"), NOW), Vouched)
    assert isinstance(codec.verify(token(NEW, kid="k1"), NOW), TokenProblem)
    assert isinstance(codec.verify(token(OLD, kid="unknown"), NOW), TokenProblem)
    assert isinstance(codec.verify(token(OLD), NOW), Vouched)
    assert isinstance(codec.verify(token(NEW), NOW), Vouched)


def test_a_probe_proves_the_signing_key_for_a_few_minutes() -> None:
    probes = ProbeCodec([NEW])
    assert probes.holds(probes.sign(NOW), NOW + 299)
    assert not probes.holds(probes.sign(NOW), NOW + 301)
    assert not probes.holds(ProbeCodec([OTHER]).sign(NOW), NOW)
    assert not probes.holds(CookieCodec([NEW]).encode(ADA), NOW)
    assert not probes.holds("", NOW)
