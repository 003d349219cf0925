"""A flood of strangers beside customers and newcomers: `python -m tests.load.soak_strangers --seconds 300` (`make soak-strangers`).

A real server, on SQLite and then on PostgreSQL, with a SendX that takes 0.3 s for every request. First customers alone, for comparison; then the
same customers beside a flood from 200 networks (many /64 in one /32, several /48, IPv4 addresses far from one another), which types addresses
with fields that cannot be merged, tags them, is held, and logs out. Newcomers sign up meanwhile, each from a network of its own.

Then the flood ends, and time passes twenty times as fast: what waits has its turns, for over an hour. Last, two hundred people sign up behind one
address, within an hour of that time. Customers go on pushing meanwhile.

Exit code 1 if a customer was refused or waited for SendX's answer longer than three times what is usual, a newcomer longer than 30 seconds, more
sign-ups left in an hour than may, or strangers took more bytes than they may.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import secrets
import shutil
import statistics
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from proxy.core.turns import left, next_free
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import EVERYBODY, Fault
from tests.support.crowd import Watcher
from tests.support.live import PATIENCE_SECONDS, eventually, serving
from tests.support.postgres import Server as Postgres
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    SHOP,
    Browser,
    Server,
    identify,
    new_id,
    track,
)
from tests.support.shims import built

PER_HOUR, PER_CLIENT = 1_000, 250
ANSWER_SECONDS = 0.3
CUSTOMERS, CUSTOMER_PAUSE = 50, 6.0  # seconds between two pushes of one of them
NEWCOMERS = 20
FLOODERS = 12  # requests of the flood at the same time
QUIET_SECONDS = 30.0
NEWCOMER_SECONDS, TIMES_QUIET = 30.0, 3.0
SPEED = 20  # of the clock, after the flood: a lease still lasts some seconds
FAST_SECONDS = 200.0
BEHIND_NAT = 200
HOLD_MB = 64
SETTINGS = {
    "SCQ_IDENTIFY": "asserted",
    "SCQ_TAGS": "*",
    "SCQ_ASSERTED_TAGS": "*",
    "SCQ_ASSERTED_FIELDS": "*",
    "SCQ_RATE_PER_IP": "50",
    "SCQ_SIGNUPS_PER_HOUR": str(PER_HOUR),
    "SCQ_SIGNUPS_PER_IP": str(PER_CLIENT),
    "SCQ_HOLD_MB": str(HOLD_MB),
    "SCQ_ADMIN_TOKEN": ADMIN_TOKEN,
    "SCQ_LOG_LEVEL": "warning",
}


class Seen(NamedTuple):
    """What a run has shown. `quiet`, `beside`: seconds from a customer's push to SendX; `newcomers`: the same of sign-ups."""

    quiet: list[float]
    beside: list[float]
    newcomers: list[float]
    behind_nat: int
    answers: Counter[str]
    most_bytes: int
    sign_ups: list[float]
    refused: list[str]


# --- Who pushes --------------------------------------------------------------------------------------------------------


def flood_addresses(rng: random.Random) -> list[str]:
    """Returns the clients of the flood, of 200 networks."""
    one_32 = [f"2001:db8:{rng.randrange(65_536):x}:{rng.randrange(65_536):x}::1" for _ in range(100)]
    some_48 = [f"2001:{0xA00 + each:x}:7:{rng.randrange(65_536):x}::1" for each in range(5) for _ in range(8)]
    scattered = [f"{rng.randrange(11, 90)}.{rng.randrange(256)}.{rng.randrange(256)}.7" for _ in range(60)]
    return [*one_32, *some_48, *scattered]


def flood_call(rng: random.Random, number: int) -> list[object]:
    """Returns calls of one request: what costs most, of each kind."""
    kind = number % 10
    if kind < 6:
        email = f"stranger-{secrets.token_hex(6)}@example.net"
        return [identify(email=email, firstName=secrets.token_hex(4), tags=["newsletter"])]
    if kind < 8:  # for one address, so that nothing can be merged
        return [identify(email=f"victim-{number % 7}@example.net", firstName=secrets.token_hex(4)) for _ in range(10)]
    if kind < 9:
        return [track(*[f"held-{secrets.token_hex(100)}" for _ in range(80)])]
    return [["reset"], ["consent", "denied"], ["consent", "granted"]]


