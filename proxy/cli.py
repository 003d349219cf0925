"""The command line: reads the environment, runs one thing, and tells a person what came of it.

Exit codes: 0 done, 1 something needs attention (`status`, `check`), 2 it could not be done as asked. No tracebacks. Standard output carries what
was asked for; everything else goes to standard error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from proxy import __version__
from proxy.app import create_app, open_store_file
from proxy.checks import Finding, check_public, check_send, check_settings, check_store, explain_token
from proxy.control import ask
from proxy.demo import run_demo
from proxy.errors import ConfigError, Problem, ScqError, describe
from proxy.identity import TokenCodec
from proxy.ops import Report, make_report
from proxy.pushes import clean_address, parse_vouched
from proxy.sandbox import run as run_sandbox
from proxy.serving import Site, run, serve
from proxy.settings import load_identity_settings, load_prefix, load_settings, load_store_settings

T = TypeVar("T")

cli = typer.Typer(
    name="scq-proxy",
    help="First-party tracking proxy for SendX: durable, in order per contact, with verified identity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file", help="Read settings from this file, under the environment. Default: .env, if there is one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """The `scq-proxy` command."""
    try:
        cli()
    except ConfigError as error:
        _complain("These settings need mending:\n" + error.message)
    except ScqError as error:
        _complain(error.message)
    except KeyboardInterrupt:
        sys.exit(130)
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


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"scq-proxy {__version__}\n")
        raise typer.Exit


@cli.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@cli.command("serve")
def serve_command(env_file: EnvFile = None) -> None:
    """Serve for real, until Ctrl-C or SIGTERM. Settings: SCQ_* variables, see README."""
    settings = load_settings(os.environ, _env_file(env_file))
    _start_logging(settings.log_level)
    log = logging.getLogger("proxy")

    def listening(ports: Any) -> None:
        log.info("Serving %s on http://%s:%d, store %s", settings.prefix, settings.host, ports[0], settings.store.path)

    run(serve([Site(create_app(settings), settings.host, settings.port)], listening))


@cli.command()
def demo(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the shop and the proxy.")] = 8000,
    sandbox_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the fake SendX.")] = 8001,
    origin: Annotated[
        str | None,
        typer.Option(help="Where the browser finds the shop, if elsewhere: https://…, or http:// on a loopback name."),
    ] = None,
) -> None:
    """Run the fake SendX, the proxy and an example shop in one process."""
    _start_logging("warning")

    def listening(shop_url: str, sandbox_url: str) -> None:
        sys.stdout.write(
            f"\n  Open the shop       {shop_url}\n  and watch SendX at  {sandbox_url}\n\n"
            "  Log in, put something into the cart, and see the tag land. Ctrl-C stops.\n\n"
        )
        sys.stdout.flush()

    run(run_demo(host=host, port=port, sandbox_port=sandbox_port, origin=origin, on_listening=listening))


@cli.command()
def sandbox(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8001,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    key: Annotated[str, typer.Option(help="The API key that it accepts.")] = "sandbox",
    team_id: Annotated[str, typer.Option(help="The team id that it accepts.")] = "sandbox",
) -> None:
    """Run the fake SendX alone."""
    run_sandbox(host, port, key, team_id)


@cli.command()
def snippet(
    env_file: EnvFile = None,
    host: Annotated[str, typer.Option(help="Host name of the proxy, if not the page's own: t.example.com.")] = "",
) -> None:
    """Print the embed tag."""
    prefix = load_prefix(os.environ, _env_file(env_file))
    base = f"https://{host}" if host else ""
    sys.stdout.write(
        f'<script>window._scq = window._scq || [];</script>\n<script async src="{base}{prefix}/scq.js"></script>\n'
    )


@cli.command()
def keygen() -> None:
    """Make a secret, for SCQ_SECRET_KEYS, SCQ_IDENTITY_KEYS, SCQ_SERVER_KEYS or SCQ_ADMIN_TOKEN."""
    sys.stdout.write(secrets.token_urlsafe(32) + "\n")


@cli.command()
def token(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Whom the token identifies.")],
    env_file: EnvFile = None,
    minutes: Annotated[int, typer.Option(min=1, max=60, help="How long it is good for.")] = 10,
    contact: Annotated[
        str, typer.Option(help='Vouched attributes and tags as JSON: \'{"tags": ["paid user"]}\'.')
    ] = "",
) -> None:
    """Mint an identity token, to try a login. Signs with a key of SCQ_IDENTITY_KEYS."""
    keys = load_identity_settings(os.environ, _env_file(env_file))
    if clean_address(email) is None:
        raise _usage("EMAIL", "is no e-mail address", "scq-proxy token ada@example.com")
    codec = TokenCodec([(key.kid, key.secret.reveal()) for key in keys])
    sys.stdout.write(codec.mint(email, time.time(), timedelta(minutes=minutes), _contact(contact)) + "\n")


@cli.command()
def check(
    env_file: EnvFile = None,
    send: Annotated[
        str, typer.Option(metavar="EMAIL", help="Identify this address for real at SCQ_UPSTREAM and show the answer.")
    ] = "",
    url: Annotated[
        str, typer.Option(metavar="URL", help="Try the public path, e.g. https://www.example.com/scq.")
    ] = "",
    token_text: Annotated[str, typer.Option("--token", metavar="TOKEN", help="Explain whether a token would do.")] = "",
) -> None:
    """Check a configuration, say what is wrong and how to mend it."""
    settings = load_settings(os.environ, _env_file(env_file))

    async def findings() -> list[Finding]:
        found = check_settings(settings) + await check_store(settings)
        if send:
            found += await check_send(settings, send)
        if url:
            found += await check_public(settings, url.rstrip("/"))
        if token_text:
            found += explain_token(settings, token_text, time.time())
        return found

    found = asyncio.run(findings())
    console = Console(highlight=False, soft_wrap=True)
    for finding in found:
        console.print("[green]ok  [/green]" if finding.ok else "[red]mend[/red]", end=" ")
        console.print(finding.text, markup=False)
    raise typer.Exit(0 if all(finding.ok for finding in found) else 1)


@cli.command()
def status(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show backlog, lag, failures and what pages asked for that is not offered. Exits 1 if something needs attention."""
    report = asyncio.run(_report(_env_file(env_file)))
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _print_report(report)
    raise typer.Exit(1 if report.problems else 0)


