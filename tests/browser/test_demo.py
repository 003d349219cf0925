"""The demo, in a new user's hands and a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Page

from tests.support.browser import Visit
from tests.support.live import eventually, free_port
from tests.support.site import SendX
from tests.support.tabs import (
    is_up,
    running,
    send_apart,
)

pytestmark = pytest.mark.browser


class Demo(NamedTuple):
    shop: str
    sendx: SendX


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo as a new user starts it. One for all its tests: each uses addresses of its own."""
    log = tmp_path_factory.mktemp("demo") / "demo.log"
    ports = free_port(), free_port()
    with running(log, "demo", f"--port={ports[0]}", f"--sandbox-port={ports[1]}") as process:
        shop, sendx = (f"http://127.0.0.1:{port}" for port in ports)
        eventually(lambda: is_up(shop, process))
        eventually(lambda: shop in log.read_text())
        assert sendx in log.read_text()
        yield Demo(shop, SendX(sendx))
    assert "@" not in log.read_text()


def log_in(page: Page, email: str) -> None:
    page.click("#login")
    page.fill("#email", email)
    page.click("#login-form button")
    page.wait_for_selector("#logout")
    newest(page, "identify", "accepted")


def newest(page: Page, call: str, status: str) -> str:
    """Wait until the newest push on the shop's panel is this one, with this outcome; returns what is shown of it."""
    item = page.locator("#log li").first
    selector = f'#log li:first-child[data-status="{status}"] code'
    page.wait_for_function(
        "([selector, call]) => document.querySelector(selector)?.textContent.includes(call)", arg=[selector, call]
    )
    return item.inner_text()


def test_the_tag_of_who_logs_in_and_fills_the_cart_lands_on_the_sandboxs_page(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "ada@demo.test")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "accepted")
    demo.sendx.await_story("ada@demo.test", "identify", "+cart: Teapot")
    with shop.expect_popup() as opened:
        shop.click("#sandbox")
    contact = opened.value.locator("#contacts .item", has_text="ada@demo.test")
    contact.locator(".tag", has_text="cart: Teapot").wait_for()


def test_what_was_put_into_the_cart_before_the_log_in_is_held_and_arrives_behind_the_identify(
    demo: Demo, visit: Visit
) -> None:
    shop = visit.open(demo.shop)
    shop.click("#add-sencha")
    newest(shop, "cart: Sencha", "held")
    shop.click("#add-cups")
    newest(shop, "cart: Pair of cups", "held")
    log_in(shop, "grace@demo.test")
    demo.sendx.await_story("grace@demo.test", "identify", "+cart: Sencha", "+cart: Pair of cups")


def test_what_is_pushed_after_the_log_out_is_held_and_reaches_nobody(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "joan@demo.test")
    shop.click("#logout")
    shop.wait_for_selector("#login")
    newest(shop, "reset", "accepted")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "held")
    log_in(shop, "kay@demo.test")  # the next person at the same browser
    shop.click("#add-cups")
    demo.sendx.await_story("kay@demo.test", "identify", "+cart: Pair of cups")
    assert demo.sendx.story("joan@demo.test") == ["identify"]


def test_a_held_push_goes_to_the_person_who_left_when_they_come_back(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "lois@demo.test")
    shop.click("#logout")
    shop.wait_for_selector("#login")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "held")
    send_apart(demo.shop, demo.shop, {"email": "another@demo.test"})
    demo.sendx.await_story("another@demo.test", "identify")
    assert demo.sendx.story("lois@demo.test") == ["identify"]
    log_in(shop, "lois@demo.test")
    eventually(lambda: "+cart: Teapot" in demo.sendx.story("lois@demo.test"))


@pytest.mark.parametrize("logged_in", [True, False])
def test_the_page_cannot_take_the_tag_that_only_the_back_end_gives(demo: Demo, visit: Visit, logged_in: bool) -> None:
    email = "mary@demo.test" if logged_in else "nobody-yet@demo.test"
    shop = visit.open(demo.shop)
    if logged_in:
        log_in(shop, email)
    shop.click("#steal")
    shown = newest(shop, "paid user", "refused")
    assert "tag-not-allowed" in shown
    assert "do not let a browser give this tag" in shown
    if not logged_in:
        log_in(shop, email)
    shop.click("#add-teapot")
    demo.sendx.await_story(email, "identify", "+cart: Teapot")


def test_an_upgrade_lands_as_the_tag_that_the_back_end_vouches_for(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "nan@demo.test")
    shop.click("#upgrade")
    shop.wait_for_selector("#paid:visible")
    newest(shop, "identify", "accepted")
    demo.sendx.await_story("nan@demo.test", "identify", "+clicked upgrade", "identify", "+paid user")


def sign_up(shop: Page, email: str) -> None:
    shop.fill("#newsletter-name", "Olga")
    shop.fill("#newsletter-email", email)
    shop.click("#newsletter-form button")
    shop.wait_for_function("document.getElementById('newsletter-result').textContent.includes('you are on the list')")


def test_the_newsletter_form_works_for_somebody_who_is_not_logged_in(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    sign_up(shop, "olga@demo.test")
    demo.sendx.await_story("olga@demo.test", "identify", "+newsletter")
    contact = demo.sendx.contact("olga@demo.test")
    assert contact is not None
    assert contact["firstName"] == "Olga"


def test_a_colleagues_address_in_the_newsletter_form_leaves_the_visitor_who_they_are(demo: Demo, visit: Visit) -> None:
    shop = visit.open(demo.shop)
    log_in(shop, "pat@demo.test")
    sign_up(shop, "colleague@demo.test")
    shop.click("#add-teapot")
    newest(shop, "cart: Teapot", "accepted")
    demo.sendx.await_story("colleague@demo.test", "identify", "+newsletter")
    demo.sendx.await_story("pat@demo.test", "identify", "+cart: Teapot")
