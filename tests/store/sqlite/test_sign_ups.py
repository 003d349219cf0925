"""Turns of sign-ups under a clock that the tests set: what may leave within an hour, who is next, and that what is counted is what is there."""

from __future__ import annotations

import random
import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

import pytest

from proxy.core.networks import networks_of
from proxy.core.turns import Share, faded
from proxy.store.rows import SIGN_UPS
from proxy.store.sqlite import sign_ups
from proxy.store.sqlite.file import SCHEMA_STEPS, SQL

NOW, HOUR, DAY = 1_800_000_000.0, 3_600.0, 86_400.0
CLIENTS = ("192.0.2.1", "192.0.2.2", "198.51.100.7", "2001:db8:1::/64", "2001:db8:1:100::/64", "2a00:1::/64", "unknown")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    opened.create_function("lane_key", 1, str.lower, deterministic=True)
    opened.executescript("\n".join(SCHEMA_STEPS))
    yield opened
    opened.close()


def typed(connection: sqlite3.Connection, lane: int, client: str, now: float) -> None:
    """Somebody types an address: its lane is put off, whether it was already or not."""
    connection.execute(
        "INSERT INTO lanes (id, key, waiting, put_off, stranger) VALUES (?1, ?1, 1, 1, 1) ON CONFLICT (id) DO NOTHING",
        (lane,),
    )
    sign_ups.add(connection, [(lane, client)], now, now)


def require_counted(connection: sqlite3.Connection) -> None:
    """Each network counts the rows of the clients within it that do not rest, and a client its own."""
    resting = {name for (name,) in connection.execute("SELECT name FROM networks WHERE rests IS NOT NULL")}
    counts = Counter[str]()
    for (client,) in connection.execute("SELECT client FROM sign_ups"):
        counts.update(networks_of(client)[-1:] if client in resting else networks_of(client))
    stored = dict(connection.execute("SELECT name, waiting FROM networks WHERE waiting <> 0"))
    assert stored == counts


def most_in_an_hour(times: list[float]) -> int:
    return max((bisect_left(times, at + HOUR) - number for number, at in enumerate(times)), default=0)


@pytest.mark.parametrize("seed", range(4))
def test_in_no_window_of_an_hour_more_leave_than_may(connection: sqlite3.Connection, seed: int) -> None:
    """Six hours of whatever happens: sign-ups, turns, failures, drops, the sweep, and a server that is away."""
    chance = random.Random(seed)  # noqa: S311 - chance, not secrecy
    share = Share(per_hour=[1, 7, 40, 41][seed], per_client=[1, 2, 9, 0][seed])
    left: list[float] = []
    by_client: dict[str, list[float]] = {client: [] for client in CLIENTS}
    tallies = Counter[str]()
    now, lanes = NOW, 0
    while now < NOW + 6 * HOUR:
        now += chance.choice([0.0, 1.0, 20.0, 200.0, 0.0, 1_500.0 if chance.random() < 0.05 else 3.0])
        what = chance.random()
        if what < 0.5:
            lanes += chance.random() < 0.8
            typed(connection, lanes, chance.choice(CLIENTS), now)
        elif what < 0.9:
            while (turn := sign_ups.take_turn(connection, share, now)) is not None:
                left.append(now)
                by_client[turn.client].append(now)
                if chance.random() < 0.3:  # SendX does not answer
                    sign_ups.add(connection, [(turn.lane, turn.client)], now + chance.choice([0.0, 60.0, 900.0]), now)
            due = sign_ups.next_turn(connection, share, now)
            assert due is None or due > now
        elif what < 0.95:
            sign_ups.drop_lanes(connection, [chance.randrange(lanes + 1)], tallies, now)
        else:
            sign_ups.expire(connection, now - HOUR, 2, tallies, now)
            connection.execute(SQL["forget_networks"], (now, faded(now)))
        require_counted(connection)
    assert most_in_an_hour(left) <= share.per_hour
    assert len(left) > share.per_hour
    if share.per_client:
        assert all(most_in_an_hour(times) <= share.per_client for times in by_client.values())


