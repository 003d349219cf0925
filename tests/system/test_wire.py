"""The wire contract, sentence by sentence, against the real server over real sockets.

Most tests share one server that accepts only tokens; those about rates, floors, prefixes and keys start their
own. SendX's side is the sandbox, and matters here only where an answer does not tell.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.live import eventually, serving
from tests.support.server import (
    ADMIN_TOKEN,
    COOKIE_KEY,
    KID_KEY,
    LOCAL,
    SHOP,
    Browser,
    Server,
    aged,
    arrives,
    identify,
    login,
    new_email,
    new_id,
    new_ids,
    outcomes,
    requests_about,
    running,
    token,
    track,
)
from tests.support.server import API_KEY as KEY

LIMIT = 64 * 1024
OTHER_KEY = "another-cookie-signing-key-" + "F" * 10


@pytest.fixture(scope="module")
def sendx() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=KEY)
    with serving(app) as url:
        yield app.state.sandbox, f"{url}/api/v1/rest"


@pytest.fixture(scope="module")
def sandbox(sendx: tuple[Sandbox, str]) -> Sandbox:
    return sendx[0]


@pytest.fixture(scope="module")
def server(sendx: tuple[Sandbox, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("wire"), sendx[1]) as started:
        yield started


@pytest.fixture
def browser(server: Server) -> Browser:
    return Browser(server)


@pytest.fixture
def ann(server: Server) -> Browser:
    """A browser on which somebody has logged in."""
    browser = Browser(server)
    browser.logs_in(new_email())
    return browser


def error(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a whole-request error, which is JSON and says what to do."""
    answer = response.json()
    assert sorted(answer) == ["error", "message"]
    assert answer["message"]
    assert response.headers["content-type"].startswith("application/json")
    return response.status_code, answer["error"]


def one(call: Any, push_id: Any = None) -> dict[str, Any]:
    return {"id": push_id or new_id(), "call": call}


def batch(*calls: Any) -> dict[str, Any]:
    return {"v": 1, "pushes": [one(call) for call in calls]}


def padded(size: int) -> bytes:
    """A good request of exactly so many bytes."""
    body = json.dumps(batch(track("cart-1"))).encode()
    return body + b" " * (size - len(body))


# The answer


def test_a_push_of_an_anonymous_visitor_is_held_and_one_of_a_known_visitor_accepted(browser: Browser) -> None:
    ids = new_ids(3)
    results = browser.push(track("cart-1"), login(new_email()), track("cart-2"), ids=ids)
    assert results == [
        {"id": ids[0], "status": "held"},
        {"id": ids[1], "status": "accepted"},
        {"id": ids[2], "status": "accepted"},
    ]


def test_the_body_may_say_that_it_is_text_or_json(server: Server) -> None:
    for kind in ("text/plain", "text/plain;charset=UTF-8", "application/json", "application/json; charset=utf-8"):
        assert server.send(batch(track("cart-1")), content_type=kind).status_code == 202


def test_no_pushes_are_202_and_no_results(server: Server) -> None:
    response = server.post([])
    assert response.status_code == 202
    assert response.json() == {"results": []}
    assert "set-cookie" not in response.headers


def test_results_stand_in_the_order_of_the_pushes_and_one_bad_push_harms_no_neighbour(ann: Browser) -> None:
    ids = new_ids(4)
    pushes: list[Any] = [
        one(track("cart-1"), ids[0]),
        {"id": 7, "call": track("cart-2")},
        one(track("not-offered"), ids[1]),
        "nonsense",
        one(["blow", {}], ids[2]),
        one(track("cart-3"), ids[3]),
    ]
    results = ann.adopt(ann.server.post(pushes, s=ann.s, cookie=f"__Host-scq={ann.cookie}"))
    assert [result["id"] for result in results] == [ids[0], None, ids[1], None, ids[2], ids[3]]
    assert [result["status"] for result in results] == ["accepted", *["refused"] * 4, "accepted"]


@pytest.mark.parametrize(
    "bad", [None, 7, "", " ", True, [], {}, 1e999, "a" * 5000, "with space", "\ud800", "\x00" * 20]
)
def test_a_missing_or_bad_id_is_refused_with_null(server: Server, bad: Any) -> None:
    push = {"id": bad, "call": track("cart-1")}
    for pushes in ([push], [{"call": track("cart-1")}]):
        (result,) = server.post(pushes).json()["results"]
        assert (result["id"], result["status"]) == (None, "refused")
        assert result["reason"]


def test_the_same_id_again_is_a_duplicate_also_within_one_request(ann: Browser, sandbox: Sandbox) -> None:
    push_id, end = new_id(), f"cart-{new_id()}"
    assert ann.statuses(track("cart-1"), track("cart-2"), ids=[push_id, push_id]) == ["accepted", "duplicate"]
    assert ann.statuses(track("cart-1"), ids=[push_id]) == ["duplicate"]
    ann.push(track(end))
    email = next(record.contact for record in sandbox.requests[::-1] if record.contact)
    assert "+cart-2" not in arrives(sandbox, email, f"+{end}")


def test_only_accepted_and_held_ids_are_remembered(browser: Browser) -> None:
    refused, held = new_ids(2)
    calls = [track("not-offered"), track("not-offered"), track("cart-1")]
    assert browser.statuses(*calls, ids=[refused, refused, held]) == ["tag-not-allowed", "tag-not-allowed", "held"]
    assert browser.statuses(*calls[1:], ids=[refused, held]) == ["tag-not-allowed", "duplicate"]
    assert browser.statuses(track("cart-2"), ids=[refused]) == ["held"]


