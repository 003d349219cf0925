"""SendX's contacts: how identify and track merge, what the schema does not know, and what the switches decide."""

from typing import Any

import pytest

from tests.sandbox.conftest import BULK_OK, MALFORMED, OK, Live

# Merging


def test_identify_is_additive(live: Live) -> None:
    live.identify(firstName="A", company="C", tags=["x", "y"], customFields={"k": "1", "l": "2"})
    live.identify(lastName="B", company="D", tags=["y", "z"], customFields={"l": "3", "m": "4"})
    contact = live.contact()
    assert (contact.first_name, contact.last_name, contact.company) == ("A", "B", "D")
    assert contact.tags == ("x", "y", "z")
    assert contact.custom_fields == {"k": "1", "l": "3", "m": "4"}


def test_addresses_are_compared_without_regard_to_case_and_kept_as_first_given(live: Live) -> None:
    live.identify("Ada@B.co", tags=["x"])
    live.track("ada@b.CO", addTags=["y"])
    assert [(contact.email, contact.tags) for contact in live.state.contacts.newest_first()] == [
        ("Ada@B.co", ("x", "y"))
    ]


def test_track_adds_and_removes_tags_and_ignores_the_removal_of_absent_ones(live: Live) -> None:
    live.identify(tags=["x", "y"])
    live.track(addTags=["z", "Z", "x"], removeTags=["y", "never"])
    assert live.contact().tags == ("x", "z", "Z")


@pytest.mark.parametrize(
    ("values", "result"),
    [
        (["++34"], "34"),
        (["10", "++34"], "44"),
        (["10", "--34"], "-24"),
        (["-5", "++1.5"], "-3.5"),
        (["0.1", "++0.2", "--0.3"], "0"),
        (["some text", "++1"], "++1"),
        (["1", "+1"], "+1"),
        (["1", "++x"], "++x"),
        (["1", ""], ""),
    ],
)
def test_custom_fields_count_with_plus_plus_and_minus_minus(live: Live, values: list[str], result: str) -> None:
    for value in values:
        live.identify(customFields={"n": value})
    assert live.contact().custom_fields == {"n": result}


def test_new_email_moves_the_contact(live: Live) -> None:
    live.identify(firstName="A", tags=["x"])
    contact_id = live.contact().id
    assert live.identify(newEmail="n@b.co", tags=["y"]).content == OK
    assert [contact.email for contact in live.state.contacts.newest_first()] == ["n@b.co"]
    moved = live.contact("n@b.co")
    assert (moved.id, moved.first_name, moved.tags) == (contact_id, "A", ("x", "y"))


def test_new_email_may_change_the_spelling_only(live: Live) -> None:
    live.identify("a@b.co", customFields={"n": "1"})
    assert live.identify("a@b.co", newEmail="A@b.co", customFields={"n": "++1"}).content == OK
    assert [(contact.email, contact.custom_fields) for contact in live.state.contacts.newest_first()] == [
        ("A@b.co", {"n": "2"})
    ]


