"""Opens the files that a power cut leaves with the product's own code, and names the promises that they break.

`Told` is what the world had been told when the power was cut: which requests had been acknowledged, what SendX had taken, who had been erased.
A request that had not been acknowledged may be in the store or not, but only as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from proxy.errors import StoreRefused, StoreUnavailable
from proxy.store.records import DeadReason, Stats
from proxy.store.sqlite.damage import stores_set_aside
from proxy.store.sqlite.outbox import open_outbox
from tests.load.power_cuts.record import Answer, AnyEvent, Person, Push, Record, Request, Start, Try
from tests.support.oracle import Finding, Report, Violation, unequal, wrong_sums

_AGE = timedelta(days=30)
_TAG = re.compile(rb"cut-\d+-\d+-\d+")
_STEM = "scq.db"

# --- What the world had been told ---------------------------------------------------------------------------------------


class Told:
    """The answers that clients have received. `learn` events in order. `acknowledged`: the number of requests per person."""

    def __init__(self, record: Record) -> None:
        self.people = record.people
        self.applied = record.applied
        self.acknowledged = [0] * len(record.people)
        self.at = 0.0
        self._life = -1
        self._tries = {
            each: (number, place)
            for number, person in enumerate(record.people)
            for place, request in enumerate(person.requests)
            for each in request.tries
        }

    def learn(self, event: AnyEvent) -> None:
        self.at = event.at
        if isinstance(event, Start):
            self._life += 1
        if isinstance(event, Answer) and event.status in (200, 202):
            known = self._tries.get(Try(self._life, event.port, event.number))
            if known is not None:  # else it was asked whether it is ready
                number, place = known
                self.acknowledged[number] = max(self.acknowledged[number], place + 1)

    def had_taken(self, push: Push) -> bool:
        return self.applied.get(push.tag, self.at + 1) <= self.at


# --- What is in the store -----------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The content of a store. Tags by lane key or by visitor, in order; `dead`: reasons by tag; `seen`: ids."""

    check: str
    waiting: Mapping[str, Sequence[str]]
    held: Sequence[Sequence[str]]
    dead: Mapping[str, str]
    letters: int
    seen: frozenset[str]
    stats: Stats
    lanes_off: int  # whose own numbers are not those of their pushes


async def look(image: Path) -> Found | list[Finding]:
    """Opens the store as `scq-proxy serve` does, and reads it."""
    with _complaints() as complaints:
        try:
            found = await _read(image / _STEM)
        except (StoreRefused, StoreUnavailable) as refusal:
            return [Finding(Violation.LOST, f"the store does not open: {what}") for what in (refusal, *complaints)]
    aside = stores_set_aside(image / _STEM)
    return [Finding(Violation.LOST, f"{what} after a power cut") for what in (*aside, *complaints)] or found


async def _read(path: Path) -> Found:
    outbox = await open_outbox(path, create=True, hold_age=_AGE, dead_age=_AGE, min_free_bytes=0)
    try:
        stats = await outbox.stats()
        return await outbox._writer.submit(lambda connection: _content(connection, stats))
    finally:
        await outbox.close()


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects the errors that the store logs, such as lost commits."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, log = Keep(logging.WARNING), logging.getLogger("proxy.store")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)