# Reasons


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (None, "bad-shape"),
        ("track", "bad-shape"),
        ([], "bad-shape"),
        ([7], "bad-shape"),
        ({"0": "track"}, "bad-shape"),
        (["track"], "bad-shape"),
        (["track", None], "bad-shape"),
        (["track", []], "bad-shape"),
        (["track", {"addTags": "blogger"}], "bad-shape"),
        (["track", {"addTags": [7]}], "bad-shape"),
        (["track", {"addTags": [["blogger"]]}], "bad-shape"),
        (["track", {"addTags": {"0": "blogger"}}], "bad-shape"),
        (["track", {"addTags": [""]}], "bad-shape"),
        (["track", {"removeTags": 1e999}], "bad-shape"),
        (["track", {"addTags": ["cart-" + "x" * 5000]}], "too-long"),
        (["track", {"addTags": [f"cart-{n}" for n in range(2000)]}], "too-long"),
        (["track", {"addTags": ["not-offered"]}], "tag-not-allowed"),
        (["track", {"addTags": ["blogger", "Blogger"]}], "tag-not-allowed"),
        (["track", {"removeTags": ["not-offered"]}], "tag-not-allowed"),
        (["identify"], "bad-shape"),
        (["identify", "ann@example.com"], "bad-shape"),
        (["identify", {}], "unverified-identity"),
        (["identify", {"firstName": "Ann"}], "unverified-identity"),
        (["identify", {"email": "ann@example.com"}], "unverified-identity"),
        (["identify", {"email": "no address"}], "bad-email"),
        (["identify", {"email": 7}], "bad-email"),
        (["identify", {"email": ["ann@example.com"]}], "bad-email"),
        (["identify", {"email": "a@b.co\x00"}], "bad-email"),
        (["identify", {"token": 7}], "bad-token"),
        (["identify", {"token": ""}], "bad-token"),
        (["identify", {"token": "no.jwt.atall"}], "bad-token"),
        (["identify", {"token": "\ud83d"}], "bad-token"),
        (["identify", {"token": "e30." * 2}], "bad-token"),
        (["consent"], "bad-shape"),
        (["consent", "maybe"], "bad-shape"),
        (["consent", ["granted"]], "bad-shape"),
        (["_trackPageview"], "unknown-method"),
        (["setMerchantId", "X"], "unknown-method"),
        (["Track", {"addTags": ["blogger"]}], "unknown-method"),
        (["__proto__", {}], "unknown-method"),
    ],
)
def test_a_refusal_names_its_reason(server: Server, call: Any, reason: str) -> None:
    (result,) = Browser(server).push(call)
    assert (result["status"], result["reason"]) == ("refused", reason)


def test_reset_and_consent_need_no_object_and_other_keys_are_ignored(browser: Browser) -> None:
    calls = [["reset"], ["reset", {}], ["consent", "granted"], ["consent", "granted", {}]]
    assert browser.statuses(*calls) == ["accepted"] * 4
    odd = ["track", {"addTags": ["cart-1"], "source": "x", "success": {"not": "a function"}, "failure": 7}]
    assert browser.statuses(odd) == ["held"]


def test_a_track_is_refused_whole(ann: Browser, sandbox: Sandbox) -> None:
    email, mine = new_email(), f"cart-{new_id()}"
    ann.push(login(email))
    assert ann.statuses(track(mine, "not-offered"), track("cart-end")) == ["tag-not-allowed", "accepted"]
    assert f"+{mine}" not in arrives(sandbox, email, "+cart-end")


def test_a_refused_push_of_a_request_full_of_them_is_refused_each(server: Server) -> None:
    response = server.post([one(track("not-offered")) for _ in range(50)])
    assert outcomes(response.json()["results"]) == ["tag-not-allowed"] * 50
    assert "set-cookie" not in response.headers


# Identify


def test_an_identify_drops_what_is_not_offered_and_says_so(ann: Browser, sandbox: Sandbox) -> None:
    email = new_email()
    ann.push(login(email))
    fields = {
        "firstName": "Ann",
        "birthday": "1990-01-02",
        "plan": "gold",
        "customFields": {"Age": 34, "Secret": "x"},
        "tags": ["blogger", "vip"],
        "newEmail": "ann.new@example.com",
    }
    (result,) = ann.push(identify(**fields))
    assert result["status"] == "accepted"
    named = " ".join(result["dropped"])
    for word in ("plan", "Age", "Secret", "vip", "newEmail"):
        assert word in named
    for word in ("firstName", "birthday", "blogger"):
        assert word not in named
    arrives(sandbox, email, "+blogger")
    body = requests_about(sandbox, email)[-1].body
    assert body == {"email": email, "firstName": "Ann", "birthday": "1990-01-02", "tags": ["blogger"]}


