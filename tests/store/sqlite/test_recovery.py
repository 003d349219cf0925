"""The states of the store after failures, attacked with any sequence of events at any times."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import StoreRefused
from proxy.store.sqlite.damage import FileMoved
from proxy.store.sqlite.recovery import (
    GIVE_UP_SECONDS,
    GIVE_UP_TRIES,
    RETRY_SECONDS,
    TRANSITIONS,
    Event,
    Recovery,
    State,
    gives_up,
)

OPEN = {State.OPEN, State.FAILING}


def failure(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("…")
    error.sqlite_errorcode = code
    return error


FULL, IO, DEFECT = failure(sqlite3.SQLITE_FULL), failure(sqlite3.SQLITE_IOERR), ValueError()

STEPS: dict[str, Callable[[Recovery, float], Recovery]] = {
    "opened": lambda was, _: was.opened(),
    "refused": lambda was, _: was.refused(StoreRefused("…")),
    "wrote": lambda was, _: was.wrote(),
    "disk full": lambda was, _: was.transaction_failed(FULL),
    "bad job": lambda was, _: was.transaction_failed(DEFECT),
    "i/o error": lambda was, _: was.transaction_failed(IO),
    "moved": lambda was, _: was.upkeep_failed(FileMoved("…")),
    "no room": lambda was, _: was.upkeep_failed(FULL),
    "tried": lambda was, now: was.tried(now),
    "defect": lambda was, _: was.defect_found(DEFECT),
    "closed": lambda was, _: was.closed(),
}
Life = list[tuple[str, float, Recovery, Recovery]]

pauses = st.sampled_from([0.0, 0.1, RETRY_SECONDS, 7.0, GIVE_UP_SECONDS])
any_steps = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), pauses), max_size=60)


def taken(name: str, was: Recovery, now: float) -> Recovery | None:
    try:
        return STEPS[name](was, now)
    except KeyError:
        return None


def walk(steps: Iterable[tuple[str, float]]) -> Life:
    """Takes the steps that can be taken; returns what happened, when, and the values before and after."""
    life: Life = []
    now, was = 1_000.0, Recovery()
    for name, seconds in [("opened", 0.0), *steps]:
        now += seconds
        if (after := taken(name, was, now)) is not None:
            life.append((name, now, was, after))
            was = after
    return life


@st.composite
def long_lives(draw: st.DrawFn) -> Life:
    """Draws each step from those that can be taken, but for a defect and the end."""
    life = walk([])
    for _ in range(draw(st.integers(0, 40))):
        _, now, _, was = life[-1]
        now += draw(pauses)
        steps = [(name, taken(name, was, now)) for name in STEPS if name not in ("defect", "closed")]
        life.append(draw(st.sampled_from([(name, now, was, after) for name, after in steps if after is not None])))
    return life


@given(any_steps)
def test_no_sequence_of_events_leaves_the_table(steps: list[tuple[str, float]]) -> None:
    for _, _, was, after in walk(steps):
        assert after is was or after.state in TRANSITIONS[was.state].values()
        assert len(after.tries) <= GIVE_UP_TRIES


@given(st.sampled_from(State), st.sampled_from(sorted(STEPS)), st.floats(0, 1e9))
def test_from_each_state_a_step_follows_the_table_or_is_refused(state: State, step: str, now: float) -> None:
    was = Recovery(state)
    after = taken(step, was, now)
    assert after is None or after is was or after.state in TRANSITIONS[state].values()


def test_every_event_and_every_state_is_in_use_and_every_state_leads_to_closed() -> None:
    leads_to = {state: set(after.values()) - {state} for state, after in TRANSITIONS.items()}
    assert leads_to.keys() == set(State)
    assert {event for after in TRANSITIONS.values() for event in after} == set(Event)
    assert set().union(*leads_to.values()) == set(State) - {State.OPENING}
    closing = {State.CLOSED}
    while grown := {state for state, after in leads_to.items() if after & closing} - closing:
        closing |= grown
    assert closing == set(State)


@given(any_steps)
def test_what_failed_for_good_is_only_closed_after_that(steps: list[tuple[str, float]]) -> None:
    states = [after.state for *_, after in walk(steps)]
    if State.FAILED in states:
        assert set(states[states.index(State.FAILED) :]) <= {State.FAILED, State.CLOSED}
    if State.CLOSED in states:
        assert set(states[states.index(State.CLOSED) :]) == {State.CLOSED}


@given(long_lives())
def test_nothing_is_stored_while_the_file_is_not_open(life: Life) -> None:
    for name, _, was, after in life:
        if name == "wrote":
            assert was.state in OPEN
            assert after.state is State.OPEN
    for state in set(State) - OPEN:
        with pytest.raises(KeyError):
            Recovery(state).wrote()


@given(long_lives())
def test_a_write_forgets_what_failed_and_nothing_else_does(life: Life) -> None:
    for name, _, was, after in life:
        if name == "wrote":
            assert (after.failures, after.tries) == (0, ())
        else:
            assert after.failures >= was.failures
            assert set(after.tries[-1:]) >= set(was.tries[-1:]) or name == "tried"
        assert after.state is not State.OPEN or not after.failures
        assert after.state is not State.FAILING or after.failures


@given(long_lives())
def test_the_file_is_not_opened_again_more_often_than_the_limits_allow(life: Life) -> None:
    tries: list[float] = []
    last = float("-inf")
    for name, now, was, after in life:
        if name == "wrote":
            tries.clear()
        if after.state is State.REOPENING and was.state is not State.REOPENING:
            assert now - last >= RETRY_SECONDS
            last = now
            tries.append(now)
            assert sum(now - at < GIVE_UP_SECONDS for at in tries) <= GIVE_UP_TRIES
        if after.state is State.FAILED and was.state is not State.FAILED:
            assert sum(now - at < GIVE_UP_SECONDS for at in tries) == GIVE_UP_TRIES


@pytest.mark.parametrize("outcome", ["refused", "opened"])
@pytest.mark.parametrize("seconds", [RETRY_SECONDS, GIVE_UP_SECONDS / GIVE_UP_TRIES - 0.1])
def test_a_file_that_stays_broken_is_given_up(outcome: str, seconds: float) -> None:
    once = [("i/o error", 0.0), ("tried", seconds), (outcome, 0.0)]
    assert State.FAILED not in {after.state for *_, after in walk(once * GIVE_UP_TRIES)}
    assert walk(once * (GIVE_UP_TRIES + 1))[-1][3].state is State.FAILED


def test_a_file_that_breaks_now_and_then_is_not_given_up() -> None:
    seldom = [("moved", GIVE_UP_SECONDS / GIVE_UP_TRIES), ("tried", 0.0), ("opened", 0.0)]
    assert walk(seldom * 50)[-1][3].state is State.OPEN
    written = [("i/o error", RETRY_SECONDS), ("tried", 0.0), ("opened", 0.0), ("wrote", 0.0)]
    assert walk(written * 50)[-1][3].state is State.OPEN


def test_it_gives_up_after_some_tries_in_a_minute_and_not_after_as_many_in_an_hour() -> None:
    assert gives_up([100.0] * GIVE_UP_TRIES, 100.0)
    assert not gives_up([100.0] * (GIVE_UP_TRIES - 1), 100.0)
    assert not gives_up([100.0 * number for number in range(GIVE_UP_TRIES)], 100.0 * GIVE_UP_TRIES)


def test_it_says_why_the_file_cannot_be_opened_rather_than_why_it_had_to_be() -> None:
    broken = Recovery().opened().transaction_failed(IO)
    assert broken.cause is IO
    obstacle = StoreRefused("…")
    refused = broken.tried(1_000.0).refused(obstacle)
    assert (refused.cause, refused.failure) == (obstacle, IO)
    assert refused.tried(1_001.0).opened().cause is IO


def test_its_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Recovery().failures = 1  # type: ignore[misc]
    assert msgspec.structs.replace(Recovery()) == Recovery()
