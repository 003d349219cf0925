"""Cuts the power at thousands of moments of a recorded run: `python -m tests.load.power_cuts` (`make power-cuts`).

A real `scq-proxy serve` on SQLite runs under strace while people and servers push, deliveries are made, and it is killed, stopped, erased
from, and started on a full disk (`load`). Every write and every sync of its files is in the record, and every answer as it left (`strace`). For
each cut, the disk is built as it may have been (`disk`), torn sectors and unsynced writes in any mixture; the store on it is opened
with the product's own code, and judged (`judge`): nothing that was acknowledged is lost, overtaken or doubled, the sums add up, and the
file is sound. Which cuts are tried is in `cuts`.

Exit code 1 if a promise was broken; the record and the images are then kept, and `--again DIRECTORY --seed SEED` judges them again.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tests.load.power_cuts.cuts import Broken, Cut, chosen, contents, images, tried_by_processes
from tests.load.power_cuts.disk import Way
from tests.load.power_cuts.judge import write_image
from tests.load.power_cuts.load import record
from tests.load.power_cuts.record import Record
from tests.load.power_cuts.strace import COMMAND

KEPT_IMAGES = 10
NEEDED = ("checkpoints", "log cuts", "kill -9 and start", "stop and start", "vacuums")


def missing() -> str:
    """Returns a sentence about the problem with strace on this machine, "" if it works."""
    if shutil.which("strace") is None:
        return "strace is missing. Install it (Debian: apt-get install strace)."
    ran = subprocess.run([*COMMAND, os.devnull, "true"], capture_output=True, text=True, check=False)
    if ran.returncode or ran.stderr:
        return (
            f"strace cannot trace here ({ran.stderr.strip()}). In a container, allow it ptrace: --cap-add=SYS_PTRACE."
        )
    return ""


def table(cuts: Sequence[Cut], broken: Sequence[Broken]) -> str:
    """Returns one line per kind of cut: the number by surviving writes, and the number that broke a promise."""
    count = Counter((cut.kind, cut.way) for cut in cuts)
    bad = Counter(each.cut.kind for each in broken)
    rows = [("", *Way, "all", "broken")]
    for kind in dict.fromkeys(cut.kind for cut in cuts):
        numbers = [count[kind, way] for way in Way]
        rows.append((kind, *map(str, [*numbers, sum(numbers), bad[kind]])))
    total = [sum(count[kind, way] for kind in {cut.kind for cut in cuts}) for way in Way]
    rows.append(("all", *map(str, [*total, sum(total), len(broken)])))
    return "\n".join(
        f"{row[0]:34}" + "".join(f"{cell:>22}" for cell in row[1:5]) + "".join(f"{cell:>8}" for cell in row[5:])
        for row in rows
    )


def main() -> int:
    asked = _arguments()
    if asked.again is None and (lacking := missing()):
        print(lacking, file=sys.stderr)
        return 2
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    started = time.monotonic()
    directory = asked.again or Path(tempfile.mkdtemp(prefix="scq-power-cuts-"))
    print(f"seed {seed}, in {directory}", flush=True)
    path = directory / "record"
    if asked.again is None:
        path.write_bytes(msgspec.msgpack.encode(record(directory, seed, say=lambda line: print(line, flush=True))))
    recorded = msgspec.msgpack.decode(path.read_bytes(), type=Record)
    held = contents(recorded)
    print(f"The record, after {time.monotonic() - started:.0f} s: {_listed(held)}", flush=True)
    if lacking_ones := [what for what in NEEDED if not held.get(what)]:
        print(
            f"The record holds no {', no '.join(lacking_ones)}: run it again. It is kept in {directory}",
            file=sys.stderr,
        )
        return 1
    cuts = chosen(recorded, seed, asked.cuts)
    broken: list[Broken] = []
    count = 0
    for more, findings in tried_by_processes(path, cuts, seed, asked.processes):
        count, broken = count + more, broken + findings
        if sys.stdout.isatty():
            print(f"\r{count:,} of {len(cuts):,} cuts, {len(broken)} broken", end="", flush=True)
    print(f"\n{table(cuts, broken)}\n{time.monotonic() - started:.0f} s")
    if broken:
        return _kept(directory, recorded, broken, seed)
    if asked.again is None:
        shutil.rmtree(directory)
    return 0


def _listed(held: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in held.items())


def _kept(directory: Path, recorded: Record, broken: Sequence[Broken], seed: int) -> int:
    """Prints the broken promises, and keeps the disk images of the first."""
    for each in broken[:KEPT_IMAGES]:
        for finding in each.findings[:5]:
            print(f"! cut {each.cut.name}, {each.cut.kind}: {finding.violation}: {finding.what}")
    for cut, image, _ in images(recorded, [each.cut for each in broken[:KEPT_IMAGES]], seed):
        place = directory / f"cut-{cut.name}"
        place.mkdir(exist_ok=True)
        write_image(image, place)
    print(f"Broken promises. The record and the images of the first are kept in {directory}; to judge them again:")
    print(f"    .venv/bin/python -m tests.load.power_cuts --again {directory} --seed {seed}")
    return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.power_cuts", description="Cut the power; see the module."
    )
    parser.add_argument("--cuts", type=int, default=4_000, help="at least so many (4,000)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run: with --again, the same cuts")
    parser.add_argument("--again", type=Path, default=None, metavar="DIRECTORY", help="take the record kept there")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that judge at the same time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
