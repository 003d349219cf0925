"""A fake SendX: both dialects of its API, its contacts, its faults, and a page that shows what arrived.

It answers with the bodies that the SendX docs publish and merges contacts as they describe, so a test, the
demo or a person can see a tag land without an account. Where the docs are silent, a switch decides (see
`Switches`). It is strict on purpose: a request that SendX's schema does not know is answered 422, recorded
as a violation and shown in red. Faults can be ordered for one contact or for everybody (see `Fault`).

It refuses to be more than that: it keeps nothing on disk, sends no mail, runs no automation, checks no rate
limit of its own, and imports nothing from the rest of the package.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import secrets
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import parse_qsl

import jinja2
import msgspec
import uvicorn
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

KEPT_REQUESTS = 10_000
KEPT_EVENTS = 100
MAX_BODY_BYTES = 256 * 1024
EVERYBODY = "*"
SECRET_HEADERS = {"x-team-apikey", "api_key", "authorization", "cookie"}

# ---------------------------------------------------------------------------------------------------------
# SendX's answers, byte for byte (source: SendX docs)

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
    """Return the body that SendX's docs show for a status; undocumented ones carry the HTTP phrase."""
    if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return b""
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return OK
    if status == HTTPStatus.UNAUTHORIZED:
        return UNAUTHORIZED
    return msgspec.json.encode({"status": "error", "message": MESSAGES.get(status) or _phrase(status)})


def _phrase(status: int) -> str:
    return next((known.phrase for known in HTTPStatus if known == status), "Error")


def _id22(seed: str) -> str:
    """An id as SendX shows them, 22 characters; the same seed gives the same id."""
    digest = hashlib.sha256(seed.encode()).digest()[:16]
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


# ---------------------------------------------------------------------------------------------------------
# SendX's request schema. Unknown keys, nulls and wrong types do not decode.

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


# ---------------------------------------------------------------------------------------------------------
# What a test or a person may set

Acceptance: TypeAlias = Literal["accept", "reject"]


@dataclass(frozen=True)
class Switches:
    """What SendX's docs leave open, one switch each. The defaults are a guess, not a fact.

    `birthday`, `lists`: does `rest` identify take the key (pages show it, the schema does not).
    `number_in_custom_fields`: is a JSON number taken as a custom field's value.
    `decrement_absent`: `--10` on a field that does not exist makes -10 or 10.
    `new_email_unknown_old`: `newEmail` for an unknown contact creates it under the new or the old address,
    or is a 404. `new_email_taken`: a 409, or both contacts become one.
    `bulk_partial_failure`: with one bad item, take none (its error), or take the good ones and say 200 or 422.
    """

    birthday: Acceptance = "accept"
    lists: Acceptance = "accept"
    number_in_custom_fields: Acceptance = "reject"
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


class FaultOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /sandbox/faults."""

    contact: str = EVERYBODY
    script: list[Fault] | UnsetType = UNSET
    standing: Fault | UnsetType | None = UNSET
    clear: bool = False


# ---------------------------------------------------------------------------------------------------------
# What the sandbox remembers


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


class Answer(Struct, frozen=True):
    """What goes back, and after how many seconds. An `ending` other than `answer` sends no bytes."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    ending: Literal["answer", "hang", "reset"] = "answer"
    delay: float = 0.0


class _RefusalError(Exception):
    """A request not applied as asked: what to answer, and the violation if it broke the schema."""

    def __init__(self, status: int, violation: str | None = None, *, applied: bool = False) -> None:
        super().__init__(violation or str(status))
        self.answer = Answer(status, documented_body(status))
        self.violation = violation
        self.applied = applied


# ---------------------------------------------------------------------------------------------------------
# Reading a request: strict, and a refusal says what is wrong

# The query parameters of each path.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "/api/v1/rest/contact/identify": (),
    "/api/v1/rest/contact/identify/bulk": (),
    "/api/v1/rest/contact/track": (),
    "/api/v1/rest/events/custom": (),
    "/api/v1/rest/events/revenue": (),
    "/api/v1/contact/identify": ("team_id",),
    "/api/v1/contact/track": ("team_id", "email"),
}


