"""A fake SendX: both dialects of its API, its contacts, its faults, and a page that shows what arrived.

It answers with the bodies that the SendX docs publish and merges contacts as they describe, so a test, the demo or a person can
see a tag land without an account. Where the docs are silent, a switch decides (see `Switches`). It is strict on purpose: a request
that SendX's schema does not know is answered 422, recorded as a violation and shown in red. Faults can be ordered for one contact
or for everybody (see `Fault`).

It refuses to be more than that: it keeps nothing on disk, sends no mail, runs no automation, checks no rate limit of its own, and
imports nothing from the rest of the package.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
import secrets
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import formatdate
from http.client import responses as phrases
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl

import jinja2
import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

KEPT_REQUESTS = 10_000
KEPT_EVENTS = 100
MAX_BODY_BYTES = 256 * 1024
MAX_DEPTH = 32  # levels of JSON; the deepest that SendX knows is an event's data
EVERYBODY = "*"
SECRET_HEADERS = {"x-team-apikey", "api_key", "authorization", "cookie"}

# --- SendX's answers, byte for byte (source: SendX docs) --------------------------------------------------------------

OK = b'{"status":"200","message":"OK"}'
BULK_OK = b'{"status":"success","message":"All contacts processed successfully"}'
LEGACY_TRACKED = b'{"status":"200","message":"OK","data":"success"}'
EVENT_OK = b'{"status":"success","message":"Event tracked successfully"}'
UNAUTHORIZED = b'{"status":401,"message":"The Team ID or API Key specified is not valid"}'
MESSAGES = {
    404: "Resource not found",
    409: "Email already exists",
    422: "Request body is not in proper format",
    429: "Rate limit exceeded",
    500: "Internal server error occurred",
}


def documented_body(status: int) -> bytes:
    """The body that SendX's docs show for a status; undocumented ones carry the HTTP phrase."""
    if status in (204, 304):
        return b""
    if status < 300:
        return OK
    if status == 401:
        return UNAUTHORIZED
    return msgspec.json.encode({"status": "error", "message": MESSAGES.get(status) or phrases.get(status, "Error")})


def _id22(seed: str) -> str:
    """An id as SendX shows them, 22 characters; the same seed gives the same id."""
    return base64.urlsafe_b64encode(hashlib.sha256(seed.encode()).digest()[:16]).decode().rstrip("=")


# --- SendX's request schema: unknown keys, nulls and wrong types do not decode ----------------------------------------

ADDRESS = r"\A[^@\s\x00-\x1f<>,;]+@[^@\s\x00-\x1f<>,;]+\.[^@\s\x00-\x1f<>,;.]+\Z"
Email = Annotated[str, Meta(max_length=254, pattern=ADDRESS)]
Tag = Annotated[str, Meta(min_length=1)]
# A larger number is a time in milliseconds; the docs want seconds.
UnixSeconds = Annotated[int, Meta(ge=0, lt=100_000_000_000)]


