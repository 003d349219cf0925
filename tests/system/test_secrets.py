"""No key, no token and no e-mail address shows anywhere but where it belongs: in the cookie and on the way to SendX.

A lively session, with every error there is and a SendX that fails in every way, at log level debug. Then all that
came out of the server is searched: answers and their headers, the log, the metrics, the status page, the commands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from tests.support.commands import scq
from tests.support.live import PATIENCE_SECONDS, eventually, free_port
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    COOKIE_KEY,
    IDENTITY_KEY,
    KID_KEY,
    LOCAL,
    SHOP,
    TEAM,
    Browser,
    Server,
    arrives,
    identify,
    new_email,
    new_id,
    requests_about,
    running,
    token,
    track,
)

KEYS = [API_KEY, COOKIE_KEY, IDENTITY_KEY, KID_KEY, ADMIN_TOKEN]
FAULTS = [
    Fault(status=400),
    Fault(status=409),
    Fault(status=422, body='{"message":"bad: %s"}'),
    Fault(status=500),
    Fault("html", 502),
    Fault("reset"),
    Fault("empty", 404),
    Fault(status=302),
]


class Eavesdropper:
    """Everything that the server said, except the value of its own cookie."""

    def __init__(self, server: Server) -> None:
        self.heard: list[tuple[str, str]] = []
        server.client.close()
        server.client = httpx.Client(
            base_url=server.url,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=PATIENCE_SECONDS,
            event_hooks={"response": [self._listen]},
        )

    def _listen(self, response: httpx.Response) -> None:
        response.read()
        where = f"{response.request.method} {response.request.url.path} {response.status_code}"
        headers = [f"{name}: {text}" for name, text in response.headers.multi_items() if name != "set-cookie"]
        self.heard.append((where, "\n".join([*headers, response.text])))

    def tells(self, secrets: Sequence[str]) -> list[str]:
        """Where a secret showed, in whatever spelling."""
        return [
            f"{where}: {secret}"
            for where, text in self.heard
            for secret in secrets
            if any(spelling in text.lower() for spelling in (secret.lower(), quote(secret.lower(), safe="")))
        ]


class Secrets:
    """The addresses and tokens that a session used."""

    def __init__(self) -> None:
        self.emails: list[str] = []
        self.tokens: list[str] = []

    def email(self, name: str) -> str:
        self.emails.append(new_email(name))
        return self.emails[-1]

    def token(self, email: Any, **claims: Any) -> str:
        self.tokens.append(token(email, **claims))
        return self.tokens[-1]

    @property
    def all(self) -> list[str]:
        signatures = [text.rpartition(".")[2] for text in self.tokens]
        payloads = [text.split(".")[1] for text in self.tokens]
        return [*KEYS, *self.emails, *filter(None, signatures), *payloads]


@contextmanager
def session(directory: Path, upstream: str, **more: str) -> Iterator[tuple[Server, Eavesdropper]]:
    settings = {"SCQ_IDENTIFY": "asserted", "SCQ_ADMIN_TOKEN": ADMIN_TOKEN, **more}
    with running(directory, upstream, True, **settings) as server:
        yield server, Eavesdropper(server)


def play(server: Server, secrets: Secrets) -> None:
    """Pages that do everything there is, right and wrong."""
    ann, bob, typed = secrets.email("ann"), secrets.email("bob"), secrets.email("typed")
    browser = Browser(server)
    browser.push(track("cart-1"), identify(email=typed, firstName="T", company="C"), track("typed-1", "vip"))
    log_in, push_id = identify(email=bob, token=secrets.token(ann, contact={"tags": ["vip"]})), new_id()
    for _ in range(2):
        browser.push(log_in, track("cart-1"), identify(email=bob, company="X"), ids=[push_id, new_id(), new_id()])
    browser.push(identify(newEmail=bob, customFields={"x": ann}), track("vip"), ["consent", "denied"], track("cart-1"))
    browser.push(["consent", "granted"], identify(token=secrets.token(bob)), ["reset"], track("cart-2"))
    browser.push(track(ann), track("cart-1", f"of {ann}"), track(remove=[ann]))
    browser.push(track("cart-3"), s="0" * 32)
    Browser(server, origin=LOCAL).push(identify(token=secrets.token(bob)), track("cart-1"))
    for bad in (
        secrets.token(ann, exp_in=-60),
        secrets.token(ann, exp_in=7200),
        secrets.token(ann, aud="other"),
        secrets.token(ann, key="x" * 40),
        secrets.token(f"no address, {ann}"),
        secrets.token([ann]),
        secrets.token(ann, contact=[ann]),
        secrets.token(ann, contact={"tags": ann, "firstName": [ann]}),
        secrets.token(ann, headers={"kid": ann}),
        secrets.token(ann)[:-4],
    ):
        browser.push(identify(token=bad), [ann, {"email": ann}], identify(email=f"{ann} {ann}"), identify(email=[ann]))


def stumble(server: Server, secrets: Secrets) -> None:
    """Requests that are refused as a whole, each quoting what must not come back."""
    ann = secrets.email("wrong")
    quoting = json.dumps({"email": ann, "token": secrets.token(ann)}).encode()
    good = json.dumps({"v": 1, "pushes": []}).encode()
    server.send(quoting)
    server.send(quoting + b"\xff")
    server.send(b'{"v":1,"pushes":["' + ann.encode())
    server.send(b"[" * 50_000 + ann.encode())
    server.send(good, origin=f"https://{ann}")
    server.send(good, origin=f"https://{ann}", sec_fetch_site="same-origin")
    server.send(good, origin="")
    server.send(good, sec_fetch_site="cross-site")
    server.send(good, cookie=f"__Host-scq={ann}; scq={secrets.token(ann)}")
    server.send(good, x_forwarded_for=ann, content_type=ann, referer=f"https://{ann}/")
    server.send(quoting * 2000)
    server.send({"v": 1, "s": ann, "pushes": [{"id": ann, "call": ["track", {ann: ann}]}] * 51})
    server.send({"v": 1, "s": ann, "pushes": [{"id": ann, "call": ["track", {ann: ann}]}]})
    server.send({"v": ann, "pushes": ann})
    for method in ("GET", "PUT", "OPTIONS"):
        server.client.request(method, "/scq/push", params={"email": ann}, headers={"Origin": SHOP})
    for path in (
        f"/{ann}",
        f"/scq/{ann}",
        f"/prod/{ann}.js",
        f"/scq/scq.{ann}.js",
        f"/api/v1/contact/track?email={ann}",
    ):
        server.client.get(path)
        server.client.post(path, content=quoting)
    server.raw(f"GET /{ann} HTTP/1.1\r\nAuthorization Bearer\r\n\r\n".encode())


def upset(server: Server, sandbox: Sandbox, secrets: Secrets) -> None:
    """A SendX that fails for one contact after another, in every way, and quotes the address in its answer."""
    for fault in FAULTS:
        email, browser = secrets.email("upset"), Browser(server)
        quoting = fault if fault.body is None else Fault(status=fault.status, body=fault.body % email)
        sandbox.faults.script(email, quoting)
        browser.push(identify(token=secrets.token(email)), track("cart-1"))
        eventually(lambda email=email: requests_about(sandbox, email))  # type: ignore[misc]


def look_around(server: Server) -> None:
    """What an operator sees, and what a stranger does."""
    for path in ("/metrics", "/scq/status", "/healthz", "/readyz", "/scq/check", "/scq/scq.js"):
        for accept in ("*/*", "text/html"):
            right = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": accept}
            server.client.get(path, headers=right)
        server.client.get(path, headers={"Authorization": f"Bearer x{ADMIN_TOKEN}"})


def run(ears: Eavesdropper, server: Server, *arguments: str, **more: str) -> int:
    """Run a command with the server's settings; its output is heard."""
    said = scq(*arguments, cwd=server.directory, **server.settings | more)
    ears.heard.append((f"scq-proxy {arguments[0]}", said.out + said.err))
    return said.code


