"""`scq-proxy signups`: sign-ups that wait for their turn, and from which networks they were typed; a flood of them is dropped.

Nothing is dropped by accident: it wants a filter or `--all`, and asks. Addresses appear, because the operator asks for them.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Annotated

import typer
from typer import Option

from proxy.cli.terminal import (
    EnvFile,
    confirm,
    json_line,
    last_of,
    print_table,
    progress_bar,
    read,
    store_of,
    write_json,
)
from proxy.config.types import StoreUrl
from proxy.ops.sign_ups import (
    STEP,
    CountSignUps,
    Dropping,
    DropSignUps,
    ListOrigins,
    ListSignUps,
    Origin,
    Selection,
    Typed,
)

SHOWN = 50  # in a list for a person, unless told
_WHAT = "sign-ups"
_CLIENT_6 = 64  # prefix length of what is one client in IPv6

sign_ups = typer.Typer(
    name="signups",
    help="List and drop sign-ups that wait for their turn.\n\n"
    "A sign-up is an address that was typed and of which nothing is known. SCQ_SIGNUPS_PER_HOUR and SCQ_SIGNUPS_PER_IP say how many are "
    "sent to SendX in an hour; the others wait, and customers do not. These commands need no setting but SCQ_STORE. With SQLite they ask "
    "the running server, or open the store if none is running; with PostgreSQL they work from any machine that reaches it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def network_of(text: str) -> str:
    """Returns a network as it is asked for. An IPv6 client is known by its /64 only; `unknown` is what the store calls those of an older one."""
    if text == "unknown":
        return text
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        raise typer.BadParameter("this is not a network; an example is 2001:db8::/32.") from None
    if network.version == 6 and network.prefixlen > _CLIENT_6:
        network = ip_network((network.network_address, _CLIENT_6), strict=False)
    return str(network)


def instant(text: str) -> float:
    try:
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        raise typer.BadParameter("this is not a time; an example is 2026-11-30T21:00, which is UTC.") from None


# fmt: off
Network = Annotated[str | None, Option(metavar="NETWORK", parser=network_of, help="Only those typed in this network, such as 2001:db8::/32.")]
Since = Annotated[float | None, Option(metavar="TIME", parser=instant, help="Only those since then: 2026-11-30T21:00, in UTC.")]
Before = Annotated[float | None, Option(metavar="TIME", parser=instant, help="Only those before then.")]
Pattern = Annotated[str | None, Option("--address", metavar="PATTERN", help="Only addresses like this: '*@example.com', with * and ?.")]
# fmt: on


@sign_ups.command("list")
def list_command(
    network: Network = None,
    since: Since = None,
    before: Before = None,
    pattern: Pattern = None,
    networks: Annotated[
        bool,
        Option("--networks", help="Show how many wait by network instead, the widest ones, or those within --network."),
    ] = False,
    limit: Annotated[
        int | None, Option(metavar="N", min=1, help=f"Show N. Without it {SHOWN} are shown, with --json all.")
    ] = None,
    env_file: EnvFile = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List sign-ups that wait for their turn.

    The newest is last, and the network with the most is first. Times are UTC.
    """
    selection = Selection(network, since, before, pattern)
    store = store_of(env_file)
    if networks:
        _list_networks(store, selection, limit, as_json)
    elif as_json and limit is None:
        asyncio.run(write_json(read(store, ListSignUps(selection), Typed), sys.stdout, _WHAT, STEP))
    else:
        total, last = asyncio.run(last_of(read(store, ListSignUps(selection), Typed), limit or SHOWN))
        if as_json:
            _print_json(last)
        elif total:
            rows = [(_minute(each.since), each.client, str(each.pushes), each.address) for each in last]
            print_table([("SINCE (UTC)", "CLIENT", "PUSHES", "ADDRESS"), *rows])
            more = (
                f"These are the last {len(last)} of {total}; --limit {total} shows all. " if len(last) < total else ""
            )
            sys.stderr.write(f"{more}scq-proxy signups list --networks shows where they come from.\n")
        else:
            sys.stdout.write(_none_of(selection))


@sign_ups.command()
def drop(
    network: Network = None,
    since: Since = None,
    before: Before = None,
    pattern: Pattern = None,
    everything: Annotated[bool, Option("--all", help="All sign-ups that wait.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    env_file: EnvFile = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Drop sign-ups that wait, with all that waits for their addresses.

    It says how many, and asks before it does; where nobody can be asked it needs --yes. Nothing is remembered of a dropped
    address: somebody who types it again signs up again.
    """
    selection = Selection(network, since, before, pattern)
    if everything == (selection != Selection()):
        wrong = "give only one of these" if everything else "say what to drop"
        raise typer.BadParameter(
            f"{wrong}: filters (--network, --since, --before, --address), or --all.\n"
            "For example: scq-proxy signups drop --network 2001:db8::/32"
        )
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("confirmation needs a terminal: add --yes to drop without being asked.")
    store = store_of(env_file)
    total = asyncio.run(_run(store, CountSignUps(selection))).total
    if total and not yes:
        confirm(f"Drop {_addresses(total)} and all that waits for {_them(total)}?", "Nothing was dropped.")
    elif total:
        sys.stderr.write(f"{_addresses(total).capitalize()} to drop.\n")
    dropped = asyncio.run(_run(store, DropSignUps(selection, total))).done if total else 0
    if as_json:
        sys.stdout.write(json_line({"dropped": dropped}))
    else:
        sys.stdout.write(f"Dropped {_addresses(dropped)}.\n" if dropped else _none_of(selection))


def _list_networks(store: StoreUrl, selection: Selection, limit: int | None, as_json: bool) -> None:
    origins = asyncio.run(_read_origins(store, selection))
    shown = origins[: limit or (None if as_json else SHOWN)]
    if as_json:
        _print_json(shown)
    elif origins:
        rows = [(each.network, str(each.sign_ups), str(each.clients), _minute(each.since)) for each in shown]
        print_table([("NETWORK", "SIGN-UPS", "CLIENTS", "SINCE (UTC)"), *rows])
        more = f"These are {len(shown)} of {len(origins)} networks. " if len(shown) < len(origins) else ""
        sys.stderr.write(f"{more}--network NETWORK shows those within one.\n")
    else:
        sys.stdout.write(_none_of(selection))


async def _read_origins(store: StoreUrl, selection: Selection) -> list[Origin]:
    async with contextlib.aclosing(read(store, ListOrigins(selection), Origin)) as told:
        return [each async for each in told]


async def _run(store: StoreUrl, command: CountSignUps | DropSignUps) -> Dropping:
    """Carries a command out that says how far it has come, and returns the last that it said."""
    last = Dropping(0, 0)
    with progress_bar(_WHAT, longer_than=STEP) as show_progress:
        async with contextlib.aclosing(read(store, command, Dropping)) as told:
            async for last in told:
                show_progress(_WHAT, last.done, last.total)
    return last


def _print_json(values: Iterable[Typed] | Sequence[Origin]) -> None:
    for each in values:
        sys.stdout.write(json_line(each))


def _minute(since: str) -> str:
    return since[:16].replace("T", " ")


def _addresses(count: int) -> str:
    return "1 address" if count == 1 else f"{count} addresses"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _none_of(selection: Selection) -> str:
    return "No sign-up waits for its turn.\n" if selection == Selection() else "No sign-up matches.\n"
