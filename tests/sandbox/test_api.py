"""The fake SendX against what SendX's docs publish: bodies, merging, strictness, switches, faults, the page."""

from __future__ import annotations

import importlib
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

import httpx
import msgspec
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from starlette.applications import Starlette

from proxy.sandbox.api import Call, Contact, Fault, Sandbox, Switches, create_sandbox
from tests.support.live import eventually, serving

OK = b'{"status":"200","message":"OK"}'
MISSING = b'{"status":"error","message":"Resource not found"}'
MALFORMED = b'{"status":"error","message":"Request body is not in proper format"}'
UNAUTHORIZED = b'{"status":401,"message":"The Team ID or API Key specified is not valid"}'
BULK_OK = b'{"status":"success","message":"All contacts processed successfully"}'
EVENT_OK = b'{"status":"success","message":"Event tracked successfully"}'


class Live:
    """A served sandbox, its state, and a client that has the key."""

    def __init__(self, url: str, app: Starlette, client: httpx.Client) -> None:
        self.url = url
        self.state: Sandbox = app.state.sandbox
        self.client = client

    def rest(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(f"/api/v1/rest/{path}", json=body)

    def identify(self, email: str = "a@b.co", **fields: Any) -> httpx.Response:
        return self.rest("contact/identify", {"email": email, **fields})

    def track(self, email: str = "a@b.co", **fields: Any) -> httpx.Response:
        return self.rest("contact/track", {"email": email, **fields})

    def legacy(self, path: str, body: Any, **query: str) -> httpx.Response:
        return self.client.post(f"/api/v1/{path}", json=body, params={"team_id": "team", **query})

    def contact(self, email: str = "a@b.co") -> Contact:
        contact = self.state.contact(email)
        assert contact is not None
        return contact

    def switch(self, **values: str) -> None:
        assert self.client.post("/sandbox/switches", json=values).status_code == 200


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    app = create_sandbox(key="key", team_id="team")
    headers = {"X-Team-ApiKey": "key", "api_key": "key"}
    with serving(app) as url, httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
        yield Live(url, app, client)


@pytest.fixture
def live(served: Live) -> Live:
    """One server for all tests; each starts as if it had just come up."""
    served.state.clear()
    served.state.switches = Switches()
    return served


# Documented answers


def test_rest_identify_answers_ok_with_a_string_status(live: Live) -> None:
    answer = live.identify()
    assert (answer.status_code, answer.content) == (200, OK)
    assert answer.headers["content-type"] == "application/json"


def test_rest_track_answers_ok_for_a_known_contact(live: Live) -> None:
    live.identify()
    answer = live.track(addTags=["x"])
    assert (answer.status_code, answer.content) == (200, OK)


def test_rest_track_of_an_unknown_contact_is_404_and_creates_nothing(live: Live) -> None:
    answer = live.track(addTags=["x"])
    assert (answer.status_code, answer.content) == (404, MISSING)
    assert live.state.contacts == []
    assert live.state.violations == []


def test_bulk_identify_answers_success(live: Live) -> None:
    answer = live.rest("contact/identify/bulk", [{"email": "a@b.co"}, {"email": "c@d.co"}])
    assert (answer.status_code, answer.content) == (200, BULK_OK)
    assert {contact.email for contact in live.state.contacts} == {"a@b.co", "c@d.co"}


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("events/custom", {"name": "signed up", "data": {"plan": "pro"}, "time": 1700000000}),
        ("events/revenue", {"amount": 12.5, "source": "shop", "time": 1700000000}),
    ],
)
def test_events_are_kept_with_a_contact_named_by_address_or_id(live: Live, path: str, event: dict[str, Any]) -> None:
    live.identify()
    for identifier in ("A@b.co", live.contact().id):
        answer = live.rest(path, {"identifier": identifier, **event})
        assert (answer.status_code, answer.content) == (200, EVENT_OK)
    assert [{**kept, "identifier": ""} for kept in live.contact().events] == [{**event, "identifier": ""}] * 2