def test_with_a_token_the_tokens_address_wins_and_the_pages_is_dropped(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob = new_email("ann"), new_email("bob")
    (result,) = browser.push(identify(email=bob, token=token(ann)))
    assert (result["status"], result["dropped"]) == ("accepted", ["email"])
    browser.push(track("cart-1"))
    arrives(sandbox, ann, "+cart-1")
    assert not requests_about(sandbox, bob)


def test_an_identify_without_address_or_token_sets_fields_of_the_visitors_own_contact(
    browser: Browser, sandbox: Sandbox
) -> None:
    email = new_email()
    browser.logs_in(email)
    assert browser.statuses(identify(lastName="Own"), track("cart-1")) == ["accepted", "accepted"]
    arrives(sandbox, email, "+cart-1")
    contact = sandbox.contact(email)
    assert contact is not None
    assert contact.last_name == "Own"


def test_a_typed_address_needs_a_token_unless_it_is_the_visitors_own(ann: Browser) -> None:
    email = new_email()
    ann.push(login(email))
    assert ann.statuses(identify(email=new_email("bob"))) == ["unverified-identity"]
    assert ann.statuses(identify(email=f" {email.upper()} ")) == ["accepted"]


def test_the_contact_of_a_token_is_not_restricted_by_the_lists(browser: Browser, sandbox: Sandbox) -> None:
    email = new_email()
    contact = {"firstName": "Back", "customFields": {"Plan": "gold", "Age": 34, "Paid": True}, "tags": ["vip"]}
    (result,) = browser.push(identify(firstName="Page", token=token(email, contact=contact)))
    assert result["status"] == "accepted"
    arrives(sandbox, email, "+vip")
    body = requests_about(sandbox, email)[0].body
    assert body["firstName"] == "Back"
    assert body["tags"] == ["vip"]
    assert body["customFields"] == {"Plan": "gold", "Age": "34", "Paid": "true"}


def test_new_email_counts_from_a_token(browser: Browser, sandbox: Sandbox) -> None:
    old, new = new_email("old"), new_email("new")
    browser.logs_in(old)
    (result,) = browser.push(login(old, newEmail=new))
    assert result["status"] == "accepted"
    assert "dropped" not in result
    eventually(lambda: sandbox.contact(new))
    assert requests_about(sandbox, old)[-1].body == {"email": old, "newEmail": new}


def test_attributes_may_be_numbers_and_booleans_and_nulls_are_left_out(ann: Browser, sandbox: Sandbox) -> None:
    email = new_email()
    ann.push(login(email))
    assert (
        ann.statuses(identify(firstName=None, lastName=7, company="X", tags=None), track("cart-1")) == ["accepted"] * 2
    )
    arrives(sandbox, email, "+cart-1")
    assert requests_about(sandbox, email)[-2].body == {"email": email, "lastName": "7", "company": "X"}


# Tokens


def test_a_good_token_identifies(server: Server) -> None:
    good = [
        token(new_email()),
        token(new_email(), exp_in=3590),
        token(new_email(), exp_in=-20),
        token(new_email(), iat_in=20),
        token(new_email(), aud=["scq", "other"]),
        token(new_email(), key=KID_KEY, headers={"kid": "backend"}),
        token(new_email(), headers={"kid": "unknown"}),
        token(new_email(), key=KID_KEY),
        token(new_email(), contact={}),
        token(new_email(), sub="ann", jti="1", iss="https://shop.example"),
    ]
    for text in good:
        assert Browser(server).statuses(identify(token=text), track("cart-1")) == ["accepted", "accepted"]


@pytest.mark.parametrize("claim", ["email", "iat", "exp", "aud"])
def test_a_token_without_a_required_claim_is_bad(browser: Browser, claim: str) -> None:
    assert browser.statuses(identify(token=token(new_email(), leave_out=[claim]))) == ["bad-token"]


def bad_tokens() -> dict[str, str]:
    good = token("ann@example.com")
    head, payload, signature = good.split(".")
    return {
        "two hours ahead": token("ann@example.com", exp_in=7200),
        "an hour and a minute ahead": token("ann@example.com", exp_in=3660),
        "milliseconds": token("ann@example.com", exp=1_900_000_000_000),
        "no number": token("ann@example.com", iat=None),
        "exp as text": token("ann@example.com", exp_in=600, iat="0"),
        "an enormous exp": token("ann@example.com", exp=10**400),
        "an enormous iat": token("ann@example.com", iat=10**400),
        "an infinite exp": token("ann@example.com", exp=float("inf")),
        "no number at all": token("ann@example.com", iat=float("nan")),
        "issued in the future": token("ann@example.com", iat_in=300),
        "another audience": token("ann@example.com", aud="other"),
        "no signature": token("ann@example.com", key="", algorithm="none"),
        "none, signed": f"{token('ann@example.com', key='', algorithm='none')}{signature}",
        "HS512": token("ann@example.com", key=KID_KEY * 2, algorithm="HS512"),
        "HS384 with our key": token("ann@example.com", algorithm="HS384", key="identity-hs256-key-" + "C" * 29),
        "another key": token("ann@example.com", key="x" * 40),
        "the key of another kid": token("ann@example.com", headers={"kid": "backend"}),
        "the kid's key under an unknown kid": token("ann@example.com", key=KID_KEY, headers={"kid": "unknown"}),
        "no address": token("nobody"),
        "an address of another type": token(["ann@example.com"]),
        "a null address": token(None),
        "a contact that is no object": token("ann@example.com", contact=["x"]),
        "a contact SendX cannot take": token("ann@example.com", contact={"tags": "vip"}),
        "cut off": good[:-3],
        "with another payload": f"{head}.{payload[:-4]}AAAA.{signature}",
        "with a blank": f" {good}",
        "doubled": f"{good}.{signature}",
        "only dots": "..",
        "deep": head + "." + "Ww" * 3000 + "." + signature,
    }


@pytest.mark.parametrize("what", bad_tokens())
def test_any_other_token_is_bad(browser: Browser, what: str) -> None:
    assert browser.statuses(identify(token=bad_tokens()[what])) == ["bad-token"]
    assert browser.statuses(track("cart-1")) == ["held"]


def test_an_expired_token_is_told_from_a_bad_one(browser: Browser) -> None:
    assert browser.statuses(identify(token=token(new_email(), exp_in=-45))) == ["expired-token"]
    assert browser.statuses(identify(token=token(new_email(), exp_in=-45, key="x" * 40))) == ["bad-token"]


def test_a_refused_token_changes_nothing_about_who_the_visitor_is(ann: Browser) -> None:
    s, cookie = ann.s, ann.cookie
    assert ann.statuses(identify(token=token(new_email("bob"), exp_in=-45)), track("cart-1")) == [
        "expired-token",
        "accepted",
    ]
    assert (ann.s, ann.cookie) == (s, cookie)


# Whole-request errors


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE"])
def test_other_methods_are_405_whatever_else_is_wrong(server: Server, method: str) -> None:
    response = server.client.request(method, "/scq/push", content=b"x" * (LIMIT + 1))
    assert error(response)[0] == 405
    assert "POST" in response.headers["allow"]


def test_head_is_405_too(server: Server) -> None:
    assert server.client.head("/scq/push").status_code == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": ""},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "https://shop.example.evil.example"},
        {"origin": "https://shop.example:8443"},
        {"origin": "http://shop.example"},
        {"origin": "https://SHOP.example/"},
        {"origin": "https://sub.shop.example", "sec_fetch_site": "same-site"},
        {"origin": "https://evil.example", "sec_fetch_site": "cross-site"},
        {"origin": "https://evil.example", "sec_fetch_site": "none"},
        {"origin": "", "sec_fetch_site": "same-origin"},
        {"origin": "null", "sec_fetch_site": "same-origin"},
        {"origin": "http://shop.example", "sec_fetch_site": "same-origin"},
        {"origin": "https://[", "sec_fetch_site": "same-origin"},
        {"origin": "javascript:x", "sec_fetch_site": "same-origin"},
        {"origin": "http://127.0.0.1.evil.example", "sec_fetch_site": "same-origin"},
        {"origin": "http://localhost@evil.example", "sec_fetch_site": "same-origin"},
    ],
)
def test_other_origins_are_403_before_anything_is_read(server: Server, headers: dict[str, str]) -> None:
    response = server.send(b"x" * (LIMIT + 1), **headers)
    assert error(response)[0] == 403
    assert "access-control-allow-origin" not in response.headers
    assert "set-cookie" not in response.headers


