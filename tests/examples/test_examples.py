"""The examples do what their READMEs say: the shop signs tokens the proxy accepts, the web servers' files pass what the
proxy needs and nothing else, and no file names a setting that does not exist.

nginx, Caddy and systemd run for real on copies whose host names, ports and paths are changed to this machine's.
"""

import base64
import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from proxy.app import create_app
from proxy.config.settings import SPECS, load_settings
from proxy.core.tokens import TokenCodec, Vouched
from proxy.sandbox.api import Sandbox, create_sandbox
from tests.support.live import eventually, free_port, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
SELF_HOST = EXAMPLES / "self-host"
KEY = "an-identity-key-of-the-tests-long-enough"
CHROMIUM = "/usr/bin/chromium"


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
    with serving(create_shop()) as url, httpx.Client(base_url=url, follow_redirects=True) as client:
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


# The shop's back end


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
        page = httpx.get(url).text
    assert '<script async src="/t/scq.js"></script>' in page
    assert 'href="http://127.0.0.1:9/"' in page


def test_the_shop_loads_nothing_from_other_hosts(shop: httpx.Client) -> None:
    log_in(shop)
    for path in ("/", "/static/shop.css", "/static/shop.js"):
        addresses = re.findall(r"https?://[^\s\"')]+|[\"'(]//[^\s\"')]+", shop.get(path).text)
        assert addresses == []


def test_the_shop_imports_nothing_from_the_proxy() -> None:
    assert not re.search(r"^\s*(from|import) proxy", (EXAMPLES / "shop" / "shop.py").read_text(), re.MULTILINE)


# The pages in a browser to which the proxy's script never comes


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
    contact = sandbox.state.sandbox.contact("bob@example.com")
    assert set(contact.tags) == {"newsletter", "saw prices"}
    assert sandbox.state.sandbox.violations == []


def test_only_the_host_differs_from_sendxs_own_snippet() -> None:
    page = (EXAMPLES / "embed" / "sendx-snippet.html").read_text()
    assert "dc.src = '//cdn.sendx.io/prod/TEAMID.js'" in page.split("-->")[0]
    assert "dc.src = '//www.example.com/prod/TEAMID.js';" in page
    assert "_scs.teamId = 'TEAMID';" in page


# The single-page site and the tag manager, against the real proxy


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


LAST = """_scq.push(["track", {
  addTags: ["last"],
  success: ({status}) => { window.outcome = status; },
  failure: (reason) => { window.outcome = reason; },
}])"""


# The files for Next.js


TSC = EXAMPLES.parent / ".venv" / "npm" / "node_modules" / ".bin" / "tsc"
NEXT_TYPES = EXAMPLES.parent / "tests" / "types" / "next.d.ts"


def compile_next(*options: str) -> str:
    """What the TypeScript compiler has against the files; Next.js itself is not installed, only the types that they use."""
    if not TSC.exists():
        skip_or_fail_in_ci("TypeScript", "npm, then .ci/setup test")
    folder = EXAMPLES / "nextjs"
    files = [*folder.rglob("*.ts"), *folder.rglob("*.tsx"), NEXT_TYPES, EXAMPLES.parent / "static" / "scq.d.ts"]
    base = (
        "--strict",
        "--target",
        "es2021",
        "--lib",
        "es2021,dom",
        "--jsx",
        "preserve",
        "--moduleResolution",
        "node10",
    )
    done = subprocess.run([TSC, *base, *options, *files], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout


def test_the_files_for_nextjs_compile() -> None:
    assert compile_next("--noEmit") == ""


CALL_ROUTE = """
const { GET } = require("./app/scq-token/route.js");
GET().then(async (answer) => {
  const { token } = await answer.json();
  console.log(JSON.stringify([answer.status, answer.headers.get("cache-control"), token ?? null]));
});
"""
LOGGED_IN = 'exports.currentUser = async () => ({id: "1", email: "ada@example.com", paid: true});'


@pytest.mark.parametrize("logged_in", [True, False])
def test_the_proxy_accepts_the_token_of_the_nextjs_route(tmp_path: Path, logged_in: bool) -> None:
    assert compile_next("--module", "commonjs", "--outDir", str(tmp_path)) == ""
    if logged_in:
        (tmp_path / "lib" / "session.js").write_text(LOGGED_IN)
    command = [binary("node", "nodejs"), "--eval", CALL_ROUTE]
    environ = {"IDENTITY_KEY": KEY, "PATH": os.defpath}
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=True)
    status, cache, token = json.loads(ran.stdout)
    assert cache == "no-store"
    if not logged_in:
        assert (status, token) == (401, None)
        return
    vouched = TokenCodec([(None, KEY)]).verify(token, time.time())
    assert isinstance(vouched, Vouched), vouched
    assert (status, vouched.email, vouched.attributes.tags) == (200, "ada@example.com", ("paid user",))