def test_events_of_an_unknown_contact_are_404(live: Live) -> None:
    answer = live.rest("events/custom", {"identifier": "a@b.co", "name": "signed up"})
    assert (answer.status_code, answer.content) == (404, MISSING)


def test_legacy_identify_answers_with_the_contact(live: Live) -> None:
    fields = {"firstName": "A", "lastName": "B", "company": "C", "birthday": "1999-12-31"}
    answer = live.legacy("contact/identify", {"email": "a@b.co", **fields, "tags": ["x"], "customFields": {"k": "v"}})
    team = msgspec.json.decode(answer.content)["data"]["encryptedTeamId"]
    assert (len(team), len(live.contact().id)) == (22, 22)
    assert answer.text == (
        f'{{"status":"200","message":"OK","data":{{"encryptedTeamId":"{team}","encryptedId":"{live.contact().id}",'
        '"tags":["x"],"firstName":"A","lastName":"B","email":"a@b.co","company":"C","birthday":"1999-12-31",'
        '"customFields":{"k":"v"}}}'
    )


def test_legacy_identify_answers_empty_strings_for_what_is_absent(live: Live) -> None:
    answer = live.legacy("contact/identify", {"email": "a@b.co"})
    assert answer.text.endswith(
        '"tags":[],"firstName":"","lastName":"","email":"a@b.co","company":"","birthday":"","customFields":{}}}'
    )


def test_legacy_track_answers_success_and_takes_an_address_with_a_plus(live: Live) -> None:
    live.identify("a+x@b.co")
    answer = live.legacy("contact/track", {"addTags": ["paid user"], "removeTags": []}, email="a+x@b.co")
    assert (answer.status_code, answer.content) == (200, b'{"status":"200","message":"OK","data":"success"}')
    assert live.contact("a+x@b.co").tags == ("paid user",)
    assert live.state.requests[-1].query == "team_id=team&email=a%2Bx%40b.co"


def test_legacy_track_of_an_unknown_contact_is_404(live: Live) -> None:
    answer = live.legacy("contact/track", {"addTags": ["x"]}, email="a@b.co")
    assert (answer.status_code, answer.content) == (404, MISSING)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/v1/rest/contact/identify", {}),
        ("/api/v1/rest/contact/identify", {"X-Team-ApiKey": "wrong"}),
        ("/api/v1/rest/contact/identify", {"api_key": "key"}),
        ("/api/v1/contact/identify?team_id=team", {"X-Team-ApiKey": "key"}),
        ("/api/v1/contact/identify?team_id=wrong", {"api_key": "key"}),
        ("/api/v1/contact/identify", {"api_key": "key"}),
    ],
)
def test_a_wrong_key_or_team_is_401_with_an_integer_status(live: Live, path: str, headers: dict[str, str]) -> None:
    answer = httpx.post(live.url + path, headers=headers, json={"email": "a@b.co"})
    assert (answer.status_code, answer.content) == (401, UNAUTHORIZED)
    assert live.state.contacts == []
    assert live.state.violations == []


# Contacts


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
    assert [(contact.email, contact.tags) for contact in live.state.contacts] == [("Ada@B.co", ("x", "y"))]


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
    assert [contact.email for contact in live.state.contacts] == ["n@b.co"]
    moved = live.contact("n@b.co")
    assert (moved.id, moved.first_name, moved.tags) == (contact_id, "A", ("x", "y"))


def test_new_email_may_change_the_spelling_only(live: Live) -> None:
    live.identify("a@b.co", customFields={"n": "1"})
    assert live.identify("a@b.co", newEmail="A@b.co", customFields={"n": "++1"}).content == OK
    assert [(contact.email, contact.custom_fields) for contact in live.state.contacts] == [("A@b.co", {"n": "2"})]


# Strictness


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
    before = live.state.contacts
    answer = live.rest(path, body)
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    assert live.state.contacts == before
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


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "text/json"])
def test_another_content_type_is_a_violation(live: Live, content_type: str) -> None:
    answer = live.client.post(
        "/api/v1/rest/contact/identify", content=b'{"email":"a@b.co"}', headers={"Content-Type": content_type}
    )
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    assert "Content-Type" in (live.state.violations[0].violation or "")


