"""Decides what a lease is made of and what its end changes: which pushes form the head of a lane, which rows a settlement touches.

Pure, and the same for both adapters, which read the rows, number the leases by their own clocks, and write what is decided here.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from proxy.core.calls import Attributes
from proxy.core.emails import lane_key
from proxy.core.visitors import Trust
from proxy.store.records import DeadReason, Fate, LastIdentify, Lease, Settled, Settlement, Waiting
from proxy.store.rows import DEAD, UNVOUCHED_BYTES, WAITING, asserted_bytes, decode_body, increments

_INDETERMINATE = "its outcome is unknown: the process ended, or the lease, while it was being sent"


class LaneRow(msgspec.Struct, frozen=True):
    """A lane that may be claimed: the columns of the queries `claimable…`. `leased`: under a lease that has ended."""

    id: int
    leased: bool
    failures: int
    key: str
    address: str | None
    digest: bytes | None
    digest_at: float | None


class Head(msgspec.Struct, frozen=True):
    """The pushes of a lane to send next, in order. `starts`: it is an increment, to be marked as started before anybody can send it."""

    pushes: tuple[Waiting, ...]
    starts: bool

    @property
    def asserted(self) -> bool:
        """Whether its first push was only asserted: if a vouched push waits in the lane the lease is `pressed`, otherwise it is a stranger's."""
        return self.pushes[0].trust is Trust.ASSERTED


def head_of(lane: LaneRow, rows: Iterable[Sequence[Any]]) -> Head:
    """Returns the head of a lane from its first pushes: an increment goes alone, anything else up to the next increment.

    `rows`: the columns of `Waiting` with the kind in front of the body, then whether it increments; of `pushes`, in order. A push for an
    address that has moved since goes to the new one.
    """
    head: list[Waiting] = []
    for seq, push_id, address, trust, kind, body, since, attempts, alone in rows:
        if alone and head:
            break
        target = address if lane.address is None or lane_key(address) == lane.key else lane.address
        decoded, size = decode_body(kind, body), len(body)
        head.append(Waiting(seq, push_id, target, Trust(trust), decoded, since, attempts, size))
        if alone:
            return Head(tuple(head), starts=True)
    return Head(tuple(head), starts=False)


def lease_of(lane: LaneRow, head: Head, *, epoch: int, until: float, vouched_waits: bool, sign_up: str = "") -> Lease:
    """Returns the lease. `vouched_waits`: something in the lane was vouched for, asked only if its head is not; `sign_up`: as in `Lease`."""
    return Lease(
        lane=lane.id,
        epoch=epoch,
        until=until,
        failures=lane.failures,
        pushes=head.pushes,
        last=last_identify(lane),
        pressed=head.asserted and vouched_waits,
        stranger=head.asserted and not vouched_waits,
        sign_up=sign_up,
    )


def last_identify(lane: LaneRow) -> LastIdentify | None:
    """Returns what SendX has of the contact: not known any more if a lease has ended with something on the wire."""
    if lane.digest is None or lane.digest_at is None or lane.leased:
        return None
    return LastIdentify(lane.digest, lane.digest_at)


class Burial(NamedTuple):
    """A push that becomes a dead letter."""

    seq: int
    attempted: bool
    reason: DeadReason
    detail: str


class Release(msgspec.Struct, frozen=True):
    """A lane whose lease ends. `gone`: pushes that leave it, and `freed`: the bytes of their bodies; `retry_at`: as in `Settlement`.

    `learned`: `last` replaces what is known of the contact, unless a merge has voided it meanwhile. `sign_up`: the client of a sign-up that
    waits for another turn, and `retry_at` at least for that long.
    """

    lane: int
    gone: int
    freed: int = 0
    failures: int = 0
    retry_at: float | None = None
    learned: bool = True
    last: LastIdentify | None = None
    sign_up: str = ""

    def row(self, now: float, *, origin: float = 0.0) -> tuple[object, ...]:
        """Returns the columns of the query `release`. The lane is ready now or at `retry_at`, counted from `origin`."""
        ready_at = now if self.retry_at is None else self.retry_at
        digest, digest_at = (self.last.digest, self.last.at) if self.last is not None else (None, None)
        return self.lane, self.gone, self.failures, ready_at - origin, self.learned, digest, digest_at, self.freed