# The schema


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("contact/identify", {"email": "a@b.co", "age": "3"}),
        ("contact/identify", {"email": "a@b.co", "first_name": "A"}),
        ("contact/identify", {"email": "a@b.co", "firstName": None}),
        ("contact/identify", {"email": "a@b.co", "firstName": 3}),
        ("contact/identify", {"email": "a@b.co", "tags": "x"}),
        ("contact/identify", {"email": "a@b.co", "tags": [1]}),
        ("contact/identify", {"email": "a@b.co", "tags": [""]}),
        ("contact/identify", {"email": "a@b.co", "customFields": {"n": 1}}),
        ("contact/identify", {"email": "a@b.co", "customFields": {"n": True}}),
        ("contact/identify", {"email": "a@b.co", "customFields": {"n": None}}),
        ("contact/identify", {"email": "a@b.co", "customFields": {"n": ["x"]}}),
        ("contact/identify", {"email": "a@b.co", "customFields": []}),
        ("contact/identify", {"email": "a@b.co", "birthday": ""}),
        ("contact/identify", {"email": "a@b.co", "birthday": "31.12.1999"}),
        ("contact/identify", {"email": "a@b.co", "birthday": "1999-02-30"}),
        ("contact/identify", {"email": "a@b.co", "lists": "x"}),
        ("contact/identify", {"email": "a@b.co", "newEmail": "nowhere"}),
        ("contact/identify", {"firstName": "A"}),
        ("contact/identify", {"email": None}),
        ("contact/identify", {"email": ""}),
        ("contact/identify", {"email": "a@b"}),
        ("contact/identify", {"email": "a b@c.co"}),
        ("contact/identify", {"email": "a@b.co\n"}),
        ("contact/identify", {"email": "a@b@c.co"}),
        ("contact/identify", ["a@b.co"]),
        ("contact/identify", "a@b.co"),
        ("contact/identify", None),
        ("contact/track", {"addTags": ["x"]}),
        ("contact/track", {"email": "a@b.co", "tags": ["x"]}),
        ("contact/track", {"email": "a@b.co", "addTags": "x"}),
        ("contact/track", {"email": "a@b.co", "addTags": None}),
        ("contact/track", {"email": "a@b.co", "removeTags": [{}]}),
        ("contact/identify/bulk", []),
        ("contact/identify/bulk", [{"email": f"a{n}@b.co"} for n in range(26)]),
        ("contact/identify/bulk", {"email": "a@b.co"}),
        ("events/custom", {"identifier": "a@b.co"}),
        ("events/custom", {"name": "signed up"}),
        ("events/custom", {"identifier": "a@b.co", "name": "signed up", "data": []}),
        ("events/custom", {"identifier": "a@b.co", "name": "signed up", "time": "1700000000"}),
        ("events/custom", {"identifier": "a@b.co", "name": "signed up", "time": 1700000000000}),
        ("events/revenue", {"identifier": "a@b.co"}),
        ("events/revenue", {"identifier": "a@b.co", "amount": "12"}),
        ("events/revenue", {"identifier": "a@b.co", "amount": 12, "currency": "EUR"}),
    ],
)
def test_what_the_schema_does_not_know_is_422_and_a_violation(live: Live, path: str, body: Any) -> None:
    live.identify()
    before = live.state.contacts.newest_first()
    answer = live.rest(path, body)
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    assert live.state.contacts.newest_first() == before
    assert [violation.number for violation in live.state.violations] == [2]
    assert live.state.violations[0].violation


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("team_id=team", {"addTags": ["x"]}),
        ("team_id=team&email=nowhere", {"addTags": ["x"]}),
        ("team_id=team&email=a+x@b.co", {"addTags": ["x"]}),
        ("team_id=team&email=a@b.co", {"addTags": ["x"], "email": "a@b.co"}),
        ("team_id=team&email=a@b.co&email=a@b.co", {"addTags": ["x"]}),
        ("team_id=team&email=a@b.co&more=1", {"addTags": ["x"]}),
        ("team_id=team&email=a@b.co", []),
    ],
)
def test_a_malformed_legacy_track_is_422_and_a_violation(live: Live, query: str, body: Any) -> None:
    live.identify()
    answer = live.client.post(f"/api/v1/contact/track?{query}", json=body)
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    assert len(live.state.violations) == 1


def test_lists_in_a_legacy_identify_are_a_violation(live: Live) -> None:
    assert live.legacy("contact/identify", {"email": "a@b.co", "lists": ["x"]}).content == MALFORMED
    assert len(live.state.violations) == 1


# Switches


@pytest.mark.parametrize(("value", "result"), [("negative", "-10"), ("positive", "10")])
def test_a_decrement_of_an_absent_field_follows_its_switch(live: Live, value: str, result: str) -> None:
    live.switch(decrement_absent=value)
    live.identify(customFields={"n": "--10"})
    assert live.contact().custom_fields == {"n": result}


