"""The outbox: the port between what was acknowledged and what is still to be sent, and its records.

A *lane* is one person, keyed by address without regard to case; a push is in exactly one of these states:

    state      entered by                         left by
    held       append, visitor not identified     bound → waiting · refused · expired · erased
    waiting    append; bound; replayed            claimed
    claimed    claim (under a lease)              delivered (gone) · waiting again · dead · lease expired → waiting
    started    claim of an increment              delivered · waiting (known as not applied) · lease expired → dead "ambiguous"
    dead       settle                             replayed → waiting · discarded · aged out

Rules every adapter keeps, and the contract suite proves:

1. `append` returns once its plan is durable; a plan is applied whole or not at all.
2. Within a lane pushes leave in the order in which they entered; a lane is claimed by one lease at a time.
3. `settle` is one transaction, fenced by the lane's epoch: a lease that was lost changes nothing.
4. A counter moves in the transaction of the transition that it counts.
5. While the gate is shut, one lane at a time is claimed in the whole account.
6. A delivered change of address moves its lane to the new one; if that has a lane, what waits there goes first, then both are one.

Decisions are not made here. An adapter shows `Facts` to a pure function inside its transaction and carries out the `Plan` it gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Protocol

import msgspec

from proxy.core.decision import Decide, Plan, Reads
from proxy.core.gate import Closure
from proxy.core.identity import Trust
from proxy.core.pushes import Attributes, Kind, Track

NO_READS = Reads()


class DeadReason(StrEnum):
    """Why a push became a dead letter."""

    REJECTED = "rejected"  # SendX answered 4xx: it will not take this push
    MISSING = "missing"  # a track for a contact that SendX does not know
    EXHAUSTED = "exhausted"  # tried for SCQ_MAX_ATTEMPTS and SCQ_MAX_AGE
    AMBIGUOUS = "ambiguous"  # an increment whose outcome is unknown: sending it again could count it twice


# --- Delivery ----------------------------------------------------------------------------------------------------------


class Waiting(msgspec.Struct, frozen=True):
    """A claimed push. `since`: Unix seconds when it was acknowledged; `attempts`: sends so far with a known bad outcome."""

    seq: int
    id: str
    address: str
    trust: Trust
    body: Attributes | Track
    since: float
    attempts: int

    @property
    def kind(self) -> Kind:
        return Kind.TRACK if isinstance(self.body, Track) else Kind.IDENTIFY


class LastIdentify(msgspec.Struct, frozen=True):
    """The last identify delivered for a contact, while nothing since could have changed what it sets: its digest, and when."""

    digest: bytes
    at: float


class Lease(msgspec.Struct, frozen=True):
    """One lane's head, to be sent in order by whoever holds it until `until` (Unix seconds).

    An increment comes alone and is already marked as started. `pressed`: its head was only asserted, and what was vouched for waits behind.
    """

    lane: int
    epoch: int
    until: float
    failures: int
    pushes: tuple[Waiting, ...]
    last: LastIdentify | None = None
    pressed: bool = False


class Claim(msgspec.Struct, frozen=True):
    """`leases`: lanes to be sent; `closure`: what shut the gate when they were claimed, None while it is open."""

    leases: tuple[Lease, ...]
    closure: Closure | None = None


class Fate(IntEnum):
    DELIVERED = 1
    DEAD = 2
    KEPT = 3  # stays in the lane, as it was or with one more attempt


class Settled(msgspec.Struct, frozen=True):
    """What became of one claimed push. `detail`: facts for the operator (an HTTP status), never payload.

    `unchanged`: delivered without being sent, because SendX had the same already.
    """

    seq: int
    fate: Fate
    attempted: bool = True
    reason: DeadReason | None = None
    detail: str = ""
    unchanged: bool = False


class Settlement(msgspec.Struct, frozen=True):
    """What became of a lease. Pushes not named stay as they were. `retry_at`: not before (Unix seconds), None: at once.

    `failures`: the lane's failures in a row, from which its back-off is computed. `last`: to be remembered of the contact.
    """

    lease: Lease
    results: tuple[Settled, ...]
    failures: int = 0
    retry_at: float | None = None
    last: LastIdentify | None = None


class DeadLetter(msgspec.Struct, frozen=True):
    seq: int
    id: str
    address: str
    kind: Kind
    trust: Trust
    reason: DeadReason
    detail: str
    at: float
    since: float
    attempts: int
    body: Attributes | Track


class Erased(msgspec.Struct, frozen=True):
    """What an erasure removed, in pushes; `identities`: remembered log-ins and log-outs."""

    waiting: int
    held: int
    dead: int
    identities: int


class DeadFilter(msgspec.Struct, frozen=True):
    """Which dead letters: every condition that is given holds. `ids`: of their pushes; `before`: died before then (Unix seconds).

    `contact`: the lane key of a person, now or before a change of address.
    """

    seqs: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()
    reason: DeadReason | None = None
    contact: str | None = None
    before: float | None = None


class RefusedName(msgspec.Struct, frozen=True):
    """A tag or field that pages asked for and the lists do not offer. `setting`: the variable that would offer it."""

    name: str
    setting: str
    count: int
    last: float


class Health(msgspec.Struct, frozen=True):
    """How the store itself does, in this process since it was opened; None where an adapter has no such thing.

    `jobs` ran in `commits` transactions that wrote something, which took `commit_seconds`. `reopened`: times it had to be opened again
    after a failure. `log_frames`: pages in the write-ahead log that are not in the file yet. `headroom_bytes`: disk space above the floor
    at which ingest stops. `set_aside`: damaged stores kept beside this one. `problems`: sentences for a person, each with what to do.
    """

    commits: int = 0
    jobs: int = 0
    commit_seconds: float = 0.0
    failed_commits: int = 0
    reopened: int = 0
    log_frames: int | None = None
    headroom_bytes: int | None = None
    set_aside: int = 0
    problems: tuple[str, ...] = ()


class Stats(msgspec.Struct, frozen=True):
    """`counters`: transitions since the store was made (`accepted`, `delivered`, `refused:<reason>`, …).

    `oldest`: Unix seconds when the oldest waiting push was acknowledged; `sign_ups_until`: when the newest sign-up is sent, if it is put off.
    """

    counters: Mapping[str, int]
    waiting: int
    holding: int
    dead: int
    oldest: float | None
    refused_names: tuple[RefusedName, ...]
    health: Health = Health()
    sign_ups_until: float = 0.0


class Durability(msgspec.Struct, frozen=True):
    """What an acknowledgement means here, read back from the store and not from the settings."""

    promise: str
    facts: Mapping[str, str]


class Outbox(Protocol):
    """Raises `StoreUnavailable` when it cannot do now what it is asked."""

    site_key: bytes

    async def append(self, decide: Decide, reads: Reads = NO_READS) -> Plan:
        """Decide and store in one transaction; returns when that is durable. `reads` changes nothing but the time that it takes."""

    async def claim(self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None) -> Claim:
        """The heads of up to `lanes` lanes that may be sent now, longest ready first.

        While the gate is shut there are none, but for one lane if `probe` is what shuts it and nobody else's probe is out: it is out until
        the gate is moved, or its lease ends. When a probe is due is the caller's to know.
        """

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        """Sets what shuts the gate for every sender, across restarts, and ends a probe. Returns what holds now (`gate.agreed`)."""

    async def holds(self, lease: Lease) -> bool:
        """Whether it may still be sent under: not once its person was erased. Asked before each request, so it has to be fast."""

    async def settle(self, settlement: Settlement) -> bool:
        """False: the lease was lost, and nothing was changed."""

    async def wait_ready(self, timeout_seconds: float) -> None:
        """Returns when a claim may find something, or after the time-out."""

    async def reserve(self, sends: int, per_second: float) -> float:
        """Seconds from now until the first of so many sends, evenly spaced, may be made; every sender of the store takes its turn from here."""

    async def erase(self, key: str) -> Erased:
        """Forget the person with this lane key; leaves a keyed hash, so that late retries do not bring them back."""

    async def sweep(self) -> None:
        """Expire what is over its age: holds, remembered ids, dead letters, idle lanes, refused names."""

    async def ready(self) -> None:
        """Raises `StoreUnavailable` if an append could not be stored now."""

    async def stats(self) -> Stats: ...

    async def dead_letters(self, matching: DeadFilter, after: int, limit: int) -> Sequence[DeadLetter]:
        """Up to `limit` of them in order, those behind the one numbered `after`."""

    async def replay(self, matching: DeadFilter, limit: int) -> int:
        """Put up to `limit` of them at the tail of their lanes, oldest first, as if never tried; how many it were."""

    async def discard(self, matching: DeadFilter, limit: int) -> int:
        """Drop up to `limit` of them, oldest first; how many it were."""

    async def durability(self) -> Durability: ...

    async def failure(self) -> str:
        """Returns when the store has failed for good, with a sentence about it: the process should end, to be started anew."""

    async def close(self) -> None: ...
