"""Decides what becomes of the store after a failure: its states and what leads from one to another, in one table.

Pure: the time is an argument, in seconds on the monotonic clock. The rules:

1. A job is answered as stored only while the file is open, in OPEN and FAILING.
2. A failure that says nothing against the file leaves it open (FAILING). Any other closes it (BROKEN), and so does upkeep that fails.
3. A closed file is reopened at once, but not more often than every RETRY_SECONDS.
4. Only an append that is written ends FAILING and clears the tries; opening the file does not, and a smaller write proves too little.
5. After GIVE_UP_TRIES openings in GIVE_UP_SECONDS with no write between, or after a defect, the store has failed for good (FAILED).
6. FAILED is final: the process ends, so that it can be started again. Only closing follows.

Which failure says what of the file is in `damage`; `writer` carries all of this out.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from proxy.store.sqlite.damage import Remedy, remedy_for

RETRY_SECONDS = 1.0
GIVE_UP_TRIES = 5
GIVE_UP_SECONDS = 60.0


class State(Enum):
    OPENING = "the file is being opened for the first time"
    OPEN = "the file is open, and no transaction has failed since one has written"
    FAILING = "the file is open, and the last transaction that had something to write failed"
    BROKEN = "the file is closed until it is tried again"
    REOPENING = "the file is being checked and opened again, which can take a while"
    FAILED = "the store has failed for good"
    CLOSED = "the thread ends"


class Event(Enum):
    OPENED = "the file was opened, and no transaction failed before"
    OPENED_UNPROVEN = "the file was opened, and no transaction has written since one failed"
    REFUSED = "the file could not be opened again"
    WROTE = "a transaction has written something"
    FAILED = "a transaction failed, and the file is not at fault"
    BROKE = "a transaction or upkeep failed, and the file may be at fault"
    TRIED = "the time has come to open the file again"
    GAVE_UP = "that time has come too often"
    DEFECT = "this program is at fault"
    CLOSED = "the store is closed, or could not be opened at all"


_OPEN = State.OPEN  # `wrote` runs in every transaction, and Python 3.11 finds a member of an enumeration slowly

_WHILE_OPEN = {
    Event.WROTE: State.OPEN,
    Event.FAILED: State.FAILING,
    Event.BROKE: State.BROKEN,
    Event.DEFECT: State.FAILED,
    Event.CLOSED: State.CLOSED,
}

TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.OPENING: {Event.OPENED: State.OPEN, Event.CLOSED: State.CLOSED},
    State.OPEN: _WHILE_OPEN,
    State.FAILING: _WHILE_OPEN,
    State.BROKEN: {
        Event.TRIED: State.REOPENING,
        Event.GAVE_UP: State.FAILED,
        Event.DEFECT: State.FAILED,
        Event.CLOSED: State.CLOSED,
    },
    State.REOPENING: {
        Event.OPENED: State.OPEN,
        Event.OPENED_UNPROVEN: State.FAILING,
        Event.REFUSED: State.BROKEN,
        Event.DEFECT: State.FAILED,
    },
    State.FAILED: {Event.DEFECT: State.FAILED, Event.CLOSED: State.CLOSED},
    State.CLOSED: {},
}


class Recovery(msgspec.Struct, frozen=True):
    """The state, and what the next one depends on. Each method says what happened, and raises KeyError if the table has no such step.

    `failures`: failed transactions since the last that wrote. `tries`: when the file was opened again since then, the latest of them.
    `failure`: why it had to be opened again. `obstacle`: why that did not work.
    """

    state: State = State.OPENING
    failures: int = 0
    tries: tuple[float, ...] = ()
    next_try: float = 0.0
    failure: Exception | None = None
    obstacle: Exception | None = None

    @property
    def cause(self) -> Exception | None:
        return self.obstacle or self.failure

    def opened(self) -> "Recovery":
        return self._after(Event.OPENED_UNPROVEN if self.failures else Event.OPENED, obstacle=None)

    def refused(self, obstacle: Exception) -> "Recovery":
        return self._after(Event.REFUSED, obstacle=obstacle)

    def wrote(self) -> "Recovery":
        if self.state is _OPEN and not self.tries:
            return self  # there is nothing to forget
        return self._after(Event.WROTE, failures=0, tries=())

    def transaction_failed(self, error: Exception) -> "Recovery":
        if _blames_file(error):
            return self._after(Event.BROKE, failures=self.failures + 1, failure=error)
        return self._after(Event.FAILED, failures=self.failures + 1)

    def upkeep_failed(self, error: Exception) -> "Recovery":
        """Says nothing of transactions: some upkeep can wait, and what was written stays written."""
        return self._after(Event.BROKE, failure=error) if _blames_file(error) else self

    def tried(self, now: float) -> "Recovery":
        if now < self.next_try:
            return self
        if gives_up(self.tries, now):
            return self._after(Event.GAVE_UP)
        tries = (*self.tries, now)[-GIVE_UP_TRIES:]
        return self._after(Event.TRIED, tries=tries, next_try=now + RETRY_SECONDS)

    def defect_found(self, error: Exception) -> "Recovery":
        return self._after(Event.DEFECT, failure=error)

    def closed(self) -> "Recovery":
        return self._after(Event.CLOSED)

    def _after(self, event: Event, **changes: Any) -> "Recovery":
        return msgspec.structs.replace(self, state=TRANSITIONS[self.state][event], **changes)


def gives_up(tries: Sequence[float], now: float) -> bool:
    """Returns whether the file was opened again so often, with no write between, that this process cannot help itself."""
    return sum(now - at < GIVE_UP_SECONDS for at in tries) >= GIVE_UP_TRIES


def _blames_file(error: Exception) -> bool:
    return remedy_for(error) in (Remedy.REOPEN, Remedy.SUSPECT)
