"""`scq-proxy dead` and `scq-proxy erase` as an operator uses them, with the server running and with it stopped.

Dead letters come about as they do in life: SendX answers 422. Where it takes many of them, they are put into a store through the outbox.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.config.types import SqliteUrl
from proxy.core.calls import Attributes, Track
from proxy.core.decision import Decision, Enqueue
from proxy.core.visitors import Trust
from proxy.ops.control import socket_path
from proxy.ops.dead_letters import STEP, ReplayDead, Selection, StoreCommands
from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from proxy.store.records import DeadReason, Fate, Settled, Settlement
from proxy.store.sqlite.outbox import open_outbox
from proxy.stores import open_existing
from tests.support.commands import Said, at_a_terminal, clean, scq, spawn
from tests.support.live import PATIENCE_SECONDS, eventually
from tests.support.server import (
    ADMIN_TOKEN,
    Browser,
    Server,
    arrived,
    arrives,
    command,
    identify,
    is_anywhere,
    login,
    new_email,
    new_id,
    token,
    track,
)

REFUSED = Fault(status=422)
DOWN = Fault(status=503)
SUBCOMMANDS = ("list", "show", "export", "replay", "discard")
KEYS = ["id", "contact", "reason", "at", "push", "kind", "detail", "attempts", "since"]
INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_TAGS": "*", "SCQ_FIELDS": "firstName", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN}


def ask(server: Server, *arguments: str) -> Said:
    """A command in the server's directory, with no setting at all: the store there is the default one."""
    return scq(*arguments, cwd=server.directory)


def lines(said: Said) -> list[dict[str, Any]]:
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


def dead_of(server: Server, *filters: str) -> list[dict[str, Any]]:
    return lines(ask(server, "dead", "list", "--json", *filters))


