"""The tag manager's tags against the real proxy: they fire in any order and wait for the consent."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.examples.conftest import EXAMPLES, one_page, site_of

# What a tag manager does with a tag of custom HTML: its scripts are made anew, which has them run.
FIRE = """html => {
  const holder = document.createElement("div");
  holder.innerHTML = html;
  for (const old of holder.querySelectorAll("script")) {
    const script = document.createElement("script");
    script.text = old.text;
    old.replaceWith(script);
  }
  document.body.append(holder);
}"""


LAST = """_scq.push(["track", {
  addTags: ["last"],
  success: ({status}) => { window.outcome = status; },
  failure: (reason) => { window.outcome = reason; },
}])"""


@pytest.mark.browser
@pytest.mark.parametrize("order", [("load", "track"), ("track", "load")], ids="-".join)
@pytest.mark.parametrize("agreed", [True, False])
def test_the_tag_managers_tags_fire_in_any_order_and_wait_for_the_consent(
    page: Page, tmp_path: Path, order: tuple[str, ...], agreed: bool
) -> None:
    folder = EXAMPLES / "tag-manager"
    tags = {file.stem: file.read_text() for file in folder.glob("*.html")}
    empty = tmp_path / "index.html"
    empty.write_text("<!doctype html><title>Test</title><body>")
    with site_of("", one_page(empty), tmp_path) as (url, _):
        page.goto(url)
        bodies: list[Any] = []
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        for name in order:
            page.evaluate(FIRE, tags[name])
        page.wait_for_function("window._scq.push !== Array.prototype.push")
        page.evaluate(LAST)
        assert page.evaluate("Object.keys(localStorage)") == [], "nothing is stored before the consent"
        assert bodies == []
        page.evaluate(FIRE, tags["consent"] if agreed else tags["consent"].replace("granted", "denied"))
        page.wait_for_function("window.outcome")
        assert page.evaluate("outcome") == ("held" if agreed else "consent-denied")
        sent = [push["call"] for body in bodies for push in body["pushes"]]
    tracked = [["track", {"addTags": ["saw prices"]}], ["track", {"addTags": ["last"]}]]
    assert [call for call in sent if call[0] == "track"] == (tracked if agreed else [])
