"""Counts the faults of this program that requests run into, so that none is silent and none can fill a disk with its log."""

import logging
import time
from contextlib import suppress

from proxy.errors import describe

LOG_SECONDS = 60.0  # between two lines about the same fault

log = logging.getLogger("proxy.web")


class Defects:
    """`count`: requests, since the start, that were answered 503 or not at all because of a fault of this program, or because memory ran out."""

    def __init__(self) -> None:
        self.count = 0
        self._logged: dict[str, float] = {}  # when (monotonic seconds), by place: there are only so many

    def note(self, error: BaseException) -> None:
        """Never raises: there may be no memory left to say anything with."""
        self.count += 1
        with suppress(Exception):
            now = time.monotonic()
            if isinstance(error, MemoryError):  # in whatever place it is missing
                place = what = (
                    "there is no memory left. Raise the memory limit of this process, or find out what uses it"
                )
            else:
                what = "a fault in this program: " + describe(error)
                place = what.partition(" < ")[0]
            if now - self._logged.get(place, float("-inf")) >= LOG_SECONDS:
                self._logged[place] = now
                log.error("A request could not be judged: %s", what)
