"""What a page or a server may say, as frozen values."""

from enum import StrEnum
from typing import Any

import msgspec

from proxy.core.reasons import Reason

FIELDS = ("firstName", "lastName", "company", "birthday")


class Kind(StrEnum):
    IDENTIFY = "identify"
    TRACK = "track"


class Attributes(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What an identify sets on a contact, in SendX's words. Also the form in which it is stored.

    `fields`: firstName, lastName, company, birthday. `custom_fields`: name to text, numbers and booleans already turned into
    text (SendX decodes a map of strings). `extra`: keys passed on from the site's own servers untouched.
    """

    fields: dict[str, str] = {}
    custom_fields: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    new_email: str | None = None
    extra: dict[str, Any] = {}

    @property
    def increments(self) -> bool:
        """Whether sending this twice could count twice: SendX adds `++n` to and subtracts `--n` from number fields."""
        return any(value.startswith(("++", "--")) for value in self.custom_fields.values())


class Identify(msgspec.Struct, frozen=True):
    """`email` as typed in the page, or `token` as signed by the back end, or neither: the visitor's own contact.

    `ignored`: names of parts that were dropped because SendX could not take them, for the answer's `dropped`.
    """

    attributes: Attributes
    email: str | None = None
    token: str | None = None
    ignored: tuple[str, ...] = ()


class Track(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Tags to add to and to remove from the contact. Also the form in which it is stored."""

    add_tags: tuple[str, ...] = ()
    remove_tags: tuple[str, ...] = ()


class Reset(msgspec.Struct, frozen=True):
    """Forget who this browser is: log-out.

    `lost_log_in`: `visitors.fingerprint` of the address of a log-in that got no answer while its page was open. Neither token nor address is
    stored in a browser, so the next page sends this in its place, under its id.
    """

    lost_log_in: str | None = None


class Consent(msgspec.Struct, frozen=True):
    granted: bool


Call = Identify | Track | Reset | Consent


class Push(msgspec.Struct, frozen=True):
    """`released`: the page held it back until the visitor granted consent (the shim's `p`)."""

    id: str
    call: Call
    released: bool = False


class BadPush(msgspec.Struct, frozen=True):
    """A push that is refused as it stands. `id` is None when the push has none that could be used."""

    id: str | None
    reason: Reason
    where: str | None = None


class Batch(msgspec.Struct, frozen=True):
    """One request. `session`: the browser-session value under which the pushes were made, if it is usable."""

    session: str | None
    items: tuple[Push | BadPush, ...]
