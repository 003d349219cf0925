"""Says in words why PostgreSQL, or a pooler before it, could not be reached or failed, and what to do.

What they say themselves can quote payload and what is in the DSN, so of their words only those are recognised that stand here.
"""

from collections.abc import Mapping

import psycopg
from psycopg.errors import lookup
from psycopg_pool import PoolTimeout

_STATEMENT_MODE = "not allowed in statement pooling mode"  # PgBouncer's words
_PROTOCOL = "08P01"  # its one code for all that it says itself

_STANDBY = "it is a standby or read-only: bring the primary back, or name it in SCQ_STORE."
_BEHIND = "the pooler does not get through to it: start the server, or look into the pooler's log."
_FULL = "it has no connection left: raise max_connections, or put a pooler before it."
# Words of libpq, of the server and of PgBouncer about a connection that failed. The first that occur decide.
_UNREACHED: Mapping[str, str] = {
    "Connection refused": "nothing listens there: start the server, or correct host and port.",
    "password authentication failed": "it does not accept the user or the password.",
    "no password supplied": "it asks for a password: put it into the URL, or into a file that PGPASSFILE names.",
    "no pg_hba.conf entry": "its pg_hba.conf does not let this user in from here.",
    "not permitted to log in": "its role may not log in: ALTER ROLE … LOGIN.",
    "could not translate host name": "the host name does not resolve.",
    "failed to resolve host": "the host name does not resolve.",
    "no more connections allowed": "the pooler has no connection left: raise max_client_conn.",
    "too many clients": _FULL,
    "too many connections for": "its role or database has no connection left: raise CONNECTION LIMIT, or put a pooler before it.",
    "remaining connection slots": _FULL,
    "starting up": "it is starting: try again in a moment.",
    "not yet accepting connections": "it is starting: try again in a moment.",
    "in recovery mode": "it recovers from a crash: try again in a moment, and look into its log.",
    "shutting down": "it is shutting down.",
    "not currently accepting connections": "its database takes no connections: ALTER DATABASE … ALLOW_CONNECTIONS true.",
    "session is read-only": _STANDBY,
    "session is not read-write": _STANDBY,
    "server is in hot standby": _STANDBY,
    "certificate verify failed": "its certificate is not trusted: check sslrootcert.",
    "does not match host name": "its certificate is for another host name: check the host, or sslmode.",
    "does not support SSL": "it does not speak TLS, which sslmode asks for.",
    "server login has been failing": _BEHIND,
    "cannot connect to server": _BEHIND,
    "server conn crashed": _BEHIND,
    "query_wait_timeout": "the pooler has no connection to it to spare (query_wait_timeout): raise default_pool_size, or find out what hangs.",
    "does not exist": "it has no such database or role: create it, or correct the URL.",
    "no such database": "the pooler knows no such database: add it there, or correct the URL.",
    "timeout expired": "it does not answer.",
}


def why_unreached(error: Exception) -> str:
    """Returns a sentence, without its subject, for a connection that could not be made."""
    text = str(error)
    return next((sentence for words, sentence in _UNREACHED.items() if words in text), f"{cause(error)}.")


def sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def cause(error: BaseException) -> str:
    """Returns an error of the database for the log: its code and the code's name, without its words, but for those of a pooler."""
    if _STATEMENT_MODE in str(error):
        return "PgBouncer stands before it in statement mode, which takes no transactions: set pool_mode to transaction"
    if isinstance(error, PoolTimeout):
        return "all connections to it are busy, so it is slow or hangs: look for locks, and into its log"
    state = sqlstate(error)
    if state == _PROTOCOL:
        said = str(error)
        return next((sentence.removesuffix(".") for words, sentence in _UNREACHED.items() if words in said), state)
    if state is None:
        return f"no answer ({type(error).__name__})"
    try:
        return f"{state} {lookup(state).__name__}"
    except KeyError:
        return state