class Identify(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Body of contact/identify, and one item of contact/identify/bulk."""

    email: Email
    first_name: str | UnsetType = UNSET
    last_name: str | UnsetType = UNSET
    company: str | UnsetType = UNSET
    new_email: Email | UnsetType = UNSET
    birthday: date | UnsetType = UNSET
    lists: tuple[str, ...] | UnsetType = UNSET
    custom_fields: dict[str, str | int | float] | UnsetType = UNSET
    tags: tuple[Tag, ...] | UnsetType = UNSET


class Track(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Body of contact/track, dialect `rest`. A tag that is both added and removed ends up removed."""

    email: Email
    add_tags: tuple[Tag, ...] = ()
    remove_tags: tuple[Tag, ...] = ()


class CustomEvent(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of events/custom."""

    identifier: str
    name: Annotated[str, Meta(min_length=1)]
    data: dict[str, Any] | UnsetType = UNSET
    time: UnixSeconds | UnsetType = UNSET


class RevenueEvent(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of events/revenue."""

    identifier: str
    amount: float
    source: str | UnsetType = UNSET
    time: UnixSeconds | UnsetType = UNSET


# --- What a test or a person may set ----------------------------------------------------------------------------------


class Switches(Struct, frozen=True, forbid_unknown_fields=True):
    """What SendX's docs leave open, one switch each. The defaults are a guess, not a fact.

    `birthday`, `lists`: does `rest` identify take the key (pages show it, the schema does not).
    `number_in_custom_fields`: is a JSON number taken as a custom field's value.
    `decrement_absent`: `--10` on a field that does not exist makes -10 or 10.
    `new_email_unknown_old`: `newEmail` for an unknown contact creates it under the new or the old address,
    or is a 404. `new_email_taken`: a 409, or both contacts become one.
    `bulk_partial_failure`: with one bad item, take none (its error), or take the good ones and say 200 or 422.
    """

    birthday: Literal["accept", "reject"] = "accept"
    lists: Literal["accept", "reject"] = "accept"
    number_in_custom_fields: Literal["accept", "reject"] = "reject"
    decrement_absent: Literal["negative", "positive"] = "negative"
    new_email_unknown_old: Literal["create_new", "create_old", "not_found"] = "create_new"
    new_email_taken: Literal["conflict", "merge"] = "conflict"
    bulk_partial_failure: Literal["reject_all", "apply_valid_200", "apply_valid_422"] = "reject_all"


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One ordered misbehaviour.

    `kind`: `error` answers `status` with SendX's documented body (or `body`); `html` is a gateway's page
    (give `status` 502); `empty` has no body; `hang` never answers; `reset` breaks the connection (RST);
    `ok` answers as usual: for a script such as 500, ok, 500, or together with `delay`.
    `retry_after`: seconds for a Retry-After header, written as an HTTP-date if `retry_after_date`.
    `delay`: seconds before the answer. `applied`: the request takes effect all the same.
    """

    kind: Literal["ok", "error", "html", "empty", "hang", "reset"] = "error"
    status: Annotated[int, Meta(ge=200, le=599)] = 500
    body: str | None = None
    retry_after: Annotated[int, Meta(ge=0)] | None = None
    retry_after_date: bool = False
    delay: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    applied: bool = False


NO_FAULT = Fault("ok")


class FaultOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /sandbox/faults."""

    contact: str = EVERYBODY
    script: list[Fault] | UnsetType = UNSET
    standing: Fault | UnsetType | None = UNSET
    clear: bool = False


# --- What the sandbox remembers ---------------------------------------------------------------------------------------


class Contact(Struct, frozen=True, rename="camel"):
    """A contact; `changed` is the number of the request that last touched it."""

    id: str
    email: str
    first_name: str = ""
    last_name: str = ""
    company: str = ""
    birthday: str = ""
    lists: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    custom_fields: dict[str, str] = msgspec.field(default_factory=dict)
    events: tuple[dict[str, Any], ...] = ()
    changed: int = 0


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


class Answer(NamedTuple):
    """What to answer, and the fault behind it: its delay, hang or reset is for the caller to carry out."""

    response: Response
    fault: Fault

    @property
    def status(self) -> int:
        return self.response.status_code


class _Refusal(Exception):
    """A request not applied as asked: what to answer, and the violation if it broke the schema."""

    def __init__(self, status: int, violation: str | None = None) -> None:
        super().__init__(violation or str(status))
        self.status, self.body, self.violation, self.applied = status, documented_body(status), violation, False


# --- Reading a request: strict, and a refusal says what is wrong ------------------------------------------------------


def _violates(reason: str) -> _Refusal:
    return _Refusal(422, reason)


def _decode(raw: bytes) -> tuple[Any, str | None]:
    """The parsed body, or None and what is wrong with it."""
    try:
        body = msgspec.json.decode(raw)
    except (ValueError, RecursionError) as problem:  # msgspec's own errors are ValueErrors
        return None, f"the body is not JSON: {problem}"
    if _is_deeper(body, MAX_DEPTH):
        return None, f"the body is nested more than {MAX_DEPTH} levels deep"
    return body, None


def _is_deeper(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inside is not None and (levels == 0 or any(_is_deeper(item, levels - 1) for item in inside))


def _convert(body: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as problem:
        raise _violates(str(problem).replace(f"`str` matching regex {ADDRESS!r}", "an e-mail address")) from None


def _read_identify(body: Any, query: dict[str, str], switches: Switches) -> Identify:
    identify: Identify = _convert(body, Identify)
    legacy = "team_id" in query
    if identify.lists is not UNSET and (legacy or switches.lists == "reject"):
        raise _violates("Object contains unknown field `lists`")
    if identify.birthday is not UNSET and not legacy and switches.birthday == "reject":
        raise _violates("Object contains unknown field `birthday`")
    numbers = [name for name, value in (identify.custom_fields or {}).items() if not isinstance(value, str)]
    if numbers and switches.number_in_custom_fields == "reject":
        raise _violates(f"Expected `str`, got a number - at `$.customFields`, {numbers}")
    return identify


def _read_bulk(body: Any, query: dict[str, str], switches: Switches) -> list[Identify | _Refusal]:
    if not isinstance(body, list) or not 1 <= len(body) <= 25:
        raise _violates("bulk takes an array of 1 to 25 contacts")
    items: list[Identify | _Refusal] = []
    for position, item in enumerate(body):
        try:
            items.append(_read_identify(item, query, switches))
        except _Refusal as refusal:
            items.append(_violates(f"item {position}: {refusal.violation}"))
    return items


def _read_track(body: Any, query: dict[str, str], switches: Switches) -> Track:
    if "email" in query and isinstance(body, dict):
        if "email" in body:
            raise _violates("Object contains unknown field `email`: it stands in the query")
        body = body | {"email": query["email"]}
    track: Track = _convert(body, Track)
    return track


def _read_as(kind: type[Struct]) -> Callable[[Any, dict[str, str], Switches], Any]:
    return lambda body, query, switches: _convert(body, kind)


def _addressed(query: str, body: Any) -> list[str]:
    """Whom a request is about, as far as it can be told, even when it is malformed."""
    in_query = [value for name, value in parse_qsl(query) if name == "email"]
    items = body if isinstance(body, list) else [body]
    named = (item.get("email", item.get("identifier")) for item in items if isinstance(item, dict))
    return in_query or [name for name in named if isinstance(name, str)]


# --- Merging contacts (source: SendX docs). Pure. ---------------------------------------------------------------------


def counted(old: str | None, given: str, switches: Switches) -> str:
    """A custom field's value after `given`: `++n` adds and `--n` subtracts, anything else replaces.

    The docs know increments of number fields only; on a field that holds text this one is stored as it is.
    """
    step = re.fullmatch(r"(\+\+|--)(\d{1,15}(?:\.\d{1,9})?)", given, re.ASCII)
    if not step or (old is not None and not re.fullmatch(r"-?\d{1,20}(\.\d{1,9})?", old, re.ASCII)):
        return given
    size = Decimal(step[2])
    if step[1] == "--" and (old is not None or switches.decrement_absent == "negative"):
        size = -size
    return format((Decimal(old or 0) + size).normalize() + 0, "f")


def _united(old: tuple[str, ...], new: tuple[str, ...] | UnsetType) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *(new or ()))))


def merged(contact: Contact, identify: Identify, switches: Switches) -> Contact:
    """Fold an identify into a contact: omitted fields stay, tags unite, custom fields merge by key."""
    custom = dict(contact.custom_fields)
    for name, value in (identify.custom_fields or {}).items():
        custom[name] = counted(custom.get(name), str(value), switches)
    given = {name: getattr(identify, name) for name in ("first_name", "last_name", "company", "birthday")}
    return msgspec.structs.replace(
        contact,
        tags=_united(contact.tags, identify.tags),
        lists=_united(contact.lists, identify.lists),
        custom_fields=custom,
        **{name: str(value) for name, value in given.items() if value is not UNSET},
    )


# --- The state --------------------------------------------------------------------------------------------------------


class Sandbox:
    """All that the fake SendX knows. Safe to read from another thread while it serves."""

    def __init__(self, key: str = "sandbox", team_id: str = "sandbox") -> None:
        self.key, self.team_id = key, team_id
        self.switches = Switches()
        self.generation = 0
        self.clear()

    def clear(self) -> None:
        """Forget contacts, requests, violations and faults, and count from 1 again. Switches stay."""
        self.generation += 1
        self.total = 0
        self._contacts: dict[str, Contact] = {}
        self._requests: deque[Recorded] = deque(maxlen=KEPT_REQUESTS)
        self._violations: deque[Recorded] = deque(maxlen=KEPT_REQUESTS)
        self._scripts: dict[str, deque[Fault]] = {}
        self._standing: dict[str, Fault] = {}
        self._made = 0

    @property
    def contacts(self) -> list[Contact]:
        """Every contact, the one that changed last first."""
        return sorted(self._contacts.copy().values(), key=lambda c: c.changed, reverse=True)

    @property
    def requests(self) -> list[Recorded]:
        """The last 10,000 requests in the order of their arrival; `total` counts all since the last clear."""
        return list(self._requests)

    @property
    def violations(self) -> list[Recorded]:
        """The last 10,000 requests that SendX's schema does not know."""
        return list(self._violations)

    def contact(self, email: str) -> Contact | None:
        """Return the contact with that address, compared case-insensitively."""
        return self._contacts.get(email.lower())

    # Faults

    def script(self, contact: str, *faults: Fault) -> None:
        """Answer the next requests for `contact` (or `"*"`) with these, one each; replaces a former script."""
        self._scripts[contact.lower()] = deque(faults)

    def stand(self, contact: str, fault: Fault | None) -> None:
        """Answer every request for `contact` (or `"*"`) with this fault until it is removed with None."""
        self._standing.pop(contact.lower(), None)
        if fault is not None:
            self._standing[contact.lower()] = fault

    def heal(self) -> None:
        """Remove every fault."""
        self._scripts.clear()
        self._standing.clear()

    @property
    def faults(self) -> dict[str, Any]:
        """What is still to come: `{"script": {contact: [fault]}, "standing": {contact: fault}}`."""
        scripts = {contact: list(faults) for contact, faults in self._scripts.copy().items() if faults}
        return {"script": scripts, "standing": self._standing.copy()}

    def _next_fault(self, addressed: list[str]) -> Fault:
        """One contact's order goes before everybody's, a script before a standing fault."""
        for contact in (*(name.lower() for name in addressed), EVERYBODY):
            if script := self._scripts.get(contact):
                return script.popleft()
            if contact in self._standing:
                return self._standing[contact]
        return NO_FAULT

    # Requests

    def handle(self, call: Call) -> Answer:
        """Judge, apply and record one request in one step; returns what to answer."""
        self.total += 1
        body, problem = _decode(call.raw)
        addressed = _addressed(call.query, body)
        fault = self._next_fault(addressed)
        applied, violation = False, None
        try:
            endpoint, query = self._admit(call)
            if problem:
                raise _violates(problem)
            value = endpoint.read(body, query, self.switches)
            applied = fault.kind == "ok" or fault.applied
            response = _json(endpoint.apply(self, value) if applied else OK)
        except _Refusal as refusal:
            applied, violation = refusal.applied, refusal.violation
            response = _json(refusal.body, refusal.status)
        if fault.kind != "ok":
            response = _faulty(fault)
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
            status=None if fault.kind in ("hang", "reset") else response.status_code,
            applied=applied,
            fault=None if fault is NO_FAULT else fault.kind,
            violation=violation,
        )
        self._requests.append(record)
        if violation:
            self._violations.append(record)
        return Answer(response, fault)

    def _admit(self, call: Call) -> tuple[_Endpoint, dict[str, str]]:
        """Everything about a request that comes before its body. Returns the query as well."""
        endpoint = _ENDPOINTS.get(call.path)
        if endpoint is None:
            raise _Refusal(404, f"unknown path {call.path}")
        if call.method != "POST":
            raise _Refusal(405, f"{call.method} instead of POST")
        legacy, pairs = bool(endpoint.parameters), parse_qsl(call.query, keep_blank_values=True)
        key = call.headers.get("api_key" if legacy else "x-team-apikey")
        if key != self.key or (legacy and dict(pairs).get("team_id") != self.team_id):
            raise _Refusal(401)
        if sorted(names := [name for name, _ in pairs]) != sorted(endpoint.parameters):
            raise _violates(f"query parameters {names}, expected {list(endpoint.parameters)}")
        content_type = call.headers.get("content-type", "")
        if not re.fullmatch(r'application/json(\s*;\s*charset="?utf-8"?)?', content_type, re.IGNORECASE):
            raise _violates(f"Content-Type is {content_type!r}, not application/json")
        if len(call.raw) > MAX_BODY_BYTES:
            raise _Refusal(413, f"a body of over {MAX_BODY_BYTES} bytes")
        return endpoint, dict(pairs)

    # Contacts

    def _keep(self, contact: Contact) -> Contact:
        contact = msgspec.structs.replace(contact, changed=self.total)
        self._contacts[contact.email.lower()] = contact
        return contact

    def _fresh(self, email: str) -> Contact:
        self._made += 1
        return Contact(id=_id22(f"{self.team_id}/{self._made}"), email=email)

    def _upsert(self, identify: Identify) -> Contact:
        known, to = self.contact(identify.email), identify.new_email
        if known is None and to is not UNSET and self.switches.new_email_unknown_old != "create_new":
            if self.switches.new_email_unknown_old == "not_found":
                raise _Refusal(404)
            to = UNSET
        if to is UNSET:
            to = known.email if known else identify.email
        other = self.contact(to)
        if other is not None and other is not known and self.switches.new_email_taken == "conflict":
            raise _Refusal(409)
        contact = merged(known or other or self._fresh(to), identify, self.switches)
        if other is not None:
            both = {**other.custom_fields, **contact.custom_fields}
            contact = msgspec.structs.replace(contact, tags=_united(other.tags, contact.tags), custom_fields=both)
        if known is not None and known.email.lower() != to.lower():
            del self._contacts[known.email.lower()]
        return self._keep(msgspec.structs.replace(contact, email=to))

    def _identify(self, identify: Identify) -> bytes:
        self._upsert(identify)
        return OK

    def _legacy_identify(self, identify: Identify) -> bytes:
        contact = self._upsert(identify)
        shown = msgspec.to_builtins(contact)
        names = ("tags", "firstName", "lastName", "email", "company", "birthday", "customFields")
        data = {"encryptedTeamId": _id22(self.team_id), "encryptedId": contact.id} | {
            name: shown[name] for name in names
        }
        return msgspec.json.encode({"status": "200", "message": "OK", "data": data})

    def _identify_all(self, items: list[Identify | _Refusal]) -> bytes:
        before, problems = self._contacts.copy(), list[_Refusal]()
        for item in items:
            try:
                if isinstance(item, _Refusal):
                    raise item
                self._upsert(item)
            except _Refusal as problem:
                problems.append(problem)
        if not problems:
            return BULK_OK
        first = problems[0]
        if self.switches.bulk_partial_failure == "reject_all":
            self._contacts = before
        else:
            first.applied = len(problems) < len(items)
        if self.switches.bulk_partial_failure == "apply_valid_200":
            first.status, first.body = 200, BULK_OK
        raise first

    def _track(self, track: Track) -> bytes:
        contact = self.contact(track.email)
        if contact is None:
            raise _Refusal(404)
        tags = _united(contact.tags, track.add_tags)
        kept = tuple(tag for tag in tags if tag not in track.remove_tags)
        self._keep(msgspec.structs.replace(contact, tags=kept))
        return OK

    def _legacy_track(self, track: Track) -> bytes:
        self._track(track)
        return LEGACY_TRACKED

    def _add_event(self, event: CustomEvent | RevenueEvent) -> bytes:
        by_id = (c for c in self._contacts.values() if c.id == event.identifier)
        contact = self.contact(event.identifier) or next(by_id, None)
        if contact is None:
            raise _Refusal(404)
        events = (*contact.events, msgspec.to_builtins(event))[-KEPT_EVENTS:]
        self._keep(msgspec.structs.replace(contact, events=events))
        return EVENT_OK


