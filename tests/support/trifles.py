"""Values that real clients send by accident: none is a reason to lose a log-in, a sign-up or a contact of a bulk call.

PHP's `json_encode` writes an empty map as `[]`, and a list with gaps (`array_filter`) as an object; `explode` of nothing gives `[""]`. Form
plug-ins send every field they have, the empty ones included. jQuery's `serializeArray` gives a list of pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Trifle(NamedTuple):
    """What an identify says, what of it goes on (as SendX is sent it), and the names of what is dropped."""

    says: dict[str, Any]
    goes_on: dict[str, Any]
    dropped: tuple[str, ...] = ()


LONG = "x" * 256
MANY = {f"field-{number}": "x" for number in range(101)}
PAIRS = [{"name": "plan", "value": "gold"}]

TRIFLES: dict[str, Trifle] = {
    # Empty by nature: nothing is lost, nothing is named.
    "an empty list for a map": Trifle({"customFields": []}, {}),
    "an empty map": Trifle({"customFields": {}}, {}),
    "an empty list": Trifle({"tags": []}, {}),
    "an empty map for a list": Trifle({"tags": {}}, {}),
    "explode of nothing": Trifle({"tags": [""]}, {}),
    "blanks and nulls among tags": Trifle({"tags": ["", "vip", " \t", None]}, {"tags": ["vip"]}),
    "a list with gaps": Trifle({"tags": {"1": "vip", "0": "new"}}, {"tags": ["vip", "new"]}),
    "a list with gaps and empties": Trifle({"tags": {"0": "", "2": "vip"}}, {"tags": ["vip"]}),
    "nulls": Trifle({"firstName": None, "tags": None, "customFields": None, "newEmail": None, "birthday": None}, {}),
    "a null in a map": Trifle({"customFields": {"Plan": None}}, {}),
    "an empty name": Trifle({"firstName": ""}, {"firstName": ""}),
    # Lists and maps of another shape
    "a text for a list": Trifle({"tags": "vip"}, {}, ("tags",)),
    "an empty text for a list": Trifle({"tags": ""}, {}, ("tags",)),
    "a map for a list": Trifle({"tags": {"vip": "1"}}, {}, ("tags",)),
    "a number for a list": Trifle({"tags": 7}, {}, ("tags",)),
    "an empty text for a map": Trifle({"customFields": ""}, {}, ("customFields",)),
    "a list for a map": Trifle({"customFields": ["gold"]}, {}, ("customFields",)),
    "pairs for a map": Trifle({"customFields": PAIRS}, {}, ("customFields",)),
    "pairs for tags": Trifle({"tags": [*PAIRS, "vip"]}, {"tags": ["vip"]}, ("tags[0]",)),
    # Tags
    "a number among tags": Trifle({"tags": ["vip", 7, True]}, {"tags": ["vip"]}, ("tags[1]", "tags[2]")),
    "a long tag": Trifle({"tags": ["vip", LONG]}, {"tags": ["vip"]}, ("tags[1]",)),
    "a tag of the longest": Trifle({"tags": [LONG[:255]]}, {"tags": [LONG[:255]]}),
    "too many tags": Trifle({"tags": [f"tag-{number}" for number in range(101)]}, {}, ("tags",)),
    "a tag twice": Trifle({"tags": ["vip", "vip"]}, {"tags": ["vip"]}),
    # Texts
    "a long text": Trifle({"company": LONG}, {}, ("company",)),
    "a box for a name": Trifle({"firstName": True, "company": False}, {}, ("firstName", "company")),
    "a list for a name": Trifle({"lastName": ["B"]}, {}, ("lastName",)),
    "a map for a name": Trifle({"lastName": {"de": "B"}}, {}, ("lastName",)),
    "a number for a name": Trifle({"lastName": 7}, {"lastName": "7"}),
    "a number beyond a double": Trifle({"lastName": float("inf")}, {}, ("lastName",)),
    # Birthdays
    "an empty birthday": Trifle({"birthday": ""}, {}, ("birthday",)),
    "a blank birthday": Trifle({"birthday": " "}, {}, ("birthday",)),
    "a birthday of another form": Trifle({"birthday": "03/03/1989"}, {}, ("birthday",)),
    "a birthday without dashes": Trifle({"birthday": "19890303"}, {}, ("birthday",)),
    "a birthday of another era": Trifle({"birthday": "0000-00-00"}, {}, ("birthday",)),
    "a birthday with a time": Trifle({"birthday": "1989-03-03T00:00:00Z"}, {}, ("birthday",)),
    "a day that no year has": Trifle({"birthday": "1989-02-30"}, {}, ("birthday",)),
    "digits of another script": Trifle({"birthday": "١٩٨٩-٠٣-٠٣"}, {}, ("birthday",)),
    "a number for a birthday": Trifle({"birthday": 604886400}, {}, ("birthday",)),
    "a box for a birthday": Trifle({"birthday": False}, {}, ("birthday",)),
    "blanks around a birthday": Trifle({"birthday": " 1989-03-03\n"}, {"birthday": "1989-03-03"}),
    # Custom fields
    "numbers and boxes in a map": Trifle(
        {"customFields": {"Age": 36, "Score": 1.5, "VIP": True, "Left": False}},
        {"customFields": {"Age": "36", "Score": "1.5", "VIP": "true", "Left": "false"}},
    ),
    "a list in a map": Trifle(
        {"customFields": {"Plan": "gold", "Sizes": ["S"]}}, {"customFields": {"Plan": "gold"}}, ("customFields.Sizes",)
    ),
    "a map in a map": Trifle({"customFields": {"Plan": {"de": "Gold"}}}, {}, ("customFields.Plan",)),
    "a long text in a map": Trifle(
        {"customFields": {"Plan": "gold", "Bio": LONG}}, {"customFields": {"Plan": "gold"}}, ("customFields.Bio",)
    ),
    "an integer beyond a double": Trifle({"customFields": {"Score": 10**400}}, {}, ("customFields.Score",)),
    "infinity in a map": Trifle({"customFields": {"Score": float("inf")}}, {}, ("customFields.Score",)),
    "a number of many digits in a map": Trifle({"customFields": {"Score": 10**300}}, {}, ("customFields.Score",)),
    "a field without a name": Trifle({"customFields": {"": "x", " ": "y"}}, {}, ("customFields.", "customFields. ")),
    "a field with a long name": Trifle({"customFields": {LONG: "x"}}, {}, (f"customFields.{LONG[:255]}",)),
    "too many fields": Trifle({"customFields": MANY}, {}, ("customFields",)),
    "fields named like SendX's own": Trifle(
        {"customFields": {"email": "x@example.com", "NewEmail": "x@example.com", "TAGS": "x", "firstname": "x", "Plan": "gold"}},
        {"customFields": {"Plan": "gold"}},
        ("customFields.email", "customFields.NewEmail", "customFields.TAGS", "customFields.firstname"),
    ),
    "an increment": Trifle({"customFields": {"Orders": "++1"}}, {"customFields": {"Orders": "++1"}}),
    # Addresses
    "an empty new address": Trifle({"newEmail": ""}, {}, ("newEmail",)),
    "a malformed new address": Trifle({"newEmail": "nowhere"}, {}, ("newEmail",)),
    "a new address of another type": Trifle({"newEmail": ["a@b.co"]}, {}, ("newEmail",)),
    # All of a form at once
    "a form plug-in": Trifle(
        {"firstName": "Bob", "lastName": "", "company": "", "birthday": "", "customFields": {"Phone": ""}, "tags": [""], "newEmail": ""},
        {"firstName": "Bob", "lastName": "", "company": "", "customFields": {"Phone": ""}},
        ("birthday", "newEmail"),
    ),
}  # fmt: skip
