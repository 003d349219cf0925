"""Speaks to SendX: turns a push into a request in one of its two dialects, and the answer into a verdict.

Requests are byte for byte what SendX's own SDKs send (source: SendX docs and runs of its Python and Node SDKs). A verdict is
read from the HTTP status; at most 64 KB of the body are read, to verify a success and to quote SendX's error to the operator, without
addresses and keys. The bulk call is not used: its behaviour on partial failure is undocumented.

Sends when told to. `lane` decides when, in what order, and what follows from the answer.
"""

import html
import json
import re
import ssl
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote

import httpx

from proxy import __version__
from proxy.config.types import Acceptance, Dialect, Secret
from proxy.core.calls import FIELDS, Attributes, Track
from proxy.core.retry import Call, Verdict, retry_after_seconds, verdict_for
from proxy.delivery.answers import bears_out, is_an_error
from proxy.delivery.connection import MAX_ANSWER_BYTES, Answer, Connection, Failure

MAX_DETAIL = 200  # characters
_QUOTED = 80  # characters of an answer that is not SendX's
_MAX_MASKED = 1_000
_URI_COMPONENT = "-_.!~*'()"  # what JavaScript's encodeURIComponent leaves as it is
_ADDRESS = re.compile(r"[^\s\"'<>,;:()\[\]{}=&?]+(?:@|%40)[^\s\"'<>,;:()\[\]{}=&?]+", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,40}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendxRequest:
    """One request. Its repr shows no address, key or body."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    address: str = field(repr=False)
    call: Call
    key: Secret
    acceptance: Acceptance


@dataclass(frozen=True, slots=True)
class Upstream:
    """The address and dialect of SendX's API. `base_url` without a trailing slash; `team_id` with `legacy` only.

    `acceptance`: which 2xx answers count as delivered.
    """

    dialect: Dialect
    base_url: str
    api_key: Secret
    team_id: str | None = None
    acceptance: Acceptance = Acceptance.JSON

    def request_for(self, address: str, body: Attributes | Track) -> SendxRequest:
        """Returns the request for one push, or for several that were merged into one body."""
        if self.dialect is Dialect.LEGACY:
            return self._legacy(address, body)
        payload = _track_payload(address, body) if isinstance(body, Track) else _identify_payload(address, body)
        return self._request(_path(body), json.dumps(payload).encode("ascii"), address, _call(body))

    def request_to_list_tags(self) -> SendxRequest:
        """Returns a request that changes nothing and needs the key (source: SendX docs and SDKs, both dialects)."""
        query = self._team_query() if self.dialect is Dialect.LEGACY else ""
        return self._request(f"/tag{query}", b"", "", Call.LIST_TAGS)

    def _team_query(self) -> str:
        return f"?team_id={quote(self.team_id or '', safe=_URI_COMPONENT)}"

    def _legacy(self, address: str, body: Attributes | Track) -> SendxRequest:
        query = self._team_query()
        payload: Mapping[str, Any]
        if isinstance(body, Track):
            query += f"&email={quote(address, safe=_URI_COMPONENT)}"
            payload = {"addTags": body.add_tags, "removeTags": body.remove_tags}
        else:
            payload = _identify_payload(address, body)
        text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
        return self._request(_path(body) + query, text.encode("utf-8", "replace"), address, _call(body))

    def _request(self, path: str, content: bytes, address: str, call: Call) -> SendxRequest:
        key_header = "api_key" if self.dialect is Dialect.LEGACY else "X-Team-ApiKey"
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # an answer is a few bytes; a compressed one could be anything
            "Content-Type": "application/json",
            "User-Agent": f"scq-proxy/{__version__}",
            key_header: self.api_key.reveal(),
        }
        return SendxRequest(
            method="GET" if call is Call.LIST_TAGS else "POST",
            url=self.base_url + path,
            headers=headers,
            content=content,
            address=address,
            call=call,
            key=self.api_key,
            acceptance=self.acceptance,
        )


def _call(body: Attributes | Track) -> Call:
    return Call.TRACK if isinstance(body, Track) else Call.IDENTIFY


def _path(body: Attributes | Track) -> str:
    return "/contact/track" if isinstance(body, Track) else "/contact/identify"


def _track_payload(address: str, track: Track) -> dict[str, Any]:
    payload: dict[str, Any] = {"email": address}
    if track.add_tags or not track.remove_tags:
        payload["addTags"] = track.add_tags
    if track.remove_tags:
        payload["removeTags"] = track.remove_tags
    return payload


def _identify_payload(address: str, attributes: Attributes) -> dict[str, Any]:
    payload: dict[str, Any] = {"email": address}
    payload |= {name: attributes.fields[name] for name in FIELDS if name in attributes.fields}
    if attributes.custom_fields:
        payload["customFields"] = attributes.custom_fields
    if attributes.tags:
        payload["tags"] = attributes.tags
    if attributes.new_email is not None:
        payload["newEmail"] = attributes.new_email
    return payload | {name: value for name, value in attributes.extra.items() if name not in payload}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to one request, or the lack of it.

    `status` is None without an answer; `detail` is for the operator and safe to show. `retry_after_seconds`: what SendX asks for.
    `timed_out`: the deadline passed, a sign of overload.
    """

    verdict: Verdict
    status: int | None
    detail: str
    latency_seconds: float
    retry_after_seconds: float | None = None
    timed_out: bool = False


_PHRASES = {known.value: known.phrase for known in HTTPStatus}


