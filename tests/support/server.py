"""The real `scq-proxy serve` as a process of its own, and a browser that talks to it as the shim does.

`running` starts the command with an environment and gives a `Server`; that can be killed, stopped and started
again on the same store. A `Browser` keeps the cookies and the session value `s` that its tabs share. `token`
signs identity tokens as a site's back end would, without our code. What reached SendX is read off the sandbox
with `arrived`. Nothing here looks inside the server: only the names and the wire contract are used.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import jwt
import msgspec

from proxy.core.cookies import CookieCodec
from proxy.sandbox.api import Recorded, Sandbox
from tests.support.live import PATIENCE_SECONDS, eventually, free_port

API_KEY = "sendx-team-api-key-" + "A" * 21
COOKIE_KEY = "cookie-signing-key-" + "B" * 21
IDENTITY_KEY = "identity-hs256-key-" + "C" * 21
KID_KEY = "identity-key-with-kid-" + "D" * 20
ADMIN_TOKEN = "admin-bearer-token-" + "E" * 21
SERVER_KEY = "server-key-of-the-shop-" + "1" * 20
TEAM = "team-4711"
HOST = "shop.example"
SHOP = f"https://{HOST}"
LOCAL = "http://localhost:3000"

Json = Any
Cookies = dict[str, str]
_numbers = itertools.count(1)


def environment(upstream: str, store: Path, **more: str) -> dict[str, str]:
    """Settings that serve: a handful of tags, both kinds of identify off their defaults only where `more` says so."""
    return {
        "SCQ_API_KEY": API_KEY,
        "SCQ_UPSTREAM": upstream,
        "SCQ_SECRET_KEYS": COOKIE_KEY,
        "SCQ_IDENTITY_KEYS": f"{IDENTITY_KEY},backend={KID_KEY}",
        "SCQ_ORIGINS": f"{SHOP},{LOCAL}",
        "SCQ_TAGS": "cart-*,blogger,paid user,newsletter",
        "SCQ_ASSERTED_TAGS": "newsletter,typed-*",
        "SCQ_STORE": f"sqlite:///{store}",
        "SCQ_RATE_PER_IP": "0",
        "SCQ_LOG_LEVEL": "debug",
        "SCQ_UPSTREAM_TIMEOUT": "50",
        **more,
    }


def command(*arguments: str) -> list[str]:
    """The installed `scq-proxy` of the environment that runs the tests."""
    return [str(Path(sys.executable).with_name("scq-proxy")), *arguments]


def clean_environ(settings: dict[str, str]) -> dict[str, str]:
    """The process environment with these SCQ_* settings and no others."""
    return {name: text for name, text in os.environ.items() if not name.startswith("SCQ_")} | settings


class Server:
    """One `scq-proxy serve`; its log (standard error) grows over restarts. `arguments`: of the command."""

    arguments: Sequence[str] = ()

    def __init__(self, directory: Path, upstream: str, **more: str) -> None:
        self.directory = directory
        self.store = directory / "scq.db"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = environment(upstream, self.store, **more) | {"SCQ_PORT": str(self.port)}
        self.log_path = directory / "server.log"
        self.prefix = self.settings.get("SCQ_PREFIX", "/scq")
        self._process: subprocess.Popen[bytes] | None = None
        # A jar that keeps nothing: who sends which cookie is the test's business.
        jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        self.client = httpx.Client(base_url=self.url, cookies=jar, timeout=PATIENCE_SECONDS)

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    # The process

    def start(self, *, ready: bool = True, more: Mapping[str, str] | None = None) -> None:
        """Start it, with changed settings if given, and wait until it takes requests (until it is ready) and has said that it serves."""
        self.settings |= more or {}
        said = self.log.count("Serving ")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command("serve", *self.arguments),
                cwd=self.directory,
                env=clean_environ(self.settings),
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self._answers("/readyz" if ready else "/healthz") or self.died())
        if self.settings.get("SCQ_LOG_LEVEL") in ("debug", "info"):
            eventually(lambda: self.log.count("Serving ") > said or self.died())
        assert not self.died(), f"the server ended at once:\n{self.log}"

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_SECONDS)

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def restart(self, **more: str) -> None:
        assert self.stop() == 0
        self.start(more=more)

    def close(self) -> None:
        self.client.close()
        if self._process is not None and self._process.poll() is None:
            self.terminate()
            try:
                self._process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Until it has ended; returns the exit code, negative for a signal."""
        assert self._process is not None
        return self._process.wait(timeout)

    def serves(self) -> bool:
        return self._answers("/healthz")

    def _answers(self, path: str) -> bool:
        with suppress(httpx.TransportError):
            # A client for each look would read all certificates each time: 25 ms of work.
            # Not kept open: a server that was killed for good is not always closed.
            return self.client.get(path, headers={"Connection": "close"}, timeout=5).status_code == 200
        return False

    def died(self) -> bool:
        """Whether it was started and has ended, however."""
        return self._process is not None and self._process.poll() is not None

    # Requests

    def send(
        self, body: bytes | Json, headers: Sequence[tuple[str, str]] = (), path: str = "", /, **more: str
    ) -> httpx.Response:
        """POST a body to the push endpoint. `more`: headers by name, `_` for `-`; Origin and Content-Type are given."""
        given = {"Origin": SHOP, "Content-Type": "text/plain"}
        given |= {name.replace("_", "-").title(): text for name, text in more.items()}
        pairs = [(name, text) for name, text in given.items() if text] + list(headers)
        raw = body if isinstance(body, bytes) else dumps(body)
        return self.client.post(path or f"{self.prefix}/push", content=raw, headers=pairs)

    def post(self, pushes: Sequence[Json], *, s: str | None = None, **headers: str) -> httpx.Response:
        """POST pushes as the shim would. `headers`: such as `cookie="__Host-scq=…"`, `origin=…`."""
        body: dict[str, Json] = {"v": 1, "pushes": list(pushes)}
        return self.send(body | ({"s": s} if s is not None else {}), (), "", **headers)

    def raw(self, request: bytes) -> bytes:
        """Send bytes over a socket and return all that comes back until the server closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request)
            received = b""
            with suppress(TimeoutError, ConnectionResetError):
                while not _is_complete(received):
                    if not (chunk := connection.recv(65_536)):
                        break
                    received += chunk
            return received


def dumps(body: Json) -> bytes:
    """JSON in which infinity is a number too large for a double, which JSON allows, and not a word, which it does not."""
    return json.dumps(body).replace("Infinity", "1e999").encode()


def _is_complete(received: bytes) -> bool:
    if received.startswith(b"HTTP/1.1 100"):
        received = received.partition(b"\r\n\r\n")[2]
    head, gap, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(gap) and length is not None and len(body) >= int(length[1])


@contextmanager
def running(directory: Path, upstream: str, ready: bool = True, /, **more: str) -> Iterator[Server]:
    """A started server that is stopped at the end. `upstream`: SendX's base URL; `more`: settings."""
    server = Server(directory, upstream, **more)
    try:
        server.start(ready=ready)
        yield server
    finally:
        server.close()