def _violates(reason: str) -> _RefusalError:
    return _RefusalError(HTTPStatus.UNPROCESSABLE_ENTITY, reason)


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise _violates(f"the body is not JSON: {problem}") from None


def _decoded_or_none(raw: bytes) -> Any:
    try:
        return _decoded(raw)
    except _RefusalError:
        return None


def _convert(body: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as problem:
        reason = str(problem).replace(f"`str` matching regex {ADDRESS!r}", "an e-mail address")
        raise _violates(reason) from None


def _read_query(query: str, allowed: tuple[str, ...]) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in pairs]
    if sorted(names) != sorted(allowed):
        raise _violates(f"query parameters {names}, expected {list(allowed)}")
    return dict(pairs)


def _check_content_type(headers: dict[str, str]) -> None:
    given = headers.get("content-type", "")
    if not re.fullmatch(r'application/json(\s*;\s*charset="?utf-8"?)?', given, re.IGNORECASE):
        raise _violates(f"Content-Type is {given!r}, not application/json")


def _read_identify(body: Any, switches: Switches, *, legacy: bool) -> Identify:
    identify: Identify = _convert(body, Identify)
    if identify.lists is not UNSET and (legacy or switches.lists == "reject"):
        raise _violates("Object contains unknown field `lists`")
    if identify.birthday is not UNSET and not legacy and switches.birthday == "reject":
        raise _violates("Object contains unknown field `birthday`")
    numbers = [name for name, value in (identify.custom_fields or {}).items() if not isinstance(value, str)]
    if numbers and switches.number_in_custom_fields == "reject":
        raise _violates(f"Expected `str`, got a number - at `$.customFields`, {numbers}")
    return identify


def _read_bulk(body: Any, switches: Switches) -> list[Identify | _RefusalError]:
    if not isinstance(body, list) or not 1 <= len(body) <= 25:
        raise _violates("bulk takes an array of 1 to 25 contacts")
    items: list[Identify | _RefusalError] = []
    for position, item in enumerate(body):
        try:
            items.append(_read_identify(item, switches, legacy=False))
        except _RefusalError as refusal:
            items.append(_violates(f"item {position}: {refusal.violation}"))
    return items


def _read_legacy_track(body: Any, query: dict[str, str]) -> Track:
    if isinstance(body, dict) and "email" in body:
        raise _violates("Object contains unknown field `email`: it stands in the query")
    track: Track = _convert(body | {"email": query["email"]} if isinstance(body, dict) else body, Track)
    return track


def _addressed(query: str, body: Any) -> list[str]:
    """Whom a request is about, as far as it can be told, even when it is malformed."""
    in_query = [value for name, value in parse_qsl(query) if name == "email"]
    items = body if isinstance(body, list) else [body]
    named = (item.get("email", item.get("identifier")) for item in items if isinstance(item, dict))
    return in_query or [name for name in named if isinstance(name, str)]


# ---------------------------------------------------------------------------------------------------------
# Merging contacts (source: SendX docs). Pure.


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(old: str | None, given: str, switches: Switches) -> str:
    """Return a custom field's value after `given`: `++n` adds and `--n` subtracts, anything else replaces.

    The docs know increments of number fields only; on a field that holds text this one is stored as it is.
    """
    step = re.fullmatch(r"(\+\+|--)(\d{1,15}(?:\.\d{1,9})?)", given, re.ASCII)
    if not step or (old is not None and not re.fullmatch(r"-?\d{1,20}(\.\d{1,9})?", old, re.ASCII)):
        return given
    size = Decimal(step[2])
    if step[1] == "--" and (old is not None or switches.decrement_absent == "negative"):
        size = -size
    return _plain(Decimal(old or 0) + size)


def _united(old: tuple[str, ...], new: tuple[str, ...] | UnsetType) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *(new or ()))))


def merged(contact: Contact, identify: Identify, switches: Switches) -> Contact:
    """Fold an identify into a contact: omitted fields stay, tags unite, custom fields merge by key."""
    custom = dict(contact.custom_fields)
    for name, value in (identify.custom_fields or {}).items():
        custom[name] = counted(custom.get(name), str(value), switches)
    plain = ("first_name", "last_name", "company", "birthday")
    given = {name: getattr(identify, name) for name in plain}
    return msgspec.structs.replace(
        contact,
        tags=_united(contact.tags, identify.tags),
        lists=_united(contact.lists, identify.lists),
        custom_fields=custom,
        **{name: str(value) for name, value in given.items() if value is not UNSET},
    )


