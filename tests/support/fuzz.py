"""A real forwarder and store against a SendX with fuzzed answers: their meaning, and whether every promise was kept.

Status lines, headers, bodies, framing, single bytes, TLS records and the end of the connection are all drawn from one seed. What an
answer means is read by h11 on its own, from the bytes that reach the client, and decides what the upstream does with the request, so that
it never lies: a clear success is applied, a 4xx is not, anything else may be. Then `tests.support.oracle` judges.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import h11

from proxy.config.types import Dialect, Secret
from proxy.core.calls import Attributes, Track
from proxy.core.decision import Decision, Enqueue, Facts
from proxy.core.emails import lane_key
from proxy.core.visitors import Trust
from proxy.delivery.forwarder import Forwarder
from proxy.delivery.sendx import MAX_DETAIL, Upstream
from proxy.store.outbox import Outbox
from proxy.store.records import DeadFilter, DeadLetter, Stats
from tests.support.oracle import Finding, History, Promise, Report, Sight, Violation, judge
from tests.support.sending import KEY, Clock, forwarder
from tests.support.tls import contexts
from tests.support.upstream import ALERT, Cut, Reply, Request, upstream

TIMEOUT_SECONDS = 3.0
PUSHES = 12  # of one contact, on average
LAG_SECONDS = (
    1e9  # by which the forwarder's clock is behind: what it puts off is due for the store, and the gate is hurried
)
COUNTER_FIELD = "Visits"
DEFECTS = (
    "A fault in this program",
    "with an unexpected error",
    "without SendX's error texts",
    "could not be settled either",
)  # what the log calls our own fault

# --- what the upstream says


STATUSES = [b"%d" % status for status in (*range(200, 209), *range(300, 309), *range(400, 432), 451, *range(500, 512))]
STATUSES += [b"100", b"101", b"103", b"199", b"226", b"299", b"499", b"520", b"599", b"600", b"999"]
STATUSES += [b"", b"0", b"20", b"2000", b"-1", b"abc", b"\xff\xff\xff", b"\xd9\xa2\xd9\xa0\xd9\xa0"]
VERSIONS = [b"HTTP/1.1"] * 12 + [b"HTTP/1.0", b"HTTP/2", b"http/1.1", b"ICY", b"HTTP/9.9", b""]
PHRASES = [b" OK"] * 4 + [b"", b" ", b" \xff\x00\x1b[31m", b" " + b"x" * 9_000, b" \xed\xa0\xbd"]
HEADERS = [
    *(b"Retry-After: " + value for value in (b"0", b"7", b"-1", b"1e9", b"9" * 400, b"\xff", b"", b"Mon, 99 Foo 2026")),
    *(b"Retry-After: " + value for value in (b"Wed, 21 Oct 2065 07:28:00 GMT", b"1.5.5", b"\xd9\xa7", b"0x10", b"nan")),
    *(b"Content-Type: " + value for value in (b"application/json", b"text/html; charset=\xff", b"", b"x" * 3_000)),
    *(b"Content-Encoding: " + value for value in (b"gzip", b"br", b"deflate, gzip", b"?")),
    *(b"Connection: " + value for value in (b"close", b"keep-alive", b"upgrade", b"close, keep-alive")),
    *(b"Transfer-Encoding: " + value for value in (b"gzip", b"chunked", b"chunked, chunked", b"identity")),
    *(b"Content-Length: " + value for value in (b"-1", b"+2", b"1, 2", b"99999999999999999999", b"0x2", b"9" * 300)),
    *(b"Location: /", b"Set-Cookie: a=\x00", b"Upgrade: h2c", b"Keep-Alive: timeout=0", b" folded", b": none", b"none"),
    *(b"A\x00: b", b"A\xff: b", b"A : b", b"A: " + b"x" * 70_000, b"\r", b"A: \xed\xa0\xbd", b"a:" * 500),
]
WORDS = [
    "bad \\ud83d",
    "\\udc00\\ud800",
    "\\u0000",
    "a\\u001b[31m",
    "\\u202e",
    "no",
    "x" * 70_000,
    "ann@example.com",
    KEY,
]
WORDS += ["\\u200b".join("ann@example.com"), "%40".join(("ann", "example.com")), "\\ud83d\\ude00", "\\uffff"]
TEXTS = [*(f'{{"message":"{word}"}}' for word in WORDS), *(f'{{"error":"{word}","status":"error"}}' for word in WORDS)]
TEXTS += [
    "",
    "{}",
    "[]",
    "null",
    "0",
    '"',
    "[" * 30_000,
    "9" * 5_000,
    "1e999",
    "NaN",
    '{"message":',
    '{"message":{"a":1}}',
]
TEXTS += [
    "<html>" + "x" * 3_000,
    '{"status":"200","message":"OK"}',
    '\ufeff{"message":"no"}',
    '{"message":"a","message":7}',
]
BODIES = [text.encode() for text in TEXTS]
BODIES += [
    b"\xff\xfe{\x00}\x00",
    b'{"message":"\xed\xa0\xbd"}',
    b'{"message":"\xff"}',
    gzip.compress(b"{}"),
    bytes(range(256)),
]
CLEAR = b'{"status":"200","message":"OK"}'
USUAL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(CLEAR), CLEAR)


class Meaning(NamedTuple):
    """What a client reads from bytes: None if no status. `complete`: the answer ends by itself."""

    status: int | None
    body: bytes
    complete: bool


def meaning_of(answer: bytes, *, closed: bool) -> Meaning:
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=65_536)
    client.send(h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Content-Length", "0")]))
    client.send(h11.EndOfMessage())
    status, body = None, bytearray()
    try:
        client.receive_data(answer)
        if closed:
            client.receive_data(b"")
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif not isinstance(event, h11.InformationalResponse):
                return Meaning(status, bytes(body), complete=False)
    except h11.RemoteProtocolError:
        return Meaning(status, bytes(body), complete=False)
    return Meaning(status, bytes(body), complete=True)


def any_answer(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return USUAL
    status = rng.choice(STATUSES) if rng.random() < 0.5 else rng.choice((b"200", b"400", b"422", b"500"))
    body = rng.choice(BODIES) if rng.random() < 0.7 else CLEAR
    lines = [rng.choice(VERSIONS) + b" " + status + rng.choice(PHRASES)]
    lines += rng.sample(HEADERS, k=rng.choice((0, 0, 1, 1, 2, 5)))
    if rng.random() < 0.2:
        lines.append(b"Transfer-Encoding: chunked")
        size = rng.choice((b"%x" % len(body),) * 4 + (b"-1", b"zz", b"f" * 30, b"%x;a=\x00" % len(body)))
        body = b"%b\r\n%b\r\n%b" % (size, body, rng.choice((b"0\r\n\r\n",) * 4 + (b"", b"0\r\nA: b", b"0\r\n")))
    elif rng.random() < 0.9:
        lines.append(b"Content-Length: %d" % (len(body) if rng.random() < 0.9 else rng.randrange(len(body) + 9)))
    answer = rng.choice((b"\r\n",) * 19 + (b"\n",)).join([*lines, b"", body])
    if rng.random() < 0.05:
        answer = b"HTTP/1.1 100 Continue\r\n\r\n" * rng.choice((1, 3, 30)) + answer
    if rng.random() < 0.15:
        answer = mutated(answer, rng)
    return answer


def mutated(answer: bytes, rng: random.Random) -> bytes:
    text = bytearray(answer)
    for _ in range(rng.choice((1, 1, 3, 20))):
        place = rng.randrange(min(len(text), 300) + 1)
        match rng.randrange(4):
            case 0:
                text[place : place + 1] = rng.randbytes(1)
            case 1:
                text[place:place] = rng.randbytes(rng.choice((1, 2, 9)))
            case 2:
                del text[place : place + rng.choice((1, 2, 9))]
            case _:
                text[place:place] = text[max(0, place - 9) : place]
    return bytes(text)


def any_reply(rng: random.Random, *, tls: bool, hangs: float) -> Reply:
    """`hangs`: how many of the answers without an end leave the connection open."""
    chance, answer = rng.random(), any_answer(rng)
    if chance < 0.03:
        return Reply(None, Cut(reset=rng.random() < 0.5))
    small = len(answer) < 16_000  # one TLS record: it arrives whole or not at all
    if chance < 0.15 and (small or not tls):
        return Reply(answer, Cut(rng.randrange(len(answer) + (30 if tls else 1)), reset=rng.random() < 0.3))
    if chance < 0.25 and tls and small:
        spoilt = (Cut(flip=rng.choice((0, 1, 2, 5, 6, 20, -1))), Cut(0, behind=ALERT), Cut(behind=ALERT))
        return Reply(answer, rng.choice(spoilt))
    if chance < 0.3:
        return Reply(answer + rng.choice((USUAL, USUAL.replace(b"200 OK", b"400 No"), b"\r\n", b"x")))
    if not meaning_of(answer, closed=False).complete and rng.random() >= hangs:
        return Reply(answer, Cut(len(answer) + 999))
    return Reply(answer)


def read_by_the_client(reply: Reply, *, tls: bool) -> Meaning:
    """What can reach the client; after a reset, what would have reached it without."""
    answer, cut = reply.answer or b"", reply.cut
    if cut.flip is not None or (cut.after is not None and tls and cut.after < len(answer) + 22):
        answer = b""  # its TLS record never verifies: 5 bytes of header, 1 of type and 16 of tag surround the text
    return meaning_of(answer[: cut.after], closed=cut.after is not None)


def is_clear(meaning: Meaning) -> bool:
    """Returns whether a 2xx is SendX's: a JSON object that reports no error."""
    if meaning.status is None or meaning.status // 100 != 2:
        return False
    try:
        said = json.loads(meaning.body)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and not said.keys() & {"error"} and said.get("status") in {None, "200"}


