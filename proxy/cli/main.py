"""The command line: reads the environment, runs one thing, and tells a person what came of it.

Exit codes: 0 done, 1 something needs attention (`status`, `check`), 2 it could not be done as asked. No tracebacks. Standard output carries what
was asked for; everything else goes to standard error. Text that comes from pages or from other servers is shown escaped.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer import Argument, Option

from proxy import __version__
from proxy.app import create_app
from proxy.cli.check import Finding, check_public, check_send, check_settings, check_store, explain_token
from proxy.cli.dead import dead
from proxy.cli.logs import start_logging
from proxy.cli.sign_ups import sign_ups
from proxy.cli.snippet import snippet
from proxy.cli.store import copy, erase, migrate, status, store_commands
from proxy.cli.terminal import EnvFile, address, console, env_file_of, escaped, from_input, public_address
from proxy.config.settings import Settings, load_one, load_settings
from proxy.config.types import IdentityKey, SqliteUrl
from proxy.core.parsing import parse_contact
from proxy.core.tokens import TokenCodec
from proxy.demo import run_demo
from proxy.errors import ConfigError, ScqError, describe
from proxy.sandbox.api import create_sandbox
from proxy.web.server import Site, listen_together, run, serve, work
from proxy.web.workers import become_worker

_HEALTH = "/healthz"

log = logging.getLogger("proxy")

cli = typer.Typer(
    name="scq-proxy",
    help="First-party tracking proxy for SendX: durable, in order per contact, with verified identity.",
    epilog="Settings are SCQ_* environment variables; the README describes each one. "
    "Exit codes: 0 done, 1 something needs attention (check, status), 2 not done as asked.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: its frames leave too little room on a narrow terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"scq-proxy {__version__}\n")
        raise typer.Exit


cli.add_typer(dead)
cli.add_typer(sign_ups)
cli.add_typer(store_commands)

# The options, each declared once
# fmt: off
Version = Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Workers = Annotated[int, Option(metavar="N", min=1, max=64, help="Processes that serve; more than one with PostgreSQL only.")]
NoDelivery = Annotated[bool, Option("--no-delivery", help="Take pushes and send none: scq-proxy deliver does, elsewhere.")]
DemoHost = Annotated[str, Option(metavar="HOST", help="Address to listen on; 0.0.0.0 in a container.")]
DemoPort = Annotated[int, Option(metavar="PORT", min=1, max=65535, help="Port of the shop and the proxy.")]
SandboxPort = Annotated[int, Option(metavar="PORT", min=1, max=65535, help="Port of the fake SendX.")]
Origin = Annotated[str | None, Option(
    metavar="URL", help="Where the browser finds the shop, if not at that host and port: https://shop.example.com, or http:// with a loopback name.")]
Port = Annotated[int, Option(metavar="PORT", min=0, max=65535, help="Port to listen on; 0 takes any free one.")]
Host = Annotated[str, Option(metavar="HOST", help="Address to listen on.")]
Key = Annotated[str, Option(metavar="KEY", help="The API key that it accepts.")]
TeamId = Annotated[str, Option(metavar="ID", help="The team id that it accepts.")]
Email = Annotated[str, Argument(metavar="EMAIL", callback=address, help="Whom the token identifies.")]
Minutes = Annotated[int, Option(metavar="MINUTES", min=1, max=60, help="How long the token is good for.")]
ContactJson = Annotated[str, Option("--contact", metavar="JSON", help='Attributes and tags to vouch for: \'{"tags": ["paid user"]}\'.')]
Send = Annotated[str | None, Option(metavar="EMAIL", callback=address, help="Identify this address for real at SCQ_UPSTREAM and show the answer.")]
Url = Annotated[str, Option(metavar="URL", callback=public_address,
    help="Try the way that browsers take, through everything before the proxy: https://www.example.com/scq.")]
Token = Annotated[str, Option("--token", metavar="TOKEN", callback=from_input,
    help="Say whether this identity token would be believed; - reads it from standard input, where no other user of the machine sees it.")]
# fmt: on


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a tag may have a letter that the terminal has not
    try:
        try:
            cli()
        finally:
            sys.stdout.flush()
    except ConfigError as error:
        _complain("These settings need mending:\n" + error.message)
    except ScqError as error:
        _complain(error.message)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing more to say
        sys.exit(0)
    except Exception as error:
        if os.environ.get("SCQ_LOG_LEVEL", "").lower() == "debug":
            raise
        _complain(f"scq-proxy failed: {describe(error)}. SCQ_LOG_LEVEL=debug shows more.")


def _complain(message: str) -> None:
    sys.stderr.write(message.rstrip() + "\n")
    sys.exit(2)


@cli.callback()
def _root(version: Version = False) -> None:
    pass


@cli.command("serve")
def serve_command(env_file: EnvFile = None, workers: Workers = 1, no_delivery: NoDelivery = False) -> None:
    """Serve the proxy for real.

    It runs until Ctrl-C or SIGTERM, and finishes the requests under way before it stops. If settings are missing or wrong, it
    does not start, and says for each of them what is wrong and what would do. With several workers, one that dies is replaced.
    """
    settings, read = _settings_to_serve(env_file)
    if workers > 1:
        _require_database(settings, "--workers", "SQLite serves one process")
    if no_delivery:
        _require_database(settings, "--no-delivery", "with SQLite the process that takes pushes has to send them")
    start_logging(settings.log_level, settings.log_format, several=workers > 1)
    app = create_app(settings, reread=read, delivers=not no_delivery)
    if workers == 1:
        site = Site(app, settings.host, settings.port, asks=_HEALTH)
        run(serve([site], lambda ports: _say_serving(settings, ports[0], "")))
        return
    listeners = listen_together(settings.host, settings.port, workers)
    port = listeners[0].getsockname()[1]
    worker = become_worker(listeners, lambda: _say_serving(settings, port, f", {workers} workers"))
    site = Site(app, settings.host, port, worker.listener, _HEALTH if worker.is_first else "")
    run(serve([site], lambda _: worker.ready(), watched=True))


@cli.command()
def deliver(env_file: EnvFile = None) -> None:
    """Send what waits, and serve nothing.

    It is the other half of serve --no-delivery, to be run as often as SendX can take it, with the same settings. It runs until Ctrl-C or
    SIGTERM, and waits for requests under way before it stops. PostgreSQL only.
    """
    settings, read = _settings_to_serve(env_file)
    _require_database(settings, "SCQ_STORE", "with SQLite the process that takes pushes sends them")
    start_logging(settings.log_level, settings.log_format)
    run(work(create_app(settings, reread=read), lambda: _say_delivering(settings)))


def _settings_to_serve(env_file: Path | None) -> tuple[Settings, Callable[[], Settings]]:
    """And how to read them again."""

    def read() -> Settings:
        return load_settings(os.environ, env_file_of(env_file))

    return read(), read


def _require_database(settings: Settings, option: str, why: str) -> None:
    if isinstance(settings.store, SqliteUrl):
        raise typer.BadParameter(f"{why}. For more, set SCQ_STORE=postgresql://...", param_hint=option)


def _say_serving(settings: Settings, port: int, how: str) -> None:
    log.info("Serving %s on %s, store %s%s", settings.prefix, _base(settings.host, port), settings.store.place, how)
    _tell_supervisor()


def _say_delivering(settings: Settings) -> None:
    log.info("Delivering, store %s", settings.store.place)
    _tell_supervisor()


def _tell_supervisor() -> None:
    """Notifies systemd that startup is complete, if it waits for that (Type=notify, see man 3 sd_notify)."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(b"READY=1", place.replace("@", "\0", 1) if place.startswith("@") else place)


