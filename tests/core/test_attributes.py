"""A value that SendX could not take is dropped and named, and the rest goes on: from pages, tokens, servers and in bulk alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.attributes import Faults, read_attributes, read_track
from proxy.core.calls import FIELDS, Attributes, Identify, Push
from proxy.core.parsing import parse_batch
from proxy.core.server_calls import OPERATIONS, parse_server_call
from proxy.core.tokens import TokenCodec, Vouched
from tests.support.anything import values
from tests.support.trifles import TRIFLES

ANN, KEY, NOW = "ann@example.com", "k" * 32, 1_800_000_000
IDENTIFY, BULK = OPERATIONS["/api/v1/rest/contact/identify"], OPERATIONS["/api/v1/rest/contact/identify/bulk"]

Says = dict[str, Any]
Read = tuple[Attributes, tuple[str, ...]]


def written(value: Any) -> bytes:
    return json.dumps(value).replace("Infinity", "1e999").encode()


def in_a_page(says: Says, **who: str) -> Identify:
    pushes = [{"id": "i" * 22, "call": ["identify", says | who]}]
    (push,) = parse_batch(written({"v": 1, "pushes": pushes})).items
    assert isinstance(push, Push)
    assert isinstance(push.call, Identify)
    return push.call


def typed(says: Says) -> Read:
    call = in_a_page(says, email=ANN)
    assert call.email == ANN
    return call.attributes, call.ignored


def beside_a_token(says: Says) -> Read:
    call = in_a_page(says, token="a.b.c")
    assert call.token == "a.b.c"
    return call.attributes, call.ignored


def in_a_token(says: Says) -> Read:
    claims = {"email": ANN, "iat": NOW, "exp": NOW + 60, "aud": "scq", "contact": says}
    vouched = TokenCodec([(None, KEY)]).verify(jwt.encode(claims, KEY, algorithm="HS256"), NOW)
    assert isinstance(vouched, Vouched)
    assert vouched.email == ANN
    assert all(name.startswith("contact.") for name in vouched.ignored)
    return vouched.attributes, tuple(name.removeprefix("contact.") for name in vouched.ignored)


def from_a_server(says: Says) -> Read:
    (push,) = parse_server_call(IDENTIFY, written({"email": ANN, **says}), {})
    assert isinstance(push.body, Attributes)
    return push.body, push.dropped


def in_bulk(says: Says) -> Read:
    before, push, after = parse_server_call(BULK, written([{"email": ANN}, {"email": ANN, **says}, {"email": ANN}]), {})
    assert not before.dropped
    assert not after.dropped
    assert isinstance(push.body, Attributes)
    return push.body, push.dropped


SOURCES: list[Callable[[Says], Read]] = [typed, beside_a_token, in_a_token, from_a_server, in_bulk]


def as_attributes(goes_on: Says) -> Attributes:
    fields = {name: text for name, text in goes_on.items() if name in FIELDS}
    return Attributes(fields, goes_on.get("customFields", {}), tuple(goes_on.get("tags", ())))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", TRIFLES)
def test_a_trifle_is_dropped_and_named_and_the_rest_goes_on(source: Callable[[Says], Read], name: str) -> None:
    trifle = TRIFLES[name]
    assert source(trifle.says) == (as_attributes(trifle.goes_on), trifle.dropped)
    neighbours = {"lastName": "Lovelace"} | trifle.says | {"company": "Analytical"}
    if len(neighbours) == len(trifle.says) + 2:  # it says neither itself
        attributes, dropped = source(neighbours)
        assert attributes.fields == trifle_fields(trifle.goes_on) | {"lastName": "Lovelace", "company": "Analytical"}
        assert dropped == trifle.dropped


def trifle_fields(goes_on: Says) -> dict[str, str]:
    return as_attributes(goes_on).fields


@pytest.mark.parametrize("source", [typed, beside_a_token, in_a_token])
def test_a_key_that_sendx_does_not_have_is_named(source: Callable[[Says], Read]) -> None:
    says = {"source": "footer", "lists": ["l1"], "Email": "x@example.com", "s" * 300: 1, "success": 1, "failure": "x"}
    assert source(says) == (Attributes(), ("source", "lists", "Email", "s" * 255))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("address", ["try..this..0511@docomo.ne.jp", "bob@company.local", "\u200b bob@localhost\ufeff"])
def test_a_new_address_that_can_do_no_harm_goes_on(source: Callable[[Says], Read], address: str) -> None:
    attributes, dropped = source({"newEmail": address})
    assert (attributes.new_email, dropped) == (address.strip("\u200b\ufeff "), ())


@pytest.mark.parametrize("contact", [[], None, {}])
def test_a_token_may_have_an_empty_contact(contact: Any) -> None:
    assert in_a_token(contact) == (Attributes(), ())


@pytest.mark.parametrize("contact", ["", "x", 7, True, ["x"], [["tags", ["vip"]]]])
def test_a_contact_that_is_not_an_object_is_dropped_and_the_token_still_says_who(contact: Any) -> None:
    claims = {"email": ANN, "iat": NOW, "exp": NOW + 60, "aud": "scq", "contact": contact}
    vouched = TokenCodec([(None, KEY)]).verify(jwt.encode(claims, KEY, algorithm="HS256"), NOW)
    assert vouched == Vouched(ANN, Attributes(), ("contact",), NOW)


@pytest.mark.parametrize(
    ("says", "added", "removed", "dropped"),
    [
        ({"addTags": {"1": "a", "3": "b"}, "removeTags": []}, ("a", "b"), (), ()),
        ({"addTags": ["", None, "a"], "removeTags": None}, ("a",), (), ()),
        ({"addTags": ["a", "x" * 256, 7], "removeTags": "b"}, ("a",), (), ("addTags[1]", "addTags[2]", "removeTags")),
        ({"addTags": ["a"] * 101, "removeTags": {"0": "b"}}, (), ("b",), ("addTags",)),
        ({"addTags": {"first": "a"}}, (), (), ("addTags",)),
    ],
)
def test_the_tags_of_a_track_are_read_the_same(says: Says, added: Any, removed: Any, dropped: tuple[str, ...]) -> None:
    faults: Faults = {}
    track = read_track(says, faults)
    assert (track.add_tags, track.remove_tags, tuple(faults)) == (added, removed, dropped)


keys = st.sampled_from(["email", "newEmail", "tags", "customFields", *FIELDS, "lists"]) | st.text(max_size=3)


@given(st.dictionaries(keys, values | st.dictionaries(st.text(max_size=9) | st.sampled_from(["1", "tags"]), values)))
def test_whatever_is_said_what_goes_on_is_what_sendx_can_take(says: Says) -> None:
    faults: Faults = {}
    read = read_attributes(says, faults)
    texts = [*read.fields.values(), *read.custom_fields, *read.custom_fields.values(), *read.tags]
    assert all(len(text) <= 255 for text in texts)
    assert all(tag.strip() for tag in read.tags)
    assert not {name.casefold() for name in read.custom_fields} & {
        "email",
        "newemail",
        "tags",
        "customfields",
        "birthday",
    }
    assert len(read.custom_fields) <= 100
    given_keys = {key for key, value in says.items() if value is not None}
    unnamed = {
        key for key in given_keys if not any(name == key or name.startswith((f"{key}[", f"{key}.")) for name in faults)
    }
    for name in unnamed & set(FIELDS):
        assert name in read.fields
    if "tags" in unnamed:
        said = says["tags"].values() if isinstance(says["tags"], dict) else says["tags"]
        assert set(read.tags) == {tag for tag in said if tag is not None and tag.strip()}
    if "customFields" in unnamed and says["customFields"] != []:
        assert set(read.custom_fields) == {name for name, text in says["customFields"].items() if text is not None}
