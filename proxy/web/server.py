"""Serves ASGI applications over HTTP until a signal, or does only what they do besides: sockets, uvicorn, signals, nothing of what is served.

SIGINT or SIGTERM: no new connections, requests under way are finished, lifespans are left in reverse. A second one ends the process at once,
unless a parent watches over it: whoever stops both of them signals it twice.
SIGHUP: each application that can reads its secrets again.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette

from proxy.core.hosts import ip_or_none
from proxy.errors import ConfigError, Problem, ScqError
from proxy.web.defects import Defects
from proxy.web.http1 import Http1, http1

DRAIN_SECONDS = 10  # for requests under way, at a stop
BACKLOG = 2_048
SPARE_HANDLES = 128  # for the store, 64 requests to SendX, and commands
ASK_SECONDS = 30.0  # the timeout of the self-test


@dataclass(frozen=True)
class Site:
    """An application and where it listens. `port` 0: any free one. `listener`: a socket that is already bound there.

    `asks`: a path that must answer 200 before the site counts as served; "" skips this self-test.
    """

    app: Starlette
    host: str
    port: int
    listener: socket.socket | None = None
    asks: str = ""


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def serve(
    sites: Sequence[Site], on_listening: Callable[[Sequence[int]], None] | None = None, *, watched: bool = False
) -> None:
    """Serves all sites until a signal. `on_listening` gets their ports once each serves. `watched`: by a parent, which kills.

    Lifespans are entered here and not by uvicorn, so that what they raise reaches the caller as it is. Raises `ConfigError` for an
    address that cannot be listened on, and `ScqError` if a site fails its self-test. An application that cannot go on finishes the future in
    its `state.failure`: everything is stopped as by a signal, then `SystemExit(1)` is raised, so that the supervisor restarts the process.
    """
    async with contextlib.AsyncExitStack() as stack:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
        sockets = [stack.enter_context(site.listener or listen(site.host, site.port)) for site in sites]
        for site in sites:
            await stack.enter_async_context(site.app.router.lifespan_context(site.app))
        _relax_collector()
        asyncio.get_running_loop().set_exception_handler(_note_fault)
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
            wrong = [
                await _ask(listener, site.asks) for site, listener in zip(sites, sockets, strict=True) if site.asks
            ]
            does_not_serve = "".join(wrong) if not any(server.should_exit for server in servers) else ""
            if does_not_serve:
                stop()
            elif on_listening is not None:
                on_listening([_port(listener) for listener in sockets])
        if does_not_serve:
            raise ScqError(does_not_serve)
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


def _note_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Counts a fault that the event loop meets before it calls the protocol, such as a lack of memory for the read buffer."""
    protocol, error = context.get("protocol"), context.get("exception")
    if isinstance(protocol, Http1) and isinstance(error, Exception):
        protocol.defects.note(error)
    else:
        loop.default_exception_handler(context)


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
        http=http1(getattr(site.app, "defects", None) or Defects(), _room()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _room() -> int:
    """Returns how many connections may be open at once: what the limit on file handles leaves when there is enough for everything else."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most - min(SPARE_HANDLES, most // 2)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; `::` also accepts IPv4. Raises `ConfigError`."""
    return _bound(host, port, BACKLOG)


def listen_together(host: str, port: int, count: int) -> Sequence[socket.socket]:
    """Returns sockets on one port, one per worker: the kernel spreads connections over those that listen. Raises `ConfigError`.

    Only the first listens already. The others do once their workers serve, so that the first worker's self-test does not reach them.
    """
    with listen(host, port) as alone:  # nobody else is there, which sockets that may be shared would not tell
        port = alone.getsockname()[1]
    return [_bound(host, port, None if number else BACKLOG, shared=True) for number in range(count)]


def _bound(host: str, port: int, backlog: int | None, *, shared: bool = False) -> socket.socket:
    """Returns a bound socket. `backlog` None: it does not listen yet. `shared`: other sockets of this user may bind to the port too."""
    address = ip_or_none(host)
    both = address is not None and address.version == 6 and address.is_unspecified
    with contextlib.ExitStack() as stack:
        try:
            bound = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if bound.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
            bound.bind((host, port))
            if backlog is not None:
                bound.listen(backlog)
        except OSError as error:
            wrong = f"cannot listen on {host} port {port}: {os.strerror(error.errno) if error.errno else error}"
            raise ConfigError([Problem("SCQ_PORT", wrong, "SCQ_PORT=8001")]) from None
        stack.pop_all()
    return bound


async def _ask(listener: socket.socket, path: str) -> str:
    """Sends a request to the server behind `listener`, as a client would; returns an error message, "" on success."""
    loop, address = asyncio.get_running_loop(), listener.getsockname()
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with socket.socket(listener.family) as client:
        client.settimeout(0)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await loop.sock_connect(client, address)
                await loop.sock_sendall(client, request)
                answer = (await loop.sock_recv(client, 1_024)).partition(b"\r\n")[0].decode("latin-1")
        except TimeoutError:
            answer = f"no answer within {ASK_SECONDS:.0f} seconds"
        except OSError as error:
            answer = str(error)
    if answer.startswith("HTTP/1.1 200 "):
        return ""
    installed = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "httptools", "starlette", "uvloop"))
    return (
        f"The server failed its self-test and exits: GET {path} returned “{answer}” instead of 200. The log above may say why. "
        f"Installed are {installed}: if scq-proxy does not support these versions, reinstall it with pip install scq-proxy."
    )


def _port(listener: socket.socket) -> int:
    """0 for a Unix socket."""
    return 0 if listener.family == socket.AF_UNIX else int(listener.getsockname()[1])


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
