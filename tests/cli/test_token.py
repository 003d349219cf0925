"""`scq-proxy keygen` and `scq-proxy token`: what they print can be used as it stands."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from proxy.core.reasons import Reason
from proxy.core.tokens import TokenCodec, TokenProblem, Vouched
from tests.support.commands import scq
from tests.support.server import IDENTITY_KEY, KID_KEY

# keygen, token, snippet


def test_keygen_prints_43_url_safe_characters_and_nothing_else(tmp_path: Path) -> None:
    first, second = scq("keygen", cwd=tmp_path), scq("keygen", cwd=tmp_path)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", first.out)
    assert (first.code, first.err) == (0, "")
    assert first.out != second.out


def test_a_token_identifies_its_address(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    assert (said.code, said.err) == (0, "")
    vouched = TokenCodec([(None, IDENTITY_KEY)]).verify(said.out.strip(), time.time())
    assert isinstance(vouched, Vouched)
    assert vouched.email == "ada@example.com"


def test_a_token_lasts_as_long_as_asked(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", "--minutes", "1", cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    codec = TokenCodec([(None, IDENTITY_KEY)])
    assert isinstance(codec.verify(said.out.strip(), time.time()), Vouched)
    problem = codec.verify(said.out.strip(), time.time() + 120)
    assert isinstance(problem, TokenProblem)
    assert problem.reason is Reason.EXPIRED_TOKEN


def test_a_token_vouches_for_a_contact(tmp_path: Path) -> None:
    contact = '{"firstName": "Ada", "tags": ["paid user"]}'
    said = scq("token", "ada@example.com", "--contact", contact, cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    vouched = TokenCodec([(None, IDENTITY_KEY)]).verify(said.out.strip(), time.time())
    assert isinstance(vouched, Vouched)
    assert (vouched.attributes.fields, tuple(vouched.attributes.tags)) == ({"firstName": "Ada"}, ("paid user",))


@pytest.mark.parametrize("email", ["foo..bar.@docomo.ne.jp", "bob@company.local"])
def test_a_token_may_be_for_an_address_that_is_vouched_for(tmp_path: Path, email: str) -> None:
    said = scq("token", email, cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    vouched = TokenCodec([(None, IDENTITY_KEY)]).verify(said.out.strip(), time.time())
    assert isinstance(vouched, Vouched)
    assert vouched.email == email


def test_a_contact_that_would_lose_something_is_refused_by_name(tmp_path: Path) -> None:
    contact = '{"firstName": "Ada", "birthday": "1815", "tags": [7]}'
    said = scq("token", "ada@example.com", "--contact", contact, cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    assert (said.code, said.out) == (2, "")
    assert "contact.birthday" in said.err
    assert "contact.tags[0]" in said.err


def test_a_token_is_signed_with_a_key_that_has_a_kid_if_there_is_no_other(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", cwd=tmp_path, SCQ_IDENTITY_KEYS=f"backend={KID_KEY}")
    assert isinstance(TokenCodec([("backend", KID_KEY)]).verify(said.out.strip(), time.time()), Vouched)


def test_a_token_is_signed_with_a_key_from_the_env_file(tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text(f"SCQ_IDENTITY_KEYS={IDENTITY_KEY}\n", "utf-8")
    said = scq("token", "ada@example.com", "--env-file", "site.env", cwd=tmp_path)
    assert isinstance(TokenCodec([(None, IDENTITY_KEY)]).verify(said.out.strip(), time.time()), Vouched)


def test_without_keys_no_token_is_made(tmp_path: Path) -> None:
    said = scq("token", "ada@example.com", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "SCQ_IDENTITY_KEYS: is required" in said.err
    assert "for example: SCQ_IDENTITY_KEYS=" in said.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "email"),
        (["a b@c.co"], "email"),
        (["ada@example.com", "--contact", "{"], "--contact"),
        (["ada@example.com", "--contact", "[]"], "--contact"),
        (["ada@example.com", "--contact", '{"tags": 3}'], "--contact"),
        (["ada@example.com", "--contact", "[" * 100_000], "--contact"),
        (["ada@example.com", "--minutes", "0"], "--minutes"),
        (["ada@example.com", "--minutes", "61"], "--minutes"),
    ],
)
def test_a_token_that_would_not_do_is_not_made(tmp_path: Path, arguments: list[str], named: str) -> None:
    said = scq("token", *arguments, cwd=tmp_path, SCQ_IDENTITY_KEYS=IDENTITY_KEY)
    assert (said.code, said.out) == (2, "")
    assert named in said.err.lower()


def test_the_snippet_is_all_that_is_printed_on_standard_output(tmp_path: Path) -> None:
    said = scq("snippet", cwd=tmp_path)
    embed = '<script>window._scq = window._scq || [];</script>\n<script async src="/scq/scq.js"></script>\n'
    assert (said.code, said.out) == (0, embed)
    assert "Content-Security-Policy" in said.err
