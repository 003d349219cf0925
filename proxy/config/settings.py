"""The operator's settings: read once, checked completely, then frozen.

Everything comes as `SCQ_*` variables, from a mapping (the caller passes the process environment) laid over an
optional `.env` file; any secret may instead stand in a file that `NAME_FILE` names. The fields of `Settings`
are the one table of what can be set: parsing, defaults, the list on the command line and the test of the
README all follow it.

This module refuses unknown names, guesses nothing, and reports every problem at once, without ever showing a
secret. It does not read the process environment itself and opens no file but the `.env` and `_FILE` ones.
"""
# ruff: noqa: RUF009 - the calls in `Settings` are `dataclasses.field` in another coat

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dotenv.parser import parse_stream

from proxy.config import parsers
from proxy.config.parsers import Wrong
from proxy.config.types import (
    DEFAULT_UPSTREAMS,
    Acceptance,
    Dialect,
    Gpc,
    IdentifyMode,
    IdentityKey,
    LogFormat,
    LogLevel,
    Secret,
    StoreUrl,
)
from proxy.errors import ConfigError, Problem

T = TypeVar("T")

_FILE_MAX_CHARACTERS = 65_536
_MB = 1_048_576
_ENV_LINE = "SCQ_PORT=8000"
_ENV_OPTION = "--env-file /etc/scq-proxy.env"
_KEYGEN = "<output of scq-proxy keygen>"  # shorter than a key, so that pasting it literally is refused


@dataclass(frozen=True, slots=True)
class Spec:
    """One setting. `default` is text as the operator would write it: "" for none, None where one is required."""

    name: str
    parse: Callable[[str], Any]  # `_setting` lets mypy hold each parser's result against its field
    default: str | None
    help: str
    example: str
    secret: bool
    may_be_empty: bool

    @property
    def default_text(self) -> str:
        """The default for a person: `required`, `none` or the text itself."""
        return "required" if self.default is None else self.default or "none"

    def required(self) -> "Spec":
        return replace(self, default=None, may_be_empty=False)


