"""What answers tell about an address that is typed: `python -m tests.load.silence --pairs 2000` (`make silence`).

A real server with a form open to the world. Addresses of customers, of people who were erased, and of nobody are typed in pairs, one right after
the other in an order of chance, each from a client of its own. What an asker can see must be the same: status, headers, results, the size of the
body and of the cookie, and how long the answer took, by a paired test: |z| under 3. Then one client types far more than it may about each kind
of address, and has to get the same answers in the same order.

Exit code 1 if an answer tells.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import re
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx

from proxy.config import parsers
from proxy.core.emails import lane_key
from proxy.sandbox.api import create_sandbox
from proxy.stores import open_existing
from tests.support.live import eventually, serving
from tests.support.server import ADMIN_TOKEN, API_KEY, Browser, Server, identify, running

KINDS = ("customer", "erased")  # each is compared with nobody
MOST_Z = 3.0
SETTINGS = {"SCQ_IDENTIFY": "asserted", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN, "SCQ_LOG_LEVEL": "warning"}
FLOOD = 400  # pushes about one address: more than a client may
FLOOD_NUMBER = 1_000_000


class Answer(NamedTuple):
    """What an asker sees of one answer."""

    seconds: float
    visible: object


def address(kind: str, number: int) -> str:
    """Returns an address of which only the kind says whose it is, and not its length or its letters."""
    rng = random.Random(f"{kind} {number}")  # noqa: S311 - the same again when it is typed
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) + "@example.com"


def ask(server: Server, client: str, email: str, name: str) -> Answer:
    browser = Browser(server, x_forwarded_for=client)
    started = time.perf_counter()
    response = browser.request(identify(email=email, firstName=name, tags=["newsletter"]))
    return Answer(time.perf_counter() - started, seen_of(response))


def seen_of(response: httpx.Response) -> object:
    """Returns what two answers must have in common: everything but ids and the cookie's own text, of which its length counts."""
    results = [{key: text for key, text in each.items() if key != "id"} for each in response.json().get("results", [])]
    cookies = [len(text) for text in response.headers.get_list("set-cookie")]
    names = sorted(name for name in response.headers if name != "date")
    return response.status_code, results, cookies, names, len(response.content)


def client_of(number: int) -> str:
    return f"{11 + number % 70}.{number // 70 % 250}.{number // 17_500}.9"


def paired(
    server: Server, kind: str, pairs: int, rng: random.Random, say: Callable[[str], object]
) -> tuple[float, float, int]:
    """Returns z and the mean difference (seconds) of a kind's answers to nobody's, and how many pairs were told apart otherwise."""
    differences: list[float] = []
    apart = 0
    for number in range(pairs):
        both = {who: address(who, number) for who in (kind, f"nobody beside {kind}")}
        order = list(both)
        rng.shuffle(order)
        answers = {
            who: ask(server, client_of(2 * number + (who == kind)), both[who], secrets.token_hex(4)) for who in order
        }
        one, other = answers.values()
        apart += one.visible != other.visible
        differences.append(answers[kind].seconds - answers[f"nobody beside {kind}"].seconds)
        say(f"{kind}: {number + 1} of {pairs}")
    trimmed = sorted(differences)[
        pairs // 50 : pairs - pairs // 50
    ]  # an outlier is the machine's, and hides what is small
    deviation = statistics.stdev(trimmed) / math.sqrt(len(trimmed))
    return statistics.mean(trimmed) / deviation, statistics.mean(trimmed), apart


def flooded(server: Server, email: str, client: str) -> list[object]:
    return [ask(server, client, email, f"name {number}").visible for number in range(FLOOD)]


def prepare(server: Server, pairs: int) -> None:
    """Makes customers of some, and has the proxy forget others; FLOOD is the number of one more of each."""
    for number in (*range(pairs), FLOOD_NUMBER):
        for kind in KINDS:
            Browser(server).logs_in(address(kind, number))
    eventually(lambda: server_waits(server) == 0)
    assert server.stop() == 0

    async def erase() -> None:
        async with open_existing(parsers.store(server.settings["SCQ_STORE"])) as outbox:
            for number in (*range(pairs), FLOOD_NUMBER):
                await outbox.erase(lane_key(address("erased", number)))

    asyncio.run(erase())
    server.start()


def server_waits(server: Server) -> int:
    answer = server.client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    (value,) = re.findall(r"^scq_waiting (\S+)", answer.text, re.M)
    return int(float(value))


def run(pairs: int, seed: int, directory: Path, say: Callable[[str], object]) -> list[str]:
    """Prints what was found; returns what must not be."""
    wrong: list[str] = []
    app = create_sandbox(key=API_KEY)
    with serving(app) as upstream, running(directory, f"{upstream}/api/v1/rest", **SETTINGS) as server:
        prepare(server, pairs)
        rng = random.Random(seed)  # noqa: S311 - a seeded run
        for kind in KINDS:
            z, mean, apart = paired(server, kind, pairs, rng, say)
            print(
                f"{kind} beside nobody: z = {z:+.2f}, {mean * 1e6:+.0f} µs, told apart otherwise: {apart} of {pairs:,}"
            )
            if abs(z) >= MOST_Z or apart:
                wrong.append(f"answers tell {kind} from nobody")
        kinds = (*KINDS, "nobody")
        answers = [
            flooded(server, address(kind, FLOOD_NUMBER), client_of(100_000 + place)) for place, kind in enumerate(kinds)
        ]
        full = sum("lane-full" in repr(each) for each in answers[0])
        print(f"{FLOOD} pushes of one client about one address: {full} refused, whoever it is of")
        if any(each != answers[0] for each in answers) or not full:
            wrong.append("refusals tell whose address it is")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.silence", description="What answers tell; see the module."
    )
    parser.add_argument("--pairs", type=int, default=2_000, help="of each kind (2000)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    directory = Path(tempfile.mkdtemp(prefix="scq-silence-"))
    print(f"seed {seed}", flush=True)
    say: Callable[[str], object] = lambda line: print(f"\r{line}", end="\r", flush=True)  # noqa: E731
    wrong = run(asked.pairs, seed, directory, say if sys.stdout.isatty() else lambda line: None)
    print("\n".join(f"! {each}" for each in wrong))
    shutil.rmtree(directory)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
