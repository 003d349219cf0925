"""What becomes of a push, and why one is refused: the one table from which answers, counters, README and types follow."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

MAX_NAMES = 100  # tags or custom fields in one push
MAX_TEXT = 255  # characters of a contact string, as SendX states for contact strings and text custom fields


class Status(StrEnum):
    """What the answer says of a push (wire contract)."""

    ACCEPTED = "accepted"
    HELD = "held"
    DUPLICATE = "duplicate"
    REFUSED = "refused"


class Reason(StrEnum):
    """Why a push is refused. The one list: answers, counters and the README use these words."""

    BAD_SHAPE = "bad-shape"
    TOO_LONG = "too-long"
    UNKNOWN_METHOD = "unknown-method"
    BAD_EMAIL = "bad-email"
    BAD_TOKEN = "bad-token"
    EXPIRED_TOKEN = "expired-token"
    UNVERIFIED_IDENTITY = "unverified-identity"
    IDENTITY_CHANGED = "identity-changed"
    TAG_NOT_ALLOWED = "tag-not-allowed"
    TOO_MANY_ADDRESSES = "too-many-addresses"
    LANE_FULL = "lane-full"
    HOLD_FULL = "hold-full"
    HOLD_EXPIRED = "hold-expired"
    GPC = "gpc"
    CONSENT_DENIED = "consent-denied"


# What each reason means for whoever reads the answer: what is wrong and what to do. `where` in the result says which part.
ADVICE: Mapping[Reason, str] = {
    Reason.BAD_SHAPE: 'Push ["identify", {…}], ["track", {addTags: […], removeTags: […]}], ["reset"] or ["consent", "granted"].',
    Reason.TOO_LONG: f"Keep texts within {MAX_TEXT} characters and lists within {MAX_NAMES} entries.",
    Reason.UNKNOWN_METHOD: "Known methods: identify, track, reset, consent.",
    Reason.BAD_EMAIL: "That is no e-mail address: ask the visitor to correct it.",
    Reason.BAD_TOKEN: "The identity token does not verify: sign it with HS256 and a key of SCQ_IDENTITY_KEYS, aud scq, exp within an hour.",
    Reason.EXPIRED_TOKEN: "The identity token has expired: fetch a fresh one from the site's back end.",
    Reason.UNVERIFIED_IDENTITY: "Identify with a token that the site's back end signs, or set SCQ_IDENTIFY=asserted to accept typed addresses.",
    Reason.IDENTITY_CHANGED: "Someone else logged in, or out, on this browser after this was pushed.",
    Reason.TAG_NOT_ALLOWED: "This tag is not offered to this visitor: see SCQ_TAGS and SCQ_ASSERTED_TAGS.",
    Reason.TOO_MANY_ADDRESSES: "Too many addresses were typed from this network within an hour: see SCQ_SIGNUPS_PER_IP.",
    Reason.LANE_FULL: "Too much is waiting for this contact: see SCQ_LANE_MAX, and scq-proxy status.",
    Reason.HOLD_FULL: "Too much is held for visitors who are not identified: see SCQ_HOLD_MAX and SCQ_HOLD_MB.",
    Reason.HOLD_EXPIRED: "The visitor was not identified within SCQ_HOLD_DAYS.",
    Reason.GPC: "The browser sends Global Privacy Control: nothing is kept about a visitor who is not identified (SCQ_GPC).",
    Reason.CONSENT_DENIED: 'The visitor denied consent: push ["consent", "granted"] once they agree.',
}
