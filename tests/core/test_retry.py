"""The tables from status to verdict and from verdict to step, and the back-off."""

from email.utils import formatdate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.retry import (
    LONE_SECONDS,
    MAX_BACKOFF_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    RULES,
    STATUSES,
    Call,
    Dead,
    Delivered,
    GiveUp,
    Keep,
    Lone,
    Retry,
    Step,
    Tried,
    Verdict,
    backoff_seconds,
    next_step,
    retry_after_seconds,
    verdict_for,
)

NOW = 1_000_000.0
LIMITS = GiveUp(max_attempts=20, max_age_seconds=3 * 86_400.0)
FRESH = Tried(increments=False, attempts=0, age_seconds=1.0)
SPENT = Tried(increments=False, attempts=10_000, age_seconds=1e9)
verdicts = st.sampled_from(Verdict)


def step(verdict: Verdict, tried: Tried = FRESH, *, halted: bool = False, lone: Lone = Lone()) -> Step:  # noqa: B008 - frozen
    return next_step(verdict, tried, limits=LIMITS, retry_at=NOW, halted=halted, lone=lone)


# --- what an answer means

EXPECTED = {
    Verdict.REJECTED: {400, 406, 409, 413, 414, 415, 422, 431},
    Verdict.BUSY: {408, 421, 423, 425},
    Verdict.UNAUTHORIZED: {401},
    Verdict.MISDIRECTED: {404, 405},
    Verdict.THROTTLED: {429},
}


def expected(status: int, call: Call, *, borne_out: bool) -> Verdict:
    """The rules of DESIGN § 5.5, in words other than those of the table."""
    if status == 404 and call is Call.TRACK and borne_out:
        return Verdict.MISSING
    if status in EXPECTED[Verdict.REJECTED] and not borne_out:
        return Verdict.REFUSED
    for verdict, codes in EXPECTED.items():
        if status in codes:
            return verdict
    if 200 <= status < 300:
        return Verdict.DELIVERED if borne_out else Verdict.UNCLEAR
    return {3: Verdict.REDIRECTED, 4: Verdict.REFUSED}.get(status // 100, Verdict.UNAVAILABLE)


@pytest.mark.parametrize("call", Call)
@pytest.mark.parametrize("borne_out", [True, False])
def test_every_status_has_its_verdict_for_every_call(call: Call, borne_out: bool) -> None:
    found = {status: verdict_for(status, call, borne_out=borne_out) for status in range(100, 1000)}
    assert found == {status: expected(status, call, borne_out=borne_out) for status in range(100, 1000)}


def test_every_row_of_the_table_decides_something_and_says_why() -> None:
    seen: set[int] = set()
    for row in STATUSES:
        assert set(row.codes) - seen, row
        assert row.source.startswith(("SendX docs", "RFC")), row
        seen |= set(row.codes)
    assert seen == set(range(200, 600))


# --- one push


def test_every_verdict_has_a_rule() -> None:
    assert set(RULES) == set(Verdict)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.DELIVERED, Delivered()),
        (Verdict.UNCLEAR, Retry(NOW)),
        (Verdict.THROTTLED, Keep()),
        (Verdict.UNAVAILABLE, Retry(NOW)),
        (Verdict.UNREACHED, Retry(NOW)),
        (Verdict.BUSY, Retry(NOW)),
        (Verdict.UNAUTHORIZED, Keep()),
        (Verdict.REFUSED, Retry(NOW, attempted=False)),
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
        (Verdict.UNCLEAR, Dead("ambiguous")),
        (Verdict.THROTTLED, Keep()),
        (Verdict.UNAVAILABLE, Dead("ambiguous")),
        (Verdict.UNREACHED, Retry(NOW)),
        (Verdict.BUSY, Retry(NOW)),
        (Verdict.UNAUTHORIZED, Keep()),
        (Verdict.REFUSED, Retry(NOW, attempted=False)),
        (Verdict.REDIRECTED, Dead("ambiguous")),
        (Verdict.MISDIRECTED, Retry(NOW)),
        (Verdict.REJECTED, Dead("rejected")),
    ],
)
def test_the_table_for_an_increment(verdict: Verdict, expected: Step) -> None:
    assert step(verdict, Tried(increments=True, attempts=0, age_seconds=1.0)) == expected


@pytest.mark.parametrize(
    "verdict", [Verdict.UNAVAILABLE, Verdict.UNREACHED, Verdict.BUSY, Verdict.MISDIRECTED, Verdict.UNCLEAR]
)
def test_a_push_is_exhausted_only_after_many_attempts_and_many_days(verdict: Verdict) -> None:
    old, tired = LIMITS.max_age_seconds, LIMITS.max_attempts - 1
    for attempts, age, expected in (
        (tired, old, Dead("exhausted")),
        (tired - 1, old, Retry(NOW)),
        (tired, old - 1, Retry(NOW)),
    ):
        assert step(verdict, Tried(increments=False, attempts=attempts, age_seconds=age)) == expected


@given(verdicts, st.booleans(), st.builds(Lone, st.floats(0, 2 * LONE_SECONDS), st.booleans()))
def test_while_halted_nothing_is_spent_and_nothing_dies_but_what_is_ambiguous(
    verdict: Verdict, increments: bool, lone: Lone
) -> None:
    tried = msgspec.structs.replace(SPENT, increments=increments)
    result = step(verdict, tried, halted=True, lone=lone)
    assert result in (Delivered(), Keep(), Dead("ambiguous"))
    assert increments or not isinstance(result, Dead)


@pytest.mark.parametrize("increments", [True, False])
def test_a_lone_refusal_is_the_pushs_own_fault_after_an_hour_in_which_others_were_delivered(increments: bool) -> None:
    tried = msgspec.structs.replace(FRESH, increments=increments)
    assert step(Verdict.REFUSED, tried, lone=Lone(LONE_SECONDS - 1, proven=True)) == Retry(NOW)
    assert step(Verdict.REFUSED, tried, lone=Lone(LONE_SECONDS, proven=True)) == Dead("rejected", lone=True)


def test_a_refusal_that_may_be_the_accounts_spends_nothing() -> None:
    assert step(Verdict.REFUSED, SPENT) == Retry(NOW, attempted=False)
    assert step(Verdict.REFUSED, msgspec.structs.replace(SPENT, pressed=True)) == Retry(NOW, attempted=False)


def test_a_lone_refusal_that_restarts_begin_anew_ends_like_any_other_retry() -> None:
    assert step(Verdict.REFUSED, SPENT, lone=Lone(1.0, proven=True)) == Dead("exhausted")


@pytest.mark.parametrize("verdict", [Verdict.UNAVAILABLE, Verdict.UNCLEAR, Verdict.BUSY, Verdict.REFUSED])
def test_what_a_stranger_asserted_is_given_up_after_three_tries_if_a_customer_waits_behind(verdict: Verdict) -> None:
    tries = [msgspec.structs.replace(FRESH, attempts=attempts, pressed=True) for attempts in range(3)]
    steps = [step(verdict, tried, lone=Lone(1.0, proven=True)) for tried in tries]
    assert steps == [Retry(NOW), Retry(NOW), Dead("exhausted")]


def test_a_track_whose_contact_was_just_identified_is_tried_three_times() -> None:
    tries = [msgspec.structs.replace(FRESH, attempts=attempts, introduced=True) for attempts in range(3)]
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
