"""SendX's contacts: what its schema lets a request say, and what the request makes of a contact (source: SendX docs).

Strict on purpose: unknown keys, nulls and wrong types are refused with the reason. Where the docs are silent, a switch decides (see `Switches`).
Nothing here knows paths, keys or faults.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.sandbox.faults import OK, Switches, documented_body

KEPT_EVENTS = 100
LISTED_TAGS = 10  # SendX's default of `limit`

BULK_OK = b'{"status":"success","message":"All contacts processed successfully"}'
LEGACY_TRACKED = b'{"status":"200","message":"OK","data":"success"}'
EVENT_OK = b'{"status":"success","message":"Event tracked successfully"}'


class CallResult(NamedTuple):
    """What SendX says to a request and whether the request took effect; `violation` is what its schema does not know."""

    status: int
    body: bytes
    applied: bool
    violation: str | None = None


class RefusedCall(Exception):
    def __init__(self, status: int, violation: str | None = None) -> None:
        super().__init__(violation or str(status))
        self.result = CallResult(status, documented_body(status), applied=False, violation=violation)


def violates(reason: str) -> RefusedCall:
    return RefusedCall(422, reason)


ADDRESS = r"\A[^@\s\x00-\x1f<>,;]+@[^@\s\x00-\x1f<>,;]+\.[^@\s\x00-\x1f<>,;.]+\Z"
Email = Annotated[str, Meta(max_length=254, pattern=ADDRESS)]
Tag = Annotated[str, Meta(min_length=1)]
# A larger number is a time in milliseconds; the docs want seconds.
UnixSeconds = Annotated[int, Meta(ge=0, lt=100_000_000_000)]


class IdentifyBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
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


class TrackBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Body of contact/track, dialect `rest`. A tag that is both added and removed ends up removed."""

    email: Email
    add_tags: tuple[Tag, ...] = ()
    remove_tags: tuple[Tag, ...] = ()


class CustomEvent(Struct, frozen=True, forbid_unknown_fields=True):
    identifier: str
    name: Annotated[str, Meta(min_length=1)]
    data: dict[str, Any] | UnsetType = UNSET
    time: UnixSeconds | UnsetType = UNSET


class RevenueEvent(Struct, frozen=True, forbid_unknown_fields=True):
    identifier: str
    amount: float
    source: str | UnsetType = UNSET
    time: UnixSeconds | UnsetType = UNSET


class Received(NamedTuple):
    """One admitted request: its number, its parsed body and query, and the switches in force."""

    number: int
    body: Any
    query: dict[str, str]
    switches: Switches


def read_identify(received: Received) -> IdentifyBody:
    identify: IdentifyBody = _convert(received.body, IdentifyBody)
    legacy, switches = "team_id" in received.query, received.switches
    if identify.lists is not UNSET and (legacy or switches.lists == "reject"):
        raise violates("Object contains unknown field `lists`")
    if identify.birthday is not UNSET and not legacy and switches.birthday == "reject":
        raise violates("Object contains unknown field `birthday`")
    numbers = [name for name, value in (identify.custom_fields or {}).items() if not isinstance(value, str)]
    if numbers and switches.number_in_custom_fields == "reject":
        raise violates(f"Expected `str`, got a number - at `$.customFields`, {numbers}")
    return identify


def read_bulk(received: Received) -> list[IdentifyBody | RefusedCall]:
    if not isinstance(received.body, list) or not 1 <= len(received.body) <= 25:
        raise violates("bulk takes an array of 1 to 25 contacts")
    items: list[IdentifyBody | RefusedCall] = []
    for position, item in enumerate(received.body):
        try:
            items.append(read_identify(received._replace(body=item)))
        except RefusedCall as refused:
            items.append(violates(f"item {position}: {refused.result.violation}"))
    return items


def read_track(received: Received) -> TrackBody:
    body, query = received.body, received.query
    if "email" in query and isinstance(body, dict):
        if "email" in body:
            raise violates("Object contains unknown field `email`: it stands in the query")
        body = body | {"email": query["email"]}
    track: TrackBody = _convert(body, TrackBody)
    return track


def read_event(kind: type[CustomEvent | RevenueEvent]) -> Callable[[Received], Any]:
    return lambda received: _convert(received.body, kind)


def _convert(body: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as problem:
        raise violates(str(problem).replace(f"`str` matching regex {ADDRESS!r}", "an e-mail address")) from None


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


def counted(old: str | None, given: str, switches: Switches) -> str:
    """Returns a custom field's value after `given`: `++n` adds and `--n` subtracts, anything else replaces.

    The docs know increments of number fields only; on a field that holds text this one is stored as it is.
    """
    step = re.fullmatch(r"(\+\+|--)(\d{1,15}(?:\.\d{1,9})?)", given, re.ASCII)
    if not step or (old is not None and not re.fullmatch(r"-?\d{1,20}(\.\d{1,9})?", old, re.ASCII)):
        return given
    size = Decimal(step[2])
    if step[1] == "--" and (old is not None or switches.decrement_absent == "negative"):
        size = -size
    return format((Decimal(old or 0) + size).normalize() + 0, "f")


def merged(contact: Contact, identify: IdentifyBody, switches: Switches) -> Contact:
    """Folds an identify into a contact: omitted fields stay, tags unite, custom fields merge by key."""
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


def joined(contact: Contact, other: Contact) -> Contact:
    """Folds another contact's tags and custom fields into a contact, whose own values win."""
    custom = {**other.custom_fields, **contact.custom_fields}
    return msgspec.structs.replace(contact, tags=_united(other.tags, contact.tags), custom_fields=custom)


def address_after(known: Contact | None, identify: IdentifyBody, switches: Switches) -> str:
    """Returns the address under which the contact is found after an identify. Raises RefusedCall if the switches say 404."""
    if known is None and identify.new_email is not UNSET and switches.new_email_unknown_old != "create_new":
        if switches.new_email_unknown_old == "not_found":
            raise RefusedCall(404)
        return identify.email
    if identify.new_email is not UNSET:
        return identify.new_email
    return known.email if known else identify.email


def _united(old: tuple[str, ...], new: tuple[str, ...] | UnsetType) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *(new or ()))))


