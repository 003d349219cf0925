"""The edge for the site's own servers: identify, bulk identify and track, spoken as SendX speaks them (source: SendX docs), in both dialects.

SendX's official SDKs work unchanged with only the host replaced. An answer of 200 means that the call is durable here; it is sent on
later, in order per contact. A server is trusted like an identity token's `contact`: no list of tags or fields restricts it.

It refuses browsers, since a server key that is in a page is everybody's; it stores a call whole or not at all; and it offers no other part
of SendX's API.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from proxy.answers import Header, send_json, send_not_found
from proxy.bodies import MAX_BODY, Gone, read_body
from proxy.edge import RateLimit, scan
from proxy.errors import RequestError, StoreUnavailable, describe
from proxy.identity import Trust
from proxy.outbox import Kind
from proxy.plans import Decide, EndAlias, Enqueue, Facts, Op, Plan, Refused, Remember, Verify
from proxy.pushes import (
    FIELDS,
    MAX_NAMES,
    MAX_TEXT,
    Attributes,
    BadPush,
    Identify,
    Reason,
    Track,
    clean_address,
    lane_key,
    parse_call,
    read_json,
)

MAX_BULK = 25
MAX_BULK_BODY = MAX_BULK * 16_384  # bytes
MAX_DEPTH = 8  # levels of JSON in a value that is passed on unread
LANE_FULL_SECONDS = 60  # after which a contact with too much waiting is worth another try

log = logging.getLogger("proxy.server_api")


class Operation(msgspec.Struct, frozen=True):
    """What a path does. `name`: tells the same Idempotency-Key on two operations apart."""

    name: str
    kind: Kind
    legacy: bool = False
    bulk: bool = False


OPERATIONS: Mapping[str, Operation] = {
    "/api/v1/rest/contact/identify": Operation("identify", Kind.IDENTIFY),
    "/api/v1/rest/contact/identify/bulk": Operation("identify-bulk", Kind.IDENTIFY, bulk=True),
    "/api/v1/rest/contact/track": Operation("track", Kind.TRACK),
    "/api/v1/contact/identify": Operation("identify", Kind.IDENTIFY, legacy=True),
    "/api/v1/contact/track": Operation("track", Kind.TRACK, legacy=True),
}


class ServerPush(msgspec.Struct, frozen=True):
    address: str
    body: Attributes | Track


class ServerCall(msgspec.Struct, frozen=True):
    """One call. `ids`: a random one for each push, which counts unless the caller gave an `idempotency_key`."""

    operation: str
    pushes: tuple[ServerPush, ...]
    ids: tuple[str, ...]
    idempotency_key: str | None = None


class Outcome(Enum):
    STORED = auto()
    DUPLICATE = auto()  # the same call is stored already
    KEY_REUSED = auto()  # another call is stored under this Idempotency-Key
    LANE_FULL = auto()  # nothing is stored


# --- The decision -------------------------------------------------------------------------------------------------------


def admit(call: ServerCall, facts: Facts, lane_max: int) -> Plan:
    """What to store for the call, and what came of it (`Plan.answer` is an `Outcome`).

    Pure: the outbox calls it inside the transaction that carries the plan out. All of the call or nothing. An erasure does not stand in
    the way: whoever calls now knows this person, and a retry of an older call is known by its ids.
    """
    ids = call.ids
    fingerprint = None
    if call.idempotency_key is not None:
        ids, fingerprint = _derived(call, call.idempotency_key, facts.site_key)
        seen = [facts.seen(push_id) for push_id in ids]
        if any(seen):
            same = all(each is not None and each.shown == fingerprint for each in seen)
            return Plan((), Outcome.DUPLICATE if same else Outcome.KEY_REUSED)
    gains = Counter(lane_key(push.address) for push in call.pushes)
    if any(facts.lane(key).waiting + count > lane_max for key, count in gains.items()):
        return Plan(tuple(Refused(Reason.LANE_FULL) for _ in call.pushes), Outcome.LANE_FULL)
    ops: list[Op] = []
    for push_id, push in zip(ids, call.pushes, strict=True):
        ops += _stored(push_id, push)
        if fingerprint is not None:
            ops.append(Remember(push_id, fingerprint))
    return Plan(tuple(ops), Outcome.STORED)


def _stored(push_id: str, push: ServerPush) -> Iterable[Op]:
    key = lane_key(push.address)
    yield Enqueue(push_id, key, push.address, Trust.VERIFIED, push.body)
    yield Verify(key)
    if isinstance(push.body, Attributes):
        yield EndAlias(key)  # only an identify says that this address is somebody's: a track can be a straggler


def _derived(call: ServerCall, idempotency_key: str, site_key: bytes) -> tuple[tuple[str, ...], str]:
    """An id for each push, and the fingerprint by which a retry is told from another call under the same key.

    Keyed with the store's secret: nobody can compute the id of a push, or find out what a remembered call said.
    """
    content = msgspec.json.encode(call.pushes, order="sorted")
    ids = [
        _keyed(f"server-push:{call.operation}:{index}:{idempotency_key}".encode(), site_key)
        for index in range(len(call.pushes))
    ]
    return tuple(ids), _keyed(b"server-call:" + content, site_key)


def _keyed(text: bytes, site_key: bytes) -> str:
    return base64.urlsafe_b64encode(hmac.digest(site_key, text, "sha256")).rstrip(b"=").decode("ascii")


# --- The edge -----------------------------------------------------------------------------------------------------------


class Appender(Protocol):
    async def append(self, decide: Decide) -> Plan: ...


class ServerKeys:
    """The keys of SCQ_SERVER_KEYS; only digests are kept. False without any."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, given: bytes) -> int | None:
        """Which key it is, None for no key. Takes the same time for each: all are compared, by their digests."""
        digest = _digest(given)
        matches = [hmac.compare_digest(known, digest) for known in self._digests]
        return matches.index(True) if any(matches) else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class ServerApi:
    """The ASGI application of the paths in `OPERATIONS`. `team_id`: what a legacy call may not contradict.

    Without keys it does not exist: 404. `keys` may be replaced while it serves.
    """

    def __init__(
        self, outbox: Appender, *, keys: ServerKeys, rate: RateLimit, lane_max: int, team_id: str | None = None
    ) -> None:
        self._outbox = outbox
        self.keys = keys
        self._rate, self._lane_max, self._team_id = rate, lane_max, team_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = OPERATIONS.get(scope["path"])
        if operation is None or not self.keys:
            await send_not_found(scope, receive, send)
            return
        try:
            body = await self._call(operation, scope, receive)
        except RequestError as error:
            await _send_error(send, error)
        except Gone:
            return
        except Exception as error:
            # A defect of ours. Nothing was stored; the log says where to look, not what was sent.
            log.error("A server's call could not be judged: %s", describe(error))
            message = "The call could not be stored: the log of the proxy says more."
            await _send_error(send, RequestError(503, "defect", message, retry_after=30))
        else:
            await send_json(send, 200, body)

    async def _call(self, operation: Operation, scope: Scope, receive: Receive) -> bytes:
        """The body of a 200."""
        headers = scan(scope["headers"])
        if headers.origin is not None or headers.fetch_site is not None:
            raise RequestError(
                403,
                "browser",
                "This request comes from a browser. Server keys do not belong in pages: whoever reads one can act as anybody. "
                "Push from pages with the shim, and replace this key if a page has it.",
            )
        if scope["method"] != "POST":
            raise RequestError(405, "method-not-allowed", "Send the call by POST.")
        query = _query(scope) if operation.legacy else {}
        name = str(self._authenticated(operation, scope, query))
        idempotency_key = _idempotency_key(scope)
        self._require_rate(name)
        pushes: tuple[ServerPush, ...] = ()
        try:
            limit = MAX_BULK_BODY if operation.bulk else MAX_BODY
            pushes = _parse(operation, await read_body(scope, receive, headers.content_length, limit), query)
        finally:
            self._rate.spend(name, max(1, len(pushes)), time.monotonic())
        ids = tuple(secrets.token_urlsafe(16) for _ in pushes)
        await self._store(ServerCall(operation.name, pushes, ids, idempotency_key))
        return _answer(operation, pushes)

    def _authenticated(self, operation: Operation, scope: Scope, query: Mapping[str, Sequence[str]]) -> int:
        """Which key the caller has. Raises 401."""
        given = _values(scope, b"api_key" if operation.legacy else b"x-team-apikey")
        found = self.keys.find(given[0] if len(given) == 1 else b"")
        teams = query.get("team_id", ())
        if found is None or (self._team_id is not None and any(team != self._team_id for team in teams)):
            raise RequestError(401, "unauthorized", "The Team ID or API Key specified is not valid")
        return found

    def _require_rate(self, name: str) -> None:
        try:
            self._rate.require(name, time.monotonic())
        except RequestError as error:
            message = "Rate limit exceeded: this key has sent too many pushes. Try again later."
            raise RequestError(429, "too-fast", message, retry_after=error.retry_after) from None

    async def _store(self, call: ServerCall) -> None:
        try:
            plan = await self._outbox.append(lambda facts: admit(call, facts, self._lane_max))
        except StoreUnavailable as error:
            raise RequestError(503, "store-unavailable", error.message, retry_after=error.retry_after) from None
        if plan.answer is Outcome.LANE_FULL:
            message = "Rate limit exceeded: too much is waiting for this contact. Nothing of this call is stored; see SCQ_LANE_MAX."
            raise RequestError(429, "lane-full", message, retry_after=LANE_FULL_SECONDS)
        if plan.answer is Outcome.KEY_REUSED:
            raise _unprocessable("this Idempotency-Key was used for a call that said something else; take a new one")


