"""Several processes on one PostgreSQL: workers, roles, commands from anywhere, and what holds across nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from tests.support import postgres
from tests.support.commands import scq
from tests.support.live import PATIENCE_SECONDS, eventually, nowhere
from tests.support.nodes import Load, Node, judge, node
from tests.support.server import (
    ADMIN_TOKEN,
    Browser,
    arrived,
    arrives,
    clean_environ,
    command,
    login,
    new_email,
    requests_about,
    track,
)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# Workers


def test_workers_serve_one_port_and_stop_together(tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str) -> None:
    with node(tmp_path / "node", upstream, dsn, "--workers", "2") as one:
        email = new_email()
        browsers = [Browser(one) for _ in range(4)]
        for browser in browsers:
            browser.logs_in(email)
        for number, browser in enumerate(browsers):
            assert browser.statuses(track(f"cart-{number}")) == ["accepted"]
        arrives(sandbox, email, "+cart-3")
        assert [event for event in arrived(sandbox, email) if event.startswith("+")] == [f"+cart-{n}" for n in range(4)]
        workers = eventually(lambda: pids if len(pids := children(one.pid())) == 2 else [])
        assert one.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        assert ", 2 workers" in one.log


def test_a_worker_that_is_killed_under_load_is_replaced_and_nothing_acknowledged_is_lost(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    with node(tmp_path / "node", upstream, dsn, "--workers", "2") as one:
        load = Load([one], 4)
        with load.running():
            for killed in (1, 2, 3):
                load.goes_on()
                os.kill(children(one.pid())[0], signal.SIGKILL)
                eventually(lambda killed=killed: one.log.count("is replaced") == killed)  # type: ignore[misc]
            load.goes_on()
        assert set(load.retries) <= {"connection lost"}
        judge(load, sandbox)


# Roles


def test_one_takes_pushes_and_another_sends_them(tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str) -> None:
    with node(tmp_path / "front", upstream, dsn, "--no-delivery") as front:
        email = new_email()
        browser = Browser(front)
        browser.logs_in(email)
        assert browser.statuses(track("cart-1")) == ["accepted"]
        assert arrived(sandbox, email) == []
        metrics = front.metrics()
        assert "scq_waiting 2.0" in metrics
        assert "scq_upstream" not in metrics
        assert "scq_forwarder" not in metrics
        page = front.client.get(
            "/scq/status", headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": "text/html"}
        ).text
        assert "forwarder" not in page
        with delivering(front) as deliver:
            arrives(sandbox, email, "+cart-1")
            deliver.send_signal(signal.SIGTERM)
            assert deliver.wait(PATIENCE_SECONDS) == 0


@contextmanager
def delivering(front: Node) -> Iterator[subprocess.Popen[bytes]]:
    with front.log_path.open("ab") as log:
        process = subprocess.Popen(
            command("deliver"), cwd=front.directory, env=clean_environ(front.settings), stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_forwarder_that_is_stopped_waits_for_the_request_on_the_wire(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str, number: signal.Signals
) -> None:
    with node(tmp_path / "front", upstream, dsn, "--no-delivery", SCQ_FIELDS="Visits") as front:
        email = new_email()
        sandbox.faults.stand(email, Fault("ok", delay=1.0))
        Browser(front).logs_in(email, customFields={"Visits": "++1"})
        with delivering(front) as deliver:
            eventually(lambda: "Delivering" in front.log and requests_about(sandbox, email))
            deliver.send_signal(number)
            assert deliver.wait(PATIENCE_SECONDS) == 0
        said = scq("status", "--json", cwd=tmp_path, SCQ_STORE=dsn)
        report = json.loads(said.out)
        assert (report["waiting"], report["dead"], report["counters"]["delivered"]) == (0, 0, 1)


# Commands


def test_commands_work_on_the_database_from_any_directory(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    email = new_email()
    sandbox.faults.stand(email, Fault(status=400))
    with node(tmp_path / "node", upstream, dsn) as one:
        assert one.client.get("/readyz").status_code == 200
        browser = Browser(one)
        browser.logs_in(email)
        elsewhere, given = tmp_path, {"SCQ_STORE": dsn, "TMPDIR": str(tmp_path)}  # as on a machine without a node
        eventually(lambda: json.loads(scq("status", "--json", cwd=elsewhere, **given).out)["dead"] == 1)
        said = scq("status", cwd=elsewhere, **given)
        assert said.code == 1
        assert "1 dead letter: refused by SendX" in said.out
        assert "This is what the database says." in said.out
        (line,) = scq("dead", "list", "--json", cwd=elsewhere, **given).out.splitlines()
        assert json.loads(line)["contact"] == email
        sandbox.faults.clear()
        assert "Replayed 1 dead letter" in scq("dead", "replay", "--all", cwd=elsewhere, **given).out
        arrives(sandbox, email, "identify")
        browser.statuses(["track", {"addTags": ["cart-1"]}])
        said = scq("erase", email, cwd=elsewhere, **given)
        assert said.code == 0
        assert "Erased." in said.out
        assert re.match(r"Store: PostgreSQL at 127\.0\.0\.1:\d+/test_\d+\n", said.err)
        assert 'scq_pushes_total{to="accepted"} 2.0' in one.metrics()


def test_status_tells_that_sending_is_halted_although_it_asks_no_node(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    with node(tmp_path / "node", upstream, dsn) as one:
        email = new_email()
        sandbox.faults.stand(email, Fault(status=401))
        Browser(one).logs_in(email)
        eventually(lambda: "Sending is halted" in one.log)
        elsewhere = {"SCQ_STORE": dsn, "TMPDIR": str(tmp_path)}
        said = scq("status", cwd=tmp_path, **elsewhere).out
        eventually(lambda: "Sending is halted" in scq("status", cwd=tmp_path, **elsewhere).out)
        assert "delivered so far" in said


def test_status_and_check_ask_the_processes_of_this_machine(tmp_path: Path, dsn: str) -> None:
    with node(tmp_path / "node", f"{nowhere()}/api/v1/rest", dsn) as one:
        Browser(one).logs_in(new_email())
        eventually(lambda: "nothing has been delivered since: no connection: connection refused" in one.log)
        said = scq("status", cwd=tmp_path, SCQ_STORE=dsn)
        assert (said.code, "! The last request failed" in said.out) == (1, True)
        assert re.search(r"last error +no connection: connection refused", said.out)
        said = scq("check", cwd=tmp_path, **one.settings)
        assert (said.code, "mend failing: The last request failed" in said.out) == (1, True)
        more = Node(tmp_path / "more", f"{nowhere()}/api/v1/rest", dsn, "--no-delivery")
        more.start()
        both = scq("status", cwd=tmp_path, SCQ_STORE=dsn)
        assert both.out.count("! The last request failed") == 1
        assert "This is what the database says." in both.out
        more.kill()  # and leaves its socket behind
        assert re.search(
            r"last error +no connection: connection refused", scq("status", cwd=tmp_path, SCQ_STORE=dsn).out
        )


def test_the_schema_is_made_once_and_serve_asks_for_it(tmp_path: Path, upstream: str) -> None:
    dsn = postgres.postgres().empty_database()
    settings = Node(tmp_path / "node", upstream, dsn, SCQ_IDENTIFY="asserted").settings
    for arguments in (["serve"], ["serve", "--workers", "3"], ["deliver"], ["status"]):
        said = scq(*arguments, cwd=tmp_path, **settings)
        assert said.code == 2
        assert said.err.count("run scq-proxy migrate") == 1
    said = scq("check", cwd=tmp_path, **settings)
    assert said.code == 1
    assert "mend store: The database has no tables for scq-proxy yet: run scq-proxy migrate." in said.out
    assert "The schema was made (version" in scq("migrate", cwd=tmp_path, SCQ_STORE=dsn).out
    assert "up to date" in scq("migrate", cwd=tmp_path, SCQ_STORE=dsn).out
    said = scq("check", cwd=tmp_path, **settings)
    assert said.code == 0, said.out
    assert re.search("^ok +store: an acknowledged push is in PostgreSQL.*fsync on", said.out, re.MULTILINE)


def test_a_server_that_would_lose_pushes_is_refused_or_served_with_a_warning(tmp_path: Path, upstream: str) -> None:
    server = postgres.Server(fsync="off")
    try:
        dsn = server.database()
        settings = Node(tmp_path / "node", upstream, dsn).settings
        said = scq("serve", cwd=tmp_path, **settings)
        assert said.code == 2
        assert "fsync=off" in said.err
        assert "SCQ_STORE_UNSAFE=1" in said.err
        said = scq("check", cwd=tmp_path, **settings)
        assert said.code == 1
        assert "mend store: The server runs with fsync=off" in said.out
        with node(tmp_path / "node", upstream, dsn, SCQ_STORE_UNSAFE="1") as one:
            assert "SCQ_STORE_UNSAFE is 1. On this server an acknowledged push can be lost" in one.log
            Browser(one).logs_in(new_email())
            assert "mend SCQ_STORE_UNSAFE is 1" in scq("check", cwd=tmp_path, **one.settings).out
    finally:
        server.remove()


def test_a_database_that_is_away_is_told_by_readyz_and_come_back_to(tmp_path: Path, upstream: str) -> None:
    server = postgres.Server()
    try:
        with node(tmp_path / "node", upstream, server.database()) as one:
            server.stop()
            answer = eventually(lambda: answer if (answer := one.client.get("/readyz")).status_code == 503 else None)
            assert answer is not None
            assert "Retry-After" in answer.headers
            assert one.client.get("/healthz").status_code == 200
            assert "scq_store_up 0.0" in one.metrics()
            assert Browser(one).request(login(new_email())).status_code == 503
            server.start()
            eventually(lambda: one.client.get("/readyz").status_code == 200, PATIENCE_SECONDS)
            Browser(one).logs_in(new_email())
    finally:
        server.remove()


# What holds across nodes


def test_the_rate_of_requests_to_sendx_is_that_of_all_nodes_together(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    """Judged by the whole, from before the first request: a busy machine makes that longer and never shorter."""
    rate, in_hand = 20, 20  # what three nodes may have reserved of the schedule at its beginning
    emails = [new_email() for _ in range(100)]
    with node(tmp_path / "front", upstream, dsn, "--no-delivery", SCQ_UPSTREAM_RATE=str(rate)) as front:
        for email in emails:
            Browser(front).logs_in(email)
        started = time.time()
        with delivering(front), delivering(front), delivering(front):
            for email in emails:
                arrives(sandbox, email, "identify")
    times = [record.time.timestamp() for record in sandbox.requests if record.contact in emails]
    assert len(times) == len(emails)
    assert max(times) - started >= (len(emails) - in_hand) / rate, "more than the rate"


def test_nodes_do_not_show_the_password_of_the_database(tmp_path: Path, upstream: str, dsn: str) -> None:
    wrong = dsn.replace("://scq:", "://scq:~hush~")
    said = scq("serve", cwd=tmp_path, **Node(tmp_path / "node", upstream, wrong).settings)
    assert said.code == 2
    assert "does not accept the user or the password" in said.err
    assert "~hush~" not in said.err
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM lanes").fetchone() == (0,)