def _setting(
    name: str,
    parse: Callable[[str], T],
    default: str | None,
    help_text: str,
    *,
    example: str = "",
    secret: bool = False,
    may_be_empty: bool = False,
) -> T:
    example = f"{name}={example or default}"
    spec = Spec(name, parse, default, help_text, example, secret, may_be_empty or default == "")
    made: T = field(metadata={"spec": spec})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything `scq-proxy serve` needs to know. A MB is 1,048,576 bytes."""

    # fmt: off
    api_key: Secret = _setting("SCQ_API_KEY", parsers.api_key, None, "SendX Team API key, which never leaves the server",
        example="<Team API key from SendX>", secret=True)
    dialect: Dialect = _setting("SCQ_DIALECT", parsers.choice(Dialect), "rest",
        "`rest` (header `X-Team-ApiKey`) or `legacy` (header `api_key`, query `team_id`)")
    team_id: str | None = _setting("SCQ_TEAM_ID", parsers.optional(parsers.printable), "", "SendX team id; required with `SCQ_DIALECT=legacy`",
        example="<team id from SendX>")
    upstream: str = _setting("SCQ_UPSTREAM", parsers.upstream, DEFAULT_UPSTREAMS[Dialect.REST],
        f"base URL of SendX's API, plain http to loopback only; with `legacy` the default is {DEFAULT_UPSTREAMS[Dialect.LEGACY]}")
    delivered: Acceptance = _setting("SCQ_DELIVERED", parsers.choice(Acceptance), "json",
        "answers that count as delivered: `json`, a 2xx whose body is a JSON object that reports no error, or `2xx`, any 2xx")
    secret_keys: tuple[Secret, ...] = _setting("SCQ_SECRET_KEYS", parsers.keys, None,
        "keys that sign the visitor cookie, comma separated, oldest first: the last signs, all verify; dropping one logs out"
        " the visitors whose cookies it signed", example=_KEYGEN, secret=True)
    identify: IdentifyMode = _setting("SCQ_IDENTIFY", parsers.choice(IdentifyMode), "verified",
        "`verified`: only signed tokens identify; `asserted`: an address typed in the page does too")
    identity_keys: tuple[IdentityKey, ...] = _setting("SCQ_IDENTITY_KEYS", parsers.identity_keys, "",
        "HS256 keys shared with the site's back end, `secret` or `kid=secret` (a kid only if at least 32 "
        "characters follow the first `=`), comma separated; required unless `SCQ_IDENTIFY=asserted`", example=_KEYGEN, secret=True)
    origins: frozenset[str] = _setting("SCQ_ORIGINS", parsers.origins, None, "exact origins whose pages may push, comma separated",
        example="https://www.example.com")
    tags: tuple[str, ...] = _setting("SCQ_TAGS", parsers.globs, None,
        "tags a verified visitor's browser may add or remove: case-sensitive globs, comma separated "
        "(`?` matches a literal comma); `*` offers every tag, empty none", example="newsletter,cart-*", may_be_empty=True)
    fields: tuple[str, ...] = _setting("SCQ_FIELDS", parsers.globs, "firstName,lastName,company,birthday",
        "fields and custom fields a verified visitor's browser may set: globs as above", may_be_empty=True)
    asserted_tags: tuple[str, ...] = _setting("SCQ_ASSERTED_TAGS", parsers.globs, "",
        "tags a self-asserted visitor's browser may add: globs as above", example="newsletter")
    asserted_fields: tuple[str, ...] = _setting("SCQ_ASSERTED_FIELDS", parsers.globs, "firstName,lastName",
        "fields and custom fields a self-asserted visitor's browser may set: globs as above", may_be_empty=True)
    verified_for: timedelta = _setting("SCQ_VERIFIED_DAYS", parsers.days, "30",
        "days after the last token until a verified visitor counts as asserted")
    server_keys: tuple[Secret, ...] = _setting("SCQ_SERVER_KEYS", parsers.keys, "",
        "keys with which the site's own servers may use the SendX-compatible API, comma separated; without one that API does not exist",
        example=_KEYGEN, secret=True)
    rate_per_key: float = _setting("SCQ_RATE_PER_KEY", parsers.number(0, 1_000_000), "200",
        "pushes per second and server key before 429, in each process; 0: no limit")
    store: StoreUrl = _setting("SCQ_STORE", parsers.store, "sqlite:///scq.db",
        "where pushes are kept: `sqlite:///relative.db`, `sqlite:////absolute/path.db` or `postgresql://...`", secret=True)
    store_unsafe: bool = _setting("SCQ_STORE_UNSAFE", parsers.switch, "0",
        "`1` serves on a PostgreSQL server that would lose acknowledged pushes, such as one with fsync off: for trials", example="1")
    prefix: str = _setting("SCQ_PREFIX", parsers.prefix, "/scq", "path under which everything public lives")
    script: str = _setting("SCQ_SCRIPT", parsers.script, "scq.js", "name of the script under `SCQ_PREFIX`", example="t.js")
    endpoint: str = _setting("SCQ_ENDPOINT", parsers.endpoint, "push",
        "name of the endpoint that takes pushes, under `SCQ_PREFIX` and `/prod/`", example="in")
    host: str = _setting("SCQ_HOST", parsers.listen_host, "127.0.0.1", "address to listen on")
    port: int = _setting("SCQ_PORT", parsers.whole(0, 65535), "8000", "port to listen on; 0 takes any free one")
    hosts: frozenset[str] = _setting("SCQ_HOSTS", parsers.hosts, "",
        "host names under which the proxy answers, comma separated, without port; empty: under any", example="www.example.com")
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting("SCQ_TRUSTED_PROXIES", parsers.networks, "127.0.0.0/8,::1",
        "addresses and networks whose `X-Forwarded-*` is believed, comma separated; empty: nobody's", may_be_empty=True)
    rate_per_ip: float = _setting("SCQ_RATE_PER_IP", parsers.number(0, 1_000_000), "50",
        "pushes per second and client address before 429, in each process; 0: no limit")
    sign_ups_per_ip: int = _setting("SCQ_SIGNUPS_PER_IP", parsers.whole(0, 1_000_000), "250",
        "typed addresses not known here that are forwarded in an hour for one client address; more wait their turn; 0: no limit")
    sign_ups_per_hour: int = _setting("SCQ_SIGNUPS_PER_HOUR", parsers.whole(0, 1_000_000), "1000",
        "typed addresses not known here that are forwarded in an hour, half of them at once; more wait their turn; 0: no limit")
    admin_token: Secret | None = _setting("SCQ_ADMIN_TOKEN", parsers.optional(parsers.key), "",
        "opens `/metrics` and the status page to its bearer; without it they do not exist", example=_KEYGEN, secret=True)
    hold_max: int = _setting("SCQ_HOLD_MAX", parsers.whole(1, 1_000_000), "100", "pushes held per anonymous visitor")
    hold_age: timedelta = _setting("SCQ_HOLD_DAYS", parsers.days, "30", "days an anonymous visitor's push is held")
    hold_max_bytes: int = _setting("SCQ_HOLD_MB", parsers.whole(1, 1_000_000, _MB), "256",
        "size of all that nobody has vouched for, in MB: pushes held, those of typed addresses, their ids; at most a quarter of the free disk")
    lane_max: int = _setting("SCQ_LANE_MAX", parsers.whole(1, 10_000_000), "10000",
        "pushes that may wait per contact, of 4 KB on average; a self-asserted visitor's only up to a quarter of it")
    max_attempts: int = _setting("SCQ_MAX_ATTEMPTS", parsers.whole(1, 100_000), "20",
        "attempts before a push becomes a dead letter; `SCQ_MAX_AGE` must have passed too")
    max_age: timedelta = _setting("SCQ_MAX_AGE", parsers.days, "3",
        "days before a push becomes a dead letter; `SCQ_MAX_ATTEMPTS` must have been made too")
    identify_refresh: timedelta = _setting("SCQ_IDENTIFY_REFRESH", parsers.seconds, "3600",
        "seconds in which an identify equal to the last one delivered for its contact is not sent again; 0: always sent")
    dead_age: timedelta = _setting("SCQ_DEAD_DAYS", parsers.days, "90", "days a dead letter is kept")
    upstream_concurrency: int = _setting("SCQ_UPSTREAM_CONCURRENCY", parsers.whole(1, 64), "8", "requests to SendX at the same time, 1 to 64")
    upstream_timeout_seconds: float = _setting("SCQ_UPSTREAM_TIMEOUT", parsers.number(1, 50), "20",
        "seconds for one request to SendX in total, 1 to 50")
    upstream_rate: float = _setting("SCQ_UPSTREAM_RATE", parsers.rate, "0",
        "requests to SendX in a second, of all nodes together, at most, 0.1 to 10000; 0: no limit")
    gpc: Gpc = _setting("SCQ_GPC", parsers.choice(Gpc), "honour", "the browser's Global Privacy Control signal: `honour` or `ignore` it")
    min_free_bytes: int = _setting("SCQ_MIN_FREE_MB", parsers.whole(1, 1_000_000, _MB), "256",
        "free disk space, in MB, below which nothing more is accepted (503); SQLite only")
    log_level: LogLevel = _setting("SCQ_LOG_LEVEL", parsers.choice(LogLevel), "info", "`debug`, `info`, `warning`, `error` or `critical`")
    log_format: LogFormat = _setting("SCQ_LOG_FORMAT", parsers.choice(LogFormat), "text", "`text`, or `json` for one object per line")
    # fmt: on


_SPEC_BY_FIELD: dict[str, Spec] = {each.name: each.metadata["spec"] for each in fields(Settings)}
SPECS = tuple(_SPEC_BY_FIELD.values())
_SPEC_BY_NAME = {spec.name: spec for spec in SPECS}
_KNOWN_NAMES = {*_SPEC_BY_NAME, *(f"{spec.name}_FILE" for spec in SPECS if spec.secret)}


class Rotation(NamedTuple):
    """The settings after a reload. `settings`: with the new secrets. `changed`: secrets that changed. `waiting`: other changes, not applied."""

    settings: Settings
    changed: tuple[str, ...]
    waiting: tuple[str, ...]


def rotated(settings: Settings, read: Settings) -> Rotation:
    """Returns the settings with the secrets of those that were `read` again."""
    names = {name: spec for name, spec in _SPEC_BY_FIELD.items() if getattr(settings, name) != getattr(read, name)}
    fresh = {name: getattr(read, name) for name, spec in names.items() if spec.secret and name != "store"}
    changed = tuple(spec.name for name, spec in names.items() if name in fresh)
    waiting = tuple(spec.name for name, spec in names.items() if name not in fresh)
    return Rotation(replace(settings, **fresh), changed, waiting)


def load_settings(environ: Mapping[str, str], env_file: Path | None) -> Settings:
    """Everything, for `serve`. Pass None where there is no `.env`: a given one that cannot be read is a problem.

    Raises ConfigError with every problem found.
    """
    reader = _Reader(environ, env_file)
    values: dict[str, Any] = {}
    for name, spec in _SPEC_BY_FIELD.items():
        values[name] = reader.read(_in_context(name, spec, values))
    reader.finish()
    return Settings(**values)


def load_one(name: str, environ: Mapping[str, str], env_file: Path | None, *, required: bool = False) -> Any:
    """Returns one setting, by its name in `Settings`, for a command that needs no other. `required`: it has to be given, whatever its default.

    Raises ConfigError, for unknown names too.
    """
    reader = _Reader(environ, env_file)
    spec = _SPEC_BY_FIELD[name]
    value = reader.read(spec.required() if required else spec)
    reader.finish()
    return value


def _in_context(name: str, spec: Spec, earlier: Mapping[str, Any]) -> Spec:
    """A setting as amended by those read before it (the table's order sees to that)."""
    if name == "upstream" and earlier["dialect"] is Dialect.LEGACY:
        return replace(spec, default=DEFAULT_UPSTREAMS[Dialect.LEGACY])
    needed = (name == "team_id" and earlier["dialect"] is Dialect.LEGACY) or (
        name == "identity_keys" and earlier["identify"] is IdentifyMode.VERIFIED
    )
    return spec.required() if needed else spec


class _Reader:
    """Reads one setting after another and remembers all that is wrong with them; `finish` raises it."""

    def __init__(self, environ: Mapping[str, str], env_file: Path | None) -> None:
        self._problems: list[Problem] = []
        given = self._read_env_file(env_file) if env_file is not None else {}
        given.update(environ)
        self._given = {name: text for name, text in given.items() if name.startswith("SCQ_")}
        self._problems += [_unknown(name) for name in self._given if name not in _KNOWN_NAMES]

    def read(self, spec: Spec) -> Any:
        try:
            return spec.parse(self._text(spec))
        except Wrong as wrong:
            self._problems += [Problem(spec.name, reason, spec.example) for reason in wrong.reasons]
            return None

    def finish(self) -> None:
        if self._problems:
            raise ConfigError(self._problems)

    def _text(self, spec: Spec) -> str:
        text, file_variable = self._given.get(spec.name), f"{spec.name}_FILE"
        if spec.secret and file_variable in self._given:
            if text is not None:
                raise Wrong(f"is given twice, here and as {file_variable}; remove one of them")
            text = _read_secret_file(file_variable, self._given[file_variable])
        if text is None:
            text = spec.default
        if text is None:
            raise Wrong(f"is required: {spec.help}")
        if not text.strip(" \t\r\n,"):
            if not spec.may_be_empty:
                raise Wrong(f"is empty: {spec.help}")
            return ""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise Wrong("is not valid UTF-8")
        return parsers.unquoted(text.strip())

    def _read_env_file(self, env_file: Path) -> dict[str, str]:
        # dotenv_values() logs a line it cannot read and carries on without that setting; its parser tells.
        given: dict[str, str] = {}
        try:
            bindings = list(parse_stream(io.StringIO(_read_file(env_file))))
        except Wrong as wrong:
            self._problems += [Problem(str(env_file), reason, _ENV_OPTION) for reason in wrong.reasons]
            return given
        for binding in bindings:
            if binding.key is not None and binding.value is not None:
                given[binding.key] = binding.value
            elif binding.error or (binding.key or "").startswith("SCQ_"):
                statement = binding.original.string
                blank_lines = statement[: len(statement) - len(statement.lstrip())].count("\n")
                reason = f"line {binding.original.line + blank_lines} cannot be read as NAME=value"
                self._problems.append(Problem(str(env_file), reason, _ENV_LINE))
        return given


def _unknown(name: str) -> Problem:
    # Only the usual characters are shown: to a .env file, `SCQ_API_KEY:secret=` is a name, too.
    usual = re.split(r"[^A-Za-z0-9_]", name[:60], maxsplit=1)[0]
    shown = usual if usual == name else usual + "..."
    if (spec := _SPEC_BY_NAME.get(name.removesuffix("_FILE"))) is not None:
        return Problem(
            shown, f"is not a setting, as only secrets can be read from a file; set {spec.name}", spec.example
        )
    for nearest in get_close_matches(usual, sorted(_KNOWN_NAMES), n=1):
        known = _SPEC_BY_NAME.get(nearest)
        example = known.example if known else f"{nearest}=/run/secrets/{nearest.lower()}"
        return Problem(shown, f"is not a setting of scq-proxy; did you mean {nearest}?", example)
    return Problem(shown, "is not a setting of scq-proxy; remove it", _ENV_LINE)


def _read_secret_file(variable: str, path: str) -> str:
    if not path.strip():
        raise Wrong(f"has an empty {variable}; name a file, or remove it")
    try:
        parsers.unquoted(path.strip())
    except Wrong as wrong:
        raise Wrong(*(f"the path in {variable} {reason}" for reason in wrong.reasons)) from None
    try:
        return _read_file(Path(path))
    except Wrong as wrong:
        # Someone may have put the secret itself where its file's path belongs.
        shown = repr(path) if path.startswith(("/", "./", "../")) else "(not shown, as it does not begin with / or ./)"
        raise Wrong(*(f"the file {shown} that {variable} names {reason}" for reason in wrong.reasons)) from None


def _read_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_FILE_MAX_CHARACTERS + 1)
    except OSError as error:
        raise Wrong(f"cannot be read: {error.strerror or type(error).__name__}") from None
    except ValueError:  # a NUL in the path, or bytes that are not UTF-8
        raise Wrong("cannot be read as UTF-8 text") from None
    if len(text) > _FILE_MAX_CHARACTERS:
        raise Wrong(f"has more than {_FILE_MAX_CHARACTERS} characters")
    return text
