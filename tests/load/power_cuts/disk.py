"""Models the disk under a store: its possible contents after a power cut at any moment.

What is modelled, for each file by itself:

- What was written before the file's last sync is there. A sync of one file says nothing of another.
- Of what was written since, any sector of 512 bytes may be there or not, whatever became of its neighbours and in whatever order: it holds
  what it held after any of the writes to it since the sync, or before them. So a write can be torn at any sector. Within a sector nothing is
  torn, which SQLite relies on as well (SQLITE_IOCAP_POWERSAFE_OVERWRITE, its default).
- The size is metadata, which a file system keeps in order: it is what it was after any of the changes since the sync. A file that has
  grown without its content holds zeros there or, as without ext4's data=ordered, anything.
- The names of the directory change in order, each by itself: since the directory's last sync, a file that was made may not be there
  yet, and one that was removed may be back. To sync a file does not sync its name, though ext4 does so. SQLite syncs the directory with
  the first sync of a log or a rollback journal that it has made, and with that also the name of the database (unixSync in os_unix.c,
  UNIXFILE_DIRSYNC); it does not when it removes them.

`-shm`, the index of the log, is memory that only happens to have a name: it is gone or, as `cuts` adds, full of anything.

What is not modelled: a disk that acknowledges syncs it has not made, or loses what it had synced; and a second cut while a store is opened
after the first, other than after a kill.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise

from tests.load.power_cuts.record import AnyEvent, Create, Remove, Resize, Sync, SyncDirectory, Write

SECTOR = 512

Image = Mapping[str, bytes]  # by name


class Way(StrEnum):
    """The part of the unsynced writes that has reached the disk."""

    NONE = "nothing"
    ALL = "everything"
    PART = "a random part"
    TORN = "the last write torn"


class File:
    """One file, whatever its name. `pending`: what has changed since its last sync."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[Write | Resize] = []

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def current(self) -> bytes:
        found = bytearray(self.durable)
        for change in self.pending:
            _apply(found, change)
        return bytes(found)

    def after_cut(self, way: Way, rng: random.Random) -> bytes:
        """Returns possible contents. TORN: only the last change may be there in part."""
        if way is Way.NONE or not self.pending:
            return bytes(self.durable)
        if way is Way.ALL:
            return self.current()
        sizes = list(self._sizes())
        share = rng.choice((0.1, 0.5, 0.9))
        kept = self._kept_in_part(rng, share) if way is Way.PART else self._kept_torn(rng)
        resized = rng.randint(0 if way is Way.PART else len(self.pending) - 1, len(self.pending))
        return self._built(sizes[resized], resized, kept, rng)

    def _sizes(self) -> Iterator[int]:
        """Yields the size as it was synced, and after each change."""
        size = len(self.durable)
        yield size
        for change in self.pending:
            size = change.size if isinstance(change, Resize) else max(size, change.offset + len(change.data))
            yield size

    def _touched(self) -> dict[int, list[int]]:
        """Returns the numbers of the writes to each sector, in order."""
        found: dict[int, list[int]] = {}
        for number, change in enumerate(self.pending):
            if isinstance(change, Write):
                for sector in _sectors(change):
                    found.setdefault(sector, []).append(number)
        return found

    def _kept_in_part(self, rng: random.Random, share: float) -> dict[int, int]:
        """Returns, by sector, the number of the last change that it holds; -1 for none. `share`: of the sectors that are up to date."""
        return {
            sector: writes[-1] if rng.random() < share else rng.choice((-1, *writes[:-1]))
            for sector, writes in self._touched().items()
        }

    def _kept_torn(self, rng: random.Random) -> dict[int, int]:
        last = len(self.pending) - 1
        change = self.pending[last]
        sectors = list(_sectors(change)) if isinstance(change, Write) else []
        first = rng.randint(0, len(sectors)) if rng.random() < 0.5 else None
        arrived = {sector for sector in sectors[:first] if first is not None or rng.random() < 0.5}
        return {
            sector: last if sector in arrived else max((each for each in writes if each != last), default=-1)
            for sector, writes in self._touched().items()
        }

    def _built(self, size: int, resized: int, kept: Mapping[int, int], rng: random.Random) -> bytes:
        found = bytearray(self.durable)
        for number, change in enumerate(self.pending):
            if isinstance(change, Write):
                for sector, start, end in _pieces(change):
                    if number <= kept[sector]:
                        _put(found, start, change.data[start - change.offset : end - change.offset])
            elif number < resized:
                _apply(found, change)
        if len(found) < size:
            found.extend(bytes(size - len(found)))
        if rng.random() < 0.25:
            new = -(-len(self.durable) // SECTOR)
            for sector in (each for each, last in kept.items() if each >= new and last < 0):
                found[sector * SECTOR : (sector + 1) * SECTOR] = rng.randbytes(SECTOR)
        return bytes(found[:size])


class Disk:
    """A directory and its files. `apply` events in order; the possible contents can be read at any moment."""

    def __init__(self) -> None:
        self._now: dict[str, File] = {}
        self._durable: dict[str, File] = {}
        self._pending: list[tuple[str, File | None]] = []  # what has become of names since the directory's last sync

    def apply(self, event: AnyEvent) -> None:
        match event:
            case Write() | Resize():
                self._now[event.file].pending.append(event)
            case Sync():
                self._now[event.file].sync()
            case Create():
                self._name(event.file, File())
            case Remove():
                self._name(event.file, None)
            case SyncDirectory():
                self._durable = dict(self._now)
                self._pending.clear()
            case _:
                pass  # an answer

    def _name(self, name: str, file: File | None) -> None:
        if file is None:
            del self._now[name]
        else:
            self._now[name] = file
        self._pending.append((name, file))

    @property
    def is_synced(self) -> bool:
        return not self._pending and not any(file.pending for file in self._now.values())

    def current(self) -> Image:
        return {name: file.current() for name, file in self._now.items()}

    def after_cut(self, way: Way, rng: random.Random, torn: str | None = None) -> Image:
        """Returns possible files. `torn`: with TORN, the file of the last write; all other writes have arrived."""
        return {
            name: file.after_cut(_way_of(name, way, torn, rng), rng) for name, file in self._names(way, rng).items()
        }

    def _names(self, way: Way, rng: random.Random) -> Mapping[str, File]:
        if way is Way.NONE:
            return self._durable
        if way is not Way.PART:
            return self._now
        found = dict(self._durable)
        for name in dict.fromkeys(name for name, _ in self._pending):
            states = [self._durable.get(name), *(file for each, file in self._pending if each == name)]
            chosen = rng.choice(states)
            found.pop(name, None)
            if chosen is not None:
                found[name] = chosen
        return found


def _way_of(name: str, way: Way, torn: str | None, rng: random.Random) -> Way:
    if way is Way.PART:  # one file may be far behind another
        return rng.choice((Way.NONE, Way.ALL, Way.PART, Way.PART, Way.PART))
    return Way.ALL if way is Way.TORN and name != torn else way


def sectors_of(change: Write) -> int:
    return len(_sectors(change))


def _sectors(change: Write) -> range:
    return range(change.offset // SECTOR, -(-(change.offset + len(change.data)) // SECTOR))


def _pieces(change: Write) -> Iterator[tuple[int, int, int]]:
    """Yields each sector of a write, and from where to where in the file it is written."""
    end = change.offset + len(change.data)
    sectors = _sectors(change)
    bounds: Sequence[int] = [change.offset, *(sector * SECTOR for sector in sectors[1:]), end]
    yield from ((sector, *bound) for sector, bound in zip(sectors, pairwise(bounds), strict=True))


def _apply(content: bytearray, change: Write | Resize) -> None:
    if isinstance(change, Write):
        _put(content, change.offset, change.data)
    elif change.size < len(content):
        del content[change.size :]
    else:
        content.extend(bytes(change.size - len(content)))


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data
