"""Fixtures that several files ask for by name. `test_engines` has browsers of its own, by the same name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser

from proxy.app import create_app
from proxy.config.settings import load_settings
from proxy.sandbox.api import create_sandbox
from tests.support.browser import Visit, chromium, visiting
from tests.support.live import serving
from tests.support.site import Pages, SendX, Site, environment

# How fast this machine makes an example is not what a test is about. Fixtures are the servers under test, which serve all examples.
settings.register_profile("checks", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("checks")


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
