"""JSON over ASGI: the answers of every public endpoint, without a framework's layers on the hot path."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from proxy.errors import RequestError

Header = tuple[bytes, bytes]
SECURITY: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_JSON: tuple[Header, ...] = ((b"content-type", b"application/json"), *SECURITY)


async def send_json(send: Send, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
    length = (b"content-length", str(len(body)).encode("ascii"))
    await send({"type": "http.response.start", "status": status, "headers": (*_JSON, length, *headers)})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: RequestError, headers: Sequence[Header] = ()) -> None:
    """`{"error": code, "message": what to do}`, with Retry-After where there is something to wait for."""
    if error.retry_after is not None:
        headers = [*headers, (b"retry-after", str(error.retry_after).encode("ascii"))]
    body = msgspec.json.encode({"error": error.code, "message": error.message})
    await send_json(send, error.status, body, headers)


async def send_not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """The last route: whatever has no other answer."""
    await send_error(send, RequestError(404, "not-found", "There is nothing at this path."))
