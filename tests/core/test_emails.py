"""E-mail addresses, typed and vouched for: which texts are one, and which two of them are one person."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from proxy.config.types import Dialect, Secret
from proxy.core.calls import Track
from proxy.core.cookies import CookieCodec
from proxy.core.emails import MAX_ADDRESS, carriable_address, clean_address, holds_address, lane_key
from proxy.core.visitors import Trust, Visitor
from proxy.delivery.sendx import Upstream

INVISIBLE = [" ", "\t", "\r\n", "\x00", "\x7f", "\x85", "\xa0", "\xad", "\u3000", "\ufeff", "\u2028", "\u205f"]
INVISIBLE += [chr(code) for code in (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A))]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ada@example.com", "ada@example.com"),
        (" Ada.L+x@Example.com\n", "Ada.L+x@Example.com"),
        ("ada@shop.test", "ada@shop.test"),
        ("ü@exämple.de", "ü@exämple.de"),
        ("ada@xn--exmple-cua.de", "ada@xn--exmple-cua.de"),
        ("ada@例え.テスト", "ada@例え.テスト"),
        ("ada@exämple.test", "ada@exämple.test"),
        ("ada", None),
        ("", None),
        ("ada@localhost", None),
        ("ada@exämple", None),
        ("ada@exämple.local", None),
        ("ada@exä_mple.de", None),
        ("ada@-exämple.de", None),
        ("ada@exämple..de", None),
        ("ada@xn--exmple-cua-.de", None),
        ("ä..a@exämple.de", None),
        ("ada@example.com,bob@example.com", None),
        ("Ada <ada@example.com>", None),
        ("Ada <ada@exämple.com>", None),
        ('"ada@"@exämple.com', None),
        ("ada@example.com\r\nBcc: x@example.com", None),
        ("a" * 65 + "@example.com", None),
        ("try..this..0511@docomo.ne.jp", None),
    ],
)
def test_a_typed_address_is_checked_by_its_syntax_and_kept_as_given(text: str, address: str | None) -> None:
    assert clean_address(text) == address


VOUCHED = [
    "ada@example.com",
    "try..this..0511@docomo.ne.jp",
    "foo.@docomo.ne.jp",
    ".foo@ezweb.ne.jp",
    "bob@company.local",
    "user@my_domain.com",
    "bob@localhost",
    "ü@exämple.de",
    "o'neil%x/y?z=1&b#c{d}|~`^$!*@example.com",
    "用户@例子.广告",
    "a" * 100 + "@" + "b" * 219,
]


@pytest.mark.parametrize("address", VOUCHED)
def test_a_vouched_address_is_taken_if_it_can_do_no_harm(address: str) -> None:
    assert carriable_address(address) == address


@pytest.mark.parametrize("mark", INVISIBLE)
def test_what_is_invisible_at_the_ends_is_trimmed_and_inside_it_is_refused(mark: str) -> None:
    for take in (clean_address, carriable_address):
        assert take(f"{mark}ada@example.com{mark}{mark}") == "ada@example.com"
        assert take(f"ada{mark}l@example.com") is None
        assert take(f"ada@exa{mark}mple.com") is None


HARMFUL = [
    *["", "@", "ada", "@example.com", "ada@", "ada@b@example.com", "ada@example.com,bob@example.com"],
    *[f"a{special}b@example.com" for special in '()<>[]:;,\\"'],
    *["a@[127.0.0.1]", "Ada <ada@example.com>", "a\ud83d@example.com", "a@b\ufffe", "a@b\U0001ffff", "a@\ufdd0"],
    *["\u212aate@example.com", "kate@\u212aexample.com", "a\u037eb@example.com"],
    *["a" * 310 + "@example.com", "ü" * 160 + "@b"],
]


@pytest.mark.parametrize("text", HARMFUL)
def test_a_vouched_address_that_could_break_something_on_its_way_is_not_taken(text: str) -> None:
    assert carriable_address(text) is None
    assert clean_address(text) is None


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
        ("änn@my_domain.com", "ÄNN@My_Domain.com", True),
        ("ikate@example.com", "\u0130kate@example.com", False),
        ("foo.@docomo.ne.jp", "foo@docomo.ne.jp", False),
        ("foo..bar@docomo.ne.jp", "foo.bar@docomo.ne.jp", False),
        ("bob@localhost", "bob@localhost.", False),
    ],
)
def test_a_person_is_known_in_any_spelling_and_nobody_can_be_spelled_like_another(
    one: str, other: str, same: bool
) -> None:
    assert (lane_key(one) == lane_key(other)) is same


characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from("aAbB.-_+äÄßıİſKﬀ\u0301\uff41。１")
domains = st.text(characters, min_size=1, max_size=12) | st.sampled_from(
    [
        "bücher.de",
        "BÜCHER.de",
        "xn--bcher-kva.de",
        "my_domain.com",
        "localhost",
        "münchen.my_domain.com",
        "\u05d0.com",
        "1.\u05d0",
    ]
)
addresses = st.builds("{}@{}".format, st.text(characters, min_size=1, max_size=12), domains)


def in_dns(domain: str) -> str:
    """The form of a domain in which DNS compares it, by Python's own IDNA; as given where that has none."""
    try:
        return unicodedata.normalize("NFKC", domain).encode("idna").decode().lower()
    except UnicodeError:
        return domain


