"""What is pushed: the requests that every contestant gets, as browsers with the script send them.

A request is a head and a body that differ by visitor, and ids that no other request has. Whoever sends it puts the ids in.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from proxy.core.cookies import SECURE_COOKIE, CookieCodec
from proxy.core.visitors import Trust, Visitor
from tests.support.server import COOKIE_KEY, SHOP

VISITORS = 1_000
TAG = "cart: Teapot"
_ROWS = 1_000
_ID = "@"  # stands where an id goes

_HEAD = (
    "POST /scq/push HTTP/1.1\r\n"
    "Host: shop.example\r\n"
    "Connection: keep-alive\r\n"
    "Content-Length: {length}\r\n"
    "sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\n"
    "sec-ch-ua-mobile: ?0\r\n"
    'sec-ch-ua-platform: "Windows"\r\n'
    "User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n"
    "Content-Type: text/plain;charset=UTF-8\r\n"
    "Accept: */*\r\n"
    f"Origin: {SHOP}\r\n"
    "Sec-Fetch-Site: same-origin\r\n"
    "Sec-Fetch-Mode: cors\r\n"
    "Sec-Fetch-Dest: empty\r\n"
    f"Referer: {SHOP}/teapots\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-GB,en;q=0.9\r\n"
    "Cookie: {cookie}\r\n"
    "\r\n"
)  # fmt: skip


class Template(NamedTuple):
    """A request of one visitor: `pieces` with an id between each two."""

    pieces: tuple[str, ...]

    def filled(self, ids: Sequence[str]) -> bytes:
        parts = [self.pieces[0]]
        for push_id, piece in zip(ids, self.pieces[1:], strict=True):
            parts += [push_id, piece]
        return "".join(parts).encode("ascii")


class Crowd:
    """People who have logged in, with the cookies that the proxy has given them."""

    def __init__(self, visitors: int = VISITORS) -> None:
        codec, now = CookieCodec([COOKIE_KEY]), int(time.time())
        people = [
            Visitor(secrets.token_urlsafe(16), f"visitor{number}@example.com", Trust.VERIFIED, now, now)
            for number in range(visitors)
        ]
        self._cookies = [f"{SECURE_COOKIE}={codec.encode(visitor)}" for visitor in people]
        self._sessions = [secrets.token_hex(16) for _ in people]

    def templates(self, pushes: int, tag: str = TAG) -> list[Template]:
        """A request of each, with so many pushes in it. A tag may hold `@`, for the id of its push."""
        return [
            _template(cookie, session, pushes, tag)
            for cookie, session in zip(self._cookies, self._sessions, strict=True)
        ]


def _template(cookie: str, session: str, pushes: int, tag: str) -> Template:
    one = {"id": _ID, "call": ["track", {"addTags": [tag]}]}
    body = json.dumps({"v": 1, "s": session, "pushes": [one] * pushes}, separators=(",", ":"))
    length = len(body) + body.count(_ID) * (len(new_id()) - len(_ID))
    first, *others = body.split(_ID)
    return Template((_HEAD.format(length=length, cookie=cookie) + first, *others))


def new_id() -> str:
    """An id as the script makes them: of one length, the newest last in order."""
    digits = f"{time.time_ns() // 1_000_000:013}{secrets.randbelow(9_000) + 1_000}"
    return f"scq-{digits}{secrets.randbelow(10**38):038}"


def write_lua(templates: Sequence[Template], file: Path) -> None:
    """The templates as `load.lua` reads them. JSON's strings, as far as these go, are Lua's, of which a function holds 65,536."""
    rows = ["all[#all + 1] = {" + ",".join(map(json.dumps, template.pieces)) + "}\n" for template in templates]
    parts = ["".join(rows[first : first + _ROWS]) for first in range(0, len(rows), _ROWS)]
    functions = [f"do local function add()\n{part}end add() end\n" for part in parts]
    file.write_text(f"local all = {{}}\n{''.join(functions)}return all\n", encoding="ascii")