def status(server: Server) -> dict[str, Any]:
    """From the server while it runs, which is quicker than a command."""
    if server.died():
        found: dict[str, Any] = json.loads(ask(server, "status", "--json").out)
    else:
        found = server.client.get("/scq/status", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()
    return found


def bury(server: Server, sandbox: Sandbox, browser: Browser, email: str, *calls: Any) -> list[str]:
    """Push what SendX refuses, and wait until it is dead; returns the push ids."""
    before = status(server)["dead"]
    sandbox.faults.stand(email, REFUSED)
    ids = [new_id() for _ in calls]
    assert browser.statuses(*calls, ids=ids) == ["accepted"] * len(calls)
    eventually(lambda: status(server)["dead"] == before + len(calls))
    sandbox.faults.stand(email, None)
    return ids


@pytest.fixture(params=["running", "stopped"])
def around(request: pytest.FixtureRequest, server: Server) -> Callable[[], None]:
    """Called between what happens and the commands about it: leaves the server as it is, or stops it."""

    def go() -> None:
        if request.param == "stopped":
            assert server.stop() == 0

    return go


def back(server: Server) -> None:
    if server.died():
        server.start()


def sums_add_up(server: Server) -> bool:
    report = status(server)
    count = report["counters"]
    into = count.get("accepted", 0) + count.get("bound", 0)
    out = sum(count.get(name, 0) for name in ("delivered", "discarded", "erased"))
    return bool(into == out + report["waiting"] + report["dead"])


# Help


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_help_of_each_command_fits_a_narrow_terminal_and_ends_its_sentences(tmp_path: Path, name: str) -> None:
    said = scq("dead", name, "--help", cwd=tmp_path, COLUMNS="60")
    assert (said.code, said.err) == (0, "")
    assert f"Usage: scq-proxy dead {name}" in said.out
    assert all(len(row) <= 60 for row in said.out.splitlines())
    assert "--env-file" in said.out
    assert "--json" in said.out
    description = said.out.partition("\n\n")[2].partition("Options:")[0].partition("Arguments:")[0]
    assert re.fullmatch(r"\s*[A-Z].*\.\s*", description, re.DOTALL)


def test_the_help_of_dead_lists_its_commands(tmp_path: Path) -> None:
    said = scq("dead", "--help", cwd=tmp_path, COLUMNS="60")
    listed = re.findall(r"^  ([a-z]+) {2,}[A-Z].*\.$", said.out.partition("Commands:")[2], re.MULTILINE)
    assert tuple(listed) == SUBCOMMANDS


# list, show


def test_dead_letters_are_listed_as_json_with_the_call_in_sendx_words(
    server: Server, sandbox: Sandbox, around: Callable[[], None]
) -> None:
    email = new_email()
    browser = Browser(server)
    first = bury(server, sandbox, browser, email, login(email, firstName="Ada", customFields={"Plan": "pro"}))
    second = bury(server, sandbox, browser, email, track("blogger", remove=["trial"]))
    around()
    said = ask(server, "dead", "list", "--json")
    assert said.err == f"Store: {server.store}\n"
    one, two = lines(said)
    assert list(one) == KEYS
    assert (one["id"], two["id"]) == (*first, *second)
    assert (one["contact"], one["reason"], one["kind"], one["attempts"]) == (email, "rejected", "identify", 1)
    assert one["push"] == ["identify", {"email": email, "firstName": "Ada", "customFields": {"Plan": "pro"}}]
    assert two["push"] == ["track", {"addTags": ["blogger"], "removeTags": ["trial"]}]
    assert "422" in one["detail"]
    for letter in (one, two):
        assert re.fullmatch(INSTANT, letter["at"])
        assert re.fullmatch(INSTANT, letter["since"])
        age = datetime.now(UTC) - datetime.fromisoformat(letter["at"])
        assert timedelta(0) <= age < timedelta(minutes=5)
    assert email not in server.log


def test_a_list_for_a_person_is_a_table_with_the_newest_last_that_says_how_to_see_more(
    server: Server, sandbox: Sandbox
) -> None:
    email = new_email()
    browser = Browser(server)
    ids = bury(server, sandbox, browser, email, login(email), track("one"), track("two", remove=["trial"]))
    said = ask(server, "dead", "list")
    heading, *rows = said.out.splitlines()
    assert heading.split("  ")[0] == "DIED (UTC)"
    assert [push_id in row for push_id, row in zip(ids, rows, strict=True)] == [True] * 3
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d  rejected  ", row) for row in rows)
    assert [re.split(" {2,}", row)[3:] for row in rows] == [
        [email, "identify"],
        [email, "track +one"],
        [email, "track +two -trial"],
    ]
    assert "scq-proxy dead show ID" in said.err
    last = ask(server, "dead", "list", "--limit", "1")
    assert last.out.splitlines()[1:] == rows[-1:]
    assert "the last 1 of 3 dead letters; --limit 3 shows all" in last.err
    assert [letter["id"] for letter in dead_of(server, "--limit", "2")] == ids[1:]


def test_what_is_hostile_is_escaped(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    hostile = "[bold]x[/bold] \x1b[31m \u202e\n"  # which a back end may vouch for, and a page may not set
    (push_id,) = bury(server, sandbox, Browser(server), email, login(email, tags=[hostile]))
    shown = ask(server, "dead", "list").out, ask(server, "dead", "show", push_id).out
    for out in (*shown, ask(server, "dead", "list", "--json").out):
        assert all(character.isprintable() or character == "\n" for character in out)
    for out in shown:
        assert "[bold]x[/bold]" in out
    (letter,) = dead_of(server)
    assert letter["push"][1]["tags"] == [hostile]


def test_one_dead_letter_is_shown_in_full(server: Server, sandbox: Sandbox, around: Callable[[], None]) -> None:
    email = new_email()
    _, push_id = bury(server, sandbox, Browser(server), email, login(email), track("one"))
    around()
    said = ask(server, "dead", "show", push_id)
    assert (said.code, said.err) == (0, f"Store: {server.store}\n")
    facts = dict(re.split(" {2,}", row, maxsplit=1) for row in said.out.splitlines())
    assert (facts["id"], facts["contact"], facts["reason"], facts["attempts"]) == (push_id, email, "rejected", "1")
    assert facts["push"] == '["track", {"addTags": ["one"]}]'
    assert re.fullmatch(INSTANT, facts["died"])
    assert lines(ask(server, "dead", "show", push_id, "--json")) == dead_of(server)[1:]


def test_without_dead_letters_the_commands_say_so(server: Server, around: Callable[[], None]) -> None:
    around()
    assert ask(server, "dead", "list").out == "There are no dead letters.\n"
    assert dead_of(server) == []
    assert ask(server, "dead", "list", "--reason", "missing").out == "No dead letter matches.\n"
    for verb in (["replay"], ["discard", "--yes"]):
        said = ask(server, "dead", *verb, "--reason", "missing")
        assert (said.code, said.out) == (0, "No dead letter matches.\n")


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "--json"], ["show", "x"], ["export"], ["replay", "--all"], ["discard", "--all", "--yes"]],
)
def test_without_a_store_the_commands_say_so_and_make_none(tmp_path: Path, arguments: list[str]) -> None:
    said = scq("dead", *arguments, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"Store: {tmp_path}/scq.db\nThere is no store at {tmp_path}/scq.db" in said.err
    assert list(tmp_path.iterdir()) == []


# Filters


def test_filters_choose_by_contact_reason_and_age(server: Server, sandbox: Sandbox) -> None:
    ann, bob = new_email("Ann"), new_email("bob")
    bury(server, sandbox, Browser(server), ann, login(ann))
    bury(server, sandbox, Browser(server), bob, login(bob))
    assert server.stop() == 0
    with closing(sqlite3.connect(server.store)) as store, store:
        store.execute(
            "UPDATE dead SET at = at - 3 * 86400, reason = 'exhausted' WHERE lower(address) = ?", (ann.lower(),)
        )

    def chosen(*filters: str) -> list[str]:
        return [letter["contact"] for letter in dead_of(server, *filters)]

    assert chosen() == [ann, bob]
    assert chosen("--contact", ann.upper()) == [ann]
    assert chosen("--contact", f" {bob} ") == [bob]
    assert chosen("--reason", "exhausted") == [ann]
    assert chosen("--reason", "missing") == []
    assert chosen("--older-than", "2") == [ann]
    assert chosen("--older-than", "4") == []
    assert chosen("--older-than", "2", "--contact", bob) == []
    assert [
        json.loads(row)["contact"] for row in ask(server, "dead", "export", "--reason", "rejected").out.split("\n")[:-1]
    ] == [bob]
    assert ask(server, "dead", "discard", "--older-than", "2", "--yes").out == "Discarded 1 dead letter.\n"
    assert chosen() == [bob]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["list", "--reason", "boredom"], "--reason"),
        (["list", "--older-than", "0"], "--older-than"),
        (["list", "--older-than", "nan"], "--older-than"),
        (["list", "--contact", ""], "--contact"),
        (["list", "--contact", "nobody"], "--contact"),
        (["list", "--limit", "0"], "--limit"),
        (["show"], "ID"),
        (["replay"], "say what to replay"),
        (["discard"], "say what to discard"),
        (["discard", "--yes"], "say what to discard"),
        (["replay", "--contact", ""], "--contact"),
        (["replay", "--all", "--reason", "missing"], "only one of these"),
        (["discard", "--yes", "some-id", "--all"], "only one of these"),
        (["replay", "some-id", "--older-than", "3"], "only one of these"),
        (["discard", "--all"], "--yes"),
    ],
)
def test_what_was_not_clearly_said_is_not_done(tmp_path: Path, arguments: list[str], named: str) -> None:
    store = buried_store(tmp_path, 2)
    said = scq("dead", *arguments, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert named in said.err
    assert len(stored(store)) == 2


def test_an_unknown_id_is_named_and_nothing_is_done(
    server: Server, sandbox: Sandbox, around: Callable[[], None]
) -> None:
    email, unknown = new_email(), new_id()
    (known,) = bury(server, sandbox, Browser(server), email, login(email))
    around()
    for arguments in (["show", unknown], ["replay", known, unknown], ["discard", "--yes", unknown, known]):
        said = ask(server, "dead", *arguments)
        assert (said.code, said.out) == (2, "")
        assert f"No dead letter has the id '{unknown}'" in said.err
        assert "scq-proxy dead list" in said.err
    assert [letter["id"] for letter in dead_of(server)] == [known]


# replay


def test_a_replayed_dead_letter_goes_behind_what_waits_and_arrives_when_sendx_heals(
    server: Server, sandbox: Sandbox, around: Callable[[], None]
) -> None:
    email = new_email()
    browser = Browser(server)
    browser.logs_in(email)
    arrives(sandbox, email, "identify")
    (dead,) = bury(server, sandbox, browser, email, track("one"))
    sandbox.faults.stand(email, DOWN)
    assert browser.statuses(track("two")) == ["accepted"]
    around()
    said = ask(server, "dead", "replay", dead)
    assert (said.code, said.out) == (0, "Replayed 1 dead letter; sent while the server runs.\n")
    assert dead_of(server) == []
    assert status(server)["waiting"] == 2
    sandbox.faults.clear()
    back(server)
    assert arrives(sandbox, email, "+one") == ["identify", "+two", "+one"]
    assert sums_add_up(server)
    assert email not in server.log


def test_all_are_replayed_in_the_order_of_their_pushes(
    server: Server, sandbox: Sandbox, around: Callable[[], None]
) -> None:
    email = new_email()
    calls = [login(email), *(track(f"t{number}") for number in range(5))]
    ids = bury(server, sandbox, Browser(server), email, *calls)
    around()
    said = ask(server, "dead", "replay", "--all", "--json")
    assert [letter["id"] for letter in lines(said)] == ids
    assert said.err.endswith("Replayed 6 dead letters; sent while the server runs.\n")
    back(server)
    assert arrives(sandbox, email, "+t4") == ["identify", "+t0", "+t1", "+t2", "+t3", "+t4"]
    eventually(lambda: status(server)["counters"].get("delivered") == 6)
    assert sums_add_up(server)


def test_a_replayed_dead_letter_that_dies_again_is_kept_and_the_command_ends(server: Server, sandbox: Sandbox) -> None:
    email = new_email()
    ids = bury(server, sandbox, Browser(server), email, login(email), track("one"))
    sandbox.faults.stand(email, REFUSED)
    assert ask(server, "dead", "replay", "--contact", email).out.startswith("Replayed 2 dead letters")
    eventually(lambda: [letter["id"] for letter in dead_of(server)] == ids)
    assert arrived(sandbox, email) == []
    assert sums_add_up(server)


# discard


def test_discarded_dead_letters_are_gone_and_counted_and_the_others_stay(
    server: Server, sandbox: Sandbox, around: Callable[[], None]
) -> None:
    email = new_email()
    first, second, third = bury(server, sandbox, Browser(server), email, login(email), track("one"), track("two"))
    around()
    said = ask(server, "dead", "discard", "--yes", first, third, first)
    assert (said.code, said.out) == (0, "Discarded 2 dead letters.\n")
    assert [letter["id"] for letter in dead_of(server)] == [second]
    assert [letter["id"] for letter in lines(ask(server, "dead", "discard", "--all", "--yes", "--json"))] == [second]
    assert status(server)["counters"]["discarded"] == 3
    assert sums_add_up(server)
    back(server)
    assert arrived(sandbox, email) == []
    assert email not in server.log


@pytest.mark.parametrize(("typed", "code", "left"), [("y\n", 0, 0), ("n\n", 2, 3), ("\n", 2, 3), ("\x04", 2, 3)])
def test_discard_asks_on_a_terminal(tmp_path: Path, typed: str, code: int, left: int) -> None:
    store = buried_store(tmp_path, 3)
    said = at_a_terminal("dead", "discard", "--all", cwd=tmp_path, typed=typed)
    assert said.code == code
    assert "Discard 3 dead letters for good? [y/N]" in said.err
    assert ("Nothing was discarded." in said.err) == (code == 2)
    assert len(stored(store)) == left


# export


def test_an_export_is_json_lines_in_a_new_file_for_its_owner_only(
    server: Server, sandbox: Sandbox, around: Callable[[], None]
) -> None:
    email = new_email()
    bury(server, sandbox, Browser(server), email, login(email), track("Zoë 好"))
    around()
    said = ask(server, "dead", "export", "--output", "letters.jsonl")
    file = server.directory / "letters.jsonl"
    assert (said.code, said.out) == (0, "")
    assert said.err == f"Store: {server.store}\nExported 2 dead letters to {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [json.loads(line) for line in file.read_text("ascii").splitlines()] == dead_of(server)
    assert lines(ask(server, "dead", "export", "--json")) == dead_of(server)
    assert dead_of(server)[1]["push"] == ["track", {"addTags": ["Zoë 好"]}]
    file.write_text("precious")
    again = ask(server, "dead", "export", "--output", "letters.jsonl")
    assert again.code == 2
    assert "letters.jsonl exists already, and is not overwritten" in again.err
    assert file.read_text() == "precious"


def test_an_export_that_cannot_be_made_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    buried_store(tmp_path, 1)
    said = scq("dead", "export", "--output", "nowhere/letters.jsonl", cwd=tmp_path)
    assert said.code == 2
    assert "nowhere/letters.jsonl cannot be made: No such file or directory." in said.err
    (tmp_path / "empty").mkdir()
    said = scq("dead", "export", "--output", "letters.jsonl", cwd=tmp_path, SCQ_STORE="sqlite:///empty/scq.db")
    assert said.code == 2
    assert not (tmp_path / "letters.jsonl").exists()


# Many


def test_many_are_done_in_steps_and_each_is_said_once(tmp_path: Path) -> None:
    count = 2 * STEP + 100
    store = buried_store(tmp_path, count)
    ids = stored(store)
    listed = scq("dead", "list", cwd=tmp_path)
    assert len(listed.out.splitlines()) == 51
    assert f"These are the last 50 of {count} dead letters" in listed.err
    assert [letter["id"] for letter in lines(scq("dead", "export", cwd=tmp_path))] == ids
    replayed = lines(scq("dead", "replay", "--contact", "p0@example.com", "--json", cwd=tmp_path))
    assert [letter["id"] for letter in replayed] == ids[::2]
    assert stored(store) == ids[1::2]
    discarded = scq("dead", "discard", "--yes", *ids[1::2], cwd=tmp_path)
    assert discarded.out == f"Discarded {count // 2} dead letters.\n"
    assert stored(store) == []


def test_long_work_shows_a_bar_on_a_terminal_and_short_work_does_not(tmp_path: Path) -> None:
    store = buried_store(tmp_path, STEP + 100)
    short = at_a_terminal("dead", "replay", stored(store)[0], cwd=tmp_path)
    assert short.code == 0
    assert "━" not in short.err
    long = at_a_terminal("dead", "replay", "--all", cwd=tmp_path)
    assert (long.code, long.out) == (0, f"Replayed {STEP + 99} dead letters; sent while the server runs.\n")
    assert "━" in long.err
    assert "━" not in scq("dead", "replay", "--all", cwd=tmp_path).err


async def test_what_dies_again_during_a_replay_is_left_for_the_next(tmp_path: Path) -> None:
    """The worst of forwarders: everything is dead again before the next step."""
    path = await _buried(tmp_path, STEP + 100)
    async with open_existing(SqliteUrl(path)) as outbox:
        said = []
        async for advance in StoreCommands(outbox).act(ReplayDead(Selection())):
            said.append((advance.done, advance.total))
            await _kill_all(outbox)
        assert said[-1] == (STEP + 100, STEP + 100)
        stats = await outbox.stats()
    assert (stats.dead, stats.waiting) == (STEP + 100, 0)


def test_a_reader_that_has_gone_does_not_stop_a_discard_half_way(tmp_path: Path) -> None:
    store = buried_store(tmp_path, STEP + 100)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command("dead", "discard", "--all", "--yes", "--json"),
            cwd=tmp_path,
            env=clean({}),
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
    finally:
        os.close(writing)
    assert done.returncode == 0, done.stderr
    assert stored(store) == []


# The way to the server


def test_a_condition_that_the_server_does_not_know_is_refused_and_not_overlooked(
    server: Server, sandbox: Sandbox
) -> None:
    email = new_email()
    bury(server, sandbox, Browser(server), email, login(email))
    for asked in ({"selection": {"colour": "red"}}, {"selection": {"reason": "boredom"}}, {"selection": 3}):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(socket_path(server.store)))
            connection.sendall(json.dumps({"command": "dead_discard"} | asked).encode() + b"\n")
            answer = json.loads(connection.recv(65_536))
        assert "another version" in answer["error"]
    assert len(dead_of(server)) == 1


