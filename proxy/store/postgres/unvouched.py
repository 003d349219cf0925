"""How many bytes the PostgreSQL outbox keeps that nobody has vouched for, as this node knows."""

import time

from proxy.store.ledger import Ledger
from proxy.store.rows import id_gauge

_SECONDS = 1.0  # between two reads of the gauges of ids: there is one for each day, in many shards


class Budget:
    """`bytes`: all of it, as of the last append, or look at the numbers. `ids`: of it, what remembered ids take up, as of the last second."""

    def __init__(self, held: int, ids: int) -> None:
        self.bytes, self.ids = held + ids, ids
        self._read_at = time.monotonic()

    def due(self) -> bool:
        """Returns whether `ids` is to be read again."""
        return time.monotonic() >= self._read_at + _SECONDS

    def found(self, ids: int) -> None:
        self.ids, self._read_at = ids, time.monotonic()

    def took(self, ledger: Ledger) -> None:
        """Takes in what has been written."""
        self.bytes = ledger.unvouched_bytes()
        self.ids += ledger.tallies[id_gauge(ledger.known.now)]
