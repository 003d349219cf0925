"""The browser's edge: `POST {prefix}/{endpoint}`, answered 202 once every accepted push is durable.

Plain ASGI, because this is the hot path. Whole-request refusals come in the order of the wire contract: 405, 403, 429, 413, 400, 503;
nothing is parsed before the limits are checked, and no input leads to a 500. A page that may not push can read the 403 that says so, and
no other answer. It decides nothing about a push: `admission` does.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Collection, Sequence
from functools import lru_cache

import msgspec
from starlette.types import Receive, Scope, Send

from proxy.core.admission import judge, reads_of
from proxy.core.calls import BadPush, Identify, Push
from proxy.core.cookies import CookieCodec, cookie_name, read_cookie, set_cookie
from proxy.core.emails import lane_key
from proxy.core.parsing import parse_batch
from proxy.core.policy import Policy
from proxy.core.reasons import Status
from proxy.core.request import Candidate, Limits, PushAnswer, Request, Result
from proxy.core.strangers import Strangers, allowed_bytes, silence
from proxy.core.tokens import TokenCodec
from proxy.core.visitors import Trust, Visitor
from proxy.errors import RequestError, StoreUnavailable
from proxy.store.outbox import Outbox
from proxy.web.access import ClientAddresses, Headers, RateLimit, require_origin, scan, scan_script_request
from proxy.web.asgi import Gone, Header, read_body, send_error, send_json

_CHANCES = 1 << 20

log = logging.getLogger("proxy.push")

_ALLOW: Header = (b"allow", b"POST, OPTIONS")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,30}://[a-z0-9._:\[\]-]{0,300}")  # as browsers send it; "null" is anybody
_VARY: Header = (b"vary", b"Origin")
_PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", b"content-type"),
    (b"access-control-max-age", b"86400"),
)


class _Wire(msgspec.Struct, omit_defaults=True):
    results: tuple[Result, ...]
    s: str | None = None


class PushEndpoint:
    def __init__(
        self,
        outbox: Outbox,
        *,
        origins: Collection[str],
        client_addresses: ClientAddresses,
        rate: RateLimit,
        strangers: Strangers,
        strangers_bytes: int,
        policy: Policy,
        limits: Limits,
    ) -> None:
        self._outbox = outbox
        self._origins, self._client_addresses, self._rate = origins, client_addresses, rate
        self._strangers, self._strangers_bytes = strangers, strangers_bytes
        self._policy, self._limits = policy, limits
        self.use(CookieCodec([]), TokenCodec([]))

    def use(self, cookies: CookieCodec, tokens: TokenCodec) -> None:
        """From the next request on."""
        self._cookies, self._tokens = cookies, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        cors: tuple[Header, ...] = (_VARY,)
        try:
            headers = scan(scope["headers"])
            listed = headers.origin in self._origins  # its page may read the answer, refusals included
            if listed and method != "OPTIONS" and headers.fetch_site != "same-origin":
                cors = _cors(headers.origin or "")
            if method not in ("POST", "OPTIONS"):
                cors = (*cors, _ALLOW)
                raise RequestError(405, "method-not-allowed", "Send pushes by POST.")
            try:
                origin = require_origin(headers, self._origins)
            except RequestError:
                if method == "POST":
                    cors = _cors_of_refused(headers.origin)
                raise
            if method == "OPTIONS":
                allowed = (*_cors(origin), *_PREFLIGHT) if listed else (_VARY,)
                await send({"type": "http.response.start", "status": 204, "headers": allowed})
                await send({"type": "http.response.body"})
                return
            body, cookie = await self._push(scope, receive, headers, origin)
        except RequestError as error:
            await send_error(send, error, cors)
        except Gone:
            return
        except Exception:
            # A defect, which the server counts and logs. Nothing was stored, so the shim keeps its pushes.
            message = "The pushes could not be stored: the log of the proxy says more."
            await send_error(send, RequestError(503, "defect", message, retry_after=30), cors)
            raise
        else:
            await send_json(send, 202, body, (*cors, *cookie))

    async def _push(
        self, scope: Scope, receive: Receive, headers: Headers, origin: str
    ) -> tuple[bytes, tuple[Header, ...]]:
        """The body and the cookie of a 202."""
        client = scope.get("client")
        client_address = self._client_addresses.of(client[0] if client else None, headers.forwarded_for)
        self._rate.require(client_address, time.monotonic())
        self._rate.spend(client_address, 1, time.monotonic())  # before the body: many may be on their way at once
        content = await read_body(scope, receive, headers.content_length)
        batch, at = parse_batch(content), time.monotonic()
        self._rate.require_paid(client_address, at)
        self._rate.spend(client_address, max(0, len(batch.items) - 1), at)
        now, name = self._outbox.now(), cookie_name(origin)
        visitor = self._visitor(headers, name, now)
        unvouched = self._outbox.unvouched()
        most_bytes = allowed_bytes(self._strangers_bytes, unvouched.bytes, unvouched.headroom)
        over = self._strangers.has_used_up(client_address, most_bytes - unvouched.bytes, at)
        candidates = [self._candidate(item, client_address, now) for item in batch.items]
        request = Request(
            now=now,
            cookie=visitor,
            session=batch.session,
            gpc=headers.gpc,
            candidates=candidates,
            stranger=secrets.token_urlsafe(16) if batch.session is None else "",  # with a session value nobody asks
            client=client_address,
            over=over,
            full=self._full_lanes(candidates, visitor, client_address, at),
            most_bytes=most_bytes,
        )
        answer = await self._store(request)
        if self._policy.asserted_identify and (_has_typed(visitor) or any(map(_types, candidates))):
            chance = secrets.randbelow(_CHANCES) / _CHANCES
            await asyncio.sleep(silence(time.monotonic() - at, chance, len(candidates)))
        if answer.unvouched:
            self._charge(client_address, candidates, answer, len(content), at)
        if log.isEnabledFor(logging.DEBUG):
            _log_results(answer)
        cookie = self._cookies.encode(answer.visitor) if answer.visitor else None
        return (
            msgspec.json.encode(_Wire(answer.results, answer.session)),
            ((b"set-cookie", set_cookie(name, cookie).encode("ascii")),) if cookie else (),
        )

    def _visitor(self, headers: Headers, cookie: str, now: float) -> Visitor | None:
        value = read_cookie(headers.cookie, cookie)
        return self._cookies.decode(value, now) if value else None

    def trust_of(self, raw: Sequence[Header]) -> Trust:
        """Returns how well the browser that asks for a script is known, as far as its cookie alone tells, and to a page that may push."""
        try:
            headers = scan_script_request(raw)
            origin = require_origin(headers, self._origins)
        except RequestError:
            return Trust.ANONYMOUS
        now = self._outbox.now()
        visitor = self._visitor(headers, cookie_name(origin), now)
        return visitor.trust_at(now, self._limits.verified_for) if visitor else Trust.ANONYMOUS

    def _candidate(self, item: Push | BadPush, client_address: str, now: float) -> Candidate:
        """Tokens are verified here, outside the transaction, which has better things to do."""
        if not isinstance(item, Push) or not isinstance(item.call, Identify):
            return Candidate(item)
        if item.call.token is not None:
            return Candidate(item, self._tokens.verify(item.call.token, now))
        if item.call.email is None or not self._policy.asserted_identify:
            return Candidate(item)
        key = lane_key(item.call.email)
        return Candidate(item, repeats=self._strangers.repeats(client_address, key, item.call.attributes))

    def _full_lanes(
        self, candidates: Sequence[Candidate], visitor: Visitor | None, client_address: str, at: float
    ) -> frozenset[str]:
        """Returns those of the addresses that this request may be about of which the client's network has brought its share."""
        if not self._policy.asserted_identify:
            return frozenset()
        keys = {lane_key(typed.email) for each in candidates if (typed := _typed(each)) is not None and typed.email}
        if visitor is not None and visitor.email is not None:
            keys.add(lane_key(visitor.email))
        return self._strangers.full_lanes(client_address, keys, at)

    def _charge(
        self, client_address: str, candidates: Sequence[Candidate], answer: PushAnswer, size: int, at: float
    ) -> None:
        """Counts what the client's network has brought. `size`: of the request, in bytes; which push it came with is not looked at."""
        self._strangers.charge(client_address, answer.unvouched, size, at)
        for candidate, result in zip(candidates, answer.results, strict=True):
            typed = _typed(candidate)
            if typed is not None and typed.email and result.status is Status.ACCEPTED:
                self._strangers.note(client_address, lane_key(typed.email), typed.attributes)

    async def _store(self, request: Request) -> PushAnswer:
        if not request.candidates:
            return PushAnswer(())
        try:
            decision = await self._outbox.append(
                lambda facts: judge(request, facts, self._policy, self._limits),
                reads_of(request, self._outbox.site_key),
            )
        except StoreUnavailable as error:
            raise RequestError(503, "store-unavailable", error.message, retry_after=error.retry_after) from None
        return decision.answer


