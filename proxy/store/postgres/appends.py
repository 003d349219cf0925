"""Appends to the PostgreSQL outbox: a group of decisions at a time, over a few round trips, in one transaction.

What the decisions will ask for is read together, they are made on a draft (`store.ledger`), and what they add is written in a few statements
of many rows. Whoever writes to this store takes locks in one order, so that no two wait for each other: advisory locks on visitors, people
and schedules, sorted; then rows of lanes by id, visitors, holds, aliases, ids, schedules, names not offered; and the counters last.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from proxy.core.decision import Alias, Decide, Decision, LaneFacts, Reads, Schedule, Seen, VisitorFacts
from proxy.core.emails import lane_key
from proxy.core.visitors import Visitor
from proxy.errors import StoreUnavailable
from proxy.store.ledger import Draft, HeldRow, Kinds, Known, LaneChange, Wants
from proxy.store.postgres.database import Database, Overtaken, Query, StatementFailed, Transaction
from proxy.store.postgres.groups import Job
from proxy.store.postgres.locks import PERSON, SCHEDULE, VISITOR, Lock, lock, try_lock
from proxy.store.postgres.reads import MAX_REFUSED_NAMES, tally, tombstone

_ROUNDS = 4  # of reading until a decision that still asks for something else is made step by step

_encode = msgspec.json.Encoder().encode

Append = tuple[Decide[Any], Reads]


class Appends:
    """`site_key`: of the store. `ready_lanes`: some lane has gained a push since this was last cleared."""

    def __init__(self, database: Database, site_key: bytes) -> None:
        self.jobs = 0
        self._database, self._site_key = database, site_key

    async def carry_out(self, jobs: Sequence[Job[Append]]) -> bool:
        """Answers each job with its plan, once that is durable. Whether a lane has gained a push."""
        try:
            return await self._store(jobs)
        except Exception as error:
            if len(jobs) == 1 or (isinstance(error, StoreUnavailable) and not isinstance(error, StatementFailed)):
                for job in jobs:
                    job.fail(error)
                return False
        # What one of them asks for cannot be written: that must not harm the others.
        return any([await self.carry_out([job]) for job in jobs])

    async def _store(self, jobs: Sequence[Job[Append]]) -> bool:
        wants = self._likely(jobs)
        group = await self._database.run(lambda transaction: self._attempt(transaction, jobs, wants))
        self.jobs += len(group.plans)
        for job, error in group.failures:
            job.fail(error)
        for job, plan in zip(group.jobs, group.plans, strict=True):
            job.answer(plan)
        return bool(group.draft.pushes)

    def _likely(self, jobs: Sequence[Job[Append]]) -> Wants:
        """What the decisions would ask for if the store were empty, and what is announced."""
        group = _Group(jobs, Known(self._site_key))
        wants = group.missing()
        for job in jobs:
            _, reads = job.ask
            wants.ids.update(reads.ids)
            if reads.key is not None:
                wants.keys.add(reads.key)
        return wants

    async def _attempt(self, transaction: Transaction, jobs: Sequence[Job[Append]], wants: Wants) -> _Group:
        """`wants` grows by what is learned, so that another attempt can lock it in order."""
        known = Known(self._site_key)
        await self._read(transaction, known, wants)
        group = _Group(jobs, known)
        rounds = 0
        while missed := group.decide():
            rounds += 1
            wants.add(missed)
            await self._read(transaction, known, missed)
            if rounds % _ROUNDS == 0:
                await self._decide_one(transaction, group, known)
        if group.plans:
            await self._write(transaction, group.draft, known)
        return group

    async def _decide_one(self, transaction: Transaction, group: _Group, known: Known) -> None:
        """One that asks for something else each time, because it draws it at random: in a thread, where it can wait for each answer."""
        loop = asyncio.get_running_loop()

        def ask(kind: Kinds, name: str) -> None:
            wants = Wants()
            getattr(wants, kind).add(name)
            try:
                asyncio.run_coroutine_threadsafe(self._read(transaction, known, wants), loop).result()
            except Exception as error:
                raise _Interrupted(error) from None

        try:
            await asyncio.to_thread(group.decide_one, ask)
        except _Interrupted as interruption:
            raise interruption.error from None

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
        known.asked.add(wants)
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

    async def _write(self, transaction: Transaction, draft: Draft, known: Known) -> None:
        queries = list(_writes(draft, known))
        expected = {
            "change_lanes": sum(key in known.lanes for key in draft.lanes),
            "enqueue": len(draft.pushes),
            "unhold": len(draft.unheld),
            "remember": len(draft.remembered),
        }
        if not queries:
            return
        results = await transaction.run(*queries)
        for (name, _), result in zip(queries, results, strict=True):
            if expected.get(name, result.count) != result.count:
                raise Overtaken
        await transaction.commit()


class _Interrupted(BaseException):
    """The store failed while a decision was asking: that is no failure of the decision."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Group:
    """Decisions made in order, until one asks for what is not known. `failures`: those that raised, which are not in `jobs` any more."""

    def __init__(self, jobs: Sequence[Job[Append]], known: Known) -> None:
        self.jobs, self.plans = list(jobs), list[Decision[Any]]()
        self.failures: list[tuple[Job[Append], Exception]] = []
        self._known = known
        self.draft = Draft(known)

    def decide(self) -> Wants:
        """Goes on; what has to be read before it can. Empty: all are made."""
        while len(self.plans) < len(self.jobs):
            self._decide_next()
            if self.draft.missed:
                return self.missing()
        return Wants()

    def decide_one(self, ask: Callable[[Kinds, str], None]) -> None:
        """The next one, with somebody to ask."""
        if len(self.plans) < len(self.jobs):
            self.draft.ask = ask
            self._decide_next()
            self.draft.ask = None

    def _decide_next(self) -> None:
        job, draft = self.jobs[len(self.plans)], self.draft
        decide, _ = job.ask
        try:
            plan = decide(draft)
            draft.look_up(plan)
            if not draft.missed:
                draft.carry_out(plan)
                self.plans.append(plan)
        except Exception as error:
            if not draft.missed:
                self._leave_out(job, error)

    def missing(self) -> Wants:
        """What all that are not made yet would ask for now."""
        for job in self.jobs[len(self.plans) :]:
            decide, _ = job.ask
            try:
                self.draft.look_up(decide(self.draft))
            except Exception:  # noqa: S112 - it was shown a guess; it is made again on what is known
                continue
        missed, self.draft.missed = self.draft.missed, Wants()
        return missed

    def _leave_out(self, job: Job[Append], error: Exception) -> None:
        """It may have left something in the draft: the others are decided anew."""
        self.failures.append((job, error))
        self.jobs.remove(job)
        self.plans.clear()
        self.draft = Draft(self._known)


