"""Every error that this package raises on purpose: one tree, split by what the caller does next.

    ScqError
    ├── ConfigError            mend the settings, then start again
    ├── StoreError             the store did not do what was asked
    │   ├── StoreUnavailable   try again later: the same call can succeed
    │   └── StoreRefused       do not try again: it cannot be opened like this
    └── RequestError           answer this HTTP request with a refusal

An error carries facts for a person: what is wrong, where, and what to do. It never carries a secret, an
e-mail address or unverified payload, so any of them may be logged or shown as it is. What is wrong with one
push is not an error but a refusal with a reason (`proxy.core.reasons`); what SendX answers is a verdict
(`proxy.core.retry`). Neither is raised out of the module that finds it.
"""

import errno
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class ScqError(Exception):
    """The root of the tree; `message` is one or more sentences for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the settings.

    `variable` is the name as the operator wrote it (`SCQ_ORIGINS`), `wrong` says what is wrong with it, and
    `example` shows a line that would do. None of them contains a secret's value.
    """

    variable: str
    wrong: str
    example: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.wrong}\n    for example: {self.example}"


class ConfigError(ScqError):
    """The settings cannot be used; `problems` holds every problem found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class StoreError(ScqError):
    """The store did not do what was asked, and nothing may be acknowledged on its behalf."""


class StoreUnavailable(StoreError):
    """The store cannot take this now (disk at its floor, busy, connection lost).

    `retry_after` is the number of seconds to wait before the next try. `message` may be shown to anybody. `cause` is for the operator alone,
    since it names files and processes.
    """

    def __init__(self, message: str, *, retry_after: int, cause: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.cause = cause or message


class StoreRefused(StoreError):
    """The store cannot be opened like this: it is in use, another user's, of a newer version, on a network file system, or not a store."""


class RequestError(ScqError):
    """A whole request is refused, before any push in it is judged.

    `status` is the HTTP status, `code` the short word a program reads, `message` what the caller should do,
    `retry_after` the seconds of the `Retry-After` header, or None for no such header.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


def describe(error: BaseException) -> str:
    """Describes an unexpected error for the log by type and place, without its message, which may quote payload.

    Adds the meaning of a system error's number: `OSError (Too many open files)`. Lists the errors in a group, each kind once.
    """
    if isinstance(error, BaseExceptionGroup):
        kinds = dict.fromkeys(describe(each) for each in error.exceptions)
        return f"{len(error.exceptions)} at once: {'; '.join(kinds)}" if len(error.exceptions) > 1 else "".join(kinds)
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    meaning = ""
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.errno in errno.errorcode:
        meaning = f" ({os.strerror(error.errno or 0)})"
    return f"{type(error).__name__}{meaning} at {places or 'an unknown place'}"