def _id22(seed: str) -> str:
    """Returns an id as SendX shows them, 22 characters; the same seed gives the same id."""
    return base64.urlsafe_b64encode(hashlib.sha256(seed.encode()).digest()[:16]).decode().rstrip("=")


class ContactBook:
    """Holds every contact of a team, by address in lower case. Applies what was read and returns the body to answer.

    Safe to read from another thread.
    """

    def __init__(self, team_id: str) -> None:
        self._team_id = team_id
        self._contacts: dict[str, Contact] = {}
        self._made = 0

    def newest_first(self) -> list[Contact]:
        return sorted(self._contacts.copy().values(), key=lambda contact: contact.changed, reverse=True)

    def get(self, email: str) -> Contact | None:
        return self._contacts.get(email.lower())

    def identify(self, identify: IdentifyBody, received: Received) -> bytes:
        self._upsert(identify, received)
        return OK

    def legacy_identify(self, identify: IdentifyBody, received: Received) -> bytes:
        contact = self._upsert(identify, received)
        shown = msgspec.to_builtins(contact)
        names = ("tags", "firstName", "lastName", "email", "company", "birthday", "customFields")
        data = {"encryptedTeamId": _id22(self._team_id), "encryptedId": contact.id}
        data |= {name: shown[name] for name in names}
        return msgspec.json.encode({"status": "200", "message": "OK", "data": data})

    def identify_all(self, items: list[IdentifyBody | RefusedCall], received: Received) -> bytes:
        before, problems = self._contacts.copy(), list[RefusedCall]()
        for item in items:
            try:
                if isinstance(item, RefusedCall):
                    raise item
                self._upsert(item, received)
            except RefusedCall as problem:
                problems.append(problem)
        if not problems:
            return BULK_OK
        first, rule = problems[0], received.switches.bulk_partial_failure
        if rule == "reject_all":
            self._contacts = before
        else:
            first.result = first.result._replace(applied=len(problems) < len(items))
        if rule == "apply_valid_200":
            first.result = first.result._replace(status=200, body=BULK_OK)
        raise first

    def track(self, track: TrackBody, received: Received) -> bytes:
        contact = self._found(self.get(track.email))
        tags = _united(contact.tags, track.add_tags)
        kept = tuple(tag for tag in tags if tag not in track.remove_tags)
        self._keep(msgspec.structs.replace(contact, tags=kept), received)
        return OK

    def legacy_track(self, track: TrackBody, received: Received) -> bytes:
        self.track(track, received)
        return LEGACY_TRACKED

    def add_event(self, event: CustomEvent | RevenueEvent, received: Received) -> bytes:
        by_id = (contact for contact in self._contacts.values() if contact.id == event.identifier)
        contact = self._found(self.get(event.identifier) or next(by_id, None))
        events = (*contact.events, msgspec.to_builtins(event))[-KEPT_EVENTS:]
        self._keep(msgspec.structs.replace(contact, events=events), received)
        return EVENT_OK

    def list_tags(self, _: None, _received: Received) -> bytes:
        return msgspec.json.encode(self._tags())

    def legacy_list_tags(self, _: None, _received: Received) -> bytes:
        return msgspec.json.encode({"status": "200", "message": "OK", "data": self._tags()})

    def _tags(self) -> list[dict[str, str]]:
        names = sorted({tag for contact in self._contacts.values() for tag in contact.tags})
        return [{"id": f"tag_{_id22(name)}", "name": name} for name in names[:LISTED_TAGS]]

    def _upsert(self, identify: IdentifyBody, received: Received) -> Contact:
        known, switches = self.get(identify.email), received.switches
        to = address_after(known, identify, switches)
        other = self.get(to)
        if other is not None and other is not known and switches.new_email_taken == "conflict":
            raise RefusedCall(409)
        contact = merged(known or other or self._fresh(to), identify, switches)
        if other is not None:
            contact = joined(contact, other)
        if known is not None and known.email.lower() != to.lower():
            del self._contacts[known.email.lower()]
        return self._keep(msgspec.structs.replace(contact, email=to), received)

    def _fresh(self, email: str) -> Contact:
        self._made += 1
        return Contact(id=_id22(f"{self._team_id}/{self._made}"), email=email)

    def _keep(self, contact: Contact, received: Received) -> Contact:
        contact = msgspec.structs.replace(contact, changed=received.number)
        self._contacts[contact.email.lower()] = contact
        return contact

    @staticmethod
    def _found(contact: Contact | None) -> Contact:
        if contact is None:
            raise RefusedCall(404)
        return contact
