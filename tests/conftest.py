"""Fixtures that several files ask for by name.

A server and the fake SendX behind it live as long as a file of tests; `server_settings` says what is special to that file's server.
`tests/browser/engines` has browsers of its own, by the same name, and `tests/system` scripted ones.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser

from proxy.app import create_app
from proxy.config.settings import load_settings
from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support import postgres
from tests.support.browser import Visit, chromium, visiting
from tests.support.live import serving
from tests.support.server import API_KEY, TEAM, Server, running
from tests.support.site import Pages, SendX, Site, environment

# How fast this machine makes an example is not what a test is about. Fixtures are the servers under test, which serve all examples.
settings.register_profile("checks", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("checks")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Only asyncio: the proxy runs on nothing else. Otherwise anyio before 4.12 asks for trio as well, installed or not."""
    return "asyncio"


# A disk that is soon full


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


# The server as a process


@pytest.fixture(scope="module")
def sandbox_app() -> Iterator[tuple[Sandbox, str]]:
    """The fake SendX, and its URL."""
    app = create_sandbox(key=API_KEY, team_id=TEAM)
    with serving(app) as url:
        yield app.state.sandbox, url


@pytest.fixture
def sandbox(sandbox_app: tuple[Sandbox, str]) -> Iterator[Sandbox]:
    """The fake SendX, without faults before and after."""
    sandbox_app[0].faults.clear()
    yield sandbox_app[0]
    sandbox_app[0].faults.clear()


@pytest.fixture(scope="module")
def upstream(sandbox_app: tuple[Sandbox, str]) -> str:
    """What `SCQ_UPSTREAM` has to be, for the dialect `rest`."""
    return f"{sandbox_app[1]}/api/v1/rest"


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """Settings of `server` beside the usual ones. A file of tests overrides this with its own."""
    return {}


@pytest.fixture(scope="module")
def server(
    upstream: str, server_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One for all tests of a file: each has contacts and ids of its own."""
    with running(tmp_path_factory.mktemp("server"), upstream, **server_settings) as started:
        yield started


@pytest.fixture
def dsn() -> str:
    """Of a new PostgreSQL database with the schema."""
    return postgres.database()


# The server in this process, and a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A browser profile. Ask for its servers first: what is set up last ends first, while the pages' servers still answer."""
    with visiting(browser) as visit:
        yield visit


@pytest.fixture
def sendx() -> Iterator[SendX]:
    with serving(create_sandbox()) as url:
        sendx = SendX(url)
        yield sendx
        assert sendx.violations() == 0


@pytest.fixture
def site(tmp_path: Path, sendx: SendX) -> Iterator[Site]:
    pages = Pages()
    with serving(create_app(load_settings(environment(tmp_path, sendx), None), fallback=pages.app)) as url:
        yield Site(url, sendx, pages)
