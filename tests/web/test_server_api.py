"""The API for the site's own servers, in both of SendX's dialects, on the real server with the sandbox behind it.

One server is shared: it takes typed addresses too, so that trust shows. A second one cannot reach SendX, so that what is stored can be
counted. SendX's own Python SDK is run against the first.
"""

from __future__ import annotations

import importlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.sandbox.api import Sandbox
from proxy.sandbox.contacts import Contact
from proxy.sandbox.faults import Fault
from tests.support.anything import values
from tests.support.live import PATIENCE_SECONDS, eventually, nowhere
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    SHOP,
    Browser,
    Server,
    arrived,
    arrives,
    clean_environ,
    command,
    identify,
    is_anywhere,
    new_email,
    new_id,
    requests_about,
    running,
    track,
)
from tests.support.server import SERVER_KEY as KEY

OTHER_KEY = "server-key-of-the-crm-" + "2" * 20
HASTY_KEY = "server-key-of-a-hasty-job-" + "3" * 20
FUZZ_KEYS = [f"server-key-for-fuzz-{number}-" + "4" * 20 for number in range(6)]
TEAM = "team-7"

REST_IDENTIFY = "/api/v1/rest/contact/identify"
REST_BULK = "/api/v1/rest/contact/identify/bulk"
REST_TRACK = "/api/v1/rest/contact/track"
LEGACY_IDENTIFY = "/api/v1/contact/identify"
LEGACY_TRACK = "/api/v1/contact/track"
PATHS = [REST_IDENTIFY, REST_BULK, REST_TRACK, LEGACY_IDENTIFY, LEGACY_TRACK]

OK = '{"status":"200","message":"OK"}'
BULK_OK = '{"status":"success","message":"All contacts processed successfully"}'
UNAUTHORIZED = '{"status":401,"message":"The Team ID or API Key specified is not valid"}'


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    keys = ",".join([KEY, OTHER_KEY, *FUZZ_KEYS])
    return {"SCQ_SERVER_KEYS": keys, "SCQ_TEAM_ID": TEAM, "SCQ_IDENTIFY": "asserted"}


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that cannot reach SendX: what it accepts stays and can be counted."""
    more = {"SCQ_SERVER_KEYS": KEY, "SCQ_LANE_MAX": "30", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN}
    with running(tmp_path_factory.mktemp("cut-off"), nowhere(), **more) as started:
        yield started


def rest(server: Server, path: str, body: Any, *, key: str = KEY, **headers: str) -> httpx.Response:
    """A call in the current dialect. `headers`: by name, `_` for `-`."""
    return call(server, path, body, {"X-Team-ApiKey": key, **named(headers)})


def legacy(server: Server, path: str, body: Any, *, key: str = KEY, **query: str) -> httpx.Response:
    return call(server, str(httpx.URL(path, params={"team_id": TEAM, **query})), body, {"api_key": key})


def call(server: Server, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(path, content=content, headers={"Content-Type": "application/json", **headers})


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): text for name, text in headers.items()}


def error(response: httpx.Response) -> tuple[int, str]:
    """Status and message of an answer in SendX's error form, which our own SDK-compatible errors keep to."""
    answer = response.json()
    assert list(answer) == ["status", "message"]
    assert answer["status"] == (401 if response.status_code == 401 else "error")
    assert response.headers["content-type"] == "application/json"
    assert answer["message"]
    return response.status_code, answer["message"]


def contact_of(sandbox: Sandbox, email: str) -> Contact:
    """What SendX has of a contact, once it has something."""
    contact = eventually(lambda: sandbox.contacts.get(email))
    assert contact is not None
    return contact