def test_a_charset_of_utf_8_is_no_violation(live: Live) -> None:
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    live.client.post("/api/v1/rest/contact/identify", content=b'{"email":"a@b.co"}', headers=headers)
    assert live.state.violations == []


@pytest.mark.parametrize("raw", [b"", b"{", b'{"email":"a@b.co"}x', b'{"email":"\xff@b.co"}', b"[" * 5000, b"NaN"])
def test_a_body_that_is_not_json_is_a_violation(live: Live, raw: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = live.client.post("/api/v1/rest/contact/identify", content=raw, headers=headers)
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    assert live.state.violations[0].body is None
    assert live.client.get("/sandbox/violations").json()["total"] == 1


@pytest.mark.parametrize("levels", [33, 978, 5000])
def test_a_body_that_is_nested_too_deep_is_a_violation_that_can_be_looked_at(live: Live, levels: int) -> None:
    nested = b"[" * (levels - 1) + b"]" * (levels - 1)
    raw = b'{"identifier":"a@b.co","name":"n","data":' + nested + b"}"
    headers = {"Content-Type": "application/json"}
    answer = live.client.post("/api/v1/rest/events/custom", content=raw, headers=headers)
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    (record,) = live.client.get("/sandbox/requests").json()["requests"]
    assert (record["body"], record["raw"]) == (None, raw.decode())
    assert live.client.get("/sandbox/violations").json()["violations"] == [record]


def test_a_body_may_be_nested_as_deep_as_32_levels(live: Live) -> None:
    live.identify()
    data: dict[str, Any] = {}
    for _ in range(30):
        data = {"in": data}
    assert live.rest("events/custom", {"identifier": "a@b.co", "name": "n", "data": data}).content == EVENT_OK
    assert live.state.violations == []


def test_a_body_that_is_too_long_is_refused_and_not_kept_whole(live: Live) -> None:
    answer = live.identify(firstName="x" * 400_000)
    assert answer.status_code == 413
    assert len(live.state.violations[0].raw) < 300_000


def test_query_parameters_in_rest_are_a_violation(live: Live) -> None:
    answer = live.client.post("/api/v1/rest/contact/identify?team_id=team", json={"email": "a@b.co"})
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    assert len(live.state.violations) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/rest/contact/identify", 405),
        ("PUT", "/api/v1/contact/track", 405),
        ("POST", "/api/v1/rest/contact/forget", 404),
        ("POST", "/api/v1/rest/contact/identify/", 404),
        ("POST", "/api/v1/contact%2Fidentify", 404),
        ("POST", "/rest/contact/identify", 404),
        ("POST", "/contact/identify", 404),
    ],
)
def test_a_wrong_path_or_method_is_a_violation(live: Live, method: str, path: str, status: int) -> None:
    answer = live.client.request(method, path, json={"email": "a@b.co"})
    assert answer.status_code == status
    assert [(one.method, one.path) for one in live.state.violations] == [(method, path)]


# Switches


def test_the_switches_are_read_and_set_over_http(live: Live) -> None:
    assert live.client.get("/sandbox/switches").json()["decrement_absent"] == "negative"
    answer = live.client.post("/sandbox/switches", json={"decrement_absent": "positive"})
    assert answer.json()["decrement_absent"] == "positive"
    assert live.state.switches == Switches(decrement_absent="positive")


@pytest.mark.parametrize("order", [{"nonsense": "1"}, {"lists": "maybe"}, {"lists": 1}, []])
def test_an_unknown_switch_or_value_is_refused_and_named(live: Live, order: Any) -> None:
    answer = live.client.post("/sandbox/switches", json=order)
    assert answer.status_code == 400
    assert answer.json()["error"] == "bad-order"
    assert answer.json()["message"]
    assert live.state.switches == Switches()


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
    assert [contact.email for contact in live.state.contacts] == addresses


