"""The command `scq-proxy snippet`: prints what to paste into pages, and on standard error what to know about it.

It asks no server: the tag is about the build that is installed here.
"""

import os
import re
import sys
from typing import Annotated

import typer
from typer import Option

from proxy.cli.embed import SENDX_NAMES, Form, make_snippet
from proxy.cli.terminal import EnvFile, env_file_of, host_name
from proxy.config.settings import load_one
from proxy.resources import shipped
from proxy.web.paths import Paths
from proxy.web.shim import debug_source, load_shim, make_shim

# The queue becomes a global, and the page must not have one of its name yet: `location = …` leaves the page. No Web IDL name begins with an
# underscore (https://webidl.spec.whatwg.org/#reserved-identifier), no keyword of JavaScript does, and `__proto__` and its like have two.
_OWN_NAME = re.compile(r"_[A-Za-z][A-Za-z0-9_]*")


def queue_name(text: str) -> str:
    """Checks the name of the queue, as the option's callback."""
    if _OWN_NAME.fullmatch(text) is None:
        wrong = "a page may already have a global of this name, or cannot have one."
        raise typer.BadParameter(f"{wrong} Give one that begins with an underscore and a letter, such as _scp.")
    if text in SENDX_NAMES and text != "_scq":
        raise typer.BadParameter(f"{text} is a global of SendX's own snippet. Give another name, such as _scp.")
    return text


# The options
# fmt: off
Host = Annotated[str, Option(metavar="HOST", callback=host_name, help="Host name of the proxy, if not the page's own: t.example.com.")]
Hashed = Annotated[bool, Option("--hashed", help="One version under its own address, cached for ever, with integrity (SRI).")]
Inline = Annotated[bool, Option("--inline", help="The whole script in the page: no request for it.")]
Sendx = Annotated[bool, Option("--sendx", help="Keep SendX's install snippet: the one host name to change in it.")]
Spa = Annotated[bool, Option("--spa", help="Say with the tag how single-page sites use it.")]
Debug = Annotated[bool, Option("--debug", help="The development build: the console tells what becomes of each push.")]
Queue = Annotated[str, Option(
    metavar="NAME", callback=queue_name, help="Another name for the queue, beside SendX's own script that stays for its pop-ups.")]
Types = Annotated[bool, Option("--types", help="Print the TypeScript types of the queue instead.")]
# fmt: on


def snippet(
    env_file: EnvFile = None,
    host: Host = "",
    hashed: Hashed = False,
    inline: Inline = False,
    sendx: Sendx = False,
    spa: Spa = False,
    debug: Debug = False,
    queue: Queue = "_scq",
    types: Types = False,
) -> None:
    """Print the embed tag.

    Paste it into every page, into the head. Its paths follow SCQ_PREFIX, SCQ_SCRIPT and SCQ_ENDPOINT. Standard error says what a
    Content-Security-Policy must allow for it.
    """
    chosen = {"--hashed": hashed, "--inline": inline, "--sendx": sendx, "--types": types}
    forms = [name for name, given in chosen.items() if given]
    if len(forms) > 1:
        _cannot_both(forms[0], forms[1], "each is a form of its own")
    form = forms[0] if forms else ""
    if form in ("--hashed", "--sendx", "--types") and debug:
        _cannot_both(form, "--debug", "the development build comes by the plain tag or --inline")
    if form in ("--sendx", "--types") and queue != "_scq":
        _cannot_both(form, "--queue", "the plain tag, --hashed and --inline know another queue")
    if types:
        sys.stdout.write(shipped("static/scq.d.ts").read_text(encoding="utf-8"))
        return
    paths = Paths(*[load_one(name, os.environ, env_file_of(env_file)) for name in ("prefix", "script", "endpoint")])
    made = make_snippet(
        Form(form.removeprefix("--") or "linked"),
        make_shim(debug_source(paths.push, "unknown")) if debug else load_shim(paths.push),
        paths=paths,
        host=host,
        queue=queue,
        debug=debug,
        spa=spa,
    )
    sys.stdout.write(made.html)
    sys.stdout.flush()  # before the notes, also where both go to one file
    sys.stderr.write("".join(f"{note}\n" for note in made.notes))


def _cannot_both(one: str, other: str, why: str) -> None:
    raise typer.BadParameter(f"not together with {one}: {why}.", param_hint=other)
