"""Sign-ups that wait for their turn as the operator's commands: who typed them, from where, and away with a flood of them.

Like those on dead letters they work over the outbox, in steps, and are the same with a server and without one. What they show has addresses in
it; the line for the audit has neither an e-mail address nor the address of a single client.
"""

from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import msgspec

from proxy.core.networks import networks_of
from proxy.ops.audit import audit, pseudonym, utc
from proxy.ops.control import Command, Handlers
from proxy.store.outbox import Outbox
from proxy.store.records import SignUp, SignUpFilter

STEP = 500  # lanes dropped in one transaction: pushes that come in meanwhile wait for no more than these
_ONE_CLIENT = {4: 32, 6: 64}  # prefix length, by IP version


class Selection(SignUpFilter, frozen=True, forbid_unknown_fields=True):
    """Which sign-ups: every condition that is given holds, and none means all."""


class Typed(msgspec.Struct, frozen=True):
    """A sign-up as it is shown. `since`: ISO 8601, UTC; `pushes`: of its lane. An address that several clients typed is there for each."""

    address: str
    client: str
    since: str
    pushes: int


class Origin(msgspec.Struct, frozen=True):
    """Where sign-ups come from: how many wait of this network, typed by how many clients, the oldest since when (ISO 8601, UTC)."""

    network: str
    sign_ups: int
    clients: int
    since: str


class Dropping(msgspec.Struct, frozen=True):
    """`done` of `total` addresses."""

    done: int
    total: int


class ListSignUps(Command, frozen=True):
    """Answered by each `Typed` that matches, in order."""

    selection: Selection


class ListOrigins(Command, frozen=True):
    """Answered by an `Origin` for each of the widest networks, within that of the selection if it has one; the one with the most first."""

    selection: Selection


class CountSignUps(Command, frozen=True):
    """Answered by how many addresses match: the last `total` of a `Dropping`."""

    selection: Selection


class DropSignUps(Command, frozen=True):
    """Drops those that match with all that waits for their addresses. `most`: no more addresses than that. Answered by `Dropping`."""

    selection: Selection
    most: int | None = None


class SignUpCommands:
    """Carries the commands out on an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.handlers: Handlers = {
            ListSignUps: self.list_sign_ups,
            ListOrigins: self.list_origins,
            CountSignUps: self.count,
            DropSignUps: self.drop,
        }

    async def list_sign_ups(self, command: ListSignUps) -> AsyncIterator[Typed]:
        async for page in self._pages(command.selection):
            for each in page:
                yield Typed(each.address, each.client, utc(each.at), each.pushes)

    async def list_origins(self, command: ListOrigins) -> AsyncIterator[Origin]:
        clients: dict[str, dict[str, tuple[int, float]]] = {}  # of each network: number, and the oldest
        async for page in self._pages(command.selection):
            for each in page:
                within = clients.setdefault(_origin(each.client, command.selection.network), {})
                number, oldest = within.get(each.client, (0, each.at))
                within[each.client] = number + 1, min(oldest, each.at)
        numbers = {network: sum(number for number, _ in within.values()) for network, within in clients.items()}
        for network in sorted(clients, key=lambda name: (-numbers[name], name)):
            within = clients[network]
            yield Origin(network, numbers[network], len(within), utc(min(oldest for _, oldest in within.values())))

    async def count(self, command: CountSignUps) -> AsyncIterator[Dropping]:
        lanes = set[int]()
        async for page in self._pages(command.selection):
            lanes.update(each.lane for each in page)
            yield Dropping(0, len(lanes))
        yield Dropping(0, len(lanes))

    async def drop(self, command: DropSignUps) -> AsyncIterator[Dropping]:
        """Counts first, then drops as many: a flood that goes on meanwhile must not keep it busy for ever."""
        total = done = 0
        async for counted in self.count(CountSignUps(command.selection)):
            total = counted.total if command.most is None else min(counted.total, command.most)
            yield Dropping(0, total)
        try:
            while done < total:
                step = await self._outbox.drop_sign_ups(command.selection, min(STEP, total - done))
                if not step:
                    break  # their turn came meanwhile
                done += step
                yield Dropping(done, total)
        finally:  # also when the client disconnects before the end
            self._audit(command.selection, done)

    def _audit(self, selection: Selection, done: int) -> None:
        chosen = {
            "network": self._named(selection.network) if selection.network is not None else None,
            "since": utc(selection.after) if selection.after is not None else None,
            "before": utc(selection.before) if selection.before is not None else None,
            "pattern": self._hidden(selection.pattern) if selection.pattern is not None else None,
        }
        given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        which = ", ".join(f"{name} {value}" for name, value in given.items()) or "all"
        audit("signups-drop", f"Sign-ups: drop of {done} ({which})", sign_ups=done, **given)

    def _named(self, network: str) -> str:
        parsed = _parsed(network)
        return network if parsed is not None and not _is_one_client(parsed) else self._hidden(network)

    def _hidden(self, text: str) -> str:
        return pseudonym(text.lower(), self._outbox.site_key)

    async def _pages(self, selection: Selection) -> AsyncIterator[Sequence[SignUp]]:
        after = 0
        while page := await self._outbox.sign_ups(selection, after, STEP):
            after = page[-1].seq
            yield page


def _origin(client: str, around: str | None) -> str:
    """Returns the widest network of a client, of those within the one that was asked for."""
    outer = _parsed(around) if around is not None else None
    if outer is None:
        return networks_of(client)[0]
    return next((name for name in networks_of(client) if _is_within(name, outer)), client)


def _is_within(name: str, outer: IPv4Network | IPv6Network) -> bool:
    inner = _parsed(name)
    return inner is not None and inner.prefixlen > outer.prefixlen


def _parsed(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None  # clients that could not be told apart


def _is_one_client(network: IPv4Network | IPv6Network) -> bool:
    return network.prefixlen >= _ONE_CLIENT[network.version]