def waiting(server: Server) -> int:
    status = server.client.get("/scq/status", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()
    found: int = status["waiting"]
    return found


def scq(server: Server, *arguments: str) -> str:
    """Standard output of a command beside the running server."""
    environ = clean_environ({})
    done = subprocess.run(
        command(*arguments), cwd=server.directory, env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout


# What arrives


def test_an_identify_arrives_with_all_that_it_says(server: Server, sandbox: Sandbox) -> None:
    email, birthday = new_email(), "1989-03-03"
    says = {
        "firstName": "Ann",
        "company": "C",
        "birthday": birthday,
        "customFields": {"Plan": "gold"},
        "tags": ["not offered"],
    }
    response = rest(server, REST_IDENTIFY, {"email": email, "lists": ["l1", "l2"], **says, "lastName": None})
    assert (response.status_code, response.text) == (200, OK)
    assert response.headers["content-type"] == "application/json"
    contact = contact_of(sandbox, email)
    assert (contact.first_name, contact.company, contact.birthday) == ("Ann", "C", birthday)
    assert (contact.tags, contact.custom_fields, contact.lists) == (("not offered",), {"Plan": "gold"}, ("l1", "l2"))


def test_a_track_arrives_with_tags_that_no_browser_may_set(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    rest(server, REST_IDENTIFY, {"email": email, "tags": ["trial user"]})
    response = rest(server, REST_TRACK, {"email": email, "addTags": ["anything"], "removeTags": ["trial user"]})
    assert (response.status_code, response.text) == (200, OK)
    assert arrives(sandbox, email, "-trial user") == ["identify", "+trial user", "+anything", "-trial user"]


def test_a_bulk_call_arrives_as_single_pushes_in_their_order(server: Server, sandbox: Sandbox) -> None:
    emails = [new_email() for _ in range(24)]
    again = {"email": emails[0].upper(), "firstName": "last", "lists": ["l1"]}
    response = rest(server, REST_BULK, [*({"email": email, "firstName": "first"} for email in emails), again])
    assert (response.status_code, response.text) == (200, BULK_OK)
    eventually(lambda: len(requests_about(sandbox, emails[0])) == 2)
    eventually(lambda: all(sandbox.contacts.get(email) for email in emails))
    assert [record.body["firstName"] for record in requests_about(sandbox, emails[0])] == ["first", "last"]
    assert not any(record.path.endswith("/bulk") for record in sandbox.requests)


def test_the_legacy_dialect_arrives_the_same(server: Server, sandbox: Sandbox) -> None:
    email = new_email("john.doe+x")
    says = {
        "email": email,
        "firstName": "John",
        "birthday": "1989-03-03",
        "customFields": {"Age": "27"},
        "tags": ["dev"],
    }
    response = legacy(server, LEGACY_IDENTIFY, says)
    assert response.status_code == 200
    shown = {"encryptedTeamId": "", "encryptedId": "", "lastName": "", "company": "", **says}
    assert response.json() == {"status": "200", "message": "OK", "data": shown}
    response = legacy(server, LEGACY_TRACK, {"addTags": ["paid user"], "removeTags": ["dev"]}, email=email)
    assert (response.status_code, response.text) == (200, '{"status":"200","message":"OK","data":"success"}')
    assert arrives(sandbox, email, "-dev") == ["identify", "+dev", "+paid user", "-dev"]
    assert contact_of(sandbox, email).custom_fields == {"Age": "27"}


def test_numbers_in_custom_fields_arrive_as_texts(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    rest(
        server, REST_IDENTIFY, {"email": email, "customFields": {"Age": 27, "VIP": True, "Left": None}, "newEmail": ""}
    )
    assert contact_of(sandbox, email).custom_fields == {"Age": "27", "VIP": "true"}


def test_increments_arrive_exactly_once_though_every_call_is_made_twice(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    rest(server, REST_IDENTIFY, {"email": email, "customFields": {"Orders": "0"}})
    for order in range(5):
        for _ in range(2):
            body = {"email": email, "customFields": {"Orders": "++1"}}
            assert rest(server, REST_IDENTIFY, body, idempotency_key=f"{email} order {order}").text == OK
    rest(server, REST_TRACK, {"email": email, "addTags": ["end"]})
    arrives(sandbox, email, "+end")
    assert contact_of(sandbox, email).custom_fields == {"Orders": "5"}


def test_calls_of_servers_and_pushes_of_browsers_keep_their_order(server: Server, sandbox: Sandbox) -> None:
    email, ann = new_email(), Browser(server)
    sandbox.faults.script(email, Fault("ok", delay=0.3))
    ann.logs_in(email)
    for step in range(6):
        if step % 2:
            ann.push(track(f"cart-{step}"))
        else:
            rest(server, REST_TRACK, {"email": email.title(), "addTags": [f"step-{step}"]})
    expected = ["+step-0", "+cart-1", "+step-2", "+cart-3", "+step-4", "+cart-5"]
    assert arrives(sandbox, email, expected[-1])[-6:] == expected


# Trust


def test_what_a_server_said_is_not_overwritten_by_a_typed_address(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    rest(server, REST_IDENTIFY, {"email": email, "firstName": "Ann"})
    Browser(server).push(identify(email=email, firstName="Mallory", tags=["newsletter"]))
    arrives(sandbox, email, "+newsletter")
    assert contact_of(sandbox, email).first_name == "Ann"


def test_a_server_may_change_an_address_and_speaks_of_the_old_one_as_somebody_elses(
    server: Server, sandbox: Sandbox
) -> None:
    old, new = new_email("old"), new_email("new")
    laptop, phone, tablet = Browser(server), Browser(server), Browser(server)
    for browser in (laptop, phone, tablet):
        browser.logs_in(old)
    rest(server, REST_IDENTIFY, {"email": old, "newEmail": new})
    laptop.push(track("cart-laptop"))
    arrives(sandbox, new, "+cart-laptop")
    rest(server, REST_TRACK, {"email": old, "addTags": ["straggler"]})
    phone.push(track("cart-phone"))  # a straggler moves nobody back
    assert "+straggler" not in arrives(sandbox, new, "+cart-phone")
    rest(server, REST_IDENTIFY, {"email": old, "firstName": "Somebody else"})
    tablet.push(track("cart-tablet"))  # but now the old address is somebody's
    arrives(sandbox, old, "+cart-tablet")
    assert contact_of(sandbox, old).first_name == "Somebody else"
    assert "+cart-tablet" not in arrived(sandbox, new)


def test_who_was_erased_comes_back_by_a_new_call_and_not_by_a_retry(server: Server, sandbox: Sandbox) -> None:
    email, again = new_email(), {"idempotency_key": new_id()}
    rest(server, REST_IDENTIFY, {"email": email}, **again)
    arrives(sandbox, email, "identify")
    scq(server, "erase", email)
    sandbox.clear()
    assert rest(server, REST_IDENTIFY, {"email": email}, **again).text == OK
    other = new_email()
    rest(server, REST_IDENTIFY, {"email": other})
    arrives(sandbox, other, "identify")
    assert not is_anywhere(sandbox, email)
    rest(server, REST_IDENTIFY, {"email": email})
    assert arrives(sandbox, email, "identify") == ["identify"]


# Idempotency


def test_a_retry_with_its_idempotency_key_is_stored_once_even_across_a_kill(cut_off: Server) -> None:
    before, key, email = waiting(cut_off), new_id(), new_email()
    calls: list[tuple[str, Any]] = [
        (REST_IDENTIFY, {"email": email, "firstName": "A"}),
        (REST_BULK, [{"email": new_email(), "firstName": "A"} for _ in range(7)]),
        (REST_TRACK, {"email": email, "addTags": ["x"]}),
    ]
    first = [rest(cut_off, path, body, idempotency_key=key).text for path, body in calls]
    assert first == [OK, BULK_OK, OK]
    cut_off.kill()
    cut_off.start()
    assert [rest(cut_off, path, body, idempotency_key=key).text for path, body in calls] == first
    assert waiting(cut_off) == before + 9
    assert [rest(cut_off, path, body).text for path, body in calls] == first
    assert waiting(cut_off) == before + 18


def test_an_idempotency_key_for_a_call_that_says_something_else_is_an_error(cut_off: Server) -> None:
    email, key = new_email(), new_id()
    bulk = [{"email": email}, {"email": new_email()}]
    assert (
        rest(cut_off, REST_IDENTIFY, {"email": email, "firstName": "A", "lastName": "B"}, idempotency_key=key).text
        == OK
    )
    assert rest(cut_off, REST_BULK, bulk, idempotency_key=key).text == BULK_OK
    before = waiting(cut_off)
    others = [
        (REST_IDENTIFY, {"email": new_email()}),
        (REST_IDENTIFY, {"email": email, "firstName": "C", "lastName": "B"}),
        (REST_BULK, bulk[:1]),
        (REST_BULK, [*bulk, {"email": new_email()}]),
    ]
    for path, body in others:
        status, message = error(rest(cut_off, path, body, idempotency_key=key))
        assert (status, "Idempotency-Key" in message) == (422, True)
    reordered = {"lastName": "B", "firstName": "A", "email": email}
    assert rest(cut_off, REST_IDENTIFY, reordered, idempotency_key=key).text == OK
    assert waiting(cut_off) == before


def test_each_push_of_a_bulk_call_has_an_id_of_its_own(server: Server, sandbox: Sandbox) -> None:
    emails = [new_email("refused") for _ in range(3)]
    for email in emails:
        sandbox.faults.stand(email, Fault(status=422))
    bulk = [{"email": email} for email in emails]
    assert rest(server, REST_BULK, bulk, idempotency_key=new_id()).text == BULK_OK
    eventually(lambda: all(requests_about(sandbox, email) for email in emails))

    def ids() -> list[str]:
        letters = [json.loads(line) for line in scq(server, "dead", "list", "--json").splitlines()]
        return [letter["id"] for letter in letters if letter["contact"] in emails]

    assert len(set(eventually(lambda: found if len(found := ids()) == 3 else []))) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{16,64}", push_id) for push_id in ids())


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_unusable_idempotency_key_is_400(server: Server, key: str) -> None:
    assert error(rest(server, REST_IDENTIFY, {"email": new_email()}, idempotency_key=key))[0] == 400


def test_two_idempotency_keys_are_400(server: Server) -> None:
    headers = [("X-Team-ApiKey", KEY), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = server.client.post(REST_IDENTIFY, json={"email": new_email()}, headers=headers)
    assert error(response)[0] == 400


def test_a_browsers_push_id_never_meets_an_idempotency_key(server: Server, sandbox: Sandbox) -> None:
    email, same, ann = new_email(), new_id(), Browser(server)
    rest(server, REST_IDENTIFY, {"email": email}, idempotency_key=same)
    ann.logs_in(email)
    assert ann.statuses(track("cart-mine"), ids=[same]) == ["accepted"]
    assert rest(server, REST_TRACK, {"email": email, "addTags": ["theirs"]}, idempotency_key=same).text == OK
    assert arrives(sandbox, email, "+theirs")[-2:] == ["+cart-mine", "+theirs"]


# Keys


def test_each_of_several_keys_opens_the_api(server: Server) -> None:
    for key in (KEY, OTHER_KEY):
        assert rest(server, REST_IDENTIFY, {"email": new_email()}, key=key).status_code == 200
        assert legacy(server, LEGACY_IDENTIFY, {"email": new_email()}, key=key).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Team-ApiKey", ""), ("api_key", "")],
        [("X-Team-ApiKey", KEY[:-1]), ("api_key", KEY[:-1])],
        [("X-Team-ApiKey", KEY + "1"), ("api_key", f"{KEY},{OTHER_KEY}")],
        [("X-Team-ApiKey", API_KEY), ("api_key", API_KEY)],
        [("Authorization", f"Bearer {KEY}")],
        [("X-Team-ApiKey", KEY), ("X-Team-ApiKey", KEY), ("api_key", KEY), ("api_key", OTHER_KEY)],
    ],
)
def test_without_a_valid_key_a_call_is_401(server: Server, path: str, headers: list[tuple[str, str]]) -> None:
    response = server.client.post(path, content=b"{", headers=headers)
    assert (response.status_code, response.text) == (401, UNAUTHORIZED)


def test_each_dialect_has_its_own_header(server: Server) -> None:
    assert call(server, REST_IDENTIFY, {"email": new_email()}, {"api_key": KEY}).status_code == 401
    assert call(server, LEGACY_IDENTIFY, {"email": new_email()}, {"X-Team-ApiKey": KEY}).status_code == 401


def test_a_foreign_team_id_is_401_and_none_is_fine(server: Server) -> None:
    body = {"email": new_email()}
    assert legacy(server, LEGACY_IDENTIFY, body, team_id="other").text == UNAUTHORIZED
    assert call(server, f"{LEGACY_IDENTIFY}?team_id={TEAM}&team_id=other", body, {"api_key": KEY}).status_code == 401
    assert call(server, LEGACY_IDENTIFY, body, {"api_key": KEY}).status_code == 200


def test_any_team_id_is_accepted_where_none_is_set(cut_off: Server) -> None:
    assert legacy(cut_off, LEGACY_IDENTIFY, {"email": new_email()}, team_id="whichever").status_code == 200


def test_without_server_keys_there_is_no_such_api(upstream: str, tmp_path: Path) -> None:
    with running(tmp_path, upstream) as server:
        nowhere = server.client.post("/nowhere")
        for path in PATHS:
            for response in (
                server.client.post(path, headers={"X-Team-ApiKey": KEY, "api_key": KEY}),
                server.client.get(path),
            ):
                assert (response.status_code, response.json()) == (404, nowhere.json())


@pytest.mark.parametrize("path", PATHS)
def test_a_path_with_slashes_too_many_is_another_path(server: Server, path: str) -> None:
    for wrong in (f"{path}/", f"/{path}", path.replace("/contact", "//contact")):
        head = f"Host: x\r\nX-Team-ApiKey: {KEY}\r\napi_key: {KEY}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        assert server.raw(f"POST {wrong} HTTP/1.1\r\n{head}".encode()).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers", [{"Origin": SHOP}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}]
)
def test_a_browser_is_refused_and_told_why(server: Server, path: str, headers: dict[str, str]) -> None:
    for method in ("POST", "OPTIONS"):
        keys = {"X-Team-ApiKey": KEY, "api_key": KEY}
        response = server.client.request(method, path, content=b"{}", headers={**keys, **headers})
        status, message = error(response)
        assert (status, "do not belong in pages" in message) == (403, True)
        assert not [name for name in response.headers if name.startswith("access-control") or name == "set-cookie"]


# What is refused


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_405(server: Server, path: str) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        response = server.client.request(method, path, headers={"X-Team-ApiKey": KEY, "api_key": KEY})
        assert error(response)[0] == 405
        assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", [b"", b"{", b"email=a@b.co", b"\xff", b'{"email":NaN}', b"[" * 60_000])
def test_what_is_no_json_is_400(server: Server, path: str, body: bytes) -> None:
    assert error(call(server, path, body, {"X-Team-ApiKey": KEY, "api_key": KEY}))[0] == 400


GOOD = {"email": "ann@example.com"}
DEEP = json.loads("[" * 20 + "]" * 20)


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (REST_IDENTIFY, [], "JSON object"),
        (REST_IDENTIFY, "x", "JSON object"),
        (REST_IDENTIFY, {}, "email is missing"),
        (REST_IDENTIFY, {"email": None}, "email is missing"),
        (REST_IDENTIFY, {"email": "nowhere"}, "email is not an e-mail address"),
        (REST_IDENTIFY, {"email": ["a@b.co"]}, "email is not an e-mail address"),
        (REST_IDENTIFY, {"email": ""}, "email is not an e-mail address"),
        (REST_IDENTIFY, {"email": "a@b.co\r\nBcc: c@d.co"}, "email is not an e-mail address"),
        (REST_IDENTIFY, {"email": "a\u202eb@b.co"}, "email is not an e-mail address"),
        (REST_IDENTIFY, {"Email": "a@b.co"}, "email is missing"),
        (REST_BULK, GOOD, "array of 1 to 25"),
        (REST_BULK, [], "array of 1 to 25"),
        (REST_BULK, [GOOD] * 26, "array of 1 to 25"),
        (REST_BULK, [GOOD, {"email": "nowhere"}], "contact 1: email is not an e-mail address"),
        (REST_BULK, [GOOD, GOOD, None], "contact 2: an identify is a JSON object"),
        (REST_BULK, {"1": GOOD, "3": {"email": "a b@c.co"}}, "contact 1: email is not an e-mail address"),
        (REST_TRACK, None, "a track is a JSON object"),
        (REST_TRACK, [], "a track is a JSON object"),
        (REST_TRACK, {"addTags": ["x"]}, "email is missing"),
        (REST_TRACK, {"email": 7, "addTags": ["x"]}, "email is not an e-mail address"),
        (REST_TRACK, GOOD, "hold no usable tag"),
        (REST_TRACK, {**GOOD, "addTags": [], "removeTags": None}, "hold no usable tag"),
        (REST_TRACK, {**GOOD, "addTags": [""], "removeTags": [7]}, "hold no usable tag"),
        (REST_TRACK, {**GOOD, "addTags": ["x"] * 101, "AddTags": ["x"]}, "hold no usable tag"),
        (LEGACY_IDENTIFY, {"firstName": "A"}, "email is missing"),
        (LEGACY_TRACK, {"addTags": ["x"]}, "the query has one email"),
        (LEGACY_TRACK + "?email=a@b.co&email=c@d.co", {"addTags": ["x"]}, "the query has one email"),
        (LEGACY_TRACK + "?email=nowhere", {"addTags": ["x"]}, "email is not an e-mail address"),
        (LEGACY_TRACK + "?email=%FF%00@b.co", {"addTags": ["x"]}, "email is not an e-mail address"),
    ],
)
def test_what_leaves_nothing_to_do_is_422_and_says_where(cut_off: Server, path: str, body: Any, where: str) -> None:
    before = waiting(cut_off)
    content = json.dumps(body).replace("Infinity", "1e999").encode()
    status, message = error(call(cut_off, path, content, {"X-Team-ApiKey": KEY, "api_key": KEY}))
    assert (status, waiting(cut_off)) == (422, before)
    assert message.startswith("Request body is not in proper format: ")
    assert where in message
    assert "ann@example.com" not in message


def test_a_body_over_its_limit_is_413(server: Server) -> None:
    good, contact = b'{"email":"%s"}' % new_email().encode(), b'[{"email":"%s"}]' % new_email().encode()
    assert rest(server, REST_IDENTIFY, good + b" " * (65_536 - len(good))).status_code == 200
    assert rest(server, REST_BULK, contact + b" " * (25 * 16_384 - len(contact))).status_code == 200
    for path, limit in ((REST_IDENTIFY, 65_536), (REST_TRACK, 65_536), (REST_BULK, 25 * 16_384)):
        assert error(rest(server, path, b" " * (limit + 1)))[0] == 413


def test_a_body_of_unknown_length_is_counted_while_it_arrives(server: Server) -> None:
    head = f"POST {REST_IDENTIFY} HTTP/1.1\r\nHost: x\r\nX-Team-ApiKey: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode() + b"10001\r\n" + b" " * 0x10001 + b"\r\n")  # and no end
        assert connection.recv(1_000).startswith(b"HTTP/1.1 413 ")


def test_a_key_that_sends_too_much_is_429_and_the_others_are_not(upstream: str, tmp_path: Path) -> None:
    """One push in fifty seconds: however slow the machine, the second bulk comes too early."""
    bulk = [{"email": new_email()}] * 25
    with running(tmp_path, upstream, SCQ_SERVER_KEYS=f"{KEY},{HASTY_KEY}", SCQ_RATE_PER_KEY="0.02") as server:
        assert rest(server, REST_BULK, bulk, key=HASTY_KEY).status_code == 200
        refused = rest(server, REST_BULK, bulk, key=HASTY_KEY)
        assert error(refused)[0] == 429
        assert error(refused)[1].startswith("Rate limit exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        assert rest(server, REST_IDENTIFY, {"email": new_email()}).status_code == 200


def test_a_contact_with_too_much_waiting_is_429_and_a_bulk_is_stored_whole_or_not_at_all(cut_off: Server) -> None:
    crowded, other = new_email(), new_email()
    assert rest(cut_off, REST_BULK, [{"email": crowded, "firstName": str(n)} for n in range(25)]).text == BULK_OK
    before = waiting(cut_off)
    bulk = [{"email": other}, *({"email": crowded, "firstName": str(n)} for n in range(6))]
    response = rest(cut_off, REST_BULK, bulk, idempotency_key="crowded")
    assert error(response)[0] == 429
    assert int(response.headers["retry-after"]) >= 1
    assert waiting(cut_off) == before
    assert rest(cut_off, REST_BULK, bulk[:-1], idempotency_key="crowded").text == BULK_OK
    assert error(rest(cut_off, REST_TRACK, {"email": crowded, "addTags": ["x"]}))[0] == 429
    assert rest(cut_off, REST_TRACK, {"email": other, "addTags": ["x"]}).text == OK


def test_what_cannot_be_stored_now_is_503(upstream: str, tmp_path: Path) -> None:
    with running(tmp_path, upstream, False, SCQ_MIN_FREE_MB="1000000", SCQ_SERVER_KEYS=KEY) as server:
        response = rest(server, REST_IDENTIFY, {"email": new_email()})
        assert error(response)[0] == 503
        assert int(response.headers["retry-after"]) >= 1
        assert error(rest(server, REST_IDENTIFY, b"{"))[0] == 400


# SendX's own SDK


def tracking(server: Server, key: str) -> Any:
    sdk = importlib.import_module("sendx_python_sdk")
    configuration = sdk.Configuration(host=f"{server.url}/api/v1/rest", api_key={"TeamApiKey": key})
    configuration.proxy = None
    return sdk.TrackingApi(sdk.ApiClient(configuration))


def test_sendx_own_sdk_identifies_and_tracks_with_the_host_replaced(server: Server, sandbox: Sandbox) -> None:
    sdk, api, email = importlib.import_module("sendx_python_sdk"), tracking(server, KEY), new_email("a+b")
    person = sdk.IdentifyRequest(
        email=email, firstName="A", lastName="B", customFields={"Age": "++34"}, tags=["x", "y"]
    )
    identified = api.identify_contact(person)
    tracked = api.track_contact(sdk.TrackRequest(email=email, addTags=["z"], removeTags=["y"]))
    assert [(answer.status, answer.message) for answer in (identified, tracked)] == [("200", "OK")] * 2
    assert arrives(sandbox, email, "-y") == ["identify", "+x", "+y", "+z", "-y"]
    assert contact_of(sandbox, email).custom_fields == {"Age": "34"}


def test_sendx_own_sdk_understands_the_errors(server: Server) -> None:
    sdk = importlib.import_module("sendx_python_sdk")
    nobody, somebody = sdk.IdentifyRequest(email="nowhere"), sdk.IdentifyRequest(email=new_email())
    with pytest.raises(sdk.exceptions.UnprocessableEntityException) as caught:
        tracking(server, KEY).identify_contact(nobody)
    assert caught.value.data.message.endswith("email is not an e-mail address.")
    with pytest.raises(sdk.exceptions.UnauthorizedException):
        tracking(server, "wrong").identify_contact(somebody)


# Anything at all

names = st.sampled_from(
    [
        "email",
        "newEmail",
        "firstName",
        "birthday",
        "customFields",
        "tags",
        "addTags",
        "removeTags",
        "lists",
        "token",
        "Email",
    ]
)
somebody = st.sampled_from(["a@b.co", "ann@example.com", "\u00e4@b.co"])
contacts = st.dictionaries(names, values | st.lists(st.text(min_size=1, max_size=5)), max_size=6).flatmap(
    lambda rest: somebody.map(lambda email: {**rest, "email": email})
)
bodies = (values | contacts | st.lists(values | contacts, max_size=4)).map(json.dumps).map(str.encode) | st.binary(
    max_size=99
)
queries = st.sampled_from([f"?team_id={TEAM}&email=a%40b.co", "?email=%", "?email=%F0%9F&=&&;", f"?team_id={TEAM}"])


@settings(max_examples=250)
@given(
    path=st.sampled_from(PATHS),
    query=queries,
    body=bodies,
    key=st.sampled_from(FUZZ_KEYS),
    again=st.sampled_from([b"", b"a", b"\xff"]),
)
@example(REST_IDENTIFY, "", b'{"email":"a@b.co","other":1e999}', FUZZ_KEYS[0], b"x")
@example(REST_IDENTIFY, "", b'{"email":"a@b.co","other":"\\ud83d"}', FUZZ_KEYS[0], b"x")
@example(REST_IDENTIFY, "", b'{"email":"a@b.co","other":18446744073709551616}', FUZZ_KEYS[0], b"")
def test_nothing_at_all_is_answered_with_a_5xx(
    server: Server, path: str, query: str, body: bytes, key: str, again: bytes
) -> None:
    headers = [(b"X-Team-ApiKey", key.encode()), (b"api_key", key.encode())]
    if again:
        headers.append((b"Idempotency-Key", again))
    response = server.client.post(path + query, content=body, headers=headers)
    assert response.status_code in (200, 400, 422)
    if response.status_code != 200:
        error(response)


# At the end, of all of the above


def test_the_log_knows_neither_keys_nor_addresses_and_nothing_failed(server: Server, sandbox: Sandbox) -> None:
    email = new_email("logged")
    legacy(server, LEGACY_TRACK, {"addTags": ["x"]}, email=email)
    assert legacy(server, LEGACY_TRACK, {"addTags": ["x"]}, email=email, key="wrong").status_code == 401
    arrives(sandbox, email, "+x")
    for text in (KEY, OTHER_KEY, *FUZZ_KEYS, API_KEY, "logged", "@", "%40", "email="):
        assert text not in server.log
    for text in ("A request failed", "died", "Traceback"):
        assert text not in server.log
