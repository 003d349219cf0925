"""Several processes that serve as one: real processes, real signals, a tiny application."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.live import PATIENCE_SECONDS, eventually, free_port

PROGRAM = """
import asyncio, contextlib, os, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from proxy.web.server import Site, listen_together, run, serve
from proxy.errors import ScqError
from proxy.web.workers import become_worker

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece: several processes write there

port, count, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

async def pid(request):
    return PlainTextResponse(str(os.getpid()))

async def health(request):
    return PlainTextResponse("", 503 if mode == "ill" else 200)

async def slow(request):
    say("slow")
    while not os.path.exists("go on"):
        await asyncio.sleep(0.01)
    return PlainTextResponse("done")

@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.reload = lambda: say("reloaded", os.getpid())
    if mode == "refused":
        sys.exit(2)
    if mode == "failing" and os.path.exists("broken"):
        sys.exit(1)
    if mode == "slow" and os.path.exists("one"):
        say("starting")
        await asyncio.sleep(3_600)
    open("one", "w").close()
    yield
    say("closed", os.getpid())

worker = become_worker(listen_together("127.0.0.1", port, count), lambda: say("serving"))
app = Starlette(routes=[Route("/", pid), Route("/slow", slow), Route("/health", health)], lifespan=lifespan)
site = Site(app, "127.0.0.1", port, worker.listener, "/health" if worker.is_first else "")
try:
    run(serve([site], lambda ports: worker.ready(), watched=True))
except ScqError as error:
    sys.exit(error.message)
"""


@dataclass
class Group:
    """The parent and what all of them wrote."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path

    @property
    def said(self) -> list[str]:
        return (self.directory / "out").read_text().splitlines()

    @property
    def log(self) -> str:
        return (self.directory / "err").read_text()

    def pids(self) -> set[int]:
        """Who answers: connections are spread over them."""
        with suppress(httpx.TransportError):
            return {int(httpx.get(f"http://127.0.0.1:{self.port}/", timeout=PATIENCE_SECONDS).text) for _ in range(20)}
        return set()

    def all_serve(self, count: int) -> set[int]:
        found: set[int] = set()

        def complete() -> bool:
            found.clear()
            found.update(self.pids() | self.pids())
            return len(found) == count

        eventually(complete)
        return found


@contextmanager
def group(directory: Path, count: int, mode: str = "well", port: int | None = None) -> Iterator[Group]:
    port = port or free_port()
    with (directory / "out").open("ab") as out, (directory / "err").open("ab") as err:
        arguments = [sys.executable, "-c", PROGRAM, str(port), str(count), mode]
        process = subprocess.Popen(arguments, cwd=directory, stdout=out, stderr=err)
    try:
        yield Group(process, port, directory)
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def test_workers_share_a_port_and_a_stop_ends_them_all(tmp_path: Path) -> None:
    with group(tmp_path, 3) as workers:
        eventually(lambda: "serving" in workers.said)
        pids = workers.all_serve(3)
        assert workers.process.pid not in pids
        workers.process.send_signal(signal.SIGTERM)
        assert workers.process.wait(PATIENCE_SECONDS) == 0
        assert {f"closed {pid}" for pid in pids} <= set(workers.said)
        assert not any(map(is_alive, pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_the_whole_process_group_finishes_what_is_under_way(tmp_path: Path, number: signal.Signals) -> None:
    with group(tmp_path, 2) as workers:
        pids = workers.all_serve(2)
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(httpx.get, f"http://127.0.0.1:{workers.port}/slow", timeout=PATIENCE_SECONDS)
            eventually(lambda: "slow" in workers.said)
            os.kill(workers.process.pid, number)
            eventually(lambda: any(line.startswith("closed") for line in workers.said))  # the other one
            for pid in filter(is_alive, pids):  # as a terminal does, and systemd
                os.kill(pid, number)
            (tmp_path / "go on").touch()
            assert answer.result().text == "done"
        assert workers.process.wait(PATIENCE_SECONDS) == 0


def test_a_stop_while_a_worker_is_starting_is_no_failure(tmp_path: Path) -> None:
    with group(tmp_path, 2, "slow") as workers:
        eventually(lambda: "starting" in workers.said)
        workers.process.send_signal(signal.SIGTERM)
        assert workers.process.wait(PATIENCE_SECONDS) == 0
        assert sum(line.startswith("closed") for line in workers.said) == 1


def test_a_second_stop_ends_them_at_once(tmp_path: Path) -> None:
    with group(tmp_path, 2) as workers:
        workers.all_serve(2)
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(httpx.get, f"http://127.0.0.1:{workers.port}/slow", timeout=PATIENCE_SECONDS)
            eventually(lambda: "slow" in workers.said)
            workers.process.send_signal(signal.SIGINT)
            eventually(lambda: any(line.startswith("closed") for line in workers.said))
            workers.process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.TransportError):
                answer.result()
        assert workers.process.wait(PATIENCE_SECONDS) != 0


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with group(tmp_path, 3) as workers:
        pids = workers.all_serve(3)
        victim = min(pids)
        os.kill(victim, signal.SIGKILL)
        replaced = workers.all_serve(3)
        assert len(replaced - pids) == 1
        assert pids - {victim} < replaced
        assert re.search(rf"Worker {victim} ended \(killed by signal 9\) and is replaced", workers.log)


def test_workers_that_cannot_start_again_are_tried_until_they_can(tmp_path: Path) -> None:
    with group(tmp_path, 2, "failing") as workers:
        pids = workers.all_serve(2)
        (tmp_path / "broken").touch()
        os.kill(min(pids), signal.SIGKILL)
        eventually(lambda: workers.log.count("exit code 1") >= 3)
        (tmp_path / "broken").unlink()
        assert max(pids) in workers.all_serve(2)


def test_one_that_is_refused_at_the_start_ends_all_with_its_exit_code_and_no_other_is_started(tmp_path: Path) -> None:
    with group(tmp_path, 3, "refused") as workers:
        assert workers.process.wait(PATIENCE_SECONDS) == 2
        assert workers.said == []
        assert "replaced" not in workers.log


def test_a_first_worker_that_does_not_answer_itself_ends_all_and_says_why(tmp_path: Path) -> None:
    with group(tmp_path, 3, "ill") as workers:
        assert workers.process.wait(PATIENCE_SECONDS) == 1
        assert workers.said == []
        assert "GET /health returned “HTTP/1.1 503 Service Unavailable”" in workers.log
        assert "replaced" not in workers.log


def test_each_worker_reads_its_secrets_again_on_sighup(tmp_path: Path) -> None:
    with group(tmp_path, 2) as workers:
        pids = workers.all_serve(2)
        workers.process.send_signal(signal.SIGHUP)
        eventually(lambda: {f"reloaded {pid}" for pid in pids} <= set(workers.said))
        assert workers.all_serve(2) == pids


def test_nobody_is_left_behind_by_a_parent_that_was_killed(tmp_path: Path) -> None:
    with group(tmp_path, 2) as workers:
        pids = workers.all_serve(2)
        workers.process.kill()
        workers.process.wait(PATIENCE_SECONDS)
        eventually(lambda: not any(map(is_alive, pids)))


def test_a_port_that_others_serve_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with group(first, 2) as workers:
        workers.all_serve(2)
        with group(second, 2, port=workers.port) as others:
            assert others.process.wait(PATIENCE_SECONDS) != 0
            assert f" port {workers.port}: Address already in use" in others.log


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