def listen_to_logs(ears: Eavesdropper, server: Server) -> None:
    ears.heard += [(f"log: {line}", line) for line in server.log.splitlines()]


def test_a_lively_session_tells_no_secrets(tmp_path: Path, sandbox: Sandbox, upstream: str) -> None:
    secrets = Secrets()
    with session(tmp_path, upstream) as (server, ears):
        play(server, secrets)
        stumble(server, secrets)
        upset(server, sandbox, secrets)
        last = secrets.email("last")
        Browser(server).push(identify(token=secrets.token(last)), track("cart-end"))
        arrives(sandbox, last, "+cart-end")
        look_around(server)
        run(ears, server, "status")
        run(ears, server, "status", "--json")
        assert run(ears, server, "serve", SCQ_PORT=str(free_port())) == 2

        # A wrong key halts all sending, so it comes last.
        sandbox.faults.stand("*", Fault(status=401))
        halting = secrets.email("halting")
        Browser(server).push(identify(token=secrets.token(halting)), track("cart-1"))
        eventually(lambda: requests_about(sandbox, halting))
        eventually(lambda: "halt" in server.client.get("/scq/status", headers=_admin()).text.lower())
        look_around(server)
        run(ears, server, "status")
        assert server.stop() == 0
        listen_to_logs(ears, server)
        assert len(ears.heard) >= 90  # about a hundred: some questions are repeated until the answer has come
        assert ears.tells(secrets.all) == []
        assert "Traceback" not in server.log


