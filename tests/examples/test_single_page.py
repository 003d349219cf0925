"""The single-page site against the real proxy: one load of the script serves every route."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from proxy.sandbox.api import Sandbox
from tests.examples.conftest import EXAMPLES, one_page, site_of
from tests.support.live import eventually


def awaits(page: Page, text: str) -> None:
    page.wait_for_function("text => document.querySelector('output').value === text", arg=text)


def tags_sent(sandbox: Sandbox) -> list[list[str]]:
    """The tags of each request to SendX, in order."""
    return [request.body.get("addTags") or request.body.get("tags") for request in sandbox.requests]


@pytest.mark.browser
@pytest.mark.parametrize("start", ["/", "/prices/teapots"])
def test_the_single_page_site_pushes_from_every_route(page: Page, tmp_path: Path, start: str) -> None:
    folder = EXAMPLES / "single-page"
    with site_of((folder / "README.md").read_text(), one_page(folder / "index.html"), tmp_path) as (url, sandbox):
        page.goto(url + start)
        if start == "/":
            page.click("text=Teapots")
        awaits(page, "Tag: held")
        page.click("text=Newsletter")
        assert page.url == f"{url}/newsletter"
        page.fill("#email", "bob@example.com")
        page.click("text=Sign up")
        awaits(page, "Sign-up: accepted")
        page.go_back()
        awaits(page, "Tag: accepted")
        page.go_forward()
        page.click("#forget")
        awaits(page, "Reset: accepted")
        page.go_back()
        awaits(page, "Tag: held")
        eventually(lambda: len(sandbox.requests) >= 3)
        assert page.evaluate("performance.getEntriesByType('navigation').length") == 1
        assert page.evaluate("performance.getEntriesByName(location.origin + '/scq/scq.js').length") == 1
        assert tags_sent(sandbox) == [["newsletter"], ["saw teapots"], ["saw teapots"]]
