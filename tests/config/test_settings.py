"""The settings: what is accepted, what is refused with which words, and what never shows."""

from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.settings import SPECS, Settings, Spec, load_one, load_settings
from proxy.config.types import (
    Dialect,
    Gpc,
    IdentifyMode,
    IdentityKey,
    LogFormat,
    LogLevel,
    PostgresUrl,
    Secret,
    SqliteUrl,
)
from proxy.core.hosts import is_loopback_host
from proxy.errors import ConfigError, Problem

KEY, OTHER_KEY = "k" * 32, "o" * 32
HUSH = "~hush~"  # stands in every generated secret and nowhere else
SECRET_NAMES = [spec.name for spec in SPECS if spec.secret]


def enough(**more: str) -> dict[str, str]:
    """The smallest environment that serves, and more."""
    return {
        "SCQ_API_KEY": "key",
        "SCQ_SECRET_KEYS": KEY,
        "SCQ_IDENTITY_KEYS": KEY,
        "SCQ_ORIGINS": "https://www.example.com",
        "SCQ_TAGS": "*",
    } | more


def without(name: str, **more: str) -> dict[str, str]:
    return {key: value for key, value in enough(**more).items() if key != name}


def loaded(**more: str) -> Settings:
    return load_settings(enough(**more), None)


def problems(environ: dict[str, str], env_file: Path | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ, env_file)
    return caught.value.problems


def only_problem(environ: dict[str, str], env_file: Path | None = None) -> Problem:
    (problem,) = problems(environ, env_file)
    return problem


# Defaults and required settings


def test_the_smallest_environment_gets_the_documented_defaults() -> None:
    given = loaded()
    assert (given.dialect, given.upstream, given.team_id) == (Dialect.REST, "https://api.sendx.io/api/v1/rest", None)
    assert (given.identify, given.gpc, given.log_level) == (IdentifyMode.VERIFIED, Gpc.HONOUR, LogLevel.INFO)
    assert given.fields == ("firstName", "lastName", "company", "birthday")
    assert (given.asserted_tags, given.asserted_fields) == ((), ("firstName", "lastName"))
    assert (given.server_keys, given.admin_token) == ((), None)
    assert given.store == SqliteUrl(Path("scq.db"))
    assert (given.prefix, given.host, given.port, given.rate_per_ip) == ("/scq", "127.0.0.1", 8000, 50.0)
    assert (given.script, given.endpoint) == ("scq.js", "push")
    assert given.trusted_proxies == (ip_network("127.0.0.0/8"), ip_network("::1"))
    assert (given.verified_for, given.hold_age) == (timedelta(days=30), timedelta(days=30))
    assert (given.max_age, given.dead_age) == (timedelta(days=3), timedelta(days=90))
    assert (given.hold_max, given.lane_max, given.max_attempts) == (100, 10_000, 20)
    assert given.hold_max_bytes == given.min_free_bytes == 256 * 1024 * 1024
    assert (given.upstream_concurrency, given.upstream_timeout_seconds) == (8, 20.0)


@pytest.mark.parametrize("name", ["SCQ_API_KEY", "SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_ORIGINS", "SCQ_TAGS"])
def test_a_required_setting_that_is_missing_is_named_with_an_example(name: str) -> None:
    problem = only_problem(without(name))
    assert problem.variable == name
    assert "is required" in problem.wrong
    assert problem.example.startswith(f"{name}=")


@pytest.mark.parametrize("empty", ["", "  ", ",", " , \n"])
@pytest.mark.parametrize("name", ["SCQ_API_KEY", "SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_ORIGINS", "SCQ_PORT"])
def test_an_empty_value_is_refused_where_it_would_mean_nothing(name: str, empty: str) -> None:
    problem = only_problem(enough(**{name: empty}))
    assert (problem.variable, "is empty" in problem.wrong) == (name, True)


def test_empty_lists_are_an_explicit_none() -> None:
    names = ("SCQ_TAGS", "SCQ_FIELDS", "SCQ_ASSERTED_TAGS", "SCQ_ASSERTED_FIELDS", "SCQ_TRUSTED_PROXIES")
    given = loaded(**dict.fromkeys(names, ""))
    lists = (given.tags, given.fields, given.asserted_tags, given.asserted_fields, given.trusted_proxies)
    assert lists == ((), (), (), (), ())


def test_an_optional_setting_without_default_may_be_empty() -> None:
    given = loaded(SCQ_TEAM_ID="", SCQ_ADMIN_TOKEN="", SCQ_SERVER_KEYS="")
    assert (given.team_id, given.admin_token, given.server_keys) == (None, None, ())


