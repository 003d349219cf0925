"""Decides which consecutive pushes of a lane may travel as one request.

Pure. Pushes are merged only if the contact, and the tag automations started on the way, come out the same as if they were
sent one by one:

- tracks, while no tag stands on both sides: a tag added and then removed is two events, and stays two requests;
- identifies, if none has an increment (`++n`) or a new address; later values win, tags are united;
- never an identify with a track, and never across another spelling of the address or another trust.

SendX does not document how it treats upper and lower case in names, so names that differ only in case are taken for a
conflict. Order never changes: the groups, one after the other, hold the pushes as they came.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from proxy.core.calls import Attributes, Track
from proxy.core.visitors import Trust

MAX_TAGS = 100  # in one merged request


class Sendable(Protocol):
    """A push, as far as this module has to know it."""

    @property
    def address(self) -> str: ...
    @property
    def trust(self) -> Trust: ...
    @property
    def body(self) -> Attributes | Track: ...


P = TypeVar("P", bound=Sendable)


@dataclass(frozen=True, slots=True)
class Group(Generic[P]):
    """One request: `body` stands for all `members`, in their order."""

    members: tuple[P, ...]
    body: Attributes | Track

    @property
    def address(self) -> str:
        return self.members[0].address

    @property
    def trust(self) -> Trust:
        return self.members[0].trust


def groups_of(pushes: Sequence[P]) -> list[Group[P]]:
    """Returns the requests for a lane's pushes, in order; as few as this module's rules allow."""
    groups: list[Group[P]] = []
    for push in pushes:
        extended = _extended(groups[-1], push) if groups else None
        if extended is None:
            groups.append(Group((push,), push.body))
        else:
            groups[-1] = extended
    return groups


def singly(group: Group[P]) -> list[Group[P]]:
    return [Group((push,), push.body) for push in group.members]


def _extended(group: Group[P], push: P) -> Group[P] | None:
    if (group.address, group.trust) != (push.address, push.trust):
        return None
    body: Attributes | Track | None = None
    if isinstance(group.body, Track) and isinstance(push.body, Track):
        body = _merged_tracks(group.body, push.body)
    elif isinstance(group.body, Attributes) and isinstance(push.body, Attributes):
        body = _merged_identifies(group.body, push.body)
    return None if body is None else Group((*group.members, push), body)


def _merged_tracks(first: Track, second: Track) -> Track | None:
    added = _united(first.add_tags, second.add_tags)
    removed = _united(first.remove_tags, second.remove_tags)
    if len(added) + len(removed) > MAX_TAGS or _folded(added) & _folded(removed):
        return None
    return Track(added, removed)


def _merged_identifies(first: Attributes, second: Attributes) -> Attributes | None:
    if any(one.increments or one.new_email is not None for one in (first, second)):
        return None
    if first.extra != second.extra:  # unknown keys: how two of them combine is not documented
        return None
    tags = _united(first.tags, second.tags)
    custom_fields = first.custom_fields | second.custom_fields
    if len(tags) > MAX_TAGS or len(_folded(custom_fields)) < len(custom_fields):
        return None
    return Attributes(first.fields | second.fields, custom_fields, tags, extra=second.extra)


def _united(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _folded(names: Iterable[str]) -> set[str]:
    return {name.strip().casefold() for name in names}