def test_a_listed_origin_on_another_site_is_refused_and_told_what_to_do(server: Server) -> None:
    response = server.send(batch(track("cart-1")), sec_fetch_site="cross-site")
    assert error(response)[0] == 403
    assert "own domain" in response.json()["message"]


@pytest.mark.parametrize("site", ["same-origin", "same-site", ""])
def test_a_listed_origin_may_push(server: Server, site: str) -> None:
    assert server.send(batch(track("cart-1")), sec_fetch_site=site).status_code == 202


@pytest.mark.parametrize(
    "origin", ["https://unlisted.example", "http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"]
)
def test_the_same_origin_needs_no_entry(server: Server, origin: str) -> None:
    response = server.send(batch(track("cart-1")), origin=origin, sec_fetch_site="same-origin")
    assert response.status_code == 202


def test_two_origin_headers_are_refused(server: Server) -> None:
    assert error(server.send(batch(), (("Origin", SHOP),)))[0] == 403
    assert error(server.send(batch(), (("Origin", "https://evil.example"),)))[0] == 403


def test_64_kb_are_read_and_a_byte_more_is_413(server: Server) -> None:
    assert server.send(padded(LIMIT)).status_code == 202
    assert error(server.send(padded(LIMIT + 1)))[0] == 413
    assert error(server.send(b"x" * (LIMIT + 1)))[0] == 413


def test_50_pushes_are_taken_and_51_are_413(server: Server) -> None:
    assert len(server.post([one(track("cart-1")) for _ in range(50)]).json()["results"]) == 50
    assert error(server.post([one(track("cart-1")) for _ in range(51)]))[0] == 413
    assert error(server.post([None] * 51))[0] == 413


def test_too_many_pushes_count_before_what_else_is_malformed(server: Server) -> None:
    assert error(server.send({"v": 2, "pushes": [one(track("cart-1")) for _ in range(51)]}))[0] == 413


def test_a_413_of_too_many_stores_none_of_them(server: Server) -> None:
    ids = new_ids(51)
    assert server.post([one(track("cart-1"), push_id) for push_id in ids]).status_code == 413
    again = server.post([one(track("cart-1"), ids[0])])
    assert outcomes(again.json()["results"]) == ["held"]


