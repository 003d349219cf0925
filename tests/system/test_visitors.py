"""One browser, several people, several tabs: each rule of the wire contract played with the real server.

What counts is what reached SendX and in which order. Browsers of one test share nothing with another's, so all
of them share one server, which accepts typed addresses too.
"""

from __future__ import annotations

import base64
import json
import sqlite3

import pytest

from proxy.sandbox.api import Sandbox
from tests.support.live import eventually
from tests.support.server import (
    Browser,
    Server,
    aged,
    arrived,
    arrives,
    identify,
    is_anywhere,
    login,
    new_email,
    new_id,
    new_ids,
    outcomes,
    requests_about,
    token,
    track,
)

RESET = ["reset"]


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_IDENTIFY": "asserted"}


def tag(name: str = "cart") -> str:
    """A tag that no other test uses, offered to verified visitors."""
    return f"{name}-{new_id()[:8]}"


# Held until identified


def test_what_was_held_is_forwarded_right_behind_the_identify_and_then_the_rest(
    browser: Browser, sandbox: Sandbox
) -> None:
    ann = new_email()
    assert browser.statuses(track("cart-1"), track("cart-2")) == ["held", "held"]
    assert browser.statuses(track("cart-3"), login(ann), track("cart-4")) == ["held", "accepted", "accepted"]
    assert arrives(sandbox, ann, "+cart-4") == ["identify", "+cart-1", "+cart-2", "+cart-3", "+cart-4"]


def test_what_was_held_waits_behind_what_the_contact_already_has_waiting(server: Server, sandbox: Sandbox) -> None:
    ann, phone, laptop = new_email(), Browser(server), Browser(server)
    laptop.push(login(ann), track("cart-1"))
    phone.push(track("cart-2"))
    phone.push(login(ann, firstName="Ann"), track("cart-3"))
    arrives(sandbox, ann, "+cart-3")
    tags = [event for event in arrived(sandbox, ann) if event.startswith("+")]
    assert tags == ["+cart-1", "+cart-2", "+cart-3"]


def test_what_was_held_for_one_visitor_does_not_reach_another(server: Server, sandbox: Sandbox) -> None:
    ann, secret = new_email(), tag()
    assert Browser(server).statuses(track(secret)) == ["held"]
    Browser(server).push(login(ann), track("cart-end"))
    arrives(sandbox, ann, "+cart-end")
    assert not is_anywhere(sandbox, secret)


def test_what_was_held_is_judged_again_under_the_trust_it_ends_up_with(browser: Browser, sandbox: Sandbox) -> None:
    ann, only_verified = new_email(), tag()
    assert browser.statuses(track(only_verified), track("typed-1")) == ["held", "held"]
    assert browser.statuses(identify(email=ann), track("typed-2")) == ["accepted", "accepted"]
    assert arrives(sandbox, ann, "+typed-2") == ["identify", "+typed-1", "+typed-2"]
    assert not is_anywhere(sandbox, only_verified)


# Without a cookie


