"""Dead letters and erasure as the operator's commands: over the outbox, in steps, each saying how far it has come.

They are the same where a server runs, which answers them on its control socket, and where none does: then the command line runs them on
the store itself. Nothing is logged here, because what these commands take and show has addresses in it; and nothing is asked back: who may
do what, and whether it was meant, is the command line's business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from proxy.core.calls import Attributes, Kind, Track
from proxy.core.emails import lane_key
from proxy.errors import StoreRefused
from proxy.ops.control import Command
from proxy.store.outbox import Outbox
from proxy.store.records import DeadFilter, DeadLetter, DeadReason, Erased

STEP = 500  # dead letters in one transaction: pushes that come in meanwhile wait for no more than these


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters: every condition that is given holds, and none means all.

    `ids`: push ids; `contact`: an address, in any case; `before`: died before then (Unix seconds). A field that is not known is refused,
    because a server that overlooked a condition would discard too much.
    """

    ids: tuple[str, ...] = ()
    reason: DeadReason | None = None
    contact: str | None = None
    before: float | None = None


class Letter(msgspec.Struct, frozen=True):
    """A dead letter as it is shown and exported. `at`: when it died; `since`: when it was acknowledged; both ISO 8601, UTC.

    `push` is the call in SendX's words: `["identify", {"email": …}]` or `["track", {"addTags": […]}]`, which is for `contact`.
    """

    id: str
    contact: str
    reason: DeadReason
    at: str
    push: tuple[Kind, Mapping[str, Any]]
    kind: Kind
    detail: str
    attempts: int
    since: str


class Advance(msgspec.Struct, frozen=True, omit_defaults=True):
    """`done` of `total` dead letters; `letter`: the one that was just done, where letters were asked for."""

    done: int
    total: int
    letter: Letter | None = None


class _Asked(msgspec.Struct, frozen=True):
    selection: Selection = Selection()
    letters: bool = False


_Act = Callable[[DeadFilter, int], Awaitable[int]]


class Letters:
    """The commands, each an async generator over its arguments: `selection` (a `Selection`), and with replay and discard `letters`.

    Raises `StoreRefused` for arguments that it does not understand and for ids that no dead letter has.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.commands: Mapping[str, Command] = {
            "dead_list": self.dead_list,
            "dead_count": self.dead_count,
            "dead_replay": self.dead_replay,
            "dead_discard": self.dead_discard,
            "erase": self.erase,
        }

    async def dead_list(self, arguments: Mapping[str, Any]) -> AsyncIterator[Letter]:
        """Each that matches, in the order of their pushes."""
        async for page in self._pages(_asked(arguments).selection):
            for dead in page:
                yield _letter(dead)

    async def dead_count(self, arguments: Mapping[str, Any]) -> AsyncIterator[Advance]:
        """How many match: the last `total`."""
        total = 0
        async for page in self._pages(_asked(arguments).selection):
            total += len(page)
            yield Advance(0, total)
        yield Advance(0, total)

    async def dead_replay(self, arguments: Mapping[str, Any]) -> AsyncIterator[Advance]:
        """Put those that match at the tail of their lanes, as if never tried."""
        async for progress in self._act(_asked(arguments), self._outbox.replay):
            yield progress

    async def dead_discard(self, arguments: Mapping[str, Any]) -> AsyncIterator[Advance]:
        """Drop those that match."""
        async for progress in self._act(_asked(arguments), self._outbox.discard):
            yield progress

    async def erase(self, arguments: Mapping[str, Any]) -> AsyncIterator[Erased]:
        """Forget the person with the address `contact`; one answer."""
        contact = arguments.get("contact")
        if not isinstance(contact, str):
            raise _not_understood()
        yield await self._outbox.erase(lane_key(contact))

    async def _act(self, asked: _Asked, act: _Act) -> AsyncIterator[Advance]:
        """Count first, then act on what was counted: what is replayed may die again behind it and must not be replayed for ever."""
        total, last, missing = 0, 0, set(asked.selection.ids)
        async for page in self._pages(asked.selection):
            total += len(page)
            last = max([last, *(dead.seq for dead in page)])
            missing -= {dead.id for dead in page}
            yield Advance(0, total)
        if missing:
            raise _unknown(missing)
        done = 0
        yield Advance(done, total)
        async for page in self._pages(asked.selection, last):
            before, done = done, done + await act(DeadFilter(seqs=tuple(dead.seq for dead in page)), STEP)
            if asked.letters:
                for number, dead in enumerate(page, before + 1):
                    yield Advance(number, total, _letter(dead))
            yield Advance(done, total)

    async def _pages(self, selection: Selection, last: int | None = None) -> AsyncIterator[Sequence[DeadLetter]]:
        """Those that match, up to the one numbered `last`, in pages that are never empty."""
        contact = lane_key(selection.contact) if selection.contact is not None else None
        matching = DeadFilter(ids=selection.ids, reason=selection.reason, contact=contact, before=selection.before)
        after = 0
        while (last is None or after < last) and (page := await self._outbox.dead_letters(matching, after, STEP)):
            after = page[-1].seq
            chosen = page if last is None else [dead for dead in page if dead.seq <= last]
            if chosen:
                yield chosen


def _asked(arguments: Mapping[str, Any]) -> _Asked:
    try:
        return msgspec.convert(arguments, _Asked)
    except msgspec.ValidationError:
        raise _not_understood() from None


def _not_understood() -> StoreRefused:
    return StoreRefused("The running server does not understand this command: it is of another version.")


def _unknown(ids: set[str]) -> StoreRefused:
    named = ", ".join(ascii(push_id[:64]) for push_id in sorted(ids)[:3])
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return StoreRefused(
        f"No dead letter has the id {named}{more}, and nothing was done: scq-proxy dead list shows the ids."
    )


def _letter(dead: DeadLetter) -> Letter:
    return Letter(
        dead.id,
        dead.address,
        dead.reason,
        _utc(dead.at),
        (dead.kind, _argument(dead.address, dead.body)),
        dead.kind,
        dead.detail,
        dead.attempts,
        _utc(dead.since),
    )


def _argument(address: str, body: Attributes | Track) -> Mapping[str, Any]:
    """The call's object, in SendX's words (source: SendX docs); a track names nobody, as on a page."""
    argument: dict[str, Any] = msgspec.to_builtins(body)
    if isinstance(body, Track):
        return argument or {"addTags": []}
    extra: dict[str, Any] = argument.pop("extra", {})
    fields: dict[str, Any] = argument.pop("fields", {})
    return {"email": address} | extra | fields | argument | {"email": address}


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
