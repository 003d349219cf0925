"""The table from verdict to step, the back-off, and the state of the account."""

from email.utils import formatdate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.retry import (
    LONE_REFUSALS,
    MAX_BACKOFF_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    PROBE_SECONDS,
    RULES,
    Admission,
    Concurrency,
    Dead,
    Delivered,
    Gate,
    Halt,
    Keep,
    Limits,
    Retry,
    Step,
    Tried,
    Verdict,
    backoff_seconds,
    next_step,
    retry_after_seconds,
)

NOW = 1_000_000.0
LIMITS = Limits(max_attempts=20, max_age_seconds=3 * 86_400.0)
FRESH = Tried(increments=False, attempts=0, age_seconds=1.0)
SPENT = Tried(increments=False, attempts=10_000, age_seconds=1e9)
verdicts = st.sampled_from(Verdict)


def step(verdict: Verdict, tried: Tried = FRESH, *, halted: bool = False, lone_refusals: int = 0) -> Step:
    return next_step(verdict, tried, limits=LIMITS, retry_at=NOW, halted=halted, lone_refusals=lone_refusals)


# --- one push


def test_every_verdict_has_a_rule() -> None:
    assert set(RULES) == set(Verdict)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.DELIVERED, Delivered()),
        (Verdict.THROTTLED, Keep()),
        (Verdict.UNAVAILABLE, Retry(NOW)),
        (Verdict.UNREACHED, Retry(NOW)),
        (Verdict.UNAUTHORIZED, Keep()),
        (Verdict.FORBIDDEN, Retry(NOW, attempted=False)),
        (Verdict.MISSING, Dead("missing")),
        (Verdict.REDIRECTED, Retry(NOW)),
        (Verdict.MISDIRECTED, Retry(NOW)),
        (Verdict.REJECTED, Dead("rejected")),
    ],
)
def test_the_table_for_an_idempotent_push(verdict: Verdict, expected: Step) -> None:
    assert step(verdict) == expected


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.DELIVERED, Delivered()),
        (Verdict.THROTTLED, Keep()),
        (Verdict.UNAVAILABLE, Dead("ambiguous")),
        (Verdict.UNREACHED, Retry(NOW)),
        (Verdict.UNAUTHORIZED, Keep()),
        (Verdict.FORBIDDEN, Retry(NOW, attempted=False)),
        (Verdict.REDIRECTED, Dead("ambiguous")),
        (Verdict.MISDIRECTED, Retry(NOW)),
        (Verdict.REJECTED, Dead("rejected")),
    ],
)
def test_the_table_for_an_increment(verdict: Verdict, expected: Step) -> None:
    assert step(verdict, Tried(increments=True, attempts=0, age_seconds=1.0)) == expected


@pytest.mark.parametrize("verdict", [Verdict.UNAVAILABLE, Verdict.UNREACHED, Verdict.MISDIRECTED])
def test_a_push_is_exhausted_only_after_many_attempts_and_many_days(verdict: Verdict) -> None:
    old, tired = LIMITS.max_age_seconds, LIMITS.max_attempts - 1
    assert step(verdict, Tried(False, tired, old)) == Dead("exhausted")
    assert step(verdict, Tried(False, tired - 1, old)) == Retry(NOW)
    assert step(verdict, Tried(False, tired, old - 1)) == Retry(NOW)


@given(verdicts, st.booleans(), st.integers(0, 10))
def test_while_halted_nothing_is_spent_and_nothing_dies_but_what_is_ambiguous(
    verdict: Verdict, increments: bool, lone_refusals: int
) -> None:
    tried = msgspec.structs.replace(SPENT, increments=increments)
    result = step(verdict, tried, halted=True, lone_refusals=lone_refusals)
    assert result in (Delivered(), Keep(), Dead("ambiguous"))
    assert increments or not isinstance(result, Dead)


def test_a_lone_403_is_the_pushs_own_fault_after_five_tries_between_which_others_got_through() -> None:
    assert step(Verdict.FORBIDDEN, SPENT, lone_refusals=LONE_REFUSALS - 1) == Retry(NOW, attempted=False)
    assert step(Verdict.FORBIDDEN, lone_refusals=LONE_REFUSALS) == Dead("rejected")


def test_a_track_whose_contact_was_just_identified_is_tried_three_times() -> None:
    tries = [Tried(False, attempts, 1.0, introduced=True) for attempts in range(3)]
    assert [step(Verdict.MISSING, tried) for tried in tries] == [Retry(NOW), Retry(NOW), Dead("missing")]


