"""The command line as a stranger meets it: the installed `scq-proxy`, in an empty directory, with a clean environment.

Every call goes through `scq`, which holds it to the promises of `proxy.cli`: exit code 0, 1 or 2, and no traceback, whatever happens.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from proxy import __version__
from proxy.core.reasons import Reason
from proxy.core.tokens import TokenCodec, TokenProblem, Vouched
from proxy.ops.control import socket_path
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from tests.support.live import eventually, free_port, serving
from tests.support.server import (
    API_KEY,
    IDENTITY_KEY,
    KID_KEY,
    Browser,
    Server,
    command,
    environment,
    identify,
    new_email,
    running,
    token,
    track,
)

SECONDS = 60.0
COMMANDS = (
    "serve",
    "deliver",
    "demo",
    "sandbox",
    "snippet",
    "keygen",
    "token",
    "check",
    "status",
    "erase",
    "migrate",
    "copy",
    "dead",
)
ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


def scq(*arguments: str, cwd: Path, **environ: str) -> Said:
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=clean(environ), capture_output=True, timeout=SECONDS, check=False
    )
    said = Said(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in said.out + said.err, said.err
    assert said.code in (0, 1, 2)
    return said


def clean(environ: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **environ}


@contextmanager
def started(*arguments: str, cwd: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until a signal; killed at the end if it is still there."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=clean(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# Help and version


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_the_help_lists_every_command_with_a_whole_sentence(tmp_path: Path, columns: str) -> None:
    said = scq("--help", cwd=tmp_path, COLUMNS=columns)
    assert (said.code, said.err) == (0, "")
    listed = re.findall(r"^  ([a-z]+) {2,}(\S.*)$", said.out.partition("Commands:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(COMMANDS)
    assert all(re.fullmatch(r"[A-Z].*\.", sentence) for _, sentence in listed)
    assert "README" in said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_fits_a_narrow_terminal_and_ends_its_sentences(tmp_path: Path, name: str) -> None:
    said = scq(name, "--help", cwd=tmp_path, COLUMNS="60")
    assert (said.code, said.err) == (0, "")
    assert f"Usage: scq-proxy {name}" in said.out
    assert all(len(row) <= 60 for row in said.out.splitlines())
    description = said.out.partition("\n\n")[2].partition("Options:")[0].partition("Arguments:")[0]
    assert re.fullmatch(r"\s*[A-Z].*[.})]\s*", description, re.DOTALL)
    assert "--help" in said.out


def test_without_a_command_it_shows_the_help_and_exits_2(tmp_path: Path) -> None:
    said = scq(cwd=tmp_path)
    assert said.code == 2
    assert "Commands:" in said.out + said.err


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert scq("--version", cwd=tmp_path) == Said(0, f"scq-proxy {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["nonsense"], ["status", "--nonsense"], ["token"], ["sandbox", "--port", "x"]])
def test_what_cannot_be_understood_is_named_and_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    said = scq(*arguments, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "Error: " in said.err
    assert "--help" in said.err or "-h" in said.err


def test_a_reader_that_has_gone_is_no_failure(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command("keygen"), cwd=tmp_path, env=clean({}), stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


# keygen, token, snippet


def test_keygen_prints_43_url_safe_characters_and_nothing_else(tmp_path: Path) -> None:
    first, second = scq("keygen", cwd=tmp_path), scq("keygen", cwd=tmp_path)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", first.out)
    assert (first.code, first.err) == (0, "")
    assert first.out != second.out


def test_a_token_identifies_its_address(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    assert (said.code, said.err) == (0, "")
    vouched = TokenCodec([(None, IDENTITY_KEY)]).verify(said.out.strip(), time.time())
    assert isinstance(vouched, Vouched)
    assert vouched.email == "ada@example.com"


def test_a_token_lasts_as_long_as_asked(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", "--minutes", "1", cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    codec = TokenCodec([(None, IDENTITY_KEY)])
    assert isinstance(codec.verify(said.out.strip(), time.time()), Vouched)
    problem = codec.verify(said.out.strip(), time.time() + 120)
    assert isinstance(problem, TokenProblem)
    assert problem.reason is Reason.EXPIRED_TOKEN


def test_a_token_vouches_for_a_contact(tmp_path: Path) -> None:
    contact = '{"firstName": "Ada", "tags": ["paid user"]}'
    said = scq("token", "ada@example.com", "--contact", contact, cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    vouched = TokenCodec([(None, IDENTITY_KEY)]).verify(said.out.strip(), time.time())
    assert isinstance(vouched, Vouched)
    assert (vouched.attributes.fields, tuple(vouched.attributes.tags)) == ({"firstName": "Ada"}, ("paid user",))


def test_a_token_is_signed_with_a_key_that_has_a_kid_if_there_is_no_other(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", cwd=tmp_path, SCQ_IDENTITY_KEYS=f"backend={KID_KEY}")
    assert isinstance(TokenCodec([("backend", KID_KEY)]).verify(said.out.strip(), time.time()), Vouched)


def test_a_token_is_signed_with_a_key_from_the_env_file(tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text(f"SCQ_IDENTITY_KEYS={IDENTITY_KEY}\n", "utf-8")
    said = scq("token", "ada@example.com", "--env-file", "site.env", cwd=tmp_path)
    assert isinstance(TokenCodec([(None, IDENTITY_KEY)]).verify(said.out.strip(), time.time()), Vouched)


def test_without_keys_no_token_is_made(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "SCQ_IDENTITY_KEYS: is required" in said.err
    assert "for example: SCQ_IDENTITY_KEYS=" in said.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "email"),
        (["a b@c.co"], "email"),
        (["ada@example.com", "--contact", "{"], "--contact"),
        (["ada@example.com", "--contact", "[]"], "--contact"),
        (["ada@example.com", "--contact", '{"tags": 3}'], "--contact"),
        (["ada@example.com", "--contact", "[" * 100_000], "--contact"),
        (["ada@example.com", "--minutes", "0"], "--minutes"),
        (["ada@example.com", "--minutes", "61"], "--minutes"),
    ],
)
def test_a_token_that_would_not_do_is_not_made(tmp_path: Path, arguments: list[str], named: str) -> None:
    said = scq("token", *arguments, cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    assert (said.code, said.out) == (2, "")
    assert named in said.err.lower()


def test_the_snippet_is_all_that_is_printed_on_standard_output(tmp_path: Path) -> None:
    said = scq("snippet", cwd=tmp_path)
    embed = '<script>window._scq = window._scq || [];</script>\n<script async src="/scq/scq.js"></script>\n'
    assert (said.code, said.out) == (0, embed)
    assert "Content-Security-Policy" in said.err


def test_the_snippet_follows_the_prefix_of_the_environment_and_of_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SCQ_PREFIX=/from/file\n", "utf-8")
    assert 'src="/from/file/scq.js"' in scq("snippet", cwd=tmp_path).out
    assert 'src="/given/scq.js"' in scq("snippet", cwd=tmp_path, SCQ_PREFIX="/given").out


def test_the_snippet_names_another_host_if_asked(tmp_path: Path) -> None:
    said = scq("snippet", "--host", "t.example.com", cwd=tmp_path)
    assert 'src="https://t.example.com/scq/scq.js"' in said.out


@pytest.mark.parametrize("host", ["https://t.example.com", "t.example.com/", 'x"><script>', "a b"])
def test_the_snippet_takes_a_host_name_only(tmp_path: Path, host: str) -> None:
    said = scq("snippet", "--host", host, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "--host" in said.err
    assert "t.example.com" in said.err


# sandbox and demo


def test_the_sandbox_prints_its_addresses_answers_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    with started("sandbox", "--port", "0", "--key", "k", "--team-id", "t", cwd=tmp_path) as process:
        rows = [line(process).split() for _ in range(5)]
        base = rows[1][1].rstrip("/")
        assert rows[2:4] == [["rest", f"{base}/api/v1/rest"], ["legacy", f"{base}/api/v1"]]
        body, headers = {"email": "a@b.co"}, {"X-Team-ApiKey": "k", "api_key": "k"}
        for path in ("/api/v1/rest/contact/identify", "/api/v1/contact/identify?team_id=t"):
            assert httpx.post(base + path, json=body, headers=headers).status_code == 200
        assert "SendX sandbox" in httpx.get(base).text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_hanging_answer_does_not_keep_the_sandbox_from_stopping(tmp_path: Path) -> None:
    with started("sandbox", "--port", "0", cwd=tmp_path) as process:
        base = [line(process).split() for _ in range(5)][1][1].rstrip("/")
        httpx.post(f"{base}/sandbox/faults", json={"standing": {"kind": "hang"}})
        with closing(socket.create_connection(("127.0.0.1", httpx.URL(base).port or 0))) as client:
            client.sendall(b"POST /api/v1/rest/contact/identify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            eventually(lambda: httpx.get(f"{base}/sandbox/requests").json()["total"])
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("name", ["sandbox", "demo"])
def test_a_port_in_use_is_said_of_the_option(tmp_path: Path, name: str) -> None:
    with taken_port() as port:
        said = scq(name, "--port", str(port), cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"127.0.0.1 port {port} cannot be listened on: Address already in use" in said.err
    assert f"For example: scq-proxy {name} --port" in said.err
    assert "SCQ_" not in said.err


def test_the_demo_says_so_when_the_sandbox_port_is_in_use(tmp_path: Path) -> None:
    with taken_port() as port:
        said = scq("demo", "--port", str(free_port()), "--sandbox-port", str(port), cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"port {port}" in said.err
    assert "--sandbox-port" in said.err


def test_the_demo_says_what_is_wrong_with_an_origin(tmp_path: Path) -> None:
    said = scq("demo", "--port", str(free_port()), "--origin", "http://shop.example.com", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "--origin" in said.err
    assert "https" in said.err


def test_the_demo_prints_both_addresses_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    ports = [str(free_port()), str(free_port())]
    with started("demo", "--port", ports[0], "--sandbox-port", ports[1], cwd=tmp_path) as process:
        printed = "".join(line(process) for _ in range(5))
        urls = re.findall(r"http://\S+", printed)
        assert urls == [f"http://127.0.0.1:{port}" for port in ports]
        assert [httpx.get(url).status_code for url in urls] == [200, 200]
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    assert list(tmp_path.iterdir()) == []


# serve: what it refuses


def settings(cwd: Path, **more: str) -> dict[str, str]:
    given = environment("http://127.0.0.1:9/api/v1/rest", cwd / "scq.db", **{"SCQ_PORT": str(free_port()), **more})
    return {name: text for name, text in given.items() if text}


REQUIRED = ("SCQ_API_KEY", "SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_ORIGINS", "SCQ_TAGS")


def test_serve_names_every_missing_setting_with_an_example(tmp_path: Path) -> None:
    said = scq("serve", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    for name in REQUIRED:
        assert re.search(rf"^{name}: is required: .+\n    for example: {name}=.+$", said.err, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", REQUIRED)
def test_serve_does_not_start_without_a_required_setting(tmp_path: Path, name: str) -> None:
    given = settings(tmp_path)
    del given[name]
    said = scq("serve", cwd=tmp_path, **given)
    assert said.code == 2
    assert f"{name}: is required" in said.err
    assert said.err.count("is required") == 1


@pytest.mark.parametrize("name", ["SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_SERVER_KEYS", "SCQ_ADMIN_TOKEN"])
def test_serve_refuses_a_short_secret_and_does_not_show_it(tmp_path: Path, name: str) -> None:
    short = "S3cr3t" * 5 + "x"
    said = scq("serve", cwd=tmp_path, **settings(tmp_path, **{name: short}))
    assert (said.code, said.out) == (2, "")
    assert f"{name}: has 31 characters where at least 32 are needed" in said.err
    assert "scq-proxy keygen" in said.err
    assert short not in said.err


def test_serve_refuses_an_unknown_setting_and_suggests_the_one_that_was_meant(tmp_path: Path) -> None:
    said = scq("serve", cwd=tmp_path, **settings(tmp_path, SCQ_ORIGIN="https://x.example"))
    assert (said.code, said.out) == (2, "")
    assert "SCQ_ORIGIN: is no setting of scq-proxy; did you mean SCQ_ORIGINS?" in said.err


def test_serve_says_so_when_the_port_is_in_use(tmp_path: Path) -> None:
    with taken_port() as port:
        said = scq("serve", cwd=tmp_path, **settings(tmp_path, SCQ_PORT=str(port)))
    assert said.code == 2
    assert f"SCQ_PORT: 127.0.0.1 port {port} cannot be listened on: Address already in use" in said.err
    assert "for example: SCQ_PORT=" in said.err


def test_serve_says_so_when_the_env_file_is_not_there(tmp_path: Path) -> None:
    said = scq("serve", "--env-file", "nowhere.env", cwd=tmp_path, **settings(tmp_path))
    assert said.code == 2
    assert "nowhere.env: cannot be read" in said.err


def test_serve_refuses_a_store_in_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    given = settings(tmp_path, SCQ_STORE=f"sqlite:///{tmp_path}/nowhere/scq.db")
    for name in ("serve", "check"):
        said = scq(name, cwd=tmp_path, **given)
        assert said.code == (2 if name == "serve" else 1)
        assert f"{tmp_path}/nowhere is no directory" in said.out + said.err
    assert not (tmp_path / "nowhere").exists()


def test_serve_refuses_a_store_where_no_file_can_be_made(tmp_path: Path) -> None:
    said = scq("serve", cwd=tmp_path, **settings(tmp_path, SCQ_STORE="sqlite:////proc/scq.db"))
    assert said.code == 2
    assert "/proc/scq.db cannot be made" in said.err


@pytest.mark.skipif(ROOT, reason="root may write in a read-only directory")
def test_serve_and_check_refuse_a_read_only_directory(tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir(mode=0o555)
    given = settings(tmp_path, SCQ_STORE=f"sqlite:///{place}/scq.db")
    served, checked = scq("serve", cwd=tmp_path, **given), scq("check", cwd=tmp_path, **given)
    assert (served.code, checked.code) == (2, 1)
    assert f"{place}/scq.db cannot be made: Permission denied" in served.err
    assert f"may not write in {place}" in checked.out


@pytest.mark.skipif(not ROOT, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["serve", "status", "check"])
def test_a_store_of_another_user_is_refused(tmp_path: Path, name: str) -> None:
    given = settings(tmp_path)
    with running(tmp_path, given["SCQ_UPSTREAM"]) as server:
        assert server.stop() == 0
    os.chown(tmp_path / "scq.db", 65534, 65534)
    said = scq(name, cwd=tmp_path, **given)
    assert said.code == (1 if name == "check" else 2)
    assert "belongs to another user" in said.out + said.err


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database\n" * 1_000)


@pytest.mark.parametrize("name", ["serve", "status", "check"])
@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (foreign_database, "is a database of another program"),
        (garbage, "cannot be read as an SQLite database"),
    ],
)
def test_a_store_that_is_none_of_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, name: str, make: Any, wrong: str
) -> None:
    store = tmp_path / "scq.db"
    make(store)
    before = store.read_bytes()
    said = scq(name, cwd=tmp_path, **settings(tmp_path))
    assert said.code == (1 if name == "check" else 2)
    assert wrong in said.out + said.err
    assert store.read_bytes() == before


# A server to talk to


@pytest.fixture(scope="module")
def sendx() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=API_KEY)
    with serving(app) as url:
        yield app.state.sandbox, f"{url}/api/v1/rest"


@pytest.fixture
def healed(sendx: tuple[Sandbox, str]) -> Iterator[tuple[Sandbox, str]]:
    """The sandbox without faults, before and after."""
    sendx[0].heal()
    yield sendx
    sendx[0].heal()


@pytest.fixture
def server(tmp_path: Path, healed: tuple[Sandbox, str]) -> Iterator[Server]:
    with running(tmp_path, healed[1], SCQ_IDENTIFY="asserted") as server:
        yield server


def ask(server: Server, *arguments: str, **environ: str) -> Said:
    """A command with the server's own settings."""
    return scq(*arguments, cwd=server.directory, **server.settings | environ)


