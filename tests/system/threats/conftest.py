"""Two servers under attack: one as open as it can be, one as it should face the internet."""

from collections.abc import Iterator

import pytest

from tests.support.server import ADMIN_TOKEN, HOST, SERVER_KEY, TEAM, Server, running
from tests.support.threats import assert_nothing_failed


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """Typed addresses, server keys and the operator's pages, and no limits."""
    return {
        "SCQ_IDENTIFY": "asserted",
        "SCQ_SIGNUPS_PER_IP": "0",
        "SCQ_SIGNUPS_PER_HOUR": "0",
        "SCQ_SERVER_KEYS": SERVER_KEY,
        "SCQ_RATE_PER_KEY": "0",
        "SCQ_ADMIN_TOKEN": ADMIN_TOKEN,
    }


@pytest.fixture(scope="module")
def server(server: Server) -> Iterator[Server]:
    yield server
    assert_nothing_failed(server)


@pytest.fixture(scope="module")
def strict(upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Tokens only, one host name, and nobody's word about the client address."""
    more = {
        "SCQ_HOSTS": HOST,
        "SCQ_TRUSTED_PROXIES": "203.0.113.0/24",
        "SCQ_DIALECT": "legacy",
        "SCQ_TEAM_ID": TEAM,
    }
    with running(tmp_path_factory.mktemp("strict"), upstream.removesuffix("/rest"), **more) as started:
        yield started
        assert_nothing_failed(started)
