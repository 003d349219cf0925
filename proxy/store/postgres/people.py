"""Moves and erases whole people in the PostgreSQL outbox."""

from collections import Counter

from proxy.core.emails import lane_key
from proxy.core.visitors import fingerprint
from proxy.store.postgres.database import Overtaken, Transaction
from proxy.store.postgres.locks import PERSON, lock
from proxy.store.postgres.reads import tally
from proxy.store.postgres.turns import QUEUE, leave
from proxy.store.records import Erased
from proxy.store.rows import decode_visitor, erased, tombstone, unheld


async def move_lane(transaction: Transaction, lane: int, address: str) -> None:
    """Moves a lane to the address that SendX has confirmed. Both people, the queue of sign-ups and the lanes of both addresses are locked.

    The old address becomes an alias. If the new one has a lane already, what waits there goes first, then both are one.
    """
    new = lane_key(address)
    mine, others = await transaction.run(("lane_keys", {"lanes": [lane]}), ("lane_by_key", {"key": new}))
    if not mine.rows or mine.rows[0][1] == new:
        return  # the lane is one with another already, or only the spelling changes
    old = mine.rows[0][1]
    await transaction.run(
        ("move_person", {"old": old, "new": new}),
        ("end_aliases", {"keys": [new]}),
        ("add_alias", {"key": old, "lane": lane}),
    )
    if not others.rows:
        await transaction.run(("rename_lane", {"lane": lane, "key": new, "address": address}))
        return
    both = {"lane": lane, "other": others.rows[0][0]}
    merged, *_ = await transaction.run(
        ("merge_lane", {**both, "address": address}),
        ("move_pushes", both),
        ("move_dead", both),
        ("move_aliases", both),
        ("remove_lanes", {"lanes": [lane]}),
    )
    if not merged.value:
        await transaction.run(leave(lanes=both.values()))


async def erase_person(transaction: Transaction, keys: set[str], site_key: bytes) -> Erased:
    """Removes everything known of the person with these lane keys or aliases, and leaves keyed hashes.

    `keys` grows by each of their other addresses that is found, for the next attempt. A lease on them is void from here on. A request on
    the wire may still arrive. Until its outcome is known the lane stays, so that the next push does not overtake it.
    """
    asked = {"keys": list(keys)}
    _, spellings, lanes, clock = await transaction.run(
        lock((QUEUE, *((PERSON, key) for key in keys))),
        ("spellings", asked),
        ("lock_people", {**asked, "lanes": []}),
        ("clock", {}),
    )
    found = {key for (key,) in spellings.rows}
    if not found <= keys:
        keys |= found
        raise Overtaken
    (known,) = await transaction.run(("seen_afters", {**asked, "until": clock.rows[0][0]}))
    visitors = {visitor.id for _, after in known.rows if (visitor := decode_visitor(after)) is not None}
    theirs = {"lanes": [row[0] for row in lanes.rows]}
    _, _, held, _, identities, waiting, dead, *_ = await transaction.run(
        leave(**theirs),
        ("forget_person", {"keys": [*keys, *map(fingerprint, keys)]}),
        ("unhold_visitors", {"visitors": list(visitors)}),
        ("remove_aliases", {**theirs, **asked}),
        ("forget_afters", {"ids": [push_id for push_id, _ in known.rows]}),  # the ids themselves stay known
        ("remove_pushes", theirs),
        ("remove_dead", {**theirs, **asked}),
        ("add_tombstone", {"hashes": [tombstone(key, site_key) for key in keys]}),
        ("empty_lanes", theirs),
        ("remove_idle_lanes", theirs),
    )
    tallies = Counter(erased(waiting.rows, dead.rows))
    tallies.update({"hold_erased": held.count, **unheld(size for (size,) in held.rows)})
    await transaction.commit(tally(tallies))
    return Erased(waiting.count, held.count, dead.count, identities.count)
