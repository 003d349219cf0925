"""The edge for the site's own servers: identify, bulk identify and track, spoken as SendX speaks them (source: SendX docs), in both dialects.

SendX's official SDKs work unchanged with only the host replaced. An answer of 200 means that the call is durable here; it is sent on
later, in order per contact. A server is trusted like an identity token's `contact`: no list of tags or fields restricts it. What SendX could
not take is dropped, and named in the header `Scq-Dropped`: SendX's bodies have no place for it, and its SDKs choke on more keys.

It refuses browsers, since a server key that is in a page is everybody's; it stores a call whole or not at all; and it offers no other part
of SendX's API.
"""

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, quote

import msgspec
from starlette.types import Receive, Scope, Send

from proxy.core.calls import Attributes, Track
from proxy.core.emails import holds_address
from proxy.core.reasons import MAX_TEXT
from proxy.core.server_calls import (
    MAX_BULK_BODY,
    OPERATIONS,
    Operation,
    Outcome,
    ServerCall,
    ServerPush,
    admit,
    parse_server_call,
    reads_of,
    unprocessable,
)
from proxy.errors import RequestError, StoreUnavailable
from proxy.store.outbox import Outbox
from proxy.web.access import RateLimit, scan
from proxy.web.asgi import MAX_BODY, Gone, Header, read_body, retry_after, send_json, send_not_found

log = logging.getLogger("proxy.server_api")

LANE_FULL_SECONDS = 60  # after which a contact with too much waiting is worth another try
MAX_DROPPED = 1_000  # bytes of names in the header; intermediaries have 4 to 8 KB for all of an answer's
_MAX_NAME = 64  # characters of one


class ServerApi:
    """The ASGI application of the paths in `OPERATIONS`. `team_id`: what a legacy call may not contradict.

    Without keys it does not exist: 404.
    """

    def __init__(self, outbox: Outbox, *, rate: RateLimit, lane_max: int, team_id: str | None = None) -> None:
        self._outbox, self._rate, self._lane_max, self._team_id = outbox, rate, lane_max, team_id
        self._digests: tuple[bytes, ...] = ()

    def use(self, keys: Iterable[str]) -> None:
        """Takes these keys from the next request on; only digests are kept."""
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = OPERATIONS.get(scope["path"])
        if operation is None or not self._digests:
            await send_not_found(scope, receive, send)
            return
        try:
            pushes = await self._call(operation, scope, receive)
        except RequestError as error:
            await _send_error(send, error)
        except Gone:
            return
        except Exception:
            # A defect, which the server counts and logs. Nothing was stored.
            message = "The call could not be stored: the log of the proxy says more."
            await _send_error(send, RequestError(503, "defect", message, retry_after=30))
            raise
        else:
            await send_json(send, 200, _answer(operation, pushes), _dropped(operation, pushes))

    async def _call(self, operation: Operation, scope: Scope, receive: Receive) -> tuple[ServerPush, ...]:
        headers = scan(scope["headers"])
        if headers.origin is not None or headers.fetch_site is not None:
            raise RequestError(
                403,
                "browser",
                "This request comes from a browser. Server keys do not belong in pages: anyone who reads one can act as any contact. "
                "Push from pages with the shim, and replace this key if a page has it.",
            )
        if scope["method"] != "POST":
            raise RequestError(405, "method-not-allowed", "Send the call by POST.")
        query = _legacy_query(scope["query_string"]) if operation.legacy else {}
        caller = self._authenticated(operation, scope, query)
        idempotency_key = _idempotency_key(scope)
        self._require_rate(caller)
        pushes: tuple[ServerPush, ...] = ()
        try:
            limit = MAX_BULK_BODY if operation.bulk else MAX_BODY
            pushes = parse_server_call(operation, await read_body(scope, receive, headers.content_length, limit), query)
        finally:
            self._rate.spend(caller, max(1, len(pushes)), time.monotonic())
        ids = tuple(secrets.token_urlsafe(16) for _ in pushes)
        await self._store(ServerCall(operation.name, pushes, ids, caller, idempotency_key))
        return pushes

    def _authenticated(self, operation: Operation, scope: Scope, query: Mapping[str, Sequence[str]]) -> str:
        """Returns the digest of the caller's key. Takes the same time for each: all are compared, by their digests. Raises 401."""
        given = _values(scope, b"api_key" if operation.legacy else b"x-team-apikey")
        digest = hashlib.sha256(given[0] if len(given) == 1 else b"").digest()
        matches = [hmac.compare_digest(known, digest) for known in self._digests]
        teams = query.get("team_id", ())
        if not any(matches) or (self._team_id is not None and any(team != self._team_id for team in teams)):
            raise RequestError(401, "unauthorized", "The Team ID or API Key specified is not valid")
        return digest.hex()

    def _require_rate(self, caller: str) -> None:
        try:
            self._rate.require(caller, time.monotonic())
        except RequestError as error:
            message = "Rate limit exceeded: this key has sent too many pushes. Try again later."
            raise RequestError(429, "too-fast", message, retry_after=error.retry_after) from None

    async def _store(self, call: ServerCall) -> None:
        try:
            reads = reads_of(call, self._outbox.site_key)
            decision = await self._outbox.append(lambda facts: admit(call, facts, self._lane_max), reads)
        except StoreUnavailable as error:
            raise RequestError(503, "store-unavailable", error.message, retry_after=error.retry_after) from None
        if log.isEnabledFor(logging.DEBUG):
            _log_outcome(reads.ids, decision.answer)
        if decision.answer is Outcome.LANE_FULL:
            message = "Rate limit exceeded: too much is waiting for this contact. Nothing of this call is stored; see SCQ_LANE_MAX."
            raise RequestError(429, "lane-full", message, retry_after=LANE_FULL_SECONDS)
        if decision.answer is Outcome.KEY_REUSED:
            raise unprocessable("this Idempotency-Key was used for a call that said something else; take a new one")


