"""`scq-proxy check`: what it finds about settings, tokens, SendX and the way of a browser to the proxy."""

from __future__ import annotations

import re
import socket
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from proxy.cli.check import check_settings
from proxy.config.settings import load_settings
from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from tests.support.commands import ask, scq, settings, spawn
from tests.support.live import PATIENCE_SECONDS, free_port, serving
from tests.support.server import Server, new_email, running, token


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_IDENTIFY": "asserted"}


# check


def test_check_finds_nothing_to_mend_and_counts_on_no_store(tmp_path: Path) -> None:
    said = scq("check", cwd=tmp_path, **settings(tmp_path, SCQ_IDENTIFY="asserted"))
    assert (said.code, said.err) == (0, "")
    assert all(row.startswith("ok ") for row in said.out.splitlines())
    assert f"{tmp_path}/scq.db does not exist yet; serve creates it" in said.out
    assert list(tmp_path.iterdir()) == []


def test_check_reads_back_what_durable_means_with_and_without_a_server(server: Server) -> None:
    online = ask(server, "check")
    assert server.stop() == 0
    offline = ask(server, "check")
    for said, state in ((online, "a server is running"), (offline, "no server is running")):
        assert said.code == 0
        assert re.search(rf"^ok +store: .*journal_mode wal, synchronous FULL.*; {state}$", said.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"SCQ_TAGS": " "}, "SCQ_TAGS is empty: every track is refused."),
        ({"SCQ_IDENTIFY": "asserted", "SCQ_ASSERTED_TAGS": "*"}, "SCQ_ASSERTED_TAGS offers every tag"),
        ({"SCQ_ASSERTED_TAGS": "x"}, "SCQ_ASSERTED_TAGS has no effect with SCQ_IDENTIFY=verified"),
    ],
)
def test_check_finds_settings_that_are_likely_a_mistake(tmp_path: Path, more: dict[str, str], wrong: str) -> None:
    said = scq("check", cwd=tmp_path, **settings(tmp_path, **more))
    assert said.code == 1
    assert re.search(rf"^mend +{re.escape(wrong)}", said.out, re.MULTILINE)


def mended(tmp_path: Path, **more: str) -> list[str]:
    """Returns what check has to say against settings, in one process for many."""
    given = load_settings(settings(tmp_path, SCQ_IDENTIFY="asserted", **more), None)
    return [finding.text for finding in check_settings(given) if not finding.ok]


@pytest.mark.parametrize(
    "network",
    ["0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/7", "::/1", "2000::/3", "2a00::/12", "fe00::/7"],
)
def test_check_finds_proxies_that_anybody_could_be(tmp_path: Path, network: str) -> None:
    (wrong,) = mended(tmp_path, SCQ_TRUSTED_PROXIES=f"127.0.0.1,{network}")
    assert wrong.startswith(f"SCQ_TRUSTED_PROXIES is too wide with {network}: ")


def test_check_names_every_network_that_is_too_wide_in_one_sentence(tmp_path: Path) -> None:
    (wrong,) = mended(tmp_path, SCQ_TRUSTED_PROXIES="0.0.0.0/0,::1,::/0")
    assert "with 0.0.0.0/0 and ::/0: " in wrong