def test_two_fresh_tabs_are_one_visitor(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    first = browser.request(track("cart-1"))
    second = browser.request(track("cart-2"), cookies={})
    assert outcomes(browser.adopt(first)) == ["held"]
    assert outcomes(browser.adopt(second)) == ["held"]
    browser.push(login(ann), track("cart-3"))
    assert arrives(sandbox, ann, "+cart-3") == ["identify", "+cart-1", "+cart-2", "+cart-3"]


def test_a_lost_answer_orphans_nothing(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    browser.request(track("cart-1"))  # the answer with the cookie never arrives
    browser.push(login(ann), track("cart-2"))
    assert arrives(sandbox, ann, "+cart-2") == ["identify", "+cart-1", "+cart-2"]


def test_another_session_value_is_another_visitor(server: Server, sandbox: Sandbox) -> None:
    ann, other = new_email(), tag()
    Browser(server).request(track(other))
    browser = Browser(server)
    browser.push(login(ann), track("cart-end"))
    arrives(sandbox, ann, "+cart-end")
    assert not is_anywhere(sandbox, other)


def test_the_session_value_alone_proves_no_identity(browser: Browser, sandbox: Sandbox) -> None:
    browser.logs_in(new_email())
    assert outcomes(browser.request(track("cart-1"), cookies={}).json()["results"]) == ["held"]
    response = browser.request(identify(firstName="Eve"), cookies={})
    assert outcomes(response.json()["results"]) == ["unverified-identity"]


def test_a_tab_that_had_no_cookie_yet_when_another_logged_in_loses_nothing(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    browser.logs_in(ann)
    late = browser.request(track("cart-late"), cookies={})
    assert outcomes(late.json()["results"]) == ["held"]
    browser.push(track("cart-next"))
    arrives(sandbox, ann, "+cart-next")
    assert "+cart-late" in arrives(sandbox, ann, "+cart-late")


def test_the_late_answer_to_a_tab_without_a_cookie_does_not_undo_the_log_in(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    log_in = browser.request(login(ann))
    late = browser.request(track("cart-late"), cookies={})
    browser.adopt(log_in)
    browser.adopt(late)
    assert browser.statuses(track("cart-next")) == ["accepted"]
    arrives(sandbox, ann, "+cart-next")
    arrives(sandbox, ann, "+cart-late")


# Another person logs in


def test_another_persons_log_in_starts_a_new_visitor_and_hands_out_a_new_s(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob, old = new_email("ann"), new_email("bob"), browser.s
    browser.push(login(ann), track("cart-ann"))
    assert browser.statuses(login(bob), track("cart-bob")) == ["accepted", "accepted"]
    assert browser.s != old
    assert browser.statuses(track("cart-bob-2")) == ["accepted"]
    assert arrives(sandbox, ann, "+cart-ann") == ["identify", "+cart-ann"]
    assert arrives(sandbox, bob, "+cart-bob-2") == ["identify", "+cart-bob", "+cart-bob-2"]
    assert arrived(sandbox, ann) == ["identify", "+cart-ann"]


def test_the_same_persons_next_log_in_keeps_visitor_and_s(browser: Browser) -> None:
    ann, old = new_email(), browser.s
    browser.logs_in(ann)
    browser.logs_in(ann)
    browser.logs_in(ann.upper())
    assert browser.s == old
    assert browser.statuses(track("cart-1"), identify(email=ann.title(), company="X")) == ["accepted", "accepted"]


def test_what_another_tab_queued_for_ann_does_not_land_on_bob(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob, anns = new_email("ann"), new_email("bob"), tag()
    browser.logs_in(ann)
    old = browser.s
    browser.push(login(bob))
    assert browser.statuses(track(anns), s=old) == ["identity-changed"]
    assert browser.statuses(identify(firstName="Ann"), s=old) == ["identity-changed"]
    assert browser.statuses(track("cart-end")) == ["accepted"]
    arrives(sandbox, bob, "+cart-end")
    assert not is_anywhere(sandbox, anns)


def test_a_refusal_for_an_old_s_hands_out_no_cookie(browser: Browser) -> None:
    browser.logs_in(new_email())
    old_s, old_cookies = browser.s, dict(browser.cookies)
    browser.push(RESET)
    response = browser.request(track("cart-1"), s=old_s, cookies=old_cookies)
    assert outcomes(response.json()["results"]) == ["identity-changed"]
    assert "set-cookie" not in response.headers


def test_pushes_of_one_request_are_each_for_whoever_is_logged_in_at_that_point(
    browser: Browser, sandbox: Sandbox
) -> None:
    ann, bob = new_email("ann"), new_email("bob")
    calls = [track("cart-0"), login(ann), track("cart-1"), login(bob), track("cart-2"), RESET, track("cart-3")]
    assert browser.statuses(*calls) == ["held", *["accepted"] * 5, "held"]
    assert arrives(sandbox, ann, "+cart-1") == ["identify", "+cart-0", "+cart-1"]
    assert arrives(sandbox, bob, "+cart-2") == ["identify", "+cart-2"]


def test_a_log_in_over_an_asserted_visitor_of_another_address_starts_anew(browser: Browser, sandbox: Sandbox) -> None:
    typed, bob, old = new_email("typed"), new_email("bob"), browser.s
    browser.push(identify(email=typed))
    assert browser.statuses(login(bob), track("cart-1")) == ["accepted", "accepted"]
    assert browser.s != old
    assert arrives(sandbox, bob, "+cart-1") == ["identify", "+cart-1"]


# Log-out


def test_after_a_reset_pushes_are_held_and_the_answer_carries_a_new_s(browser: Browser) -> None:
    browser.logs_in(new_email())
    old_s, old_cookie = browser.s, browser.cookie
    assert browser.statuses(RESET) == ["accepted"]
    assert browser.s != old_s
    assert browser.cookie != old_cookie
    assert browser.statuses(track("cart-1")) == ["held"]
    assert browser.statuses(identify(firstName="Ann")) == ["unverified-identity"]


def test_a_late_set_cookie_cannot_undo_a_log_out(browser: Browser, sandbox: Sandbox) -> None:
    ann, after = new_email(), tag()
    browser.logs_in(ann)
    late = dict(browser.cookies)
    browser.push(RESET)
    browser.cookies = late
    assert browser.statuses(track(after)) == ["held"]
    other = Browser(browser.server)
    other.push(login(ann), track("cart-end"))
    arrives(sandbox, ann, "+cart-end")
    assert not is_anywhere(sandbox, after)


def test_a_retired_cookie_is_refused_together_with_its_s(browser: Browser) -> None:
    browser.logs_in(new_email())
    old_s, old_cookies = browser.s, dict(browser.cookies)
    browser.push(RESET)
    answer = browser.request(track("cart-1"), login(new_email()), s=old_s, cookies=old_cookies).json()
    assert outcomes(answer["results"]) == ["identity-changed", "identity-changed"]


def test_what_was_done_after_a_log_out_reaches_only_the_person_who_left(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    browser.logs_in(ann)
    browser.push(RESET, track("cart-between"))
    browser.push(login(ann), track("cart-end"))
    tags = [event for event in arrives(sandbox, ann, "+cart-end") if event != "identify"]
    assert tags == ["+cart-between", "+cart-end"]


def test_what_was_done_after_a_log_out_is_refused_for_anyone_else(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob, between = new_email("ann"), new_email("bob"), tag()
    browser.logs_in(ann)
    browser.push(RESET)
    assert browser.statuses(track(between)) == ["held"]
    assert browser.statuses(login(bob), track("cart-end")) == ["accepted", "accepted"]
    assert arrives(sandbox, bob, "+cart-end") == ["identify", "+cart-end"]
    assert not is_anywhere(sandbox, between)


def test_what_was_done_after_a_log_out_is_refused_for_a_typed_address_too(browser: Browser, sandbox: Sandbox) -> None:
    browser.logs_in(new_email("ann"))
    between = f"typed-{new_id()[:8]}"
    browser.push(RESET, track(between))
    guest = new_email("guest")
    browser.push(identify(email=guest), track("typed-end"))
    assert arrives(sandbox, guest, "+typed-end") == ["identify", "+typed-end"]
    assert not is_anywhere(sandbox, between)


def test_what_was_done_after_a_log_out_stays_the_leavers_through_a_second_log_out(
    browser: Browser, sandbox: Sandbox
) -> None:
    ann, bob, between = new_email("ann"), new_email("bob"), tag()
    browser.logs_in(ann)
    browser.push(RESET, track(between), RESET, track(f"{between}-2"))
    browser.push(login(bob), track("cart-end"))
    arrives(sandbox, bob, "+cart-end")
    assert not is_anywhere(sandbox, between)


def test_after_the_next_log_in_the_browser_is_free_of_the_person_who_left(browser: Browser, sandbox: Sandbox) -> None:
    browser.logs_in(new_email("ann"))
    bob = new_email("bob")
    browser.push(RESET)
    browser.push(login(bob))
    assert browser.statuses(track("cart-1")) == ["accepted"]
    assert arrives(sandbox, bob, "+cart-1") == ["identify", "+cart-1"]


def test_a_reset_of_an_anonymous_visitor_drops_what_it_held(browser: Browser, sandbox: Sandbox) -> None:
    ann, before = new_email(), tag()
    browser.push(track(before))
    assert browser.statuses(RESET) == ["accepted"]
    browser.push(login(ann), track("cart-end"))
    arrives(sandbox, ann, "+cart-end")
    assert not is_anywhere(sandbox, before)


# Duplicates


def test_a_repeated_log_in_still_says_who_the_pushes_behind_it_belong_to(browser: Browser, sandbox: Sandbox) -> None:
    ann, push_id = new_email(), new_id()
    log_in = login(ann)
    browser.request(log_in, ids=[push_id])  # the answer is lost, and the cookie with it
    assert browser.statuses(log_in, track("cart-1"), ids=[push_id, new_id()]) == ["duplicate", "accepted"]
    assert browser.cookie
    assert browser.statuses(track("cart-2")) == ["accepted"]
    assert arrives(sandbox, ann, "+cart-2") == ["identify", "+cart-1", "+cart-2"]


def test_a_repeated_log_in_from_a_browser_that_shows_someone_else_says_nothing(
    server: Server, sandbox: Sandbox
) -> None:
    ann, bob, push_id = new_email("ann"), new_email("bob"), new_id()
    anns, bobs = Browser(server), Browser(server)
    log_in = login(ann)
    anns.push(log_in, ids=[push_id])
    bobs.push(login(bob))
    assert bobs.statuses(log_in, track("cart-b"), ids=[push_id, new_id()]) == ["duplicate", "accepted"]
    assert arrives(sandbox, bob, "+cart-b") == ["identify", "+cart-b"]
    assert arrived(sandbox, ann) == ["identify"]


def test_a_repeated_log_in_of_another_person_whose_answer_was_lost(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob, push_id, old = new_email("ann"), new_email("bob"), new_id(), browser.s
    browser.logs_in(ann)
    log_in = login(bob)
    browser.request(log_in, ids=[push_id])  # retires Ann's visitor and s; the answer is lost
    assert browser.statuses(log_in, track("cart-1"), ids=[push_id, new_id()]) == ["duplicate", "accepted"]
    assert browser.s != old
    assert browser.statuses(track("cart-2")) == ["accepted"]
    assert arrives(sandbox, bob, "+cart-2") == ["identify", "+cart-1", "+cart-2"]
    assert arrived(sandbox, ann) == ["identify"]


def test_a_repeated_reset_whose_answer_was_lost_logs_out_all_the_same(browser: Browser, sandbox: Sandbox) -> None:
    ann, push_id, after, old = new_email(), new_id(), tag(), browser.s
    browser.logs_in(ann)
    lost = browser.request(RESET, ids=[push_id])
    assert browser.statuses(RESET, track(after), ids=[push_id, new_id()]) == ["duplicate", "held"]
    assert browser.s == lost.json()["s"] != old
    assert browser.statuses(track(after)) == ["held"]
    assert not is_anywhere(sandbox, after)


def test_a_repeated_log_in_after_a_log_out_does_not_log_in_again(browser: Browser, sandbox: Sandbox) -> None:
    ann, push_id, after, old = new_email(), new_id(), tag(), browser.s
    log_in = login(ann)
    browser.push(log_in, ids=[push_id])
    browser.push(RESET)
    for cookies in (browser.cookies, {}):
        late = browser.request(log_in, track(after), ids=[push_id, new_id()], s=old, cookies=cookies)
        assert outcomes(late.json()["results"]) == ["duplicate", "identity-changed"]
        assert "set-cookie" not in late.headers
    assert browser.statuses(log_in, track(after), ids=[push_id, new_id()]) == ["duplicate", "held"]
    assert browser.statuses(track(after)) == ["held"]
    other = Browser(browser.server)
    other.push(login(ann), track("cart-end"))
    arrives(sandbox, ann, "+cart-end")
    assert not is_anywhere(sandbox, after)


def test_ids_are_looked_up_before_a_token_expires(browser: Browser) -> None:
    ann, push_id = new_email(), new_id()
    browser.push(identify(token=token(ann)), ids=[push_id])
    assert browser.statuses(identify(token=token(ann, exp_in=-60)), ids=[push_id]) == ["duplicate"]
    assert browser.statuses(identify(token=token(ann, exp_in=-60))) == ["expired-token"]


def test_a_repeated_typed_address_still_says_who_the_pushes_behind_it_belong_to(
    browser: Browser, sandbox: Sandbox
) -> None:
    ann, push_id = new_email(), new_id()
    browser.request(identify(email=ann), ids=[push_id])
    result = browser.statuses(identify(email=ann), track("typed-1"), ids=[push_id, new_id()])
    assert result == ["duplicate", "accepted"]
    assert arrives(sandbox, ann, "+typed-1") == ["identify", "+typed-1"]


def test_a_repeat_from_a_browser_whose_cookie_has_changed_is_still_a_repeat(server: Server, sandbox: Sandbox) -> None:
    ann, push_id = new_email(), new_id()
    browser = Browser(server)
    browser.push(login(ann), track("cart-once"), ids=[new_id(), push_id])
    browser.push(login(new_email("bob")))
    assert browser.statuses(track("cart-once"), ids=[push_id]) == ["duplicate"]
    assert Browser(server).statuses(track("cart-once"), ids=[push_id]) == ["duplicate"]


def test_a_whole_queue_repeated_from_its_front_changes_nothing(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob = new_email("ann"), new_email("bob")
    calls = [track("cart-0"), login(ann), track("cart-1"), RESET, login(bob), track("cart-2")]
    ids, more = new_ids(len(calls)), new_id()
    browser.request(*calls, ids=ids)  # the answer is lost
    results = browser.statuses(*calls, track("cart-3"), ids=[*ids, more])
    assert results == ["duplicate"] * 6 + ["accepted"]
    assert arrives(sandbox, bob, "+cart-3") == ["identify", "+cart-2", "+cart-3"]
    assert arrives(sandbox, ann, "+cart-1") == ["identify", "+cart-0", "+cart-1"]


def test_a_whole_queue_repeated_by_a_browser_with_a_cookie_changes_nothing(browser: Browser, sandbox: Sandbox) -> None:
    ann, bob = new_email("ann"), new_email("bob")
    browser.push(track("cart-0"))
    calls = [login(ann), track("cart-1"), RESET, login(bob), track("cart-2")]
    ids, more = new_ids(len(calls)), new_id()
    browser.request(*calls, ids=ids)  # the answer is lost
    results = browser.statuses(*calls, track("cart-3"), ids=[*ids, more])
    assert results == ["duplicate"] * 5 + ["accepted"]
    assert arrives(sandbox, bob, "+cart-3") == ["identify", "+cart-2", "+cart-3"]
    assert arrives(sandbox, ann, "+cart-1") == ["identify", "+cart-0", "+cart-1"]


def test_a_repeated_consent_whose_answer_was_lost_is_still_respected(browser: Browser) -> None:
    push_id, denied = new_id(), ["consent", "denied"]
    browser.push(track("cart-0"))
    browser.request(denied, ids=[push_id])  # the answer is lost, and with it the cookie that says so
    assert browser.statuses(denied, track("cart-1"), ids=[push_id, new_id()]) == ["duplicate", "consent-denied"]
    assert browser.statuses(track("cart-2")) == ["consent-denied"]


# Typed addresses


def test_a_typed_address_identifies_a_visitor_nobody_knows(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    result = browser.push(identify(email=ann, firstName="Ann", company="X"))[0]
    assert (result["status"], result["dropped"]) == ("accepted", ["company"])
    assert browser.statuses(track("typed-1"), track("cart-1")) == ["accepted", "tag-not-allowed"]
    assert arrives(sandbox, ann, "+typed-1") == ["identify", "+typed-1"]
    assert requests_about(sandbox, ann)[0].body == {"email": ann, "firstName": "Ann"}


def test_an_asserted_visitor_never_removes_tags(browser: Browser) -> None:
    browser.push(identify(email=new_email()))
    assert browser.statuses(track("typed-1", remove=["typed-2"])) == ["tag-not-allowed"]


def test_another_typed_address_is_delivered_once_without_rebinding_a_verified_visitor(
    browser: Browser, sandbox: Sandbox
) -> None:
    ann, colleague = new_email("ann"), new_email("colleague")
    browser.logs_in(ann)
    result = browser.push(identify(email=colleague, firstName="Col", company="X"))[0]
    assert (result["status"], result["dropped"]) == ("accepted", ["company"])
    assert browser.statuses(track("cart-1")) == ["accepted"]
    assert arrives(sandbox, ann, "+cart-1") == ["identify", "+cart-1"]
    assert arrives(sandbox, colleague, "identify") == ["identify"]
    assert requests_about(sandbox, colleague)[0].body == {"email": colleague, "firstName": "Col"}


def test_the_same_typed_address_counts_as_verified(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    browser.logs_in(ann)
    result = browser.push(identify(email=ann.upper(), company="X"))[0]
    assert result["status"] == "accepted"
    assert "dropped" not in result
    assert browser.statuses(track("cart-1", remove=["cart-2"])) == ["accepted"]
    arrives(sandbox, ann, "+cart-1")
    contact = sandbox.contacts.get(ann)
    assert contact is not None
    assert contact.company == "X"


def test_fields_from_an_assertion_never_reach_a_contact_that_was_ever_verified(
    server: Server, sandbox: Sandbox
) -> None:
    ann = new_email()
    Browser(server).push(login(ann, firstName="Ann"))
    stranger = Browser(server)
    typed = stranger.push(identify(email=ann, firstName="Mallory"))[0]
    assert typed["status"] == "accepted"
    own = stranger.push(identify(firstName="Mallory"), track("typed-1"))
    assert outcomes(own) == ["accepted", "accepted"]
    arrives(sandbox, ann, "+typed-1")
    assert all(record.body.get("firstName") != "Mallory" for record in requests_about(sandbox, ann))


def test_the_answer_does_not_tell_whether_a_typed_address_was_ever_verified(server: Server) -> None:
    known, unknown = new_email(), new_email()
    Browser(server).logs_in(known)
    answers = []
    for email in (known, unknown):
        stranger = Browser(server)
        push_id = "the-very-same-id-" + new_id()
        result = stranger.push(identify(email=email, firstName="X", company="Y"), ids=[push_id])[0]
        answers.append((result["status"], result.get("dropped"), sorted(result)))
    assert answers[0] == answers[1]


# Fading


def test_a_verified_visitor_counts_as_asserted_after_the_days_set(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    browser.logs_in(ann)
    assert browser.cookie
    browser.cookies["__Host-scq"] = aged(browser.cookie, verified_days=29, issued_days=6)
    assert browser.statuses(track("cart-1")) == ["accepted"]
    browser.cookies["__Host-scq"] = aged(browser.cookie, verified_days=31, issued_days=6)
    assert browser.statuses(track("cart-2"), track("typed-1")) == ["tag-not-allowed", "accepted"]
    assert browser.push(identify(company="X", firstName="A"))[0]["dropped"] == ["company"]
    assert arrives(sandbox, ann, "+typed-1")[:3] == ["identify", "+cart-1", "+typed-1"]


def test_the_next_token_makes_a_faded_visitor_verified_again(browser: Browser) -> None:
    ann = new_email()
    browser.logs_in(ann)
    old_s = browser.s
    assert browser.cookie
    browser.cookies["__Host-scq"] = aged(browser.cookie, verified_days=31, issued_days=6)
    assert browser.statuses(login(ann), track("cart-1")) == ["accepted", "accepted"]
    assert browser.statuses(track("cart-2")) == ["accepted"]
    assert browser.s == old_s


# Consent and Global Privacy Control


def test_denied_consent_refuses_what_follows_and_drops_what_was_held(browser: Browser, sandbox: Sandbox) -> None:
    ann, before = new_email(), tag()
    browser.push(track(before))
    assert browser.statuses(["consent", "denied"]) == ["accepted"]
    assert browser.statuses(track("cart-1"), login(ann)) == ["consent-denied", "consent-denied"]
    assert browser.statuses(["consent", "granted"]) == ["accepted"]
    assert browser.statuses(login(ann), track("cart-2")) == ["accepted", "accepted"]
    assert arrives(sandbox, ann, "+cart-2") == ["identify", "+cart-2"]
    assert not is_anywhere(sandbox, before)


def test_denied_consent_outlives_a_log_out(browser: Browser) -> None:
    browser.logs_in(new_email())
    browser.push(["consent", "denied"])
    assert browser.statuses(RESET) == ["accepted"]
    assert browser.statuses(track("cart-1")) == ["consent-denied"]


def test_global_privacy_control_keeps_nothing_about_an_anonymous_visitor(server: Server) -> None:
    browser = Browser(server, sec_gpc="1")
    assert browser.statuses(track("cart-1")) == ["gpc"]


# What a rival found


def test_an_identify_behind_the_log_in_that_bound_what_was_held_is_accepted(browser: Browser, sandbox: Sandbox) -> None:
    ann, tag_held = new_email(), tag()
    assert browser.statuses(track(tag_held)) == ["held"]
    assert browser.statuses(login(ann), identify(firstName="Ann"), track(tag())) == ["accepted"] * 3
    arrives(sandbox, ann, f"+{tag_held}")


def test_what_a_tab_without_a_cookie_held_is_bound_once_by_the_tab_with_one(browser: Browser, sandbox: Sandbox) -> None:
    ann, tag_held = new_email(), tag()
    browser.logs_in(ann)
    cookieless = Browser(browser.server)
    cookieless.s = browser.s
    assert cookieless.statuses(track(tag_held)) == ["held"]
    assert browser.statuses(identify(firstName="Ann"), identify(firstName="Ann")) == ["accepted"] * 2
    arrived_once = arrives(sandbox, ann, f"+{tag_held}")
    assert arrived_once.count(f"+{tag_held}") == 1


def test_denying_and_granting_consent_and_identifying_in_one_request_drops_what_was_held(
    browser: Browser, sandbox: Sandbox
) -> None:
    ann, tag_held, tag_new = new_email(), tag(), tag()
    assert browser.statuses(track(tag_held)) == ["held"]
    consent = [["consent", "denied"], ["consent", "granted"]]
    assert browser.statuses(*consent, login(ann), track(tag_new)) == ["accepted"] * 4
    arrives(sandbox, ann, f"+{tag_new}")
    assert f"+{tag_held}" not in arrived(sandbox, ann)


def test_a_log_out_counts_even_under_a_session_value_that_has_ended(browser: Browser) -> None:
    browser.logs_in(new_email())
    stale = browser.s
    browser.logs_in(new_email())
    browser.s = stale
    assert browser.statuses(RESET) == ["accepted"]
    assert browser.statuses(track(tag())) == ["held"]


def test_a_typed_address_does_not_follow_the_person_who_moved(server: Server, sandbox: Sandbox) -> None:
    old, new, hers, strangers, last = new_email("old"), new_email("new"), tag(), tag("newsletter"), tag()
    ann, stranger = Browser(server), Browser(server)
    stranger.push(identify(email=old))
    ann.logs_in(old)
    ann.push(login(old, newEmail=new))
    eventually(lambda: sandbox.contacts.get(new))
    assert ann.statuses(track(hers)) == ["accepted"]
    arrives(sandbox, new, f"+{hers}")
    stranger.push(track(strangers))
    assert ann.statuses(track(last)) == ["accepted"]
    arrives(sandbox, new, f"+{last}")
    assert f"+{strangers}" not in arrived(sandbox, new)


def test_half_a_surrogate_pair_in_a_token_costs_nothing(browser: Browser, sandbox: Sandbox) -> None:
    ann = new_email()
    (result,) = browser.push(login(ann, firstName="Ann \ud83d"))
    assert result["status"] == "accepted"
    eventually(lambda: sandbox.contacts.get(ann))
    assert requests_about(sandbox, ann)[-1].body["firstName"] == "Ann \ufffd"


def test_a_cookie_from_before_a_log_in_pushes_for_nobody(server: Server, sandbox: Sandbox) -> None:
    ann, browser = new_email(), Browser(server)
    browser.push(track("cart-1"))
    copied, s = dict(browser.cookies), browser.s
    browser.logs_in(ann)
    log_in_long_ago(server, browser)
    for cookies in (copied, {}):
        answer = browser.request(track("cart-9"), s=s, cookies=cookies)
        assert outcomes(answer.json()["results"]) == ["held"]
    assert browser.statuses(track("cart-2")) == ["accepted"]
    assert arrives(sandbox, ann, "+cart-2") == ["identify", "+cart-1", "+cart-2"]


def test_a_cookie_from_before_a_log_in_logs_nobody_out(server: Server, sandbox: Sandbox) -> None:
    ann, browser = new_email(), Browser(server)
    browser.push(track("cart-1"))
    copied, s = dict(browser.cookies), browser.s
    browser.logs_in(ann)
    log_in_long_ago(server, browser)
    for cookies in (copied, {}):
        assert outcomes(browser.request(["reset"], s=s, cookies=cookies).json()["results"]) == ["accepted"]
    assert browser.statuses(track("cart-2"), login(ann)) == ["accepted", "accepted"]


def log_in_long_ago(server: Server, browser: Browser) -> None:
    """Two minutes older than it is, as far as the store knows."""
    value = browser.cookie
    assert value is not None
    visitor = json.loads(base64.urlsafe_b64decode(value.partition(".")[0] + "=="))["id"]
    assert server.stop() == 0
    connection = sqlite3.connect(server.store)
    changed = connection.execute("UPDATE visitors SET at = at - 120 WHERE id = ? AND identified", (visitor,)).rowcount
    connection.commit()
    connection.close()
    assert changed == 1
    server.start()


def test_the_id_of_a_log_in_is_no_log_in_in_another_call_and_not_for_ever(server: Server) -> None:
    ann, push_id, browser = new_email(), new_id(), Browser(server)
    browser.push(login(ann), ids=[push_id])
    stranger = Browser(server)
    answer = stranger.request(track("cart-1"), track("cart-1"), ids=[push_id, new_id()], cookies={})
    assert outcomes(answer.json()["results"]) == ["duplicate", "held"]
    server.stop()
    connection = sqlite3.connect(server.store)
    connection.execute("UPDATE seen SET at = at - 7200 WHERE id = ?", (push_id,))
    connection.commit()
    connection.close()
    server.start()
    answer = stranger.request(login(ann), track("cart-1"), ids=[push_id, new_id()], cookies={})
    assert outcomes(answer.json()["results"]) == ["duplicate", "held"]


@pytest.mark.parametrize("kind", ["expired", "consent"])
def test_a_refused_log_in_whose_answer_was_lost_says_once_more_who_follows(
    kind: str, browser: Browser, sandbox: Sandbox
) -> None:
    """The page repeats it, is told of the new session value, and what it pushes from then on is not the next person's."""
    ann, lost, later, end = new_email("ann"), tag(), tag(), tag()
    browser.logs_in(ann)
    reason, calls = "expired-token", [identify(token=token(new_email("bob"), exp_in=-60)), track(lost)]
    if kind == "consent":
        browser.push(["consent", "denied"])
        reason, calls = "consent-denied", [login(new_email("bob"))]
    ids, before = new_ids(len(calls)), browser.s
    browser.request(*calls, ids=ids)
    assert browser.statuses(*calls, ids=ids) == [reason, "duplicate"][: len(calls)]
    assert browser.s != before
    assert browser.statuses(track(later)) == ["held" if kind == "expired" else reason]
    browser.push(["consent", "granted"])
    assert browser.statuses(login(ann), track(end)) == ["accepted", "accepted"]
    assert f"+{end}" in arrives(sandbox, ann, f"+{end}")
    assert not {f"+{lost}", f"+{later}"}.intersection(arrived(sandbox, ann))
