"""The commands on the store: its state, a person to forget, its schema, and the move from one to another.

They need no setting but SCQ_STORE. With SQLite they ask the running server, or open the file if none is running; with PostgreSQL they work on
the database, from any machine that reaches it.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.text import Text
from typer import Argument, Option

from proxy.cli.terminal import AsJson, EnvFile, address, answers, console, escaped, print_table, progress_bar, store_of
from proxy.config.parsers import Wrong
from proxy.config.parsers import store as parse_store
from proxy.config.types import PostgresUrl, SqliteUrl, StoreUrl
from proxy.errors import StoreRefused
from proxy.ops.control import ask_once, ask_processes
from proxy.ops.dead_letters import Adopt, Erase
from proxy.ops.pages import AskReport
from proxy.ops.report import Report, facts_of, missing_server, read_report, together
from proxy.store.records import Adopted, Erased
from proxy.stores import assess_database, copy_store, migrate_database, open_existing

_Url = TypeVar("_Url", SqliteUrl, PostgresUrl)

_WHAT_THE_FILE_SAYS = "No server is running: this is what the store says."
_WHAT_THE_DATABASE_SAYS = "This is what the database says. What a node does at the moment is on its own status page."


def status(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show backlog, failures and what was refused.

    It asks the running server, or reads the store if none is running; with PostgreSQL it asks the processes of this user on this machine,
    or reads the database. Needs no setting but SCQ_STORE. Tags and fields that pages asked for in vain are listed with the setting that
    would offer them. Exits with 1 if something needs attention.
    """
    store = store_of(env_file)
    report = asyncio.run(_report(store))
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _print_report(report, store)
    raise typer.Exit(1 if report.problems else 0)


async def _report(store: StoreUrl) -> Report:
    """From the running server, or from the store itself while none runs here."""
    if isinstance(store, PostgresUrl):
        if reports := await ask_processes(store.place, AskReport(), Report):
            return together(reports)
    else:
        with contextlib.suppress(ConnectionError):
            return await ask_once(store.path, AskReport(), Report)
    async with open_existing(store) as outbox:
        report = await read_report(outbox)
    if isinstance(store, SqliteUrl):
        return msgspec.structs.replace(report, problems=(*missing_server(report), *report.problems))
    return report


def _print_report(report: Report, store: StoreUrl) -> None:
    out = console()
    for problem in report.problems:
        out.print(Text.assemble(("! ", "red"), escaped(problem)))
    if not report.problems:
        out.print(Text("All is well.", "green"))
    if report.delivery is None:
        out.print(_WHAT_THE_FILE_SAYS if isinstance(store, SqliteUrl) else _WHAT_THE_DATABASE_SAYS)
    print_table([("store", store.place), *facts_of(report)], indent="  ")
    if report.refused_names:
        out.print("\nPages asked for these, and they are not offered:")
        names = [
            (f"{each.count:6} x", each.setting, json.dumps(each.name, ensure_ascii=False))
            for each in report.refused_names
        ]
        print_table(names, indent="  ")