def test_the_legacy_dialect_needs_a_team_id() -> None:
    assert only_problem(enough(SCQ_DIALECT="legacy")).variable == "SCQ_TEAM_ID"


def test_the_legacy_dialect_has_an_upstream_of_its_own() -> None:
    given = loaded(SCQ_DIALECT="legacy", SCQ_TEAM_ID="T1")
    assert (given.team_id, given.upstream) == ("T1", "https://app.sendx.io/api/v1")


def test_asserted_identity_needs_no_identity_keys() -> None:
    given = load_settings(without("SCQ_IDENTITY_KEYS", SCQ_IDENTIFY="asserted"), None)
    assert (given.identify, given.identity_keys) == (IdentifyMode.ASSERTED, ())


def test_all_problems_are_reported_at_once() -> None:
    found = problems({"SCQ_TAG": "x", "SCQ_PORT": "x", "SCQ_DIALECT": "x", "SCQ_ORIGINS": "a,b"})
    assert [problem.variable for problem in found] == [
        "SCQ_TAG", "SCQ_API_KEY", "SCQ_DIALECT", "SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_ORIGINS", "SCQ_ORIGINS",
        "SCQ_TAGS", "SCQ_PORT",
    ]  # fmt: skip


def test_the_error_lists_every_problem_with_its_example() -> None:
    text = str(ConfigError(problems({"SCQ_PORT": "x"})))
    assert "SCQ_PORT: must be a whole number from 0 to 65535, not 'x'" in text
    assert "for example: SCQ_ORIGINS=https://www.example.com" in text


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        loaded().port = 1  # type: ignore[misc]  # what this test is about


# Names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SCQ_ORIGIN", "SCQ_ORIGINS"),
        ("SCQ_SECRET_KEY", "SCQ_SECRET_KEYS"),
        ("SCQ_APIKEY", "SCQ_API_KEY"),
        ("SCQ_API_KEYFILE", "SCQ_API_KEY_FILE"),
        ("SCQ_TAGS_FILE", "SCQ_TAGS"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, nearest: str) -> None:
    problem = only_problem(enough(**{name: "x"}))
    assert problem.variable == name
    assert nearest in problem.wrong
    assert problem.example.startswith(f"{nearest}=")


def test_an_unknown_name_that_resembles_nothing_is_refused() -> None:
    assert only_problem(enough(SCQ_ZZZZZZ="x")).wrong == "is not a setting of scq-proxy; remove it"


def test_names_that_are_not_ours_are_ignored() -> None:
    assert load_settings(enough(PATH="/bin", SCQX="1", scq_port="1"), None) == loaded()


# The .env file


def test_the_environment_overrides_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("SCQ_PORT=1\nSCQ_HOST=::1\n")
    given = load_settings(enough(SCQ_PORT="2"), env_file)
    assert (given.port, given.host) == (2, "::1")


def test_the_env_file_is_not_interpolated(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("SCQ_API_KEY='a${HOME}b'\n")
    assert load_settings(without("SCQ_API_KEY"), env_file).api_key.reveal() == "a${HOME}b"


def test_an_empty_tag_list_may_stand_in_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("SCQ_TAGS=\n")
    assert load_settings(without("SCQ_TAGS"), env_file).tags == ()


def test_an_unknown_name_in_the_env_file_is_refused(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("OTHER=1\nexport SCQ_PORTS=1\n")
    assert only_problem(enough(), env_file).variable == "SCQ_PORTS"


@pytest.mark.parametrize("line", ["SCQ_GPC='ignore", "SCQ_GPC: ignore", "SCQ_GPC"])
def test_a_line_of_the_env_file_that_cannot_be_read_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"SCQ_PORT=1\n\n\n{line}\nSCQ_HOST=::1\n")
    problem = only_problem(enough(), env_file)
    assert (problem.variable, problem.wrong) == (str(env_file), "line 4 cannot be read as NAME=value")


def test_an_env_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    problem = only_problem(enough(), tmp_path / "absent.env")
    assert problem.variable.endswith("absent.env")
    assert "No such file or directory" in problem.wrong


def test_an_env_file_that_is_not_text_is_a_problem(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"SCQ_PORT=\xff\n")
    assert only_problem(enough(), env_file).wrong == "cannot be read as UTF-8 text"


# Secrets and their files


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_every_secret_may_stand_in_a_file(tmp_path: Path, name: str) -> None:
    value = "postgresql://u:p@h/db" if name == "SCQ_STORE" else KEY
    (tmp_path / "secret").write_text(value + "\n")
    from_file = load_settings(without(name, **{f"{name}_FILE": str(tmp_path / "secret")}), None)
    assert from_file == loaded(**{name: value})


def test_keys_in_a_file_may_be_separated_by_lines_or_commas(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(f"\ufeff{KEY}\r\n{OTHER_KEY},\r\n\r\n{'n' * 32}\r\n".encode())
    given = load_settings(without("SCQ_SECRET_KEYS", SCQ_SECRET_KEYS_FILE=str(tmp_path / "keys")), None)
    assert [key.reveal() for key in given.secret_keys] == [KEY, OTHER_KEY, "n" * 32]


def test_a_secret_given_both_ways_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("key")
    problem = only_problem(enough(SCQ_API_KEY_FILE=str(tmp_path / "key")))
    assert problem.wrong == "is given twice, here and as SCQ_API_KEY_FILE; remove one of them"


def test_a_secret_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    path = str(tmp_path / "absent")
    problem = only_problem(without("SCQ_API_KEY", SCQ_API_KEY_FILE=path))
    assert problem.variable == "SCQ_API_KEY"
    assert repr(path) in problem.wrong
    assert "SCQ_API_KEY_FILE" in problem.wrong
    assert "No such file or directory" in problem.wrong


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 70_000, b"\n", b"two\nlines"])
def test_a_secret_file_with_other_things_in_it_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    problem = only_problem(without("SCQ_API_KEY", SCQ_API_KEY_FILE=str(tmp_path / "key")))
    assert problem.variable == "SCQ_API_KEY"


