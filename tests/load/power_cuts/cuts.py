"""Chooses the cuts and builds the disk that each leaves, deterministically from a record and a seed."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.load.power_cuts.disk import Disk, Image, Way, sectors_of
from tests.load.power_cuts.judge import Told, judge_image
from tests.load.power_cuts.record import (
    DATABASE,
    INDEX,
    LOG,
    Answer,
    AnyEvent,
    Ending,
    FileEvent,
    Record,
    Resize,
    Start,
    Sync,
    Write,
)
from tests.support.oracle import Finding

MEMORY = Path("/dev/shm")  # noqa: S108 - syncs cost nothing there


class Cut(NamedTuple):
    """The power is cut after this event, or while it is carried out (TORN). `again`: tells further draws of the same cut apart."""

    event: int
    way: Way
    kind: str
    again: int = 0

    def rng(self, seed: int) -> random.Random:
        return random.Random(f"{seed} {self.event} {self.way} {self.again}")  # noqa: S311 - a seeded run

    @property
    def name(self) -> str:
        return f"{self.event}:{self.way.name.lower()}:{self.again}"


class Broken(NamedTuple):
    cut: Cut
    findings: list[Finding]


# --- Which ---------------------------------------------------------------------------------------------------------------

_KINDS = {
    (Write, LOG): "commit: the log is written",
    (Sync, LOG): "commit: the log is synced",
    (Write, DATABASE): "checkpoint: the file is written",
    (Sync, DATABASE): "checkpoint: the file is synced",
    (Resize, LOG): "the log is cut",
    (Resize, DATABASE): "checkpoint: the size of the file",
}


def phases(events: Iterable[AnyEvent]) -> Iterator[str]:
    """Yields the phase of each event. A server is starting until its first answer."""
    opening = ""
    for event in events:
        if isinstance(event, Start):
            opening = f"opening after {event.after}" if event.after else "opening a new store"
        elif isinstance(event, Answer):
            opening = ""
        if opening:
            yield opening
        elif isinstance(event, Answer):
            yield "an answer has left"
        elif isinstance(event, FileEvent):
            yield _KINDS.get((type(event), event.file), "names and rollback journal")
        else:
            yield "names and rollback journal"


def possible(record: Record) -> Iterator[Cut]:
    """Yields a cut at every boundary, for each fate of the unsynced writes, and one within every write of more than a sector."""
    disk = Disk()
    for number, (event, kind) in enumerate(zip(record.events, phases(record.events), strict=True)):
        disk.apply(event)
        if disk.is_synced:
            yield Cut(number, Way.ALL, kind)
            continue
        yield from (Cut(number, way, kind) for way in (Way.NONE, Way.ALL, Way.PART))
        if isinstance(event, Write) and sectors_of(event) > 1:
            yield Cut(number, Way.TORN, kind)


def chosen(record: Record, seed: int, count: int) -> list[Cut]:
    """Samples all kinds and ways evenly, so that rare ones are covered completely; draws again if there are too few."""
    rng = random.Random(seed)  # noqa: S311 - a seeded run
    piles: dict[tuple[str, Way], list[Cut]] = defaultdict(list)
    for cut in possible(record):
        piles[cut.kind, cut.way].append(cut)
    for pile in piles.values():
        rng.shuffle(pile)
    found: list[Cut] = []
    while len(found) < count and any(piles.values()):
        found += [pile.pop() for pile in piles.values() if pile]
    drawn = [cut for cut in found if cut.way in (Way.PART, Way.TORN)]
    again = 0
    while len(found) < count and drawn:
        again += 1
        found += [cut._replace(again=again) for cut in drawn[: count - len(found)]]
    return sorted(found)


# --- What each leaves ---------------------------------------------------------------------------------------------------


def images(record: Record, cuts: Sequence[Cut], seed: int) -> Iterator[tuple[Cut, Image, Told]]:
    """Yields the disk and the answers given so far for each of these cuts, which are in the order of the events."""
    disk, told = Disk(), Told(record)
    left = iter(sorted(cuts))
    cut = next(left, None)
    for number, event in enumerate(record.events):
        if cut is None:
            return
        disk.apply(event)
        told.learn(event)
        while cut is not None and cut.event == number:
            torn, rng = event.file if isinstance(event, Write) else None, cut.rng(seed)
            image = disk.after_cut(cut.way, rng, torn)
            if cut.way is Way.PART and rng.random() < 0.25:
                image = {**image, INDEX: rng.randbytes(32_768)}
            yield cut, image, told
            cut = next(left, None)


def tried(record: Record, cuts: Sequence[Cut], seed: int) -> list[Broken]:
    """Returns the cuts after which a promise is broken."""
    place = MEMORY if MEMORY.is_dir() else None
    broken = []
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory(prefix="scq-power-", dir=place) as directory:
        for cut, image, told in images(record, cuts, seed):
            if findings := judge_image(image, told, Path(directory), runner):
                broken.append(Broken(cut, findings))
    return broken


def tried_by_processes(
    record: Path, cuts: Sequence[Cut], seed: int, processes: int
) -> Iterator[tuple[int, list[Broken]]]:
    """Yields how many more cuts were tried, and those that broke a promise. `record`: the path of the pickled record."""
    parts = 10 * processes
    size = -(-len(cuts) // parts)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        shares = [cuts[start : start + size] for start in range(0, len(cuts), size)]
        done = [pool.submit(_tried_from_file, str(record), share, seed) for share in shares]
        for share, future in zip(shares, done, strict=True):
            yield len(share), future.result()


def _tried_from_file(path: str, cuts: Sequence[Cut], seed: int) -> list[Broken]:
    return tried(msgspec.msgpack.decode(Path(path).read_bytes(), type=Record), cuts, seed)


# --- What the record holds ----------------------------------------------------------------------------------------------


def contents(record: Record) -> Mapping[str, int]:
    """Counts the kinds of event that a record must contain."""
    found: Counter[str] = Counter()
    checkpoints, size = False, 0
    for event in record.events:
        match event:
            case Start(after=Ending()):
                found[f"{event.after} and start"] += 1
            case Answer(status=200 | 202):
                found["answers"] += 1
            case Resize(file=file) if file == LOG:
                found["log cuts"] += 1
            case Resize(file=file) if file == DATABASE:  # every checkpoint sets the size, most of them to what it is
                found["vacuums"] += event.size < size
                size = event.size
            case Write(file=file) if file == DATABASE:
                checkpoints, size = True, max(size, event.offset + len(event.data))
            case Sync(file=file) if file == LOG:
                found["syncs of the log"] += 1
            case Sync(file=file) if file == DATABASE and checkpoints:
                checkpoints = False
                found["checkpoints"] += 1
    return found