def _content(connection: sqlite3.Connection, stats: Stats) -> Found:
    waiting: dict[str, list[str]] = defaultdict(list)
    for key, body in connection.execute(
        "SELECT lanes.key, pushes.body FROM pushes JOIN lanes ON lanes.id = pushes.lane ORDER BY pushes.seq"
    ):
        waiting[key].append(_tag(body))
    held: dict[str, list[str]] = defaultdict(list)
    for visitor, body in connection.execute("SELECT visitor, body FROM held ORDER BY seq"):
        held[visitor].append(_tag(body))
    letters = [(_tag(body), reason) for body, reason in connection.execute("SELECT body, reason FROM dead")]
    (lanes_off,) = connection.execute(
        "SELECT count(*) FROM lanes LEFT JOIN (SELECT lane, count(*) AS count, sum(length(body)) AS size FROM pushes GROUP BY lane) "
        "ON lane = lanes.id WHERE waiting <> coalesce(count, 0) OR bytes <> coalesce(size, 0)"
    ).fetchone()
    return Found(
        check=connection.execute("PRAGMA integrity_check").fetchone()[0],
        waiting=waiting,
        held=list(held.values()),
        dead=dict(letters),
        letters=len(letters),
        seen=frozenset(push_id for (push_id,) in connection.execute("SELECT id FROM seen")),
        stats=stats,
        lanes_off=lanes_off,
    )


def _tag(body: bytes | str) -> str:
    found = _TAG.search(body.encode() if isinstance(body, str) else body)
    return found[0].decode() if found else ""


# --- What is promised ---------------------------------------------------------------------------------------------------


class Due(NamedTuple):
    """The expected effect of a person's first requests: the lane in order, held pushes, remembered ids."""

    lane: Sequence[Push]
    held: Sequence[Push]
    ids: frozenset[str]


def due(requests: Sequence[Request]) -> Due:
    """What was held goes right behind the identify that binds it."""
    lane: list[Push] = []
    held: list[Push] = []
    for request in requests:
        if request.held:
            held += request.pushes
            continue
        lane += request.pushes
        if request.binds:
            lane += held
            held.clear()
    return Due(lane, held, frozenset(push.id for request in requests for push in request.pushes if push.id))


def judge(found: Found | list[Finding], told: Told) -> list[Finding]:
    """Returns every broken promise."""
    if isinstance(found, list):
        return found
    if found.check != "ok":
        return [Finding(Violation.LOST, f"integrity_check: {found.check}")]
    entered = 0
    findings = list(_strangers(found, told.people))
    for number, person in enumerate(told.people):
        count, broken = _of_person(found, told, person, told.acknowledged[number])
        entered += count
        findings += broken
    return [*findings, *_sums(found, entered)]


def _of_person(found: Found, told: Told, person: Person, acknowledged: int) -> tuple[int, list[Finding]]:
    """Returns how many pushes were stored, and the violations. The request in flight may have been stored."""
    for requests in (person.requests[: acknowledged + 1], person.requests[:acknowledged]):
        findings = list(_compared(found, told, person, due(requests)))
        if not findings:
            break
    return sum(len(request.pushes) for request in requests), findings


def _compared(found: Found, told: Told, person: Person, expected: Due) -> Iterator[Finding]:
    waiting = found.waiting.get(person.email, ())
    own = {push.tag for request in person.requests for push in request.pushes}
    held = [tag for tags in found.held for tag in tags if tag in own]
    if person.erased is not None and told.at >= person.erased[0]:
        left = [*waiting, *held, *(own & {*found.dead})]
        if told.at > person.erased[1] and left:
            yield Finding(Violation.LOST, f"the erasure of {person.email}: {left} are back")
        return
    ids = {push.id for request in person.requests for push in request.pushes} & found.seen
    if ids != expected.ids:
        yield Finding(
            Violation.LOST, f"{len(expected.ids - ids)} ids of {person.email}, and {len(ids - expected.ids)} too many"
        )
    yield from _compared_held(person, held, [push.tag for push in expected.held])
    yield from _compared_lane(found, told, person, waiting, expected.lane)


def _compared_held(person: Person, held: Sequence[str], expected: Sequence[str]) -> Iterator[Finding]:
    if [*held] == [*expected]:
        return
    if missing := [tag for tag in expected if tag not in held]:
        yield Finding(Violation.LOST, f"{missing} of {person.email}, held")
    if len({*held}) < len(held):
        yield Finding(Violation.DOUBLED, f"{held} of {person.email} are held")
    if more := [tag for tag in held if tag not in expected]:
        yield Finding(Violation.ASTRAY, f"{more} of {person.email} are still, or already, held")
    if sorted(held) == sorted(expected):
        yield Finding(Violation.OVERTAKEN, f"{held} of {person.email} are held, not {expected}")


