"""Calls from the site's own servers: parsed once, then decided on. All of a call is stored, or nothing.

    bytes → parse_server_call → (ServerPush, …) → ServerCall → admit → Decision

The wire is SendX's (source: SendX docs), in both dialects. A server is trusted like an identity token's `contact`: no list of tags or fields
restricts it. What SendX could not take is dropped and named; a call is refused only if that leaves nothing to do.
"""

import base64
import hmac
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

import msgspec

from proxy.core.attributes import KNOWN, Faults, as_list, read_attributes, read_track
from proxy.core.calls import Attributes, Kind, Track
from proxy.core.decision import (
    Change,
    Decision,
    Dropped,
    EndAlias,
    Enqueue,
    Facts,
    LaneFacts,
    Reads,
    Refused,
    Remember,
    Verify,
)
from proxy.core.emails import carriable_address, lane_key
from proxy.core.parsing import read_json
from proxy.core.reasons import MAX_NAMES, MAX_TEXT, Reason
from proxy.core.request import LANE_BYTES_PER_PUSH
from proxy.core.visitors import Trust
from proxy.errors import RequestError

MAX_BULK = 25
MAX_BULK_BODY = MAX_BULK * 16_384  # bytes
MAX_DEPTH = 8  # levels of JSON in a value that is passed on unread
_MAX_INTEGER_BITS = 64


class Operation(msgspec.Struct, frozen=True):
    """The meaning of a path. `name`: tells the same Idempotency-Key on two operations apart."""

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
    """One contact's part of a call. `dropped`: names of the values in it that SendX could not take."""

    address: str
    body: Attributes | Track
    dropped: tuple[str, ...] = ()


class ServerCall(msgspec.Struct, frozen=True):
    """One call. `ids`: a random one for each push, which counts unless the caller gave an `idempotency_key`.

    `caller`: tells server keys apart, whatever their order in the settings; each has idempotency keys of its own.
    """

    operation: str
    pushes: tuple[ServerPush, ...]
    ids: tuple[str, ...]
    caller: str
    idempotency_key: str | None = None


class Outcome(Enum):
    STORED = auto()
    DUPLICATE = auto()  # the same call is stored already
    KEY_REUSED = auto()  # another call is stored under this Idempotency-Key
    LANE_FULL = auto()  # nothing is stored


def parse_server_call(operation: Operation, body: bytes, query: Mapping[str, Sequence[str]]) -> tuple[ServerPush, ...]:
    """Returns the pushes of a call.

    Raises `RequestError`: 400 for a body that is not JSON, 422 for one that leaves nothing to do.
    """
    message = read_json(body)
    if operation.bulk:
        contacts = as_list(message)
        if contacts is None or not 1 <= len(contacts) <= MAX_BULK:
            raise unprocessable(f"the body is an array of 1 to {MAX_BULK} contacts")
        return tuple([_parse_identify(item, f"contact {index}: ") for index, item in enumerate(contacts)])
    if operation.kind is Kind.TRACK:
        return (_parse_track(message, query.get("email", ()) if operation.legacy else None),)
    return (_parse_identify(message, ""),)


def _parse_identify(message: Any, place: str) -> ServerPush:
    if not isinstance(message, dict):
        raise unprocessable(f"{place}an identify is a JSON object")
    address = _address(message.get("email"), place)
    faults: Faults = {}
    attributes = read_attributes({key: value for key, value in message.items() if key in _SPELLINGS}, faults)
    extra = _passed_on(message, faults)
    if extra:
        attributes = msgspec.structs.replace(attributes, extra=extra)
    return ServerPush(address, attributes, tuple(faults))


def _parse_track(message: Any, in_query: Sequence[str] | None) -> ServerPush:
    """`in_query`: the addresses in a legacy call's query; None where the body has the address."""
    if not isinstance(message, dict):
        raise unprocessable("a track is a JSON object")
    if in_query is not None and len(in_query) != 1:
        raise unprocessable("the query has one email")
    address = _address(message.get("email") if in_query is None else in_query[0])
    faults: Faults = {}
    track = read_track(message, faults)
    if not track.add_tags and not track.remove_tags:
        raise unprocessable(f"addTags and removeTags hold no usable tag; {_TAG_LIMITS}")
    unknown = [key[:MAX_TEXT] for key, value in message.items() if key not in _TRACK_KEYS and value is not None]
    return ServerPush(address, track, (*faults, *unknown))