class Browser:
    """One browser with its cookies and the `s` its tabs share, adopting both from answers as a browser and the shim do."""

    def __init__(self, server: Server, *, origin: str = SHOP, **headers: str) -> None:
        self.server = server
        self.origin = origin
        self.headers = headers
        self.cookies: Cookies = {}
        self.s: str | None = secrets.token_hex(16)
        self.last: httpx.Response | None = None

    @property
    def cookie(self) -> str | None:
        """The value of our cookie."""
        return self.cookies.get("__Host-scq") or self.cookies.get("scq")

    def request(
        self, *calls: Json, ids: Sequence[str] = (), s: str | None = None, cookies: Cookies | None = None
    ) -> httpx.Response:
        """Send calls in one request, with other than the current `s` and cookies if given; adopt nothing."""
        assert not ids or len(ids) == len(calls)
        pushes = [
            {"id": push_id, "call": call} for push_id, call in zip(ids or new_ids(len(calls)), calls, strict=True)
        ]
        sent = self.cookies if cookies is None else cookies
        header = "; ".join(f"{name}={value}" for name, value in sent.items())
        return self.server.post(pushes, s=s or self.s, cookie=header, origin=self.origin, **self.headers)

    def adopt(self, response: httpx.Response) -> list[dict[str, Json]]:
        """Take over cookie and `s` of an answer, and return its results."""
        assert response.status_code == 202, response.text
        self.last = response
        for header in response.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(header).items():
                self.cookies[name] = morsel.value
        answer = response.json()
        self.s = answer.get("s", self.s)
        results: list[dict[str, Json]] = answer["results"]
        return results

    def push(self, *calls: Json, ids: Sequence[str] = (), s: str | None = None) -> list[dict[str, Json]]:
        """Send calls in one request and take over what the answer says; returns the results."""
        return self.adopt(self.request(*calls, ids=ids, s=s))

    def statuses(self, *calls: Json, ids: Sequence[str] = (), s: str | None = None) -> list[str]:
        """As `push`; returns each result's reason if it has one, else its status."""
        return outcomes(self.push(*calls, ids=ids, s=s))

    def logs_in(self, email: str, **contact: Json) -> None:
        assert self.statuses(login(email, **contact)) == ["accepted"]


