"""What .ci/setup has installed from npm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

NPM = Path(__file__).parents[2] / ".venv" / "npm" / "node_modules"


def need(*packages: str) -> None:
    """Skip the test, or fail it in CI, if one of these is missing, or Node."""
    missing = [package for package in packages if not (NPM / package).is_dir()]
    if not missing and shutil.which("node"):
        return
    reason = f"missing: {', '.join(missing) or 'node'}; .ci/setup test installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