class _Endpoint(NamedTuple):
    """The query parameters of a path (only the legacy dialect has any), what reads its body, and what applies it."""

    parameters: tuple[str, ...]
    read: Callable[[Any, dict[str, str], Switches], Any]
    apply: Callable[[Sandbox, Any], bytes]


# fmt: off
_ENDPOINTS = {
    "/api/v1/rest/contact/identify": _Endpoint((), _read_identify, Sandbox._identify),
    "/api/v1/rest/contact/identify/bulk": _Endpoint((), _read_bulk, Sandbox._identify_all),
    "/api/v1/rest/contact/track": _Endpoint((), _read_track, Sandbox._track),
    "/api/v1/rest/events/custom": _Endpoint((), _read_as(CustomEvent), Sandbox._add_event),
    "/api/v1/rest/events/revenue": _Endpoint((), _read_as(RevenueEvent), Sandbox._add_event),
    "/api/v1/contact/identify": _Endpoint(("team_id",), _read_identify, Sandbox._legacy_identify),
    "/api/v1/contact/track": _Endpoint(("team_id", "email"), _read_track, Sandbox._legacy_track),
}
# fmt: on


def _faulty(fault: Fault) -> Response:
    """The answer that a fault puts in the place of the usual one."""
    bodies = {
        "html": f"<html><body><h1>{fault.status} {phrases.get(fault.status, 'Error')}</h1></body></html>",
        "error": documented_body(fault.status),
    }
    headers = {}
    if fault.retry_after is not None:
        moment = formatdate(time.time() + fault.retry_after, usegmt=True)
        headers["Retry-After"] = moment if fault.retry_after_date else str(fault.retry_after)
    body = bodies.get(fault.kind, "") if fault.body is None else fault.body
    return Response(body, fault.status, headers, "text/html" if fault.kind == "html" else "application/json")


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


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
    if fault.kind in ("hang", "reset"):
        await _reset(connection, receive)
    else:
        await response(scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _client_left(connection: Any, receive: Receive, seconds: float) -> bool:
    """Wait so long; return early when the client leaves (True) or the server stops (False).

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
    """Break the connection with a TCP reset, under uvicorn; elsewhere the call itself fails."""
    transport = getattr(connection, "transport", None)
    if transport is None:
        raise ConnectionResetError("the sandbox was told to break this connection")
    # Lingering for zero seconds makes close() send RST instead of FIN.
    no_linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    transport.abort()
    await _disconnected(receive)


# --- The control API: JSON under /sandbox/; a wrong order comes back as 400 `{"error", "message"}` --------------------


class Window(Struct, frozen=True):
    """Query of a list: what is newer than number `since`, and `limit` of it at most."""

    since: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=0)] = sys.maxsize


def _window(request: Request) -> Window:
    return msgspec.convert(dict(request.query_params), Window, strict=False)


def _newest(records: list[Recorded], limit: int) -> list[Recorded]:
    return records[max(0, len(records) - limit) :]


def _said(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, {"Cache-Control": "no-store"}, "application/json")


async def _contacts(request: Request) -> Response:
    """GET: `{"total", "contacts": [Contact]}`, the last changed first; `?limit=N` keeps the first N."""
    contacts = request.app.state.sandbox.contacts
    return _said({"total": len(contacts), "contacts": contacts[: _window(request).limit]})


async def _requests(request: Request) -> Response:
    """GET: `{"total", "generation", "requests": [Recorded]}` in order of arrival.

    `?since=N` leaves out the numbers up to N, `?limit=N` all but the newest N. `generation` grows with every clear, when numbers
    start at 1 again.
    """
    sandbox, window = request.app.state.sandbox, _window(request)
    newest = _newest([record for record in sandbox.requests if record.number > window.since], window.limit)
    return _said({"total": sandbox.total, "generation": sandbox.generation, "requests": newest})


async def _violations(request: Request) -> Response:
    """GET: `{"total", "violations": [Recorded]}` in order of arrival; `?limit=N` keeps the newest N."""
    violations = request.app.state.sandbox.violations
    return _said({"total": len(violations), "violations": _newest(violations, _window(request).limit)})


async def _faults(request: Request) -> Response:
    """GET: the faults still to come, `{"script": {contact: [Fault]}, "standing": {contact: Fault}}`.

    POST a `FaultOrder`: `{"contact": "a@b.co", "script": [Fault, ...]}` answers the next requests one by one, `{"standing": Fault}`
    every one until `{"standing": null}`, `{"clear": true}` removes all. Without `contact` it is for everybody. Answers as GET does.
    """
    sandbox = request.app.state.sandbox
    if request.method == "POST":
        order = msgspec.json.decode(await request.body(), type=FaultOrder)
        if order.clear:
            sandbox.heal()
        if order.script is not UNSET:
            sandbox.script(order.contact, *order.script)
        if order.standing is not UNSET:
            sandbox.stand(order.contact, order.standing)
    return _said(sandbox.faults)


async def _switches(request: Request) -> Response:
    """GET: every switch and its value. POST some of them to set these; answers as GET does."""
    sandbox = request.app.state.sandbox
    if request.method == "POST":
        order = msgspec.json.decode(await request.body(), type=dict[str, str])
        sandbox.switches = msgspec.convert(msgspec.to_builtins(sandbox.switches) | order, Switches)
    return _said(sandbox.switches)


async def _clear(request: Request) -> Response:
    """POST: forget contacts, requests, violations and faults; switches stay. Answers `{}`."""
    request.app.state.sandbox.clear()
    return _said({})


async def _refused(_: Request, problem: Exception) -> Response:
    return _said({"error": "bad-order", "message": str(problem)}, 400)


# --- The page and the app ---------------------------------------------------------------------------------------------

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


class _App(Starlette):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        # A client with a wrong base URL posts anywhere: that is recorded too.
        posted = scope.get("method") == "POST" and not path.startswith("/sandbox/")
        if path.startswith("/api/") or posted:
            await _serve_api(self.state.sandbox, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_sandbox(*, key: str = "sandbox", team_id: str = "sandbox") -> Starlette:
    """Build the fake SendX as an ASGI app; its `Sandbox` is at `app.state.sandbox`.

    `key` is the only API key it takes, `team_id` the only team id (dialect `legacy`). The dialects live under `/api/v1/rest` and
    `/api/v1`, the control API under `/sandbox/`, the page at `/`.
    """
    routes = [
        Route("/", _page),
        Route("/sandbox/contacts", _contacts),
        Route("/sandbox/requests", _requests),
        Route("/sandbox/violations", _violations),
        Route("/sandbox/faults", _faults, methods=["GET", "POST"]),
        Route("/sandbox/switches", _switches, methods=["GET", "POST"]),
        Route("/sandbox/clear", _clear, methods=["POST"]),
    ]
    app = _App(routes=routes, exception_handlers={msgspec.MsgspecError: _refused})
    app.state.sandbox = Sandbox(key, team_id)
    return app
