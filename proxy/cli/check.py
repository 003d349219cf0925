"""`scq-proxy check`: is this configuration sound, and does the way through it work? One finding a line, each with what to do."""

import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import httpx
import msgspec

from proxy.config.settings import Settings
from proxy.config.types import IdentifyMode, PostgresUrl, Secret, SqliteUrl
from proxy.core.calls import Attributes
from proxy.core.cookies import ProbeCodec, cookie_name
from proxy.core.hosts import ip_or_none
from proxy.core.retry import Verdict
from proxy.core.tokens import TokenCodec, TokenProblem
from proxy.delivery.account import VERDICT_ADVICE
from proxy.delivery.sendx import Client, Upstream
from proxy.delivery.unreached import ADVICE as CONNECTION_ADVICE
from proxy.errors import StoreError
from proxy.ops.control import ask_once, ask_processes
from proxy.ops.pages import AskDurability, AskReport
from proxy.ops.report import Report, missing_server, read_report, together
from proxy.store.records import Durability
from proxy.stores import assess_database, open_existing
from proxy.web.paths import Paths

_SECONDS = 10.0
# Words that stand in rules of EasyPrivacy or EasyList for paths on any site.
_LISTED = """
    ad ads advert analytics banner beacon collect collector counter event events fingerprint ga gtag gtm hit hits impression insights log
    matomo metric metrics pageview ping pixel plausible rum segment snowplow stat stats telemetry track tracker tracking umami
"""
_PRIVATE_BLOCKS = (IPv6Network("fc00::/7"), IPv6Network("fe80::/10"))

