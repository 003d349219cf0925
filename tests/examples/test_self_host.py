"""The files for one's own server: nginx and Caddy pass what the proxy needs and nothing else; systemd, Docker and the settings are sound.

nginx, Caddy and systemd run for real on copies whose host names, ports and paths are changed to this machine's.
"""

import http.client
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from proxy.config.settings import load_settings
from tests.examples.conftest import EXAMPLES, binary
from tests.support.live import eventually, free_port, serving
from tests.support.server import SHOP, Server, new_id, running, track
from tests.support.shims import built

SELF_HOST = EXAMPLES / "self-host"


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
            "/var/cache/": f"{folder}/",
            "/var/www/www.example.com": str(folder),
        },
    )
    (folder / "site.conf").write_text(site)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # or the workers could not read the test's folder
    (folder / "nginx.conf").write_text(
        f"{user} pid {folder}/pid; error_log {folder}/error.log; env CLOCK_OFFSET; events {{}}\n"
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


def trying_command(example: str) -> Callable[[Path, int, int], list[str]]:
    """The command for the Caddyfile of an example that serves a page to try."""

    def command(folder: Path, port: int, upstream_port: int) -> list[str]:
        site = replaced(
            (EXAMPLES / example / "Caddyfile").read_text(),
            {
                "http://localhost:8080 {": f"{{\n\tadmin off\n}}\nhttp://:{port} {{",
                "reverse_proxy 127.0.0.1:8000": f"reverse_proxy 127.0.0.1:{upstream_port}",
            },
        )
        (folder / "Caddyfile").write_text(site)
        return [binary("caddy", "caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]

    return command


COMMANDS: dict[str, Callable[[Path, int, int], list[str]]] = {
    "nginx": nginx_command,
    "caddy": caddy_command,
    "embed": trying_command("embed"),
    "single-page": trying_command("single-page"),
}


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
def web_server(kind: str, folder: Path, upstream_port: int | None = None, **more: str) -> Iterator[int]:
    """Run the web server with the example's file in front of the proxy, or of `echo`; yields its port. `more`: of its environment."""
    with ExitStack() as stack:
        if upstream_port is None:
            app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
            upstream_port = int(stack.enter_context(serving(app)).rpartition(":")[2])
        port = free_port()
        command = COMMANDS[kind](folder, port, upstream_port)
        environ = environment(folder) | more
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environ, cwd=folder)
        try:
            eventually(lambda: answers(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "output").read_text()
            yield port
        finally:
            process.terminate()
            process.wait(120)


def ask(port: int, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any]:
    """Send the path as it stands, which httpx would tidy up; the body is the JSON of `echo`, or None."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
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


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_push_that_is_too_large_is_answered_as_the_proxy_answers_it(
    kind: str, server: Server, tmp_path: Path
) -> None:
    headers = {"Origin": SHOP}
    with web_server(kind, tmp_path, server.port) as port, httpx.Client(timeout=120) as client:
        for size in (150_000, 2_000_000):
            own, passed = (
                client.post(f"http://127.0.0.1:{each}/scq/push", content=b"x" * size, headers=headers)
                for each in (server.port, port)
            )
            assert own.json()["error"] == "too-large"
            assert (passed.status_code, passed.json()) == (413, own.json())
            assert passed.headers["Content-Type"] == own.headers["Content-Type"]
            assert passed.headers["Cache-Control"] == "no-store"
            if size < 1_000_000:  # what a page might push: one of another origin may read the answer, too
                assert passed.headers["Access-Control-Allow-Origin"] == SHOP


def in_cache(folder: Path) -> set[str]:
    """The keys of what nginx has cached."""
    files = [file for file in (folder / "nginx-scq").rglob("*") if file.is_file()]
    return {re.findall(rb"^KEY: (.*)", file.read_bytes(), re.MULTILINE)[0].decode() for file in files}


def test_nginx_serves_the_script_a_day_after_the_proxy_went_down_and_caches_nothing_else(
    upstream: str, tmp_path: Path
) -> None:
    scripts = ["/scq/scq.js", "/scq/scq.js?email=ada@example.com", "/prod/TEAMID.js"]
    clock = tmp_path / "offset"
    ahead = {"LD_PRELOAD": str(built("wrong_clock.c", tmp_path)), "CLOCK_OFFSET": str(clock)}
    (tmp_path / "proxy").mkdir()
    with (
        running(tmp_path / "proxy", upstream) as proxy,
        web_server("nginx", tmp_path, proxy.port, **ahead) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, headers={"Origin": SHOP}) as client,
    ):

        def visit() -> dict[str, int]:
            push = {"v": 1, "s": "s" * 20, "pushes": [{"id": new_id(), "call": track("blogger")}]}
            statuses = {path: client.get(path).status_code for path in (*scripts, "/scq/scq.debug.js", "/scq/push")}
            return statuses | {"push": client.post("/scq/push", json=push).status_code}

        up = dict.fromkeys(scripts, 200) | {"/scq/scq.debug.js": 200, "/scq/push": 405, "push": 202}
        assert visit() == up
        script = client.get("/scq/scq.js").content
        assert proxy.stop() == 0
        clock.write_text("86400")
        down = dict.fromkeys(scripts, 200) | {"/scq/scq.debug.js": 502, "/scq/push": 502, "push": 502}
        assert visit() == down
        assert client.get("/scq/scq.js").content == script
        assert in_cache(tmp_path) == {"/scq/scq.js", "/prod/TEAMID.js"}
        proxy.start()
        assert visit() == up


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_web_servers_log_has_no_query_strings_and_no_cookies(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "scq.log"
    with web_server(kind, tmp_path) as port:
        ask(port, "/scq/scq.js?email=ada@example.com", {"Cookie": "scq=ada-cookie", "Referer": "https://a/?ada"})
        eventually(lambda: log.exists() and "/scq/scq.js" in log.read_text())
    assert "ada" not in log.read_text()


def check(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=120, check=False)
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
    assert "Type=notify" in lines
    assert not [line for line in lines if re.match(r"Environment=SCQ_(API_KEY|SECRET_KEYS|IDENTITY_KEYS)=", line)]


def test_the_unit_offers_no_reload_because_its_secrets_are_copies() -> None:
    text = (SELF_HOST / "scq-proxy.service").read_text()
    assert "LoadCredential=" in text
    assert "ExecReload" not in text


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


def test_the_example_settings_are_complete_but_for_the_secrets() -> None:
    secrets = {"SCQ_API_KEY": "k", "SCQ_SECRET_KEYS": "s" * 32, "SCQ_IDENTITY_KEYS": "i" * 32}
    settings = load_settings(secrets, SELF_HOST / "scq-proxy.env")
    assert settings.tags == ("newsletter", "cart: *")
    assert settings.origins == frozenset({"https://www.example.com"})
