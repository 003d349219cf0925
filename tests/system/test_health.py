"""Faults of a real server and its surroundings: log, `status` and `check` report each when it begins and when it is resolved.

That a change is seen within five seconds follows from the pace of the watch, which `tests/ops/test_conditions.py` holds.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from proxy.app import create_app
from proxy.cli.main import cli
from proxy.config.settings import load_settings
from proxy.ops.watch import Pace
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from tests.support.live import eventually, free_port, serving
from tests.support.server import ADMIN_TOKEN, API_KEY, TEAM, Browser, Server, environment, new_email, running
from tests.support.sqlite import fill_disk

MIB = 1_048_576


def said(settings: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Returns the exit code and output of a command."""
    ran = CliRunner().invoke(cli, arguments, env=dict(settings))
    return ran.exit_code, ran.output


def is_told(server: Server, pattern: str, kind: str) -> str:
    """Waits until the log, `status` and `check` report it; returns the output of `status`."""
    eventually(lambda: re.search(rf"ERROR.*proxy\.health: .*{pattern}", server.log))
    code, text = said(server.settings, "status")
    assert code == 1
    assert re.search(rf"^! .*{pattern}", text, re.MULTILINE), text
    code, checked = said(server.settings, "check")
    assert code == 1
    assert re.search(rf"^mend {kind}: .*{pattern}", checked, re.MULTILINE), checked
    return text


def is_over(server: Server, pattern: str, kind: str) -> str:
    """Waits until the log says that it is resolved, and checks `status` and `check`; returns the output of `status`."""
    eventually(lambda: re.search(rf"proxy\.health: Resolved after .*{pattern}", server.log))
    assert f"mend {kind}" not in said(server.settings, "check")[1]
    code, text = said(server.settings, "status")
    assert (code, "All is well." in text) == (0, True), text
    return text


def test_an_outage_of_sendx(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, f"http://127.0.0.1:{port}/api/v1/rest") as server:
        Browser(server).logs_in(new_email())
        text = is_told(
            server, "nothing has been delivered since: no connection: connection refused.*SCQ_UPSTREAM", "failing"
        )
        assert re.search(r"last delivery +none yet", text)
        assert re.search(r"last error +no connection: connection refused.*, 0:00:0\d ago", text)
        with serving(create_sandbox(key=API_KEY, team_id=TEAM), port=port):
            text = is_over(server, "nothing has been delivered since", "failing")
        assert re.search(r"last delivery +0:00:\d\d ago", text)
        assert re.search(r"last error \(resolved\) +no connection: connection refused", text)


def test_an_outage_that_shuts_the_gate(server: Server, sandbox: Sandbox) -> None:
    sandbox.faults.stand("*", Fault(status=503))
    for _ in range(6):
        Browser(server).logs_in(new_email())
    is_told(server, "SendX does not answer .503 Service Unavailable", "down")
    sandbox.faults.clear()
    is_over(server, "SendX does not answer", "down")


def test_a_key_that_is_revoked(server: Server, sandbox: Sandbox) -> None:
    sandbox.faults.stand("*", Fault(status=401))
    Browser(server).logs_in(new_email())
    is_told(server, r"Sending is halted \(401\): .*check SCQ_API_KEY", "halted")
    sandbox.faults.clear()
    server.signal(signal.SIGHUP)  # a reload is worth a probe at once
    is_over(server, "Sending is halted", "halted")


def test_an_account_that_is_throttled(server: Server, sandbox: Sandbox) -> None:
    sandbox.faults.script("*", Fault(status=429, retry_after=3))
    Browser(server).logs_in(new_email())
    is_told(server, "SendX throttles this account .429.*SCQ_UPSTREAM_RATE", "throttled")
    is_over(server, "SendX throttles this account", "throttled")


def test_a_sendx_that_takes_its_time(server: Server, sandbox: Sandbox) -> None:
    sandbox.faults.script("*", Fault("ok", delay=6))
    Browser(server).logs_in(new_email())
    text = is_told(server, r"SendX has not answered for \d s.*SCQ_UPSTREAM_TIMEOUT", "silent")
    assert re.search(r"concurrent requests to SendX +1 in flight, \d of 8 allowed", text)
    is_over(server, "SendX has not answered", "silent")


