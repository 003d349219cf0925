"""The script as it is built and served: small enough, made from its source, readable by the engines it promises, with types that hold.

What it does in browsers is in `tests/browser`; here are its files, its development build, and `static/scq.d.ts`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import __version__
from proxy.core.cookies import CookieCodec
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust, Visitor
from proxy.web.shim import debug_source, load_shim
from tests.load.sizes import size_of
from tests.support.browser import Visit
from tests.support.live import eventually, serving
from tests.support.server import COOKIE_KEY, SHOP, Server
from tests.support.site import TOLD, Pages, Site, token

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "static"
NPM = ROOT / ".venv" / "npm" / "node_modules"
SMALL = (STATIC / "scq.min.js").read_bytes()
DEBUG = debug_source("/scq/push", "anonymous")
BROTLI_CAP, GZIP_CAP = 1_560, 1_740  # Plausible, whose script loses every outage, has 2,349 and 2,676


def needs_npm() -> None:
    if NPM.is_dir() and shutil.which("node"):
        return
    reason = "the npm packages are missing: .ci/setup test installs them"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=given, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


# The build


def test_what_browsers_load_is_made_of_the_source(tmp_path: Path) -> None:
    needs_npm()
    built = run(ROOT / ".ci" / "shim", tmp_path)
    assert built.returncode == 0, built.stderr
    same = (tmp_path / "scq.min.js").read_bytes() == SMALL
    assert same, "static/scq.min.js is not what static/scq.js makes: run .ci/shim, and commit what it writes"


def test_the_development_build_is_the_source_with_debug_switched_on() -> None:
    banner, _, script = DEBUG.partition(b"\n")
    assert b"development build" in banner
    assert b"DEBUG" not in script
    source = (STATIC / "scq.js").read_bytes().replace(b"DEBUG", b"true")
    assert script == source.replace(b'"VERSION"', f'"{__version__}"'.encode()).replace(b'"TRUST"', b'"anonymous"')


@pytest.mark.parametrize("file", ["scq.js", "scq.min.js"])
def test_there_is_one_place_for_the_endpoint(file: str) -> None:
    assert (STATIC / file).read_bytes().count(b'"/scq/push"') == 1


def test_what_browsers_load_stays_under_its_caps() -> None:
    size = size_of(SMALL)
    assert size.brotli <= BROTLI_CAP, f"{size.brotli} bytes after brotli, {BROTLI_CAP} are allowed"
    assert size.gzip <= GZIP_CAP, f"{size.gzip} bytes after gzip -9, {GZIP_CAP} are allowed"


PARSE = """
const { parse } = require("acorn");
const source = require("fs").readFileSync(0, "utf8");
try { parse(source, { ecmaVersion: %s, sourceType: "script" }); } catch (error) { console.log(error.message); }
"""


def complaint(source: str, version: int) -> str:
    """What a parser of that year's JavaScript has against a script; nothing if it is fine."""
    environ = {**os.environ, "NODE_PATH": str(NPM)}
    command = ["node", "--eval", PARSE % version]
    done = subprocess.run(command, input=source, env=environ, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("source", [SMALL, DEBUG], ids=["small", "debug"])
def test_engines_of_2018_can_read_it(source: bytes) -> None:
    needs_npm()
    assert complaint(source.decode("utf-8"), 2018) == ""


def test_what_engines_of_2018_cannot_read_is_found() -> None:
    needs_npm()
    assert "Unexpected token" in complaint("try { a } catch { b }", 2018)


def test_it_can_stand_inside_a_page() -> None:
    assert not re.search(rb"</script|<!--|\r|\n", SMALL, re.IGNORECASE)
    assert SMALL.isascii(), "a page may have another encoding"


def test_nothing_of_the_development_build_is_in_what_browsers_load() -> None:
    assert b"[scq]" not in SMALL
    assert SMALL.count(b"console") == 1  # where there is no address to post to
    assert b"[scq]" in DEBUG


# As it is served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("shim"), "http://127.0.0.1:9/api/v1/rest")
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/scq/scq.js", b'"/scq/push"'),
        (f"/scq/scq.{load_shim('/scq/push').digest}.js", b'"/scq/push"'),
        ("/prod/TEAMID.js", b'"/prod/push"'),
    ],
)
@pytest.mark.parametrize("coding", ["br", "gzip", "identity"])
def test_browsers_get_the_small_build_and_in_it_the_endpoint_beside_it(
    server: Server, path: str, endpoint: bytes, coding: str
) -> None:
    answer = server.client.get(path, headers={"Accept-Encoding": coding})
    assert answer.content == SMALL.replace(b'"/scq/push"', endpoint)
    assert answer.content.count(endpoint) == 1


