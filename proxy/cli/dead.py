"""`scq-proxy dead`: what could not be delivered, listed, shown, exported, replayed and discarded.

Nothing is acted on by accident: replay and discard want ids, a filter or `--all`, and discard asks. Ids are the ids of pushes, as pages made
them and as every command here shows them. Addresses appear, because the operator asks for them; the log of the server shows none of it.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TextIO

import msgspec
import typer
from typer import Argument, Option

from proxy.cli.terminal import (
    EnvFile,
    address,
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
from proxy.errors import StoreRefused
from proxy.ops.dead_letters import STEP, Advance, CountDead, DiscardDead, Letter, ListDead, ReplayDead, Selection
from proxy.store.records import DeadReason

SHOWN = 50  # letters in a list for a person, unless told
_DAY_SECONDS = 86_400
_WHAT = "dead letters"
_WIDEST = 60  # characters of a push in a list

dead = typer.Typer(
    name="dead",
    help="List, replay and discard dead letters.\n\n"
    "A dead letter is a push that SendX refused, that was tried in vain for days, or whose outcome is unknown. It is kept for "
    "SCQ_DEAD_DAYS. ID is the id of the push, as the list shows it. These commands need no setting but SCQ_STORE. With SQLite they ask the "
    "running server, or open the store if none is running; with PostgreSQL they work from any machine that reaches it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Ids = Annotated[list[str] | None, Argument(metavar="ID", help="Ids of pushes, as the list shows them.")]
ByReason = Annotated[DeadReason | None, Option("--reason", help="Only those that died for this reason.")]
OlderThan = Annotated[
    int | None, Option(metavar="DAYS", min=1, max=36_500, help="Only those that died at least so many days ago.")
]
Contact = Annotated[str | None, Option(metavar="EMAIL", callback=address, help="Only those for this address.")]
All = Annotated[bool, Option("--all", help="All dead letters.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object a line.")]


@dead.command("list")
def list_command(
    reason: ByReason = None,
    older_than: OlderThan = None,
    contact: Contact = None,
    limit: Annotated[
        int | None, Option(metavar="N", min=1, help=f"Show the last N. Without it {SHOWN} are shown, with --json all.")
    ] = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters.

    The order is that of the pushes, the newest last. Times are UTC.
    """
    selection = _filtered(reason, older_than, contact)
    store = store_of(env_file)
    if as_json and limit is None:
        asyncio.run(write_json(_read(store, selection), sys.stdout, _WHAT, STEP))
        return
    total, letters = asyncio.run(last_of(_read(store, selection), limit or SHOWN))
    if as_json:
        for letter in letters:
            sys.stdout.write(json_line(letter))
    elif total:
        _print_table(letters)
        sys.stderr.write(_footer(len(letters), total))
    else:
        sys.stdout.write(_none_of(selection))


