"""The control API of the sandbox, and its page in a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from proxy.sandbox.faults import Switches
from tests.sandbox.conftest import Live

# The control API


def test_the_switches_are_read_and_set_over_http(live: Live) -> None:
    assert live.client.get("/sandbox/switches").json()["decrement_absent"] == "negative"
    answer = live.client.post("/sandbox/switches", json={"decrement_absent": "positive"})
    assert answer.json()["decrement_absent"] == "positive"
    assert live.state.switches == Switches(decrement_absent="positive")


@pytest.mark.parametrize("order", [{"nonsense": "1"}, {"lists": "maybe"}, {"lists": 1}, []])
def test_an_unknown_switch_or_value_is_refused_and_named(live: Live, order: Any) -> None:
    answer = live.client.post("/sandbox/switches", json=order)
    assert answer.status_code == 400
    assert answer.json()["error"] == "bad-order"
    assert answer.json()["message"]
    assert live.state.switches == Switches()


@pytest.mark.parametrize(
    "bad",
    [
        {"script": [{"kind": "explode"}]},
        {"script": [{"status": 99}]},
        {"script": {"status": 500}},
        {"standing": {"delay": -1}},
        {"nonsense": 1},
    ],
)
def test_a_malformed_fault_order_is_refused_and_says_why(live: Live, bad: Any) -> None:
    answer = live.client.post("/sandbox/faults", json=bad)
    assert answer.status_code == 400
    assert "$" in answer.json()["message"] or "nonsense" in answer.json()["message"]


def test_the_record_is_read_from_a_number_on_and_up_to_a_limit(live: Live) -> None:
    for number in range(5):
        live.identify(f"a{number}@b.co")
    newer = live.client.get("/sandbox/requests?since=2").json()["requests"]
    assert [one["number"] for one in newer] == [3, 4, 5]
    newest = live.client.get("/sandbox/requests?since=1&limit=2").json()["requests"]
    assert [one["number"] for one in newest] == [4, 5]
    people = live.client.get("/sandbox/contacts?limit=1").json()
    assert (people["total"], people["contacts"][0]["email"]) == (5, "a4@b.co")
    assert live.client.get("/sandbox/requests?since=soon").status_code == 400


def test_clear_forgets_all_but_the_switches(live: Live) -> None:
    live.switch(lists="reject")
    live.identify(age=1)
    live.identify()
    live.order(standing={"status": 500})
    before = live.client.get("/sandbox/requests").json()["generation"]
    assert live.client.post("/sandbox/clear").json() == {}
    log = live.client.get("/sandbox/requests").json()
    assert log == {"total": 0, "generation": before + 1, "requests": []}
    assert (live.state.contacts.newest_first(), live.state.violations) == ([], [])
    assert live.state.faults.listed() == {"script": {}, "standing": {}}
    assert live.state.switches == Switches(lists="reject")


# The page


@pytest.fixture
def page(live: Live) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(live.url)
        yield page
        assert problems == []
        browser.close()


@pytest.mark.browser
def test_the_page_shows_a_tag_land_and_hostile_text_as_text(live: Live, page: Page) -> None:
    expect(page.locator("#contacts")).to_contain_text("No contact yet")
    live.identify(firstName="<img src=x onerror=alert(1)>", tags=["<b>bold</b>"])
    live.track(addTags=["added to cart"])
    expect(page.locator("#contacts .tag")).to_have_text(["<b>bold</b>", "added to cart"])
    expect(page.locator("#contacts dd")).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#requests .item code").first).to_have_text("POST /api/v1/rest/contact/track")
    assert page.locator("img, b").count() == 0


@pytest.mark.browser
def test_the_page_shows_violations(live: Live, page: Page) -> None:
    expect(page.locator("#violations")).to_be_hidden()
    live.identify(age=3)
    expect(page.locator("#violations .list")).to_contain_text("unknown field `age`")


@pytest.mark.browser
def test_the_pages_buttons_switch_faults_on_and_off_and_clear(live: Live, page: Page) -> None:
    page.get_by_role("button", name="SendX is down").click()
    expect(page.get_by_role("button", name="SendX is down")).to_have_attribute("aria-pressed", "true")
    assert live.identify().status_code == 500
    page.get_by_role("button", name="Back to normal").click()
    expect(page.get_by_text("Working normally")).to_be_visible()
    expect(page.get_by_role("button", name="Back to normal")).to_be_disabled()
    assert live.identify().status_code == 200
    expect(page.locator("#requests .item")).to_have_count(2)
    page.get_by_role("button", name="Clear everything").click()
    expect(page.locator("#requests")).to_contain_text("No request yet")
    live.identify("c@d.co")
    expect(page.locator("#contacts .email")).to_have_text("c@d.co")


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_its_width(live: Live, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    live.identify(f"{'a' * 60}@{'b' * 60}.co", tags=["x" * 200], customFields={"k" * 100: "v" * 200})
    expect(page.locator("#contacts .tag")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == width
