"""Serves ASGI applications over HTTP until a signal, or does only what they do besides: sockets, uvicorn, signals, nothing of what is served.

SIGINT or SIGTERM: no new connections, requests under way are finished, lifespans are left in reverse. A second one ends the process at once,
unless a parent watches over it: whoever stops both of them signals it twice.
SIGHUP: each application that can reads its secrets again.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette

from proxy.errors import ConfigError, Problem
from proxy.web.http1 import Http1

DRAIN_SECONDS = 10  # for requests under way, at a stop
BACKLOG = 2_048


@dataclass(frozen=True)
class Site:
    """An application and where it listens. `port` 0: any free one. `listener`: that already listens there."""

    app: Starlette
    host: str
    port: int
    listener: socket.socket | None = None


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def serve(
    sites: Sequence[Site], on_listening: Callable[[Sequence[int]], None] | None = None, *, watched: bool = False
) -> None:
    """Serves all sites until a signal. `on_listening` gets their ports once each takes connections. `watched`: by a parent, which kills.

    Lifespans are entered here and not by uvicorn, so that what they raise reaches the caller as it is. Raises `ConfigError` for an
    address that cannot be listened on. An application that cannot go on finishes the future in its `state.failure`: everything is
    stopped as by a signal, then `SystemExit(1)` is raised, so that whoever supervises the process starts it anew.
    """
    async with contextlib.AsyncExitStack() as stack:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
        sockets = [stack.enter_context(site.listener or listen(site.host, site.port)) for site in sites]
        for site in sites:
            await stack.enter_async_context(site.app.router.lifespan_context(site.app))
        _relax_collector()
        servers = [_Server(_config(site)) for site in sites]
        apps = [site.app for site in sites]

        def stop() -> None:
            for server in servers:
                server.should_exit = True

        _stop_on_signals(stop, once=not watched)
        _reload_on_signal(apps)
        failures = _stop_on_failures(apps, stop)
        async with asyncio.TaskGroup() as group:
            for server, listener in zip(servers, sockets, strict=True):
                group.create_task(server.serve(sockets=[listener]), name="http-server")
            for server in servers:
                await server.listening.wait()
            if on_listening is not None:
                on_listening([listener.getsockname()[1] for listener in sockets])
        failed = any(failure.done() for failure in failures)
    if failed:
        raise SystemExit(1)


async def work(app: Starlette, on_started: Callable[[], None]) -> None:
    """Does all that an application does besides answering requests, until a signal, as `serve` would."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    stopped = asyncio.Event()
    async with app.router.lifespan_context(app):
        _stop_on_signals(stopped.set, once=True)
        _reload_on_signal([app])
        failures = _stop_on_failures([app], stopped.set)
        on_started()
        await stopped.wait()
        failed = any(failure.done() for failure in failures)
    if failed:
        raise SystemExit(1)


def _relax_collector() -> None:
    """A request leaves no cycles behind. What stands at the start is not looked at again; what comes after it, less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class _Server(uvicorn.Server):
    """Leaves the signals to `serve`, which has more to close than uvicorn knows of, and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(site: Site) -> uvicorn.Config:
    return uvicorn.Config(
        site.app,
        http=Http1,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """`shared`: other sockets of this user may listen there too, each of which gets its part of the connections. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except OSError as error:
        wrong = f"{host} port {port} cannot be listened on: {os.strerror(error.errno) if error.errno else error}"
        raise ConfigError([Problem("SCQ_PORT", wrong, "SCQ_PORT=8001")]) from None


def listen_together(host: str, port: int, count: int) -> Sequence[socket.socket]:
    """Sockets on one port, one for each worker: the kernel spreads connections over them. Raises `ConfigError`."""
    with listen(host, port) as alone:  # nobody else is there, which sockets that may be shared would not tell
        port = alone.getsockname()[1]
    return [listen(host, port, shared=True) for _ in range(count)]


def _stop_on_failures(apps: Sequence[Starlette], stop: Callable[[], None]) -> Sequence[asyncio.Future[Any]]:
    failures = [app.state.failure for app in apps if hasattr(app.state, "failure")]
    for failure in failures:
        failure.add_done_callback(lambda _: stop())
    return failures


def _reload_on_signal(apps: Sequence[Starlette]) -> None:
    reloads = [app.state.reload for app in apps if hasattr(app.state, "reload")]

    def reload() -> None:
        for each in reloads:
            each()

    if reloads:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    else:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a terminal that closes takes the demo along


def _stop_on_signals(stop: Callable[[], None], *, once: bool) -> None:
    """`once`: the next signal ends the process at once."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        stop()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, first if once else stop)
