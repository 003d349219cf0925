"""Values that SendX could not take are dropped and named on the real server, and the rest reaches SendX: pages read `dropped`, servers a header.

SendX is the sandbox, which refuses what SendX's documentation says that it refuses.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest

from proxy.sandbox.api import Sandbox
from tests.support.live import eventually
from tests.support.server import (
    ADMIN_TOKEN,
    Browser,
    Server,
    arrives,
    clean_environ,
    command,
    identify,
    login,
    new_email,
    new_id,
    requests_about,
    token,
    track,
)
from tests.support.server import SERVER_KEY as KEY
from tests.support.trifles import LONG, TRIFLES

IDENTIFY, BULK, TRACK = (f"/api/v1/rest/contact/{name}" for name in ("identify", "identify/bulk", "track"))
LEGACY_IDENTIFY, LEGACY_TRACK = "/api/v1/contact/identify", "/api/v1/contact/track"
CRM_KEY = "server-key-of-the-crm-" + "2" * 20
OK = '{"status":"200","message":"OK"}'

Says = dict[str, Any]


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """Everything is offered to everybody, so that nothing is dropped for another reason."""
    lists = dict.fromkeys(("SCQ_TAGS", "SCQ_FIELDS", "SCQ_ASSERTED_TAGS", "SCQ_ASSERTED_FIELDS"), "*")
    sign_ups = dict.fromkeys(("SCQ_SIGNUPS_PER_IP", "SCQ_SIGNUPS_PER_HOUR", "SCQ_RATE_PER_KEY"), "0")
    keys = {"SCQ_SERVER_KEYS": f"{KEY},{CRM_KEY}", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN}
    return lists | sign_ups | keys | {"SCQ_IDENTIFY": "asserted"}


def call(server: Server, path: str, body: Any, *, key: str = KEY, again: str = "") -> httpx.Response:
    headers = {"X-Team-ApiKey": key, "api_key": key} | ({"Idempotency-Key": again} if again else {})
    return server.client.post(path, content=json.dumps(body).replace("Infinity", "1e999").encode(), headers=headers)


def names_of(response: httpx.Response) -> list[str]:
    header = response.headers.get("scq-dropped")
    assert header is None or re.fullmatch(r"[!-~ ]{1,1100}", header)
    return [] if header is None else header.split(",")


def dropped_values(server: Server) -> int:
    metrics = server.client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).text
    (count,) = re.findall(r"^scq_dropped_values_total (\d+)\.0$", metrics, re.MULTILINE)
    assert 'to="dropped_values"' not in metrics
    return int(count)


# Every trifle, in every way


def typed(server: Server, email: str, says: Says) -> list[str]:
    (result,) = Browser(server).push(identify(email=email, **says))
    assert result["status"] == "accepted"
    return list(result.get("dropped", ()))


def beside_a_token(server: Server, email: str, says: Says) -> list[str]:
    (result,) = Browser(server).push(identify(token=token(email), **says))
    assert result["status"] == "accepted"
    return list(result.get("dropped", ()))


def in_a_token(server: Server, email: str, says: Says) -> list[str]:
    (result,) = Browser(server).push(login(email, **says))
    assert result["status"] == "accepted"
    return [name.removeprefix("contact.") for name in result.get("dropped", [])]


def from_a_server(server: Server, email: str, says: Says) -> list[str]:
    response = call(server, IDENTIFY, {"email": email, **says})
    assert (response.status_code, response.text) == (200, OK)
    return names_of(response)


def legacy(server: Server, email: str, says: Says) -> list[str]:
    response = call(server, LEGACY_IDENTIFY, {"email": email, **says})
    assert (response.status_code, response.json()["data"]["email"]) == (200, email)
    return names_of(response)


def in_bulk(server: Server, email: str, says: Says) -> list[str]:
    contacts = [{"email": new_email()}, {"email": email, **says}, {"email": new_email(), "firstName": "Eve"}]
    response = call(server, BULK, contacts)
    assert response.json() == {"status": "success", "message": "All contacts processed successfully"}
    names = names_of(response)
    assert all(name.startswith("1.") for name in names)
    return [name.removeprefix("1.") for name in names]


@pytest.mark.parametrize("source", [typed, beside_a_token, in_a_token, from_a_server, legacy, in_bulk])
@pytest.mark.parametrize("name", TRIFLES)
def test_a_trifle_costs_nothing_but_itself(
    server: Server, sandbox: Sandbox, source: Callable[[Server, str, Says], list[str]], name: str
) -> None:
    trifle, email = TRIFLES[name], new_email()
    dropped = source(server, email, trifle.says)
    if source in (from_a_server, legacy, in_bulk):
        assert dropped == [quote(each[:64], safe="[]") for each in trifle.dropped]
    else:
        assert dropped == list(trifle.dropped)
    (request,) = eventually(lambda: requests_about(sandbox, email))
    assert (request.body, request.violation) == ({"email": email, **trifle.goes_on}, None)


# Pages


@pytest.mark.parametrize("address", ["", " ", "nowhere", 7, [], "a\u202eb@example.com"])
def test_a_bad_address_beside_a_token_is_dropped_and_the_log_in_counts(
    server: Server, sandbox: Sandbox, address: Any
) -> None:
    email, browser = new_email(), Browser(server)
    (result,) = browser.push(identify(email=address, token=token(email)))
    assert (result["status"], result["dropped"]) == ("accepted", ["email"])
    browser.push(track("cart-1"))
    arrives(sandbox, email, "+cart-1")


def test_what_stands_behind_the_object_of_a_call_is_ignored(server: Server, sandbox: Sandbox) -> None:
    email, browser = new_email(), Browser(server)
    calls = [[*login(email), "x", 3], [*track("cart-1"), None], ["reset", {}, 1], ["consent", "granted", {}, 1]]
    assert browser.statuses(*calls) == ["accepted"] * 4
    arrives(sandbox, email, "+cart-1")


def test_a_track_of_a_page_may_have_empties_and_is_refused_whole_for_half_a_tag(
    server: Server, sandbox: Sandbox
) -> None:
    email, browser = new_email(), Browser(server)
    browser.logs_in(email)
    odd = ["track", {"addTags": {"1": "cart-1", "3": ""}, "removeTags": []}]
    halves = [["track", {"addTags": ["cart-2", tag]}] for tag in (7, LONG)]
    nothing = [["track", {"addTags": []}], ["track", {"addTags": [""], "removeTags": None}]]
    outcomes = browser.statuses(odd, *halves, *nothing, track("cart-3"))
    assert outcomes == ["accepted", "bad-shape", "too-long", "bad-shape", "bad-shape", "accepted"]
    assert arrives(sandbox, email, "+cart-3") == ["identify", "+cart-1", "+cart-3"]


# Servers


def test_keys_that_sendx_may_know_are_passed_on_within_limits_and_dropped_beyond(
    server: Server, sandbox: Sandbox
) -> None:
    email, deep = new_email(), json.loads("[" * 20 + "]" * 20)
    beyond = {
        "text": LONG,
        "o" * 256: "x",
        "number": 10**30,
        "infinite": float("inf"),
        "deep": deep,
        "long": ["l"] * 101,
    }
    spellings = {"Email": "b@example.com", "customfields": {"n": "++1"}, "FIRSTNAME": "x"}
    response = call(server, IDENTIFY, {"email": email, "lists": ["l1"], "none": None, **beyond, **spellings})
    assert (response.status_code, response.text) == (200, OK)
    assert names_of(response) == [name[:64] for name in [*beyond, *spellings]]
    (request,) = eventually(lambda: requests_about(sandbox, email))
    assert request.body == {"email": email, "lists": ["l1"]}


def test_of_too_many_keys_the_first_hundred_are_passed_on(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    response = call(server, IDENTIFY, {"email": email, **{f"other-{number}": 1 for number in range(102)}})
    assert names_of(response) == ["other-100", "other-101"]
    (request,) = eventually(lambda: requests_about(sandbox, email))
    assert len(request.body) == 101


def test_a_track_of_a_server_goes_on_without_the_tags_that_are_unusable(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    call(server, IDENTIFY, {"email": email, "tags": ["trial"]})
    tags = {"addTags": ["paid", LONG, 7, ""], "removeTags": {"1": "trial", "2": None}, "AddTags": ["x"]}
    response = call(server, TRACK, {"email": email, **tags})
    assert (response.status_code, response.text) == (200, OK)
    assert names_of(response) == ["addTags[1]", "addTags[2]", "AddTags"]
    response = call(server, TRACK, {"email": email, "addTags": "x", "removeTags": ["paid"]})
    assert names_of(response) == ["addTags"]
    arrives(sandbox, email, "-paid")  # else the next one may travel along
    response = call(
        server, f"{LEGACY_TRACK}?email={email}", {"email": "x", "addTags": {"0": "end"}, "removeTags": ["x"] * 101}
    )
    assert names_of(response) == ["removeTags"]
    assert arrives(sandbox, email, "+end") == ["identify", "+trial", "+paid", "-trial", "-paid", "+end"]


def test_a_name_in_the_header_is_encoded_and_a_long_list_of_them_is_cut(server: Server) -> None:
    odd = 'a, b;"c"\r\n\u202e\u00fc%'
    response = call(server, IDENTIFY, {"email": new_email(), "customFields": {odd: ["x"]}})
    (name,) = names_of(response)
    assert unquote(name) == f"customFields.{odd}"
    many = {f"field-{number}": ["x"] for number in range(100)}
    names = names_of(call(server, IDENTIFY, {"email": new_email(), "customFields": many}))
    assert names[:-1] == [f"customFields.field-{number}" for number in range(len(names) - 1)]
    assert names[-1] == f"...and {100 - len(names) + 1} more"
    longest = {str(number) + "\U0001f600" * 255: "x" for number in range(15)}
    names = names_of(call(server, IDENTIFY, {"email": new_email(), "customFields": longest}))
    assert names[-1] == "...and 14 more"


def test_the_header_names_no_address(server: Server) -> None:
    says: dict[str, Any] = {
        "email": new_email(),
        "customFields": {"ann@example.com": ["x"], "of" * 25 + "%40ann@example.com": ["x"]},
    }
    says |= {"bob@example.com": "x" * 300, "tags": [["x"]]}
    assert names_of(call(server, IDENTIFY, says)) == ["...an-address", "...an-address", "tags[0]", "...an-address"]
    names = names_of(call(server, BULK, [{"email": new_email()}, says]))
    assert names == ["1....an-address", "1....an-address", "1.tags[0]", "1....an-address"]


def test_a_call_of_which_nothing_is_dropped_has_no_such_header(server: Server) -> None:
    for response in (call(server, IDENTIFY, {"email": new_email(), "tags": []}), call(server, IDENTIFY, {"email": ""})):
        assert "scq-dropped" not in response.headers


def test_what_was_dropped_is_counted_once_however_often_the_call_is_repeated(server: Server) -> None:
    before, key, push_id, browser = dropped_values(server), new_id(), new_id(), Browser(server)
    contacts = [{"email": new_email(), "birthday": ""}, {"email": new_email(), "tags": [7, "x"], "company": LONG}]
    for _ in range(2):
        assert names_of(call(server, BULK, contacts, again=key)) == ["0.birthday", "1.tags[0]", "1.company"]
    assert dropped_values(server) == before + 3
    log_in = identify(token=token(new_email(), contact={"tags": "x", "birthday": ""}), company=LONG)
    for _ in range(2):
        browser.push(log_in, ids=[push_id])
    assert dropped_values(server) == before + 6


def test_an_idempotency_key_is_per_server_key_wherever_that_stands_in_the_list(
    server: Server, sandbox: Sandbox
) -> None:
    email, again = new_email(), new_id()
    shop, crm = {"email": email, "tags": ["shop"]}, {"email": email, "tags": ["crm"]}
    for keys in ((KEY, CRM_KEY), (CRM_KEY, KEY)):
        server.restart(SCQ_SERVER_KEYS=",".join(keys))
        assert call(server, IDENTIFY, shop, again=again).text == OK
        assert call(server, IDENTIFY, crm, key=CRM_KEY, again=again).text == OK
    call(server, TRACK, {"email": email, "addTags": ["end"]})
    assert arrives(sandbox, email, "+end").count("+crm") == 1
    assert arrives(sandbox, email, "+end").count("+shop") == 1


# Addresses


@pytest.mark.parametrize("local", ["try..this..", ".foo", "foo.", "o'neil%x/y?z=1&b#c", "\u7528\u6237"])
@pytest.mark.parametrize(
    "domain", ["docomo.ne.jp", "company.local", "my_domain.com", "localhost", "\u4f8b\u5b50.\u5e7f\u544a"]
)
def test_a_vouched_address_arrives_in_whatever_way(server: Server, sandbox: Sandbox, local: str, domain: str) -> None:
    def new() -> str:
        return f"{new_id()}{local}@{domain}"

    emails = [new() for _ in range(5)]
    browser = Browser(server)
    browser.logs_in(f"\u200b{emails[0]}\ufeff")
    assert browser.statuses(track("cart-1")) == ["accepted"]
    call(server, IDENTIFY, {"email": f" {emails[1]}\u202c"})
    call(server, BULK, [{"email": emails[2]}])
    call(server, f"{LEGACY_TRACK}?email={quote(emails[3])}", {"addTags": ["x"]})
    browser.logs_in(new_email(), newEmail=emails[4])
    eventually(lambda: all(requests_about(sandbox, email) for email in emails[:4]))
    eventually(lambda: any(record.body.get("newEmail") == emails[4] for record in sandbox.requests))


def test_the_operator_can_name_an_address_that_was_vouched_for(server: Server, sandbox: Sandbox) -> None:
    email = f"{new_id()}..@docomo.ne.jp"
    call(server, IDENTIFY, {"email": email})
    eventually(lambda: requests_about(sandbox, email))
    for arguments in (["dead", "list", "--contact", email], ["erase", email]):
        subprocess.run(
            command(*arguments), cwd=server.directory, env=clean_environ({}), check=True, capture_output=True
        )


def test_a_plus_in_a_legacy_query_is_one_encoded_or_not(server: Server, sandbox: Sandbox) -> None:
    name = new_id()
    for tag, query in enumerate([f"{name}+x@example.com", f"{name}%2Bx%40example.com", f"%20{name}+x@example.com%20"]):
        response = call(server, f"{LEGACY_TRACK}?team_id=a+b&email={query}", {"addTags": [f"tag-{tag}"]})
        assert response.status_code == 200, response.text
    assert set(arrives(sandbox, f"{name}+x@example.com", "+tag-2")) >= {"+tag-0", "+tag-1", "+tag-2"}
    assert call(server, f"{LEGACY_TRACK}?email={name}%20x@example.com", {"addTags": ["x"]}).status_code == 422


# Real clients


def test_sendx_own_sdk_reads_its_answers_when_something_is_dropped(server: Server, sandbox: Sandbox) -> None:
    sdk, email = importlib.import_module("sendx_python_sdk"), new_email()
    configuration = sdk.Configuration(host=f"{server.url}/api/v1/rest", api_key={"TeamApiKey": KEY})
    configuration.proxy = None
    api = sdk.TrackingApi(sdk.ApiClient(configuration))
    fields = {"Plan": "gold", "email": "x@example.com"}
    person = sdk.IdentifyRequest(
        email=email, firstName="A", company=LONG, customFields=fields, tags=["", "x"], newEmail=""
    )
    answer = api.identify_contact_with_http_info(person)
    assert (answer.status_code, answer.data.status, answer.data.message) == (200, "200", "OK")
    headers = {name.lower(): text for name, text in answer.headers.items()}
    assert set(headers["scq-dropped"].split(",")) == {"company", "customFields.email", "newEmail"}
    tracked = api.track_contact(sdk.TrackRequest(email=email, addTags=["y", LONG], removeTags=[]))
    assert (tracked.status, tracked.message) == ("200", "OK")
    assert arrives(sandbox, email, "+y") == ["identify", "+x", "+y"]


def test_the_log_names_nobody_and_nothing_failed(server: Server) -> None:
    for text in (KEY, CRM_KEY, "@", "%40", "A request failed", "died", "Traceback"):
        assert text not in server.log
