"""A web server between the browser and the real proxy, on an address of its own: its pages and the proxy are one origin.

    with front("http://127.0.0.1:8000", Front) as site:
        site.put("/", "<a href=/next>on</a>"); site.set("503"); …; site.mend(); site.tries

It hands on what is the proxy's, byte for byte, unless a fault is set, which meets the push endpoint only. Every try to push is
written down with what the proxy answered, also when the browser was not told. It answers no push itself and changes none.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from tests.support.live import eventually

# A proxy that is down (503), in the way of too many (429, Retry-After: 2), or gone (reset); a request that reaches nobody and is
# never answered (hang); one that reaches the proxy, whose answer stays on its way until `mend` (late) or never arrives (lost).
Fault = Literal["503", "429", "reset", "hang", "late", "lost"]
RETRY_AFTER = 2

_addresses = itertools.count(2)


@dataclass
class Try:
    """A request to the push endpoint. `results`: the proxy's, also when the answer never got to the browser."""

    at: float  # time.monotonic
    headers: dict[str, str]
    ids: list[str]
    calls: list[list[Any]]
    fault: Fault | None
    results: list[dict[str, Any]] = field(default_factory=list)


class _Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Front:
    """One site. Its attributes may be read while it serves."""

    def __init__(self, upstream: str, host: str | None = None) -> None:
        self.upstream = urlsplit(upstream)
        self.fault: Fault | None = None  # see `set`
        self.firewall: tuple[bytes, int, str] | None = (
            None  # bodies with these bytes are answered with this status and page
        )
        self.tries: list[Try] = []
        self.gets: list[tuple[str, dict[str, str]]] = []  # path and headers of everything else that was asked for
        self.busy = 0  # requests to /busy, which is answered once `mend` is called
        self._mended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._pages: dict[str, tuple[str, dict[str, str]]] = {}
        # Cookies know no ports: an address of its own keeps a test's visitors apart from another's.
        number = next(_addresses)
        self.host = host or f"127.0.{1 + number // 250}.{1 + number % 250}"
        self.listener = socket.create_server((self.host, 0))
        self.url = f"http://{self.host}:{self.listener.getsockname()[1]}"

    def put(self, path: str, text: str, **headers: str) -> str:
        """Serve this text; returns its address. Underscores in the names of headers stand for dashes."""
        self._pages[path] = (text, {name.replace("_", "-"): value for name, value in headers.items()})
        return self.url + path

    def set(self, fault: Fault) -> None:
        """From now on every push meets this fault."""
        self.fault = fault
        self._loop.call_soon_threadsafe(self._mended.clear)

    def mend(self) -> None:
        """From now on everything works; answers that were kept back go out, those of /busy too."""
        self.fault = None
        self._loop.call_soon_threadsafe(self._mended.set)

    def accepted(self) -> Counter[str]:
        """How often the proxy took each push, by id. Not what is known of an unanswered log-in, which may follow under the same id."""
        answers = [pair for attempt in self.tries for pair in zip(attempt.calls, attempt.results, strict=False)]
        taken = [result for call, result in answers if call[0] != "reset" or not isinstance(call[-1], int)]
        return Counter(result["id"] for result in taken if result["status"] in ("accepted", "held"))

    async def serve(self, stop: asyncio.Event, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        writers: set[asyncio.StreamWriter] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Coroutine[Any, Any, None]:
            writers.add(writer)  # before its task begins, which may never happen
            return self._connection(reader, writer)

        server = await asyncio.start_server(accepted, sock=self.listener)
        started.set()
        await stop.wait()
        # A server that is closed forgets whom it has accepted in this turn of the loop, and leaves their connections open: Python 3.11.
        self._loop.remove_reader(self.listener)
        for _ in range(10):
            await asyncio.sleep(0)  # a turn of the loop: it takes them some to get into `writers`
        server.close()  # whoever still waits for an answer is cancelled with the loop
        for writer in writers:
            writer.transport.abort()  # what nobody reads would keep it open
        await asyncio.sleep(0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _read(reader):
                answer = await self._answer(request)
                if answer is None:
                    await reader.read()  # until the browser gives up
                    return
                if not answer:
                    _reset(writer)
                    return
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # left by the browser, or the end of the block
        finally:
            writer.close()

    async def _answer(self, request: _Request) -> bytes | None:
        """What to send back: nothing, to reset the connection; None, to leave it hanging."""
        path = request.path.partition("?")[0]
        if request.method == "POST" and path.endswith("/push"):
            return await self._push(request)
        if path == "/busy":
            self.busy += 1
            await self._mended.wait()
            return _response(204, b"", {})
        self.gets.append((request.path, request.headers))
        if path in self._pages:
            text, headers = self._pages[path]
            kind = "text/javascript" if path.endswith(".js") else "text/html; charset=utf-8"
            return _response(200, text.encode(), {"Content-Type": kind, "Cache-Control": "max-age=0", **headers})
        if path.startswith(("/scq/", "/prod/")):
            return await self._hand_on(request)
        return _response(404 if path == "/favicon.ico" else 204, b"", {})

    async def _push(self, request: _Request) -> bytes | None:
        fault, pushes = self.fault, json.loads(request.body)["pushes"]
        if self.firewall and self.firewall[0] in request.body:
            return _response(self.firewall[1], self.firewall[2].encode(), {"Content-Type": "text/html"})
        attempt = Try(
            time.monotonic(), request.headers, [push["id"] for push in pushes], [push["call"] for push in pushes], fault
        )
        self.tries.append(attempt)
        if fault == "hang":
            return None
        if fault == "reset":
            return b""
        if fault in ("503", "429"):
            return _response(
                int(fault), b'{"error":"busy"}', {"Retry-After": f"{RETRY_AFTER}"} if fault == "429" else {}
            )
        answer = await self._hand_on(request)
        attempt.results = json.loads(answer.partition(b"\r\n\r\n")[2]).get("results", [])
        if fault == "late":
            await self._mended.wait()
        return b"" if fault == "lost" else answer

    async def _hand_on(self, request: _Request) -> bytes:
        """Ask the proxy, and return its answer with the length that keeps the connection to the browser open."""
        reader, writer = await asyncio.open_connection(self.upstream.hostname, self.upstream.port)
        headers = {**request.headers, "connection": "close"}
        lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
        with closing(writer):
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + request.body)
            answer = await reader.read()
        return answer.replace(b"connection: close\r\n", b"", 1)


async def _read(reader: asyncio.StreamReader) -> _Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").splitlines()
    method, path, _ = first.split(" ", 2)
    pairs = [line.split(":", 1) for line in lines if line]
    headers = {name.lower(): text.strip() for name, text in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return _Request(method, path, headers, body)


def _response(status: int, body: bytes, headers: dict[str, str]) -> bytes:
    length = {} if status == 204 else {"Content-Length": f"{len(body)}"}
    lines = [f"HTTP/1.1 {status} .", *(f"{name}: {text}" for name, text in {**headers, **length}.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


F = TypeVar("F", bound=Front)


@contextmanager
def front(upstream: str, kind: type[F], host: str | None = None) -> Iterator[F]:
    """Serve a site, a `Front` or a class of yours, in front of the proxy at `upstream` while the block runs.

    `host`: the address of another one, for a second origin of the same site.
    """
    site, started = kind(upstream, host), threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop.append((asyncio.get_running_loop(), asyncio.Event()))
        await site.serve(stop[0][1], started)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name=f"front {site.url}")
    thread.start()
    try:
        eventually(started.is_set)
        yield site
    finally:
        loop, event = stop[0]
        loop.call_soon_threadsafe(event.set)
        thread.join()
        site.listener.close()