@pytest.mark.parametrize(
    "networks",
    ["", "127.0.0.0/8,::1", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10", "fc00::/7,fe80::/10", "2630::/16"],
)
def test_check_says_nothing_against_networks_that_somebody_has(tmp_path: Path, networks: str) -> None:
    assert mended(tmp_path, SCQ_TRUSTED_PROXIES=networks) == []


SHARED = "shared-" * 6
HOLDERS = {
    "SCQ_API_KEY": SHARED,
    "SCQ_SECRET_KEYS": f"{'o' * 32},{SHARED}",
    "SCQ_IDENTITY_KEYS": f"{'i' * 32},site1={SHARED}",
    "SCQ_SERVER_KEYS": f"{SHARED},{'s' * 32}",
    "SCQ_ADMIN_TOKEN": SHARED,
}


@pytest.mark.parametrize("names", list(combinations(HOLDERS, 2)), ids=" ".join)
def test_check_finds_one_key_for_two_purposes_and_does_not_show_it(tmp_path: Path, names: tuple[str, str]) -> None:
    (wrong,) = mended(tmp_path, **{name: HOLDERS[name] for name in names})
    assert wrong.startswith(f"{names[0]} and {names[1]} hold the same key: ")
    assert "shared" not in wrong


def test_check_finds_one_key_for_every_purpose(tmp_path: Path) -> None:
    said = scq("check", cwd=tmp_path, **settings(tmp_path, SCQ_IDENTIFY="asserted", **HOLDERS))
    assert said.code == 1
    assert f"mend {', '.join([*HOLDERS][:-1])} and SCQ_ADMIN_TOKEN hold the same key: " in said.out
    assert said.out.count("hold the same key") == 1
    assert "shared" not in said.out + said.err


def test_check_finds_an_identity_key_that_was_copied_with_its_kid(tmp_path: Path) -> None:
    copied = {"SCQ_SECRET_KEYS": f"site1={SHARED}", "SCQ_IDENTITY_KEYS": f"site1={SHARED}"}
    (wrong,) = mended(tmp_path, **copied)
    assert wrong.startswith("SCQ_SECRET_KEYS and SCQ_IDENTITY_KEYS hold the same key: ")


def test_check_finds_two_pairs_that_share_a_key_each(tmp_path: Path) -> None:
    pairs = {"SCQ_SECRET_KEYS": "a" * 32, "SCQ_ADMIN_TOKEN": "a" * 32, "SCQ_SERVER_KEYS": f"{'b' * 32},{'c' * 32}"}
    found = mended(tmp_path, **pairs, SCQ_IDENTITY_KEYS=f"{'b' * 32},{'c' * 32}")
    assert [text.partition(" hold ")[0] for text in found] == [
        "SCQ_SECRET_KEYS and SCQ_ADMIN_TOKEN",
        "SCQ_IDENTITY_KEYS and SCQ_SERVER_KEYS",
    ]


def test_check_exits_2_when_the_settings_cannot_be_used(tmp_path: Path) -> None:
    said = scq("check", cwd=tmp_path, SCQ_API_KEY="k")
    assert (said.code, said.out) == (2, "")
    assert "SCQ_TAGS: is required" in said.err


def test_check_explains_tokens(tmp_path: Path) -> None:
    given = settings(tmp_path, SCQ_IDENTIFY="asserted")
    good = scq("check", "--token", token("ada@example.com"), cwd=tmp_path, **given)
    assert (good.code, good.out.splitlines()[-1][:11]) == (0, "ok   token:")
    for bad, reason in [
        (token("ada@example.com", exp_in=-100), "expired-token"),
        (token("ada@example.com", key="K" * 32), "bad-token"),
        (token("nowhere"), "bad-token"),
        ("garbage", "bad-token"),
    ]:
        said = scq("check", "--token", bad, cwd=tmp_path, **given)
        assert said.code == 1
        assert f"mend token: {reason}, " in said.out
        assert bad not in said.out
        assert "ada@example.com" not in said.out


def test_check_explains_a_token_when_there_are_no_keys(tmp_path: Path) -> None:
    given = settings(tmp_path, SCQ_IDENTIFY="asserted", SCQ_IDENTITY_KEYS="")
    assert scq("check", "--token", token("ada@example.com"), cwd=tmp_path, **given).code == 1


def test_check_sends_for_real(tmp_path: Path, sandbox: Sandbox, upstream: str) -> None:
    email = new_email()
    given = settings(tmp_path, SCQ_IDENTIFY="asserted", SCQ_UPSTREAM=upstream)
    said = scq("check", "--send", email, cwd=tmp_path, **given)
    assert said.code == 0
    assert re.search(r"^ok +SendX: it took the identify", said.out, re.MULTILINE)
    assert sandbox.contacts.get(email) is not None
    refused = scq("check", "--send", email, cwd=tmp_path, **given | {"SCQ_API_KEY": "wrong-key-1234"})
    assert refused.code == 1
    assert "401 Unauthorized" in refused.out
    assert "Check SCQ_API_KEY" in refused.out
    assert "wrong-key-1234" not in refused.out + refused.err


def test_check_quotes_what_came_in_place_of_sendx_s_answer(tmp_path: Path, sandbox: Sandbox, upstream: str) -> None:
    email = new_email()
    sandbox.faults.stand(email, Fault(kind="html", status=200, body=f"<h1>Back soon</h1><p>{email}"))
    given = settings(tmp_path, SCQ_IDENTIFY="asserted", SCQ_UPSTREAM=upstream)
    said = scq("check", "--send", email, cwd=tmp_path, **given)
    assert said.code == 1
    assert re.search(
        r"^mend SendX: it did not take the identify .*text/html, \d+ bytes: \"Back soon \*\*\*\"", said.out, re.M
    )
    assert "Set SCQ_DELIVERED=2xx only if SendX answers like this to what it has taken." in said.out
    assert email not in said.out
    assert scq("check", "--send", email, cwd=tmp_path, **given, SCQ_DELIVERED="2xx").code == 0


def test_check_says_when_sendx_cannot_be_reached(tmp_path: Path) -> None:
    upstream = f"http://127.0.0.1:{free_port()}/api/v1/rest"
    said = scq("check", "--send", "ada@example.com", cwd=tmp_path, **settings(tmp_path, SCQ_UPSTREAM=upstream))
    assert said.code == 1
    assert re.search(
        r"^mend SendX: it did not take .*connection refused\. Check the host name and port in SCQ_UPSTREAM",
        said.out,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--send", "nowhere"),
        ("--url", "www.example.com/scq"),
        ("--url", "ftp://www.example.com/scq"),
        ("--url", "http://[::1/scq"),
        ("--url", "https://"),
        ("--url", "https://a:b@www.example.com/scq"),
        ("--url", "https://www.example.com/scq?x"),
    ],
)
def test_check_refuses_an_option_that_makes_no_sense(tmp_path: Path, option: str, value: str) -> None:
    said = scq("check", option, value, cwd=tmp_path, **settings(tmp_path))
    assert (said.code, said.out) == (2, "")
    assert option in said.err