# --- Reading a call -----------------------------------------------------------------------------------------------------


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for each, value in scope["headers"] if each == name]


def _query(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(scope["query_string"].decode("utf-8", "replace"), keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return found


def _idempotency_key(scope: Scope) -> str | None:
    given = _values(scope, b"idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not 1 <= len(given[0]) <= MAX_TEXT:
        raise RequestError(400, "malformed", f"Send one Idempotency-Key of 1 to {MAX_TEXT} characters, or none.")
    return given[0].decode("latin-1")


def _parse(operation: Operation, body: bytes, query: Mapping[str, Sequence[str]]) -> tuple[ServerPush, ...]:
    """The pushes of a call. Raises `RequestError`: 400 for what is no JSON, 422 for what says nothing that SendX could take."""
    message = read_json(body)
    if operation.bulk:
        if not isinstance(message, list) or not 1 <= len(message) <= MAX_BULK:
            raise _unprocessable(f"the body is an array of 1 to {MAX_BULK} contacts")
        return tuple([_parse_identify(item, f"contact {index}: ") for index, item in enumerate(message)])
    if operation.kind is Kind.TRACK:
        return (_parse_track(message, query.get("email", ()) if operation.legacy else None),)
    return (_parse_identify(message, ""),)


_KNOWN = {name.casefold(): name for name in (*FIELDS, "email", "newEmail", "customFields", "tags")}


def _parse_identify(message: Any, place: str) -> ServerPush:
    if not isinstance(message, dict):
        raise _unprocessable(f"{place}an identify is a JSON object")
    known = {key: value for key, value in message.items() if key in _KNOWN.values()}
    if known.get("newEmail") == "":
        del known["newEmail"]  # some clients send every field they know
    call = parse_call("identify", known)
    if isinstance(call, BadPush):
        raise _wrong(call, place)
    assert isinstance(call, Identify)  # noqa: S101 - what parse_call makes of an identify
    if call.email is None:
        raise _unprocessable(f"{place}email is missing")
    if call.ignored:
        raise _unprocessable(f"{place}customFields has a value that is no text")
    extra = {key: value for key, value in message.items() if key not in _KNOWN.values() and value is not None}
    _check_extra(extra, place)
    return ServerPush(call.email, msgspec.structs.replace(call.attributes, extra=extra))


def _parse_track(message: Any, in_query: Sequence[str] | None) -> ServerPush:
    """`in_query`: the addresses in a legacy call's query; None where the body has the address."""
    call = parse_call("track", message)
    if isinstance(call, BadPush):
        raise _wrong(call, "")
    assert isinstance(call, Track)  # noqa: S101 - what parse_call makes of a track
    given = [message.get("email")] if in_query is None else in_query
    if len(given) != 1 or given[0] is None:
        where = "email is missing" if in_query is None else "the query has one email"
        raise _unprocessable(where)
    address = clean_address(given[0]) if isinstance(given[0], str) else None
    if address is None:
        raise _wrong(BadPush(None, Reason.BAD_EMAIL, "email"), "")
    return ServerPush(address, call)


def _check_extra(extra: Mapping[str, Any], place: str) -> None:
    """Keys that the proxy does not know are passed on as they are, within the limits that hold for the others."""
    for key in extra:
        if key.casefold() in _KNOWN:  # SendX may well read it as the one that we know (inferred)
            raise _unprocessable(f"{place}write {_KNOWN[key.casefold()]} exactly so")
    if not _is_modest(extra, MAX_DEPTH):
        limits = f"texts within {MAX_TEXT} characters, lists and objects within {MAX_NAMES} entries"
        raise _unprocessable(f"{place}keep the values of other keys small: {limits}, {MAX_DEPTH} levels")


def _is_modest(value: Any, levels: int) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) if isinstance(value, float) else value.bit_length() <= 64
    inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return levels > 0 and len(value) <= MAX_NAMES and all(_is_modest(each, levels - 1) for each in inside)


_WRONG: Mapping[Reason, str] = {
    Reason.BAD_SHAPE: "is missing, empty or of the wrong type",
    Reason.TOO_LONG: f"is too long: {MAX_TEXT} characters in a text and {MAX_NAMES} entries in a list are the limit",
    Reason.BAD_EMAIL: "is no e-mail address",
}


def _wrong(bad: BadPush, place: str) -> RequestError:
    where = (bad.where or "").removeprefix("call[1]").removeprefix(".") or "the body"
    return _unprocessable(f"{place}{where} {_WRONG.get(bad.reason, 'cannot be read')}")


def _unprocessable(what: str) -> RequestError:
    return RequestError(422, "unprocessable", f"Request body is not in proper format: {what}.")


# --- SendX's answers (source: SendX docs) -------------------------------------------------------------------------------

_OK = b'{"status":"200","message":"OK"}'
_BULK_OK = b'{"status":"success","message":"All contacts processed successfully"}'
_LEGACY_TRACKED = b'{"status":"200","message":"OK","data":"success"}'


def _answer(operation: Operation, pushes: Sequence[ServerPush]) -> bytes:
    if operation.bulk:
        return _BULK_OK
    if not operation.legacy:
        return _OK
    body = pushes[0].body
    return _LEGACY_TRACKED if isinstance(body, Track) else _legacy_identified(pushes[0].address, body)


def _legacy_identified(address: str, attributes: Attributes) -> bytes:
    """The legacy dialect shows the contact. What SendX has of it is not known here: the call's own words, and no ids of SendX."""
    data: dict[str, Any] = {"encryptedTeamId": "", "encryptedId": "", "tags": attributes.tags}
    data |= {name: attributes.fields.get(name, "") for name in ("firstName", "lastName")}
    data["email"] = address
    data |= {name: attributes.fields.get(name, "") for name in ("company", "birthday")}
    data["customFields"] = attributes.custom_fields
    return msgspec.json.encode({"status": "200", "message": "OK", "data": data})


async def _send_error(send: Send, error: RequestError) -> None:
    """SendX's error body, whose status is a number for 401 and a word otherwise."""
    headers: list[Header] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode("ascii")))
    if error.status == 405:
        headers.append((b"allow", b"POST"))
    body = msgspec.json.encode({"status": 401 if error.status == 401 else "error", "message": error.message})
    await send_json(send, error.status, body, headers)
