"""What the tests of the SQLite store ask for by name: a small disk, and servers on a store."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.live import serving
from tests.support.server import ADMIN_TOKEN, API_KEY, Server


def may_mount() -> bool:
    """Returns whether this process has CAP_SYS_ADMIN."""
    capabilities = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    return bool(int(capabilities.split()[1], 16) >> 21 & 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    if not may_mount() and "CI" not in os.environ:
        pytest.skip("needs the right to mount a tmpfs: run as root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


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
