"""Sign-ups that wait for their turn in the SQLite outbox: who typed them, and whose turn it is.

Inside the caller's transaction. How many may leave, and which network was served least, is decided in `core.turns`. Of the rows `networks`, those of
clients that rest do not count in the networks around them.
"""

import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from proxy.core import turns
from proxy.core.decision import Schedule
from proxy.core.networks import networks_of
from proxy.core.turns import Share
from proxy.store.records import SignUp
from proxy.store.rows import SIGN_UPS, dropped
from proxy.store.sqlite.file import SQL
from proxy.store.sqlite.reads import value

_WOKEN = 100  # clients at a time

log = logging.getLogger("proxy.store")
_encode = msgspec.json.Encoder().encode


class Turn(NamedTuple):
    """A lane to go, and the client whose turn it is."""

    lane: int
    client: str


# --- the queue


def add(connection: sqlite3.Connection, rows: Iterable[tuple[int, str]], at: float, now: float) -> None:
    """Lets lanes that are put off wait for a turn of the client that typed each, `at` or later. Those that wait for it already stay as they are."""
    clients = Counter(client for (client,) in connection.execute(SQL["add_sign_ups"], (_json(list(rows)), at)))
    if clients:
        rested = dict(connection.execute(SQL["wake"], (_json(list(clients)),)).fetchall())
        _count(connection, clients, Counter(rested), now)


def remove(connection: sqlite3.Connection, lanes: Iterable[int], now: float) -> None:
    """Takes lanes out of the queue, for all who typed them."""
    clients = Counter(client for (client,) in connection.execute(SQL["remove_sign_ups"], (_json(list(lanes)),)))
    _uncount(connection, clients, now)


def end_turns(connection: sqlite3.Connection, lane: int, tallies: Counter[str], now: float) -> None:
    """A lane that was put off waits for no turn any more."""
    remove(connection, [lane], now)
    tallies[SIGN_UPS] -= 1


def take_turn(connection: sqlite3.Connection, share: Share, now: float) -> Turn | None:
    """Takes the next sign-up out of the queue, if one may leave now. Its lane has to be leased."""
    until = _until(connection)
    if turns.next_free(until, share.per_hour, now) > now:
        return None
    _wake_due(connection, now)
    turn = _find_next(connection, share, now)
    if turn is not None:
        connection.execute(SQL["set_schedule"], (Schedule.SIGN_UPS, turns.left(until, share.per_hour, now)))
        remove(connection, [turn.lane], now)
    return turn


def next_turn(connection: sqlite3.Connection, share: Share, now: float) -> float | None:
    """Returns when a turn may be taken (Unix seconds), None if nobody waits for one."""
    awake, rests = connection.execute(SQL["waiting_for_turns"]).fetchone()
    if not awake and rests is None:
        return None
    free = turns.next_free(_until(connection), share.per_hour, now)
    return max(free, now if awake else rests)


def _until(connection: sqlite3.Connection) -> float:
    return value(connection, "schedule", Schedule.SIGN_UPS) or 0.0


def _find_next(connection: sqlite3.Connection, share: Share, now: float) -> Turn | None:
    """Goes down to the client that was served least in the network that was served least, and charges the turn to each on the way."""
    while path := _least_served(connection):
        client, _, until = path[-1]
        first = connection.execute(SQL["first_sign_up"], (client,)).fetchone()
        if first is None:
            log.error("The numbers of sign-ups that wait were wrong: they are counted again")
            recount(connection, now)
            return None
        lane, at = first
        free = max(at, turns.next_free(until, share.per_client, now))
        if free <= now:
            connection.execute(SQL["client_has_left"], (turns.left(until, share.per_client, now), client))
            weights = [(turns.served(weight, now), name) for name, weight, _ in path]
            connection.executemany(SQL["weigh"], weights)
            return Turn(lane, client)
        (waiting,) = connection.execute(SQL["rest"], (free, client)).fetchone()
        _count(connection, Counter(), Counter({client: -waiting}), now)
    return None


def _least_served(connection: sqlite3.Connection) -> list[tuple[str, float, float]]:
    """Returns name, weight and `until` of the networks that are next, the widest first, the client last."""
    path: list[tuple[str, float, float]] = []
    while (row := connection.execute(SQL["least_served"], (path[-1][0] if path else "",)).fetchone()) is not None:
        path.append(row)
    return path


def _wake_due(connection: sqlite3.Connection, now: float) -> None:
    rested = dict(connection.execute(SQL["wake_due"], (now, _WOKEN)).fetchall())
    if rested:
        _count(connection, Counter(), Counter(rested), now)


def _uncount(connection: sqlite3.Connection, clients: Mapping[str, int], now: float) -> None:
    """Counts rows that are gone. The networks around a client that rests do not count them."""
    if clients:
        resting = dict(connection.execute(SQL["resting"], (_json(list(clients)),)).fetchall())
        around = {client: gone for client, gone in clients.items() if client in resting}
        _count(connection, Counter({client: -gone for client, gone in clients.items()}), Counter(around), now)


def _count(connection: sqlite3.Connection, own: Mapping[str, int], around: Mapping[str, int], now: float) -> None:
    """Adds to what waits: for clients and their networks what is in `own`, for the networks alone what is in `around`."""
    rows: dict[str, tuple[str, int]] = {}
    for client in {*own, *around}:
        parent, gained = "", own.get(client, 0)
        *networks, _ = networks_of(client)
        for network in networks:
            rows[network] = parent, rows.get(network, ("", 0))[1] + gained + around.get(client, 0)
            parent = network
        rows[client] = parent, gained
    named = [(name, parent, gained) for name, (parent, gained) in rows.items() if gained]
    connection.execute(SQL["count_waiting"], (_json(named), turns.unserved(now)))


def recount(connection: sqlite3.Connection, now: float) -> None:
    """Counts anew what waits by network. Wakes everybody."""
    connection.execute(SQL["uncount_all"])
    _count(connection, Counter(dict(connection.execute(SQL["clients_waiting"]).fetchall())), Counter(), now)


# --- what the operator sees of it, and drops


def read_sign_ups(connection: sqlite3.Connection, after: int, limit: int) -> list[SignUp]:
    return [SignUp(*row) for row in connection.execute(SQL["sign_ups"], (after, limit))]


def drop_lanes(connection: sqlite3.Connection, lanes: Iterable[int], tallies: Counter[str], now: float) -> int:
    """Removes all that waits in lanes that are put off; returns how many lanes it were. Their visitors wait for a turn again."""
    wanted = list(lanes)
    remove(connection, wanted, now)
    emptied = [lane for lane in wanted if connection.execute(SQL["empty_put_off"], (lane,)).rowcount]
    connection.executemany(SQL["forget_typed"], [(lane,) for lane in emptied])
    pushes = [push for lane in emptied for push in connection.execute(SQL["remove_pushes"], (lane,))]
    tallies.update(dropped(pushes, len(emptied)))
    return len(emptied)


def expire(connection: sqlite3.Connection, before: float, limit: int, tallies: Counter[str], now: float) -> int:
    """Drops what has waited for too long: a lane, once it waits for nobody's turn any more. Returns how many waits have ended."""
    rows = connection.execute(SQL["expire_sign_ups"], (before, limit)).fetchall()
    _uncount(connection, Counter(client for _, client in rows), now)
    lanes = {lane for lane, _ in rows if value(connection, "waits_for_turn", lane) is None}
    drop_lanes(connection, lanes, tallies, now)
    return len(rows)


def _json(rows: object) -> str:
    return _encode(rows).decode()
