"""Compiles the C files beside this one, which stand in front of libc in a process of its own: a bad disk, a wrong clock."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def built(source: str, directory: Path) -> Path:
    """Returns the shared object to be named in LD_PRELOAD."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        if "CI" in os.environ:
            pytest.fail("needs a C compiler")
        pytest.skip("needs a C compiler")
    target = directory / Path(source).with_suffix(".so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, Path(__file__).with_name(source), "-ldl"], check=True)
    return target
