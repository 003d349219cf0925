"""Merging pushes: the contact and the tags' history come out as if every push had been sent alone."""

from collections import defaultdict
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.types import Dialect, Secret
from proxy.core.calls import Attributes, Track
from proxy.core.coalesce import MAX_TAGS, Group, groups_of, singly
from proxy.core.visitors import Trust
from proxy.delivery.sendx import Upstream
from proxy.sandbox.api import Call, Sandbox
from proxy.sandbox.contacts import Contact

UPSTREAM = Upstream(Dialect.REST, "/api/v1/rest", Secret("sandbox"))


class Sent(msgspec.Struct, frozen=True):
    body: Attributes | Track
    address: str = "ann@example.com"
    trust: Trust = Trust.VERIFIED


def bodies(*pushes: Attributes | Track) -> list[Attributes | Track]:
    return [group.body for group in groups_of([Sent(body) for body in pushes])]


# --- examples


def test_tracks_in_a_row_become_one() -> None:
    merged = bodies(Track(("a",), ("x",)), Track(("b", "a")), Track((), ("y",)))
    assert merged == [Track(("a", "b"), ("x", "y"))]


def test_a_tag_added_and_then_removed_is_not_merged_away() -> None:
    assert len(bodies(Track(("a",)), Track((), ("a",)))) == 2
    assert len(bodies(Track((), ("a",)), Track(("a",)))) == 2
    assert len(bodies(Track(("a",)), Track((), ("A",)))) == 2


def test_a_tag_repeated_across_a_conflict_keeps_its_history() -> None:
    assert len(bodies(Track(("a",)), Track((), ("a",)), Track(("a",)))) == 3


def test_a_track_that_contradicts_itself_travels_alone() -> None:
    assert len(bodies(Track(("b",)), Track(("a",), ("a",)), Track(("b",)))) == 3


def test_identifies_in_a_row_become_one_and_later_values_win() -> None:
    first = Attributes({"firstName": "A", "company": "C"}, {"Age": "1"}, ("x",))
    second = Attributes({"firstName": "B"}, {"Age": "2", "Size": "L"}, ("y", "x"))
    assert bodies(first, second) == [
        Attributes({"firstName": "B", "company": "C"}, {"Age": "2", "Size": "L"}, ("x", "y"))
    ]


@pytest.mark.parametrize(
    "other",
    [
        Attributes(custom_fields={"Visits": "++1"}),
        Attributes(custom_fields={"Visits": "--1"}),
        Attributes(new_email="b@example.com"),
        Attributes(extra={"lists": ["l"]}),
        Attributes(custom_fields={"age": "2"}),
        Track(("x",)),
    ],
)
def test_an_identify_is_not_merged_with(other: Attributes | Track) -> None:
    plain = Attributes(custom_fields={"Age": "1"})
    assert len(bodies(plain, other)) == len(bodies(other, plain)) == 2


def test_two_increments_stay_two() -> None:
    assert len(bodies(*[Attributes(custom_fields={"Visits": "++1"})] * 2)) == 2


def test_pushes_of_another_spelling_or_trust_are_not_merged() -> None:
    same = Sent(Track(("a",)))
    for other in (Sent(Track(("b",)), address="Ann@example.com"), Sent(Track(("b",)), trust=Trust.ASSERTED)):
        assert len(groups_of([same, other])) == len(groups_of([other, same])) == 2


def test_a_merged_request_has_at_most_a_hundred_tags() -> None:
    merged = bodies(*(Track((f"add {number}",), (f"remove {number}",)) for number in range(MAX_TAGS)))
    assert [len(track.add_tags + track.remove_tags) for track in merged if isinstance(track, Track)] == [MAX_TAGS] * 2
    identifies = bodies(*(Attributes(tags=(f"tag {number}",)) for number in range(MAX_TAGS + 1)))
    assert [len(identify.tags) for identify in identifies if isinstance(identify, Attributes)] == [MAX_TAGS, 1]


def test_nothing_to_send_is_no_request() -> None:
    assert groups_of([]) == []


# --- properties, against the sandbox's SendX

names = st.sampled_from(["a", "b", "c", "A"])
tags = st.lists(names, max_size=2, unique=True).map(tuple)
texts = st.sampled_from(["", "x", "y"])
values = st.sampled_from(["1", "2", "x", "++1", "--2", "++"])
tracks = st.builds(Track, tags, tags)
identifies = st.builds(
    Attributes,
    fields=st.dictionaries(st.sampled_from(["firstName", "company"]), texts, max_size=2),
    custom_fields=st.dictionaries(st.sampled_from(["Age", "age", "Size"]), values, max_size=2),
    tags=tags,
    extra=st.sampled_from([{}, {}, {"lists": ["l"]}, {"lists": ["m"]}]),
)
sent = st.builds(
    Sent,
    tracks | identifies,
    st.sampled_from(["ann@example.com", "ann@example.com", "Ann@example.com"]),
    st.sampled_from([Trust.VERIFIED, Trust.VERIFIED, Trust.ASSERTED]),
)
lanes = st.lists(sent, max_size=12)


def outcome(requests: Iterable[Sent | Group[Sent]]) -> tuple[Contact | None, dict[str, list[bool]]]:
    """The contact at the end, without its ids, and for each tag when it came (True) and went."""
    sandbox = Sandbox()
    history: dict[str, list[bool]] = defaultdict(list)
    for one in [Sent(Attributes()), *requests]:
        before = tags_of(sandbox)
        request = UPSTREAM.request_for(one.address, one.body)
        headers = {name.lower(): value for name, value in request.headers.items()}
        answer, _ = sandbox.handle(Call(request.method, request.url, "", headers, request.content))
        assert answer.status_code == 200
        for tag in before ^ tags_of(sandbox):
            history[tag].append(tag not in before)
    contact = sandbox.contacts.get("ann@example.com")
    return contact and msgspec.structs.replace(contact, changed=0), history


def tags_of(sandbox: Sandbox) -> set[str]:
    contact = sandbox.contacts.get("ann@example.com")
    return set(contact.tags) if contact else set()


@given(lanes)
def test_the_contact_and_the_history_of_its_tags_are_the_same_as_one_by_one(lane: list[Sent]) -> None:
    contact, history = outcome(groups_of(lane))
    alone, history_alone = outcome(lane)
    assert contact is not None
    assert alone is not None
    assert history == history_alone
    assert msgspec.structs.replace(contact, tags=(), lists=()) == msgspec.structs.replace(alone, tags=(), lists=())
    assert set(contact.lists) == set(alone.lists)


@given(lanes)
def test_no_push_is_lost_doubled_or_overtaken_by_merging(lane: list[Sent]) -> None:
    groups = groups_of(lane)
    assert [push for group in groups for push in group.members] == lane
    assert len(groups) <= len(lane)
    assert [single.members for group in groups for single in singly(group)] == [(push,) for push in lane]


@given(lanes)
def test_a_push_that_travels_alone_travels_unchanged(lane: list[Sent]) -> None:
    assert all(group.body == group.members[0].body for group in groups_of(lane) if len(group.members) == 1)
