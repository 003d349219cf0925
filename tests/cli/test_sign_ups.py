"""`scq-proxy signups` as an operator uses it, with the server running and with it stopped: from where a flood comes, and away with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.core.calls import Attributes
from proxy.core.decision import Decision, Enqueue
from proxy.core.visitors import Trust
from proxy.ops.sign_ups import STEP, Dropping, DropSignUps, ListOrigins, Origin, Selection, SignUpCommands
from proxy.sandbox.api import Sandbox
from proxy.store.sqlite.outbox import open_outbox
from tests.support.commands import Said, at_a_terminal, scq
from tests.support.live import eventually
from tests.support.server import ADMIN_TOKEN, Browser, Server, arrives, identify, new_email, requests_about, track

SUBCOMMANDS = ("list", "drop")
HOME, OFFICE = "203.0.113.7", "198.51.100.1"
FLOOD = ("2001:db8:1:1::5", "2001:db8:1:2::5", "2001:db8:2:1::5")  # three clients in two /48 of one /32


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """One sign-up leaves at once, and another in an hour."""
    return {"SCQ_IDENTIFY": "asserted", "SCQ_SIGNUPS_PER_HOUR": "2", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN}


@pytest.fixture(params=["running", "stopped"])
def around(request: pytest.FixtureRequest, server: Server) -> Callable[[], None]:
    """Called between what happens and the commands about it: leaves the server as it is, or stops it."""

    def go() -> None:
        if request.param == "stopped":
            assert server.stop() == 0

    return go


def ask(server: Server, *arguments: str) -> Said:
    """A command in the server's directory, with no setting at all: the store there is the default one."""
    return scq("signups", *arguments, cwd=server.directory)


def lines(said: Said) -> list[dict[str, Any]]:
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


def waiting(server: Server, *filters: str) -> list[str]:
    return [each["address"] for each in lines(ask(server, "list", "--json", *filters))]


def typed(server: Server, client: str, email: str, *calls: Any) -> None:
    browser = Browser(server, x_forwarded_for=client)
    assert browser.statuses(identify(email=email), *calls) == ["accepted"] * (1 + len(calls))


