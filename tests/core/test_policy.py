"""Who may set what: tags refuse a track whole, fields are taken off an identify."""

from __future__ import annotations

import pytest

from proxy.core.calls import Attributes, Track
from proxy.core.policy import Policy, vouch
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
        (Trust.VERIFIED, Track(("cart: a\nb",)), True),
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
