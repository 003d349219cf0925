"""A TLS relay between the proxy and the fake SendX: what a network, a load balancer and a dying server do to a request and to its answer.

It ends connections that are idle for a second, cuts answers, spoils TLS records and sends alerts in their place, before SendX has the request
and after. One seed decides, by contact. A request that it swallows is a sight of its own; of one that it hands on, a header tells SendX whether
the answer's status can be read, so that the record of SendX is of what the proxy was told.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from anyio.from_thread import start_blocking_portal

from tests.support.oracle import Sight
from tests.support.upstream import ALERT, Cut, Reply, Request, upstream

IDLE_SECONDS = 1.0
PATIENCE_SECONDS = 4.0  # with SendX: the proxy has given up before
SPOILT = "x-spoilt"  # on a request whose answer's status cannot be read
ENDS = 999  # more bytes than TLS puts around an answer: all of it arrives, and then the end
USUAL = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n{"status":"200","message":"OK"}'
)


class Damage(NamedTuple):
    """`legible`: the client reads the status."""

    weight: int
    reply: Callable[[bytes], Reply]
    legible: bool = False


DAMAGES = (
    Damage(3, lambda answer: Reply(None)),
    Damage(3, lambda answer: Reply(None, Cut(reset=True))),
    Damage(6, lambda answer: Reply(answer, Cut(0, behind=ALERT))),
    Damage(2, lambda answer: Reply(answer, Cut(3, behind=ALERT))),
    Damage(3, lambda answer: Reply(answer, Cut(len(answer) // 2))),  # of a record
    Damage(3, lambda answer: Reply(answer[:12], Cut(ENDS))),  # of a text, in a record that is whole
    *(Damage(1, lambda answer, place=place: Reply(answer, Cut(flip=place))) for place in (0, 1, 2, 5, 6, 20, -1)),  # type: ignore[misc]
    Damage(3, lambda answer: Reply(_without_end(answer), Cut(len(answer) + ENDS)), legible=True),
    Damage(2, lambda answer: Reply(answer, Cut(behind=ALERT)), legible=True),
    Damage(2, lambda answer: Reply(answer, Cut(len(answer) + ENDS)), legible=True),
)
ILLEGIBLE = [damage for damage in DAMAGES if not damage.legible]
UNDAMAGED = Damage(0, Reply, legible=True)
SWALLOWED, HANDED_ON_BADLY = 0.04, 0.1  # of all requests: the former, and the former and the latter


def _without_end(answer: bytes) -> bytes:
    """All but the last byte of its body, if it has any."""
    return answer[: max(len(answer) - 1, answer.index(b"\r\n\r\n") + 4)]


def _drawn(dice: random.Random, damages: Sequence[Damage]) -> Damage:
    return dice.choices(damages, [damage.weight for damage in damages])[0]


class Relay:
    """`url`: where it listens; `swallowed`: what reached no SendX; `damaged`: how many exchanges; `well`: from now on, all is handed on as it is."""

    def __init__(self, seed: int, target: str) -> None:
        self.url = ""
        self.swallowed: list[Sight] = []
        self.damaged = 0
        self.well = False
        self._seed, self._target = seed, urlsplit(target)
        self._dice: dict[str, random.Random] = {}

    async def answer(self, request: Request) -> Reply:
        sight = _sight(request)
        dice = self._dice.setdefault(sight.contact, random.Random(f"{self._seed} wire {sight.contact}"))  # noqa: S311 - a seeded run
        chance = 1.0 if self.well else dice.random()
        self.damaged += chance < HANDED_ON_BADLY
        if chance < SWALLOWED:
            self.swallowed.append(sight)
            return _drawn(dice, ILLEGIBLE).reply(USUAL)
        damage = _drawn(dice, DAMAGES) if chance < HANDED_ON_BADLY else UNDAMAGED
        answer = await self._asked(request, legible=damage.legible)
        return damage.reply(answer) if answer else Reply(None, Cut(reset=True))

    async def _asked(self, request: Request, *, legible: bool) -> bytes:
        """The answer of SendX, with the connection to the client left open; nothing if it gives none."""
        more = b"Connection: close\r\n" + (b"" if legible else f"{SPOILT}: 1\r\n".encode()) + b"\r\n"
        answer = b""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_connection(self._target.hostname, self._target.port)
                with closing(writer):
                    writer.write(request.head[:-2] + more + request.body)
                    answer = await reader.read()
        return answer.replace(b"connection: close\r\n", b"", 1)


def _sight(request: Request) -> Sight:
    """Of a request that SendX does not see."""
    body = json.loads(request.body or b"{}")
    tags = (*body.get("tags", ()), *body.get("addTags", ()))
    host = next((line[6:].decode() for line in request.head.split(b"\r\n") if line.lower().startswith(b"host: ")), "")
    return Sight(body.get("email", ""), tags, applied=False, status=None, node=host, at=time.time(), arrived=False)


@contextmanager
def relaying(seed: int, target: str) -> Iterator[Relay]:
    """A relay to the SendX at the URL `target`, while the block runs."""
    relay = Relay(seed, target)
    serving = upstream(relay.answer, tls=True, idle_seconds=IDLE_SECONDS)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving) as relay.url:
        yield relay
