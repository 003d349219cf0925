"""Decides how many lanes of strangers to claim although vouched lanes wait: an eighth of what is sent, with any number of senders. Pure."""

from collections.abc import Iterable

import msgspec

from proxy.store.records import Lease

STRANGERS_PER_LANE = 2  # pushes in one of their leases: if they have all senders, a vouched push waits for no more
_PART = 8


class Credit(msgspec.Struct, frozen=True):
    """What strangers may send although vouched lanes wait. `earned`: vouched pushes for which they have had nothing yet.

    Saved up is no more than may be out at once: where one sender has to do for all, two lanes of strangers do not follow one another.
    """

    earned: int = 0

    def least(self, limit: int, busy: int) -> int:
        """Returns how many lanes to claim. `limit`: requests that are allowed at the same time; `busy`: lanes of strangers that are out already."""
        return max(0, min(self.earned // _price(STRANGERS_PER_LANE), _most(limit) - busy))

    def after(self, leases: Iterable[Lease], limit: int) -> "Credit":
        """Returns what is left once these have been claimed; never less than nothing, as strangers owe nothing for senders that were free."""
        earned = self.earned
        for lease in leases:
            earned += -_price(len(lease.pushes)) if lease.stranger else len(lease.pushes)
        return Credit(min(max(earned, 0), _price(STRANGERS_PER_LANE * _most(limit))))


def _price(pushes: int) -> int:
    """Returns how many vouched pushes earn strangers so many of theirs."""
    return pushes * (_PART - 1)


def _most(limit: int) -> int:
    """Returns how many senders strangers may keep busy although vouched lanes wait."""
    return max(1, limit // _PART)