def test_a_taken_new_email_is_a_409_by_default(live: Live) -> None:
    live.identify("a@b.co")
    live.identify("n@b.co")
    answer = live.identify("a@b.co", newEmail="N@b.co", tags=["x"])
    assert (answer.status_code, answer.content) == (409, b'{"status":"error","message":"Email already exists"}')
    assert {contact.email for contact in live.state.contacts} == {"a@b.co", "n@b.co"}
    assert live.contact().tags == ()


def test_a_taken_new_email_may_merge_both_contacts(live: Live) -> None:
    live.switch(new_email_taken="merge")
    live.identify("a@b.co", tags=["x"], firstName="A", customFields={"k": "1", "l": "2"})
    live.identify("n@b.co", tags=["y"], firstName="N", customFields={"l": "3", "m": "4"})
    assert live.identify("a@b.co", newEmail="n@b.co").content == OK
    (contact,) = live.state.contacts
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
    assert sorted(contact.email for contact in live.state.contacts) == addresses
    assert "item 1" in (live.state.violations[0].violation or "")
    assert live.state.requests[0].applied is bool(addresses)


# Faults


def order(live: Live, **fault_order: Any) -> dict[str, Any]:
    answer = live.client.post("/sandbox/faults", json=fault_order)
    assert answer.status_code == 200, answer.text
    faults: dict[str, Any] = answer.json()
    return faults


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, UNAUTHORIZED),
        (403, b'{"status":"error","message":"Forbidden"}'),
        (404, MISSING),
        (409, b'{"status":"error","message":"Email already exists"}'),
        (422, MALFORMED),
        (429, b'{"status":"error","message":"Rate limit exceeded"}'),
        (500, b'{"status":"error","message":"Internal server error occurred"}'),
        (503, b'{"status":"error","message":"Service Unavailable"}'),
        (599, b'{"status":"error","message":"Error"}'),
        (201, OK),
        (204, b""),
    ],
)
def test_an_ordered_status_comes_with_its_documented_body(live: Live, status: int, body: bytes) -> None:
    order(live, script=[{"status": status}])
    answer = live.identify()
    assert (answer.status_code, answer.content) == (status, body)
    assert "retry-after" not in answer.headers
    assert live.state.contacts == []
    assert live.identify().content == OK


def test_a_429_may_say_when_to_come_back_in_seconds_or_as_a_date(live: Live) -> None:
    order(
        live,
        script=[
            {"status": 429, "retry_after": 7},
            {"status": 429, "retry_after": 600, "retry_after_date": True},
        ],
    )
    assert live.identify().headers["retry-after"] == "7"
    date = live.identify().headers["retry-after"]
    assert date.endswith(" GMT")
    assert 0 < parsedate_to_datetime(date).timestamp() - time.time() <= 600


def test_a_gateway_answers_with_html(live: Live) -> None:
    order(live, script=[{"kind": "html", "status": 502}])
    answer = live.identify()
    assert (answer.status_code, answer.text) == (502, "<html><body><h1>502 Bad Gateway</h1></body></html>")
    assert answer.headers["content-type"].startswith("text/html")


def test_an_answer_may_be_empty_or_carry_any_body(live: Live) -> None:
    order(live, script=[{"kind": "empty", "status": 200}, {"status": 400, "body": '{"error":"no"}'}])
    empty, other = live.identify(), live.identify()
    assert (empty.status_code, empty.content) == (200, b"")
    assert (other.status_code, other.content) == (400, b'{"error":"no"}')


def test_a_hang_ends_when_the_client_goes_away_and_leaves_the_rest_alone(live: Live) -> None:
    order(live, contact="A@b.co", script=[{"kind": "hang"}])
    with pytest.raises(httpx.ReadTimeout):
        live.client.post("/api/v1/rest/contact/identify", json={"email": "a@b.co"}, timeout=0.2)
    assert live.identify().content == OK
    assert [(one.status, one.applied, one.fault) for one in live.state.requests] == [
        (None, False, "hang"),
        (200, True, None),
    ]


