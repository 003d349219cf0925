"""Counts the acknowledged pushes that a failover or a restore has lost, and records the loss for the operator.

The first node that sees a timeline of the database adds a row for it, so a promoted standby is recognised even if no node was running.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from proxy.errors import StoreUnavailable
from proxy.store.postgres.database import Database, Transaction

_SHOWN_AGE = timedelta(days=7)  # of a loss, in `status`
_ADVICE = "A failover to a standby that synchronous_standby_names lists loses nothing."

log = logging.getLogger("proxy.store")


class _Finding(NamedTuple):
    lost: list[str]
    is_new: bool  # no node has seen this timeline before
    is_first: bool  # no node has seen any timeline before


async def note_move(database: Database) -> None:
    """Looks for lost pushes once the server has changed, and logs the result. If the database is unavailable, the next call retries."""
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
    what = f"The database server has changed, or went back to an earlier state (timeline {timeline})"
    if lost:
        log.error(
            "%s: %d of the last %d pushes that this process acknowledged are lost. %s", what, lost, expected, _ADVICE
        )
    elif expected:
        log.warning("%s. It has the last %d pushes that this process acknowledged", what, expected)
    else:
        log.warning("%s. This process has acknowledged no push lately that it could look for", what)


def problems_of(timelines: Sequence[tuple[Any, ...]], now: float) -> list[str]:
    """Returns a sentence for each recent loss. `timelines`: the rows of the query `timelines`."""
    since = now - _SHOWN_AGE.total_seconds()
    return [
        f"On {datetime.fromtimestamp(at, UTC):%Y-%m-%d at %H:%M} UTC the database server had changed, or gone back to an earlier state "
        f"(timeline {timeline}): at least {lost:,} acknowledged pushes are lost. {_ADVICE}"
        for timeline, at, lost in timelines
        if lost and at > since
    ]
