"""The networks of a client address."""

import pytest

from proxy.core.networks import networks_of


@pytest.mark.parametrize(
    ("client", "networks"),
    [
        ("198.51.100.7", ("198.51.0.0/16", "198.51.100.0/24", "198.51.100.7")),
        (
            "2001:db8:1:2::/64",
            ("2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::/56", "2001:db8:1:2::/64"),
        ),
        ("unknown", ("unknown",)),
    ],
)
def test_a_client_is_in_networks_within_one_another(client: str, networks: tuple[str, ...]) -> None:
    assert networks_of(client) == networks
