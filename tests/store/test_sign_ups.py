"""Which sign-ups a filter is about."""

from __future__ import annotations

import pytest

from proxy.store.records import SignUp, SignUpFilter
from proxy.store.sign_ups import matcher

ADA = SignUp(1, 7, "Ada.L@example.com", "2001:db8:0:1::/64", 100.0, 2)
BOB = SignUp(2, 8, "bob@example.org", "192.0.2.7", 200.0, 1)
NOBODY = SignUp(3, 9, "x[1]@example.org", "unknown", 300.0, 1)


@pytest.mark.parametrize(
    ("matching", "found"),
    [
        (SignUpFilter(), [ADA, BOB, NOBODY]),
        (SignUpFilter(after=200.0), [BOB, NOBODY]),
        (SignUpFilter(before=200.0), [ADA]),
        (SignUpFilter(network="2001:db8::/32"), [ADA]),
        (SignUpFilter(network="2001:db8:0:1::/64"), [ADA]),
        (SignUpFilter(network="2001:db8:0:1::/65"), []),
        (SignUpFilter(network="192.0.2.1/24"), [BOB]),
        (SignUpFilter(network="192.0.2.7"), [BOB]),
        (SignUpFilter(network="192.0.2.8"), []),
        (SignUpFilter(network="unknown"), [NOBODY]),
        (SignUpFilter(pattern="ada*"), [ADA]),
        (SignUpFilter(pattern="*@EXAMPLE.org"), [BOB, NOBODY]),
        (SignUpFilter(pattern="b?b@example.org"), [BOB]),
        (SignUpFilter(pattern="x[1]@*"), [NOBODY]),
        (SignUpFilter(pattern="example"), []),
        (SignUpFilter(pattern="*example.org", network="192.0.0.0/8", after=0.0, before=201.0), [BOB]),
    ],
)
def test_every_condition_that_is_given_holds(matching: SignUpFilter, found: list[SignUp]) -> None:
    matches = matcher(matching)
    assert [each for each in (ADA, BOB, NOBODY) if matches(each)] == found