@pytest.mark.parametrize("slash", ["", "/"])
def test_check_tries_the_way_of_a_browser(server: Server, slash: str) -> None:
    said = ask(server, "check", "--url", f"{server.url}/scq{slash}")
    assert (said.code, said.err) == (1 if "mend" in said.out else 0, "")
    assert said.out.count("script: ") == 1
    for found in (
        "script: served, compressed with br",
        "push: ack",
        "cookie: scq is set",
        "client address seen: 127.0",
    ):
        assert f"ok   {found}" in said.out


def test_check_says_when_a_web_server_renames_the_path(server: Server) -> None:
    async def on_the_way(request: Request) -> Response:
        kept = {name: text for name, text in request.headers.items() if name not in ("host", "accept-encoding")}
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_SECONDS) as client:
            path = request.url.path.replace("/t/1", "/scq", 1)
            answer = await client.request(request.method, path, content=await request.body(), headers=kept)
        passed = {
            name: text for name, text in answer.headers.items() if name not in ("content-length", "content-encoding")
        }
        return Response(answer.content, answer.status_code, passed)

    app = Starlette(routes=[Route("/{path:path}", on_the_way, methods=["GET", "POST"])])
    with serving(app) as url:
        said = ask(server, "check", "--url", f"{url}/t/1")
    wrong = (
        "mend script: a web server renames the path, so the script that pages find at /t/1/scq.js posts to /scq/push. "
    )
    assert wrong + f'Put data-src="{url}/t/1/scq.js" on its tag, ' in said.out


def test_check_finds_a_proxy_whose_endpoint_has_another_name(server: Server) -> None:
    said = ask(server, "check", "--url", f"{server.url}/scq", SCQ_ENDPOINT="in")
    assert said.code == 1
    assert "mend script: it should post to /scq/in, and it does not name that endpoint." in said.out
    assert f"mend {server.url}/scq/in answers 404: " in said.out


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        ({"SCQ_SCRIPT": "my-analytics.js", "SCQ_ENDPOINT": "Collect"}, ["/scq/my-analytics.js", "/scq/Collect"]),
        ({"SCQ_PREFIX": "/racetrack", "SCQ_SCRIPT": "pixelate.js", "SCQ_ENDPOINT": "in"}, []),
    ],
)
def test_check_warns_of_a_path_that_blocking_lists_know(
    tmp_path: Path, upstream: str, names: dict[str, str], listed: list[str]
) -> None:
    with running(tmp_path, upstream, **names) as server:
        said = ask(server, "check", "--url", f"{server.url}{server.prefix}")
    assert re.findall(r"^mend (\S+): blocking lists know ", said.out, re.MULTILINE) == listed