@dead.command()
def show(
    push_id: Annotated[str, Argument(metavar="ID", help="Id of the push, as the list shows it.")],
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter in full."""
    store = store_of(env_file)
    _, letters = asyncio.run(last_of(_read(store, Selection(ids=(push_id,))), 1))
    if not letters:
        raise StoreRefused(f"No dead letter has the id {push_id[:64]!a}: scq-proxy dead list shows the ids.")
    if as_json:
        sys.stdout.write(json_line(letters[0]))
    else:
        _print_letter(letters[0])


@dead.command()
def export(
    reason: ByReason = None,
    older_than: OlderThan = None,
    contact: Contact = None,
    output: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write to this new file, for its owner only, and not to standard output."),
    ] = None,
    env_file: EnvFile = None,
    as_json: Annotated[bool, Option("--json", help="JSON Lines, which it prints anyway.")] = False,  # noqa: ARG001
) -> None:
    """Write dead letters as JSON Lines.

    Each line is a JSON object with id, contact, reason, at, push and more, as with list --json. Nothing is removed. The file holds
    addresses: it is made readable for its owner only.
    """
    selection = _filtered(reason, older_than, contact)
    store = store_of(env_file)
    with contextlib.nullcontext(sys.stdout) if output is None else _new_file(output) as file:
        written = asyncio.run(write_json(_read(store, selection), file, _WHAT, STEP))
    sys.stderr.write(f"Exported {_letters(written)}{f' to {output.absolute()}' if output else '.'}\n")


@dead.command()
def replay(
    ids: Ids = None,
    reason: ByReason = None,
    older_than: OlderThan = None,
    contact: Contact = None,
    everything: All = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again.

    Each goes to the tail of its contact's lane, behind what waits there, as if it had never been tried. One that is "ambiguous" may
    already have counted at SendX: sending it again may count it twice. With --json it prints what was replayed.
    """
    selection = _chosen(ids, reason, older_than, contact, everything, "replay")
    replayed = asyncio.run(_run(store_of(env_file), ReplayDead(selection, letters=as_json))).done
    _say(f"Replayed {_letters(replayed)}; sent while the server runs.\n" if replayed else _none_of(selection), as_json)


@dead.command()
def discard(
    ids: Ids = None,
    reason: ByReason = None,
    older_than: OlderThan = None,
    contact: Contact = None,
    everything: All = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Drop dead letters for good.

    It asks before it does, and where nobody can be asked it needs --yes. Export them first to keep them. With --json it prints what
    was discarded.
    """
    selection = _chosen(ids, reason, older_than, contact, everything, "discard")
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("confirmation needs a terminal: add --yes to discard without being asked.")
    store = store_of(env_file)
    if not yes:
        selection = _confirmed(store, selection)
    discarded = asyncio.run(_run(store, DiscardDead(selection, letters=as_json))).done
    _say(f"Discarded {_letters(discarded)}.\n" if discarded else _none_of(selection), as_json)


def _filtered(reason: DeadReason | None, older_than: int | None, contact: str | None) -> Selection:
    before = time.time() - older_than * _DAY_SECONDS if older_than is not None else None
    return Selection(reason=reason, contact=contact, before=before)


def _chosen(
    ids: list[str] | None,
    reason: DeadReason | None,
    older_than: int | None,
    contact: str | None,
    everything: bool,
    verb: str,
) -> Selection:
    """What to act on, if it was said in one of three ways. Everything must be asked for by name, not by leaving something out."""
    filtered = _filtered(reason, older_than, contact)
    ways = [bool(ids), filtered != Selection(), everything]
    if sum(ways) != 1:
        wrong = "give only one of these" if any(ways) else f"say what to {verb}"
        raise typer.BadParameter(
            f"{wrong}: ids, or filters (--reason, --older-than, --contact), or --all.\n"
            f"For example: scq-proxy dead {verb} --reason rejected"
        )
    return msgspec.structs.replace(filtered, ids=tuple(dict.fromkeys(ids or ())))


def _confirmed(store: StoreUrl, selection: Selection) -> Selection:
    """Asks. What dies while the question stands is not meant by the answer. Raises `typer.Exit`."""
    now = time.time()
    selection = msgspec.structs.replace(selection, before=min(selection.before or now, now))
    total = asyncio.run(_run(store, CountDead(selection))).total
    if total:
        confirm(f"Discard {_letters(total)} for good?", "Nothing was discarded.")
    return selection


async def _run(store: StoreUrl, command: CountDead | ReplayDead | DiscardDead) -> Advance:
    """Carries a command out that says how far it has come, writes the letters that it tells of, and returns the last that it said."""
    last = Advance(0, 0)
    hidden = not isinstance(command, CountDead) and command.letters and sys.stdout.isatty()
    with progress_bar(_WHAT, longer_than=STEP, hidden=hidden) as show_progress:
        async with contextlib.aclosing(read(store, command, Advance)) as told:
            async for last in told:
                if last.letter is not None:
                    with contextlib.suppress(
                        BrokenPipeError
                    ):  # a reader that has gone does not stop what was asked for
                        sys.stdout.write(json_line(last.letter))
                show_progress(_WHAT, last.done, last.total)
    return last


def _read(store: StoreUrl, selection: Selection) -> AsyncGenerator[Letter, None]:
    return read(store, ListDead(selection), Letter)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """A file that was not there before, on disk when this returns: what was exported may be discarded next. None is left half written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise typer.BadParameter(f"{path} exists already, and is not overwritten: name another file.") from None
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be made: {error.strerror}.") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}.") from None
    except BaseException:
        path.unlink()
        raise


def _say(sentence: str, as_json: bool) -> None:
    (sys.stderr if as_json else sys.stdout).write(sentence)


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"


def _none_of(selection: Selection) -> str:
    return "There are no dead letters.\n" if selection == Selection() else "No dead letter matches.\n"


def _footer(shown: int, total: int) -> str:
    more = f"These are the last {shown} of {_letters(total)}; --limit {total} shows all. " if shown < total else ""
    return f"{more}scq-proxy dead show ID shows one in full.\n"


def _print_table(letters: list[Letter]) -> None:
    rows: list[Sequence[str]] = [("DIED (UTC)", "REASON", "ID", "CONTACT", "PUSH")]
    rows += [
        (letter.at[:16].replace("T", " "), str(letter.reason), letter.id, letter.contact, _summary(letter))
        for letter in letters
    ]
    print_table(rows)


def _summary(letter: Letter) -> str:
    """What a push does, in a few words."""
    _, argument = letter.push
    tags = [f"+{tag}" for tag in (*argument.get("addTags", ()), *argument.get("tags", ()))]
    tags += [f"-{tag}" for tag in argument.get("removeTags", ())]
    names = [name for name in argument if name not in ("email", "tags", "addTags", "removeTags")]
    summary = " ".join([letter.kind, *names, *tags])
    return summary if len(summary) <= _WIDEST else summary[: _WIDEST - 1] + "…"


def _print_letter(letter: Letter) -> None:
    facts: dict[str, object] = {
        "id": letter.id,
        "contact": letter.contact,
        "reason": letter.reason,
        "detail": letter.detail,
        "died": letter.at,
        "acknowledged": letter.since,
        "attempts": letter.attempts,
        "push": json.dumps(letter.push, ensure_ascii=False),
    }
    print_table(facts.items())
