"""Appends to the PostgreSQL store: a group of decisions at a time, over a few round trips, in one transaction.

What the decisions have announced is read together, they are made on a ledger, and what they add is written in a few statements of many
rows. A decision that asks for more is made again once that has been read. All writers to this store take locks in one order, so that no two
wait for each other: advisory locks on visitors, people and schedules, sorted; then rows of lanes by id, visitors, holds, aliases, ids,
schedules, names not offered; and the counters last.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from proxy.core.decision import Alias, Decide, Decision, LaneFacts, Reads, Seen, VisitorFacts
from proxy.core.emails import lane_key
from proxy.core.visitors import Visitor
from proxy.errors import StoreUnavailable
from proxy.store.facts import FactKind, HeldRow, Known, LaneChange, Wants, Writes, wants_of
from proxy.store.ledger import Ledger
from proxy.store.postgres.database import Database, Overtaken, Query, StatementFailed, Transaction
from proxy.store.postgres.locks import PERSON, SCHEDULE, VISITOR, Lock, lock, try_lock
from proxy.store.postgres.reads import tally
from proxy.store.rows import MAX_REFUSED_NAMES, tombstone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.store.postgres.groups import Job

_encode = msgspec.json.Encoder().encode

_ROUNDS = 64  # of reading, for one group; mostly none or one is needed

Append = tuple[Decide[Any], Reads]


class Appends:
    """`jobs`: how many were stored."""

    def __init__(self, database: Database, site_key: bytes) -> None:
        self.jobs = 0
        self._database, self._site_key = database, site_key

    async def carry_out(self, jobs: Sequence[Job[Append]]) -> bool:
        """Answers each job with its decision, once that is durable. Returns whether a lane has gained a push."""
        try:
            return await self._store(jobs)
        except Exception as error:  # noqa: BLE001 - each job gets it as its answer
            if len(jobs) == 1 or (isinstance(error, StoreUnavailable) and not isinstance(error, StatementFailed)):
                for job in jobs:
                    job.fail(error)
                return False
        # What one of them asks for cannot be written: that must not harm the others.
        return any([await self.carry_out([job]) for job in jobs])

    async def _store(self, jobs: Sequence[Job[Append]]) -> bool:
        wants = wants_of([job.ask[1] for job in jobs])
        group = await self._database.run(lambda transaction: self._attempt(transaction, jobs, wants))
        self.jobs += len(group.decisions)
        for job, error in group.failures:
            job.fail(error)
        for job, decision in zip(group.jobs, group.decisions, strict=True):
            job.answer(decision)
        return group.gains

    async def _attempt(self, transaction: Transaction, jobs: Sequence[Job[Append]], wants: Wants) -> _Group:
        """`wants` grows by what is learned, so that another attempt can lock it in order."""
        known = Known(self._site_key)
        await self._read(transaction, known, wants)
        group = _Group(jobs, known)
        for _ in range(_ROUNDS):
            missed = group.decide()
            if not missed:
                break
            wants.add(missed)
            await self._read(transaction, known, missed)
        else:
            raise RuntimeError(f"A decision asked for something else {_ROUNDS} times.")
        if group.decisions:
            await self._write(transaction, group, known)
        return group

    # --- reading

    async def _read(self, transaction: Transaction, known: Known, wants: Wants) -> None:
        first = not known.now
        queries = [lock(_locks(wants)) if first else try_lock(_locks(wants)), ("clock", {})]
        queries += [(name, values) for name, values in self._reads(wants).items() if any(values.values())]
        results = await transaction.run(*queries)
        if not first and results[0].rows[0][0] is False:
            raise Overtaken
        ((now, known.held_bytes),) = results[1].rows
        if first:
            known.now, known.ahead = now, now - time.time()
        _keep_absent(known, wants)
        for (name, _), result in zip(queries[2:], results[2:], strict=True):
            _KEEP[name](known, result.rows)

    def _reads(self, wants: Wants) -> dict[str, dict[str, list[object]]]:
        keys = list(wants.keys)
        return {
            "seen": {"ids": list(wants.ids)},
            "people": {"keys": [*keys], "hashes": [tombstone(key, self._site_key) for key in keys]},
            "visitors": {"visitors": list(wants.visitors)},
            "held": {"held": list(wants.held)},
            "schedules": {"schedules": [str(name) for name in wants.schedules]},
        }

    # --- writing

    async def _write(self, transaction: Transaction, group: _Group, known: Known) -> None:
        writes = group.ledger.writes
        queries = list(_writes(writes, group.ledger.tallies, known))
        expected = {
            "change_lanes": sum(known.lanes[key] is not None for key in writes.lanes),
            "enqueue": len(writes.pushes),
            "unhold": len(writes.unheld),
            "remember": len(writes.remembered),
        }
        if not queries:
            return
        results = await transaction.run(*queries)
        for (name, _), result in zip(queries, results, strict=True):
            if expected.get(name, result.count) != result.count:
                raise Overtaken
        await transaction.commit()


class _Group:
    """Decisions made in order, until one asks for what is not known. `failures`: those that raised, which are not in `jobs` any more."""

    def __init__(self, jobs: Sequence[Job[Append]], known: Known) -> None:
        self.jobs, self.decisions = list(jobs), list[Decision[Any]]()
        self.failures: list[tuple[Job[Append], Exception]] = []
        self._known = known
        self._begin()

    def _begin(self) -> None:
        self._missed = Wants()
        self.ledger = Ledger(self._known, self._note)

    def _note(self, kind: FactKind, name: str) -> None:
        self._missed.note(kind, name)

    @property
    def gains(self) -> bool:
        return bool(self.ledger.writes.pushes)

    def decide(self) -> Wants:
        """Carries on; returns what has to be read before it can do so again. Empty: all decisions are made."""
        while len(self.decisions) < len(self.jobs):
            self._decide_next()
            if self._missed:
                return self._all_missed()
        return Wants()

    def _decide_next(self) -> None:
        job, ledger = self.jobs[len(self.decisions)], self.ledger
        decide, _ = job.ask
        try:
            decision = decide(ledger)
            ledger.look_up(decision)
            if not self._missed:
                ledger.carry_out(decision)
                self.decisions.append(decision)
        except Exception as error:  # noqa: BLE001 - its own job gets it as its answer
            if not self._missed:
                self._leave_out(job, error)

    def _all_missed(self) -> Wants:
        """Returns what the next one has missed, and those behind it would miss now: they are shown guesses."""
        for job in self.jobs[len(self.decisions) + 1 :]:
            decide, _ = job.ask
            try:
                self.ledger.look_up(decide(self.ledger))
            except Exception:  # noqa: BLE001, S112 - it was shown a guess; it is made again on what is known
                continue
        missed, self._missed = self._missed, Wants()
        return missed

    def _leave_out(self, job: Job[Append], error: Exception) -> None:
        """It may have left something in the ledger: the others are decided anew."""
        self.failures.append((job, error))
        self.jobs.remove(job)
        self.decisions.clear()
        self._begin()


def _locks(wants: Wants) -> list[Lock]:
    visitors: list[Lock] = [(VISITOR, visitor) for visitor in wants.visitors | wants.held]
    return visitors + [(PERSON, key) for key in wants.keys] + [(SCHEDULE, name) for name in wants.schedules]


# --- what was read


def _keep_absent(known: Known, wants: Wants) -> None:
    """Whatever is not among the rows is not there."""
    known.seen.update(dict.fromkeys(wants.ids))
    for people in (known.lanes, known.aliases, known.erased):
        people.update(dict.fromkeys(wants.keys))
    known.held.update({visitor: [] for visitor in wants.held})
    known.schedules.update(dict.fromkeys(wants.schedules, 0.0))


def _keep_seen(known: Known, rows: list[tuple[str, str, bytes | None, float]]) -> None:
    for push_id, shown, after, at in rows:
        visitor = msgspec.json.decode(after, type=Visitor) if after is not None else None
        known.seen[push_id] = Seen(shown, visitor, at)


def _keep_people(
    known: Known, rows: list[tuple[str, int | None, bool, int, str | None, float | None, float | None]]
) -> None:
    for key, lane, verified, waiting, moved_to, moved_at, erased_at in rows:
        if lane is not None:
            known.lanes[key] = LaneFacts(verified, waiting)
        if moved_at is not None and moved_to is not None:
            known.aliases[key] = Alias(moved_to, moved_at)
        known.erased[key] = erased_at


def _keep_visitors(known: Known, rows: list[tuple[str, bool, float | None, str | None, int]]) -> None:
    """There is a row for each that was asked for."""
    for visitor, retired, identified, left, holding in rows:
        known.visitors[visitor] = VisitorFacts(retired, identified, left, holding)


def _keep_held(known: Known, rows: list[tuple[str, int, str, bytes, float]]) -> None:
    for visitor, seq, push_id, body, since in rows:
        known.held[visitor].append(HeldRow(seq, push_id, body, since))


def _keep_schedules(known: Known, rows: list[tuple[str, float]]) -> None:
    known.schedules.update(rows)


_KEEP: dict[str, Callable[[Known, list[Any]], None]] = {
    "seen": _keep_seen,
    "people": _keep_people,
    "visitors": _keep_visitors,
    "held": _keep_held,
    "schedules": _keep_schedules,
}


# --- what is written


def _writes(writes: Writes, tallies: Counter[str], known: Known) -> list[Query]:
    """In the order of locks."""
    queries = [*_lane_writes(writes, known), *_visitor_writes(writes)]
    if writes.ended_aliases:
        queries.append(("end_aliases", {"keys": list(writes.ended_aliases)}))
    if writes.remembered:
        queries.append(_remember(writes))
    if writes.schedules:
        names = [str(name) for name in writes.schedules]
        queries.append(("set_schedules", {"names": names, "untils": list(writes.schedules.values())}))
    if writes.not_offered:
        queries.append(_not_offered(writes))
    if tallies:
        queries.append(tally(tallies))
    return queries


def _lane_writes(writes: Writes, known: Known) -> list[Query]:
    queries: list[Query] = []
    old = {key: change for key, change in writes.lanes.items() if known.lanes[key] is not None}
    new = {key: change for key, change in writes.lanes.items() if known.lanes[key] is None}
    if old:
        queries += [("lock_lanes", {"keys": list(old)}), ("change_lanes", _lane_columns(old))]
    if new:
        queries.append(("new_lanes", _lane_columns(new)))
    if writes.pushes:
        keys, ids, addresses, trusts, kinds, bodies, sinces, increments = zip(*writes.pushes, strict=True)
        columns = {
            "keys": list(keys),
            "ids": list(ids),
            "addresses": list(addresses),
            "trusts": list(trusts),
            "kinds": list(kinds),
            "bodies": list(bodies),
            "sinces": list(sinces),
            "increments": [bool(each) for each in increments],
        }
        queries.append(("enqueue", columns))
    return queries


def _lane_columns(lanes: dict[str, LaneChange]) -> dict[str, object]:
    changes = lanes.values()
    return {
        "keys": list(lanes),
        "gained": [change.gained for change in changes],
        "delays": [change.delay for change in changes],
        "put_off": [change.put_off for change in changes],
        "vouched": [change.vouched for change in changes],
        "verify": [change.verify for change in changes],
    }


def _visitor_writes(writes: Writes) -> list[Query]:
    queries: list[Query] = []
    if writes.visitors:
        changes = writes.visitors.values()
        columns = {
            "ids": list(writes.visitors),
            "retired": [change.retired for change in changes],
            "identified": [change.identified for change in changes],
            "lefts": [change.left for change in changes],
        }
        queries.append(("change_visitors", columns))
    if writes.unheld:
        queries.append(("unhold", {"seqs": sorted(writes.unheld)}))
    held = [(visitor, row) for visitor, rows in writes.held.items() for row in rows]
    if held:
        columns = {
            "visitors": [visitor for visitor, _ in held],
            "ids": [row.id for _, row in held],
            "bodies": [row.body for _, row in held],
            "sinces": [row.since for _, row in held],
        }
        queries.append(("hold", columns))
    return queries


def _remember(writes: Writes) -> Query:
    afters = [each.after for each in writes.remembered]
    columns = {
        "ids": [each.id for each in writes.remembered],
        "showns": [each.shown for each in writes.remembered],
        "afters": [_encode(after) if after else None for after in afters],
        "after_keys": [lane_key(after.email) if after and after.email else None for after in afters],
    }
    return "remember", columns


def _not_offered(writes: Writes) -> Query:
    counts: Counter[tuple[str, str]] = Counter()
    for (setting, name), count in writes.not_offered.items():
        counts[setting, name.replace("\0", "\ufffd")] += count  # PostgreSQL's texts hold no NUL
    columns = {
        "settings": [setting for setting, _ in counts],
        "names": [name for _, name in counts],
        "counts": list(counts.values()),
        "most": 2 * MAX_REFUSED_NAMES,
    }
    return "not_offered", columns