def test_a_server_that_breaks_off_half_way_is_no_success(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(tmp_path / "scq.db")))
        listener.listen()
        process = spawn("dead", "replay", "--all", cwd=tmp_path)
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
            connection.sendall(b'{"ok":{"done":500,"total":900}}\n')
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (2, "")
    assert "The running server disconnected" in err


# erase


def test_erasing_a_person_leaves_nothing_that_could_bring_them_back(
    server: Server, sandbox: Sandbox, around: Callable[[], None]
) -> None:
    email, other, browser = new_email("secret-name"), new_email(), Browser(server)
    early, known = token(email), new_id()
    browser.push(identify(token=early), ids=[known])
    arrives(sandbox, email, "identify")
    bury(server, sandbox, browser, email, track("one"))
    sandbox.faults.stand(email, DOWN)
    waiting = new_id()
    assert browser.statuses(track("two"), ids=[waiting]) == ["accepted"]
    around()
    said = ask(server, "erase", email.upper())
    assert said.code == 0
    assert said.err.startswith(f"Store: {server.store}\n")  # and the line for the audit, where no server writes it
    assert email not in said.err.lower()
    assert re.search(r"^  waiting pushes +1$", said.out, re.MULTILINE)
    assert re.search(r"^  dead letters +1$", said.out, re.MULTILINE)
    assert re.search(r"^  remembered log-ins and log-outs +1$", said.out, re.MULTILINE)
    assert dead_of(server) == []
    assert sums_add_up(server)
    sandbox.clear()  # the operator deletes the contact there
    back(server)
    retries = identify(token=early), track("two")
    assert browser.statuses(*retries, ids=[known, waiting]) == ["duplicate", "duplicate"]
    assert browser.statuses(track("three")) == ["held"]  # the old cookie counts for nothing
    assert Browser(server).statuses(identify(token=early), track("four")) == [
        "accepted",
        "held",
    ]  # nor does the old token
    Browser(server).logs_in(other)
    arrives(sandbox, other, "identify")
    eventually(lambda: status(server)["waiting"] == 0)
    assert sandbox.contacts.get(email) is None
    assert not is_anywhere(sandbox, email)
    assert email.lower() not in server.log.lower()
    assert sums_add_up(server)
    server.restart()
    assert Browser(server).statuses(identify(token=token(email, iat_in=5))) == [
        "accepted"
    ]  # a new log-in is new consent
    assert arrives(sandbox, email, "identify") == ["identify"]