# --- the run


class Answers:
    """The upstream: what came, what was applied, and what was said, since `forget`."""

    def __init__(self, seed: int, *, hangs: float) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - a seeded run
        self._hangs = hangs
        self.total = 0
        self.well = False  # from now on every answer is a clear success
        self.forget()

    def forget(self) -> None:
        self.sights: list[Sight] = []
        self.counted = Counter[str]()

    def over(self, *, tls: bool) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Reply:
            reply = Reply(USUAL) if self.well else any_reply(self._rng, tls=tls, hangs=self._hangs)
            self._take(json.loads(request.body or b"{}"), reply, tls=tls)
            return reply

        return answer

    def _take(self, body: dict[str, Any], reply: Reply, *, tls: bool) -> None:
        self.total += 1
        meaning = read_by_the_client(reply, tls=tls)
        full = meaning_of(reply.answer or b"", closed=True)  # what a client could read that gets more than it should
        clear, refused = is_clear(meaning), any(str(each.status).startswith("4") for each in (meaning, full))
        applied = clear or (not refused and (self._rng.random() < 0.5 or _succeeds(full)))
        contact = body.get("email", "")
        if applied and COUNTER_FIELD in body.get("customFields", {}):
            self.counted[contact] += 1
        status = meaning.status
        if status is not None:  # for the oracle: delivered, known as not applied, or neither
            status = 200 if clear else 429 if status // 100 == 4 else 500
        self.sights.append(Sight(contact, (*body.get("tags", ()), *body.get("addTags", ())), applied, status))


