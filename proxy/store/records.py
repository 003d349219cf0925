"""The records that cross the port: what is claimed, what became of it, and what the operator sees."""

import math
from collections.abc import Mapping
from enum import IntEnum, StrEnum

import msgspec

from proxy.core.calls import Attributes, Kind, Track
from proxy.core.gate import Closure
from proxy.core.visitors import Trust


class DeadReason(StrEnum):
    """Why a push became a dead letter."""

    REJECTED = "rejected"  # SendX answered 4xx: it will not take this push
    MISSING = "missing"  # a track for a contact that SendX does not know
    EXHAUSTED = "exhausted"  # tried for SCQ_MAX_ATTEMPTS and SCQ_MAX_AGE
    AMBIGUOUS = "ambiguous"  # an increment whose outcome is unknown: sending it again could count it twice


class Waiting(msgspec.Struct, frozen=True):
    """A claimed push. `since`: Unix seconds when it was acknowledged; `attempts`: sends with a known bad outcome.

    `size`: bytes of the body as stored, by which its lane shrinks when it leaves.
    """

    seq: int
    id: str
    address: str
    trust: Trust
    body: Attributes | Track
    since: float
    attempts: int
    size: int

    @property
    def kind(self) -> Kind:
        return Kind.TRACK if isinstance(self.body, Track) else Kind.IDENTIFY


class LastIdentify(msgspec.Struct, frozen=True):
    """The last identify delivered for a contact, while nothing since could have changed what it sets: its digest, and when."""

    digest: bytes
    at: float


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One lane's head, to be sent in order by whoever holds it until `until` (Unix seconds).

    An increment comes alone and is already marked as started. `pressed`: its head was only asserted, and what was vouched for waits behind.
    `stranger`: nothing waits in the lane that was vouched for; `sign_up`: the client whose turn it was, empty for a lane that waited for none. If
    nothing of a sign-up leaves the lane, it waits for another turn.
    """

    lane: int
    epoch: int
    until: float
    failures: int
    pushes: tuple[Waiting, ...]
    last: LastIdentify | None = None
    pressed: bool = False
    stranger: bool = False
    sign_up: str = ""


class Claim(msgspec.Struct, frozen=True):
    """`leases`: lanes to be sent; `closure`: what shut the gate when they were claimed, None while it is open."""

    leases: tuple[Lease, ...]
    closure: Closure | None = None


class Fate(IntEnum):
    """What became of a claimed push."""

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


class DeadLetter(Waiting, frozen=True, kw_only=True):
    """A push that is not sent any more. `at`: Unix seconds when it died."""

    reason: DeadReason
    detail: str
    at: float


class Erased(msgspec.Struct, frozen=True):
    """What an erasure removed, in pushes; `identities`: remembered log-ins and log-outs."""

    waiting: int
    held: int
    dead: int
    identities: int


class Adopted(msgspec.Struct, frozen=True):
    """The result of an adoption: waiting, held and dead pushes that were recovered, and `ids` of other pushes.

    `known`: pushes that this store already had; `erased`: of people who were erased; `missing`: pushes that could not be read, None
    if their number is unknown. `before`: everything had been recovered before.
    """

    waiting: int = 0
    held: int = 0
    dead: int = 0
    ids: int = 0
    known: int = 0
    erased: int = 0
    missing: int | None = 0
    before: bool = False


class DeadFilter(msgspec.Struct, frozen=True):
    """Which dead letters: every condition that is given holds. `ids`: of their pushes; `before`: died before then (Unix seconds).

    `contact`: the lane key of a person, now or before a change of address.
    """

    seqs: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()
    reason: DeadReason | None = None
    contact: str | None = None
    before: float | None = None


class SignUp(msgspec.Struct, frozen=True):
    """An address that a client has typed, and that waits for its turn since `at` (Unix seconds): with it, `pushes` of its lane.

    `seq`: its place among them; an address typed by several clients has one for each. `client`: as in `networks`.
    """

    seq: int
    lane: int
    address: str
    client: str
    at: float
    pushes: int


class SignUpFilter(msgspec.Struct, frozen=True):
    """Which sign-ups: every condition that is given holds. `network`: that the client is in, such as 2001:db8::/32; times are Unix seconds.

    `pattern`: of the address, with `*` and `?`, without regard to case.
    """

    network: str | None = None
    after: float | None = None
    before: float | None = None
    pattern: str | None = None


class RefusedName(msgspec.Struct, frozen=True):
    """A tag or field that pages asked for and the lists do not offer. `setting`: the variable that would offer it."""

    name: str
    setting: str
    count: int
    last: float


class Counts(msgspec.Struct):
    """What an adapter counts since the store was opened; see `Health`."""

    commits: int = 0
    jobs: int = 0
    commit_seconds: float = 0.0
    failed_commits: int = 0
    reopened: int = 0
    replaced: int = 0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How the store itself is doing, in this process since it was opened; None where an adapter has no such thing.

    `jobs` ran in `commits` transactions that wrote something, which took `commit_seconds`. `reopened`: times it was reopened after a failure;
    `replaced`: those at which its path held another file or none. `log_frames`: pages in the write-ahead log that are not in the file
    yet. `headroom_bytes`: disk space above the floor at which ingest stops. `set_aside`: damaged stores beside this one that were not
    recovered. `failovers`: to other servers, since the store was made; `lost`: acknowledged pushes found missing after one.
    `clock_ahead_seconds`: by which the store's clock is ahead of this machine's. `problems`: sentences that tell people what to do.
    """

    commits: int = 0
    jobs: int = 0
    commit_seconds: float = 0.0
    failed_commits: int = 0
    reopened: int = 0
    replaced: int = 0
    log_frames: int | None = None
    headroom_bytes: int | None = None
    set_aside: int = 0
    failovers: int | None = None
    lost: int | None = None
    clock_ahead_seconds: float | None = None
    problems: tuple[str, ...] = ()


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """`counters`: transitions since the store was made (`accepted`, `delivered`, `refused:<reason>`, …).

    `oldest`: Unix seconds when the oldest waiting push was acknowledged; `ready`: since when a lane in which something was vouched for could be
    claimed, in the future if it backs off. `sign_ups`: lanes that wait for their turn.
    `unvouched_bytes`: what the store keeps that nobody has vouched for. `closure`: what shuts the gate, None while it is open.
    """

    counters: Mapping[str, int]
    waiting: int
    holding: int
    dead: int
    oldest: float | None
    refused_names: tuple[RefusedName, ...]
    health: Health = Health()
    ready: float | None = None
    sign_ups: int = 0
    unvouched_bytes: int = 0
    closure: Closure | None = None


class Unvouched(msgspec.Struct, frozen=True):
    """What a store keeps that nobody has vouched for. `headroom`: bytes of the disk above its floor, infinite where that is not known."""

    bytes: int = 0
    headroom: float = math.inf


class Durability(msgspec.Struct, frozen=True):
    """What an acknowledgement means here, read back from the store and not from the settings."""

    promise: str
    facts: Mapping[str, str]
