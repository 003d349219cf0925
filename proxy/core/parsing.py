"""The wire, parsed once into frozen values.

    bytes → parse_batch → Batch(session, items)      item: Push(id, call) or BadPush(id, reason, where)

A request is one JSON object, as README describes it. What makes the whole request unreadable raises `RequestError`; what is
wrong with one push makes that push a `BadPush` and leaves its neighbours alone. Nothing here decides who may do what: that
is `policy`.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from proxy.core.calls import FIELDS, Attributes, BadPush, Batch, Call, Consent, Identify, Push, Reset, Track
from proxy.core.emails import clean_address
from proxy.core.reasons import MAX_NAMES, MAX_TEXT, Reason
from proxy.errors import RequestError

MAX_PUSHES = 50
MAX_TOKEN = 8_192

_ID = re.compile(r"[A-Za-z0-9_-]{16,64}\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CALLBACKS = frozenset(("success", "failure"))


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
    """What msgspec refuses and browsers send: half of a surrogate pair (a cut-off emoji), or a number beyond a double.

    One such push must not cost its neighbours, so the halves become U+FFFD and the number is refused where it stands.
    """
    try:
        text = body.decode("utf-8")
        return mended(json.loads(text, parse_constant=_no_constant, parse_int=_bounded_int))
    except RecursionError:
        raise _malformed("The body is nested too deeply.") from None
    except ValueError:
        raise _malformed("The body is not JSON in UTF-8.") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _bounded_int(digits: str) -> float:
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
        return Reset()
    if method == "consent":
        if len(call) < 2 or call[1] not in ("granted", "denied"):
            raise _BadCall(Reason.BAD_SHAPE, "call[1]")
        return Consent(call[1] == "granted")
    raise _BadCall(Reason.UNKNOWN_METHOD, "call[0]")


def parse_call(method: str, argument: Any) -> Call | BadPush:
    """One call that came by another way than a page: what is wrong with it is a `BadPush` without an id."""
    try:
        return _parse_call([method, argument])
    except _BadCall as bad:
        return BadPush(None, bad.reason, bad.where)


def _argument(call: list[Any]) -> dict[str, Any]:
    if len(call) != 2 or not isinstance(call[1], dict):
        raise _BadCall(Reason.BAD_SHAPE, "call[1]")
    return call[1]


def _parse_track(argument: dict[str, Any]) -> Track:
    if argument.get("addTags") is None and argument.get("removeTags") is None:
        raise _BadCall(Reason.BAD_SHAPE, "call[1].addTags")
    return Track(_tags(argument.get("addTags"), "addTags"), _tags(argument.get("removeTags"), "removeTags"))


def _tags(value: Any, key: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _BadCall(Reason.BAD_SHAPE, f"call[1].{key}")
    if len(value) > MAX_NAMES:
        raise _BadCall(Reason.TOO_LONG, f"call[1].{key}")
    for index, tag in enumerate(value):
        if not isinstance(tag, str) or not tag.strip():
            raise _BadCall(Reason.BAD_SHAPE, f"call[1].{key}[{index}]")
        if len(tag) > MAX_TEXT:
            raise _BadCall(Reason.TOO_LONG, f"call[1].{key}[{index}]")
    return tuple(dict.fromkeys(value))


def parse_identify(argument: Mapping[str, Any]) -> Identify:
    """The object of an identify. Nulls are left out; unknown keys and values that are no text end up in `ignored`."""
    fields: dict[str, str] = {}
    custom: dict[str, str] = {}
    ignored: list[str] = []
    tags: tuple[str, ...] = ()
    for key, value in argument.items():
        if value is None or key in _CALLBACKS or key in ("email", "token", "newEmail"):
            continue
        if key in FIELDS:
            fields[key] = _text(value, f"call[1].{key}")
        elif key == "tags":
            tags = _tags(value, "tags")
        elif key == "customFields":
            custom = _custom_fields(value, ignored)
        else:
            ignored.append(key[:MAX_TEXT])
    attributes = Attributes(fields, custom, tags, _address(argument, "newEmail"))
    return Identify(attributes, _address(argument, "email"), _token(argument), tuple(ignored))


def parse_vouched(contact: Mapping[str, Any]) -> tuple[Attributes, tuple[str, ...]] | None:
    """The `contact` object of an identity token: its attributes and the parts that were ignored; None if it is none."""
    try:
        parsed = parse_identify(contact)
    except _BadCall:
        return None
    return parsed.attributes, parsed.ignored


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(value, where)
    if not isinstance(value, str):
        raise _BadCall(Reason.BAD_SHAPE, where)
    if len(value) > MAX_TEXT:
        raise _BadCall(Reason.TOO_LONG, where)
    return value


def _number(value: float, where: str) -> str:
    if not math.isfinite(value):
        raise _BadCall(Reason.BAD_SHAPE, where)
    try:
        text = str(value)
    except ValueError:  # more digits than Python converts
        raise _BadCall(Reason.TOO_LONG, where) from None
    if len(text) > MAX_TEXT:
        raise _BadCall(Reason.TOO_LONG, where)
    return text


def _custom_fields(value: Any, ignored: list[str]) -> dict[str, str]:
    where = "call[1].customFields"
    if not isinstance(value, dict):
        raise _BadCall(Reason.BAD_SHAPE, where)
    if len(value) > MAX_NAMES:
        raise _BadCall(Reason.TOO_LONG, where)
    fields: dict[str, str] = {}
    for name, content in value.items():
        if content is None:
            continue
        if not name or len(name) > MAX_TEXT:
            raise _BadCall(Reason.TOO_LONG if name else Reason.BAD_SHAPE, where)
        if isinstance(content, list | dict):
            ignored.append(f"customFields.{name}")
        else:
            fields[name] = _text(content, where)
    return fields


def _address(argument: Mapping[str, Any], key: str) -> str | None:
    value = argument.get(key)
    if value is None:
        return None
    address = clean_address(value) if isinstance(value, str) else None
    if address is None:
        raise _BadCall(Reason.BAD_EMAIL, f"call[1].{key}")
    return address


def _token(argument: Mapping[str, Any]) -> str | None:
    token = argument.get("token")
    if token is None:
        return None
    if not isinstance(token, str):
        raise _BadCall(Reason.BAD_TOKEN, "call[1].token")
    if len(token) > MAX_TOKEN:
        raise _BadCall(Reason.TOO_LONG, "call[1].token")
    return token
