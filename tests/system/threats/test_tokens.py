"""Identity tokens that somebody has forged, re-signed or confused, and links that carry one."""

from __future__ import annotations

import json
import time

import jwt
import pytest

from proxy.sandbox.api import Sandbox
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    COOKIE_KEY,
    KID_KEY,
    SERVER_KEY,
    SHOP,
    Browser,
    Json,
    Server,
    arrives,
    dumps,
    identify,
    is_anywhere,
    login,
    new_email,
    outcomes,
    requests_about,
    token,
    track,
)
from tests.support.threats import KEY, OURS, claims, encoded, jws
from tests.support.wire import batch

EVES_KEY = b"a key of Eve's own, long enough!"
UNSIGNED, ENCRYPTED = encoded(b'{"alg":"none"}'), encoded(b'{"alg":"dir","enc":"A256GCM"}')
EVES_JWK = {"kty": "oct", "k": encoded(EVES_KEY), "alg": "HS256", "kid": "eve"}


AUDIENCES: list[Json] = [
    "other",
    "SCQ",
    "scq ",
    "scq\x00",
    "",
    None,
    7,
    True,
    [],
    ["other"],
    ["scq", 7],
    [["scq"]],
    {"scq": 1},
]
KIDS: list[tuple[Json, bytes]] = [
    *(("../../../../../../dev/null", b""), ("/dev/null", b""), ("/proc/sys/kernel/randomize_va_space", b"2\n")),
    *(("x' UNION SELECT 'eve", b"eve"), ("| echo eve", b"eve"), ("https://evil.example/k", EVES_KEY), ("", b"")),
    *(
        ("backend", KEY),
        ("backend\x00", b"\x00"),
        (["backend"], KID_KEY.encode()),
        ({"backend": 1}, KID_KEY.encode()),
        (0, KEY),
    ),
]


def forged_tokens() -> dict[str, str]:
    good = token("vic@example.com")
    head, body, signature = good.split(".")
    nested = jws({"alg": "HS256", "cty": "JWT"}, good.encode(), KEY)
    return {
        **{
            f"alg {alg!r}, unsigned": f"{encoded(json.dumps({'alg': alg}).encode())}.{body}."
            for alg in ("none", "None", "NONE", "nOnE", "", None, "HS256")
        },
        "alg none, with the signature of a good one": f"{UNSIGNED}.{body}.{signature}",
        "HS512 with our key": jws({"alg": "HS512"}, claims(), KEY, "sha512"),
        "HS384 with our key": jws({"alg": "HS384"}, claims(), KEY, "sha384"),
        "RS256 that says so, our key taken as the public one": jws({"alg": "RS256"}, claims(), KEY),
        "ES256 that says so": jws({"alg": "ES256"}, claims(), KEY),
        "alg in lower case": jws({"alg": "hs256"}, claims(), KEY),
        "alg with a blank": jws({"alg": "HS256 "}, claims(), KEY),
        "alg as a list": jws({"alg": ["HS256"]}, claims(), KEY),
        "no alg": jws({"typ": "JWT"}, claims(), KEY),
        "a header that is no object": jws(["HS256"], claims(), KEY),
        "an empty key": jws({"alg": "HS256"}, claims(), b""),
        "a key of Eve's": jws({"alg": "HS256"}, claims(), EVES_KEY),
        "a key of Eve's in jwk": jws({"alg": "HS256", "jwk": EVES_JWK}, claims(), EVES_KEY),
        "a key of Eve's at jku": jws(
            {"alg": "HS256", "jku": "https://evil.example/k", "kid": "eve"}, claims(), EVES_KEY
        ),
        "a key of Eve's at x5u": jws({"alg": "HS256", "x5u": "https://evil.example/c"}, claims(), EVES_KEY),
        "a key of Eve's in x5c": jws({"alg": "HS256", "x5c": [encoded(EVES_KEY)]}, claims(), EVES_KEY),
        **{f"kid {kid!r}": jws({"alg": "HS256", "kid": kid}, claims(), key) for kid, key in KIDS},
        "crit that nobody knows": jws({"alg": "HS256", "crit": ["mfa"], "mfa": True}, claims(), KEY),
        "crit that is empty": jws({"alg": "HS256", "crit": []}, claims(), KEY),
        "b64 false": jws({"alg": "HS256", "b64": False, "crit": ["b64"]}, claims(), KEY),
        "nested": nested,
        "nested twice": jws({"alg": "HS256", "cty": "JWT"}, nested.encode(), KEY),
        "encrypted, as it says": ".".join([ENCRYPTED, *[body] * 4]),
        "in JSON": json.dumps({"payload": body, "protected": head, "signature": signature}),
        "signed with the cookie key": jws({"alg": "HS256"}, claims(), COOKIE_KEY.encode()),
        "signed with SendX's key": jws({"alg": "HS256"}, claims(), API_KEY.encode()),
        "signed with a server key": jws({"alg": "HS256"}, claims(), SERVER_KEY.encode()),
        "signed with the operator's token": jws({"alg": "HS256"}, claims(), ADMIN_TOKEN.encode()),
        "a cookie": OURS,
        "a server key": SERVER_KEY,
        "cut off": good[:-1],
        "without a signature": f"{head}.{body}.",
        "without its last part": f"{head}.{body}",
        "with another's signature": f"{head}.{body}.{token('eve@example.com').rpartition('.')[2]}",
        "with another's claims": f"{head}.{token('eve@example.com').split('.')[1]}.{signature}",
        "with a line break": f"{good}\n",
        "with a zero byte": f"{good}\x00",
        "as a bearer": f"Bearer {good}",
        "for nobody in particular": jws({"alg": "HS256"}, {k: v for k, v in claims().items() if k != "aud"}, KEY),
        **{f"aud {aud!r}": jws({"alg": "HS256"}, claims(aud=aud), KEY) for aud in AUDIENCES},
        **{
            f"email {email!r}": jws({"alg": "HS256"}, claims(email=email), KEY)
            for email in ("vic\x00@example.com", "vic@example.com, eve@example.com", "vic@", "", {"a": 1}, True)
        },
        "two hours": jws({"alg": "HS256"}, claims(exp=int(time.time()) + 7_200), KEY),
        "not yet": jws({"alg": "HS256"}, claims(nbf=int(time.time()) + 300), KEY),
        "without end": jws({"alg": "HS256"}, b'{"email":"vic@example.com","iat":1,"exp":1e999,"aud":"scq"}', KEY),
        "deep": jws({"alg": "HS256"}, b"[" * 2_000 + b"]" * 2_000, KEY),
        "claims that are a list": jws({"alg": "HS256"}, [claims()], KEY),
    }


