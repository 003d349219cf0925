"""JSON over plain ASGI: answers, and a request's body with its size counted while it arrives.

The hot path goes without a framework's layers; endpoints of Starlette get the same answers as responses.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import RequestError

Header = tuple[bytes, bytes]
SECURITY: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
SECURITY_TEXTS = {name.decode(): value.decode() for name, value in SECURITY}  # as Starlette takes them
NOT_FOUND = RequestError(404, "not-found", "There is nothing at this path.")
_JSON: tuple[Header, ...] = ((b"content-type", b"application/json"), *SECURITY)


async def send_json(send: Send, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
    length = (b"content-length", str(len(body)).encode("ascii"))
    await send({"type": "http.response.start", "status": status, "headers": (*_JSON, length, *headers)})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: RequestError, headers: Sequence[Header] = ()) -> None:
    """Answers with `error_body`, and with Retry-After where there is something to wait for."""
    await send_json(send, error.status, error_body(error), (*headers, *retry_after(error)))


async def send_not_found(_: Scope, __: Receive, send: Send) -> None:
    """The last route: whatever has no other answer."""
    await send_error(send, NOT_FOUND)


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """Returns what `send_error` sends, for an endpoint of Starlette."""
    headers = {**SECURITY_TEXTS, **(headers or {})}
    headers |= {name.decode(): value.decode() for name, value in retry_after(error)}
    return Response(error_body(error), error.status, headers, media_type="application/json")


def error_body(error: RequestError) -> bytes:
    """Returns `{"error": code, "message": what to do}`."""
    return msgspec.json.encode({"error": error.code, "message": error.message})


def retry_after(error: RequestError) -> tuple[Header, ...]:
    return () if error.retry_after is None else ((b"retry-after", str(error.retry_after).encode("ascii")),)


MAX_BODY = 65_536  # bytes; what any request may have unless its path says otherwise
BODY_SECONDS = 10.0  # in which the whole body has to arrive
# Of ours among the extensions of ASGI: a function that gives the whole body if it is here already, else None.
AT_HAND = "scq.body"


class Gone(Exception):
    """The client hung up before its request was complete."""


async def read_body(scope: Scope, receive: Receive, content_length: int | None, max_bytes: int = MAX_BODY) -> bytes:
    """The whole body. Raises `RequestError` (413 over `max_bytes`, 408 when it is slow) and `Gone`."""
    if content_length is not None and content_length > max_bytes:
        raise _too_large(max_bytes)
    at_hand: Callable[[], bytes | None] | None = scope.get("extensions", {}).get(AT_HAND)
    body = at_hand() if at_hand is not None else None
    if body is None:
        return await _receive_body(receive, max_bytes)
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


async def _receive_body(receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError:
        raise RequestError(408, "slow-body", f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
    return b"".join(chunks)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, "too-large", f"The body is larger than {max_bytes} bytes: split it over several requests.")
