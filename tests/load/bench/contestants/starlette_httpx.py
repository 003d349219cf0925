"""What people write: a Starlette route that sends each push to SendX, with one shared httpx client, and answers when SendX has.

It does less than it should: it believes any cookie and allows every tag. With `--answer-first` it answers before it sends, in a background task.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

UPSTREAM = os.environ["UPSTREAM"]
HEADERS = {"X-Team-ApiKey": os.environ["API_KEY"]}


def email_of(request: Request) -> str:
    payload = request.cookies["__Host-scq"].partition(".")[0]
    email: str = json.loads(base64.urlsafe_b64decode(payload + "=="))["email"]
    return email


async def push(request: Request) -> Response:
    email, pushes = email_of(request), (await request.json())["pushes"]
    if request.app.state.answers_first:
        return Response(status_code=204, background=BackgroundTask(send, request.app.state.client, email, pushes))
    return Response(status_code=204 if await send(request.app.state.client, email, pushes) else 502)


async def send(client: httpx.AsyncClient, email: str, pushes: list[dict[str, Any]]) -> bool:
    """One after the other, since their order matters. Whether SendX took them all."""
    for push in pushes:
        body = {"email": email, **push["call"][1]}
        try:
            answer = await client.post(f"{UPSTREAM}/contact/track", json=body, headers=HEADERS)
        except httpx.HTTPError:
            return False
        if not answer.is_success:
            return False
    return True


async def healthz(request: Request) -> Response:
    return Response()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # Its defaults, but for patience; a larger pool makes it slower.
    async with httpx.AsyncClient(timeout=30) as client:
        app.state.client = client
        yield


app = Starlette(
    routes=[Route("/scq/push", push, methods=["POST"]), Route("/healthz", healthz)],
    lifespan=lifespan,
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer-first", action="store_true")
    asked = parser.parse_args()
    app.state.answers_first = asked.answer_first
    uvicorn.run(
        app,
        port=asked.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=2_048,
    )