@cli.command()
def demo(
    host: DemoHost = "127.0.0.1", port: DemoPort = 8000, sandbox_port: SandboxPort = 8001, origin: Origin = None
) -> None:
    """Try it all: fake SendX, proxy and shop.

    One process runs the three of them and prints the two addresses to open in a browser. It needs no settings and no account, and
    forgets everything when Ctrl-C stops it.
    """
    start_logging("warning")

    def listening(shop_url: str, sandbox_url: str) -> None:
        sys.stdout.write(
            f"\n  Open the shop       {shop_url}\n  and watch SendX at  {sandbox_url}\n\n"
            "  Log in, put something into the cart, and see the tag land. Ctrl-C stops.\n\n"
        )
        sys.stdout.flush()

    options = {
        "SCQ_PORT": ("--port, --sandbox-port", "scq-proxy demo --port 8010 --sandbox-port 8011"),
        "SCQ_ORIGINS": ("--origin", "scq-proxy demo --origin https://shop.example.com"),
    }
    with _said_of_options(options):
        run(run_demo(host=host, port=port, sandbox_port=sandbox_port, origin=origin, on_listening=listening))


@cli.command()
def sandbox(port: Port = 8001, host: Host = "127.0.0.1", key: Key = "sandbox", team_id: TeamId = "sandbox") -> None:
    """Run the fake SendX alone.

    It speaks both dialects of SendX's API, and shows contacts, tags and requests on a page as they arrive. Ctrl-C stops it.
    """
    start_logging("warning")

    def listening(ports: Sequence[int]) -> None:
        base = _base(host, ports[0])
        sys.stdout.write(
            f"SendX sandbox, API key {key}, team id {team_id}\n"
            f"  page    {base}/\n"
            f"  rest    {base}/api/v1/rest\n"
            f"  legacy  {base}/api/v1\n"
            "Stop with Ctrl-C.\n"
        )
        sys.stdout.flush()

    with _said_of_options({"SCQ_PORT": ("--host, --port", "scq-proxy sandbox --port 0")}):
        run(serve([Site(create_sandbox(key=key, team_id=team_id), host, port)], listening))


