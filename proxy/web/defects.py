"""Counts requests that fail because of a fault in this program. Logs each fault at a limited rate, so that none is silent or fills the disk."""

import logging
import time
from contextlib import suppress

from proxy.errors import describe

LOG_SECONDS = 60.0  # between two lines about the same fault

log = logging.getLogger("proxy.web")


class Defects:
    """Counts faults. `count`: requests since the start answered 503 or not at all because of a fault in this program or because memory ran out.

    `turned_away`: connections since the start that were refused for want of file handles.
    """

    def __init__(self) -> None:
        self.count = self.turned_away = 0
        self._logged: dict[str, float] = {}  # monotonic seconds by place in the code, of which there are few

    def note(self, error: BaseException) -> None:
        """Counts and logs a fault. Never raises: there may be no memory left for the log line."""
        self.count += 1
        with suppress(Exception):
            now = time.monotonic()
            if isinstance(error, MemoryError):  # one fault, wherever it is raised
                place = what = "memory ran out. Raise the memory limit of this process, or find out what uses it"
            else:
                what = "a fault in this program: " + describe(error)
                place = what.partition(" < ")[0]
            if now - self._logged.get(place, float("-inf")) >= LOG_SECONDS:
                self._logged[place] = now
                log.error("A request failed: %s", what)