def test_a_turn_that_is_due_is_taken_when_it_was_said_to_be(connection: sqlite3.Connection) -> None:
    share, now = Share(per_hour=10, per_client=6), NOW
    for lane in range(30):
        typed(connection, lane, CLIENTS[lane % 2], now)
    left = 0
    while (due := sign_ups.next_turn(connection, share, now)) is not None:
        now = max(now, due)
        left += sign_ups.take_turn(connection, share, now) is not None
    assert left == 30
    assert now - NOW == pytest.approx(25 * HOUR / 5, rel=0.25)


def test_a_queue_of_one_network_delays_no_other(connection: sqlite3.Connection) -> None:
    """However long it is, and however often its networks differ within the same /32."""
    for lane in range(500):
        typed(connection, lane, f"2001:db8:{lane:x}::/64", NOW)
    share, now = Share(per_hour=100), NOW
    while sign_ups.take_turn(connection, share, now) is not None:
        pass
    for number, client in enumerate(("192.0.2.1", "2a00::/64", "unknown")):
        typed(connection, 1_000 + number, client, now + number)
    turns: list[sign_ups.Turn] = []
    while len(turns) < 4:
        now = sign_ups.next_turn(connection, share, now) or 0.0
        turns += [turn] if (turn := sign_ups.take_turn(connection, share, now)) else []
    assert [turn.client for turn in turns[:3]] == ["192.0.2.1", "2a00::/64", "unknown"]


def test_networks_have_as_many_turns_as_one_another_and_hours_later_that_is_forgotten(
    connection: sqlite3.Connection,
) -> None:
    for lane in range(60):
        typed(connection, lane, "192.0.2.1", NOW)
    for _ in range(20):
        sign_ups.take_turn(connection, Share(), NOW)
    for lane in range(100, 160):
        typed(connection, lane, "198.51.100.7", NOW + 1)
    both = [turn.client for _ in range(40) if (turn := sign_ups.take_turn(connection, Share(), NOW + 2))]
    assert Counter(both) == {"198.51.100.7": 30, "192.0.2.1": 10}
    later = NOW + 12 * HOUR
    rest = [turn.client for _ in range(20) if (turn := sign_ups.take_turn(connection, Share(), later))]
    assert Counter(rest)["192.0.2.1"] == pytest.approx(10, abs=1)


def test_numbers_that_are_wrong_are_counted_again_and_that_is_said(
    connection: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    typed(connection, 1, "192.0.2.1", NOW)
    connection.execute("UPDATE networks SET waiting = waiting + 1")
    assert sign_ups.take_turn(connection, Share(), NOW) is not None
    assert sign_ups.take_turn(connection, Share(), NOW) is None
    assert "counted again" in caplog.text
    require_counted(connection)


def test_who_typed_it_does_not_matter_to_an_address_that_has_had_its_turn(connection: sqlite3.Connection) -> None:
    for client in CLIENTS:
        typed(connection, 1, client, NOW)
    assert sign_ups.take_turn(connection, Share(), NOW) is not None
    assert sign_ups.next_turn(connection, Share(), NOW) is None
    require_counted(connection)


def test_what_has_waited_for_too_long_is_dropped_once_nobody_waits_for_it(connection: sqlite3.Connection) -> None:
    tallies = Counter[str]()
    typed(connection, 1, CLIENTS[0], NOW)
    typed(connection, 1, CLIENTS[2], NOW + DAY)
    typed(connection, 2, CLIENTS[0], NOW)
    assert sign_ups.expire(connection, NOW + 1, 10, tallies, NOW + DAY) == 2
    assert tallies[SIGN_UPS] == -1
    assert connection.execute("SELECT id FROM lanes WHERE put_off").fetchall() == [(1,)]
    require_counted(connection)