MALFORMED: list[bytes] = [
    b"",
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"{}",
    b"{",
    b'{"v":1,"pushes":[}',
    b'{"v":1,"pushes":[]}x',
    b'{"v":1}',
    b'{"v":1,"pushes":{}}',
    b'{"v":1,"pushes":null}',
    b'{"v":2,"pushes":[]}',
    b'{"v":NaN,"pushes":[]}',
    b'{"v":1,"pushes":[NaN]}',
    b"\xff\xfe{\x00}\x00",
    b'{"v":1,"pushes":["\xc3\x28"]}',
    b'{"v":1,"pushes":[\x00]}',
    b"[" * 60_000,
    b'{"a":' * 12_000,
    b"[" * 30_000 + b"]" * 30_000,
    b"--boundary\r\nContent-Disposition: form-data\r\n\r\n",
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_body_is_400(server: Server, body: bytes) -> None:
    response = server.send(body)
    assert error(response)[0] == 400
    assert response.headers["access-control-allow-origin"] == SHOP


NASTY: list[bytes] = [
    b'{"id":"%s","call":["track",{"addTags":["cart-\\ud83d"]}]}',
    b'{"id":"%s","call":["track",{"addTags":["cart-\\u0000"]}]}',
    b'{"id":"%s","call":["track",{"addTags":[1e999]}]}',
    b'{"id":"%s","call":["track",{"addTags":[' + b"9" * 6000 + b"]}]}",
    b'{"id":"%s","call":["identify",{"firstName":' + b"9" * 6000 + b"}]}",
    b'{"id":"%s","call":["identify",{"customFields":{"\\ud800":"\\udfff","x":-1e999}}]}',
    b'{"id":"%s","call":["identify",{"\\ud83d":"x","":"y","__proto__":{"a":1}}]}',
    b'{"id":"%s","call":["track",' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"]}",
    b'{"id":"%s","id":"twice","call":["track",{}],"call":[]}',
    b'{"id":"%s","call":["identify",{"email":"\\ud83d@example.com"}]}',
    b'{"id":"%s","call":["identify",{"birthday":"0000-99-99"}]}',
    b'{"id":"%s","call":["identify",{"tags":{"a":"b"},"firstName":{"a":[]}}]}',
    b'{"id":"%s","call":[["track"],{}]}',
    b'{"id":"%s","call":[null,null,null]}',
]


@pytest.mark.parametrize("push", NASTY, ids=range(len(NASTY)))
def test_a_nasty_push_is_judged_alone_and_its_neighbours_go_on(ann: Browser, push: bytes) -> None:
    neighbours = [json.dumps(one(track("cart-1"))).encode() for _ in range(2)]
    pushes = b",".join([neighbours[0], push.replace(b"%s", new_id().encode()), neighbours[1]])
    response = ann.server.send(b'{"v":1,"pushes":[' + pushes + b"]}", cookie=f"__Host-scq={ann.cookie}")
    assert response.status_code == 202
    results = response.json()["results"]
    assert [results[0]["status"], results[2]["status"]] == ["accepted", "accepted"]
    assert results[1]["status"] in ("accepted", "refused")


@pytest.mark.parametrize("s", [None, 7, "", "x", "a" * 5000, ["a"], {}, "\ud800", "\x00" * 20, 1e999, True])
def test_an_odd_session_value_is_no_obstacle(server: Server, s: Any) -> None:
    response = server.send(batch(track("cart-1")) | {"s": s})
    assert outcomes(response.json()["results"]) == ["held"]


def test_unknown_keys_of_the_request_are_ignored(server: Server) -> None:
    response = server.send(batch(track("cart-1")) | {"future": {"x": [1]}, "results": []})
    assert response.status_code == 202


@pytest.mark.parametrize("chunk", [1, 700, 9_000])
def test_a_chunked_body_is_read_up_to_the_limit(server: Server, chunk: int) -> None:
    def chunked(body: bytes) -> bytes:
        head = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        parts = (body[at : at + chunk] for at in range(0, len(body), chunk))
        return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    assert server.raw(chunked(json.dumps(batch(track("cart-1"))).encode())).startswith(b"HTTP/1.1 202")
    if chunk > 1:
        assert server.raw(chunked(padded(LIMIT))).startswith(b"HTTP/1.1 202")
        assert server.raw(chunked(padded(LIMIT + 1))).startswith(b"HTTP/1.1 413")


def test_a_length_over_the_limit_is_413_before_the_body_arrives(server: Server) -> None:
    head = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\nContent-Length: 99999999\r\n\r\n"
    assert server.raw(head.encode()).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: -5",
        "Content-Length: abc",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Content-Length: 99999999999999999999999999",
        "X-\x00: y",
        "Content-Length: 2\r\nX: " + "y" * 200_000,
        "Content-Length: 2\r\nCookie: __Host-scq=\xff\xfe; \xc3\x28=\x80",
        "Content-Length: 2\r\nCookie: ;;;=;=;__Host-scq;__Host-scq==",
        "Content-Length: 2\r\nSec-Fetch-Site: \xff\r\nSec-GPC: \xff",
        "Content-Length: 2\r\nX-Forwarded-For: [::1, :::, 1.2.3.4:99999, %eth0, , \xff",
        "Content-Length: 2\r\nContent-Type: text/\xff;;;",
        "Content-Length: 2\r\nContent-Encoding: gzip",
        "Content-Length: 2\r\nExpect: 100-continue",
        "Content-Length: 2\r\nUpgrade: websocket\r\nConnection: Upgrade",
    ],
)
def test_nasty_headers_are_never_a_5xx(server: Server, head: str) -> None:
    request = f"POST /scq/push HTTP/1.1\r\nHost: x\r\nOrigin: {SHOP}\r\n{head}\r\n\r\n{{}}".encode("latin-1")
    answer = server.raw(request)
    assert not answer or re.match(rb"HTTP/1\.1 (100|202|4\d\d) ", answer)
    assert server.post([]).status_code == 202


