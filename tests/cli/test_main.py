"""The command line as a stranger meets it: the installed `scq-proxy`, in an empty directory, with a clean environment."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from proxy import __version__
from tests.support.commands import Said, clean, scq
from tests.support.server import command

COMMANDS = (
    "serve",
    "deliver",
    "demo",
    "sandbox",
    "snippet",
    "keygen",
    "token",
    "check",
    "status",
    "erase",
    "migrate",
    "copy",
    "dead",
    "signups",
    "store",
)


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_the_help_lists_every_command_with_a_whole_sentence(tmp_path: Path, columns: str) -> None:
    said = scq("--help", cwd=tmp_path, COLUMNS=columns)
    assert (said.code, said.err) == (0, "")
    listed = re.findall(r"^  ([a-z]+) {2,}(\S.*)$", said.out.partition("Commands:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(COMMANDS)
    assert all(re.fullmatch(r"[A-Z].*\.", sentence) for _, sentence in listed)
    assert "README" in said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_fits_a_narrow_terminal_and_ends_its_sentences(tmp_path: Path, name: str) -> None:
    said = scq(name, "--help", cwd=tmp_path, COLUMNS="60")
    assert (said.code, said.err) == (0, "")
    assert f"Usage: scq-proxy {name}" in said.out
    assert all(len(row) <= 60 for row in said.out.splitlines())
    description = said.out.partition("\n\n")[2].partition("Options:")[0].partition("Arguments:")[0]
    assert re.fullmatch(r"\s*[A-Z].*[.})]\s*", description, re.DOTALL)
    assert "--help" in said.out


def test_without_a_command_it_shows_the_help_and_exits_2(tmp_path: Path) -> None:
    said = scq(cwd=tmp_path)
    assert said.code == 2
    assert "Commands:" in said.out + said.err


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert scq("--version", cwd=tmp_path) == Said(0, f"scq-proxy {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["nonsense"], ["status", "--nonsense"], ["token"], ["sandbox", "--port", "x"]])
def test_what_cannot_be_understood_is_named_and_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    said = scq(*arguments, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "Error: " in said.err
    assert "--help" in said.err or "-h" in said.err


def test_a_reader_that_has_gone_is_no_failure(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command("keygen"), cwd=tmp_path, env=clean({}), stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