def erase(
    email: Annotated[str, Argument(metavar="EMAIL", callback=address, help="Who is to be forgotten.")],
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Forget a person.

    It removes what waits, what is held and what is dead of theirs, and who their browsers were; a hash stays, so that late retries and
    old cookies do not bring them back. A new log-in does. SendX is not told: delete the contact there too. Needs no setting but SCQ_STORE,
    and asks nothing.
    """
    erased = asyncio.run(_erase(env_file, email))
    if as_json:
        sys.stdout.write(msgspec.json.encode(erased).decode() + "\n")
    elif erased == Erased(waiting=0, held=0, dead=0, identities=0):
        sys.stdout.write("Nothing was known of this person. Late retries will not bring them back.\n")
    else:
        sys.stdout.write(
            "Erased. Late retries and old cookies will not bring this person back.\n"
            f"  waiting pushes                    {erased.waiting}\n"
            f"  held pushes                       {erased.held}\n"
            f"  dead letters                      {erased.dead}\n"
            f"  remembered log-ins and log-outs   {erased.identities}\n"
            "SendX still has what was delivered: delete the contact there too.\n"
        )


async def _erase(env_file: Path | None, email: str) -> Erased:
    async with contextlib.aclosing(answers(store_of(env_file), Erase(email))) as told:
        return msgspec.convert(await anext(told), Erased)


store_commands = typer.Typer(
    name="store",
    help="Recover a store that was set aside.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@store_commands.callback()
def _store() -> None:
    """Make typer keep the name of the only command."""


@store_commands.command()
def adopt(
    file: Annotated[Path, Argument(metavar="FILE", help="The file that was set aside, as scq-proxy status names it.")],
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Recover a damaged store that was set aside, as far as it can be read.

    Copies its waiting and held pushes, dead letters and known ids into the store of SCQ_STORE. Pushes that this store already has are skipped, so
    the command may be repeated. The file stays unchanged. Needs no setting but SCQ_STORE.
    """
    store = store_of(env_file)
    if not isinstance(store, SqliteUrl):
        raise typer.BadParameter("only an SQLite store can recover a file. Set SCQ_STORE to one.", param_hint="FILE")
    beside = store.path.absolute().parent / file
    adopted = asyncio.run(_adopt(store, beside if beside.exists() and not file.exists() else file.absolute()))
    if as_json:
        sys.stdout.write(msgspec.json.encode(adopted).decode() + "\n")
    elif adopted.before:
        sys.stdout.write("This file has been recovered before, and nothing was changed. Remove it.\n")
    else:
        sys.stdout.write("Recovered:\n")
        print_table(
            [
                ("waiting pushes", adopted.waiting),
                ("held pushes", adopted.held),
                ("dead letters", adopted.dead),
                ("ids of other pushes", adopted.ids),
                ("already in this store", adopted.known),
                ("of people who were erased", adopted.erased),
                ("could not be read", "some" if adopted.missing is None else adopted.missing),
            ],
            indent="  ",
        )
        sys.stdout.write(
            "The file is unchanged. Once the disk is repaired and you no longer need the file, remove it.\n"
        )


async def _adopt(store: StoreUrl, file: Path) -> Adopted:
    adopted = Adopted()
    async with contextlib.aclosing(answers(store, Adopt(str(file)))) as told:
        async for each in told:
            adopted = msgspec.convert(each, Adopted)
    return adopted


def migrate(env_file: EnvFile = None) -> None:
    """Make the schema in PostgreSQL, or bring it up to date.

    Run it once before nodes of a new version start; nodes of the version before it go on meanwhile. It may be run again at any time,
    and by several at once.
    """
    store = store_of(env_file)
    if isinstance(store, SqliteUrl):
        sys.stdout.write("An SQLite file needs no migration: scq-proxy serve brings it up to date when it opens it.\n")
        return
    before, after = asyncio.run(migrate_database(store))
    if before == after:
        sys.stdout.write(f"The schema is up to date (version {after}): nothing was changed.\n")
    else:
        done = f"brought from version {before} to {after}" if before else f"made (version {after})"
        sys.stdout.write(f"The schema was {done}.\n")


# fmt: off
Source = Annotated[str, Option("--from", metavar="URL", help="The SQLite store, of which no server runs: sqlite:///scq.db.")]
Target = Annotated[str, Option("--to", metavar="URL",
    help="The PostgreSQL store, empty: postgresql://... Without it SCQ_STORE counts, where no other user of the machine sees the password.")]
# fmt: on


def copy(source: Source, target: Target = "", env_file: EnvFile = None) -> None:
    """Move a store from SQLite to PostgreSQL.

    Stop the server, run scq-proxy migrate on the new store, then this. Everything is kept: order, ids, what is held, dead letters, counters,
    visitors, erased people. It is one transaction: all is copied or nothing. The file stays as it is; serve it no more, or what waits is sent
    twice.
    """
    file = _given(source, "--from", SqliteUrl)
    database = _given(target, "--to", PostgresUrl) if target else store_of(env_file)
    if isinstance(database, SqliteUrl):
        raise typer.BadParameter("SCQ_STORE is not a PostgreSQL store. Name one.", param_hint="--to")
    assessment = asyncio.run(assess_database(database))
    if assessment.obstacles:
        raise StoreRefused("\n".join(assessment.obstacles))
    for loss in assessment.losses:
        sys.stderr.write(f"! {loss}\n")
    with progress_bar("copying") as show_progress:
        copied = copy_store(file.path.absolute(), database.dsn.reveal(), show_progress)
    sys.stdout.write(f"Copied to {database.place}; the numbers of both stores are the same.\n")
    print_table(copied.items(), indent="  ")
    sys.stdout.write(
        "Now set SCQ_STORE to the new store, and keep the file as a backup: it must not be served again.\n"
    )


def _given(text: str, option: str, kind: type[_Url]) -> _Url:
    try:
        store = parse_store(text.strip())
    except Wrong as wrong:
        raise typer.BadParameter(f"it {wrong.reasons[0]}.", param_hint=option) from None
    if not isinstance(store, kind):
        raise typer.BadParameter(
            f"this must begin with {kind.scheme}://: a store is moved from SQLite to PostgreSQL.", param_hint=option
        )
    return store
