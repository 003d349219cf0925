"""What a person or a test sees and sets: the control API under /sandbox/ (JSON), and the page that shows what arrived.

The page asks the control API like any other client. An order that makes no sense comes back as 400 `{"error", "message"}`.
"""

import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import jinja2
import msgspec
from msgspec import UNSET, Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.sandbox.faults import FaultOrder, Switches


class Window(Struct, frozen=True):
    """Query of a list: what is newer than number `since`, and `limit` of it at most."""

    since: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=0)] = sys.maxsize


def _window(request: Request) -> Window:
    return msgspec.convert(dict(request.query_params), Window, strict=False)


def _newest(records: list[Any], limit: int) -> list[Any]:
    return records[max(0, len(records) - limit) :]


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, {"Cache-Control": "no-store"}, "application/json")


async def _contacts(request: Request) -> Response:
    """GET: `{"total", "contacts": [Contact]}`, the last changed first; `?limit=N` keeps the first N."""
    contacts = request.app.state.sandbox.contacts.newest_first()
    return _json({"total": len(contacts), "contacts": contacts[: _window(request).limit]})


async def _requests(request: Request) -> Response:
    """GET: `{"total", "generation", "requests": [Recorded]}` in order of arrival.

    `?since=N` leaves out the numbers up to N, `?limit=N` all but the newest N. `generation` grows with every clear, when numbers
    start at 1 again.
    """
    sandbox, window = request.app.state.sandbox, _window(request)
    newest = _newest([record for record in sandbox.requests if record.number > window.since], window.limit)
    return _json({"total": sandbox.total, "generation": sandbox.generation, "requests": newest})


async def _violations(request: Request) -> Response:
    """GET: `{"total", "violations": [Recorded]}` in order of arrival; `?limit=N` keeps the newest N."""
    violations = request.app.state.sandbox.violations
    return _json({"total": len(violations), "violations": _newest(violations, _window(request).limit)})


async def _faults(request: Request) -> Response:
    """GET: the faults still to come, `{"script": {contact: [Fault]}, "standing": {contact: Fault}}`.

    POST a `FaultOrder`: `{"contact": "a@b.co", "script": [Fault, ...]}` answers the next requests one by one, `{"standing": Fault}`
    every one until `{"standing": null}`, `{"clear": true}` removes all. Without `contact` it is for everybody. Answers as GET does.
    """
    sandbox = request.app.state.sandbox
    if request.method == "POST":
        order = msgspec.json.decode(await request.body(), type=FaultOrder)
        if order.clear:
            sandbox.faults.clear()
        if order.script is not UNSET:
            sandbox.faults.script(order.contact, *order.script)
        if order.standing is not UNSET:
            sandbox.faults.stand(order.contact, order.standing)
    return _json(sandbox.faults.listed())


async def _switches(request: Request) -> Response:
    """GET: every switch and its value. POST some of them to set these; answers as GET does."""
    sandbox = request.app.state.sandbox
    if request.method == "POST":
        order = msgspec.json.decode(await request.body(), type=dict[str, str])
        sandbox.switches = msgspec.convert(msgspec.to_builtins(sandbox.switches) | order, Switches)
    return _json(sandbox.switches)


async def _clear(request: Request) -> Response:
    """POST: forgets contacts, requests, violations and faults; switches stay. Answers `{}`."""
    request.app.state.sandbox.clear()
    return _json({})


async def refuse_order(_: Request, problem: Exception) -> Response:
    return _json({"error": "bad-order", "message": str(problem)}, 400)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True
)


async def _page(request: Request) -> Response:
    """GET /: contacts, requests and violations as they arrive, and buttons for the common faults."""
    nonce = secrets.token_urlsafe(16)
    only_this = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
    policy = f"{only_this}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    values = {"nonce": nonce, "base": str(request.base_url), "team_id": request.app.state.sandbox.team_id}
    text = _TEMPLATES.get_template("sandbox.html").render(values)
    return Response(text, headers={"Content-Security-Policy": policy}, media_type="text/html")


ROUTES = [
    Route("/", _page),
    Route("/sandbox/contacts", _contacts),
    Route("/sandbox/requests", _requests),
    Route("/sandbox/violations", _violations),
    Route("/sandbox/faults", _faults, methods=["GET", "POST"]),
    Route("/sandbox/switches", _switches, methods=["GET", "POST"]),
    Route("/sandbox/clear", _clear, methods=["POST"]),
]
