"""A request's body over ASGI, its size counted before and while it arrives. What it says is not looked at here."""

from __future__ import annotations

import asyncio
from types import CoroutineType

from starlette.types import Message, Receive

from proxy.errors import RequestError

MAX_BODY = 65_536  # bytes; what any request may have unless its path says otherwise
BODY_SECONDS = 10.0  # in which the whole body has to arrive


class Gone(Exception):
    """The client hung up before its request was complete."""


async def read_body(receive: Receive, content_length: int | None, max_bytes: int = MAX_BODY) -> bytes:
    """The whole body. Raises `RequestError` (413 over `max_bytes`, 408 when it is slow) and `Gone`."""
    if content_length is not None and content_length > max_bytes:
        raise _too_large(max_bytes)
    message = _at_once(receive)
    if message is not None and message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = message or await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
                more = message.get("more_body", False)
                message = None
    except TimeoutError:
        raise RequestError(408, "slow-body", f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
    return b"".join(chunks)


def _at_once(receive: Receive) -> Message | None:
    """The next message if it is there already, as it is for most bodies: a time-out costs more than reading one. None if it is not."""
    waiting = receive()
    if not isinstance(waiting, CoroutineType):
        return None
    try:
        waiting.send(None)
    except StopIteration as done:
        message: Message = done.value
        return message
    waiting.close()  # as a time-out would: nothing has been taken
    return None


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, "too-large", f"The body is larger than {max_bytes} bytes: split it over several requests.")
