"""Reads the PostgreSQL outbox for the operator: numbers, and dead letters, which are also replayed and discarded here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from proxy.core.visitors import Trust
from proxy.store.postgres.database import LATE_SECONDS, NO_STANDBY, Database, Overtaken, Query, Transaction, columns
from proxy.store.postgres.failovers import problems_of
from proxy.store.records import DeadFilter, DeadLetter, Health, Stats
from proxy.store.rows import MAX_REFUSED_NAMES, decode_dead_letter, discarded, increments, make_stats, replayed


def tally(tallies: Mapping[str, int]) -> Query:
    """Returns what moves the counters. It comes last in a transaction."""
    return "tally", columns("names values", [moved for moved in tallies.items() if moved[1]])


PROOF = tally({"gauge:proofs": 1})  # a write that is made only to commit something


async def read_stats(database: Database) -> Stats:
    """Returns the numbers of the store. One statement reads the counters, so that their sums add up."""
    counters, oldest, ready, names, gate, timelines, unconfirmed = await database.read(
        ("counters", {}),
        ("oldest", {}),
        ("vouched_ready", {}),
        ("refused_names", {"limit": MAX_REFUSED_NAMES}),
        ("gate", {}),
        ("timelines", {}),
        ("unconfirmed", {"seconds": LATE_SECONDS}),
    )
    stats = make_stats(
        dict(counters.rows),
        oldest=oldest.value,
        ready=ready.value,
        refused_names=names.rows,
        closure=gate.value,
    )
    return msgspec.structs.replace(stats, health=_health(database, timelines.rows, unconfirmed.value))


def _health(database: Database, timelines: Sequence[tuple[Any, ...]], unconfirmed: int) -> Health:
    """Returns the health of the store. `unconfirmed`: the number of commits, of any node, that have waited too long for a standby."""
    trouble = NO_STANDBY if unconfirmed else database.trouble
    sentence = f"The database fails ({trouble}). See its log."
    problems = [each for each in (sentence if trouble else "", database.sight.skew()) if each]
    return Health(
        **msgspec.structs.asdict(database.counts),
        failovers=max(0, len(timelines) - 1),
        lost=sum(lost for *_, lost in timelines),
        clock_ahead_seconds=database.sight.ahead_seconds,
        problems=(*problems, *problems_of(timelines, database.sight.now())),
    )


def waits_for_a_standby(health: Health) -> bool:
    """Returns whether commits wait for a standby, so that another one would, too."""
    return any(NO_STANDBY in problem for problem in health.problems)


async def read_dead_letters(database: Database, matching: DeadFilter, after: int, limit: int) -> list[DeadLetter]:
    (found,) = await database.read(_dead_letters(matching, after, limit))
    return [decode_dead_letter(row) for row in found.rows]


def _dead_letters(matching: DeadFilter, after: int, limit: int) -> Query:
    asked: dict[str, object] = {
        "seqs": list(matching.seqs) or None,
        "ids": list(matching.ids) or None,
        "reason": str(matching.reason) if matching.reason is not None else None,
        "contact": matching.contact,
        "before": matching.before,
    }
    return "dead_letters", {**asked, "after": after, "limit": limit}


async def replay(transaction: Transaction, matching: DeadFilter, limit: int) -> int:
    (found,) = await transaction.run(_dead_letters(matching, 0, limit))
    letters = [decode_dead_letter(row) for row in found.rows]
    if not letters:
        return 0
    seqs = [letter.seq for letter in letters]
    (owners,) = await transaction.run(("lanes_of_dead", {"seqs": seqs}))
    lanes = {"lanes": [lane for _, lane in owners.rows]}
    alone = [increments(letter.body) for letter in letters]
    locked, moved = await transaction.run(
        ("replay_lanes", lanes), ("undead", {**lanes, "seqs": seqs, "increments": alone})
    )
    gained, sizes, vouched = Counter[int](), Counter[int](), set[int]()
    for lane, size, trust in moved.rows:
        gained[lane] += 1
        sizes[lane] += size
        if trust == Trust.VERIFIED:
            vouched.add(lane)
    if moved.count != len(letters) or gained.keys() != {lane for (lane,) in locked.rows}:
        raise Overtaken  # somebody else has them, or their lane has become one with another
    regain = (
        "lanes_regain",
        columns(
            "lanes gained bytes vouched",
            [(lane, count, sizes[lane], lane in vouched) for lane, count in gained.items()],
        ),
    )
    await transaction.commit(regain, tally(replayed(len(letters))))
    return len(letters)


async def discard(transaction: Transaction, matching: DeadFilter, limit: int) -> int:
    (found,) = await transaction.run(_dead_letters(matching, 0, limit))
    (gone,) = await transaction.run(("discard", {"seqs": [row[0] for row in found.rows]}))
    if gone.count:
        await transaction.commit(tally(discarded(gone.rows)))
    return gone.count