# --- back-off


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 3_600))
def test_the_back_off_is_full_jitter_over_a_minimum(failures: int, uniform: float, retry_after: float | None) -> None:
    wait = backoff_seconds(failures, uniform, retry_after)
    assert wait >= (retry_after or 0)
    assert wait <= max(min(MAX_BACKOFF_SECONDS, 2.0**failures if failures < 20 else 1e9), retry_after or 0)
    assert wait >= uniform * min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures, 9))


def test_the_back_off_doubles_up_to_five_minutes() -> None:
    assert [backoff_seconds(failures, 1.0) for failures in (0, 1, 2, 8, 9, 99)] == [1, 2, 4, 256, 300, 300]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 17 ", 17.0),
        ("1.5", 1.5),
        ("9" * 5_000, MAX_RETRY_AFTER_SECONDS),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        (formatdate(NOW + 1e8, usegmt=True), MAX_RETRY_AFTER_SECONDS),
        ("Fri, 32 Foo 2026 99:99:99 GMT", None),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_seconds_and_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text(), st.floats(0, 4e9))
def test_no_retry_after_breaks_us_or_stops_us_for_long(value: str, now: float) -> None:
    assert 0 <= (retry_after_seconds(value, now) or 0) <= MAX_RETRY_AFTER_SECONDS


# --- the account


def after(gate: Gate, verdict: Verdict, *, lane: int = 1, probe: bool = False, now: float = NOW, **more: float) -> Gate:
    return gate.after(verdict, lane=lane, probe=probe, now=now, uniform=1.0, retry_after=more.get("retry_after"))


def halted(reason: Halt, now: float = NOW) -> Gate:
    return Gate(halted=reason, until=now + PROBE_SECONDS)


def test_a_429_closes_the_gate_and_a_probe_opens_it() -> None:
    gate = after(Gate(), Verdict.THROTTLED)
    assert (gate.name(NOW), gate.until, gate.admits(NOW)) == ("closed", NOW + 1, Admission.NONE)
    assert (gate.name(NOW + 1), gate.admits(NOW + 1)) == ("half-open", Admission.PROBE)
    opened = after(gate, Verdict.DELIVERED, probe=True, now=NOW + 1)
    assert (opened.name(NOW + 1), opened.admits(NOW + 1)) == ("open", Admission.ALL)


def test_retry_after_is_a_minimum_for_the_whole_account() -> None:
    assert after(Gate(), Verdict.THROTTLED, retry_after=30.0).until == NOW + 30


def test_probes_that_are_throttled_again_wait_longer_and_longer() -> None:
    gate, waits, now = after(Gate(), Verdict.THROTTLED), [], NOW
    for _ in range(4):
        assert gate.until is not None
        waits.append(gate.until - now)
        now = gate.until
        gate = after(gate, Verdict.THROTTLED, probe=True, now=now)
    assert waits == [1, 2, 4, 8]


def test_answers_that_were_under_way_when_the_gate_closed_do_not_lengthen_its_back_off() -> None:
    gate = after(Gate(), Verdict.THROTTLED)
    for lane in range(60):
        gate = after(gate, Verdict.THROTTLED, lane=lane)
    assert (gate.until, gate.throttles) == (NOW + 1, 1)
    assert after(gate, Verdict.THROTTLED, retry_after=20.0).until == NOW + 20
    assert after(gate, Verdict.DELIVERED).until == NOW + 1


@pytest.mark.parametrize("verdict", [Verdict.UNAVAILABLE, Verdict.UNREACHED])
def test_a_probe_without_an_answer_leaves_the_gate_half_open(verdict: Verdict) -> None:
    gate = after(after(Gate(), Verdict.THROTTLED), verdict, probe=True, now=NOW + 5)
    assert gate.name(NOW + 5) == "half-open"


def test_a_401_halts_at_once_and_probes_once_a_minute() -> None:
    gate = after(Gate(), Verdict.UNAUTHORIZED)
    assert (gate.halted, gate.until) == (Halt.KEY, NOW + 60)
    assert after(gate, Verdict.UNAUTHORIZED, lane=2, now=NOW + 9).until == NOW + 60
    again = after(gate, Verdict.UNAUTHORIZED, probe=True, now=NOW + 61)
    assert (again.halted, again.until) == (Halt.KEY, NOW + 121)
    assert after(again, Verdict.DELIVERED, probe=True).name(NOW) == "open"


