"""The installed `scq-proxy` as a stranger runs it: in a directory of its own, with an environment that holds what is given here.

Every call goes through `scq`, which holds it to the promises of `proxy.cli`: exit code 0, 1 or 2, and no traceback, whatever happens.
"""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.live import PATIENCE_SECONDS, free_port
from tests.support.server import Server, command, environment


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


def scq(*arguments: str, cwd: Path, **environ: str) -> Said:
    """Run a command to its end."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=clean(environ), capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    said = Said(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in said.out + said.err, said.err
    assert said.code in (0, 1, 2)
    return said


def clean(environ: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **environ}


def settings(cwd: Path, **more: str) -> dict[str, str]:
    """Settings that serve at a free port, with the store in `cwd` and no SendX."""
    given = environment("http://127.0.0.1:9/api/v1/rest", cwd / "scq.db", **{"SCQ_PORT": str(free_port()), **more})
    return {name: text for name, text in given.items() if text}


def spawn(*arguments: str, cwd: Path, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=clean(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def started(*arguments: str, cwd: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until a signal; killed at the end if it is still there."""
    with spawn(*arguments, cwd=cwd, **environ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def ask(server: Server, *arguments: str, **environ: str) -> Said:
    """A command with the server's own settings."""
    return scq(*arguments, cwd=server.directory, **server.settings | environ)


def report(server: Server) -> dict[str, Any]:
    """What `status --json` says of the server."""
    said = ask(server, "status", "--json")
    assert said.out.count("\n") == 1
    found: dict[str, Any] = json.loads(said.out)
    assert said.code == (1 if found["problems"] else 0)
    return found


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def at_a_terminal(*arguments: str, cwd: Path, typed: str = "", **environ: str) -> Said:
    """A command whose standard input and standard error are a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=clean({"TERM": "xterm", "COLUMNS": "100", **environ}),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    os.write(ours, typed.encode())
    err = b"".join(_chunks(ours))
    os.close(ours)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    said = Said(process.returncode, out, err.decode())
    assert "Traceback" not in said.out + said.err
    return said


def _chunks(terminal: int) -> Iterator[bytes]:
    """All that is written to a terminal until nobody holds it any more, which Linux reports as an error."""
    try:
        while chunk := os.read(terminal, 65_536):
            yield chunk
    except OSError:
        return
