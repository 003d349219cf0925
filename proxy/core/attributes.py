"""What an identify sets and a track names, read leniently: for pages, identity tokens, the site's servers and each contact of a bulk call alike.

    JSON → read_attributes → Attributes
    JSON → read_track → Track

A value that SendX could not take is dropped and named, and the rest goes on; nothing here raises. Empty values (null, an empty
list, an empty text in a list) vanish silently: back ends and form plug-ins send every field they know.
"""

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, TypeAlias

from proxy.core.calls import FIELDS, Attributes, Track
from proxy.core.emails import carriable_address
from proxy.core.reasons import MAX_NAMES, MAX_TEXT, Reason

Faults: TypeAlias = dict[str, Reason]
"""What was dropped and why, by the name that the answer gives it: `tags[2]`, `customFields.Plan`."""

KNOWN: Mapping[str, str] = {name.casefold(): name for name in (*FIELDS, "email", "newEmail", "customFields", "tags")}
"""The keys of an identify in SendX's spelling, by the form in which spellings are compared. None of them may name a custom field."""

_READ_ELSEWHERE = frozenset(("success", "failure", "email", "token"))
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def read_attributes(argument: Mapping[str, Any], faults: Faults) -> Attributes:
    """Returns what the object of an identify sets; `email` and `token` are for the caller to read. A key that SendX does not have is a fault."""
    fields: dict[str, str] = {}
    custom: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    new_email: str | None = None
    for key, value in argument.items():
        if value is None or key in _READ_ELSEWHERE:
            continue
        if key in FIELDS:
            text = _contact_text(key, value, faults)
            if text is not None:
                fields[key] = text
        elif key == "tags":
            tags = read_tags("tags", value, faults)
        elif key == "customFields":
            custom = _custom_fields(value, faults)
        elif key == "newEmail":
            new_email = carriable_address(value) if isinstance(value, str) else None
            if new_email is None:
                faults["newEmail"] = Reason.BAD_EMAIL
        else:
            faults[key[:MAX_TEXT]] = Reason.BAD_SHAPE
    return Attributes(fields, custom, tags, new_email)


def read_track(argument: Mapping[str, Any], faults: Faults) -> Track:
    """Returns the tags that a track adds and removes. The caller decides whether it goes on without the faulty ones."""
    added = read_tags("addTags", argument.get("addTags"), faults)
    return Track(added, read_tags("removeTags", argument.get("removeTags"), faults))


def read_tags(key: str, value: Any, faults: Faults) -> tuple[str, ...]:
    if value is None:
        return ()
    items = as_list(value)
    if items is None:
        faults[key] = Reason.BAD_SHAPE
        return ()
    if len(items) > MAX_NAMES:
        faults[key] = Reason.TOO_LONG
        return ()
    tags: dict[str, None] = {}
    for index, tag in enumerate(items):
        if not isinstance(tag, str):
            if tag is not None:
                faults[f"{key}[{index}]"] = Reason.BAD_SHAPE
        elif tag.strip():
            if len(tag) > MAX_TEXT:
                faults[f"{key}[{index}]"] = Reason.TOO_LONG
            else:
                tags[tag] = None
    return tuple(tags)


def as_list(value: Any) -> list[Any] | None:
    """Returns the list, also where PHP has written it as an object (`array_filter` leaves gaps: `{"1":"vip"}`); None for all else."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and all(key.isascii() and key.isdecimal() for key in value):
        return list(value.values())
    return None


def _contact_text(key: str, value: Any, faults: Faults) -> str | None:
    if isinstance(value, bool):  # a ticked checkbox, never a name
        faults[key] = Reason.BAD_SHAPE
        return None
    text = _text(value, faults, key)
    if key != "birthday" or text is None:
        return text
    text = text.strip()
    if not _is_date(text):  # for which SendX refuses the whole identify; an empty one, too
        faults[key] = Reason.BAD_SHAPE
        return None
    return text


def _is_date(text: str) -> bool:
    try:
        return _DATE.fullmatch(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _custom_fields(value: Any, faults: Faults) -> dict[str, str]:
    if not isinstance(value, dict):
        if value != []:  # PHP's empty map
            faults["customFields"] = Reason.BAD_SHAPE
        return {}
    if len(value) > MAX_NAMES:
        faults["customFields"] = Reason.TOO_LONG
        return {}
    fields: dict[str, str] = {}
    for name, content in value.items():
        if content is None:
            continue
        if len(name) > MAX_TEXT or not name.strip() or name.casefold() in KNOWN:
            faults[f"customFields.{name[:MAX_TEXT]}"] = Reason.TOO_LONG if len(name) > MAX_TEXT else Reason.BAD_SHAPE
            continue
        text = _text(content, faults, name, "customFields.")
        if text is not None:
            fields[name] = text
    return fields


def _text(value: Any, faults: Faults, name: str, within: str = "") -> str | None:
    """Returns the value as SendX's map of texts holds it, None if it has no such form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = _number(value) if isinstance(value, int | float) else value
    if isinstance(text, str) and len(text) <= MAX_TEXT:
        return text
    faults[within + name] = Reason.TOO_LONG if isinstance(text, str) else Reason.BAD_SHAPE
    return None


def _number(value: float) -> str | None:
    try:
        return str(value) if math.isfinite(value) else None
    except (OverflowError, ValueError):  # an integer beyond a double, or of more digits than Python converts
        return None
