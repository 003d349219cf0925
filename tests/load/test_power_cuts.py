"""The small form of `python -m tests.load.power_cuts`: strace's lines are understood, disks are built as they can be, and the judge can say no."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from proxy.store.records import DeadReason, Stats
from tests.load.power_cuts.__main__ import missing
from tests.load.power_cuts.cuts import Cut, chosen, images, tried
from tests.load.power_cuts.disk import SECTOR, Disk, Way
from tests.load.power_cuts.judge import Found, Told, judge, look
from tests.load.power_cuts.load import Life
from tests.load.power_cuts.load import record as recorded_run
from tests.load.power_cuts.record import (
    DATABASE,
    JOURNAL,
    LOG,
    Answer,
    AnyEvent,
    Create,
    Ending,
    Person,
    Push,
    Record,
    Remove,
    Request,
    Resize,
    Start,
    Sync,
    SyncDirectory,
    Try,
    Write,
)
from tests.load.power_cuts.strace import NotUnderstood, Reader
from tests.support.oracle import Finding, Violation

STORE = Path("/s/scq.db")
PORT = 21643
DRAWS = range(200)


# --- What strace writes -------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


DIRECTORY, LOG_PATH = quoted("/s"), quoted("/s/scq.db-wal")
OPENED = (
    f'7 1796069565.100000 openat(AT_FDCWD<{DIRECTORY}>, "{LOG_PATH}", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 15<{LOG_PATH}>'
)


def read(*lines: str) -> list[AnyEvent]:
    return Reader(STORE, PORT).read(lines)


def test_a_write_a_sync_and_a_new_size_are_read_with_their_files() -> None:
    found = read(
        OPENED,
        rf'7 1796069565.200000 pwrite64(15<{LOG_PATH}>, "\x37\x7f\x06\x82", 4, 32) = 4',
        f"7 1796069565.300000 fdatasync(15<{LOG_PATH}>) = 0",
        f"7 1796069565.400000 fdatasync(6<{DIRECTORY}>)         = 0",
        f"7 1796069565.500000 ftruncate(15<{LOG_PATH}>, 0) = 0",
        f'7 1796069565.600000 unlink("{LOG_PATH}") = 0',
        f'7 1796069565.700000 unlink("{quoted("/s/scq.db-shm")}") = -1 ENOENT (No such file or directory)',
        "7 1796069565.800000 +++ exited with 0 +++",
    )
    assert found == [
        Create(at=1796069565.1, file=LOG),
        Write(at=1796069565.2, file=LOG, offset=32, data=b"\x37\x7f\x06\x82"),
        Sync(at=1796069565.3, file=LOG),
        SyncDirectory(at=1796069565.4),
        Resize(at=1796069565.5, file=LOG, size=0),
        Remove(at=1796069565.6, file=LOG),
    ]


def test_an_answer_counts_from_its_beginning_and_a_sync_from_its_end() -> None:
    answer = quoted("HTTP/1.1 202 Accepted\r\n\r\n")
    found = read(
        OPENED,
        f"7 1796069565.200000 fdatasync(15<{LOG_PATH}> <unfinished ...>",
        f'8 1796069565.300000 write(21<TCP:[127.0.0.1:{PORT}->127.0.0.1:36160]>, "{answer}", 25 <unfinished ...>',
        "7 1796069565.400000 <... fdatasync resumed>)       = 0",
        "8 1796069565.500000 <... write resumed>)           = 25",
        f'8 1796069565.600000 write(21<TCP:[127.0.0.1:{PORT}->127.0.0.1:36160]>, "{answer}", 25) = 25',
        f'8 1796069565.700000 write(27<TCP:[127.0.0.1:38712->127.0.0.1:33129]>, "{quoted("POST / HTTP/1.1")}", 15) = 15',
    )
    assert found[1:] == [
        Answer(at=1796069565.3, port=36160, number=0, status=202),
        Sync(at=1796069565.2, file=LOG),
        Answer(at=1796069565.6, port=36160, number=1, status=202),
    ]


@pytest.mark.parametrize("ending", [") = ?", ""])
def test_a_write_under_way_at_a_kill_may_have_happened(ending: str) -> None:
    reader = Reader(STORE, PORT)
    found = reader.read(
        [
            OPENED,
            rf'7 1796069565.200000 pwrite64(15<{LOG_PATH}>, "\x37\x7f", 2, 32 <unfinished ...>{ending}',
            "7 1796069565.300000 +++ killed by SIGKILL +++",
        ]
    )
    assert found == [Create(at=1796069565.1, file=LOG)]
    assert reader.unsure == [Write(at=1796069565.2, file=LOG, offset=32, data=b"\x37\x7f")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("7 1796069565.200000 something else", "neither a call"),
        ("strace: Process 7 attached", "no line of strace"),
        (rf'7 1796069565.200000 pwrite64(15<{LOG_PATH}>, "\x37\x7f"..., 4096, 32) = 4096', "cut off"),
        (rf'7 1796069565.200000 pwrite64(15<{LOG_PATH}>, "\x37\x7f", 2, 32) = 1', "less was written"),
        (rf'7 1796069565.200000 write(15<{LOG_PATH}>, "\x37\x7f", 2) = 2', "written by write"),
        (f"7 1796069565.200000 fdatasync(15<{LOG_PATH}>) = -1 EIO (Input/output error)", "fdatasync failed"),
        (f"7 1796069565.200000 fallocate(15<{LOG_PATH}>, 0, 0, 4096) = 0", "fallocate is not modelled"),
        (f"7 1796069565.200000 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 15<{LOG_PATH}>, 0) = 0x7fd3589bb000", "mmap"),
        (f'7 1796069565.200000 rename("{LOG_PATH}", "{quoted("/s/x")}") = 0', "rename is not modelled"),
        (
            f'7 1796069565.200000 rename("{quoted("/s/x")}", "{quoted("/s/scq.db.corrupt-1")}") = 0',
            "set its store aside",
        ),
        ("7 1796069565.200000 <... pwrite64 resumed>) = 4096", "without its beginning"),
    ],
)
def test_what_is_not_understood_is_an_error(line: str, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why):
        read(OPENED, line)


def test_two_calls_at_the_same_time_on_one_file_have_no_order() -> None:
    with pytest.raises(NotUnderstood, match="two calls at the same time"):
        read(
            OPENED,
            f"7 1796069565.200000 fdatasync(15<{LOG_PATH}> <unfinished ...>",
            rf'8 1796069565.300000 pwrite64(15<{LOG_PATH}>, "\x37", 1, 0) = 1',
        )


# --- The disk -----------------------------------------------------------------------------------------------------------


def disk_after(*events: AnyEvent) -> Disk:
    disk = Disk()
    for event in events:
        disk.apply(event)
    return disk


def write(file: str, offset: int, data: bytes) -> Write:
    return Write(at=0.0, file=file, offset=offset, data=data)


def drawn(disk: Disk, way: Way, torn: str | None = None) -> list[Any]:
    return [disk.after_cut(way, random.Random(draw), torn) for draw in DRAWS]  # noqa: S311 - seeded


MADE: tuple[AnyEvent, ...] = (Create(at=0.0, file=LOG), SyncDirectory(at=0.0))
OLD, NEW = b"o" * SECTOR, b"n" * SECTOR


def test_what_was_synced_is_there_after_any_cut() -> None:
    disk = disk_after(*MADE, write(LOG, 0, OLD * 3), Sync(at=0.0, file=LOG))
    assert disk.is_synced
    for way in Way:
        assert all(image == {LOG: OLD * 3} for image in drawn(disk, way, LOG))


def test_any_sectors_of_what_was_not_synced_may_be_there() -> None:
    disk = disk_after(*MADE, write(LOG, 0, OLD * 3), Sync(at=0.0, file=LOG), write(LOG, 0, NEW * 3))
    contents = {image[LOG] for image in drawn(disk, Way.PART)}
    assert len(contents) == 8
    assert disk.after_cut(Way.NONE, random.Random(1)) == {LOG: OLD * 3}  # noqa: S311 - seeded
    assert disk.after_cut(Way.ALL, random.Random(1)) == {LOG: NEW * 3}  # noqa: S311 - seeded


def test_a_sector_holds_what_it_held_between_two_writes_and_never_half_of_one() -> None:
    disk = disk_after(
        *MADE, write(LOG, 0, OLD), Sync(at=0.0, file=LOG), write(LOG, 0, b"a" * 8), write(LOG, 4, b"b" * 8)
    )
    heads = {image[LOG][:12] for image in drawn(disk, Way.PART)}
    assert heads == {b"o" * 12, b"a" * 8 + b"o" * 4, b"a" * 4 + b"b" * 8}


def test_a_write_is_torn_at_every_sector_and_all_before_it_is_there() -> None:
    disk = disk_after(*MADE, write(LOG, 0, OLD * 4), write(LOG, SECTOR, NEW * 3))
    contents = {image[LOG] for image in drawn(disk, Way.TORN, LOG)}
    assert {OLD + NEW * count + OLD * (3 - count) for count in range(4)} <= contents
    assert all(content.startswith(OLD) for content in contents)


def test_a_file_may_have_grown_without_its_content_or_not_have_been_cut() -> None:
    grown = disk_after(*MADE, write(LOG, 0, NEW))
    assert {b"", bytes(SECTOR), NEW} < {image[LOG] for image in drawn(grown, Way.PART)}
    cut = disk_after(*MADE, write(LOG, 0, OLD * 2), Sync(at=0.0, file=LOG), Resize(at=0.0, file=LOG, size=SECTOR))
    assert {image[LOG] for image in drawn(cut, Way.PART)} == {OLD, OLD * 2}


def test_a_name_may_be_missing_or_back_until_the_directory_is_synced() -> None:
    new = disk_after(Create(at=0.0, file=LOG), write(LOG, 0, NEW), Sync(at=0.0, file=LOG))
    assert {LOG in image for image in drawn(new, Way.PART)} == {True, False}
    new.apply(SyncDirectory(at=0.0))
    new.apply(Remove(at=0.0, file=LOG))
    assert {image.get(LOG) for image in drawn(new, Way.PART)} == {NEW, None}
    new.apply(SyncDirectory(at=0.0))
    assert all(not image for image in drawn(new, Way.PART))


def test_the_sync_of_one_file_says_nothing_of_another() -> None:
    both = (Create(at=0.0, file=DATABASE), Create(at=0.0, file=JOURNAL), SyncDirectory(at=0.0))
    disk = disk_after(*both, write(DATABASE, 0, NEW), write(JOURNAL, 0, NEW), Sync(at=0.0, file=JOURNAL))
    assert disk.after_cut(Way.NONE, random.Random(1)) == {DATABASE: b"", JOURNAL: NEW}  # noqa: S311 - seeded


# --- The judge ----------------------------------------------------------------------------------------------------------

ANN = "ann@example.com"
NAMES = ("held", "log-in", "track", "count", "under way")
HELD, LOG_IN, TRACK, COUNT, UNDER_WAY = (Push(f"cut-0-0-{name}", name, name == "count") for name in NAMES)
REQUESTS = [
    Request([HELD], held=True, tries=[Try(0, 1, 0)]),
    Request([LOG_IN], binds=True, tries=[Try(0, 1, 1)]),
    Request([TRACK, COUNT], tries=[Try(0, 1, 2)]),
    Request([UNDER_WAY], tries=[Try(0, 1, 3)]),
]
LANE = [LOG_IN, HELD, TRACK, COUNT]


def told(answers: int = 3, *, applied: Sequence[Push] = (), erased: bool = False) -> Told:
    """What Ann had been told before second 10."""
    ann = Person(ANN, REQUESTS, erased=(0.0, 1.0) if erased else None)
    found = Told(Record([], [ann], {push.tag: 5.0 for push in applied}))
    found.learn(Start(at=1.0, after=None))
    for number in range(answers):
        found.learn(Answer(at=10.0, port=1, number=number, status=202))
    return found


def store(*waiting: Push, held: Sequence[Push] = (), dead: Sequence[Push] = (), seen: int = 4, **counted: int) -> Found:
    """A store in which this is left of the first `seen` pushes, the rest of them delivered."""
    gone = seen - len(waiting) - len(held) - len(dead)
    tally = {"accepted": seen - 1, "held": 1, "bound": 1 - len(held), "delivered": gone, "dead:ambiguous": len(dead)}
    stats = Stats(
        counters=tally | counted,
        waiting=len(waiting),
        holding=len(held),
        dead=len(dead),
        oldest=None,
        refused_names=(),
    )
    return Found(
        check="ok",
        waiting={ANN: [push.tag for push in waiting]},
        held=[[push.tag for push in held]],
        dead={push.tag: DeadReason.AMBIGUOUS for push in dead},
        letters=len(dead),
        seen=frozenset(NAMES[:seen]),
        stats=stats,
        lanes_off=0,
    )


def violations(found: Found, told: Told) -> set[Violation]:
    return {finding.violation for finding in judge(found, told)}


@pytest.mark.parametrize(
    ("found", "known"),
    [
        (store(*LANE), told()),
        (store(*LANE, UNDER_WAY, seen=5), told()),
        (store(TRACK, COUNT), told(applied=[LOG_IN, HELD])),
        (store(TRACK, COUNT), told(applied=[LOG_IN, HELD, TRACK])),
        (store(TRACK, dead=[COUNT]), told(applied=[LOG_IN, HELD, COUNT])),
        (store(held=[HELD], seen=1), told(1)),
        (store(LOG_IN, HELD, seen=2), told(1)),
    ],
)
def test_a_store_that_keeps_its_promises_passes(found: Found, known: Told) -> None:
    assert judge(found, known) == []


@pytest.mark.parametrize(
    ("found", "known", "violation"),
    [
        (store(LOG_IN, HELD, TRACK), told(), Violation.LOST),
        (store(LOG_IN, HELD, seen=2), told(), Violation.LOST),
        (store(seen=1), told(1), Violation.LOST),
        (store(TRACK, COUNT), told(applied=[LOG_IN]), Violation.LOST),
        (store(LOG_IN, HELD, COUNT, dead=[TRACK]), told(), Violation.LOST),
        (store(HELD, LOG_IN, TRACK, COUNT), told(), Violation.OVERTAKEN),
        (store(LOG_IN, TRACK, COUNT), told(applied=[HELD]), Violation.OVERTAKEN),
        (store(*LANE, TRACK), told(), Violation.DOUBLED),
        (store(*LANE, dead=[COUNT]), told(), Violation.DOUBLED),
        (store(COUNT), told(applied=LANE), Violation.DOUBLED),
        (store(*LANE, held=[HELD]), told(), Violation.ASTRAY),
        (store(*LANE, Push("cut-9-9-9")), told(), Violation.ASTRAY),
        (store(*LANE, delivered=1), told(), Violation.SUMS),
        (store(*LANE, accepted=4), told(), Violation.SUMS),
        (store(*LANE)._replace(lanes_off=1), told(), Violation.SUMS),
        (store(*LANE)._replace(letters=1), told(), Violation.SUMS),
        (store(*LANE)._replace(check="row 1 missing from index"), told(), Violation.LOST),
        (store(*LANE), told(erased=True), Violation.LOST),
    ],
)
def test_a_broken_promise_is_found(found: Found, known: Told, violation: Violation) -> None:
    assert violation in violations(found, known)


async def test_a_store_that_is_refused_or_cannot_be_read_or_is_set_aside_is_lost(tmp_path: Path) -> None:
    (tmp_path / "scq.db").write_bytes(b"not a database, " * 100)
    (refused,) = cast(list[Finding], await look(tmp_path))
    assert "does not open" in refused.what
    (tmp_path / "scq.db").write_bytes(b"")
    assert not isinstance(await look(tmp_path), list)
    with closing(sqlite3.connect(tmp_path / "scq.db")) as connection:
        connection.execute("ALTER TABLE lanes RENAME TO gone")
    assert "does not open" in cast(list[Finding], await look(tmp_path))[0].what
    (tmp_path / "scq.db").write_bytes(b"")
    (tmp_path / "scq.db-wal").write_bytes(b"a log without its file")
    aside = cast(list[Finding], await look(tmp_path))
    assert {finding.violation for finding in aside} == {Violation.LOST}


# --- A real run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    record: Record
    cuts: Sequence[Cut]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short one, with two kills. Where strace is missing it is skipped, or with `CI` set fails."""
    if reason := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    lives = (Life(10, Ending.KILL), Life(4, Ending.KILL))
    record = recorded_run(tmp_path_factory.mktemp("power"), 1, lives)
    return Run(record, chosen(record, 1, 64))


