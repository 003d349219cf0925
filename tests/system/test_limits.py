"""What is bounded stays bounded, and nobody can use a bound against somebody else (DESIGN § 5.7). SendX is down throughout."""

from __future__ import annotations

import pytest

from tests.support.live import nowhere
from tests.support.server import Browser, Server, identify, login, new_email, track

LANE, HOLD = 8, 5
LONG_TAG = "cart-" + "x" * 250


@pytest.fixture(scope="module")
def upstream() -> str:
    return nowhere()


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    limits = {"SCQ_LANE_MAX": str(LANE), "SCQ_HOLD_MAX": str(HOLD), "SCQ_HOLD_MB": "1"}
    return {"SCQ_IDENTIFY": "asserted", "SCQ_GPC": "ignore", **limits}


def test_a_full_lane_refuses_and_the_others_go_on(server: Server) -> None:
    ann, bob = Browser(server), Browser(server)
    ann.logs_in(new_email("ann"))
    assert ann.statuses(*[track("cart-1")] * LANE) == ["accepted"] * (LANE - 1) + ["lane-full"]
    assert ann.statuses(login(new_email("other"))) == ["accepted"], "another person's lane has room"
    bob.logs_in(new_email("bob"))


def test_a_lane_with_few_pushes_that_are_large_refuses_too(server: Server) -> None:
    ann, tags = Browser(server), [f"{LONG_TAG[:-3]}{number:03}" for number in range(100)]
    ann.logs_in(new_email("ann"))
    room = LANE * 4_096 // len("".join(tags)) + 1
    assert room < LANE - 1
    answers = [ann.statuses(track(*tags))[0] for _ in range(room + 1)]
    assert answers == ["accepted"] * room + ["lane-full"]
    assert ann.statuses(login(new_email("other"))) == ["accepted"], "another person's lane has room"


def test_what_strangers_assert_cannot_fill_the_lane_of_the_person_whose_address_it_is(server: Server) -> None:
    victim = new_email("victim")
    answers = [Browser(server).statuses(identify(email=victim, firstName=f"Eve {number}"))[0] for number in range(LANE)]
    assert answers == ["accepted"] * (LANE // 4) + ["lane-full"] * (LANE - LANE // 4)
    ann = Browser(server)
    ann.logs_in(victim)
    assert ann.statuses(*[track("cart-1")] * (LANE - LANE // 4 - 1)) == ["accepted"] * (LANE - LANE // 4 - 1)


def test_what_has_been_said_of_an_address_is_accepted_however_full_its_lane_is(server: Server) -> None:
    reader, said = new_email("reader"), {"firstName": "Ann", "tags": ["newsletter"]}
    again = [Browser(server).statuses(identify(email=reader, **said))[0] for _ in range(LANE)]
    assert again == ["accepted"] * LANE


def test_pushes_that_are_refused_beside_a_large_one_do_not_hide_its_size(server: Server) -> None:
    heavy, client = track(*[f"{LONG_TAG[:-3]}{number:03}" for number in range(100)]), "203.0.113.1"
    taken = 0
    while Browser(server, x_forwarded_for=client).statuses(heavy, *[["track", {}]] * 40)[0] == "held":
        taken += 1
        assert taken < 10, "a client takes more than its part of an eighth of a megabyte"
    assert taken


def test_an_anonymous_visitor_is_held_up_to_a_number(server: Server) -> None:
    ann, bob = Browser(server), Browser(server)
    assert ann.statuses(*[track("cart-1")] * (HOLD + 1)) == ["held"] * HOLD + ["hold-full"]
    assert bob.statuses(track("cart-1")) == ["held"]
    assert ann.statuses(login(new_email()), track("cart-1")) == ["accepted", "accepted"], "and nothing bars the log-in"


def test_strangers_can_fill_the_room_for_held_pushes_but_shut_out_no_customer(server: Server) -> None:
    heavy = track(*[f"{LONG_TAG[:-3]}{number:03}" for number in range(100)])
    answers: list[str] = []
    while "hold-full" not in answers:
        answers += Browser(server).statuses(heavy, heavy)
        assert len(answers) < 100, "a megabyte is never full"
    customer = Browser(server)
    customer.logs_in(new_email())
    assert customer.statuses(track("cart-1")) == ["accepted"]
