"""Chromium, Firefox ESR and WebKitGTK, each before sites of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.sandbox.api import create_sandbox
from tests.support.engines import NAMES, Engine, engine
from tests.support.front import Front, front
from tests.support.live import serving
from tests.support.server import API_KEY, running
from tests.support.shim import (
    ELSEWHERE,
    Behind,
    Site,
    site_of,
)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    app = create_sandbox(key=API_KEY)
    folder = tmp_path_factory.mktemp("engines")
    with serving(app) as url, running(folder, f"{url}/api/v1/rest", SCQ_TAGS="t-*", SCQ_LOG_LEVEL="info") as server:
        yield Behind(server, app.state.sandbox)


@pytest.fixture(scope="module", params=NAMES)
def browser(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with engine(request.param) as started:
        yield started


@pytest.fixture
def site(behind: Behind, browser: Engine) -> Iterator[Site]:
    yield from site_of(behind, browser)


@pytest.fixture
def elsewhere(behind: Behind) -> Iterator[str]:
    """A page of another site."""
    with front(behind.server.url, Front) as other:
        yield other.put("/", ELSEWHERE)


@pytest.fixture
def beside(behind: Behind, site: Site) -> Iterator[str]:
    """A page of the same site, at another port: it loads though every connection to the first is busy.

    Not of another site: Firefox then ends the process of a page that its back/forward cache cannot take, which one with requests
    on their way is, amid the page's pagehide handlers. What they do after that, storage included, is lost with any script.
    """
    with front(behind.server.url, Front, site.host) as other:
        yield other.put("/", ELSEWHERE)
