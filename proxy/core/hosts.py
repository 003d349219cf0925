"""Host names and IP addresses as text, and which of them are this machine."""

from ipaddress import IPv4Address, IPv6Address, ip_address


def ip_or_none(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_loopback_host(host: str) -> bool:
    """True for `localhost`, `*.localhost`, 127.0.0.0/8 and `::1` (with or without brackets), lower-case."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = ip_or_none(host.removeprefix("[").removesuffix("]"))
    return address is not None and address.is_loopback
