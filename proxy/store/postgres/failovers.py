"""Finds out, after a failover or a restore, what is missing of what was acknowledged, and keeps it for the operator.

Each timeline of the database has a row in it, which the first node that sees it adds: a promoted standby is known as one, even if no node
ran meanwhile.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from proxy.errors import StoreUnavailable
from proxy.store.postgres.database import Database, Transaction

_SHOWN_AGE = timedelta(days=7)  # of a loss, in `status`
_ADVICE = "A standby that is named in synchronous_standby_names is waited for, and a failover to it loses nothing."

log = logging.getLogger("proxy.store")


class _Finding(NamedTuple):
    lost: list[str]
    is_new: bool  # nobody has seen this timeline before
    is_first: bool  # of all that were seen


async def note_move(database: Database) -> None:
    """Looks for what is missing once the server has moved, and says so. While the database takes nothing, the next call does it."""
    sight = database.sight
    if not sight.moved:
        return
    sight.moved = False
    timeline, expected, is_start = sight.timeline, sight.acknowledged(), sight.moves == 1

    async def find(transaction: Transaction) -> _Finding:
        missing, known = await transaction.run(("missing", {"ids": expected}), ("timelines", {}))
        lost = [push for (push,) in missing.rows]
        seen = {row[0] for row in known.rows}
        await transaction.commit(("note_timeline", {"timeline": timeline, "lost": len(lost)}))
        return _Finding(lost, timeline not in seen, not seen)

    try:
        found = await database.run(find)
    except StoreUnavailable:
        sight.moved = True
        return
    sight.forget(found.lost)
    if found.lost or not is_start or (found.is_new and not found.is_first):
        _tell(timeline, len(found.lost), len(expected))


def _tell(timeline: int | None, lost: int, expected: int) -> None:
    what = f"The database is another server by now, or an earlier state of it (timeline {timeline})"
    if lost:
        log.error(
            "%s: of the last %d pushes that were acknowledged here, %d are not in it. %s", what, expected, lost, _ADVICE
        )
    elif expected:
        log.warning("%s. The last %d pushes that were acknowledged here are in it", what, expected)
    else:
        log.warning("%s. Nothing was acknowledged here lately that could be looked for", what)


def problems_of(timelines: Sequence[tuple[Any, ...]], now: float) -> list[str]:
    """Returns a sentence for each loss that is new enough. `timelines`: the rows of the query of that name."""
    since = now - _SHOWN_AGE.total_seconds()
    return [
        f"On {datetime.fromtimestamp(at, UTC):%Y-%m-%d at %H:%M} UTC the database was found to be another server, or an earlier state "
        f"(timeline {timeline}): at least {lost:,} acknowledged pushes are not in it. {_ADVICE}"
        for timeline, at, lost in timelines
        if lost and at > since
    ]
