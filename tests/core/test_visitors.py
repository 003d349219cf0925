"""Visitors: how long a verification lasts, and the ids that are derived from a browser's own."""

from __future__ import annotations

from datetime import timedelta

from proxy.core.visitors import Trust, Visitor, derived_visitor, next_session

NOW = 1_800_000_000.0
ADA = Visitor("visitor", "ada@example.com", Trust.VERIFIED, issued=int(NOW), verified=int(NOW))


def test_a_verification_fades_to_an_assertion() -> None:
    month = timedelta(days=30)
    assert ADA.trust_at(NOW + month.total_seconds(), month) is Trust.VERIFIED
    assert ADA.trust_at(NOW + month.total_seconds() + 1, month) is Trust.ASSERTED


def test_visitor_ids_are_derived_per_site_and_per_purpose() -> None:
    assert derived_visitor("s", b"a") == derived_visitor("s", b"a")
    assert (
        len(
            {
                derived_visitor("s", b"a"),
                derived_visitor("s", b"b"),
                derived_visitor("t", b"a"),
                next_session("s", b"a"),
            }
        )
        == 4
    )