def test_a_secret_in_the_place_of_its_path_is_not_shown() -> None:
    problem = only_problem(without("SCQ_API_KEY", SCQ_API_KEY_FILE=HUSH))
    assert HUSH not in str(problem)


def test_the_api_key_may_have_any_length() -> None:
    assert loaded(SCQ_API_KEY="x").api_key == Secret("x")


@pytest.mark.parametrize("name", ["SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_SERVER_KEYS", "SCQ_ADMIN_TOKEN"])
def test_a_secret_of_31_characters_is_refused_and_keygen_suggested(name: str) -> None:
    problem = only_problem(enough(**{name: "x" * 31}))
    assert problem.wrong == "has 31 characters where at least 32 are needed; make one with `scq-proxy keygen`"
    assert "scq-proxy keygen" in problem.example


def test_a_short_key_among_others_is_named_by_its_place() -> None:
    assert only_problem(enough(SCQ_SECRET_KEYS=f"{KEY},short")).wrong.startswith("entry 2 of 2: has 5 characters")


@pytest.mark.parametrize("value", ["é" * 40, "a" * 40 + "\x00", "a" * 40 + "\udcff"])
@pytest.mark.parametrize("name", ["SCQ_API_KEY", "SCQ_SECRET_KEYS", "SCQ_ADMIN_TOKEN"])
def test_a_secret_has_only_characters_that_fit_a_header(name: str, value: str) -> None:
    assert only_problem(enough(**{name: value})).variable == name


@pytest.mark.parametrize("name", ["SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_SERVER_KEYS"])
def test_the_same_key_twice_is_refused(name: str) -> None:
    problem = only_problem(enough(**{name: f"{KEY},{OTHER_KEY},{KEY}"}))
    assert problem.wrong == "entries 1 and 3 are the same key; remove or replace one"


def test_a_secret_masks_itself_until_revealed() -> None:
    secret = Secret(HUSH)
    assert HUSH not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == HUSH
    assert secret == Secret(HUSH) != Secret("other")
    assert len({secret, Secret(HUSH)}) == 1


# Quotes


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_value_in_quotes_is_refused_by_name(spec: Spec, quote: str) -> None:
    for inside in (spec.example.partition("=")[2], HUSH * 8, "", " "):
        problem = only_problem(enough(**{spec.name: f"{quote}{inside}{quote}"}))
        assert (problem.variable, problem.wrong) == (
            spec.name,
            "is in quotes, which would be part of the value; remove them",
        )


