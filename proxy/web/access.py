"""Who is knocking: the page's origin, the client's address, and how fast it pushes.

Pure: headers and time are arguments. Nothing here reads a body or knows what a push is. A refusal is a `RequestError`.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from urllib.parse import urlsplit

import msgspec

from proxy.core.hosts import ip_or_none, is_loopback_host
from proxy.core.strangers import MOST_REMEMBERED, Recent
from proxy.errors import RequestError

Network = IPv4Network | IPv6Network
MAX_HEADERS = 32_768  # bytes of names and values
_MAX_FORWARDED = 1_024  # characters at the end of X-Forwarded-For that can matter
_UNKNOWN = "unknown"
_NAT64 = IPv6Network("64:ff9b::/96")
_MAX_DEBT_SECONDS = 10.0  # for what was let in at once before it was counted: others may share the address


class Headers(msgspec.Struct):
    """The request headers that matter at the edge, each as text; None when missing."""

    origin: str | None = None
    fetch_site: str | None = None
    cookie: str = ""
    forwarded_for: str = ""
    content_length: int | None = None
    gpc: bool = False


def scan(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """One pass over the ASGI headers. A second Origin makes the origin unusable: "null". Raises 431 over MAX_HEADERS."""
    found = Headers()
    cookies: list[str] = []
    hops: list[str] = []
    size = 0
    for name, value in raw:
        size += len(name) + len(value)
        if name == b"origin":
            found.origin = "null" if found.origin is not None else value.decode("latin-1")
        elif name == b"cookie":
            cookies.append(value.decode("latin-1"))
        elif name == b"sec-fetch-site":
            found.fetch_site = value.decode("latin-1")
        elif name == b"x-forwarded-for":
            hops.append(value.decode("latin-1"))
        elif name == b"content-length":
            found.content_length = int(value) if value.isdigit() and len(value) < 16 else None
        elif name == b"sec-gpc":
            found.gpc = value == b"1"
    if size > MAX_HEADERS:
        raise RequestError(431, "headers-too-large", f"The headers are larger than {MAX_HEADERS} bytes.")
    found.cookie, found.forwarded_for = "; ".join(cookies), ",".join(hops)
    return found


def scan_script_request(raw: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Does as `scan`, for a script, which browsers ask for without Origin: the page's origin is that of the Referer.

    Where a page keeps its Referer back, the browser may still say that it is of the same origin: then it is that of the Host.
    """
    headers = scan(raw)
    if headers.origin is None:
        given = {name: value.decode("latin-1") for name, value in raw}
        if b"referer" in given:
            headers.origin = _origin_of(given[b"referer"])
        elif headers.fetch_site == "same-origin":
            plain = f"http://{given.get(b'host', '')}"
            headers.origin = plain if _is_safe(plain) else plain.replace("http:", "https:", 1)
    return headers


def _origin_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "null"
    return f"{parts.scheme}://{parts.netloc}"


def require_origin(headers: Headers, listed: Collection[str]) -> str:
    """Returns the page's origin if it may push: a listed one, or one that the browser says is the same. Raises 403."""
    origin = headers.origin
    if origin is None:
        raise _refused("The request has no Origin header: push from a page, with the shim or with fetch.")
    if headers.fetch_site == "cross-site":
        raise _refused("The page is on another site than this proxy: serve the proxy on the site's own domain.")
    if origin in listed:
        return origin
    if headers.fetch_site == "same-origin":
        if _is_safe(origin):
            return origin
        raise _refused("Plain http is accepted on loopback names only: serve the page over https.")
    raise _refused("This origin is not listed: add it to SCQ_ORIGINS exactly as the browser sends it.")


def _refused(message: str) -> RequestError:
    return RequestError(403, "origin-not-allowed", message)


@lru_cache(maxsize=256)
def _is_safe(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        host = parts.hostname
    except ValueError:
        return False
    return host is not None and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback_host(host)))


def require_host(raw: Iterable[tuple[bytes, bytes]], names: Collection[str]) -> None:
    """Raises 421 unless the request has one Host, and it is known: somebody else's name that points here gets nothing to work with."""
    given = [value.decode("latin-1").lower() for name, value in raw if name == b"host"]
    name = re.sub(r":[0-9]*\Z", "", given[0]) if len(given) == 1 else ""
    if name.removesuffix(".") not in names:
        raise RequestError(421, "unknown-host", "This host name is not served: add it to SCQ_HOSTS, without port.")


class ClientAddresses:
    """The address behind the proxies that are trusted: X-Forwarded-For read from the right."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)
        self._peer = lru_cache(maxsize=4_096)(self._judge_peer)
        self._behind = lru_cache(maxsize=4_096)(self._find_behind)

    def of(self, peer: str | None, forwarded_for: str) -> str:
        """The key to count by: an IPv4 address, or the /64 of an IPv6 one, since a household has all of it.

        `peer` None: a Unix socket, which only a proxy on this machine can reach. What an untrusted peer claims is not looked at.
        """
        key, trusted = self._peer(peer)
        return self._behind(peer, forwarded_for[-_MAX_FORWARDED:]) if trusted and forwarded_for else key

    def _judge_peer(self, peer: str | None) -> tuple[str, bool]:
        address = _parse(peer) if peer is not None else None
        return _key(address), peer is None or (address is not None and self._is_trusted(address))

    def _find_behind(self, peer: str | None, forwarded_for: str) -> str:
        address = _parse(peer) if peer is not None else None
        for part in reversed(forwarded_for.split(",")):
            hop = _parse(part.strip())
            if hop is None:
                break
            address = hop
            if not self._is_trusted(hop):
                break
        return _key(address)

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = ip_or_none(text.partition("%")[0])
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _key(address: IPv4Address | IPv6Address | None) -> str:
    if address is None:
        return _UNKNOWN
    if isinstance(address, IPv6Address) and (behind := _translated(address)) is not None:
        return str(behind)
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


def _translated(address: IPv6Address) -> IPv4Address | None:
    """Returns the IPv4 client whom a translator or a tunnel shows as this IPv6 address: whole countries would be in one /64.

    Only what is counted depends on it. That an address is a trusted proxy's is never concluded from what stands inside another.
    """
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo is not None else None)


class RateLimit:
    """A token bucket per client address: `rate` pushes per second, a second's worth at once; 0 is no limit.

    One request may overdraw the bucket (its pushes are known only after it was let in); the next ones wait for it.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(rate, 1.0)
        self._buckets = Recent[tuple[float, float]](MOST_REMEMBERED)

    def require(self, address: str, now: float) -> None:
        """Raises 429 while the address has nothing left. `now`: seconds of a clock that never goes back."""
        self._require(address, 1.0, now)

    def require_paid(self, address: str, now: float) -> None:
        """Raises 429 if the address owes something: others were let in at the same time as this one, and have brought more than it had left."""
        self._require(address, 0.0, now)

    def _require(self, address: str, least: float, now: float) -> None:
        if not self._rate:
            return
        tokens = self._tokens(address, now)
        if tokens < least:
            wait = math.ceil((1 - tokens) / self._rate)
            raise RequestError(429, "too-fast", "Too many pushes from this address: try again later.", retry_after=wait)

    def spend(self, address: str, pushes: int, now: float) -> None:
        if not self._rate:
            return
        tokens = max(self._tokens(address, now) - pushes, -_MAX_DEBT_SECONDS * self._rate)
        self._buckets.put(address, (tokens, now))

    def _tokens(self, address: str, now: float) -> float:
        tokens, at = self._buckets.get(address) or (self._burst, now)
        return min(self._burst, tokens + (now - at) * self._rate)
