"""Decides how many lanes of strangers to claim although vouched lanes wait: for an eighth of the senders, with any number of them. Pure."""

from collections.abc import Iterable

import msgspec

from proxy.store.records import Lease

STRANGERS_PER_LANE = 2  # pushes in one of their leases: if they have all senders, a vouched push waits for no more
_PART = 8
_PRICE = _PART - 1  # vouched pushes that earn strangers one of theirs


class Credit(msgspec.Struct, frozen=True):
    """What strangers may send where fewer than eight lanes are sent at once. `earned`: vouched pushes for which they have had nothing yet.

    The credit is capped at one lane, so that a single sender never sends two strangers' lanes in a row.
    """

    earned: int = 0

    def least(self, lanes: int, strangers: int) -> int:
        """Returns how many lanes of strangers to claim. `lanes`: that are out or may be claimed now; `strangers`: those of theirs that are out."""
        return max(0, (lanes // _PART or self.earned // (_PRICE * STRANGERS_PER_LANE)) - strangers)

    def after(self, leases: Iterable[Lease]) -> "Credit":
        """Returns what is left once these have been claimed; never less than nothing, as strangers owe nothing for senders that were free."""
        earned = self.earned
        for lease in leases:
            earned += -_PRICE * len(lease.pushes) if lease.stranger else len(lease.pushes)
        return Credit(min(max(earned, 0), _PRICE * STRANGERS_PER_LANE))
