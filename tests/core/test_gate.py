"""The state of the account: the gate, what senders agree on, and concurrency."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.gate import PROBE_SECONDS, RECENT_SECONDS, Closure, Concurrency, Gate, Halt, Permit, merge_closures
from proxy.core.retry import LONE_SECONDS, LONE_TRIES, MAX_RETRY_AFTER_SECONDS, Lone, Verdict

NOW = 1_000_000.0
UNANSWERED = [Verdict.UNAVAILABLE, Verdict.UNREACHED, Verdict.BUSY]
verdicts = st.sampled_from(Verdict)


def after(gate: Gate, verdict: Verdict, *, lane: int = 1, probe: bool = False, now: float = NOW, **more: float) -> Gate:
    push, uniform = int(more.get("push", lane)), more.get("uniform", 1.0)
    retry_after = more.get("retry_after")
    return gate.after(verdict, lane=lane, push=push, probe=probe, now=now, uniform=uniform, retry_after=retry_after)


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


def test_a_429_at_the_end_of_a_long_outage_shuts_the_gate_for_no_longer_than_the_outage_did() -> None:
    gate = Gate(Closure(NOW, tries=1, down=True))
    for _ in range(20):
        gate = after(gate, Verdict.UNAVAILABLE, probe=True)
    throttled = after(gate, Verdict.THROTTLED, probe=True)
    assert throttled.until == NOW + 32
    assert after(throttled, Verdict.THROTTLED, probe=True).until == NOW + 64


def test_a_401_halts_at_once_and_probes_once_a_minute() -> None:
    gate = after(Gate(), Verdict.UNAUTHORIZED)
    assert (gate.halted, gate.until) == (Halt.KEY, NOW + 60)
    assert after(gate, Verdict.UNAUTHORIZED, lane=2, now=NOW + 9).until == NOW + 60
    again = after(gate, Verdict.UNAUTHORIZED, probe=True, now=NOW + 61)
    assert (again.halted, again.until) == (Halt.KEY, NOW + 121)
    assert after(again, Verdict.DELIVERED, probe=True).name(NOW) == "open"


@pytest.mark.parametrize("verdict", [Verdict.UNAUTHORIZED, Verdict.REFUSED, Verdict.UNCLEAR])
def test_after_recent_successes_a_halt_is_probed_soon_and_then_less_and_less_often(verdict: Verdict) -> None:
    gate = after(Gate(), Verdict.DELIVERED, now=NOW - RECENT_SECONDS + 1)
    for lane in range(5):
        gate = after(gate, verdict, lane=lane)
    now, waits = NOW, []
    for _ in range(8):
        assert gate.until is not None
        waits.append(gate.until - now)
        now = gate.until
        gate = after(gate, verdict, probe=True, now=now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert after(gate, Verdict.DELIVERED, probe=True, now=now).closure is None


def test_successes_of_long_ago_do_not_speed_a_probe_up() -> None:
    gate = after(Gate(), Verdict.DELIVERED, now=NOW - RECENT_SECONDS)
    assert after(gate, Verdict.UNAUTHORIZED).until == NOW + PROBE_SECONDS


@given(st.floats(0, 1, exclude_max=True), st.booleans())
def test_probes_of_a_halt_are_spread(uniform: float, recent: bool) -> None:
    gate = after(Gate(), Verdict.DELIVERED) if recent else Gate()
    until = after(gate, Verdict.UNAUTHORIZED, uniform=uniform).until
    assert until is not None
    assert 0.75 <= (until - NOW) / (1 if recent else PROBE_SECONDS) <= 1


def test_a_403_halts_when_a_second_lane_gets_it_too() -> None:
    once = after(after(Gate(), Verdict.REFUSED), Verdict.REFUSED)
    assert once.halted is None
    assert after(once, Verdict.REFUSED, lane=2).halted is Halt.FORBIDDEN


def test_a_success_between_two_403s_means_that_the_account_is_well() -> None:
    gate = after(after(Gate(), Verdict.REFUSED), Verdict.DELIVERED, lane=3)
    assert after(gate, Verdict.REFUSED, lane=2).halted is None


def refused_alone(gate: Gate, now: float, push: int = 1) -> Gate:
    """One more refusal of a push of lane 1, and another lane's delivery before it."""
    return after(after(gate, Verdict.DELIVERED, lane=2, now=now), Verdict.REFUSED, push=push, now=now)


@pytest.mark.parametrize(("apart", "tries"), [(60.0, 61), (300.0, 13), (720.0, 6), (3_600.0, 6), (86_400.0, 6)])
def test_a_push_is_refused_alone_for_an_hour_after_six_tries_at_least(apart: float, tries: int) -> None:
    gate, now, made = Gate(), NOW, 0
    while gate.lone(1, 1).seconds < LONE_SECONDS:
        gate, now, made = refused_alone(gate, now), now + apart, made + 1
    assert made == tries


def test_time_in_which_nobody_else_was_delivered_does_not_count() -> None:
    gate = refused_alone(Gate(), NOW)
    for minutes in range(1, 600):
        gate = after(gate, Verdict.REFUSED, push=1, now=NOW + 60 * minutes)
        assert gate.lone(1, 1) == Lone()
    assert refused_alone(gate, NOW + 60 * 600).lone(1, 1) == Lone(60.0, proven=True)


def test_each_push_has_an_hour_of_its_own_and_a_delivery_ends_it() -> None:
    gate = refused_alone(refused_alone(Gate(), NOW), NOW + 300)
    assert gate.lone(1, 1) == Lone(300.0, proven=True)
    assert gate.lone(1, 2) == gate.lone(2, 1) == Lone()
    assert refused_alone(gate, NOW + 600, push=2).lone(1, 2) == Lone()
    assert refused_alone(after(gate, Verdict.DELIVERED), NOW + 600).lone(1, 1) == Lone()


def test_a_clock_that_jumps_shortens_no_hour() -> None:
    gate = refused_alone(Gate(), NOW)
    for now in (NOW - 86_400, NOW + 86_400, NOW - 86_400):
        gate = refused_alone(gate, now)
    assert gate.lone(1, 1).seconds <= LONE_SECONDS / (LONE_TRIES - 1)


def test_of_more_refused_lanes_than_are_remembered_each_comes_to_its_end() -> None:
    gate, ended = Gate(), set[int]()
    for now in range(0, 11_400, 300):
        for lane in sorted(set(range(400)) - ended):
            gate = after(after(gate, Verdict.DELIVERED, lane=999), Verdict.REFUSED, lane=lane, now=NOW + now)
            if gate.lone(lane, lane).seconds >= LONE_SECONDS:
                ended.add(lane)
        assert len(ended) <= 256 or now > 2 * LONE_SECONDS
    assert len(ended) == 400


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
