"""A server for each test, because commands stop it, starve it and look at all that its store holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.sandbox.api import Sandbox
from tests.support.server import Server, running


@pytest.fixture
def server(tmp_path: Path, upstream: str, sandbox: Sandbox, server_settings: dict[str, str]) -> Iterator[Server]:
    with running(tmp_path, upstream, **server_settings) as started:
        yield started
