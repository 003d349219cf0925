"""The files for Next.js: they compile, and the proxy accepts the token of their route."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from proxy.core.tokens import TokenCodec, Vouched
from tests.examples.conftest import EXAMPLES, KEY, binary, skip_or_fail_in_ci

TSC = EXAMPLES.parent / ".venv" / "npm" / "node_modules" / ".bin" / "tsc"
NEXT_TYPES = EXAMPLES.parent / "tests" / "types" / "next.d.ts"


def compile_next(*options: str) -> str:
    """What the TypeScript compiler has against the files; Next.js itself is not installed, only the types that they use."""
    if not TSC.exists():
        skip_or_fail_in_ci("TypeScript", "npm, then .ci/setup test")
    folder = EXAMPLES / "nextjs"
    files = [*folder.rglob("*.ts"), *folder.rglob("*.tsx"), NEXT_TYPES, EXAMPLES.parent / "static" / "scq.d.ts"]
    base = (
        "--strict",
        "--target",
        "es2021",
        "--lib",
        "es2021,dom",
        "--jsx",
        "preserve",
        "--moduleResolution",
        "node10",
    )
    done = subprocess.run([TSC, *base, *options, *files], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout


def test_the_files_for_nextjs_compile() -> None:
    assert compile_next("--noEmit") == ""


CALL_ROUTE = """
const { GET } = require("./app/scq-token/route.js");
GET().then(async (answer) => {
  const { token } = await answer.json();
  console.log(JSON.stringify([answer.status, answer.headers.get("cache-control"), token ?? null]));
});
"""
LOGGED_IN = 'exports.currentUser = async () => ({id: "1", email: "ada@example.com", paid: true});'


@pytest.mark.parametrize("logged_in", [True, False])
def test_the_proxy_accepts_the_token_of_the_nextjs_route(tmp_path: Path, logged_in: bool) -> None:
    assert compile_next("--module", "commonjs", "--outDir", str(tmp_path)) == ""
    if logged_in:
        (tmp_path / "lib" / "session.js").write_text(LOGGED_IN)
    command = [binary("node", "nodejs"), "--eval", CALL_ROUTE]
    environ = {"IDENTITY_KEY": KEY, "PATH": os.defpath}
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=True)
    status, cache, token = json.loads(ran.stdout)
    assert cache == "no-store"
    if not logged_in:
        assert (status, token) == (401, None)
        return
    vouched = TokenCodec([(None, KEY)]).verify(token, time.time())
    assert isinstance(vouched, Vouched), vouched
    assert (status, vouched.email, vouched.attributes.tags) == (200, "ada@example.com", ("paid user",))