def outcomes(results: Sequence[dict[str, Json]]) -> list[str]:
    return [str(result.get("reason", result["status"])) for result in results]


# What pages push


def new_id() -> str:
    return str(uuid.uuid4())


def new_ids(count: int) -> list[str]:
    return [new_id() for _ in range(count)]


def new_email(name: str = "ann") -> str:
    """An address that no other test uses."""
    return f"{name}.{next(_numbers)}.{secrets.token_hex(3)}@example.com"


def track(*tags: str, remove: Sequence[str] = ()) -> Json:
    return ["track", {"addTags": list(tags)} | ({"removeTags": list(remove)} if remove else {})]


def identify(**fields: Json) -> Json:
    return ["identify", fields]


def login(email: str, **contact: Json) -> Json:
    """An identify by a token, vouching for `contact` if given."""
    return identify(token=token(email, contact=contact) if contact else token(email))


def token(
    email: Json,
    *,
    key: str = IDENTITY_KEY,
    algorithm: str = "HS256",
    headers: dict[str, Json] | None = None,
    leave_out: Sequence[str] = (),
    exp_in: int = 600,
    iat_in: int = 0,
    **claims: Json,
) -> str:
    """An identity token as a site's back end signs it. `exp_in`, `iat_in`: seconds from now; a claim given wins."""
    now = int(time.time())
    payload = {"email": email, "iat": now + iat_in, "exp": now + exp_in, "aud": "scq"} | claims
    for name in leave_out:
        del payload[name]
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers)


def aged(cookie: str, *, issued_days: float | None = None, verified_days: float | None = None) -> str:
    """The same cookie, as if issued, and its visitor verified, so many days ago (negative: ahead).

    The one look inside: time cannot be turned back from outside.
    """
    codec = CookieCodec([COOKIE_KEY])
    visitor = codec.decode(cookie, time.time())
    assert visitor is not None
    if issued_days is not None:
        visitor = msgspec.structs.replace(visitor, issued=int(time.time() - issued_days * 86_400))
    if verified_days is not None:
        visitor = msgspec.structs.replace(visitor, verified=int(time.time() - verified_days * 86_400))
    return codec.encode(visitor)


# What reached SendX


def requests_about(sandbox: Sandbox, email: str) -> list[Recorded]:
    """Requests about a contact, in order of arrival, failed ones too. Both dialects."""
    return [record for record in sandbox.requests if _about(record).lower() == email.lower()]


def _about(record: Recorded) -> str:
    in_query = parse_qs(record.query).get("email", [""])[0]
    return in_query or record.contact or ""


def events(record: Recorded) -> list[str]:
    """A request in small pieces: `identify`, `+tag`, `-tag`. One without a body has none."""
    if record.body is None:
        return []
    if record.path.endswith("/identify"):
        return ["identify", *(f"+{tag}" for tag in record.body.get("tags", []))]
    added, removed = record.body.get("addTags") or [], record.body.get("removeTags") or []
    return [*(f"+{tag}" for tag in added), *(f"-{tag}" for tag in removed)]


def arrived(sandbox: Sandbox, email: str) -> list[str]:
    """What took effect at SendX for a contact, in order; how pushes were merged into requests does not show."""
    return [event for record in requests_about(sandbox, email) if record.applied for event in events(record)]


def arrives(sandbox: Sandbox, email: str, last: str, timeout: float = PATIENCE_SECONDS) -> list[str]:
    """Wait until an event (`+tag`, say) has taken effect for a contact; returns `arrived`."""
    eventually(lambda: last in arrived(sandbox, email), timeout)
    return arrived(sandbox, email)


def is_anywhere(sandbox: Sandbox, text: str) -> bool:
    """Whether any request, applied or not, mentions this."""
    return any(text in record.raw or text in record.query for record in sandbox.requests)
