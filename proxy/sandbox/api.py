"""A fake SendX: both dialects of its API, its contacts, its faults, and a page that shows what arrived.

It answers with the bodies that the SendX docs publish and merges contacts as they describe, so a test, the demo or a person can
see a tag land without an account. Where the docs are silent, a switch decides (see `Switches`). It is strict on purpose: a request
that SendX's schema does not know is answered 422, recorded as a violation and shown in red. Faults can be ordered for one contact
or for everybody (see `Fault`).

It refuses to be more than that: it keeps nothing on disk, sends no mail, runs no automation, checks no rate limit of its own, and
imports nothing from the rest of the package.
"""

import asyncio
import math
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.sandbox.contacts import (
    CallResult,
    ContactBook,
    CustomEvent,
    Received,
    RefusedCall,
    RevenueEvent,
    read_bulk,
    read_event,
    read_identify,
    read_track,
    violates,
)
from proxy.sandbox.faults import NO_FAULT, OK, Fault, PendingFaults, Switches, response_of
from proxy.sandbox.page import ROUTES, refuse_order

KEPT_REQUESTS = 10_000
MAX_BODY_BYTES = 256 * 1024
MAX_DEPTH = 32  # levels of JSON; the deepest that SendX knows is an event's data
SECRET_HEADERS = {"x-team-apikey", "api_key", "authorization", "cookie"}


class Call(Struct, frozen=True):
    """One request as it came from the wire; header names in lower case, path and query undecoded."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    raw: bytes


class Recorded(Struct, frozen=True):
    """One request to the API and what became of it.

    `body` is the parsed JSON (None if it is none), `contact` the address if it is about exactly one, `status`
    None for a hang or a reset, `fault` the kind of the fault ordered, `violation` why SendX's schema does not
    know it. Keys are masked in `headers`.
    """

    number: int
    time: datetime
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any
    raw: str
    contact: str | None
    status: int | None
    applied: bool
    fault: str | None
    violation: str | None


class Endpoint(NamedTuple):
    """One path: its query parameters (only the legacy dialect has any), the parser of its body, and the function that applies it.

    Without a parser, it is a GET without a body.
    """

    parameters: tuple[str, ...]
    read: Callable[[Received], Any] | None
    apply: Callable[[ContactBook, Any, Received], bytes]

    @property
    def method(self) -> str:
        return "POST" if self.read else "GET"


# fmt: off
ENDPOINTS = {
    "/api/v1/rest/contact/identify": Endpoint((), read_identify, ContactBook.identify),
    "/api/v1/rest/contact/identify/bulk": Endpoint((), read_bulk, ContactBook.identify_all),
    "/api/v1/rest/contact/track": Endpoint((), read_track, ContactBook.track),
    "/api/v1/rest/events/custom": Endpoint((), read_event(CustomEvent), ContactBook.add_event),
    "/api/v1/rest/events/revenue": Endpoint((), read_event(RevenueEvent), ContactBook.add_event),
    "/api/v1/rest/tag": Endpoint((), None, ContactBook.list_tags),
    "/api/v1/contact/identify": Endpoint(("team_id",), read_identify, ContactBook.legacy_identify),
    "/api/v1/contact/track": Endpoint(("team_id", "email"), read_track, ContactBook.legacy_track),
    "/api/v1/tag": Endpoint(("team_id",), None, ContactBook.legacy_list_tags),
}
# fmt: on


class Sandbox:
    """Holds all that the fake SendX knows. Safe to read from another thread while it serves."""

    def __init__(self, key: str = "sandbox", team_id: str = "sandbox") -> None:
        self.key, self.team_id = key, team_id
        self.switches = Switches()
        self.generation = 0
        self.clear()

    def clear(self) -> None:
        """Forgets contacts, requests, violations and faults, and counts from 1 again. Switches stay."""
        self.generation += 1
        self.total = 0
        self.contacts = ContactBook(self.team_id)
        self.faults = PendingFaults()
        self._requests: deque[Recorded] = deque(maxlen=KEPT_REQUESTS)
        self._violations: deque[Recorded] = deque(maxlen=KEPT_REQUESTS)

    @property
    def requests(self) -> list[Recorded]:
        """Returns the last 10,000 requests in the order of their arrival; `total` counts all since the last clear."""
        return list(self._requests)

    @property
    def violations(self) -> list[Recorded]:
        """Returns the last 10,000 requests that SendX's schema does not know."""
        return list(self._violations)

    def handle(self, call: Call) -> tuple[Response, Fault]:
        """Judges, applies and records one request in one step.

        Returns what to answer, and the fault behind it: its delay, hang or reset is for the caller to carry out.
        """
        self.total += 1
        body, problem = _decode(call.raw)
        addressed = _addressed(call.query, body)
        fault = self.faults.take(addressed)
        result = self._result(call, body, problem, fault)
        usual = Response(result.body, result.status, media_type="application/json")
        response = usual if fault.kind == "ok" else response_of(fault)
        record = Recorded(
            number=self.total,
            time=datetime.now(UTC),
            method=call.method,
            path=call.path,
            query=call.query,
            headers={name: "***" if name in SECRET_HEADERS else v for name, v in call.headers.items()},
            body=body,
            raw=call.raw.decode("utf-8", "replace"),
            contact=addressed[0] if len(addressed) == 1 else None,
            status=None if fault.breaks_off else response.status_code,
            applied=result.applied,
            fault=None if fault is NO_FAULT else fault.kind,
            violation=result.violation,
        )
        self._requests.append(record)
        if record.violation:
            self._violations.append(record)
        return response, fault

    def _result(self, call: Call, body: Any, problem: str | None, fault: Fault) -> CallResult:
        try:
            endpoint, query = self._admit(call)
            if problem and endpoint.read:
                raise violates(problem)
            received = Received(self.total, body, query, self.switches)
            asked = endpoint.read(received) if endpoint.read else None
            applies = fault.kind == "ok" or fault.applied
            return CallResult(200, endpoint.apply(self.contacts, asked, received) if applies else OK, applies)
        except RefusedCall as refused:
            return refused.result

    def _admit(self, call: Call) -> tuple[Endpoint, dict[str, str]]:
        """Judges everything about a request that comes before its body. Returns its endpoint and query."""
        endpoint = ENDPOINTS.get(call.path)
        if endpoint is None:
            raise RefusedCall(404, f"unknown path {call.path}")
        if call.method != endpoint.method:
            raise RefusedCall(405, f"{call.method} instead of {endpoint.method}")
        legacy, pairs = bool(endpoint.parameters), parse_qsl(call.query, keep_blank_values=True)
        key = call.headers.get("api_key" if legacy else "x-team-apikey")
        if key != self.key or (legacy and dict(pairs).get("team_id") != self.team_id):
            raise RefusedCall(401)
        if sorted(names := [name for name, _ in pairs]) != sorted(endpoint.parameters):
            raise violates(f"query parameters {names}, expected {list(endpoint.parameters)}")
        if not endpoint.read:
            return endpoint, dict(pairs)
        content_type = call.headers.get("content-type", "")
        if not re.fullmatch(r'application/json(\s*;\s*charset="?utf-8"?)?', content_type, re.IGNORECASE):
            raise violates(f"Content-Type is {content_type!r}, not application/json")
        if len(call.raw) > MAX_BODY_BYTES:
            raise RefusedCall(413, f"a body of over {MAX_BODY_BYTES} bytes")
        return endpoint, dict(pairs)


