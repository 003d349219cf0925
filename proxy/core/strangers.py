"""What one network may bring that nobody has vouched for: its share of the bytes, and of the pushes for one address.

Only what the network itself has done counts, and never what became of it: so that no answer depends on who an address belongs to, or on what
others typed. Kept in memory, in each process; what is kept of an address is a hash.
"""

from collections.abc import Iterable, Sequence
from math import ceil, exp
from typing import Generic, TypeVar

from proxy.core.calls import Attributes
from proxy.core.networks import networks_of

V = TypeVar("V")

MOST_REMEMBERED = 100_000  # networks, or addresses typed by clients
PUSH_BYTES = 700  # what a push of a stranger costs beside its body: its rows and its id, in tables and indexes
_PART = 8  # of what is free, one part in so many is a network's
_SMALL_LANE = 32  # pushes that any network may have in a lane, if a lane has room for them
_STEP = (
    0.025  # seconds: an answer about a typed address comes one to two of them after its request, if that has few pushes
)
_FEW = 10
_DAY, _HOUR = 86_400.0, 3_600.0  # seconds: after so long, 37 % of what was brought still counts


class Recent(Generic[V]):
    """A dictionary that forgets what was used least recently, once it has `most` entries."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[object, V] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: object) -> V | None:
        return self._entries.get(key)

    def put(self, key: object, value: V) -> None:
        entries = self._entries
        entries.pop(key, None)
        entries[key] = value
        if len(entries) > self._most:
            del entries[next(iter(entries))]


class Charges:
    """Amounts that fade: each counts for less by a factor of e after `fade_seconds`."""

    def __init__(self, fade_seconds: float, most: int = MOST_REMEMBERED) -> None:
        self._fade_seconds = fade_seconds
        self._amounts = Recent[tuple[float, float]](most)

    def of(self, key: object, now: float) -> float:
        found = self._amounts.get(key)
        return found[0] * exp((found[1] - now) / self._fade_seconds) if found is not None else 0.0

    def add(self, key: object, amount: float, now: float) -> None:
        self._amounts.put(key, (self.of(key, now) + amount, now))


def within_share(charged: Sequence[float], room: float) -> bool:
    """Returns whether networks within one another, the widest first, have brought less than they may. `room`: what the widest may bring.

    Each may bring half of what the others of the one around it leave.
    """
    for own, inner in zip(charged, [*charged[1:], 0.0], strict=True):
        if own >= room:
            return False
        room = (room - own + inner) / 2
    return True


def allowed_bytes(budget: float, used: float, headroom: float) -> float:
    """Returns how many bytes strangers may have in the store: no more than a quarter of the disk that is free above its floor.

    `used`: by them already; `headroom`: free above the floor, infinite if unknown.
    """
    return min(budget, (max(headroom, 0.0) + used) / 4)


def silence(elapsed: float, chance: float, pushes: int = 1) -> float:
    """Returns how many seconds to wait with an answer about a typed address, `elapsed` after its request of so many pushes had come.

    A newcomer costs the store more than a customer, and somebody who was erased less. So that no clock tells which it is, an answer comes at a moment
    of `chance` (from 0 to 1) within a step that is long against such differences. Without chance the rounding of timers to milliseconds would tell.
    """
    step = _STEP * (1 + pushes // _FEW)
    return (ceil(elapsed / step) + chance) * step - elapsed


class Strangers:
    """Keeps what each network has brought lately. `lane_room`: pushes of strangers that may wait for one address. `now`: monotonic seconds."""

    def __init__(self, lane_room: int) -> None:
        self._lane_share = max(lane_room // _PART, min(lane_room, _SMALL_LANE))
        self._bytes = Charges(_DAY)
        self._pushes = Charges(_HOUR)
        self._typed = Recent[int](MOST_REMEMBERED)

    def has_used_up(self, client: str, free_bytes: float, now: float) -> bool:
        """Returns whether a network of this client has brought its share. `free_bytes`: what all strangers together may still bring."""
        charged = [self._bytes.of(network, now) for network in networks_of(client)]
        return charged[0] > 0.0 and not within_share(charged, (free_bytes + charged[0]) / _PART)

    def full_lanes(self, client: str, keys: Iterable[str], now: float) -> frozenset[str]:
        """Returns those of the lane keys for which this client, or its widest network, has brought its share of pushes."""
        ends, share = _ends(networks_of(client)), self._lane_share
        if share <= _SMALL_LANE:
            ends = ends[:1]
        return frozenset(
            key for key in keys if not within_share([self._pushes.of(hash((each, key)), now) for each in ends], share)
        )

    def repeats(self, client: str, key: str, said: Attributes) -> bool:
        """Returns whether what this client says of the address is what it said last, so that it adds nothing."""
        return self._typed.get(hash((client, key))) == hash(repr(said)) and not said.increments

    def note(self, client: str, key: str, said: Attributes) -> None:
        """Remembers what was taken."""
        self._typed.put(hash((client, key)), hash(repr(said)))

    def charge(self, client: str, keys: Sequence[str], body_bytes: float, now: float) -> None:
        """Counts what was taken: a lane key for each push, empty for one that is held; `body_bytes` together."""
        if not keys:
            return
        networks = networks_of(client)
        for network in networks:
            self._bytes.add(network, body_bytes + PUSH_BYTES * len(keys), now)
        for key in filter(None, keys):
            for each in _ends(networks):
                self._pushes.add(hash((each, key)), 1.0, now)


def _ends(networks: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the widest and the client itself, once if they are the same."""
    return (networks[0], networks[-1]) if len(networks) > 1 else networks
