"""What `scq-proxy snippet` prints works as it stands: in a real browser, under exactly the Content-Security-Policy that it asks for."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import httpx
import pytest
import typer

from proxy.cli.snippet import queue_name
from proxy.web.shim import load_shim
from tests.support.browser import Visit
from tests.support.commands import Said, scq
from tests.support.live import PATIENCE_SECONDS, eventually
from tests.support.site import TOLD, Site

ROOT = Path(__file__).parents[2]
SHIM = load_shim("/scq/push")


def snippet(folder: Path, *options: str) -> Said:
    said = scq("snippet", *options, cwd=folder)
    assert said.code == 0, said.err
    return said


def policy(said: Said) -> str:
    """The lines of a Content-Security-Policy that a snippet asks for, as its header."""
    return "; ".join(re.findall(r"^ *((?:script|connect)-src .*)$", said.err, re.MULTILINE))


def source_of(page: Path) -> str:
    """SendX's snippet as an example shows it."""
    script = str(re.findall(r"<script.*?</script>", page.read_text("utf-8"), re.DOTALL)[0])
    return script.replace("\n  ", "\n") + "\n"


# In a browser


def push_and_wait(site: Site, visit: Visit, tag: str, csp: str) -> list[str]:
    """Pushes before the script has loaded and behind it; returns the addresses of the scripts that the page asked for."""
    site.pages.put("/page.js", TOLD)
    site.pages.put("/push.js", '_scq.push(["track", {addTags: ["t-early"], ...told("early")}]);')
    page = visit.open(
        site.put(
            "/deep/page",
            '<script src="/page.js"></script>',
            tag,
            '<script src="/push.js"></script>',
            Content_Security_Policy=f"default-src 'none'; {csp}",
        )
    )
    page.evaluate("_scq.push(['track', {addTags: ['t-late'], ...told('late')}])")
    eventually(lambda: page.evaluate("outcomes.length") == 2)
    assert page.evaluate("outcomes") == [["early", "success", "held"], ["late", "success", "held"]]
    return [request.url.removeprefix(site.url) for request in visit.requests(".js")]


OWN = "/page.js", "/push.js"


@pytest.mark.browser
@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ((), "/scq/scq.js"),
        (("--spa",), "/scq/scq.js"),
        (("--hashed",), f"/scq/scq.{SHIM.digest}.js"),
        (("--hashed", "--spa"), f"/scq/scq.{SHIM.digest}.js"),
    ],
    ids=["plain", "spa", "hashed", "hashed-spa"],
)
def test_the_tag_works_under_the_policy_that_is_printed_with_it(
    site: Site, visit: Visit, tmp_path: Path, options: tuple[str, ...], loaded: str
) -> None:
    said = snippet(tmp_path, *options)
    # The test's own scripts come from the same origin, which all these forms allow.
    assert sorted(push_and_wait(site, visit, said.out, policy(said))) == sorted([*OWN, loaded])


@pytest.mark.browser
@pytest.mark.parametrize("options", [(), ("--debug",), ("--spa",)], ids=["small", "debug", "spa"])
def test_inline_asks_for_no_script(site: Site, visit: Visit, tmp_path: Path, options: tuple[str, ...]) -> None:
    said = snippet(tmp_path, "--inline", *options)
    csp = policy(said).replace("script-src", f"script-src {site.url}/page.js {site.url}/push.js")
    assert "'self'" not in csp.partition(";")[0]
    assert sorted(push_and_wait(site, visit, said.out, csp)) == sorted(OWN)


@pytest.mark.browser
def test_inline_finds_a_proxy_on_another_host(site: Site, visit: Visit, tmp_path: Path) -> None:
    """Its address is whole then. The host here is the page's own: a port alone is another host to the tag."""
    tag = snippet(tmp_path, "--inline", "--host", "t.example.com").out
    assert '<script data-src="https://t.example.com/scq/scq.js">' in tag
    here = tag.replace("https://t.example.com", site.url)
    page = visit.open(site.put("/", f"<script>{TOLD}</script>", here))
    page.evaluate("_scq.push(['track', {addTags: ['t-a'], ...told('a')}])")
    eventually(lambda: page.evaluate("outcomes.length") == 1)
    assert page.evaluate("outcomes") == [["a", "success", "held"]]


