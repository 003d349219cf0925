"""Finds sign-ups that wait: which rows of the queue a filter is about. Pure, and the same for both adapters."""

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_network

from proxy.store.records import SignUp, SignUpFilter

STEP_ROWS = 1_000  # of the queue, looked at in one transaction


def matcher(matching: SignUpFilter) -> Callable[[SignUp], bool]:
    """Returns what tells whether a sign-up meets every condition of the filter.

    A network that cannot be read as one, such as `unknown`, is that of the clients of this name.
    """
    pattern = _compiled(matching.pattern) if matching.pattern is not None else None

    def matches(sign_up: SignUp) -> bool:
        return (
            (matching.after is None or sign_up.at >= matching.after)
            and (matching.before is None or sign_up.at < matching.before)
            and (matching.network is None or _is_within(sign_up.client, matching.network))
            and (pattern is None or pattern.fullmatch(sign_up.address) is not None)
        )

    return matches


def _compiled(pattern: str) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(each) or re.escape(each) for each in pattern), re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=4_096)
def _is_within(client: str, network: str) -> bool:
    if client == network:
        return True
    try:
        inner, outer = ip_network(client), ip_network(network, strict=False)
    except ValueError:
        return False
    return inner.version == outer.version and inner.prefixlen >= outer.prefixlen and inner.network_address in outer