@given(addresses, addresses)
@example("ann@bücher.de", "ANN@xn--bcher-kva.de")
@example("\u212aate@x.de", "kate@x.de")
@example("ann@\uff41.de", "ann@a.de")
def test_no_two_people_share_a_key_but_by_case_or_form_of_the_domain(one: str, other: str) -> None:
    first, second = carriable_address(one), carriable_address(other)
    assume(first is not None and second is not None)
    assert first is not None
    assert second is not None
    if lane_key(first) == lane_key(second):
        (local, _, domain), (local2, _, domain2) = first.rpartition("@"), second.rpartition("@")
        assert unicodedata.normalize("NFC", local).lower() == unicodedata.normalize("NFC", local2).lower()
        assert local.isascii() == local2.isascii()
        lowered, lowered2 = (unicodedata.normalize("NFKC", each).casefold() for each in (domain, domain2))
        assert lowered == lowered2 or in_dns(domain) == in_dns(domain2)


@given(addresses | st.text(max_size=40))
@example("ä@" + "xn--" * 60)
@example("a@" + "١" * 63 + ".de")
def test_an_address_that_is_taken_survives_header_url_and_lane(text: str) -> None:
    address = carriable_address(text)
    if address is None:
        return
    assert carriable_address(address) == address
    assert address in text
    assert len(address.encode()) <= MAX_ADDRESS
    assert lane_key(address) == lane_key(address.swapcase()) or not address.isascii()
    assert lane_key(address).count("@") == 1
    request = Upstream(Dialect.LEGACY, "https://x", Secret("k" * 32), "t").request_for(address, Track(("a",)))
    assert parse_qs(urlsplit(request.url).query, strict_parsing=True)["email"] == [address]
    assert re.fullmatch(r"[!-~]+", request.url)
    codec, visitor = CookieCodec(["k" * 32]), Visitor("v" * 22, address, Trust.VERIFIED, issued=1)
    assert codec.decode(codec.encode(visitor), 2) == visitor


@pytest.mark.parametrize("address", ["a" * 310 + "@b.example", "\U0001f600" * 79 + "@b.c", "ü" * 150 + "@" + "ü" * 9])
def test_the_longest_address_fits_into_the_cookie(address: str) -> None:
    assert carriable_address(address) == address
    codec = CookieCodec(["k" * 64])
    visitor = Visitor("v" * 64, address, Trust.VERIFIED, verified=2_000_000_000, issued=2_000_000_000)
    assert codec.decode(codec.encode(visitor), 2_000_000_000) == visitor


TOO_LONG = [
    "a" * 400 + "@example.com",
    "a@" + ".".join(["xn--bcher-kva"] * 5) + ".example",
    "a@" + "ü" * 40 + "." + "ä" * 40 + ".de",
]


@pytest.mark.parametrize("text", [*TOO_LONG, "\u212aate@example.com", "kate@\u212aexample.com"])
def test_an_address_that_takes_long_to_judge_or_apes_another_is_none(text: str) -> None:
    assert clean_address(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "ann@example.com",
        "x ann@example.com y",
        "mailto:ann@example.co.uk",
        "cart:änn@exämple.de",
        "Ann <ann@example.com>",
        "ann%40example.com",
        "ann%2540example%252Ecom",
        "ann＠example．com",
        "ann@例え。jp",
        "@@ann@example.com",
        "ann@[127.0.0.1]",
    ],
)
def test_an_address_is_found_wherever_it_stands(text: str) -> None:
    assert holds_address(text)


@pytest.mark.parametrize(
    "text", ["", "@", "@home", "@home.page", "vip@2x", "a @ b.c", "a.b", "50%40", "a@b.", "a@.b", "x@ y.z"]
)
def test_other_names_hold_none(text: str) -> None:
    assert not holds_address(text)
