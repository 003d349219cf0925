"""Who may set what: tags refuse a track whole, fields are taken off an identify."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.calls import Attributes, Track
from proxy.core.policy import Policy, Refusal, vouch
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust


def policy(*, asserted_identify: bool = True) -> Policy:
    return Policy(
        tags=["blogger", "cart: *"],
        fields=["firstName", "Plan*"],
        asserted_tags=["newsletter"],
        asserted_fields=["firstName"],
        asserted_identify=asserted_identify,
    )


@pytest.mark.parametrize(
    ("trust", "track", "offered"),
    [
        (Trust.VERIFIED, Track(("blogger", "cart: Teapot")), True),
        (Trust.VERIFIED, Track((), ("blogger",)), True),
        (Trust.VERIFIED, Track(("Blogger",)), False),
        (Trust.VERIFIED, Track(("xblogger",)), False),
        (Trust.VERIFIED, Track(("bloggerx",)), False),
        (Trust.VERIFIED, Track(("blogger\nx",)), False),
        (Trust.VERIFIED, Track(("cart: a\nb",)), False),
        (Trust.VERIFIED, Track((), ("cart: a\nb",)), False),
        (Trust.VERIFIED, Track(("blogger",), ("paid user",)), False),
        (Trust.VERIFIED, Track(("newsletter",)), False),
        (Trust.ASSERTED, Track(("newsletter",)), True),
        (Trust.ASSERTED, Track(("blogger",)), False),
        (Trust.ASSERTED, Track((), ("newsletter",)), False),
        (Trust.ANONYMOUS, Track(("newsletter", "blogger")), True),
        (Trust.ANONYMOUS, Track(("paid user",)), False),
    ],
)
def test_a_track_is_accepted_only_whole(trust: Trust, track: Track, *, offered: bool) -> None:
    refusal = policy().judge_track(track, trust)
    assert (refusal is None) is offered
    assert refusal is None or refusal.reason is Reason.TAG_NOT_ALLOWED


def test_the_refusal_names_the_place_of_the_tag() -> None:
    refusal = policy().judge_track(Track(("blogger", "paid user")), Trust.VERIFIED)
    assert refusal is not None
    assert (refusal.where, refusal.tag) == ("call[1].addTags[1]", "paid user")


# What cannot be seen

UNSEEN = [
    *map(chr, [*range(0x20), *range(0x7F, 0xA0)]),
    *"\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]


def offering(*globs: str) -> Policy:
    return Policy(tags=globs, fields=globs, asserted_tags=globs, asserted_fields=globs, asserted_identify=True)


def offers(policy: Policy, name: str) -> bool:
    """Whether a name is offered as a tag and as a field, to everybody alike."""
    answers = {policy.judge_track(Track((name,)), trust) is None for trust in Trust}
    answers |= {policy.judge_track(Track((), (name,)), Trust.VERIFIED) is None}
    wanted = Attributes(custom_fields={name: "1"}, tags=(name,))
    for trust in (Trust.VERIFIED, Trust.ASSERTED):
        kept, _ = policy.trim_identify(wanted, trust)
        answers |= {bool(kept.custom_fields), bool(kept.tags)}
    (answer,) = answers
    return answer


@pytest.mark.parametrize("unseen", UNSEEN, ids=ascii)
def test_no_wildcard_stands_for_a_character_that_cannot_be_seen(unseen: str) -> None:
    for glob in ("*", "a*", "*b", "a*b", "a?b", "a[!x]b", f"a[{unseen}]b"):
        assert not offers(offering(glob), f"a{unseen}b")
    assert not offers(offering("*"), f"a{unseen}")
    assert not offers(offering("*"), unseen)


@pytest.mark.parametrize("unseen", UNSEEN, ids=ascii)
def test_what_the_operator_has_spelled_out_passes(unseen: str) -> None:
    assert offers(offering("x*", f"a{unseen}b"), f"a{unseen}b")
    marked = offering(f"{unseen}sale-*")
    assert offers(marked, f"{unseen}sale-1")
    assert not offers(marked, f"{unseen}sale-{unseen}1")
    assert not offers(marked, "sale-1")


@pytest.mark.parametrize(
    "name",
    [
        "family 👨\u200d👩\u200d👧",
        "heart ❤\ufe0f",
        "flag 🏴\U000e0067\U000e0062\U000e007f",
        "می\u200cخواهم",
        "Zoë 好",
        "new \U0001fae9",
    ],
)
def test_writing_that_needs_format_characters_passes_a_wildcard(name: str) -> None:
    assert offers(offering("*"), name)


glob_parts = st.sampled_from([*"*?[]!ab-", "[ab]", "[!a]", "**", "a.", "\u200d"])


@given(
    st.lists(st.lists(glob_parts, max_size=6).map("".join), min_size=1, max_size=3),
    st.text("ab[]!-?*.\u200d", max_size=8),
)
def test_all_else_is_as_fnmatch_has_it(globs: list[str], name: str) -> None:
    assert offers(offering(*globs), name) is any(fnmatch.fnmatchcase(name, glob) for glob in globs)


# What the operator is told


@pytest.mark.parametrize("name", ["ann@example.com", "for:ann@example.com!", "ann%40example.com"])
def test_a_name_that_holds_an_address_is_refused_and_named_to_nobody(name: str) -> None:
    refusal = policy().judge_track(Track(("blogger", name)), Trust.VERIFIED)
    assert refusal == Refusal(Reason.TAG_NOT_ALLOWED, "call[1].addTags[1]")
    wanted = Attributes(custom_fields={name: "1", "Age": "2"}, tags=(name, "paid user"))
    _, dropped = policy().trim_identify(wanted, Trust.VERIFIED)
    assert dropped == (f"customFields.{name}", "customFields.Age", f"tags.{name}", "tags.paid user")
    assert policy().settings_for(dropped, Trust.VERIFIED) == [("Age", "SCQ_FIELDS"), ("paid user", "SCQ_TAGS")]


def test_the_word_before_a_name_is_not_taken_for_part_of_an_address() -> None:
    assert policy().settings_for(["tags.@home.page"], Trust.VERIFIED) == [("@home.page", "SCQ_TAGS")]


def test_what_only_asserted_visitors_could_get_is_not_held_where_nobody_can_assert() -> None:
    assert policy(asserted_identify=False).judge_track(Track(("newsletter",)), Trust.ANONYMOUS) is not None


def test_an_identify_keeps_what_is_offered_and_names_what_is_dropped() -> None:
    wanted = Attributes(
        {"firstName": "Ada", "company": "C"}, {"Plan A": "1", "Age": "2"}, ("blogger", "paid user"), "new@example.com"
    )
    kept, dropped = policy().trim_identify(wanted, Trust.VERIFIED)
    assert kept == Attributes({"firstName": "Ada"}, {"Plan A": "1"}, ("blogger",))
    assert dropped == ("company", "customFields.Age", "tags.paid user", "newEmail")


def test_the_operator_is_told_which_setting_would_offer_what_was_dropped() -> None:
    names = policy().settings_for(["company", "customFields.Age", "tags.paid user", "newEmail"], Trust.ASSERTED)
    assert names == [
        ("company", "SCQ_ASSERTED_FIELDS"),
        ("Age", "SCQ_ASSERTED_FIELDS"),
        ("paid user", "SCQ_ASSERTED_TAGS"),
    ]


def test_no_globs_offer_nothing() -> None:
    closed = Policy(tags=[], fields=[], asserted_tags=[], asserted_fields=[], asserted_identify=True)
    assert closed.judge_track(Track(("",)), Trust.VERIFIED) is not None
    assert closed.trim_identify(Attributes({"firstName": "A"}), Trust.VERIFIED)[0] == Attributes()


def test_the_back_ends_word_wins_over_the_pages() -> None:
    page = Attributes({"firstName": "Page"}, {"Plan": "free", "Age": "1"}, ("a",))
    back_end = Attributes({"firstName": "Back"}, {"Plan": "pro"}, ("b", "a"), "new@example.com")
    assert vouch(page, back_end) == Attributes(
        {"firstName": "Back"}, {"Plan": "pro", "Age": "1"}, ("a", "b"), "new@example.com"
    )