@pytest.mark.parametrize("header", ["", "Connection: close\r\n"])
def test_a_hang_does_not_block_the_end_of_the_server(header: str) -> None:
    app = create_sandbox()
    app.state.sandbox.stand("*", Fault("hang"))
    head = f"POST /api/v1/rest/contact/identify HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 0\r\n\r\n"
    with serving(app) as url:
        client = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=10)
        client.sendall(head.encode())
        eventually(lambda: app.state.sandbox.requests)
    with client, pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_slow_answer_does_not_block_the_end_of_the_server() -> None:
    app = create_sandbox()
    app.state.sandbox.stand("*", Fault("ok", delay=3600))
    head = b"POST /api/v1/rest/contact/identify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with serving(app) as url:
        client = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=10)
        client.sendall(head)
        eventually(lambda: app.state.sandbox.requests)
    with client:
        assert client.recv(100).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("applied", [False, True])
def test_a_reset_breaks_the_connection_before_or_after_the_request_took_effect(live: Live, applied: bool) -> None:
    order(live, script=[{"kind": "reset", "applied": applied}])
    with pytest.raises(httpx.ReadError):
        live.identify()
    assert bool(live.state.contacts) is applied
    assert (live.state.requests[0].status, live.state.requests[0].applied) == (None, applied)
    assert live.identify().content == OK


def test_a_reset_of_a_reused_connection_is_seen_too(live: Live) -> None:
    live.identify()
    order(live, script=[{"kind": "reset"}])
    with pytest.raises(httpx.ReadError):
        live.track(addTags=["x"])


async def test_a_reset_without_a_server_fails_the_call_itself() -> None:
    app = create_sandbox()
    app.state.sandbox.script("*", Fault("reset"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
        with pytest.raises(ConnectionResetError):
            await client.post("/api/v1/rest/contact/identify", json={"email": "a@b.co"})


def test_a_slow_answer_takes_effect_at_once_and_comes_later(live: Live) -> None:
    order(live, script=[{"kind": "ok", "delay": 3600}, {"kind": "ok", "delay": 0.01}])
    with pytest.raises(httpx.ReadTimeout):
        live.client.post("/api/v1/rest/contact/identify", json={"email": "a@b.co"}, timeout=0.2)
    assert live.contact().tags == ()
    assert live.track(addTags=["x"]).content == OK


def test_an_error_may_come_although_the_request_took_effect(live: Live) -> None:
    order(live, script=[{"status": 500, "applied": True}])
    assert live.identify().status_code == 500
    assert live.contact().email == "a@b.co"
    assert live.state.requests[0].applied


def test_a_script_is_consumed_one_by_one_and_ignores_the_case_of_the_address(live: Live) -> None:
    order(live, contact="A@B.co", script=[{"status": 500}, {"kind": "ok"}, {"status": 429}])
    assert live.identify("c@d.co").status_code == 200
    assert [live.identify("a@b.CO").status_code for _ in range(4)] == [500, 200, 429, 200]


def test_one_contacts_orders_go_before_everybodys_and_a_script_before_a_standing_fault(live: Live) -> None:
    order(live, script=[{"status": 503}], standing={"status": 502})
    order(live, contact="a@b.co", script=[{"status": 500}], standing={"status": 501})
    assert [live.identify("a@b.co").status_code for _ in range(3)] == [500, 501, 501]
    assert [live.identify("c@d.co").status_code for _ in range(3)] == [503, 502, 502]


def test_faults_reach_legacy_tracks_events_and_bulks_of_a_contact(live: Live) -> None:
    order(live, contact="a@b.co", standing={"status": 500})
    assert live.legacy("contact/track", {"addTags": []}, email="a@b.co").status_code == 500
    assert live.rest("events/custom", {"identifier": "a@b.co", "name": "x"}).status_code == 500
    assert live.rest("contact/identify/bulk", [{"email": "c@d.co"}, {"email": "a@b.co"}]).status_code == 500


def test_a_standing_fault_stays_until_removed(live: Live) -> None:
    faults = order(live, standing={"status": 500})
    assert faults["standing"]["*"]["status"] == 500
    assert [live.identify().status_code for _ in range(3)] == [500] * 3
    assert order(live, standing=None) == {"script": {}, "standing": {}}
    assert live.identify().status_code == 200


def test_clearing_the_faults_removes_scripts_and_standing_faults(live: Live) -> None:
    order(live, contact="a@b.co", script=[{"status": 500}], standing={"status": 500})
    assert order(live, clear=True) == {"script": {}, "standing": {}}
    assert live.identify().status_code == 200


def test_a_violation_is_recorded_even_behind_a_fault(live: Live) -> None:
    order(live, standing={"status": 500})
    assert live.identify(age=3).status_code == 500
    assert len(live.state.violations) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"script": [{"kind": "explode"}]},
        {"script": [{"status": 99}]},
        {"script": {"status": 500}},
        {"standing": {"delay": -1}},
        {"nonsense": 1},
    ],
)
def test_a_malformed_fault_order_is_refused_and_says_why(live: Live, bad: Any) -> None:
    answer = live.client.post("/sandbox/faults", json=bad)
    assert answer.status_code == 400
    assert "$" in answer.json()["message"] or "nonsense" in answer.json()["message"]