def _succeeds(meaning: Meaning) -> bool:
    return meaning.status is not None and meaning.status // 100 == 2


class Fuzzed(NamedTuple):
    history: History
    findings: list[Finding]


class Fuzz:
    """One forwarder on one store, for as many rounds as there is time for. `delivery` is running."""

    def __init__(
        self, outbox: Outbox, delivery: Forwarder, answers: Answers, clock: Clock, urls: tuple[str, str]
    ) -> None:
        self.delivery, self.answers = delivery, answers
        self._outbox, self._clock, self._urls = outbox, clock, urls
        self._rounds = 0
        self._letters = 0

    async def round(self, seed: int, contacts: int, *, tls: bool) -> Fuzzed:
        """Pushes of so many contacts, answered in any way, until nothing waits; then judged."""
        rng, before = random.Random(seed), await self._outbox.stats()  # noqa: S311 - a seeded run
        self._rounds += 1
        self.answers.forget()
        self.delivery.use(Upstream(Dialect.REST, f"{self._urls[tls]}/api/v1/rest", Secret(KEY)))
        lanes = {}
        for number in range(contacts):
            address = f"r{self._rounds}-{number}@example.com"
            pushes = [any_push(rng, f"{self._rounds}-{number}-{place}") for place in range(rng.randint(1, 2 * PUSHES))]
            lanes[address] = [promise for promise, _ in pushes]
            await _append(self._outbox, address, pushes)
        await self._until_drained()
        return self._judged(lanes, before, await self._outbox.stats(), await self._new_letters())

    async def _until_drained(self) -> None:
        while (await self._outbox.stats()).waiting:
            for _ in range(10):
                state = self.delivery.state()
                assert state.running, "the forwarder has died"
                if state.until is not None and (ahead := state.until - self._clock()) > 0:
                    self._clock.lag -= ahead
                    self.delivery._shared.changed.set()
                await asyncio.sleep(0.002)

    async def _new_letters(self) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        while letters := await self._outbox.dead_letters(DeadFilter(), self._letters, 500):
            found += letters
            self._letters = letters[-1].seq
        return found

    def _judged(
        self, lanes: dict[str, list[Promise]], before: Stats, after: Stats, letters: list[DeadLetter]
    ) -> Fuzzed:
        told = {tag: sight.status for sight in self.answers.sights for tag in sight.tags}  # last
        tags = {promise.id: promise.tag for lane in lanes.values() for promise in lane}
        counters = Counter(after.counters)
        counters.subtract(before.counters)
        history = History(
            lanes=lanes,
            held=(),
            refused=(),
            sights=self.answers.sights,
            dead={letter.id: str(letter.reason) for letter in letters},
            rejected={letter.id for letter in letters if told.get(tags[letter.id]) == 429},
            counted=self.answers.counted,
            report=Report(counters, after.waiting, after.holding, after.dead - before.dead),
        )
        dirty = [Finding(Violation.ASTRAY, letter.detail) for letter in letters if not _is_clean(letter)]
        return Fuzzed(history, judge(history) + dirty)