class Flood:
    """Requests without end, from all its addresses in turn. `answers`: how many of each kind there were."""

    def __init__(self, server: Server, seed: int) -> None:
        self._url, self._seed = f"{server.url}{server.prefix}/push", seed
        self.answers: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="flood")

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    async def _run(self) -> None:
        rng = random.Random(self._seed)  # noqa: S311 - a seeded run
        addresses = itertools.cycle(flood_addresses(rng))
        numbers = itertools.count()
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client:
            await asyncio.gather(*(self._push(client, addresses, numbers, rng) for _ in range(FLOODERS)))

    async def _push(
        self, client: httpx.AsyncClient, addresses: Iterator[str], numbers: Iterator[int], rng: random.Random
    ) -> None:
        while not self._stop.is_set():
            calls = flood_call(rng, next(numbers))
            body = {"v": 1, "s": secrets.token_hex(16), "pushes": [{"id": new_id(), "call": call} for call in calls]}
            headers = {"Origin": SHOP, "X-Forwarded-For": next(addresses)}
            response = await client.post(self._url, json=body, headers=headers)
            if response.status_code == 202:
                self.answers.update(result.get("reason", result["status"]) for result in response.json()["results"])
            else:
                self.answers[str(response.status_code)] += 1
            await asyncio.sleep(0.03)