def test_two_scripts_that_differ_in_their_endpoint_have_two_etags(server: Server) -> None:
    assert server.client.get("/scq/scq.js").headers["etag"] != server.client.get("/prod/x.js").headers["etag"]


def test_the_development_build_has_an_address_and_is_kept_by_nobody(server: Server) -> None:
    answer = server.client.get("/scq/scq.debug.js")
    assert answer.content == DEBUG
    assert "javascript" in answer.headers["content-type"]
    assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-store", "Cookie")
    assert "etag" not in answer.headers


@pytest.mark.parametrize("trust", Trust)
def test_the_development_build_says_how_well_the_browser_is_known_and_changes_no_cookie(
    server: Server, trust: Trust
) -> None:
    now = int(time.time())
    visitor = Visitor("v" * 22, "ann@example.com" if trust else None, trust, issued=now - 300 * 86_400, verified=now)
    cookie = CookieCodec([COOKIE_KEY]).encode(visitor)
    headers = {"Referer": f"{SHOP}/", "Cookie": f"__Host-scq={cookie}"}
    answer = server.client.get("/scq/scq.debug.js", headers=headers)
    assert answer.content == debug_source("/scq/push", trust.name.lower())
    assert "set-cookie" not in answer.headers
    assert b"ann@example.com" not in answer.content


@pytest.mark.browser
def test_a_returning_visitor_has_the_script_while_the_proxy_is_down(server: Server, visit: Visit) -> None:
    served = server.client.get("/scq/scq.js")
    kept = {"Cache-Control": served.headers["cache-control"], "Age": "86400"}  # a day old, so no longer fresh
    pages, proxy = Pages(), Pages()
    proxy.put("/scq/scq.js", served.text, **kept)
    with serving(pages.app) as url:
        with serving(proxy.app) as proxy_url:
            pages.put("/", f'<!doctype html><script src="{proxy_url}/scq/scq.js"></script>')
            assert visit.open(url).evaluate("!!window._scq.Push")
        assert visit.open(url).evaluate("!!window._scq.Push")
        (error,) = eventually(visit.take_errors)
    assert "ERR_CONNECTION_REFUSED" in error, "and the browser has asked for a fresh one"


# What it says to whoever builds the site


def said_by(visit: Visit, site: Site, tag: str) -> list[str]:
    """What the console says while a log-in, a tag that is offered and two that are not are pushed and answered."""
    said: list[str] = []
    visit.context.on("console", lambda message: said.append(message.text))
    page = visit.open(site.put("/", f"<script>{TOLD}</script>", tag))
    page.evaluate(
        """(argument) => _scq.push(
          ["identify", {...argument, company: "Engines", plan: "gold", ...told("log-in")}],
          ["track", {addTags: ["t-offered"], ...told("offered")}],
          ["track", {addTags: ["t-fine", "paid user"], ...told("refused")}],
          ["track", {addTags: "paid user", ...told("malformed")}])""",
        token("ann@example.com"),
    )
    eventually(lambda: page.evaluate("outcomes.length") == 4)
    assert page.evaluate("outcomes.map(([name]) => name)") == ["log-in", "offered", "refused", "malformed"]
    page.evaluate("0")
    return said


DEBUG_TAG = (
    '<script>window._scq = window._scq || [];</script><script async src="/scq/scq.debug.js" data-debug></script>'
)


