"""`scq-proxy sandbox` and `scq-proxy demo`, which serve until Ctrl-C and leave nothing behind."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.commands import line, scq, started, taken_port
from tests.support.live import PATIENCE_SECONDS, eventually, free_port


def test_the_sandbox_prints_its_addresses_answers_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    with started("sandbox", "--port", "0", "--key", "k", "--team-id", "t", cwd=tmp_path) as process:
        rows = [line(process).split() for _ in range(5)]
        base = rows[1][1].rstrip("/")
        assert rows[2:4] == [["rest", f"{base}/api/v1/rest"], ["legacy", f"{base}/api/v1"]]
        body, headers = {"email": "a@b.co"}, {"X-Team-ApiKey": "k", "api_key": "k"}
        for path in ("/api/v1/rest/contact/identify", "/api/v1/contact/identify?team_id=t"):
            assert httpx.post(base + path, json=body, headers=headers, timeout=PATIENCE_SECONDS).status_code == 200
        assert "SendX sandbox" in httpx.get(base, timeout=PATIENCE_SECONDS).text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_hanging_answer_does_not_keep_the_sandbox_from_stopping(tmp_path: Path) -> None:
    with started("sandbox", "--port", "0", cwd=tmp_path) as process:
        base = [line(process).split() for _ in range(5)][1][1].rstrip("/")
        httpx.post(f"{base}/sandbox/faults", json={"standing": {"kind": "hang"}}, timeout=PATIENCE_SECONDS)
        with closing(socket.create_connection(("127.0.0.1", httpx.URL(base).port or 0))) as client:
            client.sendall(b"POST /api/v1/rest/contact/identify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            eventually(lambda: httpx.get(f"{base}/sandbox/requests", timeout=PATIENCE_SECONDS).json()["total"])
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("name", ["sandbox", "demo"])
def test_a_port_in_use_is_said_of_the_option(tmp_path: Path, name: str) -> None:
    with taken_port() as port:
        said = scq(name, "--port", str(port), cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in said.err
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
        assert [httpx.get(url, timeout=PATIENCE_SECONDS).status_code for url in urls] == [200, 200]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert list(tmp_path.iterdir()) == []