def test_the_legacy_dialect_tells_no_secrets_though_addresses_stand_in_its_urls(
    tmp_path: Path, sandbox: Sandbox, upstream: str
) -> None:
    secrets = Secrets()
    legacy = upstream.removesuffix("/rest")
    with session(tmp_path, legacy, SCQ_DIALECT="legacy", SCQ_TEAM_ID=TEAM) as (server, ears):
        upset(server, sandbox, secrets)
        last = secrets.email("last")
        Browser(server).push(identify(token=secrets.token(last)), track("cart-end"))
        arrives(sandbox, last, "+cart-end")
        look_around(server)
        run(ears, server, "status", "--json")
        assert server.stop() == 0
        listen_to_logs(ears, server)
        assert ears.tells(secrets.all) == []
        assert "Traceback" not in server.log


def test_a_sendx_that_cannot_be_reached_and_a_disk_at_its_floor_tell_no_secrets(tmp_path: Path) -> None:
    secrets = Secrets()
    with running(tmp_path, f"http://127.0.0.1:{free_port()}/api/v1/rest", SCQ_ADMIN_TOKEN=ADMIN_TOKEN) as server:
        ears, email = Eavesdropper(server), secrets.email("down")
        Browser(server).push(identify(token=secrets.token(email)), track("cart-1"))
        eventually(lambda: "error" in server.client.get("/scq/status", headers=_admin()).text)
        look_around(server)
        assert server.stop() == 0
        server.start(ready=False, more={"SCQ_MIN_FREE_MB": "1000000"})
        assert Browser(server).request(identify(token=secrets.token(email))).status_code == 503
        look_around(server)
        assert server.stop() == 0
        listen_to_logs(ears, server)
        assert ears.tells(secrets.all) == []
        assert "Traceback" not in server.log


def test_settings_that_are_refused_tell_no_secrets(tmp_path: Path, upstream: str) -> None:
    with session(tmp_path, upstream) as (server, ears):
        assert server.stop() == 0
        for name, text in {
            "SCQ_SECRET_KEYS": f"{COOKIE_KEY},short",
            "SCQ_IDENTITY_KEYS": f"{IDENTITY_KEY},kid=short",
            "SCQ_API_KEY": f"{API_KEY}\x07",
            "SCQ_UPSTREAM": f"https://user:{API_KEY}@sendx.example/?key={API_KEY}",
            "SCQ_STORE": f"sqlite:///{tmp_path}/x/{new_id()}/scq.db",
            "SCQ_ADMIN_TOKEN": ADMIN_TOKEN[:31],
            f"SCQ_{API_KEY}": "x",
        }.items():
            assert run(ears, server, "serve", **{name: text}) == 2, name
        assert ears.tells([*KEYS, ADMIN_TOKEN[:31]]) == []


def _admin() -> dict[str, str]:
    return {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": "application/json"}