@pytest.mark.parametrize("comment", [" # from SendX", "\t#", "  # don't"])
@pytest.mark.parametrize("name", ["SCQ_API_KEY", "SCQ_TAGS", "SCQ_SECRET_KEYS"])
def test_a_comment_behind_the_quotes_does_not_hide_them(name: str, comment: str) -> None:
    problem = only_problem(enough(**{name: f'"{KEY}"{comment}'}))
    assert (problem.variable, "is in quotes" in problem.wrong) == (name, True)


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_quotes_are_refused_in_a_secrets_file_and_around_its_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text(f'"{HUSH * 8}"\n')
    path = str(tmp_path / "secret")
    in_file = only_problem(without(name, **{f"{name}_FILE": path}))
    assert (in_file.variable, in_file.wrong) == (name, "is in quotes, which would be part of the value; remove them")
    around = only_problem(without(name, **{f"{name}_FILE": f'"{path}"'}))
    wrong = f"the path in {name}_FILE is in quotes, which would be part of the value; remove them"
    assert (around.variable, around.wrong) == (name, wrong)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("SCQ_TAGS", 'newsletter,"cart: *"', "entry 2 of 2: "),
        ("SCQ_ORIGINS", "https://a.example, 'https://b.example'", "entry 2 of 2: "),
        ("SCQ_SECRET_KEYS", f'"{KEY}",{OTHER_KEY}', "entry 1 of 2: "),
        ("SCQ_SERVER_KEYS", f'"{KEY}",', ""),
        ("SCQ_IDENTITY_KEYS", f'site1="{KEY}"', ""),
        ("SCQ_TRUSTED_PROXIES", "::1,'10.0.0.0/8'", "entry 2 of 2: "),
    ],
)
def test_an_entry_in_quotes_is_refused_by_its_place(name: str, text: str, where: str) -> None:
    problem = only_problem(enough(**{name: text}))
    assert problem.wrong == f"{where}is in quotes, which would be part of the value; remove them"


@pytest.mark.parametrize("value", ['"', "'", '"key', "key'", "\"key'", 'k"e"y', '"a" b', '"a"#', "'t is"])
def test_a_quote_that_has_no_match_belongs_to_the_value(value: str) -> None:
    assert loaded(SCQ_API_KEY=value).api_key.reveal() == value
    assert loaded(SCQ_TAGS=f"a,{value},b").tags == ("a", value, "b")


@pytest.mark.parametrize("line", ['SCQ_API_KEY="key"', "SCQ_API_KEY='key'", "export SCQ_API_KEY = 'key' # comment"])
def test_the_env_file_takes_its_quotes_off(tmp_path: Path, line: str) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(line)
    assert load_settings(without("SCQ_API_KEY"), env_file).api_key.reveal() == "key"


# Identity keys


@pytest.mark.parametrize(
    ("text", "kid", "secret"),
    [
        (KEY, None, KEY),
        (f"site1={KEY}", "site1", KEY),
        (f"site1={KEY}=", "site1", f"{KEY}="),
        (f"{KEY}=", None, f"{KEY}="),
        (f"{KEY}==", None, f"{KEY}=="),
        (f"{KEY}={'x' * 31}", None, f"{KEY}={'x' * 31}"),
        (f"{KEY}={'x' * 32}", KEY, "x" * 32),
    ],
)
def test_a_kid_counts_only_before_32_characters(text: str, kid: str | None, secret: str) -> None:
    assert loaded(SCQ_IDENTITY_KEYS=text).identity_keys == (IdentityKey(kid, Secret(secret)),)


def test_the_same_kid_twice_is_refused() -> None:
    problem = only_problem(enough(SCQ_IDENTITY_KEYS=f"a={KEY},a={OTHER_KEY}"))
    assert problem.wrong == "entries 1 and 2 have the same kid; remove or replace one"


def test_several_keys_may_be_without_a_kid() -> None:
    assert [key.kid for key in loaded(SCQ_IDENTITY_KEYS=f"{KEY},{OTHER_KEY}").identity_keys] == [None, None]


def test_an_empty_kid_is_refused() -> None:
    assert "no kid" in only_problem(enough(SCQ_IDENTITY_KEYS=f"={KEY}")).wrong