def test_erasing_somebody_unknown_says_so(server: Server, around: Callable[[], None]) -> None:
    email = new_email()
    around()
    said = ask(server, "erase", email)
    assert (said.code, said.err.splitlines()[0]) == (0, f"Store: {server.store}")
    assert said.out.startswith("Nothing was known of this person.")
    assert lines(ask(server, "erase", email, "--json")) == [{"waiting": 0, "held": 0, "dead": 0, "identities": 0}]
    assert email not in server.log


def test_erase_takes_an_address_and_an_existing_store(tmp_path: Path) -> None:
    for wrong in ("", "nobody"):
        assert "EMAIL" in scq("erase", wrong, cwd=tmp_path).err
    said = scq("erase", "ada@example.com", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"There is no store at {tmp_path}/scq.db" in said.err
    assert "ada@" not in said.err


# Stores with many dead letters


def buried_store(directory: Path, count: int) -> Path:
    """A store without a server that holds so many dead letters, of two contacts in turn."""
    return asyncio.run(_buried(directory, count))


async def _buried(directory: Path, count: int) -> Path:
    path = directory / "scq.db"
    age = timedelta(days=30)
    outbox = await open_outbox(path, create=True, hold_age=age, dead_age=age, min_free_bytes=0)
    ops = tuple(_enqueued(number) for number in range(count))
    await outbox.append(lambda facts: Decision(ops, None))
    await _kill_all(outbox)
    await outbox.close()
    return path


def _enqueued(number: int) -> Enqueue:
    address = f"p{number % 2}@example.com"
    body = Track((f"tag {number}",)) if number % 3 else Attributes({"firstName": "P"})
    return Enqueue(f"0192f3a1-0000-7000-8000-{number:012}", address, address, Trust.VERIFIED, body)


async def _kill_all(outbox: Any) -> None:
    while leases := (await outbox.claim(10, 100, 60.0)).leases:
        for lease in leases:
            results = [Settled(push.seq, Fate.DEAD, reason=DeadReason.REJECTED, detail="422") for push in lease.pushes]
            assert await outbox.settle(Settlement(lease, tuple(results)))


def stored(path: Path) -> list[str]:
    """Ids of the dead letters, read behind everybody's back."""
    with closing(sqlite3.connect(path)) as store:
        return [push_id for (push_id,) in store.execute("SELECT id FROM dead ORDER BY seq")]