def report(server: Server) -> dict[str, Any]:
    said = ask(server, "status", "--json")
    assert said.out.count("\n") == 1
    found: dict[str, Any] = json.loads(said.out)
    assert said.code == (1 if found["problems"] else 0)
    return found


def test_serve_says_where_it_serves_and_stops_on_sigint_with_0(tmp_path: Path) -> None:
    given = settings(tmp_path, SCQ_LOG_LEVEL="info", SCQ_STORE="sqlite:///scq.db")
    with started("serve", cwd=tmp_path, **given) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert f"Serving /scq on http://127.0.0.1:{given['SCQ_PORT']}, store {tmp_path}/scq.db" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert line(process) == ""


def test_serve_refuses_a_store_that_another_server_uses(server: Server) -> None:
    said = ask(server, "serve", SCQ_PORT=str(free_port()))
    assert said.code == 2
    assert f"{server.store} is in use by another process" in said.err
    assert ask(server, "status").code == 0  # the refused one did not take the socket away


# status


def test_status_asks_the_running_server(server: Server) -> None:
    said = ask(server, "status")
    assert (said.code, said.err) == (0, f"Store: {server.store}\n")
    assert said.out.startswith("All is well.\n")
    assert re.search(r"gate to SendX +open", said.out)
    assert report(server)["delivery"]["running"] is True