@pytest.mark.parametrize(
    "path",
    ["/", "/scq", "/scq/", "/scq/push/", "/prod/", "/prod/push/x", "/%00", "/%ff", "//push", "/scq/../push", "/x.js"],
)
def test_an_unknown_path_is_a_404_in_json(server: Server, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    answer = server.raw(request)
    assert answer.startswith(b"HTTP/1.1 404")
    assert sorted(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error", "message"]


# CORS


def test_a_preflight_of_a_listed_origin_is_204_with_credentials_allowed(server: Server) -> None:
    for origin in (SHOP, LOCAL):
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        response = server.client.options("/scq/push", headers=headers)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == origin
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "POST" in response.headers["access-control-allow-methods"]
        assert "content-type" in response.headers["access-control-allow-headers"].lower()


def test_a_preflight_of_another_origin_is_403(server: Server) -> None:
    for headers in ({}, {"Origin": "https://evil.example"}, {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}):
        response = server.client.options("/scq/push", headers=headers)
        assert error(response)[0] == 403
        assert "access-control-allow-origin" not in response.headers


def test_answers_and_errors_can_be_read_by_the_listed_origin_and_by_no_other(server: Server) -> None:
    for response in (server.post([one(track("cart-1"))]), server.send(b"x"), server.send(padded(LIMIT + 1))):
        assert response.headers["access-control-allow-origin"] == SHOP
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "origin" in response.headers["vary"].lower()
        assert "no-store" in response.headers["cache-control"]


# The cookie


def attributes(response: httpx.Response) -> tuple[str, set[str]]:
    """The one Set-Cookie header of an answer: its name, and its attributes in lower case."""
    (header,) = response.headers.get_list("set-cookie")
    first, *others = [part.strip() for part in header.split(";")]
    return first.partition("=")[0], {part.lower() for part in others}


def test_an_https_page_gets_a_host_cookie(server: Server) -> None:
    name, given_attributes = attributes(server.post([one(track("cart-1"))], origin=SHOP))
    assert name == "__Host-scq"
    assert given_attributes == {"secure", "httponly", "samesite=lax", "path=/", "max-age=31536000"}


def test_a_page_on_loopback_http_gets_a_plain_cookie(server: Server) -> None:
    for origin, site in ((LOCAL, ""), ("http://127.0.0.1:9", "same-origin")):
        name, given_attributes = attributes(server.post([one(track("cart-1"))], origin=origin, sec_fetch_site=site))
        assert name == "scq"
        assert given_attributes == {"httponly", "samesite=lax", "path=/", "max-age=31536000"}


def test_a_loopback_page_is_known_by_its_plain_cookie_and_an_https_page_is_not(server: Server) -> None:
    local = Browser(server, origin=LOCAL)
    local.logs_in(new_email())
    assert local.statuses(track("cart-1")) == ["accepted"]
    response = server.post([one(track("cart-1"))], cookie=f"scq={local.cookie}")
    assert outcomes(response.json()["results"]) == ["held"]


def test_a_cookie_names_no_domain_and_shows_no_expiry_of_a_session(server: Server) -> None:
    header = server.post([one(track("cart-1"))]).headers["set-cookie"].lower()
    assert "domain" not in header


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value[:-1],
        lambda value: value + "x",
        lambda value: "x" + value,
        lambda value: value.partition(".")[0],
        lambda value: value.partition(".")[0] + "." + "A" * 43,
        lambda value: value.upper(),
        lambda value: f'"{value}"x',
        lambda value: "",
        lambda value: "." * 50,
        lambda value: value * 40,
    ],
)
def test_a_forged_cookie_is_no_cookie(ann: Browser, spoil: Any) -> None:
    assert ann.cookie
    response = ann.request(track("cart-1"), identify(firstName="Eve"), cookies={"__Host-scq": spoil(ann.cookie)})
    assert outcomes(response.json()["results"]) == ["held", "unverified-identity"]


def test_a_cookie_name_that_occurs_twice_is_no_cookie(ann: Browser) -> None:
    mine = f"__Host-scq={ann.cookie}"
    for pair in (f"{mine}; {mine}", f"__Host-scq=planted; {mine}", f"{mine};__Host-scq=", f"{mine}; a=b; __Host-scq=x"):
        response = ann.server.post([one(track("cart-1"))], cookie=pair)
        assert outcomes(response.json()["results"]) == ["held"]
    body = {"v": 1, "pushes": [one(track("cart-1"))]}
    response = ann.server.send(body, (("Cookie", mine), ("Cookie", "__Host-scq=planted")))
    assert outcomes(response.json()["results"]) == ["held"]


def test_other_cookies_do_not_matter(ann: Browser) -> None:
    mine = f'_ga=1; scq=planted; __host-scq=x; x__Host-scq=y; broken; =; __Host-scq={ann.cookie}; z="q; r"'
    response = ann.server.post([one(track("cart-1"))], cookie=mine)
    assert outcomes(response.json()["results"]) == ["accepted"]


def test_a_cookie_is_renewed_only_when_older_than_7_days(ann: Browser) -> None:
    ann.push(track("cart-1"))
    assert ann.last is not None
    assert "set-cookie" not in ann.last.headers
    fresh = ann.cookie
    assert fresh
    ann.cookies["__Host-scq"] = aged(fresh, issued_days=6.9)
    ann.push(track("cart-1"))
    assert "set-cookie" not in ann.last.headers
    ann.cookies["__Host-scq"] = aged(fresh, issued_days=7.1)
    ann.push(track("cart-1"))
    assert attributes(ann.last)[0] == "__Host-scq"
    assert ann.statuses(track("cart-1")) == ["accepted"]
    assert "set-cookie" not in ann.last.headers


def test_an_expired_cookie_is_no_cookie_and_an_old_one_is(ann: Browser) -> None:
    assert ann.cookie
    expired = {"__Host-scq": aged(ann.cookie, issued_days=366)}
    assert outcomes(ann.request(track("cart-1"), cookies=expired).json()["results"]) == ["held"]
    old = {"__Host-scq": aged(ann.cookie, issued_days=364)}
    assert outcomes(ann.request(track("cart-1"), cookies=old).json()["results"]) == ["accepted"]


