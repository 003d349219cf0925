"""The machine: facts about it, which cores are used for what, and what the kernel says of processes."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
NPM = ROOT / ".venv" / "npm" / "node_modules"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SYNCS = 50


class Cores(NamedTuple):
    """By number: what is measured has one to itself, whoever loads it and answers it has the other. `all`: for what needs several."""

    measured: int
    load: int
    all: tuple[int, ...]


@lru_cache(maxsize=1)
def cores() -> Cores:
    """The first, the last and all that this process might use when it was asked first."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[-1], tuple(allowed))


def pinned(command: Sequence[str], *numbers: int) -> list[str]:
    """The command, on these cores with all that it starts."""
    return ["taskset", "--cpu-list", ",".join(map(str, numbers)), *command]


@contextmanager
def on_cores(*numbers: int) -> Iterator[None]:
    """Moves this thread, and what it starts meanwhile, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, numbers)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- Processes ---------------------------------------------------------------------------------------------------------


def group_members(group: int) -> list[int]:
    """The processes of a group, by id."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _group(entry) == group]


def _group(entry: Path) -> int | None:
    fields = _stat(entry)
    return int(fields[2]) if fields else None


def _stat(entry: Path) -> list[str]:
    """What stands behind the name, from the third field on; nothing if the process has ended."""
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(group: int) -> float:
    """Used by the living processes of a group, all threads."""
    found = [_stat(Path("/proc", str(member))) for member in group_members(group)]
    return sum(int(fields[11]) + int(fields[12]) for fields in found if fields) / _TICKS


def resident_mb(group: int) -> float:
    """Memory in use (RSS) of the processes of a group together, in MB (1,000,000 bytes). What they share counts for each."""
    found = [_stat(Path("/proc", str(member))) for member in group_members(group)]
    return sum(int(fields[21]) for fields in found if fields) * _PAGE / 1e6


class Busy(NamedTuple):
    """Ticks of one core since the machine started: all, and those in which it had nothing to do."""

    total: int
    idle: int

    def share_until(self, later: Busy) -> float:
        """Which part of the time the core was busy, 0 to 1."""
        return 1 - (later.idle - self.idle) / max(1, later.total - self.total)


def busy(core: int) -> Busy:
    (line,) = re.findall(rf"^cpu{core} (.*)$", Path("/proc/stat").read_text(), re.MULTILINE)
    ticks = [int(word) for word in line.split()]
    return Busy(sum(ticks[:8]), ticks[3] + ticks[4])


# --- Facts -------------------------------------------------------------------------------------------------------------


def facts(directory: Path) -> dict[str, str]:
    """What the figures depend on, for a person. `directory`: where the stores are."""
    used = cores()
    return {
        "cores": f"{os.cpu_count()}, measured on {used.measured}, loaded from {used.load}",
        "processor": _processor(),
        "kernel": platform.release(),
        "file system": file_system(directory),
        "fsync": f"{sync_seconds(directory) * 1e3:.2f} ms (median of {_SYNCS}, 4 KB appended)",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("uvicorn", "uvloop", "httptools", "starlette", "httpx")},
        "nginx": _says(["nginx", "-v"], r"nginx/(\S+)"),
        "Node": _says(["node", "--version"], r"v(\S+)"),
        **{name: npm_version(name) for name in ("fastify", "undici")},
        "wrk": _says(["wrk", "-v"], r"wrk (\S+)"),
    }


def npm_version(package: str) -> str:
    """Of what `.ci/setup bench` has installed."""
    try:
        found = re.search(r'"version":\s*"([^"]+)"', (NPM / package / "package.json").read_text())
    except OSError:
        found = None
    return found[1] if found else "missing"


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def file_system(directory: Path) -> str:
    """The kind of the one that the directory is on: that with the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if directory.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"


def sync_seconds(directory: Path) -> float:
    """How long the disk takes to make an appended block durable, as a commit does: median."""
    taken = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(_SYNCS):
            file.write(b"x" * 4_096)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _says(command: Sequence[str], pattern: str) -> str:
    """What a program says of its version, on either output."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return "missing"
    found = re.search(pattern, ran.stdout + ran.stderr)
    return found[1] if found else "unknown"
