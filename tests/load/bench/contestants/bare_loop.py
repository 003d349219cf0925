"""The limit of delivery with httpx: so many clients, each with one connection, send the same request again and again.

Prints one line of JSON: requests, and the seconds and processor seconds that they took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator

import httpx
import uvloop

URL = "/api/v1/rest/contact/track"
BODY = json.dumps({"email": "contact1@example.com", "addTags": ["cart: Teapot"]}).encode()
HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "bare-loop",
    "X-Team-ApiKey": "k" * 40,
}


async def keep_sending(upstream: str, turns: Iterator[int]) -> None:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    async with httpx.AsyncClient(limits=limits, timeout=20, trust_env=False) as client:
        for _ in turns:
            answer = await client.post(upstream + URL, content=BODY, headers=HEADERS)
            answer.raise_for_status()


async def send(upstream: str, clients: int, requests: int) -> None:
    turns = iter(range(requests))
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(keep_sending(upstream, turns))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    asked = parser.parse_args()
    await send(asked.upstream, asked.clients, asked.requests // 10)  # to warm up
    seconds, cpu_seconds = time.perf_counter(), time.process_time()
    await send(asked.upstream, asked.clients, asked.requests)
    seconds, cpu_seconds = time.perf_counter() - seconds, time.process_time() - cpu_seconds
    print(json.dumps({"requests": asked.requests, "seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