# Origins and URLs


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://www.example.com", "https://www.example.com"),
        ("HTTPS://WWW.Example.COM", "https://www.example.com"),
        ("https://example.com:443", "https://example.com"),
        ("https://example.com:8443", "https://example.com:8443"),
        ("http://localhost:80", "http://localhost"),
        ("http://shop.localhost:3000", "http://shop.localhost:3000"),
        ("http://127.0.0.2:3000", "http://127.0.0.2:3000"),
        ("http://[0:0::1]:3000", "http://[::1]:3000"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_kept_as_browsers_send_it(text: str, origin: str) -> None:
    assert loaded(SCQ_ORIGINS=text).origins == {origin}


def test_origins_are_a_list() -> None:
    assert loaded(SCQ_ORIGINS=" https://a.example , https://b.example,").origins == {
        "https://a.example",
        "https://b.example",
    }


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("https://example.com/", "drop the '/' at the end"),
        ("https://example.com/shop", "drop the path"),
        ("https://*.example.com", "wildcard"),
        ("*", "wildcard"),
        ("http://example.com", "use https"),
        ("http://localhost.example.com", "use https"),
        ("https://bücher.example", "punycode"),
        ("example.com", "must be https://host"),
        ("null", "must be https://host"),
        ("ftp://example.com", "must be https://host"),
        ("https://example.com?x=1", "must be https://host"),
        ("https://user:pw@example.com", "must be https://host"),
        ("https://example.com:0", "port 0"),
        ("https://example.com:99999", "port 99999"),
        ("https://127.1", "neither a host name nor an IP address"),
        ("https://[1.2.3.4]", "neither a host name nor an IP address"),
        ("https://a..b", "neither a host name nor an IP address"),
        ("https://[::1", "must be https://host"),
    ],
)
def test_what_is_no_exact_origin_is_refused_with_the_remedy(text: str, wrong: str) -> None:
    problem = only_problem(enough(SCQ_ORIGINS=text))
    assert (problem.variable, wrong in problem.wrong) == ("SCQ_ORIGINS", True)


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_loopback_hosts_are_recognised(host: str) -> None:
    assert is_loopback_host(host)


@pytest.mark.parametrize("host", ["", "example.com", "localhost.example.com", "128.0.0.1", "127.example.com", "::2"])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback_host(host)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com", "https://api.example.com"),
        ("http://127.0.0.1:9000/api/v1/rest", "http://127.0.0.1:9000/api/v1/rest"),
    ],
)
def test_an_upstream_loses_its_trailing_slash(text: str, url: str) -> None:
    assert loaded(SCQ_UPSTREAM=text).upstream == url


@pytest.mark.parametrize(
    "text",
    [
        "http://api.example.com",
        "https://user:pw@api.example.com",
        "https://api.example.com?api_key=~hush~",
        "https://api.example.com/#~hush~",
        "https://api.example.com/a b",
        "https://api.example.com/é",
        "api.example.com",
        "https://",
    ],
)
def test_an_upstream_that_could_leak_or_mislead_is_refused(text: str) -> None:
    problem = only_problem(enough(SCQ_UPSTREAM=text))
    assert problem.variable == "SCQ_UPSTREAM"
    assert HUSH not in problem.wrong


# The other kinds


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///scq.db", "scq.db"),
        ("sqlite:///data/scq.db", "data/scq.db"),
        ("sqlite:////var/lib/scq.db", "/var/lib/scq.db"),
    ],
)
def test_an_sqlite_store_has_three_slashes_or_four(text: str, path: str) -> None:
    assert loaded(SCQ_STORE=text).store == SqliteUrl(Path(path))


def test_a_postgresql_store_is_a_secret() -> None:
    given = loaded(SCQ_STORE=f"postgresql://scq:{HUSH}@db/scq")
    assert given.store == PostgresUrl(Secret(f"postgresql://scq:{HUSH}@db/scq"))
    assert HUSH not in repr(given)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"postgresql://scq:{HUSH}@db/scq", "PostgreSQL at db/scq"),
        (f"postgresql://{HUSH}@db:5432/scq?password={HUSH}", "PostgreSQL at db:5432/scq"),
        ("postgresql://a:5432,b:5433/scq", "PostgreSQL at a:5432,b:5433/scq"),
        ("postgresql://[::1]/scq", "PostgreSQL at [::1]/scq"),
        (f"postgresql:///scq?host=/run&password={HUSH}", "PostgreSQL at /scq"),
        (f"postgresql://u:{HUSH}", "PostgreSQL"),
        (f"postgresql://u:{HUSH}/x@db/scq", "PostgreSQL"),
        (f"postgresql://u:p@{HUSH}@db/scq", "PostgreSQL"),
        (f"postgresql://u:p#{HUSH}@db/scq", "PostgreSQL"),
    ],
)
def test_the_place_of_a_postgresql_store_tells_no_secret(text: str, place: str) -> None:
    assert loaded(SCQ_STORE=text).store.place == place


def test_a_server_that_would_lose_pushes_is_served_only_when_that_is_asked_for() -> None:
    assert loaded().store_unsafe is False
    assert loaded(SCQ_STORE_UNSAFE="1").store_unsafe is True
    assert "must be 1 or 0" in only_problem(enough(SCQ_STORE_UNSAFE="yes")).wrong


