"""The table of reasons says everything that its readers need."""

from proxy.core.reasons import Reason


def test_every_reason_says_where_it_comes_up_what_it_means_and_what_to_do() -> None:
    assert all(reason.sources and reason.meaning and reason.advice for reason in Reason)
