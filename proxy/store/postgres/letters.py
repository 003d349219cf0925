"""Dead letters of the PostgreSQL outbox, replayed and discarded."""

from __future__ import annotations

from collections import Counter

from proxy.core.calls import Attributes
from proxy.store.ledger import DEAD, WAITING
from proxy.store.postgres.database import Database, Overtaken, Transaction
from proxy.store.postgres.reads import dead_letters, read_dead_letters, tally
from proxy.store.records import DeadFilter


async def replay(database: Database, matching: DeadFilter, limit: int) -> int:
    """Puts them at the tail of their lanes; how many it were."""
    return await database.run(lambda transaction: _replay(transaction, matching, limit))


async def discard(database: Database, matching: DeadFilter, limit: int) -> int:
    """Drops them; how many it were."""
    return await database.run(lambda transaction: _discard(transaction, matching, limit))


async def _replay(transaction: Transaction, matching: DeadFilter, limit: int) -> int:
    (found,) = await transaction.run(dead_letters(matching, 0, limit))
    letters = read_dead_letters(found.rows)
    if not letters:
        return 0
    seqs = [letter.seq for letter in letters]
    (owners,) = await transaction.run(("lanes_of_dead", {"seqs": seqs}))
    lanes = {"lanes": [lane for _, lane in owners.rows]}
    increments = [isinstance(letter.body, Attributes) and letter.body.increments for letter in letters]
    locked, moved = await transaction.run(
        ("replay_lanes", lanes), ("undead", {**lanes, "seqs": seqs, "increments": increments})
    )
    gained = Counter(lane for (lane,) in moved.rows)
    if moved.count != len(letters) or gained.keys() != {lane for (lane,) in locked.rows}:
        raise Overtaken  # somebody else has them, or their lane has become one with another
    await transaction.commit(
        ("lanes_regain", {"lanes": list(gained), "gained": list(gained.values())}),
        tally({"replayed": len(letters), WAITING: len(letters), DEAD: -len(letters)}),
    )
    return len(letters)


async def _discard(transaction: Transaction, matching: DeadFilter, limit: int) -> int:
    (found,) = await transaction.run(dead_letters(matching, 0, limit))
    (gone,) = await transaction.run(("discard", {"seqs": [row[0] for row in found.rows]}))
    if gone.count:
        await transaction.commit(tally({"discarded": gone.count, DEAD: -gone.count}))
    return gone.count
