"""Text to value, one parser for each kind of setting.

A parser takes the text as given, trimmed, and returns the value or raises `Wrong` with every reason, in words for the operator. It
never quotes a secret, nor anything that may be one. Which setting takes which kind is in `settings`.
"""

import re
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar

from proxy.config.types import KEY_MIN_CHARACTERS, IdentityKey, PostgresUrl, Secret, SqliteUrl, StoreUrl
from proxy.core.hosts import ip_or_none, is_loopback_host

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class Wrong(Exception):
    """One sentence for each thing that is wrong with one variable; never leaves this module."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = reasons


def shown(value: str) -> str:
    """A value as an error may show it: short, with escapes, and never an e-mail address or credentials."""
    if "@" in value or "%40" in value:
        return "(not shown, as it contains an @)"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# The same readers keep a comment behind the quotes.
_QUOTED = re.compile(r"""(["']).*\1(\s+#.*)?""", re.DOTALL)


def unquoted(text: str) -> str:
    """Refuses matching quotes: a shell and a `.env` file strip them, `docker run --env-file` and a list in a compose file do not."""
    if _QUOTED.fullmatch(text) is not None:
        raise Wrong("is in quotes, which would be part of the value; remove them")
    return text


def each(text: str, parse_one: Callable[[str], T]) -> list[T]:
    """Parse what stands between commas or line ends; say everything that is wrong, and at which entry."""
    items = [item.strip() for item in re.split(r"[,\r\n]", text) if item.strip()]
    parsed: list[T] = []
    reasons: list[str] = []
    for position, item in enumerate(items, start=1):
        try:
            parsed.append(parse_one(unquoted(item)))
        except Wrong as wrong:
            where = f"entry {position} of {len(items)}: " if len(items) > 1 else ""
            reasons += [where + reason for reason in wrong.reasons]
    if reasons:
        raise Wrong(*reasons)
    return parsed


def switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise Wrong(f"must be 1 or 0, not {shown(text)}")
    return text == "1"


def optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: parse(text) if text else None


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) and low <= float(text) <= high:
            return float(text)
        raise Wrong(f"must be a number from {low:g} to {high:g}, not {shown(text)}")

    return parse


def rate(text: str) -> float:
    """In a second; 0: no limit."""
    return 0.0 if re.fullmatch(r"0+(\.0*)?", text) else number(0.1, 10_000)(text)


def whole(low: int, high: int, unit: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,12}", text) and low <= int(text) <= high:
            return int(text) * unit
        raise Wrong(f"must be a whole number from {low} to {high}, not {shown(text)}")

    return parse


def seconds(text: str) -> timedelta:
    return timedelta(seconds=number(0, 2_592_000)(text))


def days(text: str) -> timedelta:
    return timedelta(days=number(0.001, 3650)(text))


def choice(options: type[E]) -> Callable[[str], E]:
    def parse(text: str) -> E:
        if text.lower() in set(options):
            return options(text.lower())
        raise Wrong(f"must be {' or '.join(options)}, not {shown(text)}")

    return parse


def globs(text: str) -> tuple[str, ...]:
    return tuple(each(text, str))


def printable(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise Wrong("contains a character that is not printable ASCII")
    return text


def api_key(text: str) -> Secret:
    return Secret(printable(text))  # SendX chooses it, so its length is not ours to judge


def key(text: str) -> Secret:
    if len(printable(text)) < KEY_MIN_CHARACTERS:
        raise Wrong(
            f"has {len(text)} characters where at least {KEY_MIN_CHARACTERS} are needed; "
            "make one with `scq-proxy keygen`"
        )
    return Secret(text)


def identity_key(text: str) -> IdentityKey:
    kid, _, secret = text.partition("=")
    if len(secret) < KEY_MIN_CHARACTERS:  # this '=' is base64 padding or part of the secret
        return IdentityKey(None, key(text))
    if not kid.strip():
        raise Wrong("has no kid before the '='; write kid=secret, or the secret alone")
    return IdentityKey(printable(kid.strip()), key(unquoted(secret.strip())))


def refuse_repeats(values: list[T], what: str) -> None:
    for position, value in enumerate(values, start=1):
        if value is not None and value in values[: position - 1]:
            raise Wrong(f"entries {values.index(value) + 1} and {position} {what}; remove or replace one")


def keys(text: str) -> tuple[Secret, ...]:
    keys = each(text, key)
    refuse_repeats(keys, "are the same key")
    return tuple(keys)


def identity_keys(text: str) -> tuple[IdentityKey, ...]:
    keys = each(text, identity_key)
    refuse_repeats([key.secret for key in keys], "are the same key")
    refuse_repeats([key.kid for key in keys], "have the same kid")
    return tuple(keys)


def host_name(host: str) -> str:
    if not host.isascii():
        raise Wrong(f"{shown(host)} must be written in punycode (xn--...), as `location.origin` shows it")
    host = host.lower()
    if host.startswith("["):
        address = ip_or_none(host[1:-1])
        if isinstance(address, IPv6Address):
            return f"[{address.compressed}]"
    elif host.rpartition(".")[2].isdigit():
        if isinstance(ip_or_none(host), IPv4Address):
            return host
    elif re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
        return host
    raise Wrong(f"{shown(host)} is neither a host name nor an IP address")


_URL = re.compile(r"([a-z]+)://(\[[0-9a-f:.]*\]|[^\s/?#@:\[\]\\]+)(?::([0-9]{1,5}))?(/[^\s?#]*)?", re.IGNORECASE)


def base_and_path(url: str, shape: str) -> tuple[str, str]:
    """Split into `scheme://host[:port]`, as a browser would write it, and the path."""
    if (match := _URL.fullmatch(url)) is None or match[1].lower() not in ("http", "https"):
        raise Wrong(f"must be {shape}")
    scheme, host, port = match[1].lower(), host_name(match[2]), int(match[3] or 0)
    if match[3] and not 1 <= port <= 65535:
        raise Wrong(f"has port {port}; ports are 1 to 65535")
    if scheme == "http" and not is_loopback_host(host):
        raise Wrong("uses plain http, which is for loopback only (localhost, 127.0.0.1, [::1]): use https")
    usual = {"http": 80, "https": 443}[scheme]  # browsers leave it out of the Origin header
    return f"{scheme}://{host}" + (f":{port}" if port not in (0, usual) else ""), match[4] or ""


def origin(text: str) -> str:
    if "*" in text:
        raise Wrong(f"{shown(text)} has a wildcard; origins are exact, so write each one out")
    base, path = base_and_path(text, f"https://host or https://host:port, not {shown(text)}")
    if path:
        what = "'/' at the end" if path == "/" else "path"
        raise Wrong(f"{shown(text)} is more than an origin: drop the {what}")
    return base


def origins(text: str) -> frozenset[str]:
    return frozenset(each(text, origin))


def hosts(text: str) -> frozenset[str]:
    """Names as a Host header has them, in lower case, without a port."""
    return frozenset(each(text, _host_name))


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]", text):
        raise Wrong(f"{shown(text)} is not a host name: give it without scheme, port and path, such as www.example.com")
    return text.lower().removesuffix(".")