@pytest.mark.parametrize(("value", "status"), [("accept", 200), ("reject", 422)])
@pytest.mark.parametrize(
    ("switch", "field"),
    [
        ("birthday", {"birthday": "1999-12-31"}),
        ("lists", {"lists": ["news"]}),
        ("number_in_custom_fields", {"customFields": {"n": 7}}),
    ],
)
def test_keys_that_the_docs_disagree_about_follow_their_switch(
    live: Live, switch: str, field: dict[str, Any], value: str, status: int
) -> None:
    live.switch(**{switch: value})
    assert live.identify(**field).status_code == status
    assert len(live.state.violations) == (status == 422)


def test_accepted_numbers_birthdays_and_lists_are_stored(live: Live) -> None:
    live.switch(number_in_custom_fields="accept")
    live.identify(customFields={"n": 7, "f": 1.5}, birthday="1999-12-31", lists=["news"])
    contact = live.contact()
    assert contact.custom_fields == {"n": "7", "f": "1.5"}
    assert (contact.birthday, contact.lists) == ("1999-12-31", ("news",))


@pytest.mark.parametrize(
    ("value", "status", "addresses"),
    [("create_new", 200, ["n@b.co"]), ("create_old", 200, ["a@b.co"]), ("not_found", 404, [])],
)
def test_new_email_of_an_unknown_contact_follows_its_switch(
    live: Live, value: str, status: int, addresses: list[str]
) -> None:
    live.switch(new_email_unknown_old=value)
    assert live.identify(newEmail="n@b.co").status_code == status
    assert [contact.email for contact in live.state.contacts.newest_first()] == addresses


def test_a_taken_new_email_is_a_409_by_default(live: Live) -> None:
    live.identify("a@b.co")
    live.identify("n@b.co")
    answer = live.identify("a@b.co", newEmail="N@b.co", tags=["x"])
    assert (answer.status_code, answer.content) == (409, b'{"status":"error","message":"Email already exists"}')
    assert {contact.email for contact in live.state.contacts.newest_first()} == {"a@b.co", "n@b.co"}
    assert live.contact().tags == ()


def test_a_taken_new_email_may_merge_both_contacts(live: Live) -> None:
    live.switch(new_email_taken="merge")
    live.identify("a@b.co", tags=["x"], firstName="A", customFields={"k": "1", "l": "2"})
    live.identify("n@b.co", tags=["y"], firstName="N", customFields={"l": "3", "m": "4"})
    assert live.identify("a@b.co", newEmail="n@b.co").content == OK
    (contact,) = live.state.contacts.newest_first()
    assert (contact.email, contact.first_name, contact.tags) == ("n@b.co", "A", ("y", "x"))
    assert contact.custom_fields == {"k": "1", "l": "2", "m": "4"}


@pytest.mark.parametrize(
    ("value", "status", "body", "addresses"),
    [
        ("reject_all", 422, MALFORMED, []),
        ("apply_valid_200", 200, BULK_OK, ["a@b.co", "c@d.co"]),
        ("apply_valid_422", 422, MALFORMED, ["a@b.co", "c@d.co"]),
    ],
)
def test_a_bulk_with_one_bad_item_follows_its_switch(
    live: Live, value: str, status: int, body: bytes, addresses: list[str]
) -> None:
    live.switch(bulk_partial_failure=value)
    answer = live.rest("contact/identify/bulk", [{"email": "a@b.co"}, {"email": "bad"}, {"email": "c@d.co"}])
    assert (answer.status_code, answer.content) == (status, body)
    assert sorted(contact.email for contact in live.state.contacts.newest_first()) == addresses
    assert "item 1" in (live.state.violations[0].violation or "")
    assert live.state.requests[0].applied is bool(addresses)