def error_detail(status: int, body: bytes, *, hide: tuple[str, ...] = ()) -> str:
    """Returns the status and SendX's error (`.message`, else `.error`; source: SendX docs), without addresses and secrets.

    `hide`: texts that must not appear: the key, the contact's address.
    """
    phrase = _phrase(status)
    said = _masked(_said(body), hide)[:MAX_DETAIL] if body else ""
    return f"{phrase}: {said}" if said else phrase


# They say something against account, base URL or network: who it was that said it is in the words.
_QUOTING = (Verdict.UNCLEAR, Verdict.UNAUTHORIZED, Verdict.REFUSED, Verdict.MISDIRECTED)


def quoting_detail(status: int, body: bytes, media_type: str | None, *, hide: tuple[str, ...] = ()) -> str:
    """Returns what came in place of an answer of SendX: its type, size and first words, without addresses and secrets."""
    known = _MEDIA_TYPE.match(media_type or "")
    size = f"{len(body):,} bytes" if len(body) < MAX_ANSWER_BYTES else "64 KB or more"
    words = _masked(_text(body), hide)[:_QUOTED]
    came = f"{known[0].lower() if known else 'no content type'}, {size}" if body else "empty body"
    quoted = f': "{words}"' if words else ""
    counted = f", which SCQ_DELIVERED={Acceptance.JSON} does not count as delivered" if status // 100 == 2 else ""
    return f"{_phrase(status)}{counted} ({came}{quoted})"


def _phrase(status: int) -> str:
    return f"{status} {_PHRASES.get(status, '')}".strip()


def _text(body: bytes) -> str:
    """Returns the text of a body without markup, and without escapes that could hide an address."""
    text = body.decode("utf-8", "replace")
    try:
        text = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace").decode()
    except (ValueError, RecursionError):
        text = html.unescape(_TAG.sub(" ", text))
    return text


def _masked(said: str, hide: tuple[str, ...]) -> str:
    if (
        len(said) > _MAX_MASKED
    ):  # bounds the work of masking; a word that is cut in two could be half an address, so it goes whole
        said = re.sub(r"\S*\Z", "", said[:_MAX_MASKED])
    said = _printable(said)  # before anything is masked: an invisible character within an address would hide it
    for text in sorted(filter(None, hide), key=len, reverse=True):
        said = re.sub(re.escape(text), "***", said, flags=re.IGNORECASE)
    return _ADDRESS.sub("***", said)


def _said(body: bytes) -> str:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(answer, dict):
        return ""
    return next((text for key in ("message", "error") if isinstance(text := answer.get(key), str) and text), "")


def _printable(text: str) -> str:
    """Returns one line that is safe for any store, log or terminal: no control characters, lone surrogates or invisible characters."""
    seen = (" " if each.isspace() or unicodedata.category(each) == "Cc" else each for each in text)
    return " ".join("".join(each for each in seen if each.isprintable()).split())


class Client:
    """One sender's connection to SendX: one request at a time, no environment proxies, no redirects followed.

    `timeout_seconds` is the deadline of a whole request, from connecting to the last byte of the answer. `tls` trusts the public authorities
    by default. Use as an async context manager.
    """

    def __init__(
        self, *, timeout_seconds: float, clock: Callable[[], float] = time.time, tls: ssl.SSLContext | None = None
    ) -> None:
        self._clock = clock
        self._connection = Connection(tls or _tls_context(), timeout_seconds=timeout_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.aclose()

    async def send(self, request: SendxRequest, *, repeatable: bool = True) -> Reply:
        """Sends a request once. Returns network failures as a reply; an exception is a defect of this program. `repeatable`: see `Connection`."""
        started = time.monotonic()
        received = await self._connection.exchange(
            request.method, request.url, request.headers, request.content, repeatable=repeatable
        )
        latency = time.monotonic() - started
        if isinstance(received, Failure):
            return _no_answer(received, latency)
        reply = self._answer(request, received, latency)
        if reply.verdict is Verdict.BUSY:
            # A 421 is about this connection (RFC 9110, 15.5.20), and a server closes it after a 408.
            await self._connection.aclose()
        return reply

    def _answer(self, request: SendxRequest, received: Answer, latency: float) -> Reply:
        status, body, hide = received.status, received.body, (request.key.reveal(), request.address)
        success, by_status = status // 100 == 2, request.acceptance is Acceptance.ANY_2XX
        borne_out = by_status or (bears_out(body, request.call) if success else is_an_error(body))
        if success and not borne_out and received.cut is not None:
            return _no_answer(received.cut, latency)  # half an answer is none, and not that of somebody else
        verdict = verdict_for(status, request.call, borne_out=borne_out)
        if verdict in _QUOTING and not borne_out:
            detail = quoting_detail(status, body, received.header("content-type"), hide=hide)
        else:
            detail = error_detail(status, b"" if verdict is Verdict.DELIVERED else body, hide=hide)
        return Reply(
            verdict=verdict,
            status=status,
            detail=detail,
            latency_seconds=latency,
            retry_after_seconds=retry_after_seconds(received.header("retry-after"), self._clock()),
        )


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    # Reading the certificates takes tens of milliseconds, and would block the event loop for each client.
    context = httpx.create_ssl_context(trust_env=False)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_answer(failure: Failure, latency: float) -> Reply:
    return Reply(
        verdict=Verdict.UNAVAILABLE if failure.reached else Verdict.UNREACHED,
        status=None,
        detail=failure.detail,
        latency_seconds=latency,
        timed_out=failure.timed_out,
    )