async def _report(env_file: Path | None) -> Report:
    """From the running server, or with none running from the store itself."""
    store = load_store_settings(os.environ, env_file)
    if store.path is None:
        raise _usage("SCQ_STORE", "is PostgreSQL, which is not supported yet", "SCQ_STORE=sqlite:///scq.db")
    path = store.path.absolute()
    sys.stderr.write(f"Store: {path}\n")
    try:
        answer = await _only(ask(path, "status"))
    except (ConnectionError, FileNotFoundError):
        async with open_store_file(path) as outbox:
            return make_report(await outbox.stats(), None, 0, time.time())
    return msgspec.convert(answer, Report)


async def _only(answers: AsyncIterator[T]) -> T:
    return await anext(answers)


def _print_report(report: Report) -> None:
    console = Console(highlight=False)
    for problem in report.problems:
        console.print(f"[red]![/red] {problem}")
    if not report.problems:
        console.print("[green]All is well.[/green]" if report.delivery else "All is well, but no server is running.")
    table = Table(show_header=False, box=None)
    rows: list[tuple[str, object]] = [
        ("waiting", report.waiting),
        ("oldest waiting for", timedelta(seconds=int(report.lag_seconds))),
        ("held for visitors not identified", report.holding),
        ("dead letters", report.dead),
        ("delivered so far", report.counters.get("delivered", 0)),
    ]
    if report.delivery:
        rows += [("gate to SendX", report.delivery.gate), ("forwarder restarts", report.restarts)]
    rows += [(name, value) for name, value in report.counters.items() if name.startswith("refused:") and value]
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)
    if report.refused_names:
        _print_refused(console, report)


def _print_refused(console: Console, report: Report) -> None:
    table = Table(title="Asked for by pages, and not offered", title_justify="left", box=None)
    for column in ("name", "setting that would offer it", "times"):
        table.add_column(column)
    for refused in report.refused_names:
        # What pages ask for is anybody's text: shown with its control characters escaped, never as markup.
        table.add_row(json.dumps(refused.name, ensure_ascii=False), refused.setting, str(refused.count))
    console.print(table, markup=False)


def _contact(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        contact = json.loads(text)
    except ValueError:
        contact = None
    if not isinstance(contact, dict) or parse_vouched(contact) is None:
        raise _usage("--contact", "is no JSON object that SendX could take", """--contact '{"tags": ["paid user"]}'""")
    return contact


def _usage(what: str, wrong: str, example: str) -> ConfigError:
    return ConfigError([Problem(what, wrong, example)])


def _env_file(given: Path | None) -> Path | None:
    if given is not None:
        return given
    default = Path(".env")
    return default if default.is_file() else None


def _start_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    # uvicorn's own start and stop lines say nothing that ours do not; httpx would log URLs, which can hold addresses.
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
