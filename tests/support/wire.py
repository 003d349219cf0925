"""Bodies and answers of the push endpoint, as the wire contract has them."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.support.server import new_id, track

LIMIT = 64 * 1024


def error(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a whole-request error, which is JSON and says what to do."""
    answer = response.json()
    assert sorted(answer) == ["error", "message"]
    assert answer["message"]
    assert response.headers["content-type"].startswith("application/json")
    return response.status_code, answer["error"]


def one(call: Any, push_id: Any = None) -> dict[str, Any]:
    """A push. `push_id`: None for a new one."""
    return {"id": push_id or new_id(), "call": call}


def batch(*calls: Any) -> dict[str, Any]:
    """A body that pushes these calls."""
    return {"v": 1, "pushes": [one(call) for call in calls]}


def padded(size: int) -> bytes:
    """A good request of exactly so many bytes."""
    body = json.dumps(batch(track("cart-1"))).encode()
    return body + b" " * (size - len(body))


def attributes(response: httpx.Response) -> tuple[str, set[str]]:
    """The one Set-Cookie header of an answer: its name, and its attributes in lower case."""
    (header,) = response.headers.get_list("set-cookie")
    first, *others = [part.strip() for part in header.split(";")]
    return first.partition("=")[0], {part.lower() for part in others}