def test_status_needs_no_other_setting_than_the_store(server: Server) -> None:
    said = scq("status", cwd=server.directory)
    assert (said.code, said.err) == (0, f"Store: {server.store}\n")


def test_status_reads_the_store_when_no_server_runs(server: Server) -> None:
    Browser(server).logs_in(new_email())
    eventually(lambda: report(server)["counters"].get("delivered"))
    assert server.stop() == 0
    said = ask(server, "status")
    assert said.code == 0
    assert "No server is running" in said.out
    assert re.search(r"delivered so far +1\n", said.out)
    assert report(server)["delivery"] is None


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_status_without_a_store_says_so_and_makes_none(tmp_path: Path, json_flag: tuple[str, ...]) -> None:
    said = scq("status", *json_flag, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"There is no store at {tmp_path}/scq.db" in said.err
    assert list(tmp_path.iterdir()) == []


def test_status_exits_1_while_sending_is_halted(server: Server, healed: tuple[Sandbox, str]) -> None:
    healed[0].stand("*", Fault(status=401, body='{"status":401,"message":"[/] [red]no[/red] \\u202e key"}'))
    Browser(server).logs_in(new_email())
    halted = eventually(lambda: (found := report(server))["problems"] and found)
    assert halted["delivery"]["halted"] == "401"
    said = ask(server, "status")
    assert said.code == 1
    assert said.out.startswith("! Sending is halted: ")
    assert "[/] [red]no[/red]" in said.out
    assert "\u202e" not in said.out
    assert "All is well" not in said.out


def test_status_exits_1_while_there_are_dead_letters(server: Server, healed: tuple[Sandbox, str]) -> None:
    email = new_email()
    healed[0].stand(email, Fault(status=422))
    Browser(server).logs_in(email)
    eventually(lambda: report(server)["dead"])
    running_said = ask(server, "status")
    assert server.stop() == 0
    for said in (running_said, ask(server, "status")):
        assert said.code == 1
        assert re.search(r"^! 1 dead letter", said.out, re.MULTILINE)
        assert re.search(r"^  dead letters +1$", said.out, re.MULTILINE)
        assert email not in said.out + said.err


HOSTILE = {
    "[bold]b[/bold]": '"[bold]b[/bold]"',
    "[/]": '"[/]"',
    "a\x1b[31mred\x1b[0m": r'"a\u001b[31mred\u001b[0m"',
    "a\nnew\r\tline": r'"a\nnew\r\tline"',
    "csi \x9b31m": r'"csi \x9b31m"',
    "turned \u202e\u2066around": r'"turned \u202e\u2066around"',
    'quote " and \\': r'"quote \" and \\"',
    "Zoë 好": '"Zoë 好"',
    "x" * 200: '"' + "x" * 200 + '"',
}


def test_status_lists_refused_names_with_their_setting_and_escapes_what_is_hostile(server: Server) -> None:
    visitor, staff = Browser(server), Browser(server)
    visitor.push(identify(email=new_email(), company="ACME", customFields={"Age [/]\n": "3"}))
    staff.logs_in(new_email())
    for _ in range(2):  # counted once in a request
        assert staff.statuses(track("vip only"), track("vip only")) == ["tag-not-allowed"] * 2
    for tag in HOSTILE:
        assert visitor.statuses(track(tag)) == ["tag-not-allowed"]
    said = ask(server, "status")
    assert said.code == 0
    rows = re.findall(r"^ +(\d+) x  (SCQ_\w+) +(.+)$", said.out, re.MULTILINE)
    assert ("2", "SCQ_TAGS", '"vip only"') in rows
    assert {name for _, setting, name in rows if setting == "SCQ_ASSERTED_TAGS"} == set(HOSTILE.values())
    fields = {name for _, setting, name in rows if setting == "SCQ_ASSERTED_FIELDS"}
    assert '"company"' in fields
    assert any(r"Age [/]\n" in name for name in fields)
    assert all(character.isprintable() or character == "\n" for character in said.out)
    assert {one["name"] for one in report(server)["refused_names"]} >= set(HOSTILE)
    narrow, latin = ask(server, "status", COLUMNS="40"), ask(server, "status", PYTHONIOENCODING="ascii")
    assert f'"{"x" * 200}"' in narrow.out  # whole, to be copied into the setting
    assert r'"Zo\xeb \u597d"' in latin.out


# check


def test_check_finds_nothing_to_mend_and_counts_on_no_store(tmp_path: Path) -> None:
    said = scq("check", cwd=tmp_path, **settings(tmp_path, SCQ_IDENTIFY="asserted"))
    assert (said.code, said.err) == (0, "")
    assert all(row.startswith("ok ") for row in said.out.splitlines())
    assert f"{tmp_path}/scq.db does not exist yet, serve makes it" in said.out
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


def test_check_sends_for_real(tmp_path: Path, healed: tuple[Sandbox, str]) -> None:
    sandbox, upstream = healed
    email = new_email()
    given = settings(tmp_path, SCQ_IDENTIFY="asserted", SCQ_UPSTREAM=upstream)
    said = scq("check", "--send", email, cwd=tmp_path, **given)
    assert said.code == 0
    assert re.search(r"^ok +SendX: it took the identify", said.out, re.MULTILINE)
    assert sandbox.contact(email) is not None
    refused = scq("check", "--send", email, cwd=tmp_path, **given | {"SCQ_API_KEY": "wrong-key-1234"})
    assert refused.code == 1
    assert "401 Unauthorized" in refused.out
    assert "Check SCQ_API_KEY" in refused.out
    assert "wrong-key-1234" not in refused.out + refused.err


def test_check_says_when_sendx_cannot_be_reached(tmp_path: Path) -> None:
    upstream = f"http://127.0.0.1:{free_port()}/api/v1/rest"
    said = scq("check", "--send", "ada@example.com", cwd=tmp_path, **settings(tmp_path, SCQ_UPSTREAM=upstream))
    assert said.code == 1
    assert re.search(r"^mend SendX: it did not take .*no connection.*SCQ_UPSTREAM", said.out, re.MULTILINE)


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
    for found in (
        "script: served, compressed with br",
        "push: ack",
        "cookie: scq is set",
        "client address seen: 127.0",
    ):
        assert f"ok   {found}" in said.out


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
        async with httpx.AsyncClient(base_url=server.url) as client:
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
    tmp_path: Path, healed: tuple[Sandbox, str], lost: str, trusted: str, found: str
) -> None:
    with running(tmp_path, healed[1], SCQ_TRUSTED_PROXIES=trusted) as server:

        async def on_the_way(request: Request) -> Response:
            kept = {name: text for name, text in request.headers.items() if name not in ("host", lost)}
            async with httpx.AsyncClient(base_url=server.url) as client:
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
        process = subprocess.Popen(
            command("check", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}/scq"),
            cwd=tmp_path,
            env=clean(settings(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (1, "")
    assert "cannot be reached (" in out


# The control socket


def test_the_control_socket_is_the_owners_alone_and_goes_with_the_server(server: Server) -> None:
    path = socket_path(server.store)
    assert path.parent == server.directory
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.stop() == 0
    assert not path.exists()


def test_a_socket_left_by_a_killed_server_hinders_nobody(server: Server) -> None:
    Browser(server).logs_in(new_email())
    server.kill()
    assert socket_path(server.store).exists()
    said = ask(server, "status")
    assert said.code == 0
    assert "No server is running" in said.out
    server.start()
    assert report(server)["delivery"]["running"] is True


def test_a_store_with_a_long_path_is_reached_too(tmp_path: Path, healed: tuple[Sandbox, str]) -> None:
    directory = tmp_path / ("deep" * 20) / ("down" * 20)
    directory.mkdir(parents=True)
    with running(directory, healed[1]) as server:
        path = socket_path(server.store)
        assert len(os.fsencode(path)) < 108
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert report(server)["delivery"]["running"] is True
        server.kill()
        assert report(server)["delivery"] is None
        server.start()
        assert report(server)["delivery"]["running"] is True
        assert server.stop() == 0
        assert not path.exists()


def test_two_commands_at_once_are_both_answered(server: Server) -> None:
    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command("status", "--json"),
            cwd=server.directory,
            env=clean(server.settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    for process in [spawn() for _ in range(4)]:
        out, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert json.loads(out)["delivery"]["running"] is True


def control(server: Server, sent: bytes) -> bytes:
    """Say something to the control socket and hang up one's own side; returns all that it says."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(socket_path(server.store)))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
        return received


@pytest.mark.parametrize(
    "sent",
    [
        b"\n",
        b"",
        b"hello\n",
        b"\xff\xfe\n",
        b"[]\n",
        b'"status"\n',
        b"{}\n",
        b'{"command":"explode"}\n',
        b'{"command":["status"]}\n',
        b'{"command":' + b"[" * 50_000 + b"\n",
        b'{"command":{"a":1}',
    ],
)
def test_garbage_on_the_control_socket_is_refused_and_harms_nothing(server: Server, sent: bytes) -> None:
    answer = json.loads(control(server, sent))
    assert list(answer) == ["error"]
    assert report(server)["delivery"]["running"] is True
    assert "Traceback" not in server.log


def test_a_line_that_does_not_end_is_given_up(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(socket_path(server.store)))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(b"x" * 64_000_000)
    assert report(server)["delivery"]["running"] is True


def test_a_connection_that_says_nothing_does_not_keep_the_server_from_stopping(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(server.store)))
        assert report(server)["delivery"]["running"] is True
        assert server.stop() == 0


def test_commands_say_so_when_the_server_hangs_up_on_them(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(tmp_path / "scq.db")))
        listener.listen()
        process = subprocess.Popen(
            command("status"), cwd=tmp_path, env=clean({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (2, "")
    assert "The running server broke off: ask again." in err


# Several processes


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["serve", "--workers", "2"], "SQLite serves one process"),
        (["serve", "--no-delivery"], "the process that takes pushes has to send them"),
        (["deliver"], "the process that takes pushes sends them"),
    ],
)
def test_sqlite_is_for_one_process_that_does_it_all(tmp_path: Path, arguments: list[str], why: str) -> None:
    said = scq(*arguments, cwd=tmp_path, **settings(tmp_path))
    assert (said.code, said.out) == (2, "")
    assert why in " ".join(said.err.split())
    assert "set SCQ_STORE=postgresql://" in " ".join(said.err.split())
    assert list(tmp_path.iterdir()) == []


def test_an_sqlite_store_needs_no_migration(tmp_path: Path) -> None:
    said = scq("migrate", cwd=tmp_path, SCQ_STORE="sqlite:///scq.db")
    assert (said.code, list(tmp_path.iterdir())) == (0, [])
    assert "scq-proxy serve brings it up to date" in said.out


@pytest.mark.parametrize("arguments", [["migrate"], ["status"], ["dead", "list"], ["erase", "ann@example.com"]])
def test_a_client_that_is_not_installed_is_named(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available')")
    given = {"SCQ_STORE": "postgresql://scq:~hush~@127.0.0.1:1/scq", "PYTHONPATH": str(tmp_path)}
    said = scq(*arguments, cwd=tmp_path, **given)
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "Store: PostgreSQL at 127.0.0.1:1/scq\n"
        "PostgreSQL needs a client that is not installed: pip install 'scq-proxy[postgres]'.\n"
    )