class Customers:
    """Each logs in once and then pushes now and then. `pushed`: when, by tag; `refused`: what must not be.

    They log in before anything is measured: fifty log-ins at once are a queue of their own.
    """

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name
        self.pushed: dict[str, float] = {}
        self.refused: list[str] = []
        self._stop = threading.Event()
        places = [[self._customer(place, number) for number in range(CUSTOMERS // 5)] for place in range(5)]
        self._threads = [threading.Thread(target=self._live, args=each) for each in enumerate(places)]

    def _customer(self, place: int, number: int) -> Browser:
        browser = browser_at(self._server, f"192.0.{place}.{number + 1}")
        browser.logs_in(f"{self._name}-{place}-{number}@example.com")
        return browser

    @contextmanager
    def pushing(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def _live(self, place: int, browsers: Sequence[Browser]) -> None:
        pause = CUSTOMER_PAUSE / len(browsers)
        for number in itertools.count():
            tag = f"{self._name}-{place}-{number}"
            at = time.time()
            response = browsers[number % len(browsers)].request(track(tag))
            statuses = [result["status"] for result in response.json().get("results", [])]
            if response.status_code != 202 or statuses != ["accepted"]:
                self.refused.append(f"a customer's push: {response.status_code} {response.text[:200]}")
            else:
                self.pushed[tag] = at
            if self._stop.wait(pause):
                return


def browser_at(server: Server, client: str) -> Browser:
    # Where time passes twenty times as fast, the server closes an idle connection after a moment, perhaps while it is asked again.
    return Browser(server, x_forwarded_for=client, connection="close")


def sign_up(server: Server, email: str, client: str) -> None:
    browser = browser_at(server, client)
    assert browser.statuses(identify(email=email, tags=["newsletter"])) == ["accepted"], email


# --- What was seen -----------------------------------------------------------------------------------------------------


class Record:
    """What has reached SendX, read while it goes on."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.watcher = Watcher(sandbox)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="record")

    @contextmanager
    def kept(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.2):
            self.watcher.look()

    def delays(self, pushed: dict[str, float]) -> list[float]:
        """Returns how long each of these tags took; infinite for one that has not come."""
        came = {tag.lstrip("+"): sight.at for sight in self.watcher.sights for tag in sight.tags}
        return [came.get(tag, float("inf")) - at for tag, at in pushed.items()]

    def first(self, end: str) -> dict[str, float]:
        """Returns when a contact was first seen whose address ends like this."""
        found: dict[str, float] = {}
        for sight in self.watcher.sights:
            if sight.contact.endswith(end):
                found.setdefault(sight.contact, sight.at)
        return found


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def most_in_an_hour(times: Sequence[float]) -> int:
    return max((bisect_left(times, at + 3_600) - number for number, at in enumerate(times)), default=0)


def too_early(times: Sequence[float], tolerance: float) -> int:
    """Returns how many of the sign-ups left before they might, the first of them having left at `times[0]`."""
    until, found = 0.0, 0
    for at in times:
        found += at + tolerance < next_free(until, PER_HOUR, at)
        until = left(until, PER_HOUR, at)
    return found


# --- The run -----------------------------------------------------------------------------------------------------------


class FastClock:
    """The clock of what is started with `environment`: as it is, but for `SPEED` times as fast while it runs fast."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "offset"
        self._steps: list[tuple[float, int]] = [(0.0, 0)]  # when it was set, and by how much in all
        self._set(0)
        for each in (directory, directory.parent):
            each.chmod(0o755)  # PostgreSQL reads it as another user, and would keep the true time in silence
        library = built("wrong_clock.c", directory)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._file), "CLOCK_PASSES": "1"}

    def _set(self, seconds: int) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.chmod(0o644)
        fresh.rename(self._file)
        self._steps.append((time.time(), seconds))

    @contextmanager
    def fast(self) -> Iterator[None]:
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(2 / SPEED):
                self._set(self._steps[-1][1] + 2)

        thread = threading.Thread(target=run, name="clock")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def at(self, real: float) -> float:
        """Returns what it said then."""
        step = bisect_right(self._steps, real, key=lambda each: each[0]) - 1
        return real + self._steps[max(step, 0)][1]


class Site(NamedTuple):
    """A server with a SendX of its own, and its clock."""

    server: Server
    sandbox: Sandbox
    record: Record
    clock: FastClock


@contextmanager
def site(store: str, directory: Path) -> Iterator[Site]:
    directory.mkdir()
    app = create_sandbox(key=API_KEY)
    sandbox: Sandbox = app.state.sandbox
    with ExitStack() as stack:
        clock, settings = FastClock(directory), dict(SETTINGS)
        upstream = stack.enter_context(serving(app))
        if store == "postgresql":
            postgres = Postgres(environment=clock.environment)
            stack.callback(postgres.remove)
            settings["SCQ_STORE"] = postgres.database()
        server = Server(directory, f"{upstream}/api/v1/rest", **settings)
        stack.callback(server.close)
        server.start()
        record = Record(sandbox)
        stack.enter_context(record.kept())
        yield Site(server, sandbox, record, clock)


def run(store: str, seconds: float, seed: int, directory: Path) -> Seen:
    with site(store, directory / "flood") as (server, sandbox, record, clock):
        sandbox.faults.stand(EVERYBODY, Fault("ok", delay=ANSWER_SECONDS))
        quiet, beside, after = (Customers(server, name) for name in ("quiet", "beside", "after"))
        eventually(lambda: len(record.first("@example.com")) == 3 * CUSTOMERS, PATIENCE_SECONDS)
        flood = Flood(server, seed)
        with quiet.pushing():
            time.sleep(QUIET_SECONDS)
        newcomers: dict[str, float] = {}
        most_bytes = 0
        with flood.running(), beside.pushing():
            for number in range(NEWCOMERS):
                time.sleep(seconds / NEWCOMERS)
                email = f"newcomer-{number}@example.org"
                newcomers[email] = time.time()
                sign_up(server, email, f"{100 + number}.20.30.40")
                most_bytes = max(most_bytes, strangers_bytes(server))
        time.sleep(NEWCOMER_SECONDS)
        arrived = record.first("@example.org")
        waited = [arrived.get(email, float("inf")) - at for email, at in newcomers.items()]
        pushed = record.delays(quiet.pushed), record.delays(beside.pushed)
        sandbox.faults.clear()
        server.restart(**clock.environment)  # which lets nobody go who has to wait
        with clock.fast(), after.pushing():
            time.sleep(FAST_SECONDS)
        sign_ups = sorted(clock.at(at) for end in ("@example.net", "@example.org") for at in record.first(end).values())
    refused = [each for customers in (quiet, beside, after) for each in customers.refused]
    return Seen(*pushed, waited, behind_one_address(store, directory), flood.answers, most_bytes, sign_ups, refused)


def behind_one_address(store: str, directory: Path) -> int:
    """Returns how many of the people behind one address were mailed within the hour in which they signed up."""
    with site(store, directory / "nat") as (server, _, record, clock), clock.fast():
        server.restart(**clock.environment)
        with Customers(server, "nat").pushing():
            return mailed_within_the_hour(server, record, clock)


def mailed_within_the_hour(server: Server, record: Record, clock: FastClock) -> int:
    started = clock.at(time.time())
    for number in range(BEHIND_NAT):
        due = started + number * 3_300 / BEHIND_NAT
        eventually(lambda due=due: clock.at(time.time()) >= due, PATIENCE_SECONDS)  # type: ignore[misc]
        sign_up(server, f"person-{number}@example.org", "198.51.100.4")
    eventually(lambda: clock.at(time.time()) >= started + 3_600, PATIENCE_SECONDS)
    return sum(clock.at(at) <= started + 3_600 for at in record.first("@example.org").values())


def strangers_bytes(server: Server) -> int:
    answer = server.client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    (value,) = re.findall(r"^scq_unvouched_bytes (\S+)", answer.text, re.M)
    return int(float(value))


# --- The command -------------------------------------------------------------------------------------------------------


def summary(store: str, seen: Seen) -> tuple[str, list[str]]:
    """Returns the numbers, a line each, and what must not be."""
    usual, beside = percentile(seen.quiet, 0.99), percentile(seen.beside, 0.99)
    longest = TIMES_QUIET * (usual + ANSWER_SECONDS)  # until SendX has answered, which is when a lane goes on
    hour = most_in_an_hour(seen.sign_ups)
    early = too_early(seen.sign_ups, tolerance=2 * SPEED * 0.05)
    rows = [
        ("store", store),
        ("customers' pushes, quiet / beside", f"{len(seen.quiet):,} / {len(seen.beside):,}"),
        ("to SendX, quiet: median, p99", f"{statistics.median(seen.quiet):.2f} s, {usual:.2f} s"),
        ("to SendX, beside: median, p99", f"{statistics.median(seen.beside):.2f} s, {beside:.2f} s"),
        ("newcomers: median, longest", f"{statistics.median(seen.newcomers):.1f} s, {max(seen.newcomers):.1f} s"),
        ("sign-ups that left, most in an hour", f"{len(seen.sign_ups):,}, {hour:,} of {PER_HOUR:,}"),
        ("strangers' bytes, at most", f"{seen.most_bytes / 1e6:.1f} MB of {HOLD_MB} MB"),
        ("mailed within the hour, of 200", f"{seen.behind_nat}"),
        ("the flood was answered", ", ".join(f"{name} {count:,}" for name, count in seen.answers.most_common())),
    ]
    wrong = [*seen.refused[:5]]
    if beside + ANSWER_SECONDS > longest:
        wrong.append("customers wait too long")
    if max(seen.newcomers) > NEWCOMER_SECONDS:
        wrong.append("a newcomer waits too long")
    if hour > PER_HOUR or early:
        wrong.append(f"more sign-ups left than may: {hour} in an hour, {early} too early")
    if seen.most_bytes > HOLD_MB * 1e6:
        wrong.append("strangers took more than they may")
    if seen.behind_nat < BEHIND_NAT:
        wrong.append("people behind one address were not mailed within the hour")
    return "\n".join(f"{name:36} {value}" for name, value in rows), wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.soak_strangers", description="A flood of strangers beside customers; see the module."
    )
    parser.add_argument("--seconds", type=float, default=300, help="how long the flood lasts (300)")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), action="append", help="this one only (both)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    failed = False
    for store in asked.store or ("sqlite", "postgresql"):
        directory = Path(tempfile.mkdtemp(prefix="scq-strangers-"))
        print(f"seed {seed}, in {directory}", flush=True)
        lines, wrong = summary(store, run(store, asked.seconds, seed, directory))
        print("\n".join([lines, *(f"! {each}" for each in wrong)]), flush=True)
        if not wrong:
            shutil.rmtree(directory)
        failed = failed or bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
