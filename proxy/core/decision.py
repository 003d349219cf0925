"""The vocabulary between decisions and the store: the `Facts` that a decision reads, and the changes of a `Decision`.

Decisions are pure and made elsewhere (`admission`, `server_calls`). The store calls one inside a transaction and carries out its changes
there, all of them or none.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

import msgspec

from proxy.core.calls import Attributes, Track
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust, Visitor

T = TypeVar("T")


class Seen(msgspec.Struct, frozen=True):
    """An id that was accepted or held before, `at` (Unix seconds).

    `shown`: the visitor its request showed, or the fingerprint of a server's call. `after`: who the browser was after it, None for a push
    that says nothing about that.
    """

    shown: str
    after: Visitor | None
    at: float = 0.0


class VisitorFacts(msgspec.Struct, frozen=True):
    """What is known of a visitor id. `identified`: when a browser identified as it (Unix seconds); `holding`: pushes held for it.

    `person`: lane key of who identified as it; until somebody has, of the only one who may (see `Born`). `shown`: when a request first
    carried a cookie with it (Unix seconds), that of the visitor `shown_by`.
    """

    retired: bool = False
    identified: float | None = None
    person: str | None = None
    holding: int = 0
    shown: float | None = None
    shown_by: str | None = None

    @property
    def heir(self) -> str | None:
        """The only person who may identify as this visitor, None if anybody may, or somebody has."""
        return self.person if self.identified is None else None


class LaneFacts(msgspec.Struct, frozen=True):
    """Facts about a lane. `verified`: a token or a server key has vouched for its address here; `waiting`: pushes not yet sent.

    `bytes`: size of the bodies that wait; `put_off`: as sign-ups, until it is their turn.
    """

    verified: bool = False
    waiting: int = 0
    bytes: int = 0
    put_off: bool = False


class Alias(msgspec.Struct, frozen=True):
    """A person's new address: SendX confirmed the change to `address` at `at` (Unix seconds)."""

    address: str
    at: float


class HeldPush(msgspec.Struct, frozen=True):
    """A push that waits for its visitor to be identified, `since` (Unix seconds)."""

    id: str
    track: Track
    since: float = 0.0


class Schedule(StrEnum):
    """Something that happens no more often than its rate. The store keeps until when it is busy (Unix seconds)."""

    SIGN_UPS = "sign-ups"  # taken by the store, as they leave: see `turns`
    TRACES = "traces"  # log-outs and consents of unknown visitors


class Facts(Protocol):
    """Reads inside the transaction of an append. `site_key`: this store's secret, from which visitor ids are derived.

    `unvouched_bytes`: what the store keeps that nobody has vouched for.
    """

    site_key: bytes

    def seen(self, push_id: str) -> Seen | None: ...
    def visitor(self, visitor_id: str) -> VisitorFacts: ...
    def lane(self, key: str) -> LaneFacts: ...
    def alias(self, key: str) -> Alias | None: ...
    def erased_at(self, key: str) -> float | None: ...
    def held(self, visitor_id: str) -> Sequence[HeldPush]: ...
    def unvouched_bytes(self) -> int: ...
    def schedule(self, name: Schedule) -> float: ...


class Change(msgspec.Struct, frozen=True):
    """One thing to do, as part of a decision."""


class Enqueue(Change, frozen=True):
    """Puts a push at the tail of the lane `key`. `address`: the spelling to send.

    `sign_up`: the client address that typed it, empty if this is not a sign-up. A lane of which nothing is known waits until it is its turn.
    """

    id: str
    key: str
    address: str
    trust: Trust
    body: Attributes | Track
    sign_up: str = ""


class Hold(Change, frozen=True):
    """Holds a push until the visitor is identified."""

    id: str
    visitor: str
    track: Track


class Bind(Change, frozen=True):
    """Takes the visitor's held pushes, in order: `keep` go to the tail of the lane, `refuse` are dropped and counted."""

    visitor: str
    key: str
    address: str
    trust: Trust
    keep: tuple[str, ...] = ()
    refuse: tuple[tuple[str, Reason], ...] = ()


class Retire(Change, frozen=True):
    """Ends a visitor id: it counts for nothing from now on, and what is held for it is refused for `reason`."""

    visitor: str
    reason: Reason = Reason.IDENTITY_CHANGED


class Born(Change, frozen=True):
    """Begins a visitor as whom only `person` may identify: a lane key, or anything else that `visitors.may_be` takes."""

    visitor: str
    person: str


class Identified(Change, frozen=True):
    """Marks the visitor as identified by the person with lane key `person`."""

    visitor: str
    person: str


class Shown(Change, frozen=True):
    """Marks the visitor as shown, by the cookie of the visitor `by`."""

    visitor: str
    by: str


class Drop(Change, frozen=True):
    """Refuses what is held for the visitor, who goes on under the same id."""

    visitor: str
    reason: Reason


class Verify(Change, frozen=True):
    """Marks the lane's address as vouched for."""

    key: str


class Forgotten(Change, frozen=True):
    """Counts a push as accepted and erased: a late retry for somebody who was erased. The answer does not show it."""


class EndAlias(Change, frozen=True):
    """Gives an address that had moved to the person who was verified at it now."""

    key: str


class Remember(Change, frozen=True):
    """Knows this id again; see `Seen`. `unvouched`: nobody has vouched for it, and no push counts its bytes."""

    id: str
    shown: str
    after: Visitor | None = None
    unvouched: bool = False


class Refused(Change, frozen=True):
    """Counts a refusal."""

    reason: Reason


class Dropped(Change, frozen=True):
    """Counts values that were dropped because SendX could not take them."""

    count: int


class NotOffered(Change, frozen=True):
    """Notes a tag or field that a page asked for, for `scq-proxy status`; `setting` would offer it."""

    name: str
    setting: str


class Scheduled(Change, frozen=True):
    """Notes that one more of these has happened: the schedule is busy until `until` (Unix seconds)."""

    name: Schedule
    until: float


class Decision(msgspec.Struct, Generic[T], frozen=True):
    """The changes to make, in order, and the answer to give once they are durable."""

    changes: tuple[Change, ...]
    answer: T


class Reads(msgspec.Struct, frozen=True):
    """What a decision is likely to ask for, so that it is read together with what others ask for.

    `ids`: of its pushes; `keys`: of the lanes of the people it names; `visitors`: whom the browser may be.
    """

    ids: Sequence[str] = ()
    keys: Sequence[str] = ()
    visitors: Sequence[str] = ()


Decide = Callable[[Facts], Decision[T]]
