"""Conclusions from observing the server: its clock, and whether it is still the same."""

from __future__ import annotations

import time

from proxy.store.postgres.sight import ACKNOWLEDGED, Sight


def name(timeline: int) -> str:
    """Of a file of the write-ahead log."""
    return f"{timeline:08X}0000000000000003"


def seen(position: int, *, timeline: int = 1) -> Sight:
    sight = Sight()
    sight.take(sight.asked(), (time.time(), position, name(timeline)))
    sight.moved = False
    return sight


def test_a_server_that_goes_on_is_the_same() -> None:
    sight = seen(1_000)
    sight.take(sight.asked(), (time.time(), 1_000, name(1)))
    sight.reached(2_000, sight.asked())
    sight.take(sight.asked(), (time.time(), 2_000, name(1)))
    assert not sight.moved


def test_another_timeline_is_another_server_and_so_is_one_that_is_behind_what_was_committed() -> None:
    promoted = seen(1_000)
    promoted.take(promoted.asked(), (time.time(), 5_000, name(10)))
    assert (promoted.moved, promoted.timeline) == (True, 10)
    restored = seen(1_000)
    restored.reached(2_000, restored.asked())
    restored.take(restored.asked(), (time.time(), 1_999, name(1)))
    assert restored.moved


def test_a_look_that_was_overtaken_by_another_one_is_not_behind() -> None:
    sight = seen(1_000)
    slow = sight.asked()
    sight.take(sight.asked(), (time.time(), 3_000, name(1)))
    sight.take(slow, (time.time(), 2_000, name(1)))
    assert not sight.moved
    late = sight.asked()
    sight.take(sight.asked(), (time.time(), 500, name(2)))
    sight.moved = False
    sight.take(late, (time.time(), 600, name(2)))
    sight.reached(9_000, late)
    sight.take(sight.asked(), (time.time(), 700, name(2)))
    assert not sight.moved, "what was committed on the server before says nothing of this one"


def test_a_server_that_does_not_tell_is_taken_for_the_same() -> None:
    sight = Sight(tells_servers=False)
    sight.take(sight.asked(), (time.time(), None, None))
    assert (sight.moved, sight.timeline) == (False, None)


def test_time_is_the_servers_whatever_this_machines_clock_says() -> None:
    sight = Sight()
    sight.take(sight.asked(), (time.time() + 300, 1, name(1)))
    assert 299 < sight.now() - time.time() < 301
    assert 299 < sight.ahead_seconds < 301
    slow = sight.asked()._replace(at=time.monotonic() - 10)
    sight.take(slow, (time.time() + 293, 1, name(1)))
    assert 299 < sight.ahead_seconds < 301, "that was within the time that the answer took"
    sight.take(sight.asked(), (time.time(), 1, name(1)))
    assert -1 < sight.ahead_seconds < 1


def test_so_many_acknowledged_ids_are_remembered_and_what_was_lost_is_told_once() -> None:
    sight = seen(1)
    for number in range(2 * ACKNOWLEDGED):
        sight.acknowledge([str(number)])
    kept = sight.acknowledged()
    assert kept == [str(number) for number in range(ACKNOWLEDGED, 2 * ACKNOWLEDGED)]
    sight.forget(kept[:5])
    assert sight.acknowledged() == kept[5:]