@pytest.mark.browser
@pytest.mark.parametrize("form", ["--hashed", "--inline", "--debug", "--spa"])
def test_the_queue_can_have_another_name_and_leaves_scq_alone(
    site: Site, visit: Visit, tmp_path: Path, form: str
) -> None:
    tag = snippet(tmp_path, form, "--queue", "_scp").out
    page = visit.open(site.put("/", f"<script>{TOLD} var _scq = [['track', {{addTags: ['t-sendx']}}]];</script>", tag))
    page.evaluate("_scp.push(['track', {addTags: ['t-ours'], ...told('ours')}])")
    eventually(lambda: page.evaluate("outcomes.length") == 1)
    assert page.evaluate("_scq.length === 1 && _scq.push === Array.prototype.push")


@pytest.mark.browser
def test_a_queue_named_after_what_the_page_has_loads_no_page_again(site: Site, visit: Visit) -> None:
    """A tag written by hand: the command refuses the name."""
    counted = "<script>sessionStorage.loads = 1 + +(sessionStorage.loads || 0)</script>"
    page = visit.open(site.put("/", counted, '<script async src="/scq/scq.js" data-queue="location"></script>'))
    eventually(lambda: page.evaluate("typeof location.push") == "function")
    assert page.evaluate("sessionStorage.loads") == "1"


@pytest.mark.browser
def test_a_script_that_was_changed_on_the_way_is_not_run(site: Site, visit: Visit, tmp_path: Path) -> None:
    tag = re.sub(r"/scq/scq\.[0-9a-f]+\.js", "/other.js", snippet(tmp_path, "--hashed").out)
    site.pages.put("/other.js", SHIM.source.decode() + "//")
    page = visit.open(site.put("/", tag))
    page.wait_for_load_state()
    assert page.evaluate("_scq.push === Array.prototype.push")
    assert any("integrity" in error for error in visit.take_errors())


@pytest.mark.browser
def test_sendxs_snippet_works_with_the_host_that_was_asked_for(site: Site, visit: Visit, tmp_path: Path) -> None:
    said = snippet(tmp_path, "--sendx", "--host", site.url.removeprefix("http://"))
    page = visit.open(site.put("/", f"<script>{TOLD}</script>", said.out))
    page.evaluate("_scq.push(['track', {addTags: ['t-a'], ...told('a')}])")
    eventually(lambda: page.evaluate("outcomes.length") == 1)
    assert [request.url for request in visit.requests(".js")] == [f"{site.url}/prod/TEAMID.js"]
    assert [request.url for request in visit.requests("push")] == [f"{site.url}/prod/push"]


# As text


def test_inline_is_the_script_byte_for_byte(tmp_path: Path) -> None:
    said = snippet(tmp_path, "--inline")
    script = re.findall(r'^<script data-src="/scq/scq\.js">(.*)</script>\n$', said.out)[0]
    assert script == (ROOT / "static" / "scq.min.js").read_text("utf-8").replace('"push"', '"/scq/push"')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in said.err


def test_the_hashed_address_and_its_integrity_are_those_of_the_served_script(site: Site, tmp_path: Path) -> None:
    said = snippet(tmp_path, "--hashed")
    address, integrity = re.findall(r'src="([^"]+)" integrity="sha384-([^"]+)" crossorigin="anonymous"', said.out)[0]
    answer = httpx.get(site.url + address, timeout=PATIENCE_SECONDS)
    assert base64.b64encode(hashlib.sha384(answer.content).digest()).decode() == integrity
    assert "immutable" in answer.headers["cache-control"]
    assert "after each upgrade" in said.err


def test_sendxs_snippet_differs_from_its_own_in_one_host_name(tmp_path: Path) -> None:
    said = snippet(tmp_path, "--sendx")
    assert said.out == source_of(ROOT / "examples" / "embed" / "sendx-snippet.html")
    assert "cdn.sendx.io becomes www.example.com" in said.err
    assert "/prod/" in said.err
    other = snippet(tmp_path, "--sendx", "--host", "t.example.com")
    assert other.out == said.out.replace("www.example.com", "t.example.com")
    assert "www.example.com" not in other.err


@pytest.mark.parametrize("form", ["--hashed", "--inline", "--debug", "--spa"])
def test_another_host_and_another_prefix_go_with_every_form(tmp_path: Path, form: str) -> None:
    said = scq("snippet", form, "--host", "t.example.com", cwd=tmp_path, SCQ_PREFIX="/t/1")
    assert ('"/t/1/push"' in said.out) is (form == "--inline")
    assert re.search(r'src="https://t\.example\.com/t/1/scq\.([0-9a-f]+\.|debug\.)?js"', said.out)
    assert "connect-src https://t.example.com\n" in said.err
    assert "'self'" not in said.err


