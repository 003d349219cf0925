"""Faults that a test or a person orders, and the switches for what SendX's docs leave open.

A fault takes the place of the usual answer. It is ordered for one contact or for everybody, once (a script) or until it is removed (a standing
fault). Nothing here reads a request or knows a contact.
"""

import time
from collections import deque
from email.utils import formatdate
from http.client import responses as phrases
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

EVERYBODY = "*"

# SendX's bodies by status, byte for byte (source: SendX docs)
OK = b'{"status":"200","message":"OK"}'
UNAUTHORIZED = b'{"status":401,"message":"The Team ID or API Key specified is not valid"}'
MESSAGES = {
    404: "Resource not found",
    409: "Email already exists",
    422: "Request body is not in proper format",
    429: "Rate limit exceeded",
    500: "Internal server error occurred",
}


def documented_body(status: int) -> bytes:
    """Returns the body that SendX's docs show for a status; undocumented ones carry the HTTP phrase."""
    if status in (204, 304):
        return b""
    if status < 300:
        return OK
    if status == 401:
        return UNAUTHORIZED
    return msgspec.json.encode({"status": "error", "message": MESSAGES.get(status) or phrases.get(status, "Error")})


class Switches(Struct, frozen=True, forbid_unknown_fields=True):
    """Decides what SendX's docs leave open, one switch each. The defaults are a guess, not a fact.

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
    """Orders one misbehaviour.

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

    @property
    def breaks_off(self) -> bool:
        """Says whether the client gets no answer at all."""
        return self.kind in ("hang", "reset")


NO_FAULT = Fault("ok")


class FaultOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /sandbox/faults."""

    contact: str = EVERYBODY
    script: list[Fault] | UnsetType = UNSET
    standing: Fault | UnsetType | None = UNSET
    clear: bool = False


class PendingFaults:
    """Holds the faults still to come, by contact in lower case or `EVERYBODY`."""

    def __init__(self) -> None:
        self._scripts: dict[str, deque[Fault]] = {}
        self._standing: dict[str, Fault] = {}

    def script(self, contact: str, *faults: Fault) -> None:
        """Answers the next requests for `contact` (or `EVERYBODY`) with these, one each; replaces a former script."""
        self._scripts[contact.lower()] = deque(faults)

    def stand(self, contact: str, fault: Fault | None) -> None:
        """Answers every request for `contact` (or `EVERYBODY`) with this fault until it is removed with None."""
        self._standing.pop(contact.lower(), None)
        if fault is not None:
            self._standing[contact.lower()] = fault

    def clear(self) -> None:
        self._scripts.clear()
        self._standing.clear()

    def listed(self) -> dict[str, Any]:
        """Returns the faults still to come: `{"script": {contact: [fault]}, "standing": {contact: fault}}`."""
        scripts = {contact: list(faults) for contact, faults in self._scripts.copy().items() if faults}
        return {"script": scripts, "standing": self._standing.copy()}

    def take(self, addressed: list[str]) -> Fault:
        """Returns the fault for a request about these contacts and, if a script has it, uses it up.

        One contact's order goes before everybody's, a script before a standing fault.
        """
        for contact in (*(name.lower() for name in addressed), EVERYBODY):
            if script := self._scripts.get(contact):
                return script.popleft()
            if contact in self._standing:
                return self._standing[contact]
        return NO_FAULT


def response_of(fault: Fault) -> Response:
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