# ---------------------------------------------------------------------------------------------------------
# The state


class Sandbox:
    """All that the fake SendX knows. Safe to read from another thread while it serves."""

    def __init__(self, key: str = "sandbox", team_id: str = "sandbox") -> None:
        self.key = key
        self.team_id = team_id
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

    def _next_fault(self, addressed: list[str]) -> Fault | None:
        """One contact's order goes before everybody's, a script before a standing fault."""
        for contact in (*(name.lower() for name in addressed), EVERYBODY):
            if script := self._scripts.get(contact):
                return script.popleft()
            if contact in self._standing:
                return self._standing[contact]
        return None

    # Requests

    def handle(self, call: Call) -> Answer:
        """Judge, apply and record one request in one step; returns what to answer."""
        self.total += 1
        body = _decoded_or_none(call.raw)
        addressed = _addressed(call.query, body)
        fault = self._next_fault(addressed)
        answer, applied, violation = Answer(HTTPStatus.OK, OK), False, None
        try:
            apply = self._read(call)
            if fault is None or fault.kind == "ok" or fault.applied:
                answer, applied = Answer(HTTPStatus.OK, apply()), True
        except _RefusalError as refusal:
            answer, applied, violation = refusal.answer, refusal.applied, refusal.violation
        if fault is not None:
            answer = _faulty(fault, answer)
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
            status=answer.status if answer.ending == "answer" else None,
            applied=applied,
            fault=fault.kind if fault else None,
            violation=violation,
        )
        self._requests.append(record)
        if violation:
            self._violations.append(record)
        return answer

    def _read(self, call: Call) -> Callable[[], bytes]:
        """Check path, method and key, then the schema; returns what applies the request and gives its body."""
        legacy = not call.path.startswith("/api/v1/rest/")
        if call.path not in PARAMETERS:
            raise _RefusalError(HTTPStatus.NOT_FOUND, f"unknown path {call.path}")
        if call.method != "POST":
            raise _RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, f"{call.method} instead of POST")
        team_id = dict(parse_qsl(call.query)).get("team_id")
        key = call.headers.get("api_key" if legacy else "x-team-apikey")
        if key != self.key or (legacy and team_id != self.team_id):
            raise _RefusalError(HTTPStatus.UNAUTHORIZED)
        query = _read_query(call.query, PARAMETERS[call.path])
        _check_content_type(call.headers)
        if len(call.raw) > MAX_BODY_BYTES:
            raise _RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of over {MAX_BODY_BYTES} bytes")
        return self._reader(call.path, query, _decoded(call.raw))

    def _reader(self, path: str, query: dict[str, str], body: Any) -> Callable[[], bytes]:
        match path:
            case "/api/v1/rest/contact/identify":
                return partial(self._identify, _read_identify(body, self.switches, legacy=False))
            case "/api/v1/rest/contact/identify/bulk":
                return partial(self._identify_all, _read_bulk(body, self.switches))
            case "/api/v1/rest/contact/track":
                return partial(self._track, _convert(body, Track))
            case "/api/v1/rest/events/custom":
                return partial(self._add_event, _convert(body, CustomEvent))
            case "/api/v1/rest/events/revenue":
                return partial(self._add_event, _convert(body, RevenueEvent))
            case "/api/v1/contact/identify":
                return partial(self._legacy_identify, _read_identify(body, self.switches, legacy=True))
            case _:
                return partial(self._track, _read_legacy_track(body, query), answer=LEGACY_TRACKED)

    # Contacts

    def _keep(self, contact: Contact) -> Contact:
        contact = msgspec.structs.replace(contact, changed=self.total)
        self._contacts[contact.email.lower()] = contact
        return contact

    def _fresh(self, email: str) -> Contact:
        self._made += 1
        return Contact(id=_id22(f"{self.team_id}/{self._made}"), email=email)

    def _upsert(self, identify: Identify) -> Contact:
        known, new_email = self.contact(identify.email), identify.new_email
        if known is None and isinstance(new_email, str):
            if self.switches.new_email_unknown_old == "not_found":
                raise _RefusalError(HTTPStatus.NOT_FOUND)
            if self.switches.new_email_unknown_old == "create_old":
                new_email = UNSET
        if isinstance(new_email, str):
            return self._move(known, identify, new_email)
        return self._keep(merged(known or self._fresh(identify.email), identify, self.switches))

    def _move(self, known: Contact | None, identify: Identify, new_email: str) -> Contact:
        taken = self.contact(new_email)
        if taken is not None and taken is not known and self.switches.new_email_taken == "conflict":
            raise _RefusalError(HTTPStatus.CONFLICT)
        contact = merged(known or taken or self._fresh(new_email), identify, self.switches)
        if known is not None:
            del self._contacts[known.email.lower()]
        if taken is not None:
            both = {**taken.custom_fields, **contact.custom_fields}
            tags = _united(taken.tags, contact.tags)
            contact = msgspec.structs.replace(contact, tags=tags, custom_fields=both)
        return self._keep(msgspec.structs.replace(contact, email=new_email))

    def _identify(self, identify: Identify) -> bytes:
        self._upsert(identify)
        return OK

    def _legacy_identify(self, identify: Identify) -> bytes:
        contact = self._upsert(identify)
        data = {
            "encryptedTeamId": _id22(self.team_id),
            "encryptedId": contact.id,
            "tags": contact.tags,
            "firstName": contact.first_name,
            "lastName": contact.last_name,
            "email": contact.email,
            "company": contact.company,
            "birthday": contact.birthday,
            "customFields": contact.custom_fields,
        }
        return msgspec.json.encode({"status": "200", "message": "OK", "data": data})

    def _identify_all(self, items: list[Identify | _RefusalError]) -> bytes:
        before = self._contacts.copy()
        outcomes = [item if isinstance(item, _RefusalError) else self._attempt(item) for item in items]
        problems = [outcome for outcome in outcomes if outcome is not None]
        if not problems:
            return BULK_OK
        problem = problems[0]
        if self.switches.bulk_partial_failure == "reject_all":
            self._contacts = before
            raise problem
        problem.applied = len(problems) < len(items)
        if self.switches.bulk_partial_failure == "apply_valid_200":
            problem.answer = Answer(HTTPStatus.OK, BULK_OK)
        raise problem

    def _attempt(self, identify: Identify) -> _RefusalError | None:
        try:
            self._upsert(identify)
        except _RefusalError as problem:
            return problem
        return None

    def _track(self, track: Track, answer: bytes = OK) -> bytes:
        contact = self.contact(track.email)
        if contact is None:
            raise _RefusalError(HTTPStatus.NOT_FOUND)
        tags = _united(contact.tags, track.add_tags)
        kept = tuple(tag for tag in tags if tag not in track.remove_tags)
        self._keep(msgspec.structs.replace(contact, tags=kept))
        return answer

    def _add_event(self, event: CustomEvent | RevenueEvent) -> bytes:
        by_id = (c for c in self._contacts.values() if c.id == event.identifier)
        contact = self.contact(event.identifier) or next(by_id, None)
        if contact is None:
            raise _RefusalError(HTTPStatus.NOT_FOUND)
        events = (*contact.events, msgspec.to_builtins(event))[-KEPT_EVENTS:]
        self._keep(msgspec.structs.replace(contact, events=events))
        return EVENT_OK