@pytest.mark.parametrize(
    "text",
    [
        "scq.db",
        "sqlite:scq.db",
        "sqlite://scq.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///data/",
        "sqlite:///scq.db?mode=ro",
        "sqlite:///a\x00b",
        "mysql://u:~hush~@h/db",
        "postgres://u:~hush~@h/db",
        "postgresql://",
        "postgresql://u:~hush~é@h/db",
    ],
)
def test_another_store_is_refused_without_showing_it(text: str) -> None:
    problem = only_problem(enough(SCQ_STORE=text))
    assert problem.variable == "SCQ_STORE"
    assert HUSH not in problem.wrong


@pytest.mark.parametrize("text", ["/scq", "/a/b", "/~x._-1", "/api/track", "/production"])
def test_a_plain_path_is_a_prefix(text: str) -> None:
    assert loaded(SCQ_PREFIX=text).prefix == text


@pytest.mark.parametrize("text", ["/", "scq", "/scq/", "//scq", "/a//b", "/a/../b", "/.", "/a b", "/é", "/a?b", "/%61"])
def test_a_prefix_that_is_no_plain_path_is_refused(text: str) -> None:
    assert only_problem(enough(SCQ_PREFIX=text)).variable == "SCQ_PREFIX"


@pytest.mark.parametrize(
    "text", ["/prod", "/prod/x", "/api", "/api/v1", "/api/v1/x", "/healthz", "/readyz", "/metrics"]
)
def test_a_prefix_where_something_else_is_served_is_refused(text: str) -> None:
    assert "is taken" in only_problem(enough(SCQ_PREFIX=text)).wrong


@pytest.mark.parametrize("text", ["t.js", "T_1~-.min.js", "a.debug.js", "0.js"])
def test_a_plain_name_that_ends_in_js_is_a_script(text: str) -> None:
    assert loaded(SCQ_SCRIPT=text).script == text


@pytest.mark.parametrize(
    "text",
    [
        ".js",
        "t",
        "push",
        "t.JS",
        "t.js.map",
        "a/t.js",
        "/t.js",
        "../t.js",
        ".t.js",
        "t t.js",
        "é.js",
        "t.js?x",
        "{t}.js",
    ],
)
def test_another_name_of_a_script_is_refused_with_what_would_do(text: str) -> None:
    problem = only_problem(enough(SCQ_SCRIPT=text))
    assert (problem.variable, problem.example) == ("SCQ_SCRIPT", "SCQ_SCRIPT=t.js")
    assert "must be a file name of letters" in problem.wrong


@pytest.mark.parametrize("text", ["in", "t.in", "_~-1"])
def test_a_plain_name_is_an_endpoint(text: str) -> None:
    assert loaded(SCQ_ENDPOINT=text).endpoint == text


@pytest.mark.parametrize("text", ["/in", "in/", "a/b", ".", "..", ".in", "a b", "é", "in?x", "%61", "{in}"])
def test_an_endpoint_that_is_no_plain_name_is_refused(text: str) -> None:
    problem = only_problem(enough(SCQ_ENDPOINT=text))
    assert (problem.variable, problem.example) == ("SCQ_ENDPOINT", "SCQ_ENDPOINT=in")
    assert "must be one name of letters" in problem.wrong


@pytest.mark.parametrize("text", ["scq.js", "t.js", "scq.debug.js", "scq.0123456789ab.js", "x.js"])
def test_script_and_endpoint_cannot_clash(text: str) -> None:
    assert "only scripts do" in only_problem(enough(SCQ_ENDPOINT=text, SCQ_SCRIPT="t.js")).wrong


@pytest.mark.parametrize("text", ["status", "check"])
def test_an_endpoint_where_something_else_is_served_is_refused(text: str) -> None:
    assert "is taken" in only_problem(enough(SCQ_ENDPOINT=text)).wrong


def test_globs_are_trimmed_and_keep_their_case() -> None:
    assert loaded(SCQ_TAGS=" VIP* , cart-? ,,a b,").tags == ("VIP*", "cart-?", "a b")


def test_trusted_proxies_are_addresses_and_networks() -> None:
    given = loaded(SCQ_TRUSTED_PROXIES="10.0.0.0/8, 192.0.2.1,fd00::/8").trusted_proxies
    assert given == (ip_network("10.0.0.0/8"), ip_network("192.0.2.1"), ip_network("fd00::/8"))


