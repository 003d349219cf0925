"""Explains why a connection to SendX failed: a fixed text for each cause, and advice for each text.

Library messages are not shown: they may quote a host name or a URL, and they change between versions.
"""

import socket
import ssl
from collections.abc import Iterator, Mapping

NO_CONNECTION = "no connection"
NOT_IN_TIME = "no connection in time"
NO_ANSWER = "no answer in time"
NO_WHOLE_ANSWER = "no whole answer in time"
CUT_OFF = "the connection broke within an answer"

_NO_NAME = "no connection: its host name is not found (DNS)"
_REFUSED = "no connection: refused, nothing listens there"
_NO_ROUTE = "no connection: its network cannot be reached"
_EXPIRED = "no connection: its certificate has expired"
_TOO_EARLY = "no connection: its certificate is not valid yet"
_OTHER_HOST = "no connection: its certificate is for another host name"
_UNTRUSTED = "no connection: its certificate is not trusted"
_NO_TLS = "no connection: TLS failed"

_ROUTE = "Check this machine's network and firewall, and SCQ_UPSTREAM."
_SLOW = "If SendX is slow and not down, raise SCQ_UPSTREAM_TIMEOUT (50 seconds at most)."
_CLOCK = "Check this machine's clock. If it is right, the server's certificate has to be renewed: tell SendX, or whoever runs that server."

ADVICE: Mapping[str, str] = {
    NO_CONNECTION: _ROUTE,
    NOT_IN_TIME: _ROUTE,
    NO_ANSWER: _SLOW,
    NO_WHOLE_ANSWER: _SLOW,
    _NO_NAME: "Check the host name in SCQ_UPSTREAM, and the DNS resolver of this machine.",
    _REFUSED: "Check host name and port in SCQ_UPSTREAM; if they are right, wait for SendX.",
    _NO_ROUTE: _ROUTE,
    _EXPIRED: _CLOCK,
    _TOO_EARLY: _CLOCK,
    _OTHER_HOST: "Check the host name in SCQ_UPSTREAM, and that no proxy or captive portal answers in SendX's place.",
    _UNTRUSTED: "Check that no proxy answers in SendX's place, and update the package certifi.",
    _NO_TLS: "Check that SCQ_UPSTREAM names the HTTPS port.",
}

# OpenSSL's numbers for what is wrong with a certificate, see `man 3ssl X509_STORE_CTX_get_error`.
_CERTIFICATES = {9: _TOO_EARLY, 10: _EXPIRED, 62: _OTHER_HOST, 64: _OTHER_HOST}


def why_unreached(error: BaseException) -> str:
    """Returns the text for a connection that could not be made, which is in `ADVICE`."""
    return next((text for cause in _causes(error) if (text := _text(cause)) is not None), NO_CONNECTION)


def _text(cause: BaseException) -> str | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _CERTIFICATES.get(cause.verify_code, _UNTRUSTED)
    if isinstance(cause, ssl.SSLError):
        return _NO_TLS
    if isinstance(cause, socket.gaierror):
        return _NO_NAME
    if isinstance(cause, ConnectionRefusedError):
        return _REFUSED
    return _NO_ROUTE if isinstance(cause, OSError) and cause.errno in _UNROUTED else None


_UNROUTED = frozenset((101, 113))  # ENETUNREACH, EHOSTUNREACH


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and all behind it, those of several tried addresses too. Bounded, whatever refers to whatever."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < 32:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        waiting += [behind for behind in (cause.__cause__, cause.__context__) if behind is not None]
