"""The wire, parsed once into frozen values.

    bytes → parse_batch → Batch(session, items)      item: Push(id, call) or BadPush(id, reason, where)

A request is one JSON object, as README describes it. What makes the whole request unreadable raises `RequestError`; what is
wrong with one push makes that push a `BadPush` and leaves its neighbours alone. In an identify only the address or the token can be
wrong in that way: its values are read leniently (`attributes`). Nothing here decides who may do what: that is `policy`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from proxy.core.attributes import Faults, read_attributes, read_track
from proxy.core.calls import Attributes, BadPush, Batch, Call, Consent, Identify, Push, Reset, Track
from proxy.core.emails import carriable_address, clean_address
from proxy.core.reasons import MAX_TEXT, Reason
from proxy.core.visitors import NOBODY
from proxy.errors import RequestError

MAX_PUSHES = 50

_ID = re.compile(r"[A-Za-z0-9_-]{16,64}\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _malformed(message: str) -> RequestError:
    """Returns the refusal of a request that cannot be read. The message says what and where, and quotes none of it."""
    return RequestError(400, "malformed", message)


class _BadCall(Exception):
    def __init__(self, reason: Reason, where: str) -> None:
        self.reason = reason
        self.where = where


def parse_batch(body: bytes) -> Batch:
    """Returns the request's body as values. Raises `RequestError`: 400, or 413 over MAX_PUSHES."""
    message = read_json(body)
    if not isinstance(message, dict):
        raise _malformed('The body is not a JSON object: send {"v":1,"pushes":[…]}.')
    pushes = message.get("pushes")
    if isinstance(pushes, list) and len(pushes) > MAX_PUSHES:
        raise RequestError(413, "too-many", f"More than {MAX_PUSHES} pushes: split them over several requests.")
    if message.get("v") != 1 or isinstance(message.get("v"), bool):
        raise _malformed('"v" is not 1: this server speaks version 1 of the contract.')
    if not isinstance(pushes, list):
        raise _malformed('"pushes" is not a list: send {"v":1,"pushes":[…]}.')
    session = message.get("s")
    usable = isinstance(session, str) and _ID.match(session)
    return Batch(session if usable else None, tuple([_parse_push(push) for push in pushes]))


_decoder = msgspec.json.Decoder()


def read_json(body: bytes) -> Any:
    """Any JSON, read as leniently as browsers and their like write it. Raises `RequestError`: 400."""
    try:
        return _decoder.decode(body)
    except RecursionError:
        raise _malformed("The body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_leniently(body)


def _decode_leniently(body: bytes) -> Any:
    """Decodes JSON that msgspec refuses and clients send: lone surrogates (a truncated emoji), numbers beyond a double, a leading byte order mark.

    One such push must not cost its neighbours, so the halves become U+FFFD and the number is refused where it stands. The mark is skipped.
    """
    try:
        text = body.decode("utf-8-sig")
        return mended(json.loads(text, parse_constant=_no_constant, parse_int=bounded_int))
    except RecursionError:
        raise _malformed("The body is nested too deeply.") from None
    except ValueError:
        raise _malformed("The body is not JSON in UTF-8.") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def bounded_int(digits: str) -> float:
    """Python refuses to read integers of thousands of digits; as numbers beyond a double they are refused where they stand."""
    return int(digits) if len(digits) <= MAX_TEXT else float("inf")


def mended(value: Any) -> Any:
    """JSON without halves of surrogate pairs: each becomes U+FFFD."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [mended(item) for item in value]
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    return value


def _parse_push(push: Any) -> Push | BadPush:
    if not isinstance(push, dict):
        return BadPush(None, Reason.BAD_SHAPE, "push")
    push_id = push.get("id")
    if not isinstance(push_id, str) or not _ID.match(push_id):
        return BadPush(None, Reason.BAD_SHAPE, "id")
    try:
        return Push(push_id, _parse_call(push.get("call")), bool(push.get("p")))
    except _BadCall as bad:
        return BadPush(push_id, bad.reason, bad.where)


def _parse_call(call: Any) -> Call:
    if not isinstance(call, list) or not call or not isinstance(call[0], str):
        raise _BadCall(Reason.BAD_SHAPE, "call")
    method = call[0]
    if method == "track":
        return _parse_track(_argument(call))
    if method == "identify":
        return parse_identify(_argument(call))
    if method == "reset":
        return _parse_reset(call)
    if method == "consent":
        return _parse_consent(call)
    raise _BadCall(Reason.UNKNOWN_METHOD, "call[0]")


def _parse_consent(call: list[Any]) -> Consent:
    """Reads what the visitor has agreed to. Any word but the two that grant denies: a denial in a consent manager's own words is one, too."""
    if len(call) < 2:
        raise _BadCall(Reason.BAD_SHAPE, "call[1]")
    return Consent(call[1] is True or call[1] == "granted")


def _parse_reset(call: list[Any]) -> Reset:
    """Reads a log-out. Ignores anything behind it but the script's fingerprint of a lost log-in."""
    number = call[1] if len(call) > 1 else None
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**32:
        return Reset(f"{NOBODY}{number}")
    return Reset()


def _argument(call: list[Any]) -> dict[str, Any]:
    """Returns the object of a call. Ignores what stands behind it: pages pass on what they were called with."""
    if len(call) < 2 or not isinstance(call[1], dict):
        raise _BadCall(Reason.BAD_SHAPE, "call[1]")
    return call[1]


def _parse_track(argument: dict[str, Any]) -> Track:
    """Refuses a track whole for one tag that is unusable: half of it could start the wrong automation."""
    faults: Faults = {}
    track = read_track(argument, faults)
    if faults:
        where, reason = next(iter(faults.items()))
        raise _BadCall(reason, f"call[1].{where}")
    if not track.add_tags and not track.remove_tags:
        raise _BadCall(Reason.BAD_SHAPE, "call[1].addTags")
    return track


def parse_identify(argument: Mapping[str, Any]) -> Identify:
    faults: Faults = {}
    token = _token(argument)
    email = _typed_address(argument) if token is None else _address_beside_token(argument, faults)
    return Identify(read_attributes(argument, faults), email, token, tuple(faults))


def parse_contact(contact: Any) -> tuple[Attributes, tuple[str, ...]]:
    """Returns what the `contact` of an identity token sets, and the names of the values dropped from it."""
    if contact is None or contact == []:  # PHP's empty map
        return Attributes(), ()
    if not isinstance(contact, dict):
        return Attributes(), ("contact",)
    faults: Faults = {}
    attributes = read_attributes(contact, faults)
    return attributes, tuple([f"contact.{name}" for name in faults])


def _typed_address(argument: Mapping[str, Any]) -> str | None:
    value = argument.get("email")
    if value is None:
        return None
    address = clean_address(value) if isinstance(value, str) else None
    if address is None:
        raise _BadCall(Reason.BAD_EMAIL, "call[1].email")
    return address


def _address_beside_token(argument: Mapping[str, Any], faults: Faults) -> str | None:
    """Returns the page's address, which only tells whether it is the same: the token says who it is."""
    value = argument.get("email")
    if value is None:
        return None
    address = carriable_address(value) if isinstance(value, str) else None
    if address is None:
        faults["email"] = Reason.BAD_EMAIL
    return address


def _token(argument: Mapping[str, Any]) -> str | None:
    token = argument.get("token")
    if token is None:
        return None
    if not isinstance(token, str):
        raise _BadCall(Reason.BAD_TOKEN, "call[1].token")
    return token
