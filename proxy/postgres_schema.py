"""The schema of the PostgreSQL outbox, and whether a server may be trusted with acknowledged pushes.

`migrate` brings the schema up to date: forward only, step by step, in one transaction that only one migration at a time can hold.
Steps only add, so that nodes of the version before go on meanwhile. `assess` says what is wrong with a server, and changes nothing.
"""

from __future__ import annotations

import msgspec


class Assessment(msgspec.Struct, frozen=True):
    """What a server says of itself.

    `version`: of the schema, 0 if there is none. `facts`: name to value, for people. `obstacles`: sentences, each with what to do, why an
    outbox cannot be opened here at all. `losses`: why acknowledged pushes could be lost here: refused unless the operator says otherwise.
    """

    version: int
    facts: dict[str, str]
    obstacles: tuple[str, ...]
    losses: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        return self.obstacles + self.losses


async def migrate(dsn: str) -> tuple[int, int]:
    """Creates the schema or brings it up to date: its version before (0: none) and after. Raises `StoreRefused`."""
    raise NotImplementedError


async def assess(dsn: str) -> Assessment:
    """Raises `StoreRefused` if the server cannot be asked."""
    raise NotImplementedError
