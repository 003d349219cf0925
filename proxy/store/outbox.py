"""The outbox: the port between what was acknowledged and what is still to be sent. Its records are in `records`.

A *lane* is one person, keyed by address without regard to case; a push is in exactly one of these states:

    state      entered by                         left by
    held       append, visitor not identified     bound → waiting · refused · expired · erased
    waiting    append; bound; replayed            claimed · dropped · erased
    claimed    claim (under a lease)              delivered (gone) · waiting again · dead · lease expired → waiting · erased
    started    claim of an increment              delivered · waiting (known as not applied) · dead · lease expired → dead · erased
    dead       settle; a started lease expired    replayed → waiting · discarded · aged out · erased

Rules every adapter keeps, and the contract suite proves:

1. `append` returns once its decision is durable; a decision is carried out whole or not at all.
2. Within a lane pushes leave in the order in which they entered; a lane is claimed by one lease at a time.
3. `settle` is one transaction, fenced by the lane's epoch: a lease that was lost changes nothing.
4. A counter moves in the transaction of the transition that it counts.
5. While the gate is shut, one lane at a time is claimed in the whole account.
6. A delivered change of address moves its lane to the new one; if that has a lane, what waits there goes first, then both are one.

Decisions are not made here. An adapter shows `Facts` to a pure function inside its transaction and carries out the `Decision` it gets.
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from proxy.core.decision import Decide, Decision, Reads
from proxy.core.gate import Closure
from proxy.core.turns import Share
from proxy.store.records import (
    Adopted,
    Claim,
    DeadFilter,
    DeadLetter,
    Durability,
    Erased,
    Lease,
    Settlement,
    SignUp,
    SignUpFilter,
    Stats,
    Unvouched,
)

NO_READS = Reads()
NO_SHARE = Share()

T = TypeVar("T")


class Outbox(Protocol):
    """Raises `StoreUnavailable` when it cannot do now what it is asked."""

    site_key: bytes

    def now(self) -> float:
        """Returns Unix seconds by the store's clock, which is authoritative for all nodes: tokens, back-offs, the gate."""

    async def append(self, decide: Decide[T], reads: Reads = NO_READS) -> Decision[T]:
        """Decide and store in one transaction; returns when that is durable. `reads` changes nothing but the time that it takes."""

    def unvouched(self) -> Unvouched:
        """What the store keeps that nobody has vouched for, as of the last append or so."""

    async def claim(
        self, lanes: int, per_lane: int, lease_seconds: float, *, probe: Closure | None = None, share: Share = NO_SHARE
    ) -> Claim:
        """The heads of up to `lanes` lanes that may be sent now: what was vouched for first, longest ready first.

        Lanes of strangers come when there is room, and `share.least` of them in any case: first the sign-ups whose turn it is, by the network that
        was served least (see `turns`), then those that are ready. Each has `share.per_lane` pushes at most.

        Through a shut gate nothing is claimed, except one lane as a probe: if `probe` is the closure in force and no sender has a probe
        out. That probe is out until the gate is moved or its lease ends. The caller knows when one is due.
        """

    async def move_gate(self, before: Closure | None, after: Closure | None) -> Closure | None:
        """Sets what shuts the gate for every sender, across restarts, and ends a probe. Returns what holds now (`gate.merge_closures`)."""

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
        """Expire what is over its age: holds, remembered ids, visitors, dead letters, idle lanes, refused names."""

    @property
    def trouble(self) -> str | None:
        """A sentence for the operator about why nothing can be stored now, as far as that is known without asking and errors do not say it."""

    async def ready(self) -> None:
        """Raises `StoreUnavailable` if an append could not be stored now."""

    async def stats(self) -> Stats: ...

    async def dead_letters(self, matching: DeadFilter, after: int, limit: int) -> Sequence[DeadLetter]:
        """Up to `limit` of them in order, those behind the one numbered `after`."""

    async def replay(self, matching: DeadFilter, limit: int) -> int:
        """Put up to `limit` of them at the tail of their lanes, oldest first, as if never tried; how many it were."""

    async def discard(self, matching: DeadFilter, limit: int) -> int:
        """Drop up to `limit` of them, oldest first; how many it were."""

    async def sign_ups(self, matching: SignUpFilter, after: int, limit: int) -> Sequence[SignUp]:
        """Up to `limit` of those that wait for their turn, in order, those behind the one numbered `after`."""

    async def drop_sign_ups(self, matching: SignUpFilter, limit: int) -> int:
        """Drop up to `limit` lanes of them with all that waits in each, which counts as discarded; how many lanes it were."""

    async def durability(self) -> Durability: ...

    async def failure(self) -> str:
        """Returns when the store has failed for good, with a sentence about it: the process should end, to be started anew."""

    async def close(self) -> None: ...


@runtime_checkable
class Adopting(Protocol):
    """An outbox on a file, which can be set aside."""

    def adopt(self, file: Path) -> AsyncIterator[Adopted]:
        """Recovers the readable contents of a store that was set aside; yields running totals, then the final ones.

        Leaves the file unchanged. Idempotent. Raises `StoreRefused`.
        """
