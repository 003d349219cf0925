"""The wire contract, sentence by sentence, against the real server over real sockets: pushes, their reasons, log-ins and tokens.

The server accepts only tokens. SendX's side is the sandbox, and matters here only where an answer does not tell.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.sandbox.api import Sandbox
from tests.support.live import eventually
from tests.support.server import (
    KID_KEY,
    Browser,
    Server,
    arrives,
    identify,
    login,
    new_email,
    new_id,
    new_ids,
    outcomes,
    requests_about,
    token,
    track,
)
from tests.support.wire import batch, one

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
    email, push_id = new_email(), new_id()
    ann.push(login(email))
    assert ann.statuses(track("cart-1"), track("cart-2"), ids=[push_id, push_id]) == ["accepted", "duplicate"]
    assert ann.statuses(track("cart-1"), ids=[push_id]) == ["duplicate"]
    ann.push(track("cart-end"))
    assert "+cart-2" not in arrives(sandbox, email, "+cart-end")


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
        (["track", {"addTags": {"first": "blogger"}}], "bad-shape"),
        (["track", {"addTags": []}], "bad-shape"),
        (["track", {"addTags": None, "removeTags": [" "]}], "bad-shape"),
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
        (["identify", {"email": ""}], "bad-email"),
        (["identify", {"email": "a\x00@b.co"}], "bad-email"),
        (["identify", {"email": "foo.@docomo.ne.jp"}], "bad-email"),
        (["identify", {"token": 7}], "bad-token"),
        (["identify", {"token": ""}], "bad-token"),
        (["identify", {"token": "no.jwt.atall"}], "bad-token"),
        (["identify", {"token": "\ud83d"}], "bad-token"),
        (["identify", {"token": "e30." * 2}], "bad-token"),
        (["consent"], "bad-shape"),
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


@pytest.mark.parametrize("denial", [False, None, "revoked", "grant", ["granted"], 0])
def test_nothing_is_taken_after_a_denial_in_whatever_words(browser: Browser, denial: Any) -> None:
    calls = [["consent", True], track("cart-1"), ["consent", denial], track("cart-1")]
    assert browser.statuses(*calls) == ["accepted", "held", "accepted", "consent-denied"]


@pytest.mark.parametrize("behind", [None, True, "all", [], {"a": 1}])
def test_a_log_out_counts_whatever_stands_behind_it(ann: Browser, behind: Any) -> None:
    assert ann.statuses(["reset", behind], track("cart-1")) == ["accepted", "held"]


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
    contact = sandbox.contacts.get(email)
    assert contact is not None
    assert contact.last_name == "Own"


def test_a_typed_address_needs_a_token_unless_it_is_the_visitors_own(ann: Browser) -> None:
    email = new_email()
    ann.push(login(email))
    assert ann.statuses(identify(email=new_email("bob"))) == ["unverified-identity"]
    assert ann.statuses(identify(email=f" {email.upper()} \u200b")) == ["accepted"]


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
    eventually(lambda: sandbox.contacts.get(new))
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
    good: list[dict[str, Any]] = [
        {},
        {"exp_in": 3590},
        {"exp_in": -20},
        {"iat_in": 20},
        {"aud": ["scq", "other"]},
        {"key": KID_KEY, "headers": {"kid": "backend"}},
        {"headers": {"kid": "unknown"}},
        {"key": KID_KEY},
        {"contact": {}},
        {"contact": []},
        {"contact": "x"},
        {"contact": {"tags": "vip", "customFields": [], "birthday": "", "company": "x" * 300}},
        {"sub": "ann", "jti": "1", "iss": "https://shop.example"},
    ]
    for claims in good:
        log_in = identify(token=token(new_email(), **claims))
        assert Browser(server).statuses(log_in, track("cart-1")) == ["accepted", "accepted"]


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


def test_a_token_that_does_not_verify_changes_nothing_about_who_the_visitor_is(ann: Browser) -> None:
    s, cookie = ann.s, ann.cookie
    forged = identify(token=token(new_email("bob"), key="x" * 40))
    assert ann.statuses(forged, track("cart-1")) == ["bad-token", "accepted"]
    assert (ann.s, ann.cookie) == (s, cookie)
