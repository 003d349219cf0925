"""The plain page and SendX's own snippet: what a page pushes before and after the proxy's script has come."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from proxy.app import create_app
from proxy.config.settings import load_settings
from proxy.sandbox.api import create_sandbox
from tests.examples.conftest import EXAMPLES
from tests.support.live import eventually, serving


@pytest.mark.browser
def test_the_plain_page_queues_its_pushes_before_the_script_comes(page: Page) -> None:
    with serving(Starlette(routes=[Mount("/", StaticFiles(directory=EXAMPLES / "embed"))])) as url:
        page.goto(f"{url}/index.html")
        page.fill("#newsletter-email", "bob@example.com")
        page.click("#newsletter button")
        page.click("#price-list")
        queued = page.evaluate(
            "window._scq.map(([method, {email, tags, addTags}]) => [method, email ?? addTags, tags])"
        )
    assert queued == [["identify", "bob@example.com", ["newsletter"]], ["track", ["saw prices"], None]]


@pytest.mark.browser
def test_the_plain_page_says_so_when_the_script_does_not_come(page: Page) -> None:
    with serving(Starlette(routes=[Mount("/", StaticFiles(directory=EXAMPLES / "embed"))])) as url:
        page.clock.install()
        page.goto(f"{url}/index.html")  # there is no proxy: the script is a 404
        page.fill("#newsletter-email", "bob@example.com")
        page.click("#newsletter button")
        result = page.locator("#newsletter-result")
        assert result.text_content() == "One moment…"
        page.clock.fast_forward(15_000)
        assert "did not load" in str(result.text_content())


@pytest.mark.browser
def test_what_the_plain_page_held_follows_the_sign_up_to_sendx(page: Page, tmp_path: Path) -> None:
    readme = (EXAMPLES / "embed" / "README.md").read_text()
    given = dict(re.findall(r"^(SCQ_(?:IDENTIFY|TAGS|ASSERTED_TAGS|ORIGINS))=([^#\n]*[^#\s])", readme, re.MULTILINE))
    given |= {"SCQ_API_KEY": "sandbox", "SCQ_SECRET_KEYS": "s" * 32, "SCQ_STORE": f"sqlite:///{tmp_path}/scq.db"}
    sandbox = create_sandbox()
    with serving(sandbox) as sendx:
        settings = load_settings({**given, "SCQ_UPSTREAM": f"{sendx}/api/v1/rest"}, None)
        with serving(create_app(settings, fallback=StaticFiles(directory=EXAMPLES / "embed"))) as url:
            page.goto(f"{url}/index.html")
            page.click("#price-list")
            page.wait_for_function("document.getElementById('price-list-result').textContent === 'Noted: held.'")
            page.fill("#newsletter-email", "bob@example.com")
            page.click("#newsletter button")
            page.wait_for_function("document.getElementById('newsletter-result').textContent.startsWith('Thank you')")
            eventually(lambda: len(sandbox.state.sandbox.requests) == 2)
    contact = sandbox.state.sandbox.contacts.get("bob@example.com")
    assert set(contact.tags) == {"newsletter", "saw prices"}
    assert sandbox.state.sandbox.violations == []


def test_only_the_host_differs_from_sendxs_own_snippet() -> None:
    page = (EXAMPLES / "embed" / "sendx-snippet.html").read_text()
    assert "dc.src = '//cdn.sendx.io/prod/TEAMID.js'" in page.split("-->")[0]
    assert "dc.src = '//www.example.com/prod/TEAMID.js';" in page
    assert "_scs.teamId = 'TEAMID';" in page
