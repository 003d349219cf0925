"""Appends to the PostgreSQL store: a group of decisions at a time, over a few round trips, in one transaction.

What the decisions have announced is read together, they are made on a ledger, and what they add is written in a few statements of many
rows. If one asks for more, all are made again once that has been read. All writers to this store take locks in one order, so that no two
wait for each other: advisory locks on visitors, people and schedules, sorted; then rows of lanes by id, sign-ups (under the schedule's lock),
visitors, holds, aliases, ids, schedules, names not offered; and the counters last.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from proxy.core.decision import Alias, Decide, Decision, LaneFacts, Reads, Seen, VisitorFacts
from proxy.core.emails import lane_key
from proxy.errors import StoreUnavailable
from proxy.store.facts import HeldRow, Known, LaneChange, Wants, Writes, wants_of
from proxy.store.ledger import Ledger
from proxy.store.postgres.database import Database, Overtaken, Query, StatementFailed, Transaction, columns, filled
from proxy.store.postgres.groups import Job
from proxy.store.postgres.locks import PERSON, SCHEDULE, VISITOR, Lock, lock, try_lock
from proxy.store.postgres.reads import PROOF, tally
from proxy.store.postgres.turns import join, leave
from proxy.store.postgres.unvouched import Budget
from proxy.store.rows import MAX_REFUSED_NAMES, decode_visitor, tombstone

_encode = msgspec.json.Encoder().encode

_ROUNDS = 64  # of reading, for one group; mostly one is enough

Append = tuple[Decide[Any], Reads]


async def append(database: Database, budget: Budget, site_key: bytes, jobs: Sequence[Job[Append]]) -> bool:
    """Answers each job with its decision, once that is durable. Returns whether a lane has gained a push."""
    wants = wants_of([job.ask[1] for job in jobs])
    try:
        group = await database.run(lambda transaction: _attempt(transaction, budget, jobs, wants, Known(site_key)))
    except Exception as error:  # noqa: BLE001 - each job gets it as its answer
        if len(jobs) == 1 or (isinstance(error, StoreUnavailable) and not isinstance(error, StatementFailed)):
            for job in jobs:
                job.fail(error)
            return False
        # What one of them asks for cannot be written: that must not harm the others.
        return any([await append(database, budget, site_key, [job]) for job in jobs])
    budget.took(group.ledger)
    database.counts.jobs += len(group.decided)
    database.sight.acknowledge([each.id for each in group.ledger.writes.remembered])
    for job, failure in group.failures:
        job.fail(failure)
    for job, decision in group.decided:
        job.answer(decision)
    return bool(group.ledger.writes.pushes)


async def _attempt(
    transaction: Transaction, budget: Budget, jobs: Sequence[Job[Append]], wants: Wants, known: Known
) -> "_Group":
    """`wants` grows by what is learned, so that another attempt can lock it in order."""
    missed = wants
    for _ in range(_ROUNDS):
        has_standbys = await _read(transaction, budget, known, missed)
        group = _decide(jobs, known)
        missed = group.missed
        if not missed:
            if not await _write(transaction, group.ledger) and has_standbys and any(known.seen.values()):
                # The commit that stored a duplicate's original may still be waiting for a standby, or have been cancelled. A commit now waits
                # until the standbys have everything before it.
                await transaction.commit(PROOF)
            return group
        wants.add(missed)
    raise RuntimeError(f"A decision asked for something else {_ROUNDS} times.")


class _Group(NamedTuple):
    """Decisions made in order. `failures`: those that raised. If they have `missed` something, nothing else counts."""

    ledger: Ledger
    missed: Wants
    decided: list[tuple[Job[Append], Decision[Any]]]
    failures: Sequence[tuple[Job[Append], Exception]]


def _decide(
    jobs: Sequence[Job[Append]], known: Known, failures: Sequence[tuple[Job[Append], Exception]] = ()
) -> _Group:
    """Makes the decisions in order. A name that was not read looks absent and is noted in `missed`.

    Decisions behind it are made all the same, so that what they miss is read in the same round trip.
    """
    missed = Wants()
    group = _Group(Ledger(known, missed.note), missed, [], failures)
    for job in jobs:
        decide, _ = job.ask
        try:
            decision = decide(group.ledger)
            group.ledger.carry_out(decision.changes)
        except Exception as error:  # noqa: BLE001 - its own job gets it as its answer
            if not missed:  # it may have left something in the ledger: the others are decided anew
                return _decide([other for other in jobs if other is not job], known, [*failures, (job, error)])
        else:
            group.decided.append((job, decision))
    return group


# --- reading


async def _read(transaction: Transaction, budget: Budget, known: Known, wants: Wants) -> bool:
    """Returns whether commits wait for standbys."""
    first = not known.now
    queries = [lock(_locks(wants)) if first else try_lock(_locks(wants)), ("clock", {})]
    queries += [query for query in _reads(wants, known.site_key) if any(query[1].values())]
    if first and budget.due():
        queries.append(("id_bytes", {}))
    results = await transaction.run(*queries)
    if not first and results[0].rows[0][0] is False:
        raise Overtaken
    ((now, unvouched, has_standbys),) = results[1].rows
    if first:
        known.now = now
    if queries[-1][0] == "id_bytes":
        budget.found(results[-1].value)
    known.unvouched_bytes = unvouched + budget.ids
    rows = {name: result.rows for (name, _), result in zip(queries, results, strict=True)}
    _keep_absent(known, wants)
    _keep(known, defaultdict(list, rows))
    return bool(has_standbys)


def _locks(wants: Wants) -> list[Lock]:
    visitors: list[Lock] = [(VISITOR, visitor) for visitor in wants.visitors | wants.held]
    return visitors + [(PERSON, key) for key in wants.keys] + [(SCHEDULE, name) for name in wants.schedules]


def _reads(wants: Wants, site_key: bytes) -> list[Query]:
    keys = list(wants.keys)
    return [
        ("seen", {"ids": list(wants.ids)}),
        ("people", {"keys": keys, "hashes": [tombstone(key, site_key) for key in keys]}),
        ("visitors", {"visitors": list(wants.visitors)}),
        ("held", {"held": list(wants.held)}),
        ("schedules", {"schedules": [str(name) for name in wants.schedules]}),
    ]


def _keep_absent(known: Known, wants: Wants) -> None:
    """Whatever is not among the rows is not there. There is a row for each visitor."""
    known.seen.update(dict.fromkeys(wants.ids))
    for people in (known.lanes, known.aliases, known.erased):
        people.update(dict.fromkeys(wants.keys))
    known.held.update({visitor: [] for visitor in wants.held})
    known.schedules.update(dict.fromkeys(wants.schedules, 0.0))


def _keep(known: Known, rows: Mapping[str, list[Any]]) -> None:
    for push_id, shown, after, at in rows["seen"]:
        known.seen[push_id] = Seen(shown, decode_visitor(after), at)
    for key, lane, verified, waiting, size, put_off, moved_to, moved_at, erased_at in rows["people"]:
        known.lanes[key] = LaneFacts(verified, waiting, size, put_off) if lane is not None else None
        known.aliases[key] = Alias(moved_to, moved_at) if moved_at is not None and moved_to is not None else None
        known.erased[key] = erased_at
    for visitor, *facts in rows["visitors"]:
        known.visitors[visitor] = VisitorFacts(*facts)
    for visitor, *held in rows["held"]:
        known.held[visitor].append(HeldRow(*held))
    known.schedules.update(rows["schedules"])


# --- writing


async def _write(transaction: Transaction, ledger: Ledger) -> bool:
    """Returns whether there was anything to commit."""
    queries, expected = _writes(ledger.writes, ledger.tallies, ledger.known)
    if not queries:
        return False
    results = await transaction.run(*queries)
    for (name, _), result in zip(queries, results, strict=True):
        if expected.get(name, result.count) != result.count:
            raise Overtaken
    await transaction.commit()
    return True


def _writes(writes: Writes, tallies: Counter[str], known: Known) -> tuple[list[Query], Mapping[str, int]]:
    """Returns the queries in the order of locks, and how many rows some must find."""
    old = {key: change for key, change in writes.lanes.items() if known.lanes[key] is not None}
    new = {key: change for key, change in writes.lanes.items() if key not in old}
    visitors = [(each, row.retired, row.identified, row.person, row.shown_by) for each, row in writes.visitors.items()]
    held = [(visitor, *row[1:]) for visitor, rows in writes.held.items() for row in rows]
    sign_ups = [(key, client, None) for key, change in writes.lanes.items() for client in sorted(change.sign_ups)]
    queries = (
        ("lock_lanes", {"keys": list(old)}),
        ("change_lanes", _lane_columns(old)),
        ("new_lanes", _lane_columns(new)),
        leave(keys=[key for key, change in old.items() if change.vouched and _is_put_off(known, key)]),
        join(sign_ups, known.now),
        ("enqueue", _push_columns(writes)),
        ("change_visitors", columns("ids retired identified persons shown_by", visitors)),
        ("unhold", {"seqs": sorted(writes.unheld)}),
        ("hold", columns("visitors ids bodies sinces", held)),
        ("end_aliases", {"keys": list(writes.ended_aliases)}),
        ("remember", _remembered_columns(writes)),
        ("set_schedules", columns("names untils", [(str(name), until) for name, until in writes.schedules.items()])),
        ("not_offered", _not_offered_columns(writes)),
        tally(tallies),
    )
    expected = {
        "change_lanes": len(old),
        "enqueue": len(writes.pushes),
        "unhold": len(writes.unheld),
        "remember": len(writes.remembered),
    }
    return filled(queries), expected


def _is_put_off(known: Known, key: str) -> bool:
    lane = known.lanes[key]
    return lane is not None and lane.put_off


def _lane_columns(lanes: Mapping[str, LaneChange]) -> Mapping[str, object]:
    rows = [(key, it.gained, it.bytes, it.put_off, it.vouched, it.verify) for key, it in lanes.items()]
    return columns("keys gained bytes put_off vouched verify", rows)


def _push_columns(writes: Writes) -> Mapping[str, object]:
    rows = columns("keys ids addresses trusts kinds bodies sinces", writes.pushes)
    return rows | {"increments": [bool(push[-1]) for push in writes.pushes]}


def _remembered_columns(writes: Writes) -> Mapping[str, object]:
    rows = columns("ids showns", [(each.id, each.shown) for each in writes.remembered])
    afters = [each.after for each in writes.remembered]
    keys = [lane_key(after.email) if after and after.email else None for after in afters]
    return rows | {"afters": [_encode(after) if after else None for after in afters], "after_keys": keys}


def _not_offered_columns(writes: Writes) -> Mapping[str, object]:
    counts: Counter[tuple[str, str]] = Counter()
    for (setting, name), count in writes.not_offered.items():
        counts[setting, name.replace("\0", "\ufffd")] += count  # PostgreSQL's texts hold no NUL
    rows = [(*names, count) for names, count in counts.items()]
    return columns("settings names counts", rows) | {"most": 2 * MAX_REFUSED_NAMES}