def test_check_finds_a_url_where_nothing_is(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/scq"
    said = scq("check", "--url", url, cwd=tmp_path, **settings(tmp_path))
    assert said.code == 1
    assert f"mend {url} cannot be reached (" in said.out
    assert "is the proxy running" in said.out


def test_check_finds_a_wrong_prefix(server: Server) -> None:
    said = ask(server, "check", "--url", f"{server.url}/elsewhere")
    assert said.code == 1
    assert f"mend {server.url}/elsewhere/scq.js answers 404, not the script" in said.out


def test_check_finds_a_proxy_with_other_keys(server: Server) -> None:
    said = ask(server, "check", "--url", f"{server.url}/scq", SCQ_SECRET_KEYS="Z" * 40)
    assert said.code == 1
    assert "mend client address: the proxy there has other SCQ_SECRET_KEYS" in said.out


def test_check_finds_an_origin_that_may_not_push(tmp_path: Path, server: Server) -> None:
    """Something on the way takes Sec-Fetch-Site away, so the origin would have to be listed."""

    async def on_the_way(request: Request) -> Response:
        kept = {name: text for name, text in request.headers.items() if name not in ("host", "sec-fetch-site")}
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_SECONDS) as client:
            body = await request.body()
            answer = await client.request(request.method, request.url.path, content=body, headers=kept)
        passed = {name: text for name, text in answer.headers.items() if name in ("content-type", "etag", "set-cookie")}
        return Response(answer.content, answer.status_code, passed)

    app = Starlette(routes=[Route("/{path:path}", on_the_way, methods=["GET", "POST"])])
    with serving(app) as url:
        said = ask(server, "check", "--url", f"{url}/scq")
    assert said.code == 1
    assert "mend script: served, but on the way its compression or its ETag was removed" in said.out
    assert "/scq/push answers 403: This origin is not listed" in said.out


@pytest.mark.parametrize(
    ("lost", "trusted", "found"),
    [
        ("", "127.0.0.0/8", "ok   client address seen: 9.9.9.9"),
        ("", "192.0.2.1", "mend client address: this request came through a reverse proxy and counts as 127.0.0.1."),
        ("set-cookie", "127.0.0.0/8", "mend cookie: the answer does not set scq"),
        ("cookie", "127.0.0.0/8", "mend cookie: it does not reach the proxy"),
    ],
)
def test_check_finds_what_a_reverse_proxy_does(
    tmp_path: Path, sandbox: Sandbox, upstream: str, lost: str, trusted: str, found: str
) -> None:
    with running(tmp_path, upstream, SCQ_TRUSTED_PROXIES=trusted) as server:

        async def on_the_way(request: Request) -> Response:
            kept = {name: text for name, text in request.headers.items() if name not in ("host", lost)}
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_SECONDS) as client:
                body = await request.body()
                headers = kept | {"X-Forwarded-For": "9.9.9.9"}
                answer = await client.request(request.method, request.url.path, content=body, headers=headers)
            passed = {name: text for name, text in answer.headers.items() if name != lost}
            for name in ("content-length", "content-encoding", "transfer-encoding"):
                passed.pop(name, None)
            return Response(answer.content, answer.status_code, passed)

        app = Starlette(routes=[Route("/{path:path}", on_the_way, methods=["GET", "POST"])])
        with serving(app) as url:
            said = ask(server, "check", "--url", f"{url}/scq")
    assert found in said.out
    assert said.code == 1  # the script came without its compression


async def _anything(request: Request) -> Response:
    return HTMLResponse("<h1>\x1b[31mshop\x1b[0m</h1>", 202, {"Set-Cookie": "scq=1"})


async def _ok_to_all(request: Request) -> Response:
    if request.method == "GET":
        return HTMLResponse("<h1>shop</h1>")
    return JSONResponse({"results": []}, 202, {"Set-Cookie": "scq=1"})


async def _refusing(request: Request) -> Response:
    return JSONResponse({"message": "[/] \x1b[31mno\x1b[0m"}, 418)


async def _strange(request: Request) -> Response:
    return JSONResponse(["message"], 500)


async def _elsewhere(request: Request) -> Response:
    return RedirectResponse("https://www.example.com/")


@pytest.mark.parametrize("answer", [_anything, _ok_to_all, _refusing, _strange, _elsewhere])
def test_check_finds_a_foreign_server_and_shows_its_words_harmlessly(tmp_path: Path, answer: Any) -> None:
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    with serving(app) as url:
        said = scq("check", "--url", f"{url}/scq", cwd=tmp_path, **settings(tmp_path))
    assert said.code == 1
    assert "/scq/scq.js answers" in said.out
    assert "not the script: route this path to the proxy." in said.out
    assert said.out.count("mend ") >= 2
    assert "scq-proxy failed" not in said.err
    assert "\x1b" not in said.out


def test_check_says_so_when_no_http_is_spoken_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = spawn(
            "check", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}/scq", cwd=tmp_path, **settings(tmp_path)
        )
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (1, "")
    assert "cannot be reached (" in out