def _locks(wants: Wants) -> list[Lock]:
    visitors: list[Lock] = [(VISITOR, visitor) for visitor in wants.visitors | wants.held]
    return visitors + [(PERSON, key) for key in wants.keys] + [(SCHEDULE, name) for name in wants.schedules]


# --- what was read


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
        if erased_at is not None:
            known.erased[key] = erased_at


def _keep_visitors(known: Known, rows: list[tuple[str, bool, float | None, str | None, int]]) -> None:
    for visitor, retired, identified, left, holding in rows:
        known.visitors[visitor] = VisitorFacts(retired, identified, left, holding)


def _keep_held(known: Known, rows: list[tuple[str, int, str, bytes, float]]) -> None:
    for visitor, seq, push_id, body, since in rows:
        known.held.setdefault(visitor, []).append(HeldRow(seq, push_id, body, since))


def _keep_schedules(known: Known, rows: list[tuple[str, float]]) -> None:
    known.schedules.update({Schedule(name): until for name, until in rows})


_KEEP: dict[str, Callable[[Known, list[Any]], None]] = {
    "seen": _keep_seen,
    "people": _keep_people,
    "visitors": _keep_visitors,
    "held": _keep_held,
    "schedules": _keep_schedules,
}


# --- what is written


def _writes(draft: Draft, known: Known) -> list[Query]:
    """In the order of locks."""
    queries = [*_lane_writes(draft, known), *_visitor_writes(draft)]
    if draft.ended_aliases:
        queries.append(("end_aliases", {"keys": list(draft.ended_aliases)}))
    if draft.remembered:
        queries.append(_remember(draft))
    if draft.schedules:
        names = [str(name) for name in draft.schedules]
        queries.append(("set_schedules", {"names": names, "untils": list(draft.schedules.values())}))
    if draft.not_offered:
        queries.append(_not_offered(draft))
    if draft.tallies:
        queries.append(tally(draft.tallies))
    return queries


def _lane_writes(draft: Draft, known: Known) -> list[Query]:
    queries: list[Query] = []
    old = {key: change for key, change in draft.lanes.items() if key in known.lanes}
    new = {key: change for key, change in draft.lanes.items() if key not in known.lanes}
    if old:
        queries += [("lock_lanes", {"keys": list(old)}), ("change_lanes", _lane_columns(old))]
    if new:
        queries.append(("new_lanes", _lane_columns(new)))
    if draft.pushes:
        columns = {
            "keys": [row.key for row in draft.pushes],
            "ids": [row.id for row in draft.pushes],
            "addresses": [row.address for row in draft.pushes],
            "trusts": [int(row.trust) for row in draft.pushes],
            "kinds": [str(row.kind) for row in draft.pushes],
            "bodies": [row.body for row in draft.pushes],
            "sinces": [row.since for row in draft.pushes],
            "increments": [row.increments for row in draft.pushes],
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


def _visitor_writes(draft: Draft) -> list[Query]:
    queries: list[Query] = []
    if draft.visitors:
        changes = draft.visitors.values()
        columns = {
            "ids": list(draft.visitors),
            "retired": [change.retired for change in changes],
            "identified": [change.identified for change in changes],
            "lefts": [change.left for change in changes],
        }
        queries.append(("change_visitors", columns))
    if draft.unheld:
        queries.append(("unhold", {"seqs": sorted(draft.unheld)}))
    held = [(visitor, row) for visitor, rows in draft.held_rows.items() for row in rows]
    if held:
        columns = {
            "visitors": [visitor for visitor, _ in held],
            "ids": [row.id for _, row in held],
            "bodies": [row.body for _, row in held],
            "sinces": [row.since for _, row in held],
        }
        queries.append(("hold", columns))
    return queries


def _remember(draft: Draft) -> Query:
    afters = [op.after for op in draft.remembered]
    columns = {
        "ids": [op.id for op in draft.remembered],
        "showns": [op.shown for op in draft.remembered],
        "afters": [_encode(after) if after else None for after in afters],
        "after_keys": [lane_key(after.email) if after and after.email else None for after in afters],
    }
    return "remember", columns


def _not_offered(draft: Draft) -> Query:
    counts: Counter[tuple[str, str]] = Counter()
    for (setting, name), count in draft.not_offered.items():
        counts[setting, name.replace("\0", "\ufffd")] += count  # PostgreSQL's texts hold no NUL
    columns = {
        "settings": [setting for setting, _ in counts],
        "names": [name for _, name in counts],
        "counts": list(counts.values()),
        "most": 2 * MAX_REFUSED_NAMES,
    }
    return "not_offered", columns
