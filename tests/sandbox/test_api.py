"""The fake SendX on the wire: the bodies that SendX's docs publish, what is no request at all, the record, and SendX's own SDK."""

import importlib
from types import ModuleType
from typing import Any

import httpx
import msgspec
import pytest

from proxy.sandbox.api import Call, Sandbox
from tests.sandbox.conftest import BULK_OK, EVENT_OK, MALFORMED, MISSING, OK, UNAUTHORIZED, Live

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
    assert live.state.contacts.newest_first() == []
    assert live.state.violations == []


def test_bulk_identify_answers_success(live: Live) -> None:
    answer = live.rest("contact/identify/bulk", [{"email": "a@b.co"}, {"email": "c@d.co"}])
    assert (answer.status_code, answer.content) == (200, BULK_OK)
    assert {contact.email for contact in live.state.contacts.newest_first()} == {"a@b.co", "c@d.co"}


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
    answer = httpx.post(live.url + path, headers=headers, json={"email": "a@b.co"}, timeout=120)
    assert (answer.status_code, answer.content) == (401, UNAUTHORIZED)
    assert live.state.contacts.newest_first() == []
    assert live.state.violations == []


# Strictness


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
    answer = live.client.post("/api/v1/rest/contact/identify?team_id=team", json={"email": "a@b.co"}, timeout=120)
    assert (answer.status_code, answer.content) == (422, MALFORMED)
    assert len(live.state.violations) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/rest/contact/identify", 405),
        ("POST", "/api/v1/rest/tag", 405),
        ("PUT", "/api/v1/contact/track", 405),
        ("POST", "/api/v1/rest/contact/forget", 404),
        ("POST", "/api/v1/rest/contact/identify/", 404),
        ("POST", "/api/v1/contact%2Fidentify", 404),
        ("POST", "/rest/contact/identify", 404),
        ("POST", "/contact/identify", 404),
    ],
)
def test_a_wrong_path_or_method_is_a_violation(live: Live, method: str, path: str, status: int) -> None:
    answer = live.client.request(method, path, json={"email": "a@b.co"}, timeout=120)
    assert answer.status_code == status
    assert [(one.method, one.path) for one in live.state.violations] == [(method, path)]


def test_the_tags_in_use_can_be_listed_in_both_dialects_with_the_key(live: Live) -> None:
    live.identify(tags=["b", "a"])
    rest, legacy = "/api/v1/rest/tag", "/api/v1/tag?team_id=team"
    listed = live.client.get(rest).json()
    assert [tag["name"] for tag in listed] == ["a", "b"]
    assert live.client.get(legacy).json() == {"status": "200", "message": "OK", "data": listed}
    unknown = {"X-Team-ApiKey": "wrong", "api_key": "wrong"}
    assert [live.client.get(path, headers=unknown).status_code for path in (rest, legacy)] == [401, 401]
    assert live.state.violations == []


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


def test_the_record_keeps_the_last_ten_thousand_requests_and_counts_all() -> None:
    sandbox = Sandbox()
    for _ in range(10_001):
        sandbox.handle(Call("POST", "/api/v1/rest/contact/track", "", {}, b""))
    assert sandbox.total == 10_001
    assert (len(sandbox.requests), sandbox.requests[0].number) == (10_000, 2)


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
