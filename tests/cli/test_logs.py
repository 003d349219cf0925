"""The log: as text or as JSON, at `debug` one line per push and per request, and a line for each action of an operator."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.cli.logs import JsonFormatter
from proxy.ops.audit import at_the_command_line, caller, pseudonym
from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from tests.support.commands import ask, report, scq
from tests.support.live import PATIENCE_SECONDS, eventually
from tests.support.server import SERVER_KEY, Browser, Server, arrives, login, new_email, new_ids, running, track


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_LOG_FORMAT": "json", "SCQ_SERVER_KEYS": SERVER_KEY}


def lines(server: Server, event: str) -> list[dict[str, Any]]:
    """The lines of this event, in order. All lines are whole JSON objects, but for one that is being written."""
    found = [json.loads(line) for line in server.log.splitlines(keepends=True) if line.endswith("\n")]
    assert all(list(line)[:5] == ["time", "level", "event", "message", "fields"] for line in found)
    return [line for line in found if line["event"] == event]


def line(**more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": "proxy.store",
        "levelno": 30,
        "levelname": "WARNING",
        "msg": "Free %d MB",
        "args": (4,),
    }
    record = logging.makeLogRecord(given | more)
    text = JsonFormatter(several=bool(more.get("process"))).format(record)
    assert "\n" not in text
    assert text.isascii()
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_a_line_is_one_object_with_time_level_event_message_and_fields() -> None:
    found = line(created=1_800_000_000.5)
    assert found == {
        "time": "2027-01-15T08:00:00.500Z",
        "level": "warning",
        "event": "store",
        "message": "Free 4 MB",
        "fields": {},
    }


def test_an_event_that_was_named_goes_before_the_part_that_wrote_it() -> None:
    found = line(event="problem-began", fields={"problem": "down", "path": Path("/data")})
    assert (found["event"], found["fields"]) == ("problem-began", {"problem": "down", "path": "/data"})


def test_a_process_among_several_says_which_it_is() -> None:
    assert line(process=4_711)["process"] == 4_711


@pytest.mark.parametrize("text", ["two\nlines", "half \ud83d of an emoji", 'a "quote" and \\', "\x00\x1b[31m"])
def test_whatever_is_in_a_message_the_line_stays_one_line(text: str) -> None:
    assert line(msg=text, args=())["message"] == text


def test_a_traceback_is_a_field_and_not_more_lines() -> None:
    try:
        raise ValueError
    except ValueError:
        found = line(exc_info=sys.exc_info())
    assert "ValueError" in found["fields"]["traceback"]


def test_at_debug_each_push_and_each_request_has_a_line_without_addresses_and_values(
    server: Server, sandbox: Sandbox
) -> None:
    email, ids = new_email(), new_ids(3)
    pushes = [login(email, firstName="Zoraida"), track("cart-1"), track("not on offer")]
    Browser(server).push(*pushes, ids=ids)
    arrives(sandbox, email, "+cart-1")
    pushed = {each["fields"]["id"]: each["fields"]["outcome"] for each in lines(server, "push")}
    assert pushed == {ids[0]: "accepted", ids[1]: "accepted", ids[2]: "tag-not-allowed"}
    eventually(lambda: len(lines(server, "delivery")) == 2)
    delivered = [each["fields"] for each in lines(server, "delivery")]
    assert [(each["id"], each["outcome"]) for each in delivered] == [(ids[0], "delivered"), (ids[1], "delivered")]
    requests = [each["fields"] for each in lines(server, "request")]
    assert {each["lane"] for each in [*delivered, *requests]} == {delivered[0]["lane"]}
    assert (requests[0]["call"], requests[0]["outcome"], requests[0]["status"]) == ("identify", "delivered", 200)
    key = {"X-Team-ApiKey": SERVER_KEY}
    assert server.client.post("/api/v1/rest/contact/identify", json={"email": email}, headers=key).status_code == 200
    eventually(lambda: [each for each in lines(server, "push") if each["fields"]["outcome"] == "stored"])
    assert all(
        hidden not in server.log for hidden in (email, email.partition("@")[0], "Zoraida", "cart-1", "not on offer")
    )


def test_without_debug_pushes_leave_no_line(tmp_path: Path, upstream: str, sandbox: Sandbox) -> None:
    with running(tmp_path, upstream, SCQ_LOG_LEVEL="info", SCQ_LOG_FORMAT="text") as server:
        email = new_email()
        Browser(server).push(login(email), track("cart-1"))
        arrives(sandbox, email, "+cart-1")
        assert re.search(r"INFO proxy: Serving /scq on ", server.log)
        assert "Push" not in server.log
        assert "Request" not in server.log


def test_what_an_operator_does_leaves_a_line_with_who_it_was(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    sandbox.faults.stand(email, Fault(status=422))
    Browser(server).logs_in(email)
    eventually(lambda: report(server)["dead"])
    assert ask(server, "dead", "replay", "--contact", email).code == 0
    eventually(lambda: report(server)["dead"])
    assert ask(server, "dead", "discard", "--all", "--yes").code == 0
    assert ask(server, "erase", email).code == 0
    (replayed,), (discarded,), (erased,) = (lines(server, event) for event in ("dead-replay", "dead-discard", "erase"))
    assert (replayed["level"], replayed["fields"]["letters"], discarded["fields"]["letters"]) == ("warning", 1, 1)
    assert replayed["fields"]["person"] == erased["fields"]["person"]
    assert re.search("replay of 1 .*person [0-9a-f]{16}.*; by control socket, user id", replayed["message"])
    assert re.search(r"discard of 1 \(all\); by control socket, user id \d+, process \d+", discarded["message"])
    assert re.search("Person [0-9a-f]{16} was erased", erased["message"])
    assert email not in server.log


def test_without_a_server_the_line_is_the_commands_own(server: Server) -> None:
    assert server.stop() == 0
    said = ask(server, "erase", new_email())
    assert said.code == 0
    assert '"event": "erase"' in said.err
    assert "by command line, user id" in said.err
    said = ask(server, "erase", new_email(), SCQ_LOG_FORMAT="text")
    assert re.search(r"WARNING proxy\.audit: Person [0-9a-f]{16} was erased", said.err)


def test_with_a_database_the_line_has_its_user(dsn: str, tmp_path: Path) -> None:
    said = scq("erase", new_email(), cwd=tmp_path, SCQ_STORE=dsn)
    assert said.code == 0, said.err
    assert re.search(r"by command line, user id \d+, database user \w+", said.err)


def test_a_reload_says_that_nothing_has_changed_where_nothing_has(server: Server) -> None:
    server.signal(signal.SIGHUP)
    eventually(lambda: lines(server, "reload"))
    assert "none changed (systemd" in lines(server, "reload")[0]["message"]
    assert lines(server, "reload")[0]["fields"] == {"changed": [], "waiting": [], "by": "SIGHUP"}


def test_a_supervisor_that_waits_is_told_when_the_proxy_serves(
    tmp_path: Path, upstream: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(place))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(place))
        supervisor.settimeout(PATIENCE_SECONDS)
        with running(tmp_path, upstream):
            assert supervisor.recv(100) == b"READY=1"


def test_a_person_has_one_pseudonym_in_a_store_and_another_one_elsewhere() -> None:
    one, again, elsewhere = pseudonym("a@x", b"k" * 32), pseudonym("a@x", b"k" * 32), pseudonym("a@x", b"l" * 32)
    assert one == again != elsewhere
    assert "database" not in at_the_command_line(None)
    assert caller.get() == "this process"