def _is_clean(letter: DeadLetter) -> bool:
    detail = letter.detail
    secrets = (letter.address, KEY, "ann@example.com")
    return detail.isprintable() and len(detail) < 2 * MAX_DETAIL and not any(each in detail for each in secrets)


def any_push(rng: random.Random, tag: str) -> tuple[Promise, Attributes | Track]:
    chance, push_id = rng.random(), f"push-{tag:>16}"
    if chance < 0.25:
        return Promise(push_id, tag, increment=True), Attributes(custom_fields={COUNTER_FIELD: "++1"}, tags=(tag,))
    if chance < 0.6:
        return Promise(push_id, tag), Attributes({"firstName": tag}, tags=(tag,))
    return Promise(push_id, tag), Track((tag,))


async def _append(outbox: Outbox, address: str, pushes: list[tuple[Promise, Attributes | Track]]) -> None:
    ops = tuple(Enqueue(promise.id, lane_key(address), address, Trust.VERIFIED, body) for promise, body in pushes)

    def decide(_: Facts) -> Decision[None]:
        return Decision(ops, None)

    await outbox.append(decide)


@asynccontextmanager
async def fuzzing(outbox: Outbox, seed: int, *, hangs: float = 0.0) -> AsyncIterator[Fuzz]:
    """A forwarder that runs while the block does, and has not died when it ends."""
    answers, clock = Answers(seed, hangs=hangs), Clock(lag=LAG_SECONDS)
    async with upstream(answers.over(tls=False)) as plain, upstream(answers.over(tls=True), tls=True) as encrypted:
        client = contexts("localhost").client
        delivery = forwarder(outbox, plain, clock=clock, tls=client, timeout_seconds=TIMEOUT_SECONDS, concurrency=8)
        run = asyncio.create_task(delivery.run(), name="delivery-under-test")
        try:
            yield Fuzz(outbox, delivery, answers, clock, (plain, encrypted))
            assert not run.done(), "the forwarder has died"
        finally:
            await delivery.stop(5)
            await run