# The record


def test_requests_are_recorded_in_order_with_masked_keys(live: Live) -> None:
    live.identify(tags=["ü"])
    live.track("c@d.co", addTags=["x"])
    log = live.client.get("/sandbox/requests").json()
    assert (log["total"], [one["number"] for one in log["requests"]]) == (2, [1, 2])
    first, second = log["requests"]
    assert (first["method"], first["path"], first["query"]) == ("POST", "/api/v1/rest/contact/identify", "")
    assert (first["headers"]["x-team-apikey"], first["headers"]["api_key"]) == ("***", "***")
    assert first["headers"]["content-type"] == "application/json"
    assert first["body"] == {"email": "a@b.co", "tags": ["ü"]}
    assert first["raw"] == '{"email":"a@b.co","tags":["ü"]}'
    assert (first["contact"], first["status"], first["applied"]) == ("a@b.co", 200, True)
    assert (second["contact"], second["status"], second["applied"]) == ("c@d.co", 404, False)
    assert first["time"].endswith("Z")


def test_the_record_is_read_from_a_number_on_and_up_to_a_limit(live: Live) -> None:
    for number in range(5):
        live.identify(f"a{number}@b.co")
    newer = live.client.get("/sandbox/requests?since=2").json()["requests"]
    assert [one["number"] for one in newer] == [3, 4, 5]
    newest = live.client.get("/sandbox/requests?since=1&limit=2").json()["requests"]
    assert [one["number"] for one in newest] == [4, 5]
    people = live.client.get("/sandbox/contacts?limit=1").json()
    assert (people["total"], people["contacts"][0]["email"]) == (5, "a4@b.co")
    assert live.client.get("/sandbox/requests?since=soon").status_code == 400


def test_the_record_keeps_the_last_ten_thousand_requests_and_counts_all() -> None:
    sandbox = Sandbox()
    for _ in range(10_001):
        sandbox.handle(Call("POST", "/api/v1/rest/contact/track", "", {}, b""))
    assert sandbox.total == 10_001
    assert (len(sandbox.requests), sandbox.requests[0].number) == (10_000, 2)


def test_clear_forgets_all_but_the_switches(live: Live) -> None:
    live.switch(lists="reject")
    live.identify(age=1)
    live.identify()
    order(live, standing={"status": 500})
    before = live.client.get("/sandbox/requests").json()["generation"]
    assert live.client.post("/sandbox/clear").json() == {}
    log = live.client.get("/sandbox/requests").json()
    assert log == {"total": 0, "generation": before + 1, "requests": []}
    assert (live.state.contacts, live.state.violations) == ([], [])
    assert live.state.faults == {"script": {}, "standing": {}}
    assert live.state.switches == Switches(lists="reject")


# SendX's own SDK


@pytest.fixture(scope="module")
def sdk() -> ModuleType:
    return importlib.import_module("sendx_python_sdk")


