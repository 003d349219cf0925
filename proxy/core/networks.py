"""The networks that a client address is in: what strangers do is counted by each of them, because addresses in one's own network cost nothing."""

from functools import lru_cache
from ipaddress import IPv6Network, ip_network

from proxy.core.hosts import ip_or_none

_LEVELS_4 = (16, 24)
_LEVELS_6 = (32, 48, 56)


@lru_cache(maxsize=4_096)
def networks_of(client: str) -> tuple[str, ...]:
    """Returns the networks of a client, the widest first, the client itself last.

    `client`: an IPv4 address, or the /64 of an IPv6 one. Anything else is a network by itself: clients that cannot be told apart.
    """
    if (address := ip_or_none(client)) is not None:
        return (*(str(ip_network((address, bits), strict=False)) for bits in _LEVELS_4), client)
    try:
        own = IPv6Network(client)
    except ValueError:
        return (client,)
    return (*(str(own.supernet(new_prefix=bits)) for bits in _LEVELS_6 if bits < own.prefixlen), client)