cli.command()(snippet)


@cli.command()
def keygen() -> None:
    """Make a secret.

    It is 43 characters long and good for SCQ_SECRET_KEYS, SCQ_IDENTITY_KEYS, SCQ_SERVER_KEYS and SCQ_ADMIN_TOKEN. Make one for
    each of them.
    """
    sys.stdout.write(secrets.token_urlsafe(32) + "\n")


@cli.command()
def token(email: Email, env_file: EnvFile = None, minutes: Minutes = 10, contact: ContactJson = "") -> None:
    r"""Mint an identity token, to try a login.

    It is what the site's back end would hand to the page, signed with a key of SCQ_IDENTITY_KEYS. Push it in the browser's console:

    \b
    _scq.push(["identify", {token: "..."}])
    """
    vouched = _contact(contact)
    keys: tuple[IdentityKey, ...] = load_one("identity_keys", os.environ, env_file_of(env_file), required=True)
    codec = TokenCodec([(key.kid, key.secret.reveal()) for key in keys])
    sys.stdout.write(codec.mint(email, time.time(), timedelta(minutes=minutes), vouched) + "\n")


@cli.command()
def check(env_file: EnvFile = None, send: Send = None, url: Url = "", token_text: Token = "") -> None:
    """Check the settings, and say how to mend them.

    Settings and store are always checked; options add the way to SendX, the way from the browser, and a token. Exits with 1 if
    anything is to be mended, and with 2 if the settings cannot be used at all.
    """
    settings = load_settings(os.environ, env_file_of(env_file))

    async def findings() -> list[Finding]:
        found = check_settings(settings) + await check_store(settings)
        if send:
            found += await check_send(settings, send)
        if url:
            found += await check_public(settings, url)
        if token_text:
            found += explain_token(settings, token_text, time.time())
        return found

    found = asyncio.run(findings())
    out = console()
    for finding in found:
        verdict = ("ok   ", "green") if finding.ok else ("mend ", "red")
        out.print(Text.assemble(verdict, escaped(finding.text)))
    raise typer.Exit(0 if all(finding.ok for finding in found) else 1)


for command in (status, erase, migrate, copy):
    cli.command()(command)


def _contact(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        contact = json.loads(text)
    except (ValueError, RecursionError):
        contact = None
    example = """; an example is '{"tags": ["paid user"]}'."""
    if not isinstance(contact, dict):
        raise typer.BadParameter("this is not a JSON object" + example, param_hint="--contact")
    _, dropped = parse_contact(contact)
    if dropped:
        raise typer.BadParameter(f"SendX could not take {', '.join(dropped)}{example}", param_hint="--contact")
    return contact


@contextlib.contextmanager
def _said_of_options(options: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """What is wrong with a setting, said of the option it came from. `options`: option and example by variable."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            option, example = options.get(problem.variable, (problem.variable, problem.example))
            raise typer.BadParameter(f"{problem.wrong}\nFor example: {example}", param_hint=option) from None


def _base(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
