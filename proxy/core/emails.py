"""E-mail addresses: which texts are one, and which spellings belong to one person.

There are two rules. An address that a back end vouches for (`carriable_address`) exists, whatever its syntax: mobile carriers have given out
`foo..bar.@docomo.ne.jp`, and mail inside a company goes to `bob@company.local`. So it is refused only if it could break a header, a URL or a lane.
A typed one (`clean_address`) must have the syntax of an e-mail address as well.
"""

import re
import unicodedata
from functools import lru_cache

import idna
from email_validator import EmailNotValidError, validate_email

MAX_ADDRESS = 320  # bytes in UTF-8: the cookie carries it
_CACHED_KEYS = 8_192  # a push asks several times for that of its person
_CACHED_DOMAINS = 1_024
_MAX_IDN = 64  # characters of an international domain: IDNA takes microseconds for each
_MAX_IDN_LABELS = 4  # of one that is written in ASCII

# As pages write them: also percent-encoded, or in full-width forms.
_AT, _DOT = r"(?:[@\uff20\ufe6b]|%(?:25)*40)", r"(?:[.\u3002\uff0e\uff61]|%(?:25)*2[Ee])"
_INSIDE = re.compile(rf"[^\s@]{_AT}(?:(?!{_AT})\S)+?{_DOT}[^\s@]")  # not past an @: that would backtrack

# White space of any kind, controls, invisible characters and direction marks: they come along at the ends when an address is copied.
_INVISIBLE = "".join(
    chr(code)
    for codes in (
        range(0x21),
        range(0x7F, 0xA1),
        (0xAD, 0x61C, 0x1680, 0x180E, 0x3000, 0xFEFF),
        *(range(0x2000, 0x2010), range(0x2028, 0x2030), range(0x205F, 0x206A)),
    )
    for code in codes
)
_PART = r"""[^@()<>\[\]:;,\\"\x00-\x20\x7f]+"""  # without the specials of RFC 5322
_CARRIABLE = re.compile(f"{_PART}@{_PART}")
# Unicode's controls, formats (bidi among them), surrogates and separators.
_UNCARRIABLE = frozenset(("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"))


def carriable_address(text: str) -> str | None:
    """Returns an address that is vouched for, trimmed of invisible characters; None if it could do harm on its way."""
    address = text.strip(_INVISIBLE)
    if len(address) > MAX_ADDRESS or not _CARRIABLE.fullmatch(address):
        return None
    if address.isascii():
        return address
    if any(map(_breaks, address)) or len(address.encode()) > MAX_ADDRESS or _apes(address):
        return None
    return address


def clean_address(text: str) -> str | None:
    """Returns a typed address, trimmed of invisible characters; None if it is not one. Syntax only: no DNS look-up."""
    address = carriable_address(text)
    if address is None:
        return None
    local, _, domain = address.rpartition("@")
    judged = address
    if not domain.isascii() or "xn--" in domain.lower():
        form = _ascii_domain(domain)
        if form is None:
            return None
        judged = f"{local}@{form.replace('xn--', 'xn-a')}"  # not IDNA a second time: it is the slowest part
    try:
        # The test environment admits the reserved name .test, which staging sites use; nothing else changes.
        validate_email(judged, check_deliverability=False, test_environment=True, strict=True)
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
    form = domain.lower() if domain.isascii() else _ascii_domain(domain)
    return f"{_lowered(local)}@{_lowered(domain) if form is None else form}"


def _apes(address: str) -> bool:
    """Returns whether normalization turns another character into ASCII: a Kelvin sign for a K is there to imitate another person's address."""
    return _ascii_letters(unicodedata.normalize("NFC", address)) > _ascii_letters(address)


def holds_address(text: str) -> bool:
    """Returns whether the text may contain an e-mail address, and so must not be shown: anything of the form x@y.z."""
    return _INSIDE.search(text) is not None


def _ascii_letters(text: str) -> int:
    return sum(map(str.isascii, text))


def _breaks(character: str) -> bool:
    if character in _INVISIBLE or unicodedata.category(character) in _UNCARRIABLE:
        return True
    code = ord(character)
    return 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE  # Unicode's noncharacters


def _lowered(text: str) -> str:
    return "".join(lower if (lower := c.lower()).isascii() == c.isascii() else c for c in text)


@lru_cache(maxsize=_CACHED_DOMAINS)
def _ascii_domain(domain: str) -> str | None:
    """Returns an international domain as DNS has it, in lower case; None if it has no such form or would take too long to encode."""
    if len(domain) > _MAX_IDN if not domain.isascii() else domain.lower().count("xn--") > _MAX_IDN_LABELS:
        return None
    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower()
    except UnicodeError:
        return None