def report(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get("/scq/status", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()
    return found


def use_up(server: Server, sandbox: Sandbox) -> None:
    """The sign-up that leaves at once."""
    first = new_email("first")
    typed(server, "192.0.2.1", first)
    arrives(sandbox, first, "identify")


@pytest.fixture
def flooded(server: Server, sandbox: Sandbox) -> list[str]:
    """Addresses that wait: of a newcomer, and of three clients of a flood."""
    use_up(server, sandbox)
    emails = [new_email("ada"), *(new_email("flood") for _ in FLOOD)]
    for client, email in zip((HOME, *FLOOD), emails, strict=True):
        typed(server, client, email, track("typed-1"))
    eventually(lambda: report(server)["sign_ups"] == 4)
    return emails


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_help_of_each_command_fits_a_narrow_terminal_and_ends_its_sentences(tmp_path: Path, name: str) -> None:
    said = scq("signups", name, "--help", cwd=tmp_path, COLUMNS="60")
    assert (said.code, said.err) == (0, "")
    assert f"Usage: scq-proxy signups {name}" in said.out
    assert all(len(row) <= 60 for row in said.out.splitlines())
    description = said.out.partition("\n\n")[2].partition("Options:")[0]
    assert re.fullmatch(r"\s*[A-Z].*\.\s*", description, re.DOTALL)


def test_sign_ups_that_wait_are_listed_with_who_typed_them(
    server: Server, flooded: list[str], around: Callable[[], None]
) -> None:
    around()
    said = ask(server, "list", "--json")
    assert said.err == f"Store: {server.store}\n"
    found = lines(said)
    assert [each["address"] for each in found] == flooded
    assert [each["client"] for each in found] == [
        HOME,
        *("2001:db8:1:1::/64", "2001:db8:1:2::/64", "2001:db8:2:1::/64"),
    ]
    assert {each["pushes"] for each in found} == {2}
    assert all(
        timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(each["since"]) < timedelta(minutes=5)
        for each in found
    )
    assert not any(email in server.log for email in flooded)


def test_a_list_for_a_person_is_a_table_with_the_newest_last(server: Server, flooded: list[str]) -> None:
    said = ask(server, "list")
    heading, *rows = said.out.splitlines()
    assert re.split(" {2,}", heading) == ["SINCE (UTC)", "CLIENT", "PUSHES", "ADDRESS"]
    assert re.split(" {2,}", rows[0])[1:] == [HOME, "2", flooded[0]]
    assert [row.split()[-1] for row in rows] == flooded
    assert "signups list --networks" in said.err
    last = ask(server, "list", "--limit", "1")
    assert last.out.splitlines()[1:] == rows[-1:]
    assert "the last 1 of 4; --limit 4 shows all" in last.err
    assert waiting(server, "--limit", "2") == flooded[2:]


def test_the_networks_show_at_once_where_a_flood_comes_from(
    server: Server, flooded: list[str], around: Callable[[], None]
) -> None:
    around()
    said = ask(server, "list", "--networks")
    heading, *rows = said.out.splitlines()
    assert re.split(" {2,}", heading) == ["NETWORK", "SIGN-UPS", "CLIENTS", "SINCE (UTC)"]
    assert [row.split()[:3] for row in rows] == [["2001:db8::/32", "3", "3"], ["203.0.0.0/16", "1", "1"]]
    assert "--network NETWORK" in said.err
    within = lines(ask(server, "list", "--networks", "--network", "2001:db8::/32", "--json"))
    assert [(each["network"], each["sign_ups"]) for each in within] == [("2001:db8:1::/48", 2), ("2001:db8:2::/48", 1)]
    assert list(within[0]) == ["network", "sign_ups", "clients", "since"]
    assert ask(server, "list", "--networks", "--limit", "1").out.splitlines()[1:] == rows[:1]


def test_filters_choose_by_network_time_and_address(server: Server, flooded: list[str]) -> None:
    assert server.stop() == 0
    now = datetime.now(UTC)
    soon, earlier = (now + timedelta(minutes=5)).isoformat(), f"{now - timedelta(minutes=5):%Y-%m-%dT%H:%M}"
    assert waiting(server, "--network", "2001:db8:1::/48") == flooded[1:3]
    assert waiting(server, "--network", "2001:db8:2:1::5") == flooded[3:], "an IPv6 client is known by its /64"
    assert waiting(server, "--network", HOME) == flooded[:1]
    assert waiting(server, "--network", "unknown") == []
    assert waiting(server, "--since", earlier, "--before", soon) == flooded
    assert waiting(server, "--since", soon) == waiting(server, "--before", earlier) == []
    assert waiting(server, "--address", "FLOOD*") == flooded[1:]
    assert waiting(server, "--address", "flood*", "--network", HOME) == []
    assert ask(server, "list", "--since", soon).out == "No sign-up matches.\n"


def test_a_flood_is_dropped_and_a_newcomer_is_not(
    server: Server, sandbox: Sandbox, flooded: list[str], around: Callable[[], None]
) -> None:
    around()
    said = ask(server, "drop", "--network", "2001:db8::/32", "--yes")
    assert (said.code, said.out) == (0, "Dropped 3 addresses.\n")
    assert "3 addresses to drop." in said.err
    assert waiting(server) == flooded[:1]
    audited = server.log + said.err
    assert "Sign-ups: drop of 3 (network 2001:db8::/32); by " in audited
    assert not any(email in audited for email in flooded)
    if server.died():
        server.start()
    counters = report(server)["counters"]
    assert counters["discarded"] == 6
    assert counters["accepted"] == counters["delivered"] + 6 + report(server)["waiting"]


def test_what_is_dropped_may_be_typed_again(server: Server, flooded: list[str]) -> None:
    said = ask(server, "drop", "--all", "--yes", "--json")
    assert lines(said) == [{"dropped": 4}]
    assert report(server)["sign_ups"] == report(server)["waiting"] == 0
    assert ask(server, "list").out == "No sign-up waits for its turn.\n"
    assert ask(server, "drop", "--all", "--yes").out == "No sign-up waits for its turn.\n"
    typed(server, OFFICE, flooded[0])
    assert waiting(server) == flooded[:1]


def test_the_cookie_of_a_dropped_sign_up_sends_nothing_without_another_turn(server: Server, sandbox: Sandbox) -> None:
    use_up(server, sandbox)
    browser, email = Browser(server, x_forwarded_for=OFFICE), new_email("flood")
    assert browser.statuses(identify(email=email)) == ["accepted"]
    late = Browser(server, x_forwarded_for=OFFICE)
    late.s = browser.s
    assert late.statuses(track("typed-0")) == ["held"]
    assert ask(server, "drop", "--all", "--yes").out == "Dropped 1 address.\n"
    for call in (track("typed-1"), identify(firstName="Ann"), identify(email=email)):
        assert browser.statuses(call) == ["accepted"]
        eventually(lambda: report(server)["sign_ups"] == 1)
    assert waiting(server) == [email]
    assert not requests_about(sandbox, email)


def test_an_address_in_a_filter_and_a_client_are_not_in_the_log(server: Server, flooded: list[str]) -> None:
    assert ask(server, "drop", "--address", flooded[1], "--network", FLOOD[0], "--yes").code == 0
    assert re.search(r"drop of 1 \(network [0-9a-f]{16}, pattern [0-9a-f]{16}\)", server.log)
    assert waiting(server) == [flooded[0], *flooded[2:]]


def test_drop_asks_with_the_number(server: Server, flooded: list[str]) -> None:
    drop = ("signups", "drop", "--address", "flood*")
    refused = at_a_terminal(*drop, cwd=server.directory, typed="n\n")
    assert (refused.code, refused.out.strip()) == (2, "")
    assert "Drop 3 addresses and all that waits for them?" in refused.err
    assert "Nothing was dropped." in refused.err
    assert len(waiting(server)) == 4
    agreed = at_a_terminal(*drop, cwd=server.directory, typed="y\n")
    assert (agreed.code, agreed.out.strip()) == (0, "Dropped 3 addresses.")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["list", "--network", "example.com"], "2001:db8::/32"),
        (["list", "--network", "10.0.0.0/33"], "2001:db8::/32"),
        (["list", "--since", "yesterday"], "2026-11-30T21:00"),
        (["list", "--before", "0001-01-01T00:00+23:00"], "2026-11-30T21:00"),
        (["list", "--limit", "0"], "--limit"),
        (["drop"], "say what to drop"),
        (["drop", "--yes"], "say what to drop"),
        (["drop", "--all", "--network", "10.0.0.0/8"], "give only one of these"),
        (["drop", "--all"], "add --yes"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(tmp_path: Path, arguments: list[str], named: str) -> None:
    said = scq("signups", *arguments, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert named in " ".join(said.err.split())


@pytest.mark.parametrize("arguments", [["list"], ["list", "--networks"], ["drop", "--all", "--yes"]])
def test_without_a_store_the_commands_say_so_and_make_none(tmp_path: Path, arguments: list[str]) -> None:
    said = scq("signups", *arguments, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"There is no store at {tmp_path}/scq.db" in said.err
    assert list(tmp_path.iterdir()) == []


# Many of them


async def _many(path: Path, count: int) -> Any:
    age = timedelta(days=30)
    outbox = await open_outbox(path, create=True, hold_age=age, dead_age=age, min_free_bytes=0)
    ops = tuple(
        Enqueue(
            *(f"0192f3a1-0000-7000-8000-{number:012}", f"p{number}@example.com", f"p{number}@example.com"),
            Trust.ASSERTED,
            Attributes(),
            f"198.51.{number % 256}.{number // 256}",
        )
        for number in range(count)
    )
    await outbox.append(lambda _: Decision(ops, None))
    return outbox


async def test_many_are_dropped_in_steps_and_no_more_than_were_counted(tmp_path: Path) -> None:
    outbox = await _many(tmp_path / "scq.db", 2 * STEP + 7)
    commands = SignUpCommands(outbox)
    told = [each async for each in commands.drop(DropSignUps(Selection(), STEP + 5))]
    assert told[-1] == Dropping(STEP + 5, STEP + 5)
    assert Dropping(STEP, STEP + 5) in told
    assert (await outbox.stats()).sign_ups == STEP + 2
    (origin,) = [each async for each in commands.list_origins(ListOrigins(Selection()))]
    assert isinstance(origin, Origin)
    assert (origin.network, origin.sign_ups, origin.clients) == ("198.51.0.0/16", STEP + 2, STEP + 2)
    await outbox.close()
