"""The statistics of SendX's answers for the operator: since when they fail, and how many time out."""

from __future__ import annotations

import dataclasses

import pytest

from proxy.core.retry import Verdict
from proxy.delivery.account import Tally
from proxy.delivery.sendx import Reply


def reply(verdict: Verdict, *, timed_out: bool = False) -> Reply:
    return Reply(verdict=verdict, status=None, detail=f"it was {verdict}", latency_seconds=0.1, timed_out=timed_out)


DELIVERED, TOO_LATE = reply(Verdict.DELIVERED), reply(Verdict.UNAVAILABLE, timed_out=True)


def tally_of(*answers: Reply) -> Tally:
    """One answer a second from 1 on."""
    tally = Tally()
    for second, answer in enumerate(answers, 1):
        tally.note(answer, second)
    return tally


def test_failures_count_from_the_first_one_after_a_delivery_until_the_next() -> None:
    failed = reply(Verdict.UNAVAILABLE)
    tally = tally_of(failed, DELIVERED, failed, failed)
    assert (tally.last_delivered_at, tally.failing_since, tally.last_error_at) == (2, 2.9, 4)
    over = tally_of(failed, DELIVERED)
    assert (over.last_delivered_at, over.failing_since, over.last_error) == (2, None, "it was unavailable")


def test_a_time_out_is_a_failure_since_its_request_was_sent() -> None:
    tally = Tally()
    tally.note(dataclasses.replace(TOO_LATE, latency_seconds=20.0), 100.0)
    assert tally.failing_since == 80.0


@pytest.mark.parametrize("verdict", [Verdict.REJECTED, Verdict.MISSING])
def test_a_push_that_is_refused_says_nothing_against_the_account(verdict: Verdict) -> None:
    assert tally_of(reply(verdict)).failing_since is None


def test_time_outs_dominate_after_three_in_a_row_and_no_longer_after_three_answers() -> None:
    assert tally_of(*[TOO_LATE] * 2).slow_share < 0.5 <= tally_of(*[TOO_LATE] * 3).slow_share
    assert tally_of(*[TOO_LATE] * 9, *[DELIVERED] * 3).slow_share < 0.5


def test_a_connect_that_takes_too_long_is_not_a_slow_answer() -> None:
    assert tally_of(*[reply(Verdict.UNREACHED, timed_out=True)] * 9).slow_share == 0