@pytest.mark.parametrize("what", forged_tokens())
def test_a_forged_token_identifies_nobody(browser: Browser, what: str) -> None:
    assert browser.statuses(identify(token=forged_tokens()[what]), track("cart-1")) == ["bad-token", "held"]


@pytest.mark.parametrize("seconds", [31 + 5, 3_600, 86_400 * 400])
def test_an_expired_token_identifies_nobody(browser: Browser, seconds: int) -> None:
    old = identify(token=token("vic@example.com", iat_in=-seconds - 60, exp_in=-seconds))
    assert browser.statuses(old, track("cart-1")) == ["expired-token", "held"]


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "jwk": EVES_JWK},
        {"alg": "HS256", "jku": "https://evil.example/k", "x5u": "https://evil.example/c", "x5c": ["AAAA"]},
        {"alg": "HS256", "kid": "../../../../dev/null"},
        b'{"alg":"none","alg":"HS256"}',
    ],
)
def test_where_a_token_says_its_key_is_does_not_matter(browser: Browser, sandbox: Sandbox, header: Json) -> None:
    """What our key has signed counts; nothing is fetched, nothing is opened."""
    email = new_email()
    assert browser.statuses(identify(token=jws(header, claims(email=email), KEY))) == ["accepted"]
    assert arrives(sandbox, email, "identify") == ["identify"]


def test_of_claims_that_occur_twice_all_readers_here_take_the_last(browser: Browser, sandbox: Sandbox) -> None:
    first, last, now = new_email("first"), new_email("last"), int(time.time())
    text = f'{{"email":"{first}","email":"{last}","iat":{now},"exp":{now + 60},"aud":"other","aud":"scq"}}'
    assert (
        browser.statuses(identify(token=jws({"alg": "HS256"}, text.encode(), KEY)), track("cart-1")) == ["accepted"] * 2
    )
    arrives(sandbox, last, "+cart-1")
    assert not is_anywhere(sandbox, first)


def test_a_leaked_token_is_good_for_an_hour_at_most(browser: Browser) -> None:
    """What is not claimed: a token that is still good logs in whoever has it."""
    leaked = token(new_email())
    assert browser.statuses(identify(token=leaked)) == ["accepted"]
    assert Browser(browser.server).statuses(identify(token=leaked)) == ["accepted"]
    assert jwt.decode(leaked, options={"verify_signature": False})["exp"] <= time.time() + 3_600
    assert browser.statuses(identify(token=token(new_email(), exp_in=3_700))) == ["bad-token"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_read_from_a_link(server: Server, sandbox: Sandbox, method: str) -> None:
    email = new_email("linked")
    query = {"email": email, "token": token(email), "s": "x" * 22, "pushes": json.dumps(batch(login(email))["pushes"])}
    for path in ("/scq/push", "/scq/scq.js", "/prod/push", "/nowhere"):
        response = server.client.request(
            method, path, params=query, content=dumps(batch(track("cart-1"))), headers={"Origin": SHOP}
        )
        if response.status_code == 202:
            assert outcomes(response.json()["results"]) == ["held"]
    Browser(server).push(login(other := new_email()))
    arrives(sandbox, other, "identify")
    assert not requests_about(sandbox, email)
