"""Tracks the one probe that this sender may have out while the gate is shut. Pure: a value and its four transitions.

    stage      meaning                                                     left by
    NONE       this sender has no probe out                                claimed → OUT
    OUT        the next request of its lane passes the shut gate           answered → ANSWERED · ended → OVER
    ANSWERED   the gate knows the answer; the lane goes on like any other  ended → OVER
    OVER       its lane has been settled, and the outbox does not know     told → NONE

Any other transition leaves the value as it is. Only NONE lets a probe be claimed, so that there are never two.
"""

from enum import Enum, auto

import msgspec

from proxy.store.records import Lease


class Stage(Enum):
    NONE = auto()
    OUT = auto()
    ANSWERED = auto()
    OVER = auto()


class Probe(msgspec.Struct, frozen=True):
    """Where this sender's probe stands; `lease` is the probe's own while it is out or answered."""

    stage: Stage = Stage.NONE
    lease: Lease | None = None

    @property
    def busy(self) -> bool:
        return self.lease is not None

    def passes(self, lease: Lease) -> bool:
        """Returns whether the next request under this lease may pass the shut gate."""
        return self.stage is Stage.OUT and lease is self.lease

    def claimed(self, lease: Lease) -> "Probe":
        return Probe(Stage.OUT, lease) if self.stage is Stage.NONE else self

    def answered(self, lease: Lease) -> "Probe":
        return Probe(Stage.ANSWERED, lease) if self.passes(lease) else self

    def ended(self, lease: Lease) -> "Probe":
        return Probe(Stage.OVER) if lease is self.lease else self

    def told(self) -> "Probe":
        return Probe() if self.stage is Stage.OVER else self
