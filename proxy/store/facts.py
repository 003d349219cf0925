"""What a group of appends reads of the store, `Wants` → `Known`, and what it adds to it, `Writes`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from proxy.core.decision import Alias, LaneFacts, Reads, Remember, Schedule, Seen, VisitorFacts

FactKind = Literal["ids", "keys", "visitors", "held", "schedules"]
_KINDS = get_args(FactKind)
Ask = Callable[[FactKind, str], None]


@dataclass(slots=True)
class Wants:
    """Names to read: push `ids`; lane `keys` (lane, alias and erasure of a person); `visitors`; visitors whose pushes are `held`; `schedules`."""

    ids: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    visitors: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    schedules: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in _KINDS)

    def note(self, kind: FactKind, name: str) -> None:
        getattr(self, kind).add(name)

    def add(self, other: "Wants") -> None:
        for kind in _KINDS:
            getattr(self, kind).update(getattr(other, kind))


def wants_of(reads: Sequence[Reads]) -> Wants:
    """Returns what a group of decisions has announced."""
    return Wants(*({name for each in reads for name in getattr(each, kind)} for kind in ("ids", "keys", "visitors")))


class HeldRow(NamedTuple):
    """A held push. `seq`: None while it is not written yet. `body`: a track as JSON."""

    seq: int | None
    id: str
    body: bytes
    since: float


@dataclass(slots=True)
class Known:
    """The part of the store that has been read. A name that was read and not found maps to None, or to empty facts.

    `now`: the store's clock (Unix seconds).
    """

    site_key: bytes
    now: float = 0.0
    unvouched_bytes: int = 0
    seen: dict[str, Seen | None] = field(default_factory=dict)
    lanes: dict[str, LaneFacts | None] = field(default_factory=dict)
    aliases: dict[str, Alias | None] = field(default_factory=dict)
    erased: dict[str, float | None] = field(default_factory=dict)
    visitors: dict[str, VisitorFacts] = field(default_factory=dict)
    held: dict[str, list[HeldRow]] = field(default_factory=dict)
    schedules: dict[str, float] = field(default_factory=dict)

    def forget(self) -> None:
        for names in (self.seen, self.lanes, self.aliases, self.erased, self.visitors, self.held, self.schedules):
            names.clear()


@dataclass(slots=True)
class LaneChange:
    """What a group adds to a lane: `gained` pushes, whose bodies have so many `bytes`.

    `put_off`: if nothing waits in the lane yet, it waits for its turn, as a sign-up. `sign_ups`: clients that typed the address, by each of which
    a lane that is put off may have its turn. `vouched`: something was added that ends that, and makes it a lane of somebody known.
    """

    gained: int = 0
    bytes: int = 0
    put_off: bool = False
    sign_ups: set[str] = field(default_factory=set)
    vouched: bool = False
    verify: bool = False


@dataclass(slots=True)
class VisitorChange:
    """What a group changes about a visitor. `person`: its new lane key, None: stays as it is.

    The row's time is that of the identification, so a change of `shown_by` alone leaves it as it is.
    """

    retired: bool = False
    identified: bool = False
    person: str | None = None
    shown_by: str | None = None


PushRow = tuple[str, str, str, int, str, bytes, float, int]
"""Lane key, id, address, trust, kind, body, since, increments (0 or 1): a plain tuple of plain types, which drivers bind fastest."""


@dataclass(slots=True)
class Writes:
    """Rows to write, by table: `lanes` by key, `visitors` and new `held` rows by visitor id, `unheld` rows by seq."""

    lanes: dict[str, LaneChange] = field(default_factory=dict)
    pushes: list[PushRow] = field(default_factory=list)
    visitors: dict[str, VisitorChange] = field(default_factory=dict)
    held: dict[str, list[HeldRow]] = field(default_factory=dict)
    unheld: set[int] = field(default_factory=set)
    ended_aliases: set[str] = field(default_factory=set)
    remembered: list[Remember] = field(default_factory=list)
    not_offered: Counter[tuple[str, str]] = field(default_factory=Counter)  # by setting and name
    schedules: dict[Schedule, float] = field(default_factory=dict)