# Every folder, every file


def folders() -> list[Path]:
    return sorted(path for path in EXAMPLES.iterdir() if path.is_dir())


def text_files() -> list[Path]:
    found = (path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in found if path.suffix not in (".pyc", ".png"))


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_each_way_of_use_has_a_readme_that_names_its_files(folder: Path) -> None:
    readme = (folder / "README.md").read_text()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("README.md", "Caddyfile"):
            assert path.name in readme


@pytest.mark.parametrize("path", text_files(), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_setting_that_an_example_names_exists(path: Path) -> None:
    known = {spec.name for spec in SPECS} | {f"{spec.name}_FILE" for spec in SPECS if spec.secret}
    named = set(re.findall(r"\bSCQ_[A-Z_]*[A-Z]", path.read_text()))
    assert named <= known


def test_the_example_settings_are_complete_but_for_the_secrets() -> None:
    secrets = {"SCQ_API_KEY": "k", "SCQ_SECRET_KEYS": "s" * 32, "SCQ_IDENTITY_KEYS": "i" * 32}
    settings = load_settings(secrets, SELF_HOST / "scq-proxy.env")
    assert settings.tags == ("newsletter", "cart: *")
    assert settings.origins == frozenset({"https://www.example.com"})


# The web servers


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


def test_a_missing_program_fails_in_ci_and_is_skipped_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match=r"apt install no-such-package"):
        binary("no-such-program", "no-such-package")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=r"apt install no-such-package"):
        binary("no-such-program", "no-such-package")


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with each key replaced; a key that is not there is an error, so that no change goes missing."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is no longer in the example"
        text = text.replace(old, new)
    return text