@pytest.mark.browser
def test_with_data_debug_the_console_tells_what_became_of_each_push(site: Site, visit: Visit) -> None:
    start, log_in, offered, refused, malformed = said_by(visit, site, DEBUG_TAG)
    assert "/scq/push" in start
    assert "identify" in log_in
    assert "accepted" in log_in
    assert "plan" in log_in.partition("accepted")[2], "what was left out is named"
    assert "t-offered" in offered
    assert "accepted" in offered
    assert "paid user" in refused
    assert "not offered" in refused
    assert "SCQ_TAGS" in refused
    assert "addTags" in malformed
    assert "bad-shape" in malformed


@pytest.mark.browser
def test_the_console_tells_each_outcome_once(site: Site, visit: Visit) -> None:
    said: list[str] = []
    visit.context.on("console", lambda message: said.append(message.text))
    url = site.put("/", f"<script>{TOLD}</script>", DEBUG_TAG)
    page = visit.context.new_page()
    page.clock.install()
    page.goto(url)
    page.evaluate("_scq.push(['track', {addTags: ['t-1'], ...told('t-1')}])")
    eventually(lambda: page.evaluate("outcomes.length") == 1)
    page.clock.run_for(11_000)  # beyond the time-out of a push
    assert page.evaluate("outcomes.length") == 1
    assert len(said) == 2  # and how the page is set up


@pytest.mark.browser
def test_the_console_calls_a_log_in_that_an_earlier_page_left_behind_by_its_name(site: Site, visit: Visit) -> None:
    said: list[str] = []
    visit.context.on("console", lambda message: said.append(message.text))
    left = 'localStorage.scq1 = JSON.stringify({id: "scq1".repeat(4), call: ["reset", 4294967295], t: Date.now()})'
    page = visit.open(site.put("/", f"<script>{left}</script>", DEBUG_TAG))
    eventually(lambda: page.evaluate("1") and said[1:])
    assert "a log-in on an earlier page" in said[1]
    assert "4294967295" not in said[1]


@pytest.mark.browser
def test_the_console_does_not_tell_who_can_log_in_as_the_visitor(site: Site, visit: Visit) -> None:
    assert not any("eyJ" in line for line in said_by(visit, site, DEBUG_TAG)), "an identity token is a secret"


@pytest.mark.browser
@pytest.mark.parametrize(
    "tag", [DEBUG_TAG.replace(" data-debug", ""), DEBUG_TAG.replace("scq.debug.js", "scq.js")], ids=["plain", "small"]
)
def test_the_console_stays_empty_otherwise(site: Site, visit: Visit, tag: str) -> None:
    assert said_by(visit, site, tag) == []


# The table of mistakes in docs/debug.md: what a page does, and what the console then says.
MISTAKES = {
    '_scq.push(["Track", {addTags: ["a"]}])': '“Track” is not a method of this queue. Did you mean _scq.push(["track"',
    '_scq.push(["identfy", {email: "ann@example.com"}])': '“identfy” is not a method of this queue. Did you mean _scq.push(["identify"',
    '_scq.push(["track"])': "“track” is not of this form. Did you mean",
    '_scq.push("track", {addTags: ["a"]})': "“track” is not of this form. Did you mean",
    '_scq.push(["track", {addTags: "a"}])': "bad-shape",
    '_scq.push(["track", {addTags: ["gold"]}])': "tag-not-allowed",
    '_scq.push(["identify", {token: "…"}])': "bad-token",
    "window._scq = []": "_scq has been replaced after this script came",
    "the tag stands twice": "The script is in this page twice",
    'a tag with type="module"': "document.currentScript is null",
    "no connect-src for the proxy": "Content-Security-Policy blocks",
    "the page's origin is not in SCQ_ORIGINS": "(origin-not-allowed)",
}
TWICE = DEBUG_TAG.replace("async", "") * 2
MODULE = DEBUG_TAG.replace("async", 'type="module"')