def upstream(text: str) -> str:
    # The value is never shown: people paste URLs with a key in the query or with credentials.
    shape = "https://host/path, without user name, query (?) or fragment (#)"
    if not (text.isascii() and text.isprintable()):
        raise Wrong(f"must be {shape}, in printable ASCII")
    base, path = base_and_path(text, shape)
    return base + path.rstrip("/")


def store(text: str) -> StoreUrl:
    scheme, found, rest = text.partition("://")
    if scheme == "postgresql" and rest:
        return PostgresUrl(Secret(printable(text)))
    if scheme == "postgres" and found:
        raise Wrong("begins with postgres://; write postgresql://")
    if scheme != "sqlite" or not found:
        raise Wrong("must begin with sqlite:/// or postgresql://")
    if not rest.startswith("/"):
        raise Wrong("needs three slashes for a relative path (sqlite:///scq.db), four for an absolute one")
    path = rest[1:]
    if not path or path.endswith("/") or path == ":memory:" or not path.isprintable() or "?" in path:
        raise Wrong("must name a file, without '?', after sqlite:///")
    return SqliteUrl(Path(path))


# Other public paths; below the last three nothing is served, so only their exact names are taken.
_TAKEN_TREES = ("/prod", "/api/v1")
_TAKEN_PATHS = ("/api", "/healthz", "/readyz", "/metrics")


def prefix(text: str) -> str:
    if text.endswith("/"):
        raise Wrong("must not end with '/', and cannot be '/' alone")
    parts = text.split("/")
    if parts[0] or any(not re.fullmatch(r"[A-Za-z0-9._~-]+", part) or part in (".", "..") for part in parts[1:]):
        raise Wrong(f"must begin with '/' and hold only letters, digits and ._~- between slashes, not {shown(text)}")
    if text in _TAKEN_PATHS or any((text + "/").startswith(tree + "/") for tree in _TAKEN_TREES):
        raise Wrong(f"{shown(text)} is taken: {', '.join((*_TAKEN_TREES, *_TAKEN_PATHS))} serve other things")
    return text


_FILE_NAME = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")


def script(text: str) -> str:
    if not _FILE_NAME.fullmatch(text) or not text.endswith(".js"):
        raise Wrong(f"must be a file name of letters, digits and ._~- that ends in .js, not {shown(text)}")
    return text


_TAKEN_NAMES = ("status", "check")  # under the prefix


def endpoint(text: str) -> str:
    if not _FILE_NAME.fullmatch(text):
        raise Wrong(f"must be one name of letters, digits and ._~-, without a slash, not {shown(text)}")
    if text.endswith(".js"):
        raise Wrong(f"{shown(text)} ends in .js, as only scripts do; choose another name")
    if text in _TAKEN_NAMES:
        raise Wrong(f"{shown(text)} is taken: {' and '.join(_TAKEN_NAMES)} serve other things")
    return text


def listen_host(text: str) -> str:
    if ip_or_none(text) is None and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
        raise Wrong(f"must be an IP address or a host name, without port or brackets, not {shown(text)}")
    return text


def network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise Wrong(f"{shown(text)} is neither an IP address nor a network") from None
    if "/" in text and ip_or_none(text.partition("/")[0]) != network.network_address:
        raise Wrong(f"{shown(text)} has bits set beyond its mask; write {network}")
    return network


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(each(text, network))