def _faulty(fault: Fault, usual: Answer) -> Answer:
    """Return what a fault makes of the usual answer."""
    if fault.kind == "ok":
        return msgspec.structs.replace(usual, delay=fault.delay)
    if fault.kind in ("hang", "reset"):
        return Answer(0, b"", ending=fault.kind, delay=fault.delay)
    bodies = {
        "html": f"<html><body><h1>{fault.status} {_phrase(fault.status)}</h1></body></html>".encode(),
        "empty": b"",
        "error": documented_body(fault.status),
    }
    return Answer(
        fault.status,
        bodies[fault.kind] if fault.body is None else fault.body.encode(),
        media_type="text/html" if fault.kind == "html" else "application/json",
        headers=_retry_after(fault),
        delay=fault.delay,
    )


def _retry_after(fault: Fault) -> dict[str, str]:
    if fault.retry_after is None:
        return {}
    if fault.retry_after_date:
        return {"Retry-After": formatdate(time.time() + fault.retry_after, usegmt=True)}
    return {"Retry-After": str(fault.retry_after)}


# ---------------------------------------------------------------------------------------------------------
# The API on the wire

# Where the app leaves the server's own `send`, before Starlette wraps it.
SERVER_SEND = "sandbox.send"
LOOK_SECONDS = 0.1