def test_five_minutes_of_clock_skew_are_tolerated(ann: Browser) -> None:
    assert ann.cookie
    minute = 1 / 24 / 60
    ahead = {"__Host-scq": aged(ann.cookie, issued_days=-4 * minute)}
    assert outcomes(ann.request(track("cart-1"), cookies=ahead).json()["results"]) == ["accepted"]
    far = {"__Host-scq": aged(ann.cookie, issued_days=-7 * minute)}
    assert outcomes(ann.request(track("cart-1"), cookies=far).json()["results"]) == ["held"]


def test_a_new_cookie_is_set_only_when_the_visitor_changes(browser: Browser) -> None:
    seen = []
    for call in (
        track("cart-1"),
        track("cart-2"),
        login(email := new_email()),
        login(email),
        track("cart-3"),
        ["reset"],
    ):
        browser.push(call)
        assert browser.last is not None
        seen.append("set-cookie" in browser.last.headers)
    assert seen == [True, False, True, False, False, True]


def test_the_longest_address_fits_into_the_cookie(browser: Browser) -> None:
    tail = "@" + ".".join(["d" * 60] * 3) + ".com"
    email = new_email("l").partition("@")[0].ljust(64, "x") + tail
    assert len(email) > 250 or len(email.partition("@")[0]) == 64
    browser.logs_in(email)
    assert browser.statuses(track("cart-1")) == ["accepted"]


def test_an_address_beyond_ascii_fits_into_the_cookie(browser: Browser) -> None:
    browser.logs_in(f"änn.{secrets.token_hex(4)}@exämple.com")
    assert browser.statuses(track("cart-1")) == ["accepted"]


# The shim and the operator's paths


