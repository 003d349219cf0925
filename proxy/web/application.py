"""The Starlette application around the endpoints: a short way to the push endpoint, known host names only, and errors as JSON.

It knows no setting and builds no endpoint: `proxy.app` does.
"""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.errors import RequestError
from proxy.web.access import require_host
from proxy.web.asgi import NOT_FOUND, error_response, send_error, send_not_found
from proxy.web.defects import Defects

_HTTP_ERRORS = {
    404: (NOT_FOUND.code, NOT_FOUND.message),
    405: ("method-not-allowed", "This path does not answer this method."),
}


class Application(Starlette):
    """Its routes are for the lifespan to fill.

    `direct`: endpoints by path that are asked without routes and middleware, which cost as much as a push. Leave it empty with `hosts`, which
    come first. `defects`: counts the exceptions of its endpoints, which the server reports.
    """

    direct: Mapping[str, ASGIApp] = MappingProxyType({})
    defects: Defects

    def __init__(self, lifespan: Callable[[Any], AbstractAsyncContextManager[None]], hosts: Collection[str]) -> None:
        super().__init__(
            lifespan=lifespan,
            exception_handlers={HTTPException: _http_error, Exception: _defect},
            middleware=[Middleware(_HostGuard, hosts=hosts)] if hosts else [],  # only who asks for it pays for it
        )
        self.defects = Defects()
        self.router.redirect_slashes = False
        self.router.default = send_not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.direct.get(scope["path"]) if scope["type"] == "http" else None
        await (app or super().__call__)(scope, receive, send)


class PageRoute(Route):
    """A path that pages ask for. Doubled slashes and one at its end, as templates and web servers make them, do not matter."""

    def __init__(self, path: str, endpoint: Callable[..., Any]) -> None:
        super().__init__(path, endpoint)
        segments = re.sub(r"/(?!\])", "/+", self.path_regex.pattern.removesuffix("$"))  # not in a parameter's [^/]+
        self.path_regex = re.compile(segments + r"/*\Z")


class _HostGuard:
    """Refuses requests for names that are not served, except the probes of a supervisor, which go by IP address."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in ("/healthz", "/readyz"):
            try:
                require_host(scope["headers"], self._hosts)
            except RequestError as error:
                await send_error(send, error)
                return
        await self._app(scope, receive, send)


async def _http_error(_: Request, error: Exception) -> Response:
    """Answers Starlette's own refusals (an unknown path, a method that a route has not)."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    code, message = _HTTP_ERRORS.get(error.status_code, ("refused", "The request was refused."))
    return error_response(RequestError(error.status_code, code, message), error.headers)


async def _defect(_: Request, __: Exception) -> Response:
    return error_response(RequestError(503, "defect", "The proxy failed here: its log says more."))
