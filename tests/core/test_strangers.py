"""What one network may bring that nobody has vouched for."""

import math

import pytest

from proxy.core.calls import Attributes
from proxy.core.strangers import PUSH_BYTES, Charges, Recent, Strangers, allowed_bytes, silence, within_share

NOW, HOUR, DAY = 1_000.0, 3_600.0, 86_400.0
MB = 1_000_000
ANN, BOB = "ann@example.com", "bob@example.com"
HOME, NEIGHBOUR, ELSEWHERE = "198.51.100.1", "198.51.100.2", "203.0.113.1"


def fill(strangers: Strangers, client: str, free: float, now: float = NOW) -> float:
    """Brings pushes of 10 KB until the client's share is used up; returns how many bytes it were. `free`: before that."""
    brought = 0.0
    while not strangers.has_used_up(client, free - brought, now):
        strangers.charge(client, [""], 10_000 - PUSH_BYTES, now)
        brought += 10_000
    return brought


def test_one_client_takes_no_more_than_a_part_of_its_networks_eighth() -> None:
    assert 0.8 * 100 * MB / 32 < fill(Strangers(2_500), HOME, 100 * MB) < 1.2 * 100 * MB / 32


def test_however_many_networks_there_were_the_next_one_has_room() -> None:
    strangers, free = Strangers(2_500), 100.0 * MB
    for number in range(100):
        took = fill(strangers, f"10.{number}.1.1", free)
        assert took >= 20_000
        free -= took
    assert free > 0


def test_the_neighbours_of_a_flood_have_room() -> None:
    strangers = Strangers(2_500)
    took = fill(strangers, HOME, 100 * MB)
    assert not strangers.has_used_up(NEIGHBOUR, 100 * MB - took, NOW)
    assert not strangers.has_used_up(ELSEWHERE, 100 * MB - took, NOW)


def test_a_whole_network_takes_no_more_than_its_eighth() -> None:
    strangers, taken = Strangers(2_500), 0.0
    for number in range(100):
        taken += fill(strangers, f"10.0.{number // 5}.{number % 5}", 100 * MB - taken)
    assert taken < 100 * MB / 7


def test_a_share_is_free_again_some_days_later() -> None:
    strangers = Strangers(2_500)
    first = fill(strangers, HOME, 100 * MB)
    assert fill(strangers, HOME, 100 * MB, NOW + 10 * DAY) == pytest.approx(first, rel=0.1)


def test_pushes_for_one_address_are_counted_by_the_network_that_pushes() -> None:
    strangers, pushed = Strangers(2_500), 0
    while not strangers.full_lanes(HOME, [ANN], NOW):
        strangers.charge(HOME, [ANN], 100, NOW)
        pushed += 1
    assert 150 <= pushed <= 320
    assert strangers.full_lanes(HOME, [ANN, BOB], NOW) == {ANN}
    assert not strangers.full_lanes(NEIGHBOUR, [ANN], NOW)
    assert not strangers.full_lanes(ELSEWHERE, [ANN], NOW)
    assert not strangers.full_lanes(HOME, [ANN], NOW + HOUR)


def test_what_says_the_same_again_is_known_and_an_increment_never_is() -> None:
    strangers, said = Strangers(2_500), Attributes({"firstName": "Ann"}, tags=("newsletter",))
    assert not strangers.repeats(HOME, ANN, said)
    strangers.note(HOME, ANN, said)
    assert strangers.repeats(HOME, ANN, Attributes({"firstName": "Ann"}, tags=("newsletter",)))
    assert not strangers.repeats(HOME, ANN, Attributes({"firstName": "Anne"}, tags=("newsletter",)))
    assert not strangers.repeats(ELSEWHERE, ANN, said)
    counted = Attributes(custom_fields={"Visits": "++1"})
    strangers.note(HOME, ANN, counted)
    assert not strangers.repeats(HOME, ANN, counted)


def test_what_is_kept_of_an_address_is_no_address() -> None:
    strangers = Strangers(2_500)
    strangers.note(HOME, ANN, Attributes({"firstName": "Ann"}))
    strangers.charge(HOME, [ANN], 100, NOW)
    kept = [vars(each) for each in vars(strangers).values() if hasattr(each, "__dict__")]
    kept += [vars(each["_amounts"]) for each in kept if "_amounts" in each]
    assert len(kept) == 5
    assert ANN not in repr(kept)
    assert "firstName" not in repr(kept)


def test_the_least_recent_is_forgotten_and_not_all() -> None:
    recent = Recent[int](3)
    for number in (1, 2, 3, 1, 4):
        recent.put(number, number)
    assert [recent.get(number) for number in (1, 2, 3, 4)] == [1, None, 3, 4]
    assert len(recent) == 3


def test_a_charge_fades() -> None:
    charges = Charges(HOUR)
    charges.add("a", 100.0, NOW)
    assert charges.of("a", NOW + HOUR) == pytest.approx(100 / math.e)
    assert charges.of("b", NOW) == 0.0


@pytest.mark.parametrize(
    ("charged", "room", "within"),
    [
        ([0, 0, 0], 100, True),
        ([100, 0, 0], 100, False),
        ([60, 60, 20], 100, False),
        ([60, 10, 10], 100, True),
    ],
)
def test_each_network_may_bring_half_of_what_the_others_of_the_one_around_it_leave(
    charged: list[float], room: float, within: bool
) -> None:
    assert within_share(charged, room) is within


def test_strangers_have_no_more_than_a_quarter_of_the_free_disk() -> None:
    assert allowed_bytes(256 * MB, 0, math.inf) == 256 * MB
    assert allowed_bytes(256 * MB, 0, 150 * MB) == 37.5 * MB
    assert allowed_bytes(256 * MB, 30 * MB, 120 * MB) == 37.5 * MB
    assert allowed_bytes(256 * MB, 30 * MB, -5 * MB) == 7.5 * MB


def test_a_request_of_many_pushes_has_longer_steps_as_what_they_cost_differs_by_more() -> None:
    for elapsed in (0.024, 0.026, 0.149):
        assert elapsed + silence(elapsed, 0.0, pushes=50) == pytest.approx(0.15)


@pytest.mark.parametrize("elapsed", [0.0001, 0.0005, 0.004, 0.0249])
def test_answers_about_typed_addresses_come_at_the_same_time_whatever_they_have_cost(elapsed: float) -> None:
    for chance in (0.0, 0.5):
        assert elapsed + silence(elapsed, chance) == pytest.approx(0.025 * (1 + chance))
        assert 0.1 + elapsed + silence(0.1 + elapsed, chance) == pytest.approx(0.125 + 0.025 * chance)
