"""Cookies that somebody has forged, re-signed, swapped or planted.

What the codec believes is in `core/test_cookies.py`; here is what a visitor gets by it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any

import pytest
from itsdangerous import Signer, TimestampSigner

from proxy.core.cookies import CookieCodec, ProbeCodec
from proxy.core.visitors import Trust, Visitor
from tests.support.server import (
    API_KEY,
    COOKIE_KEY,
    IDENTITY_KEY,
    Browser,
    Server,
    identify,
    new_email,
    outcomes,
    token,
    track,
)
from tests.support.threats import OURS, sent
from tests.support.wire import batch, one

PAYLOAD = base64.urlsafe_b64encode(json.dumps({"id": "x" * 22, "email": "vic@example.com", "trust": 2}).encode())
FRESH = PAYLOAD.rstrip(b"=").decode()
SALT = "scq-proxy.visitor-cookie.v1"


def resigned(salt: str = SALT, key: str = COOKIE_KEY, **changed: Any) -> str:
    """The victim's payload under a signature that is nearly ours."""
    payload = OURS.rpartition(".")[0]
    how: dict[str, Any] = {"key_derivation": "hmac", "digest_method": hashlib.sha256, **changed}
    return Signer(key, salt=salt, **how).sign(payload).decode()


FORGED_COOKIES: dict[str, str] = {
    "no signature": FRESH,
    "an empty signature": f"{FRESH}.",
    "the signature of another payload": f"{FRESH}.{OURS.rpartition('.')[2]}",
    "cut off": OURS[:-1],
    "cut in two": OURS[: len(OURS) // 2],
    "without its first character": OURS[1:],
    "something behind it": OURS + "A",
    "twice": f"{OURS}.{OURS}",
    "with another separator": OURS.replace(".", ":"),
    "quoted": f'"{OURS}"',
    "percent-encoded": OURS.replace(".", "%2E"),
    "signed with another key": resigned(key="x" * 40),
    "signed with the identity key": resigned(key=IDENTITY_KEY),
    "signed with SendX's key": resigned(key=API_KEY),
    "signed with an empty key": resigned(key=""),
    "signed for another purpose": resigned("scq-proxy.check.v1"),
    "signed with the library's own salt": resigned("itsdangerous.Signer"),
    "signed with SHA-1": resigned(digest_method=hashlib.sha1),
    "signed with SHA-512": resigned(digest_method=hashlib.sha512),
    "signed with the key itself": resigned(key_derivation="none"),
    "signed with a key derived in another way": resigned(key_derivation="concat"),
    "signed with a time": TimestampSigner(COOKIE_KEY, salt=SALT, key_derivation="hmac", digest_method=hashlib.sha256)
    .sign(FRESH)
    .decode(),
    "a genuine proof for another purpose": ProbeCodec([COOKIE_KEY]).sign(time.time()),
    "an identity token": token("vic@example.com"),
    "an identity token signed with the cookie key": token("vic@example.com", key=COOKIE_KEY),
    "a year and a day old": CookieCodec([COOKIE_KEY]).encode(
        Visitor("y" * 22, "vic@example.com", Trust.VERIFIED, int(time.time()) - 366 * 86_400)
    ),
    "from the day after tomorrow": CookieCodec([COOKIE_KEY]).encode(
        Visitor("z" * 22, "vic@example.com", Trust.VERIFIED, int(time.time()) + 2 * 86_400)
    ),
}


@pytest.mark.parametrize("what", FORGED_COOKIES)
def test_a_forged_cookie_makes_nobody(browser: Browser, what: str) -> None:
    calls = [track("cart-1"), identify(firstName="Eve"), identify(email="vic@example.com", company="C")]
    response = browser.request(*calls, cookies={"__Host-scq": FORGED_COOKIES[what]})
    results = response.json()["results"]
    assert outcomes(results) == ["held", "unverified-identity", "accepted"]
    assert results[2]["dropped"] == ["company"], "asserted, not verified"


def test_a_genuine_cookie_is_believed(browser: Browser) -> None:
    response = browser.request(track("cart-1"), identify(firstName="Vic"), cookies={"__Host-scq": OURS})
    assert outcomes(response.json()["results"]) == ["accepted", "accepted"]


PLANTED: dict[str, bytes] = {
    "doubled": b"__Host-scq=%s; __Host-scq=%s",
    "doubled, ours last": b"__Host-scq=x; __Host-scq=%s",
    "doubled, ours first": b"__Host-scq=%s; __Host-scq=",
    "without the prefix": b"scq=%s",
    "the prefix in lower case": b"__host-scq=%s",
    "the prefix in upper case": b"__HOST-SCQ=%s",
    "the other prefix": b"__Secure-scq=%s",
    "a no-break space before the name": b"\xa0__Host-scq=%s",
    "a next-line character before the name": b"\x85__Host-scq=%s",
    "the same in UTF-8": b"\xc2\xa0__Host-scq=%s",
    "a wide space before the name": b"\xe2\x80\x80__Host-scq=%s",
    "a wide space behind another cookie": b"a=b;\xa0__Host-scq=%s",
    "a blank behind the name": b"__Host-scq =%s",
    "a no-break space behind the name": b"__Host-scq\xa0=%s",
    "a blank before the value": b"__Host-scq= %s",
    "in quotes": b'__Host-scq="%s"',
    "behind a comma": b"a=b, __Host-scq=%s",
    "in another cookie's value": b"a=__Host-scq=%s",
    "in another cookie's quotes": b'a="b; __Host-scq=%s"',
    "with brackets": b"__Host-scq[]=%s",
    "as an attribute": b"$Version=1; $__Host-scq=%s",
    "without a name": b"=__Host-scq=%s",
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_planted_cookie_is_not_believed(server: Server, ann: Browser, how: str) -> None:
    genuine = (ann.cookie or "").encode()
    header = PLANTED[how].replace(b"%s", genuine)
    response = sent(server, batch(track("cart-1")), [(b"Cookie", header)])
    assert outcomes(response.json()["results"]) == ["held"]


def test_a_cookie_of_another_name_beside_ours_changes_nothing(server: Server, ann: Browser) -> None:
    mallory = Browser(server)
    mallory.logs_in(new_email("mallory"))
    for planted in ("scq={m}", "__Host-scq2={m}", "__Host-scq.={m}", "Path=/; Domain=shop.example; x={m}"):
        header = f"{planted.format(m=mallory.cookie)}; __Host-scq={ann.cookie}"
        results = ann.push(track("cart-1"), identify(firstName="Ann"))
        assert outcomes(results) == ["accepted", "accepted"]
        response = server.post([one(identify(firstName="Ann"))], cookie=header, s=ann.s)
        assert outcomes(response.json()["results"]) == ["accepted"]
        assert "set-cookie" not in response.headers
