"""Advisory locks of the PostgreSQL outbox: on what may have no row yet, and on what must not happen twice at once.

They last until the transaction ends, which is all that a pooler allows.
"""

from collections.abc import Iterable
from zlib import crc32

from proxy.store.postgres.database import Query, columns

# The first half of a lock's name, so that locks of other programs in the database are not met by chance.
VISITOR, PERSON, SCHEDULE, GATE, SWEEP, SCHEMA = range(0x73637100, 0x73637106)

Lock = tuple[int, str]  # its class, and whom it is about


def lock(locks: Iterable[Lock]) -> Query:
    """Takes all of them. It waits, so a transaction does this once, before it reads; sorted, so that no two wait for each other."""
    return _query("lock", locks)


def try_lock(locks: Iterable[Lock]) -> Query:
    """Takes those that are free, without waiting; the one row says whether all were."""
    return _query("try_lock", locks)


def share_lock(name: Lock) -> Query:
    """Takes a lock that others may share, and nobody may have alone."""
    return _query("share_lock", (name,))


def _query(query: str, locks: Iterable[Lock]) -> Query:
    # Two names with the same sum share a lock, which harms nobody.
    numbers = sorted({(kind, crc32(name.encode("utf-8", "replace")) - (1 << 31)) for kind, name in locks})
    return query, columns("classes keys", numbers)