_SPELLINGS = frozenset(KNOWN.values())
_TRACK_KEYS = frozenset(("email", "addTags", "removeTags"))
_TAG_LIMITS = f"tags are texts of 1 to {MAX_TEXT} characters, in lists of up to {MAX_NAMES}"


def _address(value: Any, place: str = "") -> str:
    if value is None:
        raise unprocessable(f"{place}email is missing")
    address = carriable_address(value) if isinstance(value, str) else None
    if address is None:
        raise unprocessable(f"{place}email is not an e-mail address")
    return address


def _passed_on(message: Mapping[str, Any], faults: Faults) -> dict[str, Any]:
    """Returns the keys that are passed on as they are. Unknown keys have the limits of known ones."""
    extra: dict[str, Any] = {}
    for key, value in message.items():
        if value is None or key in _SPELLINGS:
            continue
        # SendX may well read another spelling of a known key as that key (inferred).
        if (
            key.casefold() in KNOWN
            or len(key) > MAX_TEXT
            or len(extra) == MAX_NAMES
            or not _is_modest(value, MAX_DEPTH)
        ):
            faults[key[:MAX_TEXT]] = Reason.BAD_SHAPE
        else:
            extra[key] = value
    return extra


def _is_modest(value: Any, levels: int) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) if isinstance(value, float) else value.bit_length() <= _MAX_INTEGER_BITS
    inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return levels > 0 and len(value) <= MAX_NAMES and all(_is_modest(each, levels - 1) for each in inside)


def unprocessable(what: str) -> RequestError:
    return RequestError(422, "unprocessable", f"Request body is not in proper format: {what}.")


def admit(call: ServerCall, facts: Facts, lane_max: int) -> Decision[Outcome]:
    """Returns what to store for the call, and its outcome.

    Pure: the store calls it inside the transaction that carries the decision out. An erasure does not stand in the way: a server that calls
    now knows this person, and a retry of an older call is known by its ids.
    """
    ids = call.ids
    fingerprint = None
    if call.idempotency_key is not None:
        ids, fingerprint = _derived(call, call.idempotency_key, facts.site_key)
        seen = [facts.seen(push_id) for push_id in ids]
        if any(seen):
            same = all(each is not None and each.shown == fingerprint for each in seen)
            return Decision((), Outcome.DUPLICATE if same else Outcome.KEY_REUSED)
    gains = Counter(lane_key(push.address) for push in call.pushes)
    if not all(_has_room(facts.lane(key), count, lane_max) for key, count in gains.items()):
        return Decision(tuple(Refused(Reason.LANE_FULL) for _ in call.pushes), Outcome.LANE_FULL)
    changes: list[Change] = []
    for push_id, push in zip(ids, call.pushes, strict=True):
        key = lane_key(push.address)
        changes += (Enqueue(push_id, key, push.address, Trust.VERIFIED, push.body), Verify(key))
        if isinstance(push.body, Attributes):
            changes.append(
                EndAlias(key)
            )  # only an identify says that this address is somebody's: a track can be a straggler
        if fingerprint is not None:
            changes.append(Remember(push_id, fingerprint))
    dropped = sum(len(push.dropped) for push in call.pushes)
    if dropped:
        changes.append(Dropped(dropped))
    return Decision(tuple(changes), Outcome.STORED)


def _has_room(lane: LaneFacts, count: int, lane_max: int) -> bool:
    return lane.waiting + count <= lane_max and lane.bytes < lane_max * LANE_BYTES_PER_PUSH


def reads_of(call: ServerCall, site_key: bytes) -> Reads:
    """Returns what `admit` will ask for."""
    ids = call.ids if call.idempotency_key is None else _derived(call, call.idempotency_key, site_key)[0]
    return Reads(ids, tuple([lane_key(push.address) for push in call.pushes]))


def _derived(call: ServerCall, idempotency_key: str, site_key: bytes) -> tuple[tuple[str, ...], str]:
    """Returns an id for each push, and the fingerprint that tells a retry from another call under the same key.

    Both are keyed with the store's secret: nobody can compute the id of a push, or find out what a remembered call said.
    """
    content = msgspec.json.encode([(push.address, push.body) for push in call.pushes], order="sorted")
    ids = [
        _keyed(f"server-push:{call.caller}:{call.operation}:{index}:{idempotency_key}".encode(), site_key)
        for index in range(len(call.pushes))
    ]
    return tuple(ids), _keyed(b"server-call:" + content, site_key)


def _keyed(text: bytes, site_key: bytes) -> str:
    return base64.urlsafe_b64encode(hmac.digest(site_key, text, "sha256")).rstrip(b"=").decode("ascii")
