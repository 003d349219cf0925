"""Reads a body for whether it could be SendX's: of a success, that SendX took the request; of an error, that SendX said it.

A maintenance page, a captive portal and a wrong base URL answer 200 as well, and nothing that they swallow comes back; a gateway that lacks a
certificate answers 400 to all that it gets. SendX answers every call with JSON, in wordings that vary, so only what contradicts a success counts
against one (source: SendX docs, SDKs).

Does not see the status and decides nothing: `core.retry` does.
"""

import json

from proxy.core.retry import Call


def bears_out(body: bytes, call: Call) -> bool:
    """Returns whether the body is a JSON object that reports no error, or the list that was asked for."""
    try:
        answer = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return False
    if isinstance(answer, list):
        return call is Call.LIST_TAGS
    return isinstance(answer, dict) and not answer.get("error") and not _fails(answer.get("status"))


def is_an_error(body: bytes) -> bool:
    """Returns whether the body begins as a JSON object does, as that of each error of SendX is. Its end may not have come."""
    return body.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _fails(status: object) -> bool:
    """Returns whether a `status` is "error", or at least 400 as a number or text."""
    if isinstance(status, str) and status.strip().lower() == "error":
        return True
    if isinstance(status, bool) or not isinstance(status, str | int | float):
        return False
    try:
        return float(status) >= 400
    except OverflowError:
        return True
    except ValueError:
        return False