def _typed(candidate: Candidate) -> Identify | None:
    """Returns the call of an identify that was not signed."""
    push = candidate.push
    if candidate.token is None and isinstance(push, Push) and isinstance(push.call, Identify):
        return push.call
    return None


def _types(candidate: Candidate) -> bool:
    return (typed := _typed(candidate)) is not None and typed.email is not None


def _has_typed(visitor: Visitor | None) -> bool:
    """Returns whether the cookie is of an address that was typed: what its visitor pushes is about that address."""
    return visitor is not None and visitor.trust is Trust.ASSERTED


def _log_results(answer: PushAnswer) -> None:
    """Logs one line per push. An id cannot contain an address: it is letters, digits, - and _."""
    for result in answer.results:
        outcome = result.reason or result.status
        log.debug(
            "Push %s: %s", result.id, outcome, extra={"event": "push", "fields": {"id": result.id, "outcome": outcome}}
        )


def _cors_of_refused(origin: str | None) -> tuple[Header, ...]:
    """Lets the page read its refusal, which depends on nothing but where it is. Repeats no text that a browser does not send as an origin."""
    return _grant(origin) if origin is not None and _ORIGIN.fullmatch(origin) else (_VARY,)


def _grant(origin: str) -> tuple[Header, ...]:
    return (
        _VARY,
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", b"Retry-After"),
    )


_cors = lru_cache(maxsize=256)(_grant)  # listed origins only: strangers' would push them out
