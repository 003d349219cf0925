"""Identity tokens: which ones vouch for somebody, and what a refusal says."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import jwt
import pytest

from proxy.core.calls import Attributes
from proxy.core.reasons import Reason
from proxy.core.tokens import TokenCodec, TokenProblem, Vouched

OLD, NEW, OTHER = "o" * 32, "n" * 32, "x" * 32
NOW = 1_800_000_000.0


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


@pytest.mark.parametrize(
    "email", ["try..this..0511@docomo.ne.jp", "bob@company.local", "user@my_domain.com", "bob@localhost"]
)
def test_a_token_vouches_for_an_address_that_can_do_no_harm(email: str) -> None:
    assert TokenCodec([(None, NEW)]).verify(token(email=f"\u200b{email} "), NOW) == Vouched(
        email, Attributes(), issued=NOW
    )


def test_a_minted_token_is_believed() -> None:
    for keys in ([(None, NEW)], [("k1", NEW)], [("k1", OLD), (None, NEW)]):
        codec = TokenCodec(keys)
        minted = codec.mint("ada@example.com", NOW, timedelta(minutes=5), {"tags": ["a"]})
        assert codec.verify(minted, NOW) == Vouched("ada@example.com", Attributes(tags=("a",)), issued=NOW)


def signed(payload: str | bytes) -> str:
    """Returns a token that says this, which need not be JSON."""
    return jwt.PyJWS().encode(payload if isinstance(payload, bytes) else payload.encode(), NEW)


CLAIMS_IN_LATIN_1 = json.dumps(claims(contact={"firstName": "Jürgen"}), ensure_ascii=False).encode("latin-1")
DIGITS = json.dumps(claims(contact={"firstName": 7, "lastName": "L"})).replace(": 7,", f": {'7' * 5_000},")
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
    "with an address that breaks a header": (token(email="ada@example.com\r\nBcc: x"), Reason.BAD_TOKEN, "e-mail"),
    "with an address that turns": (token(email="a\u202eda@example.com"), Reason.BAD_TOKEN, "e-mail"),
    "expired": (token(exp=int(NOW) - 31), Reason.EXPIRED_TOKEN, "expired"),
    "good for too long": (token(exp=int(NOW) + 3_631), Reason.BAD_TOKEN, "hour"),
    "from the future": (token(iat=int(NOW) + 31), Reason.BAD_TOKEN, "the clock of the store"),
    "not valid yet": (token(nbf=int(NOW) + 31), Reason.BAD_TOKEN, "the clock of the store"),
    "with a text as expiry": (token(exp=f"{int(NOW)}"), Reason.BAD_TOKEN, ""),
    "with infinity as expiry": (token(exp=float("inf")), Reason.BAD_TOKEN, ""),
    "over the length": (
        token(contact={"customFields": {f"f{n}": "x" * 200 for n in range(50)}}),
        Reason.TOO_LONG,
        "8,192",
    ),
    "nested too deeply": (signed('{"contact":' + "[" * 3_000 + "]" * 3_000 + "}"), Reason.BAD_TOKEN, "deeply"),
    "in Latin-1": (signed(CLAIMS_IN_LATIN_1), Reason.BAD_TOKEN, "UTF-8"),
    "that says a list": (signed('["ada@example.com"]'), Reason.BAD_TOKEN, "object"),
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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (token(exp=int(NOW) - 31), "ada@example.com"),
        (token(email=" Ada@Example.com ", iat=int(NOW) + 31), "Ada@Example.com"),
        (token(exp=None), "ada@example.com"),
        (token(email=None), ""),
        (token(email="ada"), ""),
        (token(email=["ada@example.com"]), ""),
        (REFUSED_TOKENS["over the length"][0], "ada@example.com"),
        (REFUSED_TOKENS["nested too deeply"][0], ""),
        (REFUSED_TOKENS["in Latin-1"][0], ""),
        (REFUSED_TOKENS["that says a list"][0], ""),
        (token(OTHER, exp=int(NOW) - 31), None),
        (token(OTHER, contact={"firstName": "x" * 9_000}), None),
        (token(aud="other"), None),
        (UNSIGNED, None),
        ("a.b.c", None),
    ],
)
def test_a_refused_token_says_for_whom_it_was_signed_if_it_was(text: str, names: str | None) -> None:
    problem = TokenCodec([(None, NEW)]).verify(text, NOW)
    assert isinstance(problem, TokenProblem)
    assert problem.names == names


def test_a_number_of_thousands_of_digits_costs_nobody_their_log_in() -> None:
    vouched = TokenCodec([(None, NEW)]).verify(signed(DIGITS), NOW)
    assert isinstance(vouched, Vouched)
    assert vouched.attributes.fields == {"lastName": "L"}


@pytest.mark.parametrize("contact", [[], ["x"], "x", 7, {"tags": "x"}])
def test_a_contact_that_is_not_an_object_costs_nobody_their_log_in(contact: Any) -> None:
    vouched = TokenCodec([(None, NEW)]).verify(token(contact=contact), NOW)
    assert isinstance(vouched, Vouched)
    assert vouched.attributes == Attributes()
    assert bool(vouched.ignored) is (contact != [])


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