@pytest.mark.parametrize("path", ["/scq/scq.js", "/prod/TEAMID.js", "/prod/a%20b.js", "/prod/x.y.js"])
def test_the_shim_is_served(server: Server, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 200
    assert "javascript" in response.headers["content-type"]
    assert response.headers["etag"]
    assert 0 < int(re.findall(r"max-age=(\d+)", response.headers["cache-control"])[0]) <= 86_400
    assert "immutable" not in response.headers["cache-control"]
    assert b"_scq" in response.content
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("coding", ["br", "gzip", "identity", "gzip, deflate, br, zstd", "gzip;q=0", "\xff"])
def test_the_shim_is_the_same_in_every_coding_and_revalidated_by_its_etag(server: Server, coding: str) -> None:
    plain = server.client.get("/scq/scq.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    raw = server.client.build_request("GET", "/scq/scq.js", headers=[(b"Accept-Encoding", coding.encode("latin-1"))])
    response = server.client.send(raw)
    assert response.content == plain.content
    assert "accept-encoding" in response.headers["vary"].lower()
    if coding in ("br", "gzip"):
        assert response.headers["content-encoding"] == coding
    etag = response.headers["etag"]
    for tags in (etag, f"W/{etag}", f'"x", {etag}'):
        again = server.client.get(
            "/scq/scq.js",
            headers={"Accept-Encoding": "identity" if coding == "\xff" else coding, "If-None-Match": tags},
        )
        assert (again.status_code, again.content) == (304, b"")


def test_the_hashed_shim_has_the_same_bytes_and_is_immutable(server: Server) -> None:
    plain = server.client.get("/scq/scq.js")
    digest = re.findall(r"[0-9a-zA-Z_]{8,}", plain.headers["etag"])[0]
    hashed = server.client.get(f"/scq/scq.{digest}.js")
    assert hashed.content == plain.content
    assert "immutable" in hashed.headers["cache-control"]
    other = server.client.get("/scq/scq.0123456789ab.js")
    assert other.status_code == 404 or "immutable" not in other.headers["cache-control"]


def test_head_of_the_shim_has_no_body(server: Server) -> None:
    response = server.client.head("/scq/scq.js")
    assert (response.status_code, response.content) == (200, b"")


def test_pushes_are_taken_beside_the_shim_under_prod_too(server: Server, browser: Browser) -> None:
    response = server.send(batch(track("cart-1")), (), "/prod/push")
    assert outcomes(response.json()["results"]) == ["held"]
    assert attributes(response)[0] == "__Host-scq"
    assert error(server.client.get("/prod/push"))[0] == 405


def test_health_and_readiness_are_200_while_it_serves_and_stores(server: Server) -> None:
    assert server.client.get("/healthz").status_code == 200
    assert server.client.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/scq/status"])
def test_without_an_admin_token_the_operators_pages_do_not_exist(server: Server, path: str) -> None:
    nothing = server.client.get("/scq/nothing")
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {ADMIN_TOKEN}"},
        {"Authorization": "Bearer None"},
    ):
        response = server.client.get(path, headers=headers)
        assert error(response) == error(nothing) == (404, "not-found")


def test_without_server_keys_the_servers_api_does_not_exist(server: Server) -> None:
    for path in ("/api/v1/rest/contact/identify", "/api/v1/rest/contact/track", "/api/v1/contact/identify"):
        response = server.client.post(path, json={"email": "ann@example.com"}, headers={"X-Team-ApiKey": KEY})
        assert response.status_code == 404


# Servers of their own


def test_rates_prefixes_and_the_operators_token(sendx: tuple[Sandbox, str], tmp_path: Path) -> None:
    more = {"SCQ_RATE_PER_IP": "0.5", "SCQ_PREFIX": "/t/x1", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN}
    with running(tmp_path, sendx[1], **more) as server:
        assert server.client.get("/t/x1/scq.js").status_code == 200
        assert server.client.get("/scq/scq.js").status_code == 404
        assert server.client.post("/scq/push").status_code == 404

        assert server.post([one(track("cart-1")) for _ in range(5)]).status_code == 202
        fast = server.send(b"x" * (LIMIT + 1))  # 429 goes before 413
        assert error(fast)[0] == 429
        assert 1 <= int(fast.headers["retry-after"]) <= 60
        assert fast.headers["access-control-allow-origin"] == SHOP
        assert error(server.send(b"x" * (LIMIT + 1), origin="https://evil.example"))[0] == 403
        assert error(server.client.get("/t/x1/push"))[0] == 405
        assert server.client.options("/t/x1/push", headers={"Origin": SHOP}).status_code == 204
        # The last hop that is not a trusted proxy is the client; what it says about itself does not count.
        assert server.post([], x_forwarded_for="203.0.113.7").status_code == 202
        assert server.post([], x_forwarded_for="198.51.100.1, 203.0.113.7").status_code == 429
        assert server.post([], x_forwarded_for="203.0.113.7, 198.51.100.2").status_code == 202

        for path in ("/metrics", "/t/x1/status"):
            right = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
            assert server.client.get(path, headers=right).status_code == 200
            for wrong in ("Bearer", f"Bearer {ADMIN_TOKEN}x", f"Basic {ADMIN_TOKEN}", ADMIN_TOKEN, "Bearer \xff"):
                request = server.client.build_request(
                    "GET", path, headers=[(b"Authorization", wrong.encode("latin-1"))]
                )
                assert error(server.client.send(request)) == (404, "not-found")


def test_below_the_disks_floor_pushes_are_503_and_readiness_says_why(
    sendx: tuple[Sandbox, str], tmp_path: Path
) -> None:
    with running(tmp_path, sendx[1], False, SCQ_MIN_FREE_MB="1000000") as server:
        assert server.client.get("/healthz").status_code == 200
        ready = server.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["message"]
        response = server.post([one(track("cart-1"))])
        assert error(response)[0] == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["access-control-allow-origin"] == SHOP
        assert "set-cookie" not in response.headers
        assert error(server.send(b"{"))[0] == 400
        assert error(server.send(padded(LIMIT + 1)))[0] == 413


def test_cookie_keys_can_be_rolled_over(sendx: tuple[Sandbox, str], tmp_path: Path) -> None:
    with running(tmp_path, sendx[1]) as server:
        browser = Browser(server)
        browser.logs_in(new_email())
        server.restart(SCQ_SECRET_KEYS=f"{COOKIE_KEY},{OTHER_KEY}")
        assert browser.statuses(track("cart-1")) == ["accepted"]
        newcomer = Browser(server)
        newcomer.logs_in(new_email())
        server.restart(SCQ_SECRET_KEYS=f"{OTHER_KEY},{COOKIE_KEY}")
        assert newcomer.statuses(track("cart-1")) == ["accepted"]
        server.restart(SCQ_SECRET_KEYS=OTHER_KEY)
        assert newcomer.statuses(track("cart-1")) == ["accepted"]
        assert browser.statuses(track("cart-1")) == ["held"]


# Anything at all

texts = st.text(max_size=12) | st.sampled_from(["track", "identify", "reset", "consent", "granted", "cart-1", "a@b.co"])
keys = texts | st.sampled_from(
    ["v", "s", "pushes", "id", "call", "addTags", "removeTags", "email", "token", "tags", "customFields", "firstName"]
)
numbers = st.integers() | st.floats() | st.integers(-(10**400), 10**400)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=12,
)
methods = st.sampled_from(["track", "identify", "reset", "consent", "other"])
calls = values | st.tuples(methods, values) | st.tuples(methods, st.dictionaries(keys, values, max_size=5))
ids = st.uuids().map(str) | values
pushes = values | st.fixed_dictionaries({"id": ids, "call": calls})
bodies = (
    values
    | st.fixed_dictionaries({"v": st.just(1) | values, "pushes": values})
    | st.fixed_dictionaries({"v": st.just(1), "s": values, "pushes": st.lists(pushes, max_size=6)})
)
# Python writes lone surrogates as escapes, and NaN and Infinity as words that are not JSON: both are welcome here.
written = bodies.map(json.dumps).map(str.encode)
spoiled = st.tuples(written, st.integers(0, 400), st.binary(max_size=4)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)


@settings(max_examples=400)
@given(body=st.binary(max_size=200) | written | spoiled, cookie=st.booleans())
@example(body=b"", cookie=True)
@example(body=b'{"v":1,"pushes":[{"id":"%s","call":["track",{"addTags":[]}]}]}' % (b"a" * 32), cookie=False)
def test_nothing_at_all_is_answered_with_a_5xx(server: Server, ann: Browser, body: bytes, cookie: bool) -> None:
    response = server.send(body, cookie=f"__Host-scq={ann.cookie}" if cookie else "")
    assert response.status_code in (202, 400, 413)
    if response.status_code != 202:
        error(response)
        return
    results = response.json()["results"]
    assert len(results) == len(json.loads(body)["pushes"])
    for result in results:
        assert result["status"] in ("accepted", "held", "duplicate", "refused")
        assert (result["status"] == "refused") == ("reason" in result)