def test_the_remark_for_single_page_sites_shows_a_push_that_works_at_any_time(tmp_path: Path) -> None:
    said = snippet(tmp_path, "--spa", "--queue", "_scp")
    assert said.out.startswith(snippet(tmp_path, "--queue", "_scp").out)
    assert '(window._scp = window._scp || []).push(["track", {' in said.out
    assert len(re.findall(r"<!-- .* -->\n$", said.out)) == 1


def test_the_types_are_the_shipped_ones(tmp_path: Path) -> None:
    said = snippet(tmp_path, "--types")
    assert said.out == (ROOT / "static" / "scq.d.ts").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "other"),
    [
        (["--inline", "--hashed"], "--inline"),
        (["--sendx", "--inline"], "--sendx"),
        (["--sendx", "--debug"], "--debug"),
        (["--hashed", "--debug"], "--debug"),
        (["--sendx", "--queue", "_scp"], "--queue"),
        (["--types", "--hashed"], "--types"),
        (["--queue", "a-b"], "--queue"),
        (["--queue", ""], "--queue"),
        (["--queue", 'a"><script>'], "--queue"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused_with_the_option_named(
    tmp_path: Path, options: list[str], other: str
) -> None:
    said = scq("snippet", *options, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert other in said.err


GLOBALS = """
location top name self document __proto__ constructor hasOwnProperty onerror event status closed window parent frames length opener history origin
undefined NaN Array push let class null await __defineGetter__ $ _ $scq scq _1 __scq
"""


@pytest.mark.parametrize("name", GLOBALS.split())
def test_a_queue_of_a_name_that_a_page_may_have_already_is_refused(name: str) -> None:
    with pytest.raises(typer.BadParameter, match="a page may already have a global of this name"):
        queue_name(name)


def test_a_queue_does_not_take_the_place_of_sendxs_settings() -> None:
    with pytest.raises(typer.BadParameter, match="_scs is a global of SendX's own"):
        queue_name("_scs")


@pytest.mark.parametrize("name", ["_scq", "_scp", "_myShop_2", "_location"])
def test_a_queue_may_have_any_name_of_its_own(name: str) -> None:
    assert queue_name(name) == name


def test_a_queue_of_another_name_is_refused_with_the_option_named(tmp_path: Path) -> None:
    said = scq("snippet", "--queue", "location", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    words = " ".join(said.err.split())
    assert "'--queue': a page may already have a global of this name, or cannot have one. Give one that begins" in words


def test_the_snippet_follows_the_prefix_of_the_environment_and_of_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SCQ_PREFIX=/from/file\n", "utf-8")
    assert 'src="/from/file/scq.js"' in scq("snippet", cwd=tmp_path).out
    assert 'src="/given/scq.js"' in scq("snippet", cwd=tmp_path, SCQ_PREFIX="/given").out


def test_the_snippet_follows_the_names_of_script_and_endpoint(tmp_path: Path) -> None:
    names = {"SCQ_SCRIPT": "t.js", "SCQ_ENDPOINT": "in", "SCQ_PREFIX": "/a"}
    said = {
        form: scq("snippet", *form.split(), cwd=tmp_path, **names).out
        for form in ("", "--hashed", "--inline", "--debug")
    }
    assert ' src="/a/t.js"' in said[""]
    assert f' src="/a/t.{load_shim("/a/in").digest}.js" integrity="{load_shim("/a/in").integrity}"' in said["--hashed"]
    assert said["--inline"] == f'<script data-src="/a/t.js">{load_shim("/a/in").source.decode()}</script>\n'
    assert ' src="/a/t.debug.js"' in said["--debug"]


def test_the_snippet_names_another_host_if_asked(tmp_path: Path) -> None:
    said = scq("snippet", "--host", "t.example.com", cwd=tmp_path)
    assert 'src="https://t.example.com/scq/scq.js"' in said.out


@pytest.mark.parametrize("host", ["https://t.example.com", "t.example.com/", 'x"><script>', "a b"])
def test_the_snippet_takes_a_host_name_only(tmp_path: Path, host: str) -> None:
    said = scq("snippet", "--host", host, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "--host" in said.err
    assert "t.example.com" in said.err