def _decode(raw: bytes) -> tuple[Any, str | None]:
    """Returns the parsed body, or None and what is wrong with it."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        return None, f"the body is not JSON: {problem}"
    if _is_deeper(body, MAX_DEPTH):
        return None, f"the body is nested more than {MAX_DEPTH} levels deep"
    return body, None


def _is_deeper(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inside is not None and (levels == 0 or any(_is_deeper(item, levels - 1) for item in inside))


def _addressed(query: str, body: Any) -> list[str]:
    """Returns whom a request is about, as far as it can be told, even when it is malformed."""
    in_query = [value for name, value in parse_qsl(query) if name == "email"]
    items = body if isinstance(body, list) else [body]
    named = (item.get("email", item.get("identifier")) for item in items if isinstance(item, dict))
    return in_query or [name for name in named if isinstance(name, str)]


# --- The API on the wire: plain ASGI, because hangs and resets need the connection itself -----------------------------

LOOK_SECONDS = 0.1


async def _serve_api(sandbox: Sandbox, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    raw = bytearray()
    try:
        async for chunk in request.stream():
            raw += chunk[: MAX_BODY_BYTES + 1 - len(raw)]  # enough to see that it is too long
    except ClientDisconnect:
        return
    path = scope.get("raw_path", request.url.path.encode()).decode("ascii")
    call = Call(request.method, path, request.url.query, dict(request.headers), bytes(raw))
    response, fault = sandbox.handle(call)
    connection = getattr(send, "__self__", None)  # uvicorn's; another server's may not be there
    seconds = math.inf if fault.kind == "hang" else fault.delay
    if seconds and await _client_left(connection, receive, seconds):
        return
    if fault.breaks_off:
        await _reset(connection, receive)
    else:
        await response(scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _client_left(connection: Any, receive: Receive, seconds: float) -> bool:
    """Waits so long; returns early when the client leaves (True) or the server stops (False).

    uvicorn tells an app that it stops only after every request has ended. But it takes `keep_alive` from
    requests in progress first, and that is what this watches; a server without it ends a hang by cancelling.
    """
    gone = asyncio.ensure_future(_disconnected(receive))
    end = time.monotonic() + seconds
    closes = not getattr(connection, "keep_alive", True)
    if closes:
        connection.keep_alive = True
    try:
        while getattr(connection, "keep_alive", True) and not gone.done() and (left := end - time.monotonic()) > 0:
            await asyncio.wait({gone}, timeout=min(left, LOOK_SECONDS))
        return gone.done()
    finally:
        gone.cancel()
        if closes:
            connection.keep_alive = False


async def _reset(connection: Any, receive: Receive) -> None:
    """Breaks the connection with a TCP reset, under uvicorn; elsewhere the call itself fails."""
    transport = getattr(connection, "transport", None)
    if transport is None:
        raise ConnectionResetError("the sandbox was told to break this connection")
    # Lingering for zero seconds makes close() send RST instead of FIN.
    no_linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    transport.abort()
    await _disconnected(receive)


class SandboxApp(Starlette):
    """Serves the page and the control API, and takes everything else for a call to SendX."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        # A client with a wrong base URL posts anywhere: that is recorded too.
        posted = scope.get("method") == "POST" and not path.startswith("/sandbox/")
        if path.startswith("/api/") or posted:
            await _serve_api(self.state.sandbox, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_sandbox(*, key: str = "sandbox", team_id: str = "sandbox") -> Starlette:
    """Builds the fake SendX as an ASGI app; its `Sandbox` is at `app.state.sandbox`.

    `key` is the only API key it takes, `team_id` the only team id (dialect `legacy`). The dialects live under `/api/v1/rest` and
    `/api/v1`, the control API under `/sandbox/`, the page at `/`.
    """
    app = SandboxApp(routes=ROUTES, exception_handlers={msgspec.MsgspecError: refuse_order})
    app.state.sandbox = Sandbox(key, team_id)
    return app
