"""Parsing the wire: one bad push never harms its neighbours, and no input raises anything but a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.calls import Attributes, BadPush, Batch, Consent, Identify, Push, Reset, Track
from proxy.core.parsing import MAX_PUSHES, parse_batch
from proxy.core.reasons import Reason
from proxy.errors import RequestError

ID = "0192f3a1-7c5e-7b6e-8a2b-1234567890ab"


def batch(*calls: Any, **extra: Any) -> Batch:
    pushes = [{"id": ID, "call": call} for call in calls]
    return parse_batch(json.dumps({"v": 1, "pushes": pushes, **extra}).encode())


def call(argument: Any) -> Any:
    (item,) = batch(argument).items
    assert isinstance(item, Push), item
    return item.call


def refusal(argument: Any) -> tuple[Reason, str | None]:
    (item,) = batch(argument).items
    assert isinstance(item, BadPush), item
    assert item.id == ID
    return item.reason, item.where


def test_a_track_becomes_its_tags_without_repeats() -> None:
    assert call(["track", {"addTags": ["a", "b", "a"], "removeTags": ["c"]}]) == Track(("a", "b"), ("c",))


def test_a_track_may_carry_keys_that_sendx_does_not_know() -> None:
    assert call(["track", {"addTags": ["a"], "source": "footer", "success": 1}]) == Track(("a",))


def test_an_identify_becomes_attributes_and_the_names_of_what_nobody_can_set() -> None:
    given_fields = {
        "email": " ada@example.com ",
        "firstName": "Ada",
        "company": None,
        "customFields": {"Age": 36, "Vip": True, "Score": 1.5, "None": None, "List": [1]},
        "tags": ["blogger"],
        "source": "footer",
        "success": "not a function",
    }
    assert call(["identify", given_fields]) == Identify(
        Attributes({"firstName": "Ada"}, {"Age": "36", "Vip": "true", "Score": "1.5"}, ("blogger",)),
        email="ada@example.com",
        ignored=("customFields.List", "source"),
    )


def test_a_track_may_have_its_tags_in_an_object_and_empties_among_them() -> None:
    assert call(["track", {"addTags": {"1": "a", "4": "b"}, "removeTags": []}]) == Track(("a", "b"))
    assert call(["track", {"addTags": ["", None, "a"], "removeTags": None}]) == Track(("a",))


def test_what_stands_behind_the_object_of_a_call_is_ignored() -> None:
    assert call(["identify", {"firstName": "Ann"}, "x", 3]) == Identify(Attributes({"firstName": "Ann"}))
    assert call(["track", {"addTags": ["a"]}, None, {}]) == Track(("a",))
    assert call(["reset", {}, 1]) == Reset()
    assert call(["consent", "granted", {}, 1]) == Consent(granted=True)


@pytest.mark.parametrize(
    "address", ["", " ", "nobody", 7, False, [], {"0": "a@b.co"}, "a@b@c.de", "a\u202e@b.co", "x" * 999]
)
def test_an_address_beside_a_token_that_is_not_one_is_dropped_and_not_the_log_in(address: Any) -> None:
    assert call(["identify", {"email": address, "token": "a.b.c"}]) == Identify(
        Attributes(), token="a.b.c", ignored=("email",)
    )


def test_an_address_beside_a_token_is_as_the_token_may_have_it() -> None:
    beside = {"email": " foo.@docomo.ne.jp\u200b", "token": "a.b.c"}
    assert call(["identify", beside]) == Identify(Attributes(), "foo.@docomo.ne.jp", "a.b.c")


def test_reset_and_consent_are_calls_of_their_own() -> None:
    assert call(["reset"]) == Reset()
    assert call(["reset", {}]) == Reset()
    assert call(["consent", "granted"]) == Consent(granted=True)
    assert call(["consent", "denied", {}]) == Consent(granted=False)


@pytest.mark.parametrize("argument", [None, True, False, "", "all", [], [1], {"a": 1}, -1, 1.5, 2**32])
def test_a_reset_with_anything_behind_it_is_a_log_out(argument: Any) -> None:
    assert call(["reset", argument]) == Reset()


@pytest.mark.parametrize("argument", ["granted", True])
def test_two_words_grant_consent(argument: Any) -> None:
    assert call(["consent", argument]) == Consent(granted=True)


@pytest.mark.parametrize(
    "argument",
    [
        "denied",
        False,
        None,
        "",
        "maybe",
        "revoked",
        "grant",
        "Granted",
        "true",
        " granted",
        1,
        1.0,
        0,
        [],
        ["granted"],
        [True],
        {},
    ],
)
def test_all_else_denies_it(argument: Any) -> None:
    assert call(["consent", argument]) == Consent(granted=False)


@pytest.mark.parametrize(
    ("argument", "reason", "where"),
    [
        (None, Reason.BAD_SHAPE, "call"),
        ("track", Reason.BAD_SHAPE, "call"),
        ([], Reason.BAD_SHAPE, "call"),
        ([1], Reason.BAD_SHAPE, "call"),
        (["setMerchantId", "X"], Reason.UNKNOWN_METHOD, "call[0]"),
        (["Track", {"addTags": []}], Reason.UNKNOWN_METHOD, "call[0]"),
        (["track"], Reason.BAD_SHAPE, "call[1]"),
        (["track", "a"], Reason.BAD_SHAPE, "call[1]"),
        (["track", {}, 1], Reason.BAD_SHAPE, "call[1].addTags"),
        (["track", {"addTags": []}], Reason.BAD_SHAPE, "call[1].addTags"),
        (["track", {"addTags": None, "removeTags": {}}], Reason.BAD_SHAPE, "call[1].addTags"),
        (["track", {"addTags": {"first": "a"}}], Reason.BAD_SHAPE, "call[1].addTags"),
        (["track", {"addTags": {"1": "a", "2": 7}}], Reason.BAD_SHAPE, "call[1].addTags[1]"),
        (["track", {}], Reason.BAD_SHAPE, "call[1].addTags"),
        (["track", {"addTags": "a"}], Reason.BAD_SHAPE, "call[1].addTags"),
        (["track", {"addTags": ["a", 1]}], Reason.BAD_SHAPE, "call[1].addTags[1]"),
        (["track", {"removeTags": [" "]}], Reason.BAD_SHAPE, "call[1].addTags"),
        (["track", {"addTags": ["x" * 256]}], Reason.TOO_LONG, "call[1].addTags[0]"),
        (["track", {"addTags": ["x"] * 101}], Reason.TOO_LONG, "call[1].addTags"),
        (["identify", {"email": "nobody"}], Reason.BAD_EMAIL, "call[1].email"),
        (["identify", {"email": ""}], Reason.BAD_EMAIL, "call[1].email"),
        (["identify", {"email": 7}], Reason.BAD_EMAIL, "call[1].email"),
        (["identify", {"email": "foo.@docomo.ne.jp"}], Reason.BAD_EMAIL, "call[1].email"),
        (["identify", {"token": 7}], Reason.BAD_TOKEN, "call[1].token"),
        (["identify", [{"name": "email", "value": "ann@example.com"}]], Reason.BAD_SHAPE, "call[1]"),
        (["consent"], Reason.BAD_SHAPE, "call[1]"),
    ],
)
def test_a_bad_call_is_refused_with_the_place_that_is_wrong(argument: Any, reason: Reason, where: str) -> None:
    assert refusal(argument) == (reason, where)


@pytest.mark.parametrize("bad_id", [None, 5, "", "short", "x" * 65, "no spaces in an id!", "0192f3a1 7c5e 7b6e", ["x"]])
def test_a_push_without_a_usable_id_is_refused_without_one(bad_id: Any) -> None:
    body = json.dumps({"v": 1, "pushes": [{"id": bad_id, "call": ["reset"]}, {"id": ID, "call": ["reset"]}]})
    bad, good = parse_batch(body.encode()).items
    assert bad == BadPush(None, Reason.BAD_SHAPE, "id")
    assert good == Push(ID, Reset())


def test_half_a_surrogate_pair_costs_no_push() -> None:
    body = b'{"v":1,"pushes":[{"id":"%s","call":["track",{"addTags":["cut \\ud83d"]}]}]}' % ID.encode()
    assert parse_batch(body).items == (Push(ID, Track(("cut \ufffd",))),)


def test_a_number_beyond_a_double_is_dropped_where_it_stands() -> None:
    body = (
        b'{"v":1,"pushes":[{"id":"%s","call":["identify",{"customFields":{"n":1e999}}]},{"id":"%s","call":["reset"]}]}'
        % (ID.encode(), ID.encode())
    )
    identify, reset = parse_batch(body).items
    assert identify == Push(ID, Identify(Attributes(), ignored=("customFields.n",)))
    assert reset == Push(ID, Reset())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b'{"v":1}',
        b'{"v":2,"pushes":[]}',
        b'{"v":true,"pushes":[]}',
        b'{"v":1,"pushes":{}}',
        b'{"v":1,"pushes":NaN}',
        b'{"v":1,"pushes":[NaN]}',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"v":1,"pushes":[' + b"[" * 50_000,
    ],
)
def test_an_unreadable_body_is_refused_as_malformed(body: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        parse_batch(body)
    assert (refused.value.status, refused.value.code) == (400, "malformed")


def test_a_byte_order_mark_in_front_is_skipped_and_one_within_is_kept() -> None:
    body = json.dumps({"v": 1, "pushes": [{"id": "a" * 16, "call": ["track", {"addTags": ["\ufeffx"]}]}]}).encode()
    assert parse_batch(b"\xef\xbb\xbf" + body) == parse_batch(body)
    with pytest.raises(RequestError):
        parse_batch(b"\xef\xbb\xbf" * 2 + body)


def test_fifty_pushes_are_read_and_one_more_is_too_many() -> None:
    assert len(batch(*[["reset"]] * MAX_PUSHES).items) == MAX_PUSHES
    with pytest.raises(RequestError) as refused:
        batch(*[["reset"]] * (MAX_PUSHES + 1))
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("value", "kept"), [("s" * 22, True), ("s", False), (5, False), ("s" * 22 + "!", False), (None, False)]
)
def test_a_session_value_is_used_only_if_it_could_be_the_shims(value: Any, kept: bool) -> None:
    assert (batch(s=value).session == value) is (kept or value is None)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
calls = st.one_of(
    json_values,
    st.tuples(
        st.sampled_from(["track", "identify", "consent", "reset"]),
        st.dictionaries(
            st.sampled_from(
                ["addTags", "removeTags", "email", "token", "tags", "customFields", "firstName", "newEmail"]
            ),
            json_values,
        ),
    ),
)


@given(st.lists(st.fixed_dictionaries({"id": st.sampled_from([ID, "", None]), "call": calls}), max_size=5))
def test_whatever_json_is_pushed_each_push_gets_its_own_verdict(pushes: list[Any]) -> None:
    items = parse_batch(
        json.dumps({"v": 1, "pushes": pushes}).replace("NaN", "0").replace("Infinity", "0").encode()
    ).items
    assert len(items) == len(pushes)


@given(st.binary(max_size=200))
def test_whatever_bytes_are_sent_the_answer_is_a_batch_or_a_refusal(body: bytes) -> None:
    try:
        parse_batch(body)
    except RequestError as refused:
        assert refused.status in (400, 413)