_ADVICE = {
    **VERDICT_ADVICE,
    Verdict.BUSY: "Try again in a minute.",
    Verdict.THROTTLED: "The account is over its rate limit: try again later.",
    Verdict.REJECTED: "Try another address.",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `text` may quote what another server said: escape it before a terminal sees it."""

    ok: bool
    text: str


def _fine(text: str) -> Finding:
    return Finding(ok=True, text=text)


def _mend(text: str) -> Finding:
    return Finding(ok=False, text=text)


def check_settings(settings: Settings) -> list[Finding]:
    """What is allowed and still likely to be a mistake. That the settings can be used at all, loading has shown."""
    origins = f"{len(settings.origins)} origin{'' if len(settings.origins) == 1 else 's'}"
    found = [_fine(f"settings: {origins}, dialect {settings.dialect}, identify {settings.identify}")]
    if not settings.tags:
        found.append(_mend("SCQ_TAGS is empty: every track is refused. List the tags that pages may add."))
    if "*" in settings.asserted_tags:
        found.append(_mend("SCQ_ASSERTED_TAGS offers every tag to anyone who types an address: list them instead."))
    if settings.asserted_tags and settings.identify is IdentifyMode.VERIFIED:
        found.append(_mend("SCQ_ASSERTED_TAGS has no effect with SCQ_IDENTIFY=verified: remove it or set asserted."))
    if wide := [str(network) for network in settings.trusted_proxies if _is_too_wide(network)]:
        wrong = (
            f"SCQ_TRUSTED_PROXIES is too wide with {' and '.join(wide)}: strangers in it could choose the client address that limits "
            "are counted by. List the addresses of your own proxies."
        )
        found.append(_mend(wrong))
    for names in _sharing_a_key(settings):
        shared = f"{', '.join(names[:-1])} and {names[-1]} hold the same key: one leak compromises every one of them."
        found.append(_mend(f"{shared} Give each its own; `scq-proxy keygen` makes one."))
    return found


def _is_too_wide(network: IPv4Network | IPv6Network) -> bool:
    """Returns whether the network is larger than any that one operator has.

    The largest are 10.0.0.0/8, and in IPv6 the private blocks and the /16 of a few operators.
    """
    if isinstance(network, IPv4Network):
        return network.prefixlen < 8
    return network.prefixlen < 16 and not any(network.subnet_of(block) for block in _PRIVATE_BLOCKS)


def _sharing_a_key(settings: Settings) -> Sequence[tuple[str, ...]]:
    """Returns the names of settings that have a key in common. An identity key counts with and without its kid."""
    identity = [key.secret for key in settings.identity_keys]
    identity += [Secret(f"{key.kid}={key.secret.reveal()}") for key in settings.identity_keys if key.kid is not None]
    given = {
        "SCQ_API_KEY": [settings.api_key],
        "SCQ_SECRET_KEYS": settings.secret_keys,
        "SCQ_IDENTITY_KEYS": identity,
        "SCQ_SERVER_KEYS": settings.server_keys,
        "SCQ_ADMIN_TOKEN": [settings.admin_token] if settings.admin_token is not None else [],
    }
    keys = dict.fromkeys(key for several in given.values() for key in several)
    users = [tuple(name for name, several in given.items() if key in several) for key in keys]
    return [names for names in dict.fromkeys(users) if len(names) > 1]


async def check_store(settings: Settings) -> list[Finding]:
    """Durability as read back from the store, from the running server if there is one."""
    match settings.store:
        case SqliteUrl(path):
            return await _check_file(path.absolute())
        case PostgresUrl() as database:
            return await _check_database(database, unsafe=settings.store_unsafe)


async def _check_file(path: Path) -> list[Finding]:
    """Returns the findings of the running server or, if none runs, of the file."""
    wrong: list[Finding] = []
    server = "a server is running"
    try:
        try:
            wrong = _wrong(await ask_once(path, AskReport(), Report))
            durability = await ask_once(path, AskDurability(), Durability)
        except ConnectionError:
            if (missing := _missing_store(path)) is not None:
                return [missing]
            server = "no server is running"
            async with open_existing(SqliteUrl(path)) as outbox:
                durability, report = await outbox.durability(), await read_report(outbox)
            wrong = [*(_mend(f"server: {problem}") for problem in missing_server(report)), *_wrong(report)]
    except StoreError as error:
        return wrong or [_mend(f"store: {error.message}")]
    return [_fine(f"store: {durability.promise} ({_listed(durability.facts)}); {server}"), *wrong]


def _wrong(report: Report) -> list[Finding]:
    return [_mend(f"{each.kind}: {each.sentence}") for each in report.conditions]


async def _check_database(store: PostgresUrl, *, unsafe: bool) -> list[Finding]:
    found = []
    if unsafe:
        wrong = "SCQ_STORE_UNSAFE is 1: acknowledged pushes could be lost. Set it to 0 to serve for real."
        found.append(_mend(wrong))
    try:
        assessment = await assess_database(store)
        found += [_mend(f"store: {problem}") for problem in assessment.problems]
        if assessment.problems:
            return [*found, _fine(f"store: the server says of itself: {_listed(assessment.facts)}")]
        if assessment.trouble:
            return [*found, _mend(f"store: {assessment.trouble}")]
        async with open_existing(store) as outbox:
            durability = await outbox.durability()
            report = together(await ask_processes(store.place, AskReport(), Report) or [await read_report(outbox)])
    except StoreError as error:
        return [*found, _mend(f"store: {error.message}")]
    found.append(_fine(f"store: {durability.promise} ({_listed(durability.facts)})"))
    if assessment.failover:
        found.append(_fine(f"store: {assessment.failover}"))
    return [*found, *_wrong(report)]


def _listed(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _missing_store(path: Path) -> Finding | None:
    """Returns what to say of a store that serve would make; None if there is one, or nowhere to make it."""
    if path.exists() or not path.parent.is_dir():
        return None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return _mend(f"store: this user may not write in {path.parent}: change its owner, or SCQ_STORE.")
    return _fine(f"store: {path} does not exist yet; serve creates it")


async def check_send(settings: Settings, email: str) -> list[Finding]:
    """A real identify, with nothing but the address."""
    upstream = Upstream(settings.dialect, settings.upstream, settings.api_key, settings.team_id, settings.delivered)
    async with Client(timeout_seconds=settings.upstream_timeout_seconds) as client:
        answer = await client.send(upstream.request_for(email, Attributes()))
    took = f"{answer.latency_seconds:.2f} s"
    if answer.verdict is Verdict.DELIVERED:
        return [_fine(f"SendX: it took the identify ({took})")]
    of_verdicts = _ADVICE.get(answer.verdict, "Try again; if that does not help, check SCQ_UPSTREAM.")
    advice = CONNECTION_ADVICE.get(answer.detail, of_verdicts)
    return [_mend(f"SendX: it did not take the identify ({took}): {answer.detail}. {advice}")]


def explain_token(settings: Settings, token: str, now: float) -> list[Finding]:
    codec = TokenCodec([(key.kid, key.secret.reveal()) for key in settings.identity_keys])
    outcome = codec.verify(token.strip(), now)
    if isinstance(outcome, TokenProblem):
        return [_mend(f"token: {outcome.reason}, {outcome.detail}")]
    findings = [_fine("token: it identifies its e-mail address as verified")]
    if outcome.ignored:
        findings.append(_mend(f"token: dropped, because SendX could not take it: {', '.join(outcome.ignored)}"))
    return findings


async def check_public(settings: Settings, url: str) -> list[Finding]:
    """The way a browser takes, through whatever stands before the proxy: script, headers, cookie, client address.

    `url`: without a slash at its end, user name, query or fragment.
    """
    parts = httpx.URL(url)
    origin = f"{parts.scheme}://{parts.netloc.decode('ascii')}"
    paths = Paths(parts.path.rstrip("/"), settings.script, settings.endpoint)
    async with httpx.AsyncClient(timeout=_SECONDS, follow_redirects=False) as client:
        try:
            found = await _check_script(client, origin, paths)
            found += await _check_push(client, settings, origin, paths)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            return [_mend(f"{url} cannot be reached ({why}): is the proxy running, and routed there?")]
    return found + _listed_names(paths)


async def _check_script(client: httpx.AsyncClient, origin: str, paths: Paths) -> list[Finding]:
    url = origin + paths.script_path
    answer = await client.get(url, headers={"Accept-Encoding": "br, gzip"})
    if answer.status_code != 200 or "javascript" not in answer.headers.get("content-type", ""):
        return [_mend(f"{url} answers {answer.status_code}, not the script: route this path to the proxy.")]
    found = _check_endpoint(answer.content, origin, paths)
    encoding = answer.headers.get("content-encoding")
    if encoding is None or "etag" not in answer.headers:
        return [_mend("script: served, but on the way its compression or its ETag was removed."), *found]
    return [_fine(f"script: served, compressed with {encoding}"), *found]


def _check_endpoint(script: bytes, origin: str, paths: Paths) -> list[Finding]:
    """Compares the endpoint in the script, which is that of the path that the proxy was asked for, with that of the path that pages ask for."""
    named = re.findall(rf'"((?:/[A-Za-z0-9._~-]+)+/{re.escape(paths.endpoint)})"'.encode(), script)
    if paths.push.encode() in named:
        return []
    if not named:
        wrong = "it does not name that endpoint. The proxy there has another SCQ_ENDPOINT or version, or something keeps an old script."
        return [_mend(f"script: it should post to {paths.push}, and {wrong}")]
    wrong = (
        f"script: a web server renames the path, so the script that pages find at {paths.script_path} posts to {named[0].decode()}. "
        f'Put data-src="{origin}{paths.script_path}" on its tag, or let the web server pass the path on as it is and set SCQ_PREFIX to match.'
    )
    return [_mend(wrong)]


def _listed_names(paths: Paths) -> list[Finding]:
    found = []
    for path in (paths.script_path, paths.push):
        if listed := [word for word in re.split("[^a-z0-9]+", path.lower()) if word in _LISTED.split()]:
            wrong = f"{path}: blocking lists know “{listed[0]}”. Choose a name of your own (SCQ_PREFIX, SCQ_SCRIPT, SCQ_ENDPOINT)."
            found.append(_mend(wrong))
    return found


async def _check_push(client: httpx.AsyncClient, settings: Settings, origin: str, paths: Paths) -> list[Finding]:
    body = {"v": 1, "pushes": [{"id": secrets.token_hex(16), "call": ["consent", "granted"]}]}
    page = {"Origin": origin, "Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"}
    url = origin + paths.push
    answer = await client.post(url, content=msgspec.json.encode(body), headers=page)
    if answer.status_code != 202:
        message = _object(answer).get("message", "it is not the proxy that answers.")
        return [_mend(f"{url} answers {answer.status_code}: {message}")]
    found = [_fine("push: acknowledged with 202")]
    name = cookie_name(origin)
    cookie = answer.headers.get("set-cookie", "")
    if not cookie.startswith(f"{name}="):
        found.append(_mend(f"cookie: the answer does not set {name}; does something on the way remove Set-Cookie?"))
        return found
    found.append(_fine(f"cookie: {name} is set"))
    return [*found, *await _check_seen(client, settings, origin + paths.prefix, cookie.partition(";")[0])]


async def _check_seen(client: httpx.AsyncClient, settings: Settings, url: str, cookie: str) -> list[Finding]:
    """What arrives at the proxy: only it can tell, and it tells whoever has its signing key."""
    probe = ProbeCodec([key.reveal() for key in settings.secret_keys]).sign(time.time())
    answer = await client.get(f"{url}/check", headers={"Cookie": cookie, "X-Scq-Check": probe})
    seen = _object(answer)
    if answer.status_code != 200 or "client" not in seen:
        return [_mend("client address: the proxy there has other SCQ_SECRET_KEYS than these settings.")]
    return explain_seen(seen, cookie.partition("=")[0])


def explain_seen(seen: Mapping[str, object], cookie: str) -> list[Finding]:
    """Judges what the proxy saw of a request: its cookies' names and the client address it counts by."""
    found = []
    if cookie not in str(seen.get("cookies")).split(","):
        found.append(_mend("cookie: it does not reach the proxy; something on the way removes the Cookie header."))
    address = str(seen.get("client"))
    ip = ip_or_none(address.partition("/")[0])
    if ip is not None and ip.is_private and seen.get("forwarded"):
        wrong = (
            f"client address: this request came through a reverse proxy and counts as {address}. Unless you ran this "
            "behind that proxy yourself, add its address to SCQ_TRUSTED_PROXIES."
        )
        found.append(_mend(wrong))
    else:
        found.append(_fine(f"client address seen: {address}"))
    return found


def _object(answer: httpx.Response) -> Mapping[str, object]:
    try:
        found = answer.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