def test_a_network_with_host_bits_is_refused_with_the_right_one() -> None:
    assert only_problem(enough(SCQ_TRUSTED_PROXIES="10.1.2.3/8")).wrong.endswith("write 10.0.0.0/8")


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("SCQ_PORT", "0", "port", 0),
        ("SCQ_PORT", "65535", "port", 65535),
        ("SCQ_RATE_PER_IP", "0", "rate_per_ip", 0.0),
        ("SCQ_RATE_PER_IP", "0.5", "rate_per_ip", 0.5),
        ("SCQ_UPSTREAM_CONCURRENCY", "64", "upstream_concurrency", 64),
        ("SCQ_UPSTREAM_TIMEOUT", "50", "upstream_timeout_seconds", 50.0),
        ("SCQ_UPSTREAM_RATE", "0", "upstream_rate", 0.0),
        ("SCQ_UPSTREAM_RATE", "0.1", "upstream_rate", 0.1),
        ("SCQ_HOLD_MB", "1", "hold_max_bytes", 1_048_576),
        ("SCQ_MIN_FREE_MB", "2", "min_free_bytes", 2_097_152),
        ("SCQ_HOLD_DAYS", "0.5", "hold_age", timedelta(hours=12)),
        ("SCQ_MAX_AGE", "7", "max_age", timedelta(days=7)),
        ("SCQ_GPC", "ignore", "gpc", Gpc.IGNORE),
        ("SCQ_LOG_LEVEL", "DEBUG", "log_level", LogLevel.DEBUG),
        ("SCQ_LOG_FORMAT", "JSON", "log_format", LogFormat.JSON),
        ("SCQ_HOST", "::", "host", "::"),
        ("SCQ_HOST", "proxy.internal", "host", "proxy.internal"),
    ],
)
def test_an_ordinary_value_is_read(name: str, text: str, field: str, value: object) -> None:
    assert getattr(loaded(**{name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SCQ_PORT", "65536"),
        ("SCQ_PORT", "-1"),
        ("SCQ_PORT", "8000.0"),
        ("SCQ_PORT", "٨"),
        ("SCQ_PORT", "9" * 5000),
        ("SCQ_RATE_PER_IP", "-1"),
        ("SCQ_RATE_PER_IP", "nan"),
        ("SCQ_RATE_PER_IP", "inf"),
        ("SCQ_RATE_PER_IP", "1e3"),
        ("SCQ_UPSTREAM_CONCURRENCY", "0"),
        ("SCQ_UPSTREAM_CONCURRENCY", "65"),
        ("SCQ_UPSTREAM_TIMEOUT", "0.5"),
        ("SCQ_UPSTREAM_RATE", "0.05"),
        ("SCQ_UPSTREAM_RATE", "10001"),
        ("SCQ_UPSTREAM_RATE", "-1"),
        ("SCQ_UPSTREAM_TIMEOUT", "51"),
        ("SCQ_VERIFIED_DAYS", "0"),
        ("SCQ_VERIFIED_DAYS", "30d"),
        ("SCQ_DIALECT", "soap"),
        ("SCQ_IDENTIFY", "anyone"),
        ("SCQ_GPC", "honor"),
        ("SCQ_LOG_LEVEL", "loud"),
        ("SCQ_HOST", "http://x"),
        ("SCQ_HOST", "[::1]"),
        ("SCQ_TRUSTED_PROXIES", "*"),
        ("SCQ_TRUSTED_PROXIES", "proxy.internal"),
        ("SCQ_TEAM_ID", "é"),
    ],
)
def test_an_impossible_value_is_refused_under_its_name(name: str, text: str) -> None:
    assert [problem.variable for problem in problems(enough(**{name: text}))] == [name]


def test_a_long_value_is_shown_shortened() -> None:
    problem = only_problem(enough(SCQ_PORT="9" * 5000))
    assert f"not '{'9' * 56}..." in problem.wrong
    assert len(problem.wrong) < 120


@pytest.mark.parametrize("value", ["ann@example.com", "x ann%40example.com"])
@pytest.mark.parametrize("name", ["SCQ_PORT", "SCQ_ORIGINS", "SCQ_PREFIX", "SCQ_HOST", "SCQ_TRUSTED_PROXIES"])
def test_an_address_in_the_wrong_place_is_not_shown(name: str, value: str) -> None:
    assert "ann" not in str(only_problem(enough(**{name: value})))


# Commands that need less


def test_a_store_command_needs_no_other_setting() -> None:
    assert load_one("store", {"SCQ_STORE": "sqlite:////a.db"}, None) == SqliteUrl(Path("/a.db"))


def test_a_store_command_does_not_mind_another_settings_value() -> None:
    assert load_one("store", {"SCQ_PORT": "x"}, None).path == Path("scq.db")


def test_a_token_needs_only_the_identity_keys() -> None:
    keys = load_one("identity_keys", {"SCQ_IDENTITY_KEYS": KEY, "SCQ_IDENTIFY": "asserted"}, None, required=True)
    assert keys == (IdentityKey(None, Secret(KEY)),)


def test_a_token_cannot_be_signed_without_a_key() -> None:
    with pytest.raises(ConfigError, match="SCQ_IDENTITY_KEYS: is required"):
        load_one("identity_keys", {"SCQ_IDENTIFY": "asserted"}, None, required=True)


@pytest.mark.parametrize("name", ["store", "identity_keys"])
def test_unknown_names_are_refused_by_every_command(name: str) -> None:
    with pytest.raises(ConfigError, match="SCQ_STORES"):
        load_one(name, {"SCQ_STORES": "x", "SCQ_IDENTITY_KEYS": KEY}, None)


# The table


def test_every_field_has_its_spec_and_every_spec_its_words() -> None:
    assert len(SPECS) == len(fields(Settings)) == len({spec.name for spec in SPECS})
    assert all(spec.help and spec.default_text and spec.name.startswith("SCQ_") for spec in SPECS)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.secret], ids=lambda spec: spec.name)
