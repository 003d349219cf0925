"""What the commands share: options, the way to the store with or without a server, and text made safe for a terminal."""

import contextlib
import json
import os
import re
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import httpx
import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from proxy.cli.logs import start_logging
from proxy.config.settings import load_one
from proxy.config.types import SqliteUrl, StoreUrl
from proxy.core.emails import carriable_address
from proxy.errors import StoreRefused
from proxy.ops.audit import at_the_command_line, caller
from proxy.ops.control import Command, ask
from proxy.ops.dead_letters import StoreCommands
from proxy.stores import database_user, open_existing

EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="Read settings from this file; the environment goes before it. Without this option, .env is read if there is one.",
    ),
]
T = TypeVar("T")
ShowProgress = Callable[[str, int, int | None], None]  # what is done; how many are, and of how many, if that is known
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")]


def env_file_of(given: Path | None) -> Path | None:
    """The file that was named, else `.env` if there is one."""
    return Path(".env") if given is None and Path(".env").is_file() else given


def address(text: str | None) -> str | None:
    """Checks an e-mail address as a parameter's callback, as leniently as one that a back end vouches for. None: an option not given."""
    if text is None:
        return None
    cleaned = carriable_address(text)
    if cleaned is None:
        raise typer.BadParameter("this is not an e-mail address; an example is ada@example.com.")
    return cleaned


def escaped(text: str) -> Text:
    """Anybody's text for a terminal: never markup, and without control or direction characters."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text))


def console() -> Console:
    """Returns standard output as a terminal: text stands there as it is, and long lines are for the terminal to break."""
    return Console(highlight=False, soft_wrap=True)


def print_table(rows: Iterable[Sequence[object]], *, indent: str = "") -> None:
    """Prints rows of as many cells each, escaped, in columns that are as wide as their widest cell."""
    texts = [[escaped(str(cell)) for cell in row] for row in rows]
    widths = [max(text.cell_len for text in column) for column in zip(*texts, strict=True)][:-1]
    out = console()
    for row in texts:
        for text, width in zip(row, widths, strict=False):
            text.pad_right(width - text.cell_len + 2)
        out.print(Text.assemble(indent, *row))


@contextlib.contextmanager
def progress_bar(what: str, *, longer_than: int = 0, hidden: bool = False) -> Iterator[ShowProgress]:
    """Shows a progress bar on standard error, if that is a terminal, once more than `longer_than` is to be done or was done.

    `hidden`: where it would mix with output.
    """
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=terminal, transient=True, disable=hidden or not terminal.is_terminal)
    task = progress.add_task(what, total=None)

    def show(what: str, done: int, total: int | None) -> None:
        if max(done, total or 0) > longer_than:
            progress.start()
            progress.update(task, description=what, completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()


def store_of(env_file: Path | None) -> StoreUrl:
    """The store, which is also said on standard error, as its absolute path or its host. Raises `ConfigError`."""
    store: StoreUrl = load_one("store", os.environ, env_file_of(env_file))
    start_logging("warning", load_one("log_format", os.environ, env_file_of(env_file)))
    sys.stderr.write(f"Store: {store.place}\n")
    return store


async def answers(store: StoreUrl, command: Command) -> AsyncGenerator[Any, None]:
    """Yields the answers to a command as plain values: the running server's, or the store's own if none runs or it is a database.

    Raises `StoreRefused`, and `StoreUnavailable` if a database is in trouble.
    """
    answered = False
    try:
        if isinstance(store, SqliteUrl):
            async with contextlib.aclosing(ask(store.path, command)) as told:
                async for answer in told:
                    answered = True
                    yield answer
                return
    except ConnectionError:
        if answered:  # half of it is done: whoever asks again should know that they do
            raise StoreRefused("The running server disconnected before all was done. Run the command again.") from None
    caller.set(at_the_command_line(database_user(store)))
    async with open_existing(store) as outbox:
        async for answer in StoreCommands(outbox).handlers[type(command)](command):
            yield msgspec.to_builtins(answer)


async def read(store: StoreUrl, command: Command, kind: type[T]) -> AsyncGenerator[T, None]:
    """Yields the answers to a command, each as a `kind`. Raises as `answers` does."""
    async with contextlib.aclosing(answers(store, command)) as told:
        async for answer in told:
            yield msgspec.convert(answer, kind)


async def last_of(told: AsyncGenerator[T, None], limit: int) -> tuple[int, list[T]]:
    """Returns how many there are, and the last of them."""
    last: deque[T] = deque(maxlen=limit)
    total = 0
    async with contextlib.aclosing(told):
        async for each in told:
            last.append(each)
            total += 1
    return total, list(last)


async def write_json(told: AsyncGenerator[T, None], file: TextIO, what: str, step: int) -> int:
    """Writes one line each, and shows a progress bar about `what`, moved every `step` lines; returns the number of lines."""
    written = 0
    with progress_bar(what, longer_than=step, hidden=file.isatty()) as show_progress:
        async with contextlib.aclosing(told):
            async for each in told:
                file.write(json_line(each))
                written += 1
                if written % step == 0:
                    show_progress(what, written, None)
    return written


def json_line(value: object) -> str:
    """Returns it in ASCII, so that it is JSON in every locale and harmless on a terminal."""
    return json.dumps(msgspec.to_builtins(value)) + "\n"


def confirm(question: str, otherwise: str) -> None:
    """Asks. Says `otherwise` and raises `typer.Exit` unless the answer is yes."""
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        sys.stderr.write(otherwise + "\n")
        raise typer.Exit(2)


def host_name(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", text):
        raise typer.BadParameter("give the host name alone, such as t.example.com.")
    return text


def public_address(text: str) -> str:
    """The callback of a public address, which comes without a slash at its end; empty if it is not given."""
    with contextlib.suppress(httpx.InvalidURL, ValueError):
        url = httpx.URL(text.rstrip("/"))
        plain = url.host and not url.userinfo and not url.query and not url.fragment
        if not text or (plain and url.scheme in ("http", "https")):
            return str(url).rstrip("/")
    raise typer.BadParameter("give the public address with the prefix, such as https://www.example.com/scq.")


def from_input(text: str) -> str:
    """The text itself, or what stands on standard input for `-`."""
    return sys.stdin.readline(65_536).strip() if text == "-" else text