def test_the_docs_list_the_mistakes() -> None:
    rows = re.findall(r"^\| (.+?) \| `(.+?)` \|$", (ROOT / "docs/debug.md").read_text("utf-8"), re.MULTILINE)
    assert {mistake.strip("`"): line for mistake, line in rows} == MISTAKES


def lines_of(site: Site, visit: Visit, mistake: str) -> list[str]:
    said: list[str] = []
    visit.context.on("console", lambda message: said.append(message.text))
    if mistake == "the tag stands twice":
        visit.open(site.put("/", TWICE))
    elif mistake.startswith("a tag with type"):
        visit.open(site.put("/", MODULE))
    elif mistake.startswith("no connect-src"):
        policy = "default-src 'self'; script-src 'self' 'unsafe-inline'; connect-src 'none'"
        visit.open(site.put("/", DEBUG_TAG, Content_Security_Policy=policy)).evaluate(
            "void _scq.push(['track', {addTags: ['t-1']}])"
        )
    else:
        visit.open(site.put("/", DEBUG_TAG)).evaluate(f"() => {{ {mistake} }}")
    return said


@pytest.mark.browser
@pytest.mark.parametrize("mistake", [mistake for mistake in MISTAKES if "SCQ_ORIGINS" not in mistake])
def test_the_console_names_each_of_the_commonest_mistakes(site: Site, visit: Visit, mistake: str) -> None:
    said = lines_of(site, visit, mistake)
    eventually(lambda: visit.context.pages[0].evaluate("1") and any(MISTAKES[mistake] in line for line in said))
    visit.take_errors()


# The types


def compiled(*files: Path | str, options: tuple[str, ...] = ()) -> str:
    """What the TypeScript compiler has against the files, together with `static/scq.d.ts`."""
    needs_npm()
    command = (NPM / ".bin" / "tsc", "--strict", "--noEmit", "--target", "es2018", "--lib", "es2021,dom,dom.iterable")
    return run(*command, *options, STATIC / "scq.d.ts", *files).stdout


def test_what_pages_push_compiles() -> None:
    assert compiled(ROOT / "tests/types/ok.ts") == ""


def test_each_mistake_is_an_error() -> None:
    # An expected error that does not come is one itself.
    assert compiled(ROOT / "tests/types/wrong.ts") == ""
    assert (ROOT / "tests/types/wrong.ts").read_text("utf-8").count("@ts-expect-error") > 20


def test_the_types_compile_under_the_strictest_options_too() -> None:
    strictest = ("--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--noPropertyAccessFromIndexSignature")
    assert compiled(ROOT / "tests/types/ok.ts", options=strictest) == ""


COMPLETIONS = {
    '(window._scq = window._scq || []).push(["track", { § }]);': "addTags failure removeTags success",
    '_scq.push(["track", { addTags: ["a"], § }]);': "failure removeTags success",
    '_scq.push(["identify", { token: "…", § }]);': (
        "birthday company customFields email failure firstName lastName success tags"
    ),
    '_scq.push(["reset"], ["track", { § }]);': "addTags failure removeTags success",
    '_scq.push(["reset", { § }]);': "failure success",
    '_scq.push(["§"]);': "consent identify reset track",
    '_scq.push(["consent", "§"]);': "denied granted",
}


def test_an_editor_offers_only_what_the_method_at_hand_takes() -> None:
    needs_npm()
    done = subprocess.run(
        ["node", "tests/types/completions.cjs", STATIC / "scq.d.ts"],
        input=json.dumps(list(COMPLETIONS)),
        cwd=ROOT,
        env={**os.environ, "NODE_PATH": str(NPM)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert dict(zip(COMPLETIONS, map(" ".join, json.loads(done.stdout)), strict=True)) == COMPLETIONS


def test_the_types_list_every_reason_and_no_other() -> None:
    listed = re.findall(r"type Reason =([^;]*);", (STATIC / "scq.d.ts").read_text("utf-8"))[0]
    assert re.findall(r'"([^"]+)"', listed) == [str(reason) for reason in Reason]
