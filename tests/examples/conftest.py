"""What the tests of several examples share: a page in Chromium, a site behind the proxy, and programs that may be missing."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from proxy.app import create_app
from proxy.config.settings import load_settings
from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.live import serving

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "an-identity-key-of-the-tests-long-enough"
CHROMIUM = "/usr/bin/chromium"


def skip_or_fail_in_ci(what: str, package: str) -> None:
    message = f"{what} is not installed (apt install {package})"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def binary(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        skip_or_fail_in_ci(name, package)
    return str(found)


@contextmanager
def site_of(readme: str, site: Any, folder: Path) -> Iterator[tuple[str, Sandbox]]:
    """A site behind the proxy, with the settings that a README gives; yields its address and the fake SendX."""
    given = dict(re.findall(r"^(SCQ_(?:IDENTIFY|TAGS|ASSERTED_TAGS))=([^#\n]*[^#\s])", readme, re.MULTILINE))
    given |= {"SCQ_API_KEY": "sandbox", "SCQ_SECRET_KEYS": "s" * 32, "SCQ_IDENTITY_KEYS": KEY}
    given |= {"SCQ_ORIGINS": "https://www.example.com", "SCQ_STORE": f"sqlite:///{folder}/scq.db"}
    fake = create_sandbox()
    with serving(fake) as sendx:
        settings = load_settings({"SCQ_TAGS": "*"} | given | {"SCQ_UPSTREAM": f"{sendx}/api/v1/rest"}, None)
        with serving(create_app(settings, fallback=site)) as url:
            yield url, fake.state.sandbox
    assert fake.state.sandbox.violations == []


def one_page(file: Path) -> Starlette:
    """Every route is the same page, as a single-page site's server has it."""

    async def page(_: Request) -> FileResponse:
        return FileResponse(file)

    return Starlette(routes=[Route("/{path:path}", page)])


@pytest.fixture
def page() -> Iterator[Page]:
    if not Path(CHROMIUM).exists():
        skip_or_fail_in_ci("Chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with closing(browser):
            page = browser.new_page()
            page.on("pageerror", lambda error: pytest.fail(f"the page threw: {error}"))
            yield page
