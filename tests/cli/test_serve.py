"""`scq-proxy serve`: what it says, and what it refuses to serve with."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
from collections.abc import Sequence
from contextlib import closing, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from proxy.errors import ScqError
from proxy.web.server import Site, listen, run, serve
from tests.support.commands import ask, line, scq, settings, started, taken_port
from tests.support.live import PATIENCE_SECONDS, free_port, nowhere
from tests.support.server import ADMIN_TOKEN, Server, new_id, running, track

ROOT = os.geteuid() == 0
REQUIRED = ("SCQ_API_KEY", "SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_ORIGINS", "SCQ_TAGS")


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_IDENTIFY": "asserted"}


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
    assert "SCQ_ORIGIN: is not a setting of scq-proxy; did you mean SCQ_ORIGINS?" in said.err


def test_serve_says_so_when_the_port_is_in_use(tmp_path: Path) -> None:
    with taken_port() as port:
        said = scq("serve", cwd=tmp_path, **settings(tmp_path, SCQ_PORT=str(port)))
    assert said.code == 2
    assert f"SCQ_PORT: cannot listen on 127.0.0.1 port {port}: Address already in use" in said.err
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
        assert f"{tmp_path}/nowhere is not a directory" in said.out + said.err
    assert not (tmp_path / "nowhere").exists()


def test_serve_refuses_a_store_where_no_file_can_be_made(tmp_path: Path) -> None:
    said = scq("serve", cwd=tmp_path, **settings(tmp_path, SCQ_STORE="sqlite:////proc/scq.db"))
    assert said.code == 2
    assert "/proc/scq.db cannot be created" in said.err


@pytest.mark.skipif(ROOT, reason="root may write in a read-only directory")
def test_serve_and_check_refuse_a_read_only_directory(tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir(mode=0o555)
    given = settings(tmp_path, SCQ_STORE=f"sqlite:///{place}/scq.db")
    served, checked = scq("serve", cwd=tmp_path, **given), scq("check", cwd=tmp_path, **given)
    assert (served.code, checked.code) == (2, 1)
    assert f"{place}/scq.db cannot be created: Permission denied" in served.err
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
        (garbage, "cannot be read as an SQLite database (file is not a database). Move it away, or change SCQ_STORE"),
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


def test_serve_says_where_it_serves_and_stops_on_sigint_with_0(tmp_path: Path) -> None:
    given = settings(tmp_path, SCQ_LOG_LEVEL="info", SCQ_STORE="sqlite:///scq.db")
    with started("serve", cwd=tmp_path, **given) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert f"Serving /scq on http://127.0.0.1:{given['SCQ_PORT']}, store {tmp_path}/scq.db" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert line(process) == ""


WITHOUT_A_PART = """
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
del HttpToolsProtocol._start_asgi_task  # uvicorn has it from 0.45 on
"""


def test_serve_ends_with_a_sentence_if_it_does_not_answer_itself(tmp_path: Path) -> None:
    """As with a uvicorn that does not fit: nobody hears that it serves, and nobody's request is called malformed."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_A_PART)
    said = scq("serve", cwd=tmp_path, PYTHONPATH=str(tmp_path), **settings(tmp_path, SCQ_LOG_LEVEL="info"))
    assert said.code == 2
    assert "Serving" not in said.err
    assert "GET /healthz returned “HTTP/1.1 503 Service Unavailable”" in said.err
    assert f"uvicorn {version('uvicorn')}" in said.err
    assert said.err.count("a fault in this program: AttributeError at http1.py") == 1


WITH_A_FAULT = """
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

def on_body(self, body):
    self.is_not_there

HttpToolsProtocol.on_body = on_body
"""


def test_a_fault_that_only_pushes_meet_is_503_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITH_A_FAULT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running(tmp_path, nowhere(), SCQ_ADMIN_TOKEN=ADMIN_TOKEN) as server:
        for _ in range(3):
            answer = server.post([{"id": new_id(), "call": track("cart-1")}])
            assert (answer.status_code, answer.json()["error"]) == (503, "defect")
        assert server.log.count("a fault in this program: AttributeError at sitecustomize.py") == 1
        metrics = server.client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).text
        assert "\nscq_defects_total 3.0\n" in metrics
        said = ask(server, "status")
        assert said.code == 1
        assert "(3 since the start" in said.out


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("", 200 if scope["path"] == "/well" else 500)(scope, receive, send)


@pytest.mark.parametrize("path", ["/well", "/ill"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_server_asks_itself_through_its_own_socket(tmp_path: Path, family: socket.AddressFamily, path: str) -> None:
    host = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}.get(family, "")
    with socket.socket(family) as listener:
        listener.bind((host, 0) if host else str(tmp_path / "scq.sock"))
        site = Site(Starlette(routes=[Mount("/", ok)]), "", 0, listener, path)
        told: list[int] = []

        def listening(ports: Sequence[int]) -> None:
            told.extend(ports)
            os.kill(os.getpid(), signal.SIGTERM)

        if path == "/well":
            run(serve([site], listening))
            assert bool(told[0]) is bool(host)
        else:
            with pytest.raises(ScqError, match=r"returned “HTTP/1\.1 500 "):
                run(serve([site], listening))
            assert told == []


# Where it listens


@pytest.mark.parametrize(("host", "both"), [("::", True), ("0::0", True), ("::1", False)])
def test_all_of_ipv6_is_all_of_ipv4_too(host: str, both: bool) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("::1", port)).close()
        with nullcontext() if both else pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()


def test_a_visitor_by_ipv4_has_the_same_address_there(tmp_path: Path) -> None:
    with running(tmp_path, nowhere(), SCQ_HOST="::", SCQ_RATE_PER_IP="1") as server:
        forwarded = {"X_Forwarded_For": "192.0.2.7"}
        codes = [server.post([{"id": new_id(), "call": track("cart-1")}], **forwarded).status_code for _ in range(5)]
        assert 429 in codes
        assert server.post([{"id": new_id(), "call": track("cart-1")}]).status_code == 202, (
            "loopback is trusted there too"
        )


def test_serve_refuses_a_store_that_another_server_uses(server: Server) -> None:
    said = ask(server, "serve", SCQ_PORT=str(free_port()))
    assert said.code == 2
    assert f"{server.store} is in use by another process" in said.err
    assert ask(server, "status").code == 0  # the refused one did not take the socket away


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
