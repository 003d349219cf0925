"""Fuzzes SendX's answers and asks the oracle: `python -m tests.load.fuzz_answers --answers 100000` (`make fuzz-answers`).

A real forwarder on a real store pushes rounds of contacts through the upstream of `tests.support.fuzz`, in the clear and over TLS in
turn. After each round the oracle judges what became of it, and the memory of the process is read. Exit code 1 if a promise was broken, if the
forwarder died, if something was logged as a defect, or if memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import uvloop

from proxy.store.sqlite.outbox import open_outbox
from tests.support.fuzz import DEFECTS, Fuzzed, fuzzing
from tests.support.oracle import Violation

CONTACTS = 200  # of one round
GROWTH_MB = 24.0  # the store's page cache, which grows with its file to 16 MB, and what an allocator may keep
GROWTH_OBJECTS = 2_000  # one for each of many answers would be a leak


class Defects(logging.Handler):
    """Counts what the proxy logs about itself."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(defect in text for defect in DEFECTS):
            self.lines.append(text)


class Tally:
    """What all rounds came to. `memory`: MB after each; `objects`: how many Python knows then."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.memory: list[float] = []
        self.objects: list[int] = []
        self.findings: list[str] = []

    def add(self, done: Fuzzed) -> None:
        history = done.history
        promises = [promise for lane in history.lanes.values() for promise in lane]
        arrived = {tag for sight in history.sights for tag in sight.tags}
        dead = {promise.tag: history.dead[promise.id] for promise in promises if promise.id in history.dead}
        unarrived = sum(reason == "ambiguous" and tag not in arrived for tag, reason in dead.items())
        self.counts["answers"] += len(history.sights)
        self.counts["pushes"] += len(promises)
        self.counts["increments among them"] += sum(promise.increment for promise in promises)
        self.counts["delivered"] += len(promises) - len(dead)
        self.counts.update(Counter(f"dead letters, {reason}" for reason in dead.values()))
        self.counts["ambiguous that never arrived"] += unarrived
        self.counts.update(Counter(str(finding.violation) for finding in done.findings))
        self.findings += [f"{finding.violation}: {finding.what}" for finding in done.findings]

    def measure(self) -> None:
        gc.collect()
        self.memory.append(_resident_mb())
        self.objects.append(len(gc.get_objects()))

    def grew(self) -> bool:
        return growth(self.memory) > GROWTH_MB or growth(self.objects) > GROWTH_OBJECTS


def growth(values: Sequence[float]) -> float:
    """Returns the growth from the first fifth of the rounds, without the very first, to the last fifth."""
    some = max(1, len(values) // 5)
    return statistics.median(values[-some:]) - statistics.median(values[1 : 1 + some] or values)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def run(answers: int, seed: int, directory: Path) -> Tally:
    """Raises AssertionError if the forwarder dies."""
    tally = Tally()
    day = timedelta(days=1)
    outbox = await open_outbox(
        directory / "scq.db", create=True, hold_age=30 * day, dead_age=90 * day, min_free_bytes=0
    )
    try:
        async with fuzzing(outbox, seed, hangs=0.01) as fuzz:
            number = 0
            while tally.counts["answers"] < answers:
                tally.add(await fuzz.round(seed + number, CONTACTS, tls=number % 2 == 1))
                fuzz.answers.forget()
                tally.measure()
                number += 1
                if sys.stdout.isatty():
                    print(f"\r{tally.counts['answers']:,} answers, {tally.memory[-1]:.0f} MB", end="", flush=True)
    finally:
        await outbox.close()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.fuzz_answers", description="See the module.")
    parser.add_argument("--answers", type=int, default=100_000, help="at least so many (100,000)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run, to repeat it as far as it can be")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    defects = Defects()
    logging.getLogger("proxy").addHandler(defects)
    logging.getLogger("proxy").propagate = False
    memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - power cuts are tested elsewhere
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="scq-fuzz-", dir=memory_disk) as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        tally = runner.run(run(asked.answers, seed, Path(directory)))
    print("\n" + summary(tally, defects.lines, time.monotonic() - started))
    return int(bool(tally.findings or defects.lines or tally.grew()))


def summary(tally: Tally, defects: list[str], seconds: float) -> str:
    rows = Counter(
        {str(each): 0 for each in (Violation.LOST, Violation.OVERTAKEN, Violation.DOUBLED, Violation.REPEATED)}
    )
    rows.update(tally.counts)
    lines = [f"{name:30} {value:>10,}" for name, value in sorted(rows.items())]
    lines += [f"{'forwarder deaths':30} {0:>10,}"]  # the first one ends the run
    lines += [f"{'defects logged':30} {len(defects):>10,}"]
    lines += [f"{'MB after the second round':30} {tally.memory[min(1, len(tally.memory) - 1)]:>10.1f}"]
    lines += [
        f"{'MB after the last round':30} {tally.memory[-1]:>10.1f}",
        f"{'MB of growth':30} {growth(tally.memory):>10.1f}",
        f"{'objects after the last round':30} {tally.objects[-1]:>10,}",
        f"{'objects of growth':30} {growth(tally.objects):>10,.0f}",
    ]
    lines += [f"{'seconds':30} {seconds:>10.0f}"]
    return "\n".join([*lines, *(f"! {line}" for line in [*tally.findings, *defects][:50])])


if __name__ == "__main__":
    sys.exit(main())
