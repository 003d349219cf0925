"""What becomes of a push, and why one is refused: one row a reason.

A new reason is a new row here. Answers and counters follow it by themselves; the tests then ask for its row in the README and for its word in
`static/scq.d.ts`.
"""

from enum import StrEnum
from typing import Self

MAX_TOKEN = 8_192  # characters
MAX_NAMES = 100  # tags or custom fields in one push
MAX_TEXT = 255  # characters of a contact string, as SendX states for contact strings and text custom fields

DROPPED_VALUES = "dropped_values"  # the counter of the store for values that SendX could not take
_COUNTER = "refused:"  # in front of the reason, among the counters of the store


class Status(StrEnum):
    """What the answer says of a push (wire contract)."""

    ACCEPTED = "accepted"
    HELD = "held"
    DUPLICATE = "duplicate"
    REFUSED = "refused"


class Source(StrEnum):
    """Where a reason comes up."""

    PAGE = "page"  # in the answer to a push
    SERVER = "server"  # in the server API, which says it in SendX's way
    HELD = "held"  # at the end of a push that was held: counted, and no answer is left to name it


_PAGE, _SERVER, _HELD = Source.PAGE, Source.SERVER, Source.HELD


class Reason(StrEnum):
    """Why a push is refused.

    A row has the word that answers and counters use, where it comes up, what it means (the README says the same), and what whoever reads the
    answer can do: that is its `message`, while `where` says which part of the push is at fault.
    """

    counter: str  # among those of the store
    sources: tuple[Source, ...]
    meaning: str
    advice: str

    def __new__(cls, word: str, sources: tuple[Source, ...], meaning: str, advice: str) -> Self:
        reason = str.__new__(cls, word)
        reason._value_, reason.counter = word, _COUNTER + word
        reason.sources, reason.meaning, reason.advice = sources, meaning, advice
        return reason

    # fmt: off
    BAD_SHAPE = (
        "bad-shape", (_PAGE, _SERVER), "the call or its id does not look as it should, or says nothing; `where` says which part",
        'Push ["identify", {…}], ["track", {addTags: […], removeTags: […]}], ["reset"] or ["consent", "granted"].')
    TOO_LONG = (
        "too-long", (_PAGE,), f"a tag over {MAX_TEXT} characters or a list over {MAX_NAMES} entries in a track, or a token over {MAX_TOKEN:,}",
        f"Keep tags within {MAX_TEXT} characters, their lists within {MAX_NAMES} entries, and identity tokens within {MAX_TOKEN:,} characters.")
    UNKNOWN_METHOD = (
        "unknown-method", (_PAGE,), "not identify, track, reset or consent",
        "Known methods: identify, track, reset, consent.")
    BAD_EMAIL = (
        "bad-email", (_PAGE, _SERVER), "not an e-mail address",
        "That is not an e-mail address: ask the visitor to correct it.")
    BAD_TOKEN = (
        "bad-token", (_PAGE,), "the identity token does not verify, or one of its claims is missing or malformed",
        "The identity token does not verify: sign email, iat, exp (within an hour) and aud scq with HS256 and a key of SCQ_IDENTITY_KEYS.")
    EXPIRED_TOKEN = (
        "expired-token", (_PAGE,), "the identity token has expired",
        "The identity token has expired: fetch a fresh one from the site's back end.")
    UNVERIFIED_IDENTITY = (
        "unverified-identity", (_PAGE,), "an address without a token while `SCQ_IDENTIFY=verified`, or fields of a visitor who is not identified",
        "Identify with a token that the site's back end signs, or set SCQ_IDENTIFY=asserted to accept typed addresses.")
    IDENTITY_CHANGED = (
        "identity-changed", (_PAGE, _HELD), "someone else logged in, or out, on this browser after this was pushed",
        "Someone else logged in, or out, on this browser after this was pushed.")
    TAG_NOT_ALLOWED = (
        "tag-not-allowed", (_PAGE, _HELD), "the tag is not offered to this visitor",
        "This tag is not offered to this visitor: see SCQ_TAGS and SCQ_ASSERTED_TAGS.")
    LANE_FULL = (
        "lane-full", (_PAGE, _SERVER),
        "`SCQ_LANE_MAX` pushes wait for this contact, or as many times 4 KB; for a typed address also: the visitor's network has used up its share",
        "Too much is waiting for this contact, or has come from this network: see SCQ_LANE_MAX, SCQ_HOLD_MB and scq-proxy status.")
    HOLD_FULL = (
        "hold-full", (_PAGE,), "too much is held for visitors who are not identified, or too much of it came from this network",
        "Too much is held for visitors who are not identified: see SCQ_HOLD_MAX and SCQ_HOLD_MB.")
    HOLD_EXPIRED = (
        "hold-expired", (_HELD,), "the visitor was not identified within `SCQ_HOLD_DAYS`",
        "The visitor was not identified within SCQ_HOLD_DAYS.")
    GPC = (
        "gpc", (_PAGE,), "the browser sends Global Privacy Control and the visitor is not identified",
        "The browser sends Global Privacy Control: nothing is kept about a visitor who is not identified (SCQ_GPC).")
    CONSENT_DENIED = (
        "consent-denied", (_PAGE, _HELD), "the visitor has denied consent",
        'The visitor denied consent: push ["consent", "granted"] once they agree.')
    # fmt: on


def reason_of(counter: str) -> str | None:
    """Returns the reason that a counter of the store counts, also one of another version; None for a counter of something else."""
    return counter.removeprefix(_COUNTER) if counter.startswith(_COUNTER) else None
