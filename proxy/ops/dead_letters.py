"""Dead letters and erasure as the operator's commands: over the outbox, in steps, each saying how far it has come.

They are the same where a server runs, which answers them on its control socket, and where none does: then the command line runs them on
the store itself. Every change is logged for the audit, with a keyed hash in place of the person, because the arguments and results of these
commands contain addresses. They never ask for confirmation or check permissions: the command line does.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from proxy.core.calls import Attributes, Kind, Track
from proxy.core.emails import lane_key
from proxy.errors import StoreRefused
from proxy.ops.audit import audit, pseudonym, utc
from proxy.ops.control import Command, Handlers
from proxy.ops.sign_ups import SignUpCommands
from proxy.store.outbox import Adopting, Outbox
from proxy.store.records import Adopted, DeadFilter, DeadLetter, DeadReason, Erased

STEP = 500  # dead letters in one transaction: pushes that come in meanwhile wait for no more than these


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters: every condition that is given holds, and none means all.

    `ids`: push ids; `contact`: an address, in any case; `before`: died before then (Unix seconds).
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


class ListDead(Command, frozen=True):
    """Answered by each `Letter` that matches, in the order of their pushes."""

    selection: Selection


class CountDead(Command, frozen=True):
    """Answered by how many match: the last `total` of an `Advance`."""

    selection: Selection


class ReplayDead(Command, frozen=True):
    """Puts those that match at the tail of their lanes, as if never tried. Answered by `Advance`; `letters`: with each letter."""

    selection: Selection
    letters: bool = False


class DiscardDead(Command, frozen=True):
    """Drops those that match. Answered by `Advance`; `letters`: with each letter."""

    selection: Selection
    letters: bool = False


class Erase(Command, frozen=True):
    """Forgets the person with the address `contact`. Answered by one `Erased`."""

    contact: str


class Adopt(Command, frozen=True):
    """Recovers the readable contents of a store that was set aside. Answered by `Adopted`: running totals, then the final ones."""

    file: str


class StoreCommands:
    """Carries the commands out on an outbox, those on sign-ups too. Raises `StoreRefused` for ids that no dead letter has."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.handlers: Handlers = {
            ListDead: self.list_dead,
            CountDead: self.count_dead,
            ReplayDead: self.act,
            DiscardDead: self.act,
            Erase: self.erase,
            Adopt: self.adopt,
            **SignUpCommands(outbox).handlers,
        }

    async def list_dead(self, command: ListDead) -> AsyncIterator[Letter]:
        async for page in self._pages(command.selection):
            for dead in page:
                yield _letter(dead)

    async def count_dead(self, command: CountDead) -> AsyncIterator[Advance]:
        total = 0
        async for page in self._pages(command.selection):
            total += len(page)
            yield Advance(0, total)
        yield Advance(0, total)

    async def erase(self, command: Erase) -> AsyncIterator[Erased]:
        key = lane_key(command.contact)
        erased = await self._outbox.erase(key)
        counts = msgspec.structs.asdict(erased)
        person = pseudonym(key, self._outbox.site_key)
        listed = ", ".join(f"{count} {what}" for what, count in counts.items())
        audit("erase", f"Person {person} was erased ({listed})", person=person, **counts)
        yield erased

    async def adopt(self, command: Adopt) -> AsyncIterator[Adopted]:
        if not isinstance(self._outbox, Adopting):
            raise StoreRefused("Only an SQLite store can recover a file that was set aside. Set SCQ_STORE to one.")
        async for adopted in self._outbox.adopt(Path(command.file)):
            yield adopted

    async def act(self, command: ReplayDead | DiscardDead) -> AsyncIterator[Advance]:
        """Counts first, then acts on what was counted: what is replayed may die again behind it and must not be replayed for ever."""
        act = self._outbox.replay if isinstance(command, ReplayDead) else self._outbox.discard
        total, last, missing = 0, 0, set(command.selection.ids)
        async for page in self._pages(command.selection):
            total += len(page)
            last = max([last, *(dead.seq for dead in page)])
            missing -= {dead.id for dead in page}
            yield Advance(0, total)
        if missing:
            raise _unknown(missing)
        done = 0
        yield Advance(done, total)
        try:
            async for page in self._pages(command.selection, last):
                before, done = done, done + await act(DeadFilter(seqs=tuple(dead.seq for dead in page)), STEP)
                if command.letters:
                    for number, dead in enumerate(page, before + 1):
                        yield Advance(number, total, _letter(dead))
                yield Advance(done, total)
        finally:  # also when the client disconnects before the end
            self._audit(command, done)

    def _audit(self, command: ReplayDead | DiscardDead, done: int) -> None:
        what, selection = "replay" if isinstance(command, ReplayDead) else "discard", command.selection
        chosen = {
            "reason": selection.reason,
            "ids": len(selection.ids) or None,
            "before": utc(selection.before) if selection.before is not None else None,
            "person": pseudonym(lane_key(selection.contact), self._outbox.site_key) if selection.contact else None,
        }
        given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        which = ", ".join(f"{name} {value}" for name, value in given.items()) or "all"
        audit(f"dead-{what}", f"Dead letters: {what} of {done} ({which})", letters=done, **given)

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
        utc(dead.at),
        (dead.kind, _argument(dead.address, dead.body)),
        dead.kind,
        dead.detail,
        dead.attempts,
        utc(dead.since),
    )


def _argument(address: str, body: Attributes | Track) -> Mapping[str, Any]:
    """The call's object, in SendX's words (source: SendX docs); a track names nobody, as on a page."""
    argument: dict[str, Any] = msgspec.to_builtins(body)
    if isinstance(body, Track):
        return argument or {"addTags": []}
    extra: dict[str, Any] = argument.pop("extra", {})
    fields: dict[str, Any] = argument.pop("fields", {})
    return {"email": address} | extra | fields | argument | {"email": address}
