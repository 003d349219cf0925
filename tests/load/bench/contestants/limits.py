"""The limits: how fast uvicorn is when nothing is done with a push. `asgi`: a bare ASGI function; `starlette`: a route.

Each reads the whole body and answers 204. `--http stock` is uvicorn's own HTTP reading, `--http ours` that of `proxy.web.http1`, which
refuses more; the rest of uvicorn's configuration is that of `proxy.web.server`.
"""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from proxy.web.http1 import Http1
from proxy.web.server import BACKLOG


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/healthz":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def route(request: Request) -> Response:
    await request.body()
    return Response(status_code=204)


async def healthz(request: Request) -> Response:
    return Response()


APPS: dict[str, Any] = {
    "asgi": bare,
    "starlette": Starlette(routes=[Route("/scq/push", route, methods=["POST"]), Route("/healthz", healthz)]),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--app", choices=APPS, required=True)
    parser.add_argument("--http", choices=("stock", "ours"), required=True)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    uvicorn.run(
        APPS[asked.app],
        port=asked.port,
        loop="uvloop",
        http=Http1 if asked.http == "ours" else "httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
    )


if __name__ == "__main__":
    main()
