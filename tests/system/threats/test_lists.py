"""What a page may not take: tags, fields and addresses off the lists."""

from __future__ import annotations

import pytest

from proxy.sandbox.api import Sandbox
from tests.support.server import (
    Browser,
    Server,
    arrives,
    identify,
    is_anywhere,
    login,
    new_email,
    requests_about,
    track,
)

HOMOGLYPH = "саrt-1"  # with Cyrillic letters
NEARLY = """
vip Cart-1 CART-1 xcart-1 cart Blogger paid __proto__ constructor * ? [c]art-1 %63art-1 ﬁ \u200bcart-1 cart\u20111
"""
OFF_THE_LIST = [
    *NEARLY.split(),
    HOMOGLYPH,
    " cart-1",
    "blogger ",
    "blogger\n",
    "blogger\x00",
    "paid  user",
    "paid user,vip",
]


@pytest.mark.parametrize("tag", OFF_THE_LIST, ids=ascii)
def test_a_tag_off_the_list_is_taken_by_nobody(server: Server, sandbox: Sandbox, tag: str) -> None:
    email, guest, nobody = new_email(), Browser(server), Browser(server)
    ann = Browser(server)
    ann.logs_in(email)
    guest.push(identify(email=(typed := new_email("typed"))))
    for browser in (ann, guest, nobody):
        for call in (track(tag), track("newsletter", tag), track(remove=[tag])):
            assert browser.statuses(call) == ["tag-not-allowed"]
    for browser in (ann, guest):
        assert browser.push(identify(tags=[tag]))[0]["dropped"] == [f"tags.{tag}"]
    ann.push(track("cart-end"))
    guest.push(track("typed-end"))
    events = arrives(sandbox, email, "+cart-end") + arrives(sandbox, typed, "+typed-end")
    assert not [event for event in events if event[1:] == tag]


@pytest.mark.parametrize(
    "tag", ["cart-\n", "cart-1\x00", "cart-\u2028x", "cart-\u202e1", "cart-1\u2069", "cart-\x9b1"], ids=ascii
)
def test_a_glob_offers_no_tag_with_characters_that_cannot_be_seen(server: Server, sandbox: Sandbox, tag: str) -> None:
    email, ann = new_email(), Browser(server)
    ann.logs_in(email)
    assert ann.push(identify(tags=[tag, "cart-1"]))[0]["dropped"] == [f"tags.{tag}"]
    assert ann.statuses(track("cart-👩\u200d👧"), track(tag), track(remove=[tag]), track("cart-end")) == [
        *("accepted", "tag-not-allowed", "tag-not-allowed", "accepted"),
    ]
    told = [event[1:] for event in arrives(sandbox, email, "+cart-end")]
    assert told[-3:] == ["cart-1", "cart-👩\u200d👧", "cart-end"]
    assert tag not in told


BEYOND = {
    "newEmail": "eve@example.com",
    "lists": ["l1"],
    "id": "x",
    "contact": {"tags": ["vip"]},
    "verified": True,
    "trust": 2,
    "customFields": {"Plan": "gold", "isAdmin": True, "++": "++1"},
    "tags": ["paid user", "vip"],
    "Email": "eve@example.com",
    "firstname": "Eve",
    "__proto__": {"email": "eve@example.com"},
    "success": {"email": "eve@example.com"},
}


def test_a_field_off_the_list_is_taken_by_nobody(server: Server, sandbox: Sandbox) -> None:
    email, typed = new_email(), new_email("typed")
    ann, guest = Browser(server), Browser(server)
    ann.logs_in(email)
    ann.push(identify(firstName="Ann", **BEYOND), track("cart-end"))
    guest.push(identify(email=typed, firstName="T", company="C", birthday="2000-01-01", **BEYOND), track("typed-end"))
    arrives(sandbox, email, "+cart-end")
    arrives(sandbox, typed, "+typed-end")
    told = [
        record.body for mail in (email, typed) for record in requests_about(sandbox, mail) if "identify" in record.path
    ]
    assert {"email": email, "firstName": "Ann", "tags": ["paid user"]} in told, "offered to whoever is verified"
    assert {"email": typed, "firstName": "T"} in told
    assert not is_anywhere(sandbox, "eve@example.com")


def test_an_assertion_only_adds_offered_tags_to_a_verified_contact(server: Server, sandbox: Sandbox) -> None:
    email, eve = new_email(), Browser(server)
    says = {
        "firstName": "Ann",
        "lastName": "A",
        "company": "C",
        "customFields": {"Plan": "gold"},
        "tags": ["vip", "newsletter"],
    }
    Browser(server).push(login(email, **says))
    arrives(sandbox, email, "+vip")
    before = sandbox.contacts.get(email)
    taken = {
        "firstName": "E",
        "lastName": "E",
        "company": "E",
        "birthday": "2000-01-01",
        "customFields": {"Plan": "free"},
    }
    for spelling in (email, email.upper(), f" {email} "):
        eve.push(identify(email=spelling, newEmail=new_email("eve"), **taken))
        eve.push(identify(newEmail=new_email("eve"), **taken))
    assert eve.statuses(track(remove=["newsletter"]), track("cart-1", "typed-1"), track("typed-end")) == [
        "tag-not-allowed",
        "tag-not-allowed",
        "accepted",
    ]
    arrives(sandbox, email, "+typed-end")
    after = sandbox.contacts.get(email)
    assert before is not None
    assert after is not None
    assert (after.first_name, after.last_name, after.company, after.birthday) == ("Ann", "A", "C", "")
    assert (after.custom_fields, after.email) == ({"Plan": "gold"}, email)
    assert set(after.tags) == {*before.tags, "typed-end"}
