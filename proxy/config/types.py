"""The kinds of value that a setting can have."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

KEY_MIN_CHARACTERS = 32


class Secret:
    """A text that shows itself to nobody but the caller of `reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __str__(self) -> str:
        return "**********"

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class IdentityKey:
    """An HS256 key shared with the site's back end; `kid` is None for a key without a name."""

    kid: str | None = field(repr=False)  # could be half of a secret that happens to contain '='
    secret: Secret


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """A store in an SQLite file. `path`: as given, may be relative."""

    path: Path
    scheme: ClassVar[str] = "sqlite"

    @property
    def place(self) -> str:
        """Returns where it is, for a person."""
        return str(self.path.absolute())


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    dsn: Secret
    scheme: ClassVar[str] = "postgresql"

    @property
    def place(self) -> str:
        """Returns where it is, for a person: host and database. Never a user's name, a password or an option."""
        match = _PLACE.fullmatch(self.dsn.reveal())
        return "PostgreSQL" + (f" at {match[1]}" if match and match[1] else "")


StoreUrl = SqliteUrl | PostgresUrl


# What is between the last @ and the options, if it is no more than hosts, ports and a name: a mistyped URL could have a password there.
_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_PLACE = re.compile(rf"postgresql://(?:[^@/?#]*@)?((?:{_HOST}(?:,{_HOST})*)?(?:/[A-Za-z0-9._-]*)?)(?:\?.*)?")


class Dialect(StrEnum):
    """Which of SendX's two APIs the upstream speaks."""

    REST = "rest"
    LEGACY = "legacy"


class Acceptance(StrEnum):
    """The 2xx answers that count as delivered: those whose body is a JSON object that reports no error, or any."""

    JSON = "json"
    ANY_2XX = "2xx"


class IdentifyMode(StrEnum):
    """Who may say which contact a visitor is: only a signed token, or the page as well."""

    VERIFIED = "verified"
    ASSERTED = "asserted"


class Gpc(StrEnum):
    """What the browser's Global Privacy Control signal does."""

    HONOUR = "honour"
    IGNORE = "ignore"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


DEFAULT_UPSTREAMS = {Dialect.REST: "https://api.sendx.io/api/v1/rest", Dialect.LEGACY: "https://app.sendx.io/api/v1"}