def tracking(sdk: ModuleType, live: Live, key: str = "key") -> Any:
    configuration = sdk.Configuration(host=f"{live.url}/api/v1/rest", api_key={"TeamApiKey": key})
    configuration.proxy = None
    return sdk.TrackingApi(sdk.ApiClient(configuration))


def test_sendx_own_sdk_identifies_and_tracks(live: Live, sdk: ModuleType) -> None:
    api = tracking(sdk, live)
    person = sdk.IdentifyRequest(email="a@b.co", firstName="A", customFields={"Age": "++34"}, tags=["x", "y"])
    identified = api.identify_contact(person)
    tracked = api.track_contact(sdk.TrackRequest(email="a@b.co", addTags=["z"], removeTags=["y"]))
    assert (identified.status, tracked.status) == ("200", "200")
    assert (identified.message, tracked.message) == ("OK", "OK")
    assert (live.contact().tags, live.contact().custom_fields) == (("x", "z"), {"Age": "34"})
    assert live.state.violations == []


def test_sendx_own_sdk_raises_unauthorized_for_a_wrong_key(live: Live, sdk: ModuleType) -> None:
    with pytest.raises(sdk.exceptions.UnauthorizedException):
        tracking(sdk, live, "wrong").identify_contact(sdk.IdentifyRequest(email="a@b.co"))


def test_sendx_own_sdk_raises_not_found_for_an_unknown_contact(live: Live, sdk: ModuleType) -> None:
    with pytest.raises(sdk.exceptions.NotFoundException):
        tracking(sdk, live).track_contact(sdk.TrackRequest(email="a@b.co", addTags=["x"]))


def test_sendx_own_sdk_raises_unprocessable_for_a_malformed_address(live: Live, sdk: ModuleType) -> None:
    with pytest.raises(sdk.exceptions.UnprocessableEntityException):
        tracking(sdk, live).identify_contact(sdk.IdentifyRequest(email="nowhere"))


# The page and the command


@pytest.fixture
def page(live: Live) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(live.url)
        yield page
        assert problems == []
        browser.close()


@pytest.mark.browser
def test_the_page_shows_a_tag_land_and_hostile_text_as_text(live: Live, page: Page) -> None:
    expect(page.locator("#contacts")).to_contain_text("No contact yet")
    live.identify(firstName="<img src=x onerror=alert(1)>", tags=["<b>bold</b>"])
    live.track(addTags=["added to cart"])
    expect(page.locator("#contacts .tag")).to_have_text(["<b>bold</b>", "added to cart"])
    expect(page.locator("#contacts dd")).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#requests .item code").first).to_have_text("POST /api/v1/rest/contact/track")
    assert page.locator("img, b").count() == 0


@pytest.mark.browser
def test_the_page_shows_violations(live: Live, page: Page) -> None:
    expect(page.locator("#violations")).to_be_hidden()
    live.identify(age=3)
    expect(page.locator("#violations .list")).to_contain_text("unknown field `age`")


@pytest.mark.browser
def test_the_pages_buttons_switch_faults_on_and_off_and_clear(live: Live, page: Page) -> None:
    page.get_by_role("button", name="SendX is down").click()
    expect(page.get_by_role("button", name="SendX is down")).to_have_attribute("aria-pressed", "true")
    assert live.identify().status_code == 500
    page.get_by_role("button", name="Back to normal").click()
    expect(page.get_by_text("Working normally")).to_be_visible()
    expect(page.get_by_role("button", name="Back to normal")).to_be_disabled()
    assert live.identify().status_code == 200
    expect(page.locator("#requests .item")).to_have_count(2)
    page.get_by_role("button", name="Clear everything").click()
    expect(page.locator("#requests")).to_contain_text("No request yet")
    live.identify("c@d.co")
    expect(page.locator("#contacts .email")).to_have_text("c@d.co")


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_its_width(live: Live, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    live.identify(f"{'a' * 60}@{'b' * 60}.co", tags=["x" * 200], customFields={"k" * 100: "v" * 200})
    expect(page.locator("#contacts .tag")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == width