def _compared_lane(
    found: Found, told: Told, person: Person, waiting: Sequence[str], lane: Sequence[Push]
) -> Iterator[Finding]:
    places = {push.tag: place for place, push in enumerate(lane)}
    for tag, times in Counter(waiting).items():
        if tag not in places:
            yield Finding(Violation.ASTRAY, f"{tag} waits for {person.email}")
        if times > 1 or tag in found.dead:
            yield Finding(Violation.DOUBLED, f"{tag} of {person.email} is there more than once")
    standing = [places[tag] for tag in waiting if tag in places]
    if standing != sorted(standing):
        yield Finding(Violation.OVERTAKEN, f"{waiting} wait for {person.email}, not in their order")
    first = min(standing, default=len(lane))
    for place, push in enumerate(lane):
        if broken := _of_push(found, told, push, waits=place in standing):
            yield Finding(broken[0], f"{push.tag} of {person.email}{broken[1]}")
        elif place > first and place not in standing and push.tag not in found.dead:
            yield Finding(Violation.OVERTAKEN, f"{push.tag} of {person.email} has left, {lane[first].tag} has not")


def _of_push(found: Found, told: Told, push: Push, *, waits: bool) -> tuple[Violation, str] | None:
    """Returns what is wrong with a push that has entered its lane. `waits`: it still does."""
    if (reason := found.dead.get(push.tag)) is not None:
        right = push.increment and reason == DeadReason.AMBIGUOUS
        return None if right else (Violation.LOST, f" is a dead letter, {reason}")
    if not waits:
        return None if told.had_taken(push) else (Violation.LOST, " is gone, and SendX never had it")
    return (Violation.DOUBLED, " has counted, and will again") if push.increment and told.had_taken(push) else None


def _strangers(found: Found, people: Sequence[Person]) -> Iterator[Finding]:
    """Finds pushes in the store that were never sent."""
    known = {push.tag for person in people for request in person.requests for push in request.pushes}
    emails = {person.email for person in people}
    if others := {*found.waiting} - emails:
        yield Finding(Violation.ASTRAY, f"lanes of {others}")
    tags = [tag for lanes in (found.waiting.values(), found.held) for lane in lanes for tag in lane]
    if unknown := {*tags, *found.dead} - known:
        yield Finding(Violation.ASTRAY, f"{unknown} were pushed by nobody")


def _sums(found: Found, entered: int) -> Iterator[Finding]:
    stats = found.stats
    yield from wrong_sums(Report(stats.counters, stats.waiting, stats.holding, stats.dead))
    yield from unequal(
        {
            "accepted + held = what has entered": (
                stats.counters.get("accepted", 0) + stats.counters.get("held", 0),
                entered,
            ),
            "waiting = rows": (stats.waiting, sum(map(len, found.waiting.values()))),
            "holding = rows": (stats.holding, sum(map(len, found.held))),
            "dead = rows": (stats.dead, found.letters),
            "lanes with wrong numbers = 0": (found.lanes_off, 0),
        }
    )


# --- One image ----------------------------------------------------------------------------------------------------------


def write_image(image: Mapping[str, bytes], directory: Path) -> None:
    for ending, content in image.items():
        (directory / f"{_STEM}{ending}").write_bytes(content)


def judge_image(image: Mapping[str, bytes], told: Told, directory: Path, runner: asyncio.Runner) -> list[Finding]:
    """Writes it into an empty directory, opens it there, and removes it."""
    write_image(image, directory)
    try:
        return judge(runner.run(look(directory)), told)
    finally:
        for path in directory.iterdir():
            path.unlink()