def test_the_example_of_an_ordinary_setting_would_do(spec: Spec) -> None:
    name, _, value = spec.example.partition("=")
    loaded(**{name: value})


@pytest.mark.parametrize("name", ["SCQ_SECRET_KEYS", "SCQ_IDENTITY_KEYS", "SCQ_SERVER_KEYS", "SCQ_ADMIN_TOKEN"])
def test_the_example_of_a_secret_cannot_be_used_as_it_stands(name: str) -> None:
    (example,) = [spec.example.partition("=")[2] for spec in SPECS if spec.name == name]
    assert only_problem(enough(**{name: example})).variable == name


# Attacks


pieces = st.sampled_from(
    [
        "https://",
        "http://",
        "[::1]",
        "localhost",
        "a.example",
        ":",
        "443",
        "/",
        "*",
        ",",
        "=",
        "sqlite:///",
        "10.0.0.0/8",
    ]
)
values = st.one_of(st.text(), st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=6).map("".join))
ordinary_names = st.one_of(
    st.sampled_from([spec.name for spec in SPECS if not spec.secret]), st.text().map("SCQ_".__add__), st.text()
)
no_path = st.text(st.characters(exclude_characters="/."), max_size=40)  # a file's path is shown, and may be
secrets = st.builds("{}{}{}".format, no_path, st.just(HUSH), st.text(max_size=40))
secret_names = st.sampled_from([*SECRET_NAMES, *(f"{name}_FILE" for name in SECRET_NAMES)])
good_characters = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=",=")
good_keys = st.text(good_characters, min_size=32).map(HUSH.__add__)


def shown_by(environ: dict[str, str], env_file: Path | None = None) -> str:
    """All that loading lets anybody see; anything but ConfigError falls through."""
    seen: list[object] = []
    for load in (load_settings, partial(load_one, "store"), partial(load_one, "identity_keys", required=True)):
        try:
            seen.append(load(environ, env_file))
        except ConfigError as error:
            seen += [error, error.problems, *error.problems]
    return "\n".join(f"{each} {each!r}" for each in seen)


@given(st.dictionaries(ordinary_names, values), st.dictionaries(secret_names, secrets))
def test_no_environment_raises_anything_else_or_shows_a_secret(
    ordinary: dict[str, str], secret: dict[str, str]
) -> None:
    assert HUSH not in shown_by(ordinary | secret)


@given(st.lists(good_keys, min_size=3, max_size=3, unique=True), st.text(max_size=10))
def test_no_settings_that_load_show_a_secret(keys: list[str], kid: str) -> None:
    one, two, three = keys
    environ = enough(SCQ_API_KEY=one, SCQ_SECRET_KEYS=f"{one},{two}", SCQ_IDENTITY_KEYS=f"{kid}={two},{three}")
    environ |= {"SCQ_SERVER_KEYS": three, "SCQ_ADMIN_TOKEN": two, "SCQ_STORE": f"postgresql://u:{one}@h/d"}
    assert HUSH not in shown_by(environ)


separators = st.sampled_from(["=", " = ", "='", '="', ":", ": ", " "])
lines = st.one_of(st.builds("{}{}{}".format, secret_names, separators, secrets), st.text(), st.just("SCQ_PORT=1"))


@given(st.lists(lines, max_size=5))
def test_no_env_file_raises_anything_else_or_shows_a_secret(
    tmp_path_factory: pytest.TempPathFactory, content: list[str]
) -> None:
    env_file = tmp_path_factory.getbasetemp() / "generated.env"
    env_file.write_bytes("\n".join(content).encode(errors="surrogatepass"))
    assert HUSH not in shown_by({}, env_file)
