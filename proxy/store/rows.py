"""What both adapters store alike: names of counters, how long rows are kept, what they decode to, and the columns that a copy carries.

Pure. How rows are read and written is each adapter's own.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from proxy.core.calls import Attributes, Kind, Track
from proxy.core.cookies import COOKIE_AGE
from proxy.core.emails import holds_address
from proxy.core.gate import Closure
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust, Visitor
from proxy.store.records import DeadLetter, DeadReason, RefusedName, Stats

SEEN_AGE = timedelta(days=9)  # the contract promises 8
RETIRED_AGE = COOKIE_AGE + timedelta(days=35)  # of visitors and tombstones: a retired cookie must have expired before
SHOWN_AGE = timedelta(days=14)  # beyond that of holds, for visitors of whom nothing is known but that they were shown
_VERIFIED = int(Trust.VERIFIED)  # Python 3.11 finds a member of an enumeration slowly
CLOCK_STEP = timedelta(days=3)  # a clock further from the last sweep is wrong, or the proxy was down for that long
CLOCK_BELIEVED = timedelta(days=1)  # after which such a clock is trusted
CLOCK_JITTER = 60.0  # seconds by which the newest row may be ahead of a correct clock
MAX_REFUSED_NAMES = 500
# Bytes that a row costs beside its body, with its indexes.
HELD_OVERHEAD, PUSH_OVERHEAD, ID_OVERHEAD = 200, 500, 200
TRACE_BYTES = 500  # of a log-out or a consent: its id and who came after it, and up to two visitors

# --- clocks


def may_sweep(now: float, known: float | None, *, distrusted_for: float) -> bool:
    """Returns whether the clock is trusted enough to delete records by age, which is irreversible.

    `now`: the clock's time (Unix seconds). `known`: its time at the last sweep; before the first, that of the newest row; None if there is
    neither. `distrusted_for`: monotonic seconds since this process began to distrust the clock.
    """
    if known is None or abs(now - known) <= CLOCK_STEP.total_seconds():
        return True
    return distrusted_for >= CLOCK_BELIEVED.total_seconds()


def clock_set_back(now: float, newest: float | None) -> float:
    """Returns by how many seconds the clock that wrote the newest row was ahead of this one, 0 if they agree within the jitter."""
    ahead = newest - now if newest is not None else 0.0
    return ahead if ahead > CLOCK_JITTER else 0.0


# --- counters: each moves in the transaction of the transition that it counts

# What there is now, kept with every transition because counting takes too long.
WAITING, HOLDING, DEAD = "gauge:waiting", "gauge:holding", "gauge:dead"
SIGN_UPS = "gauge:sign_ups"  # lanes that are put off
# What nobody has vouched for: pushes held, and asserted ones that wait or are dead letters. Their ids are counted by the day on which they came,
# and forgotten with it.
UNVOUCHED_BYTES, ID_BYTES = "gauge:unvouched_bytes", "gauge:id_bytes:"
_DAY = 86_400


def id_gauge(since: float) -> str:
    """Returns the gauge of the ids that came on this day (Unix seconds)."""
    return f"{ID_BYTES}{int(since // _DAY)}"


def is_over(gauge: str, now: float) -> bool:
    """Returns whether all ids that this gauge counts have been forgotten."""
    return (
        gauge.startswith(ID_BYTES) and (int(gauge.removeprefix(ID_BYTES)) + 1) * _DAY < now - SEEN_AGE.total_seconds()
    )


def unvouched_bytes(counted: Mapping[str, int]) -> int:
    return sum(value for name, value in counted.items() if name == UNVOUCHED_BYTES or name.startswith(ID_BYTES))


def asserted_bytes(pushes: Iterable[tuple[int, int]]) -> int:
    """Returns how many bytes of `UNVOUCHED_BYTES` these pushes take up: the trust of each, and the size of its body."""
    return sum([size + PUSH_OVERHEAD for trust, size in pushes if trust != _VERIFIED])


def unheld(sizes: Iterable[int]) -> dict[str, int]:
    """Returns what the gauges lose with held pushes whose bodies are of these sizes (bytes)."""
    bodies = list(sizes)
    return {HOLDING: -len(bodies), UNVOUCHED_BYTES: -sum(bodies) - HELD_OVERHEAD * len(bodies)}


def expired(sizes: Iterable[int]) -> dict[str, int]:
    """Returns the tallies of held pushes that were over their age."""
    gauges = unheld(sizes)
    return {"hold_expired": -gauges[HOLDING], Reason.HOLD_EXPIRED.counter: -gauges[HOLDING], **gauges}


def discarded(letters: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Returns the tallies of dead letters that are dropped: the trust of each, and the size of its body."""
    dropped = list(letters)
    return {"discarded": len(dropped), DEAD: -len(dropped), UNVOUCHED_BYTES: -asserted_bytes(dropped)}