class _Api:
    """The endpoint behind every API path, as plain ASGI: hangs and resets need the connection itself."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            raw = await _read_body(request)
        except ClientDisconnect:
            return
        call = Call(
            method=request.method,
            path=scope.get("raw_path", request.url.path.encode()).decode("ascii"),
            query=request.url.query,
            headers=dict(request.headers),
            raw=raw,
        )
        answer = self.sandbox.handle(call)
        connection = getattr(scope[SERVER_SEND], "__self__", None)
        if answer.delay or answer.ending == "hang":
            seconds = None if answer.ending == "hang" else answer.delay
            if await _client_left(connection, receive, seconds):
                return
        if answer.ending == "answer":
            response = Response(answer.body, answer.status, answer.headers, answer.media_type)
            await response(scope, receive, send)
        else:
            await _reset(connection, receive)


async def _read_body(request: Request) -> bytes:
    """Read a body, but keep no more of it than is needed to see that it is too long."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk[: MAX_BODY_BYTES + 1 - len(raw)]
    return bytes(raw)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _client_left(connection: Any, receive: Receive, seconds: float | None) -> bool:
    """Wait so long, or for ever; return early when the client leaves (True) or the server stops (False).

    uvicorn tells an app that it stops only after every request has ended. But it takes `keep_alive` from
    requests in progress first, and that is what this watches; a server without it ends a hang by cancelling.
    """
    gone = asyncio.ensure_future(_disconnected(receive))
    deadline = None if seconds is None else time.monotonic() + seconds
    kept_alive = getattr(connection, "keep_alive", True)
    if connection is not None:
        connection.keep_alive = True
    try:
        while getattr(connection, "keep_alive", True) and not gone.done():
            left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
            if left <= 0:
                break
            await asyncio.wait({gone}, timeout=left)
        return gone.done()
    finally:
        gone.cancel()
        if connection is not None:
            connection.keep_alive = connection.keep_alive and kept_alive


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


# ---------------------------------------------------------------------------------------------------------
# The control API and the page


