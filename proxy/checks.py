"""`scq-proxy check`: is this configuration sound, and does the way through it work? One finding a line, each with what to do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx
import msgspec

from proxy.app import open_store_file
from proxy.control import ask
from proxy.errors import StoreError
from proxy.identity import ProbeCodec, TokenCodec, TokenProblem, cookie_name
from proxy.outbox import Durability
from proxy.pushes import Attributes, clean_address
from proxy.retry import Verdict
from proxy.sendx import Client, Upstream
from proxy.settings import Identify, Settings

_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    ok: bool
    text: str


def check_settings(settings: Settings) -> list[Finding]:
    """What is allowed and still likely to be a mistake. That the settings can be used at all, loading has shown."""
    found = [
        Finding(
            True, f"settings: {len(settings.origins)} origins, dialect {settings.dialect}, identify {settings.identify}"
        )
    ]
    if not settings.tags:
        found.append(Finding(False, "SCQ_TAGS is empty: every track is refused. List the tags that pages may add."))
    if "*" in settings.asserted_tags:
        found.append(
            Finding(False, "SCQ_ASSERTED_TAGS offers every tag to anyone who types an address: list them instead.")
        )
    if settings.asserted_tags and settings.identify is Identify.VERIFIED:
        found.append(
            Finding(False, "SCQ_ASSERTED_TAGS has no effect with SCQ_IDENTIFY=verified: remove it or set asserted.")
        )
    return found


async def check_store(settings: Settings) -> list[Finding]:
    """Durability as read back from the store, from the running server if there is one."""
    if settings.store.path is None:
        return [Finding(False, "SCQ_STORE: PostgreSQL is not supported yet, set SCQ_STORE=sqlite:///scq.db.")]
    path = settings.store.path.absolute()
    try:
        answers = [answer async for answer in ask(path, "durability")]
        running, durability = True, msgspec.convert(answers[0], Durability)
    except (ConnectionError, FileNotFoundError):
        if not path.exists():
            return [Finding(True, f"store: {path} does not exist yet, serve makes it")]
        try:
            async with open_store_file(path) as outbox:
                running, durability = False, await outbox.durability()
        except StoreError as error:
            return [Finding(False, f"store: {error.message}")]
    facts = ", ".join(f"{name} {value}" for name, value in durability.facts.items())
    server = "a server is running" if running else "no server is running"
    return [Finding(True, f"store: {durability.promise} ({facts}); {server}")]


async def check_send(settings: Settings, email: str) -> list[Finding]:
    """A real identify, with nothing but the address."""
    if clean_address(email) is None:
        return [Finding(False, "--send takes an e-mail address that may be identified for real.")]
    upstream = Upstream(settings.dialect, settings.upstream, settings.api_key, settings.team_id)
    async with Client(upstream, timeout_seconds=settings.upstream_timeout_seconds) as client:
        answer = await client.send(upstream.request_for(email, Attributes()))
    took = f"{answer.latency_seconds:.2f} s"
    if answer.verdict is Verdict.DELIVERED:
        return [Finding(True, f"SendX took the identify ({took})")]
    return [
        Finding(
            False,
            f"SendX did not take the identify ({took}): {answer.detail}. Check SCQ_API_KEY, SCQ_UPSTREAM, SCQ_DIALECT.",
        )
    ]


def explain_token(settings: Settings, token: str, now: float) -> list[Finding]:
    """Whether the proxy would believe this identity token, and if not, why."""
    codec = TokenCodec([(key.kid, key.secret.reveal()) for key in settings.identity_keys])
    outcome = codec.verify(token.strip(), now)
    if isinstance(outcome, TokenProblem):
        return [Finding(False, f"token: {outcome.reason}, {outcome.detail}")]
    return [Finding(True, "token: it identifies its e-mail address as verified")]


async def check_public(settings: Settings, url: str) -> list[Finding]:
    """The way a browser takes, through whatever stands before the proxy: script, headers, cookie, client address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [Finding(False, "--url takes the public address with the prefix: https://www.example.com/scq")]
    origin = f"{parts.scheme}://{parts.netloc}".lower()
    async with httpx.AsyncClient(timeout=_SECONDS, follow_redirects=False) as client:
        try:
            return [
                await _check_script(client, url),
                *await _check_push(client, settings, url, origin),
            ]
        except httpx.HTTPError as error:
            return [
                Finding(
                    False, f"{url} cannot be reached ({type(error).__name__}): is the proxy running and routed there?"
                )
            ]


async def _check_script(client: httpx.AsyncClient, url: str) -> Finding:
    answer = await client.get(f"{url}/scq.js", headers={"Accept-Encoding": "br, gzip"})
    if answer.status_code != 200 or "javascript" not in answer.headers.get("content-type", ""):
        return Finding(
            False, f"{url}/scq.js answers {answer.status_code}, not the script: route this path to the proxy."
        )
    encoding = answer.headers.get("content-encoding")
    if encoding is None or "etag" not in answer.headers:
        return Finding(False, "script: served, but on the way its compression or its ETag was removed.")
    return Finding(True, f"script: served, compressed with {encoding}")


async def _check_push(client: httpx.AsyncClient, settings: Settings, url: str, origin: str) -> list[Finding]:
    body = {"v": 1, "pushes": [{"id": secrets.token_hex(16), "call": ["consent", "granted"]}]}
    page = {"Origin": origin, "Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"}
    answer = await client.post(f"{url}/push", content=msgspec.json.encode(body), headers=page)
    if answer.status_code != 202:
        return [Finding(False, f"{url}/push answers {answer.status_code}: {_message(answer)}")]
    found = [Finding(True, "push: acknowledged with 202")]
    name = cookie_name(origin)
    cookie = answer.headers.get("set-cookie", "")
    if not cookie.startswith(f"{name}="):
        found.append(
            Finding(False, f"cookie: the answer does not set {name}; does something on the way remove Set-Cookie?")
        )
        return found
    found.append(Finding(True, f"cookie: {name} is set"))
    return [*found, *await _check_seen(client, settings, url, cookie.partition(";")[0])]


async def _check_seen(client: httpx.AsyncClient, settings: Settings, url: str, cookie: str) -> list[Finding]:
    """What arrives at the proxy: only it can tell, and it tells whoever has its signing key."""
    probe = ProbeCodec([key.reveal() for key in settings.secret_keys]).sign(time.time())
    answer = await client.get(f"{url}/check", headers={"Cookie": cookie, "X-Scq-Check": probe})
    if answer.status_code != 200:
        return [Finding(False, "client address: the proxy there has other SCQ_SECRET_KEYS than these settings.")]
    return explain_seen(answer.json(), cookie.partition("=")[0])


def explain_seen(seen: Mapping[str, object], cookie: str) -> list[Finding]:
    """Judges what the proxy saw of a request: its cookies' names and the client address it counts by."""
    found = []
    if cookie not in str(seen.get("cookies")).split(","):
        found.append(
            Finding(False, "cookie: it does not reach the proxy; something on the way removes the Cookie header.")
        )
    address = str(seen.get("client"))
    if _is_local(address) and seen.get("forwarded"):
        found.append(
            Finding(
                False,
                f"client address: every visitor counts as {address}: add the reverse proxy to SCQ_TRUSTED_PROXIES.",
            )
        )
    else:
        found.append(Finding(True, f"client address seen: {address}"))
    return found


def _is_local(address: str) -> bool:
    try:
        return ip_address(address.partition("/")[0]).is_private
    except ValueError:
        return False


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return "it is not the proxy that answers."