class Changes(msgspec.Struct):
    """What the end of leases changes. `delivered`, `attempted` and `unstarted`: numbers of pushes; `unchanged`: delivered without a send.

    `unvouched_bytes`: of what was only asserted and is delivered.
    """

    releases: list[Release] = []
    delivered: list[int] = []
    buried: list[Burial] = []
    attempted: list[int] = []
    unstarted: list[int] = []
    unchanged: int = 0
    unvouched_bytes: int = 0

    @property
    def tallies(self) -> Mapping[str, int]:
        delivered, buried = len(self.delivered), len(self.buried)
        tallies = dict(Counter(f"dead:{burial.reason}" for burial in self.buried)) if buried else {}
        if delivered:
            tallies |= {"delivered": delivered, "unchanged": self.unchanged}
        if self.unvouched_bytes:
            tallies[UNVOUCHED_BYTES] = -self.unvouched_bytes
        if delivered or buried:
            tallies |= {WAITING: -delivered - buried, DEAD: buried}
        return tallies


def untouched(lease: Lease) -> Settlement:
    """Returns the settlement that leaves everything as it was."""
    kept = tuple(Settled(push.seq, Fate.KEPT, attempted=False) for push in lease.pushes)
    return Settlement(lease, kept, failures=lease.failures, last=lease.last)


def changes_of(settlements: Iterable[Settlement], erased: Collection[int] = ()) -> Changes:
    """Returns what settlements change whose leases hold, at most one for a lane.

    `erased`: lanes whose person was erased under the lease, so that the pushes are gone and counted already.
    """
    changes = Changes()
    for settlement in settlements:
        lane = settlement.lease.lane
        if lane in erased:
            changes.releases.append(Release(lane, 0, 0, settlement.failures, settlement.retry_at, learned=False))
        else:
            _add(changes, settlement)
    return changes


def _add(changes: Changes, settlement: Settlement) -> None:
    lease, gone, delivered = settlement.lease, set[int](), set[int]()
    for result in settlement.results:
        if result.fate is Fate.KEPT:
            if result.attempted:
                changes.attempted.append(result.seq)
            continue
        gone.add(result.seq)
        if result.fate is Fate.DELIVERED:
            changes.delivered.append(result.seq)
            delivered.add(result.seq)
            changes.unchanged += result.unchanged
        else:
            reason = result.reason or DeadReason.REJECTED
            changes.buried.append(Burial(result.seq, result.attempted, reason, result.detail))
    changes.unstarted += [push.seq for push in lease.pushes if increments(push.body) and push.seq not in gone]
    learned, last = settlement.last != lease.last, settlement.last
    freed = sum([push.size for push in lease.pushes if push.seq in gone])
    changes.unvouched_bytes += asserted_bytes(
        [(push.trust, push.size) for push in lease.pushes if push.seq in delivered]
    )
    sign_up = lease.sign_up if not gone else ""
    changes.releases.append(
        Release(lease.lane, len(gone), freed, settlement.failures, settlement.retry_at, learned, last, sign_up)
    )


def sent_again(settlement: Settlement, waiting: Collection[tuple[int, str]]) -> int:
    """Returns how many pushes will be sent again because their lease was lost: they were answered, and still wait.

    `waiting`: numbers and ids of the lease's pushes that the store still has. The others were settled by a call whose answer was lost, or are
    in a store that is gone.
    """
    answered = {result.seq for result in settlement.results if result.fate is not Fate.KEPT and result.attempted}
    return sum((push.seq, push.id) in waiting and push.seq in answered for push in settlement.lease.pushes)


def changes_of_abandoned(lanes: Iterable[int], started: Sequence[tuple[int, int, int]]) -> Changes:
    """Returns what the end of leases changes whose holder is gone.

    `started`: lane, number and size of increments that were started. They may have been applied; the rest is sent again. Anything else that was
    on the wire may have been applied as well, so what SendX has of the contact is not known any more.
    """
    gone, freed = Counter[int](), Counter[int]()
    for lane, _, size in started:
        gone[lane] += 1
        freed[lane] += size
    return Changes(
        releases=[Release(lane, gone[lane], freed[lane]) for lane in lanes],
        buried=[
            Burial(seq, attempted=True, reason=DeadReason.AMBIGUOUS, detail=_INDETERMINATE) for _, seq, _ in started
        ],
    )


def new_addresses(settlement: Settlement) -> list[str]:
    """Returns the changes of address that SendX has confirmed, in order."""
    pushes = [(push.seq, push.body) for push in settlement.lease.pushes if isinstance(push.body, Attributes)]
    moves = [(seq, body.new_email) for seq, body in pushes if body.new_email is not None]
    delivered = {result.seq for result in settlement.results if result.fate is Fate.DELIVERED} if moves else ()
    return [address for seq, address in moves if seq in delivered]