def test_a_time_out_that_is_too_short_for_sendx_is_named(tmp_path: Path, upstream: str, sandbox: Sandbox) -> None:
    sandbox.faults.stand("*", Fault("ok", delay=2))
    with running(tmp_path, upstream, SCQ_UPSTREAM_TIMEOUT="1") as server:
        Browser(server).logs_in(new_email())
        is_told(server, "no answer in time. If SendX is slow but not down, raise SCQ_UPSTREAM_TIMEOUT", "failing")


def test_a_disk_that_is_full(small_disk: Path, tmp_path: Path, upstream: str, sandbox: Sandbox) -> None:
    store = {"SCQ_STORE": f"sqlite:///{small_disk}/scq.db", "SCQ_MIN_FREE_MB": "4"}
    with running(tmp_path, upstream, **store) as server:
        ballast = fill_disk(small_disk, leave=3 * MIB)
        is_told(server, "The disk is nearly full.*free some space", "store")
        ballast.unlink()
        text = is_over(server, "The disk is nearly full", "store")
        assert re.search(r"disk space above SCQ_MIN_FREE_MB +0\.0 GB", text)


def test_a_store_that_another_program_has_locked(tmp_path: Path, upstream: str) -> None:
    with running(tmp_path, upstream) as server, closing(sqlite3.connect(server.store, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        is_told(
            server, rf"The store is locked by \S+ .process {os.getpid()}., .*or stop that program", "store-unavailable"
        )
        refused = httpx.get(server.url + "/readyz")
        assert (refused.status_code, "process" in refused.text) == (503, False)  # which is not for everybody
        shell.execute("ROLLBACK")
        is_over(server, "The store is locked", "store-unavailable")


def test_a_directory_that_is_removed(tmp_path: Path, upstream: str) -> None:
    place = tmp_path / "store"
    place.mkdir()
    with running(tmp_path, upstream, SCQ_STORE=f"sqlite:///{place}/scq.db") as server:
        place.rename(tmp_path / "gone")  # in one step: the server makes its socket again in what is there
        shutil.rmtree(tmp_path / "gone")
        # Within the second of that line the cause may still be the file that is gone; the store's own line has the directory.
        eventually(lambda: re.search("ERROR.*proxy.health: Pushes are refused", server.log))
        eventually(lambda: re.search("ERROR.*is not a directory. Create it", server.log))
        place.mkdir()
        eventually(lambda: re.search("proxy.health: Resolved after .*Pushes are refused", server.log))
        eventually(lambda: "! The store was deleted or replaced" in said(server.settings, "status")[1], 5)


@contextmanager
def few_handles() -> Iterator[int]:
    """Gives processes that are started meanwhile few file handles; yields how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(int(handle.name) for handle in Path("/proc/self/fd").iterdir()) + 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        yield few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_file_handles_that_run_out(tmp_path: Path, upstream: str) -> None:
    with ExitStack() as stack:
        with few_handles() as few:
            server = stack.enter_context(running(tmp_path, upstream))
        with ExitStack() as connections:
            for _ in range(few):
                connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            is_told(server, "Connections are turned away .*ulimit -n", "connections")
            assert b"too-many-connections" in server.raw(b"")
        is_over(server, "Connections are turned away", "connections")


def test_a_store_that_is_deleted(
    tmp_path: Path, upstream: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = tmp_path / "scq.db"
    settings = environment(upstream, store, SCQ_ADMIN_TOKEN=ADMIN_TOKEN)
    with serving(create_app(load_settings(settings, None), pace=Pace(look=0.05, lately=2.0))) as url:
        for part in ("", "-wal", "-shm"):
            store.with_name(store.name + part).unlink()
        eventually(lambda: re.search("deleted or replaced while in use .*restore the files", caplog.text))
        code, text = said(settings, "status")
        assert (code, "! The store was deleted or replaced" in text) == (1, True)
        code, text = said(settings, "check")
        assert (code, "mend replaced: The store was deleted" in text) == (1, True)
        admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        assert 'scq_problem{kind="replaced"} 1.0' in httpx.get(f"{url}/metrics", headers=admin).text
        eventually(lambda: re.search("Resolved after .*The store was deleted or replaced", caplog.text))
        assert said(settings, "status")[0] == 0
        assert "mend replaced" not in said(settings, "check")[1]
        assert 'scq_problem{kind="replaced"} 0.0' in httpx.get(f"{url}/metrics", headers=admin).text
