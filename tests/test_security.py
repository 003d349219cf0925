"""SECURITY.md is true: the tests, settings and files that it names exist, and every row of its threat model names a test."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from proxy.config.settings import SPECS

ROOT = Path(__file__).parent.parent


SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", SECURITY))
    assert len(named) > 40
    for file, name in named:
        assert name in functions_of(file), f"{file}::{name}"


def test_every_row_of_the_threat_model_names_its_test() -> None:
    model = SECURITY.split("\n## Threat model\n")[1].split("\n## ")[0]
    rows = [line for line in model.splitlines() if line.startswith("|") and not re.match(r"\|( they try|-)", line)]
    assert len(rows) > 40
    assert not [row for row in rows if "::test_" not in row]


def test_what_the_hardening_list_names_exists() -> None:
    known = {spec.name for spec in SPECS} | {f"{spec.name}_FILE" for spec in SPECS if spec.secret}
    assert set(re.findall(r"\bSCQ_[A-Z_]*[A-Z]\b", SECURITY)) <= known
    for path in re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", SECURITY):
        assert (ROOT / path).exists(), path
    assert max(len(line) for line in SECURITY.splitlines() if not line.startswith("|")) < 150
