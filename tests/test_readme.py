"""The README is true: every setting, reason and command it lists exists, and the other way round; its snippets work."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from http.cookies import SimpleCookie
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from typer.main import get_command

from proxy.cli.main import cli
from proxy.config.settings import SPECS
from proxy.core.calls import Attributes
from proxy.core.reasons import Reason
from proxy.core.tokens import TokenCodec, Vouched
from proxy.store.postgres.outbox import open_outbox
from tests.support.live import PATIENCE_SECONDS, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEY = "k" * 32


def whom(token: str) -> tuple[str, Attributes]:
    """Whom the proxy takes the token's bearer for."""
    vouched = TokenCodec([(None, KEY)]).verify(token, time.time())
    assert isinstance(vouched, Vouched), vouched
    return vouched.email, vouched.attributes


ADA = ("ada@example.com", Attributes(tags=("customer",)))


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table under a heading, by their first cell."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, re.MULTILINE)
    return {name: rest.split(" | ") for name, rest in rows}


def snippet(language: str) -> str:
    blocks = [
        block
        for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
        if "scq-token" in block or "SCQ_IDENTITY_KEY'" in block
    ]
    assert len(blocks) == 1
    return str(blocks[0])


def test_every_setting_is_listed_with_its_default_and_no_other() -> None:
    listed = {name: cells[0].strip("`") for name, cells in table("Settings").items()}
    assert listed == {spec.name: spec.default_text for spec in SPECS}


def test_secrets_are_marked_as_secrets() -> None:
    listed = {name for name, cells in table("Settings").items() if cells[1].endswith("(secret)")}
    assert listed == {spec.name for spec in SPECS if spec.secret}


def test_every_reason_is_listed_as_its_row_says_and_no_other() -> None:
    listed = {str(reason): [reason.meaning, ", ".join(reason.sources)] for reason in Reason}
    assert table("Answers") == listed


def commands() -> dict[str, Any]:
    """Every command by its whole name; of a group its commands."""
    found: dict[str, Any] = {}
    for name, command in get_command(cli).commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        found |= {f"{name} {part}": each for part, each in parts.items()} if parts else {name: command}
    return found


def test_every_command_is_listed_and_no_other() -> None:
    assert set(table("Commands")) == {f"scq-proxy {name}" for name in commands()}


def test_every_option_that_is_mentioned_exists() -> None:
    known = {option for command in commands().values() for parameter in command.params for option in parameter.opts}
    assert (
        set(
            re.findall(
                r"(?<![\w-])--[a-z][a-z-]+", README.split("\n## Settings\n")[0] + README.split("\n## Commands\n")[1]
            )
        )
        <= known
    )


def test_every_path_that_is_mentioned_exists() -> None:
    for path in re.findall(r"\]\((?!https?:)([^)]+)\)|`((?:tests|examples)/[^`]+)`", README):
        assert (ROOT / (path[0] or path[1])).exists(), path


def test_every_setting_that_is_mentioned_exists() -> None:
    names = (
        {spec.name for spec in SPECS} | {f"{spec.name}_FILE" for spec in SPECS if spec.secret} | {"SCQ_IDENTITY_KEY"}
    )
    assert set(re.findall(r"\bSCQ_[A-Z_]*[A-Z]\b", README)) <= names


def test_a_process_opens_so_many_connections() -> None:
    (said,) = re.findall(r"Each process opens up to (\d+)\.", README)
    assert int(said) == signature(open_outbox).parameters["pool_size"].default


def test_the_embed_tag_is_the_one_that_the_command_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proxy", "snippet"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={})
    assert f"```html\n{printed.stdout}```" in README


def load(source: str, path: Path) -> ModuleType:
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_python_endpoint_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCQ_IDENTITY_KEY", KEY)
    monkeypatch.setenv("SESSION_KEY", "s" * 32)
    log_in = (
        "\n\nasync def log_in(request):\n    request.session['email'] = 'ada@example.com'\n    return JSONResponse({})\n\n\n"
        "app.router.routes.append(Route('/log-in', log_in))\n"
    )
    module = load(snippet("python") + log_in, tmp_path / "back_end.py")
    with serving(module.app) as url, httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
        refused = client.get("/scq-token")
        assert (refused.status_code, refused.headers["cache-control"]) == (401, "no-store")
        cookie = SimpleCookie(client.get("/log-in").headers["set-cookie"])["session"].value
        answer = client.get("/scq-token", headers={"Cookie": f"session={cookie}"})
    assert answer.headers["cache-control"] == "no-store"
    assert whom(answer.json()["token"]) == ADA


NODE = """
const routes = {};
const app = { get: (path, handler) => { routes[path] = handler; } };
%s
const headers = {};
const answers = [];
const response = { set: (name, value) => { headers[name] = value; }, status: (code) => ({ json: () => answers.push(code) }),
  json: (body) => answers.push(body.token) };
routes["/scq-token"]({ session: {} }, response);
routes["/scq-token"]({ session: { email: "ada@example.com" } }, response);
console.log(JSON.stringify([headers, answers]));
"""


def interpreter(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is missing: apt-get install {package}")
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return path


def test_the_node_endpoint_works(tmp_path: Path) -> None:
    (tmp_path / "back_end.js").write_text(NODE % snippet("js"), encoding="utf-8")
    command = [interpreter("node", "nodejs"), str(tmp_path / "back_end.js")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"SCQ_IDENTITY_KEY": KEY})
    headers, (refused, token) = json.loads(ran.stdout)
    assert (headers, refused) == ({"Cache-Control": "no-store"}, 401)
    assert whom(token) == ADA


@pytest.mark.parametrize(("session", "status"), [("['email' => 'ada@example.com']", 200), ("[]", 401)])
def test_the_php_endpoint_works(tmp_path: Path, session: str, status: int) -> None:
    source = snippet("php").replace("session_start();", f"$_SESSION = {session};")
    source = source.replace("exit('{}');", "echo http_response_code(); exit;")
    (tmp_path / "back_end.php").write_text(source, encoding="utf-8")
    command = [interpreter("php", "php-cli"), str(tmp_path / "back_end.php")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"SCQ_IDENTITY_KEY": KEY})
    if status == 401:
        assert ran.stdout == "401"
    else:
        assert whom(json.loads(ran.stdout)["token"]) == ADA
