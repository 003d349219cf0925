"""The control socket: how commands reach the running server, and what else may be said to it."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from proxy.ops.control import socket_path
from proxy.sandbox.api import Sandbox
from tests.support.commands import ask, report, spawn
from tests.support.live import PATIENCE_SECONDS
from tests.support.server import Browser, Server, new_email, running


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_IDENTIFY": "asserted"}


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
    assert "No server is running" in ask(server, "status").out
    server.start()
    assert report(server)["delivery"]["running"] is True


def test_a_store_with_a_long_path_is_reached_too(tmp_path: Path, sandbox: Sandbox, upstream: str) -> None:
    directory = tmp_path / ("deep" * 20) / ("down" * 20)
    directory.mkdir(parents=True)
    with running(directory, upstream) as server:
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
    for process in [spawn("status", "--json", cwd=server.directory, **server.settings) for _ in range(4)]:
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0
        assert json.loads(out)["delivery"]["running"] is True


def control(server: Server, sent: bytes) -> bytes:
    """Say something to the control socket and hang up one's own side; returns all that it says."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
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
        connection.settimeout(PATIENCE_SECONDS)
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
        process = spawn("status", cwd=tmp_path)
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (2, "")
    assert "The running server disconnected. Run the command again." in err