def nginx_command(folder: Path, port: int, upstream_port: int) -> list[str]:
    site = replaced(
        (SELF_HOST / "nginx.conf").read_text(),
        {
            "listen 443 ssl;": f"listen 127.0.0.1:{port};",
            "ssl_certificate     /etc/ssl/www.example.com.pem;": "",
            "ssl_certificate_key /etc/ssl/www.example.com.key;": "",
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream_port};",
            "/var/log/nginx/": f"{folder}/",
            "/var/www/www.example.com": str(folder),
        },
    )
    (folder / "site.conf").write_text(site)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # or the workers could not read the test's folder
    (folder / "nginx.conf").write_text(
        f"{user} pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} include {folder}/site.conf; }}\n"
    )
    return [binary("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]


def caddy_command(folder: Path, port: int, upstream_port: int) -> list[str]:
    site = replaced(
        (SELF_HOST / "Caddyfile").read_text(),
        {
            "www.example.com {": f"{{\n\tadmin off\n}}\nhttp://:{port} {{\n\tbind 127.0.0.1",
            "reverse_proxy 127.0.0.1:8000": f"reverse_proxy 127.0.0.1:{upstream_port}",
            "/var/log/caddy/www.example.com.log": f"{folder}/scq.log",
            "/var/www/www.example.com": str(folder),
        },
    )
    (folder / "Caddyfile").write_text(site)
    caddy = binary("caddy", "caddy")
    return [caddy, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


COMMANDS: dict[str, Callable[[Path, int, int], list[str]]] = {"nginx": nginx_command, "caddy": caddy_command}


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}


def answers(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/")
    except httpx.TransportError:
        return False
    return True


async def echo(request: Request) -> JSONResponse:
    """Stands where the proxy would, to tell what reaches it."""
    body = await request.body()
    return JSONResponse({"path": request.url.path, "headers": dict(request.headers), "size": len(body)})


@contextmanager
def web_server(kind: str, folder: Path) -> Iterator[int]:
    """Run the web server with the example's file in front of `echo`; yields its port."""
    with serving(Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])) as upstream:
        port = free_port()
        command = COMMANDS[kind](folder, port, int(upstream.rpartition(":")[2]))
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(folder))
        try:
            eventually(lambda: answers(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "output").read_text()
            yield port
        finally:
            process.terminate()
            process.wait(20)


def ask(port: int, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any]:
    """Send the path as it stands, which httpx would tidy up; the body is the JSON of `echo`, or None."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        is_echo = answer.headers.get("content-type") == "application/json"
        return answer.status, json.loads(answer.read()) if is_echo else None


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_web_server_passes_what_the_proxy_judges_by(kind: str, tmp_path: Path) -> None:
    given = {
        "Host": "www.example.com",
        "Origin": "https://www.example.com",
        "Cookie": "__Host-scq=value; other=1",
        "Sec-Fetch-Site": "same-origin",
        "Sec-GPC": "1",
        "X-Forwarded-For": "203.0.113.9",
    }
    with web_server(kind, tmp_path) as port:
        status, seen = ask(port, "/scq/push", given, b"{}")
    assert status == 200
    assert seen["path"] == "/scq/push"
    for name in ("Host", "Origin", "Cookie", "Sec-Fetch-Site", "Sec-GPC"):
        assert seen["headers"][name.lower()] == given[name]
    assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert seen["headers"]["x-forwarded-proto"] == "http"


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_web_server_passes_no_request_for_an_upgrade(kind: str, tmp_path: Path) -> None:
    given = {"Host": "www.example.com", "Connection": "Upgrade", "Upgrade": "foo"}
    with web_server(kind, tmp_path) as port:
        status, seen = ask(port, "/scq/push", given, b"{}")
    assert (status, seen["size"]) == (200, 2)
    assert "upgrade" not in seen["headers"].get("connection", "").lower()
    assert kind == "nginx" or "upgrade" not in seen["headers"]  # nginx passes the word, which means nothing alone


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_web_server_publishes_the_prefix_and_prod_and_nothing_else(kind: str, tmp_path: Path) -> None:
    hidden = ["/healthz", "/readyz", "/metrics", "/api/v1/rest/contact/identify", "/scq/../metrics", "/scq", "/scqx/a"]
    with web_server(kind, tmp_path) as port:
        for path in ("/scq/scq.js", "/scq/push", "/prod/TEAMID.js", "/prod/push"):
            assert ask(port, path, {})[1]["path"] == path
        for path in hidden:
            status, seen = ask(port, path, {})
            assert (status, seen) == (404, None), path
        _, seen = ask(port, "/scq/..%2fmetrics", {})
        assert seen is None or seen["path"].startswith("/scq/")


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_web_server_leaves_the_size_limit_to_the_proxy_but_stops_floods(kind: str, tmp_path: Path) -> None:
    with web_server(kind, tmp_path) as port:
        assert ask(port, "/scq/push", {}, b"x" * 70_000)[1]["size"] == 70_000
        url = f"http://127.0.0.1:{port}/scq/push"
        assert httpx.post(url, content=b"x" * 300_000).status_code == 413


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_web_servers_log_has_no_query_strings_and_no_cookies(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "scq.log"
    with web_server(kind, tmp_path) as port:
        ask(port, "/scq/scq.js?email=ada@example.com", {"Cookie": "scq=ada-cookie", "Referer": "https://a/?ada"})
        eventually(lambda: log.exists() and "/scq/scq.js" in log.read_text())
    assert "ada" not in log.read_text()


def check(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nginx_finds_its_file_valid(tmp_path: Path) -> None:
    check([*nginx_command(tmp_path, free_port(), 8000), "-t"], tmp_path)


def test_caddy_finds_its_file_valid(tmp_path: Path) -> None:
    caddy_command(tmp_path, free_port(), 8000)
    check(
        [binary("caddy", "caddy"), "validate", "--config", f"{tmp_path}/Caddyfile", "--adapter", "caddyfile"], tmp_path
    )


@pytest.mark.parametrize("folder", ["embed", "single-page"])
def test_caddy_finds_the_file_for_trying_a_page_valid(tmp_path: Path, folder: str) -> None:
    file = EXAMPLES / folder / "Caddyfile"
    check([binary("caddy", "caddy"), "validate", "--config", str(file), "--adapter", "caddyfile"], tmp_path)


# systemd and Docker


def test_systemd_finds_the_unit_valid(tmp_path: Path) -> None:
    unit = tmp_path / "scq-proxy.service"
    text = (SELF_HOST / "scq-proxy.service").read_text()
    unit.write_text(replaced(text, {"/opt/scq-proxy/bin/scq-proxy serve": "/bin/true"}))
    check([binary("systemd-analyze", "systemd"), "verify", "--man=no", str(unit)], tmp_path)


def test_the_unit_gives_the_proxy_a_user_and_a_directory_of_its_own_and_time_to_stop() -> None:
    lines = (SELF_HOST / "scq-proxy.service").read_text().splitlines()
    for line in ("DynamicUser=yes", "StateDirectory=scq-proxy", "ProtectSystem=strict", "NoNewPrivileges=yes"):
        assert line in lines
    assert "TimeoutStopSec=30" in lines
    assert not [line for line in lines if re.match(r"Environment=SCQ_(API_KEY|SECRET_KEYS|IDENTITY_KEYS)=", line)]


def test_the_image_runs_as_nobody_special_checks_its_health_and_copies_files_that_exist() -> None:
    text = (SELF_HOST / "Dockerfile").read_text().replace("\\\n", " ")
    lines = text.splitlines()
    assert 'CMD ["scq-proxy", "serve"]' in lines  # exec form: the proxy gets SIGTERM itself
    assert lines.index("USER scq") < lines.index('CMD ["scq-proxy", "serve"]')
    assert re.search(r"^HEALTHCHECK .*CMD \[.*/healthz", text, re.MULTILINE)
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (EXAMPLES.parent / source).exists(), source