def _log_outcome(ids: Sequence[str], outcome: Outcome) -> None:
    """Logs one line per push."""
    for push_id in ids:
        fields = {"id": push_id, "outcome": outcome.name.lower()}
        log.debug("Push %s: %s", push_id, fields["outcome"], extra={"event": "push", "fields": fields})


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for each, value in scope["headers"] if each == name]


def _legacy_query(query_string: bytes) -> Mapping[str, Sequence[str]]:
    """Returns the values of a legacy call's query by name. A plus in an address is a plus: no address has a space."""
    text = query_string.decode("utf-8", "replace")
    query = parse_qs(text, keep_blank_values=True)
    if "+" in text and "email" in query:
        query["email"] = parse_qs(text.replace("+", "%2B"), keep_blank_values=True).get("email", [])
    return query


def _idempotency_key(scope: Scope) -> str | None:
    given = _values(scope, b"idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not 1 <= len(given[0]) <= MAX_TEXT:
        raise RequestError(400, "malformed", f"Send one Idempotency-Key of 1 to {MAX_TEXT} characters, or none.")
    return given[0].decode("latin-1")


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


def _dropped(operation: Operation, pushes: Sequence[ServerPush]) -> tuple[Header, ...]:
    """Returns the header that names what was dropped; in a bulk call each name begins with its contact's index.

    Names are percent-encoded, so that a comma or a space is never part of one. Those without room are counted: `birthday,tags[1],...and 12 more`.
    """
    names = [
        quote(f"{index}.{_shown(name)}" if operation.bulk else _shown(name), safe="[]")
        for index, push in enumerate(pushes)
        for name in push.dropped
    ]
    if not names:
        return ()
    room, shown = MAX_DROPPED, 0
    while shown < len(names) and len(names[shown]) < room:
        room -= len(names[shown]) + 1
        shown += 1
    more = [f"...and {len(names) - shown} more"] if shown < len(names) else []
    return ((b"scq-dropped", ",".join([*names[:shown], *more]).encode("ascii")),)


def _shown(name: str) -> str:
    """Returns what the header says of a name: it may be logged on its way, and some name a field after a person."""
    return "...an-address" if holds_address(name) else name[:_MAX_NAME]


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
    allow: tuple[Header, ...] = ((b"allow", b"POST"),) if error.status == 405 else ()
    body = msgspec.json.encode({"status": 401 if error.status == 401 else "error", "message": error.message})
    await send_json(send, error.status, body, (*retry_after(error), *allow))
