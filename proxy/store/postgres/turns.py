"""Turns of sign-ups in the PostgreSQL outbox: which lane that is put off may go next, by the network that was served least.

All that is about turns is read and written under one advisory lock, `QUEUE`. A claim takes it only if it is free; others wait for it before
they lock any row.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from proxy.core.decision import Schedule
from proxy.core.networks import networks_of
from proxy.core.turns import HOUR, Share, left, next_free, served, unserved
from proxy.store.postgres.database import Query, Transaction, columns
from proxy.store.postgres.locks import SCHEDULE, Lock, try_lock

QUEUE: Lock = (SCHEDULE, Schedule.SIGN_UPS)
_FAR = 2 * HOUR  # no busy schedule is further ahead, but for one that was set under a clock that was wrong
_STEPS = 200  # in one claim: for each turn one, and for each client that has to rest
_BUSY_SECONDS = 0.05  # after which a claim looks again, if somebody else has the queue now

log = logging.getLogger("proxy.store")


def join(sign_ups: Sequence[tuple[str, str, float | None]], now: float) -> Query:
    """Returns what has lanes wait for a turn, if they are put off: lane key, client, and from when on (None: now, by the database's clock)."""
    clients = dict.fromkeys(client for _, client, _ in sign_ups)
    paths = [(client, *each) for client in clients for each in _path(client)]
    return "join_queue", {
        **columns("keys clients ats", sign_ups),
        **columns("ends names parents", paths),
        "weight": unserved(now),
    }


def leave(*, keys: Iterable[str] = (), lanes: Iterable[int] = ()) -> Query:
    """Returns what removes all sign-ups of these lanes."""
    return "leave_queue", {"keys": list(keys), "lanes": list(lanes)}


def _path(client: str) -> Iterable[tuple[str, str]]:
    """Returns each network of a client with the one around it."""
    names = networks_of(client)
    return zip(names, ("", *names), strict=False)


class Standing(msgspec.Struct, frozen=True):
    """Where the queue stands. `first`: from when on a client may have a turn (0: now), None if nobody waits; `until`: of the account.

    Unix seconds, as `now`.
    """

    first: float | None
    until: float
    now: float

    def next_turn(self, share: Share) -> float | None:
        """Returns in how many seconds somebody may have a turn, None if nobody waits."""
        if self.first is None:
            return None
        until = min(self.until, self.now + _FAR)
        return max(0.0, self.first - self.now, next_free(until, share.per_hour, self.now) - self.now)


class Taken(msgspec.Struct, frozen=True):
    """Turns that were taken: rows of their lanes, locked, as of the query `claimable`, and the client of each lane.

    `next_turn`: as in `Standing`; `changed`: there is something to commit.
    """

    rows: Sequence[tuple[Any, ...]] = ()
    clients: dict[int, str] = {}
    next_turn: float | None = None
    changed: bool = False


class _Step(msgspec.Struct, frozen=True):
    """A row of the query `walk`: a path to a client, the widest network first, and its first sign-up, if there is any."""

    names: list[str]
    weights: list[float]
    until: float
    lane: int | None
    at: float | None
    is_put_off: bool | None  # None: there is no such lane


async def take_turns(transaction: Transaction, share: Share, most: int) -> Taken:
    """Takes up to `most` turns, if the queue is free and they are due."""
    (free,) = await transaction.run(try_lock((QUEUE,)))
    if not free.rows[0][0]:
        return Taken(next_turn=_BUSY_SECONDS)
    (found,) = await transaction.run(("standing", {}))
    standing = Standing(*found.rows[0])
    until, now = min(standing.until, standing.now + _FAR), standing.now
    rows: list[tuple[Any, ...]] = []
    clients: dict[int, str] = {}
    writes: list[Query] = [("wake", {})]
    busy = False
    for _ in range(_STEPS):
        if len(rows) == most or next_free(until, share.per_hour, now) > now:
            break
        *_, walked = await transaction.run(*writes, ("walk", {}))
        writes = []
        if not walked.rows:
            break
        *path, number, leased, failures, key, address, digest, digest_at = walked.rows[0]
        step = _Step(*path)
        if step.is_put_off and number is None:
            busy = True  # somebody else has the lane now
            break
        writes, is_turn = _carry_out(step, share, now)
        if is_turn:
            rows.append((number, leased, failures, key, address, digest, digest_at, True))
            clients[number] = step.names[-1]
            until = left(until, share.per_hour, now)
    if rows:
        writes.append(("set_schedules", {"names": [str(Schedule.SIGN_UPS)], "untils": [until]}))
    *_, found = await transaction.run(*writes, ("standing", {}))
    next_turn = _BUSY_SECONDS if busy else Standing(*found.rows[0]).next_turn(share)
    return Taken(rows, clients, next_turn, changed=True)


def _carry_out(step: _Step, share: Share, now: float) -> tuple[list[Query], bool]:
    """Returns what becomes of the client that is next, and whether it has a turn."""
    path, client_until = {"names": step.names}, min(step.until, now + _FAR)
    if step.lane is None or step.at is None:
        log.error("A network was counted to have sign-ups, and has none: corrected")
        return [("rest", {**path, "at": None})], False
    if not step.is_put_off:  # a node of an older version has let it go, or a vouched push of another node
        return [leave(lanes=[step.lane])], False
    rests = max(min(step.at, now + _FAR), next_free(client_until, share.per_client, now))
    if rests > now:
        return [("rest", {**path, "at": rests})], False
    served_until = [0.0] * (len(step.names) - 1) + [left(client_until, share.per_client, now)]
    weights = [served(weight, now) for weight in step.weights]
    return [leave(lanes=[step.lane]), ("serve", {**path, "weights": weights, "untils": served_until})], True
