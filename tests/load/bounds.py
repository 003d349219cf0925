"""Tests what `pyproject.toml` allows at its ends: the lowest version of every requirement, the newest of everything, and a uvicorn below.

    make test-more
    python -m tests.load.bounds --only lowest

Each end is installed into an environment of its own under `build/`, and runs the tests of the main job there. With a uvicorn that is too old
`serve` has to end by itself, with a sentence.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.commands import settings
from tests.support.server import clean_environ, command

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
TOO_OLD = "uvicorn==0.44.0"
# What leans upon the dependencies on the way from a request to SendX and in the commands, not what is this project's alone.
MAIN_JOB = (
    "tests/core/test_admission.py",
    "tests/core/test_attributes.py",
    "tests/core/test_cookies.py",
    "tests/core/test_emails.py",
    "tests/core/test_parsing.py",
    "tests/core/test_server_calls.py",
    "tests/core/test_tokens.py",
    "tests/config",
    "tests/delivery/test_answers.py",
    "tests/delivery/test_connection.py",
    "tests/delivery/test_fuzzed_answers.py",
    "tests/delivery/test_lane.py",
    "tests/delivery/test_sendx.py",
    "tests/sandbox/test_api.py",
    "tests/web/test_http1.py",
    "tests/cli/test_main.py",
    "tests/cli/test_serve.py",
    "tests/contract/test_outbox.py",
    "tests/system/test_identity.py",
    "tests/system/test_wire.py",
)


def install(name: str, *arguments: str) -> Path:
    """Returns the Python of the environment of this name, made anew."""
    python = BUILD / name / "bin" / "python"
    uv("venv", "--clear", "--python", sys.executable, str(BUILD / name))
    uv("pip", "install", "--python", str(python), *arguments, "--editable", f"{ROOT}[dev]")
    return python


def uv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], check=True)


def try_lowest() -> bool:
    return passes(install("lowest", "--resolution", "lowest-direct"))


def try_newest() -> bool:
    return passes(install("newest", "--upgrade"))


def passes(python: Path) -> bool:
    workers = str(min(4, (os.cpu_count() or 1) + 1))
    run: list[str | Path] = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        workers,
        "--dist",
        "loadfile",
        *MAIN_JOB,
    ]
    return subprocess.run(run, cwd=ROOT, check=False).returncode == 0


def try_below() -> bool:
    """Returns whether `serve` refuses a uvicorn that is too old with a message that names it."""
    place = BUILD / "below"
    uv("pip", "install", "--python", sys.executable, "--no-deps", "--target", str(place), TOO_OLD)
    with TemporaryDirectory() as directory:
        environ = clean_environ(settings(Path(directory))) | {"PYTHONPATH": str(place)}
        served = subprocess.run(
            command("serve"), cwd=directory, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
    print(served.stderr)
    return served.returncode == 2 and TOO_OLD.replace("==", " ") in served.stderr and "Traceback" not in served.stderr


ENDS = {"lowest": try_lowest, "newest": try_newest, "below": try_below}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.bounds", description=__doc__)
    parser.add_argument("--only", choices=ENDS, help="this end alone")
    asked = parser.parse_args()
    failed = []
    for name in [asked.only] if asked.only else ENDS:
        print(f"\n== {name}", flush=True)
        if not ENDS[name]():
            failed.append(name)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
