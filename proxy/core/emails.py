"""E-mail addresses: what is one, and which spellings are one person's."""

import unicodedata
from functools import lru_cache

import idna
from email_validator import EmailNotValidError, validate_email

MAX_ADDRESS = 320  # characters
_CACHED_KEYS = 8_192  # a push asks several times for that of its person
_MAX_IDN_LABELS = 4


def clean_address(text: str) -> str | None:
    """The address as given, without the spaces around it; None if it is none. Syntax only: no DNS look-up."""
    address = text.strip()
    if len(address) > MAX_ADDRESS or address.lower().count("xn--") > _MAX_IDN_LABELS:
        return None  # before anything looks at it closely, which takes time
    if not address.isascii() and _ascii_letters(unicodedata.normalize("NFC", address)) > _ascii_letters(address):
        return None  # the Kelvin sign for a K: nobody types that but to write another person's address
    try:
        # The test environment admits the reserved name .test, which staging sites use; nothing else changes.
        validate_email(address, check_deliverability=False, test_environment=True, strict=True)
    except EmailNotValidError:
        return None
    return address


@lru_cache(maxsize=_CACHED_KEYS)
def lane_key(address: str) -> str:
    """What makes two spellings of an address one person: compared without regard to case, and a domain by its ASCII form.

    A letter outside ASCII is never taken for one inside: anybody could write another person's address with it.
    """
    if address.isascii():
        return address.lower()
    local, _, domain = unicodedata.normalize("NFC", address).rpartition("@")
    return f"{_lowered(local)}@{_ascii_domain(domain)}"


def _ascii_letters(text: str) -> int:
    return sum(map(str.isascii, text))


def _lowered(text: str) -> str:
    return "".join(lower if (lower := c.lower()).isascii() == c.isascii() else c for c in text)


def _ascii_domain(domain: str) -> str:
    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower()
    except idna.IDNAError:
        return _lowered(domain)
