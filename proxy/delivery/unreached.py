"""Explains why a connection to SendX failed: a fixed text for each cause, and advice for each text.

Never shows library messages, which may quote a host name or a URL and change between versions.
"""

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping

NO_CONNECTION = "no connection"
NOT_IN_TIME = "no connection in time"
NO_ANSWER = "no answer in time"
NO_WHOLE_ANSWER = "no whole answer in time"
CUT_OFF = "the connection broke within an answer"

_NO_NAME = "no connection: host name not found (DNS)"
_REFUSED = "no connection: connection refused"
_NO_ROUTE = "no connection: network unreachable"
_NO_FILES = "no connection: no file handles left on this machine"
_NO_MEMORY = "no connection: no memory left on this machine"
_NO_PORT = "no connection: no local ports left on this machine"
_FORBIDDEN = "no connection: this machine does not permit it"
_EXPIRED = "no connection: the certificate has expired"
_TOO_EARLY = "no connection: the certificate is not valid yet"
_OTHER_HOST = "no connection: the certificate is for another host name"
_UNTRUSTED = "no connection: the certificate is not trusted"
_NO_TLS = "no connection: TLS handshake failed"

_ROUTE = "Check this machine's network and firewall, and SCQ_UPSTREAM."
_SLOW = "If SendX is slow but not down, raise SCQ_UPSTREAM_TIMEOUT (50 seconds at most)."
_CLOCK = "Check this machine's clock. If it is right, the server's certificate must be renewed: contact SendX or the server's operator."

ADVICE: Mapping[str, str] = {
    NO_CONNECTION: _ROUTE,
    NOT_IN_TIME: _ROUTE,
    NO_ANSWER: _SLOW,
    NO_WHOLE_ANSWER: _SLOW,
    _NO_NAME: "Check the host name in SCQ_UPSTREAM, and this machine's DNS resolver.",
    _REFUSED: "Check the host name and port in SCQ_UPSTREAM; if they are right, wait for SendX.",
    _NO_ROUTE: _ROUTE,
    _NO_FILES: "Raise the limit of this process (LimitNOFILE of systemd, ulimit -n), or fs.file-max.",
    _NO_MEMORY: "Find out what uses the memory, or raise the limit of this process.",
    _NO_PORT: "Find out which program holds so many connections, or widen net.ipv4.ip_local_port_range.",
    _FORBIDDEN: "Check this machine's firewall, and what confines this process (systemd's RestrictAddressFamilies, SELinux, AppArmor).",
    _EXPIRED: _CLOCK,
    _TOO_EARLY: _CLOCK,
    _OTHER_HOST: "Check the host name in SCQ_UPSTREAM, and that no proxy or captive portal answers in SendX's place.",
    _UNTRUSTED: "Check that no proxy answers in SendX's place, and update the package certifi.",
    _NO_TLS: "Check that SCQ_UPSTREAM names the HTTPS port.",
}

# OpenSSL's numbers for what is wrong with a certificate, see `man 3ssl X509_STORE_CTX_get_error`.
_CERTIFICATES = {9: _TOO_EARLY, 10: _EXPIRED, 62: _OTHER_HOST, 64: _OTHER_HOST}


def why_unreached(error: BaseException) -> str:
    """Returns the text for a failed connection, a key of `ADVICE`."""
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
    return _ERRNOS.get(cause.errno or 0) if isinstance(cause, OSError) else None


_ERRNOS: Mapping[int, str] = {
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN), _NO_ROUTE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _NO_FILES),
    **dict.fromkeys((errno.ENOMEM, errno.ENOBUFS), _NO_MEMORY),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _FORBIDDEN),
    errno.EADDRNOTAVAIL: _NO_PORT,
}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and its causes, including those in groups. Bounded, as causes may form a cycle."""
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
