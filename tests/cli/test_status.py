"""`scq-proxy status`, with the server running and with it stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from tests.support.commands import ask, report, scq
from tests.support.live import eventually
from tests.support.server import Browser, Server, identify, new_email, track


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_IDENTIFY": "asserted"}


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


def test_status_exits_1_while_sending_is_halted(server: Server, sandbox: Sandbox, upstream: str) -> None:
    sandbox.faults.stand("*", Fault(status=401, body='{"status":401,"message":"[/] [red]no[/red] \\u202e key"}'))
    Browser(server).logs_in(new_email())
    halted = eventually(lambda: (found := report(server))["problems"] and found)
    assert halted["delivery"]["halted"] == "401"
    said = ask(server, "status")
    assert said.code == 1
    assert said.out.startswith("! Sending is halted (401): ")
    assert "[/] [red]no[/red]" in said.out
    assert "\u202e" not in said.out
    assert "All is well" not in said.out


def test_status_quotes_what_came_in_place_of_sendx_s_answer(server: Server, sandbox: Sandbox, upstream: str) -> None:
    sandbox.faults.stand("*", Fault(kind="html", status=200, body="<h1>Back soon</h1>"))
    for _ in range(5):
        Browser(server).logs_in(new_email())
    eventually(lambda: (report(server)["delivery"] or {}).get("halted"))
    said = " ".join(ask(server, "status").out.split())
    assert 'text/html, 18 bytes: "Back soon"' in said
    assert "whether SendX is under maintenance; set SCQ_DELIVERED=2xx only if" in said


def test_status_exits_1_while_there_are_dead_letters(server: Server, sandbox: Sandbox, upstream: str) -> None:
    email = new_email()
    sandbox.faults.stand(email, Fault(status=422))
    Browser(server).logs_in(email)
    eventually(lambda: report(server)["dead"])
    running_said = ask(server, "status")
    assert "is a dead letter, rejected (HTTP 422): see scq-proxy dead list" in server.log
    assert server.stop() == 0
    for said in (running_said, ask(server, "status")):
        assert said.code == 1
        assert re.search(r"^! 1 dead letter", said.out, re.MULTILINE)
        assert re.search(r"^  dead letters +1$", said.out, re.MULTILINE)
        assert email not in said.out + said.err


def test_a_server_that_was_killed_is_missed_while_pushes_wait(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    sandbox.faults.stand(email, Fault(status=503))
    Browser(server).logs_in(email)
    server.kill()
    said = ask(server, "status")
    assert said.code == 1
    assert said.out.startswith("! No server is running while pushes wait to be sent (1): start scq-proxy serve.")
    checked = ask(server, "check")
    assert checked.code == 1
    assert "mend server: No server is running while pushes wait to be sent (1): start scq-proxy serve." in checked.out


def test_status_keeps_an_address_in_a_refused_name_to_itself_and_counts_it(server: Server) -> None:
    before, visitor, hidden = report(server)["counters"], Browser(server), new_email("hidden")
    visitor.push(identify(email=new_email(), customFields={hidden: "1", "Shoe size": "44"}, tags=[f"by {hidden}"]))
    assert visitor.statuses(track(f"seen:{hidden}"), track("plain")) == ["tag-not-allowed"] * 2
    found = report(server)
    refused = found["counters"]["refused:tag-not-allowed"] - before.get("refused:tag-not-allowed", 0)
    assert refused == 2
    assert {"Shoe size", "plain"} <= {one["name"] for one in found["refused_names"]}
    running_said = ask(server, "status")
    assert server.stop() == 0
    for said in (running_said, ask(server, "status"), ask(server, "status", "--json")):
        assert "Shoe size" in said.out
        assert hidden not in said.out
    assert hidden.encode() not in b"".join(path.read_bytes() for path in server.directory.glob("scq.db*"))


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