def test_a_403_halts_when_a_second_lane_gets_it_too() -> None:
    once = after(after(Gate(), Verdict.FORBIDDEN), Verdict.FORBIDDEN)
    assert once.halted is None
    assert after(once, Verdict.FORBIDDEN, lane=2).halted is Halt.FORBIDDEN


def test_a_success_between_two_403s_means_that_the_account_is_well() -> None:
    gate = after(after(Gate(), Verdict.FORBIDDEN), Verdict.DELIVERED, lane=3)
    assert after(gate, Verdict.FORBIDDEN, lane=2).halted is None


def test_a_lone_403_counts_only_when_others_got_through_since() -> None:
    gate = Gate()
    for _ in range(9):
        gate = after(gate, Verdict.FORBIDDEN)
    assert gate.lone_refusals(1) == 1
    for tries in range(2, 6):
        gate = after(after(gate, Verdict.DELIVERED, lane=2), Verdict.FORBIDDEN)
        assert gate.lone_refusals(1) == tries
    assert after(gate, Verdict.DELIVERED).lone_refusals(1) == 0


@pytest.mark.parametrize("verdict", [Verdict.MISDIRECTED, Verdict.REDIRECTED])
def test_a_wrong_base_url_shows_over_five_lanes(verdict: Verdict) -> None:
    gate = Gate()
    for lane in (1, 2, 3, 4, 4, 4):
        gate = after(gate, verdict, lane=lane)
    assert gate.halted is None
    assert after(gate, verdict, lane=5).halted is Halt.WRONG_URL
    assert after(after(gate, Verdict.DELIVERED, lane=9), verdict, lane=5).halted is None


@given(st.lists(st.tuples(st.sampled_from([Verdict.REJECTED, Verdict.MISSING]), st.integers(0, 50))))
def test_400_409_422_and_404_on_track_never_halt(answers: list[tuple[Verdict, int]]) -> None:
    gate = Gate()
    for verdict, lane in answers:
        gate = after(gate, verdict, lane=lane)
    assert gate == Gate()


@pytest.mark.parametrize("reason", Halt)
def test_only_an_answer_that_shows_the_fault_mended_ends_a_halt(reason: Halt) -> None:
    ends = {verdict for verdict in Verdict if after(halted(reason), verdict, probe=True).halted is None}
    mended = {Verdict.DELIVERED, Verdict.REJECTED, Verdict.MISSING}
    assert ends == mended - ({Verdict.MISSING} if reason is Halt.WRONG_URL else set())


@given(st.lists(st.tuples(verdicts, st.integers(0, 9))))
def test_answers_under_way_never_end_a_halt(answers: list[tuple[Verdict, int]]) -> None:
    gate = halted(Halt.KEY)
    for verdict, lane in answers:
        gate = after(gate, verdict, lane=lane)
        assert (gate.halted, gate.until) == (Halt.KEY, NOW + 60)


@given(st.lists(st.tuples(verdicts, st.integers(0, 2_000), st.booleans()), max_size=200))
def test_whatever_the_answers_a_shut_gate_has_a_next_probe_within_the_hour(
    answers: list[tuple[Verdict, int, bool]],
) -> None:
    gate = Gate()
    for verdict, lane, probe in answers:
        gate = after(gate, verdict, lane=lane, probe=probe)
        assert (gate.until is None) == (gate.name(NOW) == "open")
        assert gate.until is None or gate.until <= NOW + MAX_RETRY_AFTER_SECONDS
        assert len(gate.refusals) <= 256
        assert len(gate.misdirected) <= 5


# --- concurrency


def test_overload_halves_the_concurrency_once_a_second_and_never_to_nothing() -> None:
    limits, concurrency = [], Concurrency.up_to(8)
    for now in (1.0, 1.1, 1.9, 2.5, 4.0, 6.0, 8.0):
        concurrency = concurrency.after_overload(NOW + now)
        limits.append(concurrency.limit)
    assert limits == [4, 4, 4, 2, 1, 1, 1]


def test_concurrency_recovers_slowly_up_to_the_maximum() -> None:
    concurrency = Concurrency.up_to(4).after_overload(NOW)
    limits = []
    for _ in range(60):
        concurrency = concurrency.after_success()
        limits.append(concurrency.limit)
    assert limits[:20] == [2] * 19 + [3]
    assert limits[39:] == [4] * 21
