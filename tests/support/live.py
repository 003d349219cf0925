"""Real servers on real sockets for the tests, and the one accepted way to wait for something.

`serving` runs an ASGI app under uvicorn in a thread; `eventually` waits for a condition; `free_port` finds
a port. Nothing here replaces or patches anything: what a test talks to is what a user would talk to.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn

T = TypeVar("T")

POLL_SECONDS = 0.01
PATIENCE_SECONDS = 120.0  # however busy the machine: what has not come by then never comes


def free_port() -> int:
    """Return a TCP port that nothing listens on at 127.0.0.1 right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def nowhere() -> str:
    """Return the URL of a port that nothing listens on."""
    return f"http://127.0.0.1:{free_port()}"


def eventually(check: Callable[[], T], timeout: float = PATIENCE_SECONDS) -> T:
    """Call `check` until its result is true and return that result.

    Raises AssertionError with the last result after `timeout` seconds. What `check` raises goes through.
    """
    deadline = time.monotonic() + timeout
    while not (result := check()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"still not true after {timeout:g} s; the last value was {result!r}")
        time.sleep(POLL_SECONDS)
    return result


@contextmanager
def serving(app: Any, *, port: int = 0) -> Iterator[str]:
    """Serve an ASGI app at 127.0.0.1 while the block runs; yields `http://127.0.0.1:PORT`.

    Port 0 takes a free one. Leaving the block stops the server as Ctrl-C would and waits for it; open
    requests get 5 seconds. Raises AssertionError if the app does not start or the server does not stop.
    """
    with serving_at(app, [port]) as (url,):
        yield url


@contextmanager
def serving_at(app: Any, ports: Sequence[int]) -> Iterator[list[str]]:
    """The same at several ports, so that the app can tell by the Host header who asks; yields their URLs."""
    listeners = [socket.create_server(("127.0.0.1", port)) for port in ports]
    config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": listeners}, name="serving")
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert server.started, "the app did not start: see the log above"
        yield [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        for listener in listeners:
            listener.close()
        assert not thread.is_alive(), f"the server did not stop within {PATIENCE_SECONDS:g} s"