class _Control:
    """JSON under /sandbox/. What is wrong with an order comes back as 400 `{"error", "message"}`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def contacts(self, request: Request) -> Response:
        """GET: `{"total", "contacts": [Contact]}`, the last changed first; `?limit=N` keeps the first N."""
        contacts = self.sandbox.contacts
        return _json({"total": len(contacts), "contacts": contacts[: _number(request, "limit", len(contacts))]})

    async def requests(self, request: Request) -> Response:
        """GET: `{"total", "generation", "requests": [Recorded]}` in order of arrival.

        `?since=N` leaves out the numbers up to N, `?limit=N` all but the newest N. `generation` grows with
        every clear, when numbers start at 1 again.
        """
        since = _number(request, "since", 0)
        found = [record for record in self.sandbox.requests if record.number > since]
        newest = found[max(0, len(found) - _number(request, "limit", len(found))) :]
        return _json({"total": self.sandbox.total, "generation": self.sandbox.generation, "requests": newest})

    async def violations(self, request: Request) -> Response:
        """GET: `{"total", "violations": [Recorded]}` in order of arrival; `?limit=N` keeps the newest N."""
        violations = self.sandbox.violations
        newest = violations[max(0, len(violations) - _number(request, "limit", len(violations))) :]
        return _json({"total": len(violations), "violations": newest})

    async def faults(self, request: Request) -> Response:
        """GET: the faults still to come, `{"script": {contact: [Fault]}, "standing": {contact: Fault}}`.

        POST a `FaultOrder`: `{"contact": "a@b.co", "script": [Fault, ...]}` answers the next requests one by
        one, `{"standing": Fault}` every one until `{"standing": null}`, `{"clear": true}` removes all. Without
        `contact` it is for everybody. Answers as GET does.
        """
        if request.method == "POST":
            order = msgspec.json.decode(await request.body(), type=FaultOrder)
            if order.clear:
                self.sandbox.heal()
            if order.script is not UNSET:
                self.sandbox.script(order.contact, *order.script)
            if order.standing is not UNSET:
                self.sandbox.stand(order.contact, order.standing)
        return _json(self.sandbox.faults)

    async def switches(self, request: Request) -> Response:
        """GET: every switch and its value. POST some of them to set these; answers as GET does."""
        if request.method == "POST":
            order = msgspec.json.decode(await request.body(), type=dict[str, str])
            values = asdict(self.sandbox.switches)
            if unknown := sorted(order.keys() - values.keys()):
                raise ValueError(f"unknown switches {unknown}; there are {sorted(values)}")
            self.sandbox.switches = msgspec.convert(values | order, Switches)
        return _json(asdict(self.sandbox.switches))

    async def clear(self, _: Request) -> Response:
        """POST: forget contacts, requests, violations and faults; switches stay. Answers `{}`."""
        self.sandbox.clear()
        return _json({})

    async def refused(self, _: Request, problem: Exception) -> Response:
        """Say what is wrong with an order."""
        return _json({"error": "bad-order", "message": str(problem)}, HTTPStatus.BAD_REQUEST)


def _json(content: Any, status: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(content), status, {"Cache-Control": "no-store"}, "application/json")


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(f"{name} is {text!r}, not a whole number")
    return int(text)


def _page(sandbox: Sandbox) -> Callable[[Request], Awaitable[Response]]:
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    template = jinja2.Environment(loader=folder, autoescape=True).get_template("sandbox.html")

    async def page(request: Request) -> Response:
        """GET /: contacts, requests and violations as they arrive, and buttons for the common faults."""
        nonce = secrets.token_urlsafe(16)
        only_this = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
        policy = f"{only_this}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
        text = template.render(nonce=nonce, base=str(request.base_url), team_id=sandbox.team_id)
        return Response(text, headers={"Content-Security-Policy": policy}, media_type="text/html")

    return page


# ---------------------------------------------------------------------------------------------------------
# The app


class _App(Starlette):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SERVER_SEND] = send
        await super().__call__(scope, receive, send)


def create_sandbox(*, key: str = "sandbox", team_id: str = "sandbox") -> Starlette:
    """Build the fake SendX as an ASGI app; its `Sandbox` is at `app.state.sandbox`.

    `key` is the only API key it takes, `team_id` the only team id (dialect `legacy`). The dialects live under
    `/api/v1/rest` and `/api/v1`, the control API under `/sandbox/`, the page at `/`.
    """
    sandbox = Sandbox(key, team_id)
    control = _Control(sandbox)
    api = _Api(sandbox)
    routes = [
        Route("/", _page(sandbox)),
        Route("/sandbox/contacts", control.contacts),
        Route("/sandbox/requests", control.requests),
        Route("/sandbox/violations", control.violations),
        Route("/sandbox/faults", control.faults, methods=["GET", "POST"]),
        Route("/sandbox/switches", control.switches, methods=["GET", "POST"]),
        Route("/sandbox/clear", control.clear, methods=["POST"]),
        Route("/api/{path:path}", api),
        # A client with a wrong base URL posts anywhere: record that too.
        Route("/{path:path}", api, methods=["POST"]),
    ]
    refusals = dict.fromkeys((msgspec.MsgspecError, ValueError), control.refused)
    app = _App(routes=routes, exception_handlers=refusals)
    app.state.sandbox = sandbox
    return app


def run(host: str, port: int, key: str, team_id: str) -> None:
    """Serve the sandbox until Ctrl-C; port 0 takes a free one. Exits with a message if it cannot listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as problem:
        raise SystemExit(f"Cannot listen on {host} port {port}: {problem.strerror}. Try another --port.") from None
    base = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    sys.stdout.write(
        f"SendX sandbox, API key {key}, team id {team_id}\n"
        f"  page    {base}/\n"
        f"  rest    {base}/api/v1/rest\n"
        f"  legacy  {base}/api/v1\n"
        "Stop with Ctrl-C.\n"
    )
    sys.stdout.flush()
    config = uvicorn.Config(create_sandbox(key=key, team_id=team_id), log_level="warning", ws="none")
    with listener, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
