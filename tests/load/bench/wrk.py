"""One run of wrk, on the core that is not measured."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec

from tests.load.bench.machine import cores, pinned

SCRIPT = Path(__file__).with_name("load.lua")
TIMEOUT_SECONDS = 30
_MARGIN_SECONDS = 20


class Outcome(msgspec.Struct, frozen=True):
    """What wrk counted. `requests`: answered, however; `failed`: by kind, `status` are answers of 400 and more."""

    requests: int
    microseconds: int
    p50_us: float
    p99_us: float
    longest_us: float
    failed: dict[str, int]

    @property
    def seconds(self) -> float:
        return self.microseconds / 1e6

    @property
    def failures(self) -> int:
        return sum(self.failed.values())


async def run(port: int, templates: Path, *, connections: int, seconds: float) -> Outcome:
    """Raises RuntimeError if wrk itself fails."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{round(seconds)}s"]
    command += ["--timeout", f"{TIMEOUT_SECONDS}s", "--latency", "--script", str(SCRIPT)]
    command += [f"http://127.0.0.1:{port}/scq/push", "--", str(templates)]
    process = await asyncio.create_subprocess_exec(
        *pinned(command, cores().load), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds + TIMEOUT_SECONDS + _MARGIN_SECONDS):
            said = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = re.search(r"^RESULT (.*)$", said, re.MULTILINE)
    if process.returncode != 0 or found is None:
        raise RuntimeError(f"wrk failed: {said.strip()[-500:]}")
    return msgspec.json.decode(found[1], type=Outcome)
