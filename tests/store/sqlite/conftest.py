"""What the tests of the SQLite store ask for by name: servers on a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.live import serving
from tests.support.server import ADMIN_TOKEN, API_KEY, Server


@pytest.fixture(scope="module")
def sandbox_app() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=API_KEY)
    with serving(app) as url:
        yield app.state.sandbox, f"{url}/api/v1/rest"


@pytest.fixture
def sandbox(sandbox_app: tuple[Sandbox, str]) -> Iterator[Sandbox]:
    yield sandbox_app[0]
    sandbox_app[0].faults.clear()


@pytest.fixture
def start(sandbox_app: tuple[Sandbox, str], tmp_path: Path) -> Callable[..., AbstractContextManager[Server]]:
    @contextmanager
    def started(store: Path, **more: str) -> Iterator[Server]:
        server = Server(tmp_path, sandbox_app[1], SCQ_STORE=f"sqlite:///{store}", SCQ_ADMIN_TOKEN=ADMIN_TOKEN, **more)
        try:
            server.start()
            yield server
        finally:
            server.close()

    return started
