"""What an e-mail address is, and when two of them are one person."""

from __future__ import annotations

import pytest

from proxy.core.emails import clean_address, lane_key


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ada@example.com", "ada@example.com"),
        (" Ada.L+x@Example.com\n", "Ada.L+x@Example.com"),
        ("ada@shop.test", "ada@shop.test"),
        ("ü@exämple.de", "ü@exämple.de"),
        ("ada", None),
        ("ada@localhost", None),
        ("ada@example.com,bob@example.com", None),
        ("Ada <ada@example.com>", None),
        ("ada@example.com\r\nBcc: x@example.com", None),
        ("a" * 65 + "@example.com", None),
    ],
)
def test_an_address_is_checked_by_its_syntax_and_kept_as_given(text: str, address: str | None) -> None:
    assert clean_address(text) == address


def test_two_spellings_of_an_address_are_one_person() -> None:
    assert lane_key("Ada@Example.COM") == lane_key("ada@example.com")
    assert lane_key("straße@example.com") != lane_key("strasse@example.com")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ann@example.com", "ANN@Example.COM", True),
        ("änn@example.com", "ÄNN@example.com", True),
        ("ann@bücher.example", "ann@xn--bcher-kva.example", True),
        ("ann@bücher.example", "ann@\uff42ücher.example", True),
        ("ikate@example.com", "\u0130kate@example.com", False),
    ],
)
def test_a_person_is_known_in_any_spelling_and_nobody_can_be_spelled_like_another(
    one: str, other: str, same: bool
) -> None:
    assert (lane_key(one) == lane_key(other)) is same


TOO_LONG = ["a" * 400 + "@example.com", "a@" + ".".join(["xn--bcher-kva"] * 5) + ".example"]


@pytest.mark.parametrize("text", [*TOO_LONG, "\u212aate@example.com", "kate@\u212aexample.com"])
def test_an_address_that_takes_long_to_judge_or_apes_another_is_none(text: str) -> None:
    assert clean_address(text) is None
