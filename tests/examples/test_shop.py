"""The shop: its back end signs tokens that the proxy accepts, and its pages work in a browser to which the proxy's script never comes."""

import base64
import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page
from starlette.applications import Starlette

from proxy.core.tokens import TokenCodec, Vouched
from tests.examples.conftest import EXAMPLES, KEY
from tests.support.live import serving


def create_shop(**options: Any) -> Starlette:
    """Load `shop.py` from its file, as the demo does, and build a shop."""
    spec = importlib.util.spec_from_file_location("example_shop", EXAMPLES / "shop" / "shop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    shop: Starlette = module.create_shop(identity_key=KEY, **options)
    return shop


@pytest.fixture
def shop() -> Iterator[httpx.Client]:
    with serving(create_shop()) as url, httpx.Client(base_url=url, follow_redirects=True, timeout=120) as client:
        yield client


def log_in(client: httpx.Client, email: str = "ada@example.com") -> None:
    assert client.post("/login", data={"email": email}).status_code == 200


def fetched_token(client: httpx.Client) -> str:
    token: str = client.get("/scq-token").raise_for_status().json()["token"]
    return token


def vouched_by(client: httpx.Client) -> Vouched:
    """What the proxy reads out of the session's token."""
    vouched = TokenCodec([(None, KEY)]).verify(fetched_token(client), time.time())
    assert isinstance(vouched, Vouched), vouched
    return vouched


def test_nobody_gets_a_token_before_logging_in(shop: httpx.Client) -> None:
    answer = shop.get("/scq-token")
    assert answer.status_code == 401
    assert answer.headers["cache-control"] == "no-store"


def test_a_token_names_the_person_who_logged_in_and_lives_ten_minutes(shop: httpx.Client) -> None:
    before = int(time.time())
    log_in(shop)
    payload = fetched_token(shop).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert claims["email"] == "ada@example.com"
    assert claims["aud"] == "scq"
    assert claims["exp"] - claims["iat"] == 600
    assert before <= claims["iat"] <= time.time()
    assert set(claims) == {"aud", "email", "iat", "exp"}


def test_the_proxy_accepts_the_shops_token(shop: httpx.Client) -> None:
    log_in(shop)
    vouched = vouched_by(shop)
    assert vouched.email == "ada@example.com"
    assert vouched.attributes.tags == ()


def test_the_back_end_vouches_for_the_tag_paid_user_only_after_the_upgrade(shop: httpx.Client) -> None:
    log_in(shop)
    answer = shop.post("/upgrade", headers={"Accept": "application/json"})
    assert answer.json() == {"paid": True}
    vouched = vouched_by(shop)
    assert vouched.attributes.tags == ("paid user",)
    assert vouched.ignored == ()


def test_nobody_upgrades_without_logging_in(shop: httpx.Client) -> None:
    assert shop.post("/upgrade", headers={"Accept": "application/json"}).status_code == 401
    assert shop.post("/upgrade").url.path == "/login"
    log_in(shop)
    assert vouched_by(shop).attributes.tags == ()


def test_after_logging_out_there_is_no_token(shop: httpx.Client) -> None:
    log_in(shop)
    assert shop.post("/logout").status_code == 200
    assert shop.get("/scq-token").status_code == 401


def test_the_token_is_never_cached(shop: httpx.Client) -> None:
    log_in(shop)
    assert shop.get("/scq-token").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/login", "/cart", "/account", "/no-such-page"])
def test_pages_are_not_cached_so_that_nobody_sees_the_one_before_the_log_out(shop: httpx.Client, path: str) -> None:
    assert shop.get(path).headers["cache-control"] == "no-store"
    log_in(shop)
    assert shop.get(path).headers["cache-control"] == "no-store"


def test_somebody_else_who_logs_in_inherits_neither_the_cart_nor_the_upgrade(shop: httpx.Client) -> None:
    log_in(shop)
    shop.post("/cart", data={"product": "teapot"})
    shop.post("/upgrade")
    log_in(shop, "bob@example.com")
    assert "Nothing in it yet" in shop.get("/cart").text
    vouched = vouched_by(shop)
    assert (vouched.email, vouched.attributes.tags) == ("bob@example.com", ())


def test_what_an_anonymous_visitor_put_in_the_cart_is_there_after_the_log_in(shop: httpx.Client) -> None:
    shop.post("/cart", data={"product": "teapot"})
    log_in(shop)
    assert "Teapot" in shop.get("/cart").text
    shop.post("/cart", data={"product": "teapot", "change": "remove"})
    assert "Nothing in it yet" in shop.get("/cart").text


@pytest.mark.parametrize("email", ["", "ada", "@example.com", "a b@example.com", "a" * 300 + "@example.com"])
def test_what_is_no_address_is_not_logged_in(shop: httpx.Client, email: str) -> None:
    answer = shop.post("/login", data={"email": email})
    assert answer.status_code == 422
    assert "does not look like an e-mail address" in answer.text
    assert shop.get("/scq-token").status_code == 401


def test_what_a_visitor_types_is_escaped(shop: httpx.Client) -> None:
    assert "<script>alert" not in shop.post("/login", data={"email": '"><script>alert(1)</script>'}).text
    log_in(shop, "<b>@example.com")
    assert "<b>@" not in shop.get("/account").text


@pytest.mark.parametrize(
    ("body", "status"), [(b"product=unknown", 404), (b"\xff\xfe", 400), (b"a=1&" * 30, 400), (b"x" * 5000, 413)]
)
def test_a_form_that_makes_no_sense_is_refused_without_an_error(shop: httpx.Client, body: bytes, status: int) -> None:
    assert shop.post("/cart", content=body).status_code == status


def test_the_session_cookie_is_out_of_reach_for_scripts_and_other_sites(shop: httpx.Client) -> None:
    answer = shop.post("/login", data={"email": "ada@example.com"}, follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


def test_the_pages_name_the_script_and_the_sandbox_they_were_given() -> None:
    with serving(create_shop(script_url="/t/scq.js", sandbox_url="http://127.0.0.1:9/")) as url:
        page = httpx.get(url, timeout=120).text
    assert '<script async src="/t/scq.js"></script>' in page
    assert 'href="http://127.0.0.1:9/"' in page


def test_the_shop_loads_nothing_from_other_hosts(shop: httpx.Client) -> None:
    log_in(shop)
    for path in ("/", "/static/shop.css", "/static/shop.js"):
        addresses = re.findall(r"https?://[^\s\"')]+|[\"'(]//[^\s\"')]+", shop.get(path).text)
        assert addresses == []


def test_the_shop_imports_nothing_from_the_proxy() -> None:
    assert not re.search(r"^\s*(from|import) proxy", (EXAMPLES / "shop" / "shop.py").read_text(), re.MULTILINE)


@pytest.mark.browser
def test_the_shop_works_without_the_proxys_script_and_says_so(page: Page) -> None:
    with serving(create_shop()) as url:
        page.goto(url)
        page.wait_for_selector("#blocked:visible")
        page.click("#add-teapot")
        page.wait_for_function("document.getElementById('cart-count').textContent === '1'")
        page.click("#steal")
        assert page.locator("#log li[data-status=waiting]").count() == 2
        pushes = page.evaluate("window._scq.map(([method, {addTags}]) => [method, addTags])")
        assert pushes == [["track", ["cart: Teapot"]], ["track", ["paid user"]]]


@pytest.mark.browser
def test_going_back_after_the_log_out_shows_nobodys_page(page: Page) -> None:
    with serving(create_shop()) as url:
        page.goto(f"{url}/login")
        page.click("#login-form button")
        page.wait_for_selector("#logout")
        page.wait_for_function("window._scq.some(([method, {token}]) => method === 'identify' && token)")
        page.click("#upgrade")
        page.wait_for_selector("#paid:visible")
        page.click("#logout")
        page.wait_for_selector("#login")
        page.go_back()
        assert page.url == f"{url}/login"
        page.wait_for_selector("#login-form")
        page.go_forward()
        assert page.url == f"{url}/"
        page.wait_for_selector("#login")
        assert page.inner_text("#who") == "not logged in"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_no_page_of_the_shop_is_wider_than_the_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    with serving(create_shop()) as url:
        page.goto(f"{url}/login")
        page.click("#login-form button")
        page.click("#add-sencha")
        page.fill("#newsletter-email", "a-rather-long-address-of-somebody@subdomain.example.com")
        page.click("#newsletter-form button")
        for path in ("/", "/cart", "/account"):
            page.goto(url + path)
            assert page.evaluate("document.documentElement.scrollWidth") == width
