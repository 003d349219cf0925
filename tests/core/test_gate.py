"""The state of the account: the gate, what senders agree on, and concurrency."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.gate import PROBE_SECONDS, Closure, Concurrency, Gate, Halt, Permit, merge_closures
from proxy.core.retry import MAX_RETRY_AFTER_SECONDS, Verdict

NOW = 1_000_000.0
UNANSWERED = [Verdict.UNAVAILABLE, Verdict.UNREACHED, Verdict.BUSY]
verdicts = st.sampled_from(Verdict)


def after(gate: Gate, verdict: Verdict, *, lane: int = 1, probe: bool = False, now: float = NOW, **more: float) -> Gate:
    return gate.after(verdict, lane=lane, probe=probe, now=now, uniform=1.0, retry_after=more.get("retry_after"))


def halted(reason: Halt, now: float = NOW) -> Gate:
    return Gate(Closure(now + PROBE_SECONDS, halted=reason))


def test_a_429_closes_the_gate_and_a_probe_opens_it() -> None:
    gate = after(Gate(), Verdict.THROTTLED)
    assert (gate.name(NOW), gate.until, gate.admits(NOW)) == ("closed", NOW + 1, Permit.NONE)
    assert (gate.name(NOW + 1), gate.admits(NOW + 1)) == ("half-open", Permit.PROBE)
    opened = after(gate, Verdict.DELIVERED, probe=True, now=NOW + 1)
    assert (opened.name(NOW + 1), opened.admits(NOW + 1)) == ("open", Permit.ALL)


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
    assert gate.closure == Closure(NOW + 1, tries=1)
    assert after(gate, Verdict.THROTTLED, retry_after=20.0).until == NOW + 20
    assert after(gate, Verdict.DELIVERED).until == NOW + 1


@pytest.mark.parametrize("verdict", UNANSWERED)
def test_a_probe_without_an_answer_shuts_the_gate_for_longer(verdict: Verdict) -> None:
    gate = after(after(Gate(), Verdict.THROTTLED), verdict, probe=True, now=NOW + 5)
    assert gate.closure == Closure(NOW + 7, tries=2, down=True)


@pytest.mark.parametrize("verdict", UNANSWERED)
def test_five_lanes_without_an_answer_between_mean_that_sendx_is_down(verdict: Verdict) -> None:
    gate = Gate()
    for lane in (1, 2, 3, 4, 4, 1):
        gate = after(gate, verdict, lane=lane)
    assert gate.closure is None, "a few contacts whose requests fail are not SendX"
    shut = after(gate, verdict, lane=5)
    assert shut.closure == Closure(NOW + 1, tries=1, down=True)
    assert after(shut, verdict, lane=6) == shut, "it was under way already"


@pytest.mark.parametrize(
    "verdict", sorted(set(Verdict) - {*UNANSWERED, Verdict.THROTTLED, Verdict.UNAUTHORIZED, Verdict.UNCLEAR})
)
def test_any_answer_shows_that_sendx_is_there(verdict: Verdict) -> None:
    gate = Gate()
    for lane in (1, 2, 3, 4):
        gate = after(gate, Verdict.UNAVAILABLE, lane=lane)
    assert after(after(gate, verdict, lane=9), Verdict.UNAVAILABLE, lane=5).closure is None
    shut = after(gate, Verdict.UNAVAILABLE, lane=5)
    assert after(shut, verdict, probe=True).closure is None


def test_probes_of_a_sendx_that_stays_down_are_never_further_apart_than_half_a_minute() -> None:
    gate, now, waits = Gate(Closure(NOW, tries=1, down=True)), NOW, []
    for _ in range(8):
        gate = after(gate, Verdict.UNREACHED, probe=True, now=now)
        assert gate.until is not None
        waits.append(gate.until - now)
        now = gate.until
    assert waits == [2, 4, 8, 16, 30, 30, 30, 30]
    assert after(gate, Verdict.UNAVAILABLE, probe=True, now=now, retry_after=90.0).until == now + 90


def test_a_401_halts_at_once_and_probes_once_a_minute() -> None:
    gate = after(Gate(), Verdict.UNAUTHORIZED)
    assert (gate.halted, gate.until) == (Halt.KEY, NOW + 60)
    assert after(gate, Verdict.UNAUTHORIZED, lane=2, now=NOW + 9).until == NOW + 60
    again = after(gate, Verdict.UNAUTHORIZED, probe=True, now=NOW + 61)
    assert (again.halted, again.until) == (Halt.KEY, NOW + 121)
    assert after(again, Verdict.DELIVERED, probe=True).name(NOW) == "open"


def test_a_403_halts_when_a_second_lane_gets_it_too() -> None:
    once = after(after(Gate(), Verdict.REFUSED), Verdict.REFUSED)
    assert once.halted is None
    assert after(once, Verdict.REFUSED, lane=2).halted is Halt.FORBIDDEN


def test_a_success_between_two_403s_means_that_the_account_is_well() -> None:
    gate = after(after(Gate(), Verdict.REFUSED), Verdict.DELIVERED, lane=3)
    assert after(gate, Verdict.REFUSED, lane=2).halted is None


def test_a_lone_403_counts_only_when_others_got_through_since() -> None:
    gate = Gate()
    for _ in range(9):
        gate = after(gate, Verdict.REFUSED)
    assert gate.lone_refusals(1) == 1
    for tries in range(2, 6):
        gate = after(after(gate, Verdict.DELIVERED, lane=2), Verdict.REFUSED)
        assert gate.lone_refusals(1) == tries
    assert after(gate, Verdict.DELIVERED).lone_refusals(1) == 0


@pytest.mark.parametrize("verdict", [Verdict.MISDIRECTED, Verdict.REDIRECTED, Verdict.UNCLEAR])
def test_a_wrong_base_url_shows_over_five_lanes(verdict: Verdict) -> None:
    gate = Gate()
    for lane in (1, 2, 3, 4, 4, 4):
        gate = after(gate, verdict, lane=lane)
    assert gate.halted is None
    assert after(gate, verdict, lane=5).halted is Halt.WRONG_URL
    assert after(after(gate, Verdict.DELIVERED, lane=9), verdict, lane=5).halted is None


@pytest.mark.parametrize("before", [Closure(NOW, tries=3), Closure(NOW, tries=3, down=True)])
def test_an_outage_that_turns_into_a_maintenance_page_is_not_over(before: Closure) -> None:
    assert after(Gate(before), Verdict.UNCLEAR, probe=True).halted is Halt.WRONG_URL


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


# --- several senders

closures = st.none() | st.builds(
    Closure,
    st.floats(0, 1e9),
    st.integers(0, 9),
    st.none() | st.sampled_from(Halt),
    st.booleans(),
)


def test_nobody_opens_a_gate_that_somebody_else_has_shut_since() -> None:
    known, news = Closure(NOW), Closure(NOW + 300, halted=Halt.KEY)
    assert merge_closures(news, known, None) == news
    assert merge_closures(known, known, None) is None


def test_of_two_closures_the_longer_one_holds_and_a_halt_stays() -> None:
    throttled, refused = Closure(NOW + 300, tries=3), Closure(NOW + 60, halted=Halt.FORBIDDEN)
    assert merge_closures(throttled, None, refused) == Closure(NOW + 300, 3, Halt.FORBIDDEN)
    assert merge_closures(refused, None, throttled) == Closure(NOW + 300, 3, Halt.FORBIDDEN)


@given(closures, closures, closures)
def test_what_is_agreed_is_stored_as_it_is_and_agreed_again_changes_nothing(
    stored: Closure | None, before: Closure | None, after: Closure | None
) -> None:
    found = merge_closures(stored, before, after)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Closure | None) == found
    assert merge_closures(found, found, found) == found
    if stored is not None and stored != before:
        assert found is not None
        assert found.until >= stored.until


def test_the_end_of_a_halt_forgets_what_led_to_it() -> None:
    gate = halted(Halt.FORBIDDEN)
    gate = msgspec.structs.replace(gate, forbidden=frozenset({1, 2}), misdirected=frozenset({3}))
    assert gate.moved(None) == Gate()
    assert gate.moved(Closure(NOW)).forbidden == {1, 2}


def test_a_closure_that_a_wrong_clock_made_does_not_last() -> None:
    year = Gate(Closure(NOW + 365 * 86_400, tries=1))
    assert year.within_reason(NOW).until == NOW
    hour = Gate(Closure(NOW + 3_600, halted=Halt.KEY))
    assert hour.within_reason(NOW) == hour
    assert Gate().within_reason(NOW) == Gate()