def test_nothing_is_lost_at_any_cut_of_a_short_run(run: Run) -> None:
    assert tried(run.record, run.cuts, seed=1) == []
    assert {cut.way for cut in run.cuts} == {*Way}


def test_the_same_seed_leaves_the_same_disks(run: Run) -> None:
    again = chosen(run.record, 1, 64)
    assert again == run.cuts
    first = [image for _, image, _ in images(run.record, run.cuts, 1)]
    assert [image for _, image, _ in images(run.record, again[::2], 1)] == first[::2]


def test_a_disk_that_does_not_sync_loses_pushes(run: Run) -> None:
    events = [event for event in run.record.events if not (isinstance(event, Sync) and event.file == LOG)]
    record = msgspec.structs.replace(run.record, events=events)
    broken = tried(record, [Cut(len(events) - 1, Way.NONE, "")], seed=1)
    assert {finding.violation for each in broken for finding in each.findings} >= {Violation.LOST}


def test_an_answer_that_leaves_before_its_commit_is_synced_is_found_out(run: Run) -> None:
    events: list[AnyEvent] = []
    for event in run.record.events:  # each in the place of the write before it
        early = isinstance(event, Answer)
        place = (
            max((n for n, each in enumerate(events) if isinstance(each, Write)), default=0) if early else len(events)
        )
        events.insert(place, event)
    record = msgspec.structs.replace(run.record, events=events)
    answers = [number for number, event in enumerate(events) if isinstance(event, Answer)]
    broken = tried(record, [Cut(number, Way.NONE, "") for number in answers], seed=1)
    assert Violation.LOST in {finding.violation for each in broken for finding in each.findings}