def dropped(pushes: Iterable[tuple[int, int]], lanes: int) -> dict[str, int]:
    """Returns the tallies of `lanes` sign-ups that are dropped with all that waits in them: the trust of each push, and the size of its body."""
    gone = list(pushes)
    gauges = {WAITING: -len(gone), SIGN_UPS: -lanes, UNVOUCHED_BYTES: -asserted_bytes(gone)}
    return {"discarded": len(gone), **gauges}


def erased(waiting: Sequence[tuple[int, int]], dead: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Returns the tallies of what is erased with a person: the trust of each push, and the size of its body."""
    gone = [*waiting, *dead]
    return {"erased": len(gone), WAITING: -len(waiting), DEAD: -len(dead), UNVOUCHED_BYTES: -asserted_bytes(gone)}


def replayed(letters: int) -> dict[str, int]:
    return {"replayed": letters, WAITING: letters, DEAD: -letters}


def make_stats(
    counted: Mapping[str, int],
    *,
    oldest: float | None,
    ready: float | None,
    refused_names: Iterable[tuple[Any, ...]],
    closure: bytes | None,
) -> Stats:
    """Returns what the operator sees of the store. `counted`: counters and gauges; the others are as stored, None without a row."""
    return Stats(
        counters={name: value for name, value in sorted(counted.items()) if not name.startswith("gauge:")},
        waiting=counted.get(WAITING, 0),
        holding=counted.get(HOLDING, 0),
        dead=counted.get(DEAD, 0),
        oldest=oldest,
        ready=ready,
        refused_names=tuple(RefusedName(*row) for row in refused_names if not holds_address(row[0])),
        sign_ups=counted.get(SIGN_UPS, 0),
        unvouched_bytes=unvouched_bytes(counted),
        closure=decode_closure(closure),
    )


def with_address(refused_names: Iterable[tuple[Any, ...]]) -> list[tuple[str, str]]:
    """Returns setting and name of the rows that hold an e-mail address: none is added any more, but an older store may hold some."""
    return [(setting, name) for name, setting, *_ in refused_names if holds_address(name)]


def tombstone(key: str, site_key: bytes) -> bytes:
    """Returns what is kept of an erased person: a keyed hash of the lane key, from which nothing can be read back."""
    return hmac.digest(site_key, b"tombstone:" + key.encode("utf-8", "replace"), "sha256")


def decode_body(kind: str, body: bytes) -> Attributes | Track:
    return msgspec.json.decode(body, type=Track) if kind == Kind.TRACK else msgspec.json.decode(body, type=Attributes)


def decode_visitor(after: bytes | None) -> Visitor | None:
    return msgspec.json.decode(after, type=Visitor) if after is not None else None


def increments(body: Attributes | Track) -> bool:
    """Returns whether sending the body twice could count something twice."""
    return isinstance(body, Attributes) and body.increments


def decode_closure(closure: bytes | None) -> Closure | None:
    return msgspec.json.decode(closure, type=Closure) if closure is not None else None


def encode_closure(closure: Closure | None) -> bytes | None:
    return msgspec.json.encode(closure) if closure is not None else None


def decode_dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    """Returns a dead letter from a row of the query `dead_letters`, which has the same columns in both adapters."""
    seq, push_id, address, kind, trust, reason, detail, at, since, attempts, body = row
    push = (seq, push_id, address, Trust(trust), decode_body(kind, body), since, attempts, len(body))
    return DeadLetter(*push, reason=DeadReason(reason), detail=detail, at=at)


# By table, in the order in which they are copied. Columns are PostgreSQL's, and the rows come in the order of the first one. Not
# copied: what is about leases, probes and erasures, none of which is left in a store that was opened and closed.
TABLES: Mapping[str, tuple[str, ...]] = {
    "meta": ("name", "value"),
    "lanes": (
        *("id", "key", "address", "verified", "waiting", "bytes", "ready_at", "epoch", "failures", "put_off"),
        *("identify_digest", "identify_at", "stranger"),
    ),
    "pushes": ("seq", "lane", "id", "address", "trust", "kind", "body", "since", "attempts", "increments"),
    "held": ("seq", "visitor", "id", "body", "since"),
    "dead": (
        *("seq", "lane", "id", "address", "trust", "kind", "body", "since", "attempts", "reason", "detail", "at"),
        "key",
    ),
    "seen": ("id", "at", "shown", "after", "after_key"),
    "visitors": ("id", "at", "retired", "identified", "person", "shown", "shown_by"),
    "aliases": ("key", "lane", "at"),
    "tombstones": ("hash", "at"),
    "counters": ("name", "value"),
    "not_offered": ("setting", "name", "count", "last"),
    "gate": ("closure",),
    "schedules": ("name", "until"),
    "sign_ups": ("seq", "lane", "client", "at"),
    "networks": ("name", "parent", "waiting", "weight", "until", "rests"),
}
