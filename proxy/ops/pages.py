"""The operator's endpoints: health for anybody, metrics and status for who has SCQ_ADMIN_TOKEN.

Public paths tell a stranger no more than whether the process serves and stores; the rest needs the token, and without it does not exist.
"""

import hmac
import time
from collections.abc import AsyncIterator

import jinja2
import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from proxy.core.cookies import ProbeCodec
from proxy.errors import StoreUnavailable
from proxy.ops.control import Command, Handlers
from proxy.ops.metrics import Exposition
from proxy.ops.report import Report, facts_of
from proxy.ops.watch import Watch
from proxy.store.outbox import Outbox
from proxy.store.records import Durability
from proxy.web.access import ClientAddresses
from proxy.web.asgi import NOT_FOUND, SECURITY_TEXTS, error_response

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AskReport(Command, frozen=True):
    """Asked by `scq-proxy status`; answered by one `Report`."""


class AskDurability(Command, frozen=True):
    """Asked by `scq-proxy check`; answered by one `Durability`."""


class OperatorPages:
    """The operators' endpoints, which show what `watch` finds."""

    def __init__(self, outbox: Outbox, watch: Watch, client_addresses: ClientAddresses) -> None:
        self._client_addresses = client_addresses
        self._outbox, self._watch = outbox, watch
        self._admin_token: str | None = None
        self._probes = ProbeCodec([])

    def use(self, admin_token: str | None, probes: ProbeCodec) -> None:
        """From the next request on. Without a token, what is the operator's does not exist."""
        self._admin_token, self._probes = admin_token, probes

    @property
    def handlers(self) -> Handlers:
        return {AskReport: self._answer_report, AskDurability: self._answer_durability}

    async def _answer_report(self, _: AskReport) -> AsyncIterator[Report]:
        yield await self._watch.look()

    async def _answer_durability(self, _: AskDurability) -> AsyncIterator[Durability]:
        yield await self._outbox.durability()

    async def check(self, request: Request) -> Response:
        """What arrives here of a request, for whoever proves to have the signing key: names of cookies, client address."""
        if not self._probes.holds(request.headers.get("x-scq-check", ""), time.time()):
            return error_response(NOT_FOUND)
        forwarded_for = ",".join(request.headers.getlist("x-forwarded-for"))
        seen = {
            "client": self._client_addresses.of(request.client.host if request.client else None, forwarded_for),
            "forwarded": bool(forwarded_for),
            "cookies": ",".join(request.cookies),
        }
        return JSONResponse(seen, headers=SECURITY_TEXTS)

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=SECURITY_TEXTS)

    async def readyz(self, _: Request) -> Response:
        try:
            await self._outbox.ready()
        except StoreUnavailable as error:
            headers = {**SECURITY_TEXTS, "Retry-After": str(error.retry_after)}
            return JSONResponse({"status": "unavailable", "message": error.message}, 503, headers)
        return JSONResponse({"status": "ok"}, headers=SECURITY_TEXTS)

    async def metrics(self, request: Request) -> Response:
        if not self._is_admin(request):
            return error_response(NOT_FOUND)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Exposition(await self._watch.look()))
        return Response(generate_latest(registry), headers=SECURITY_TEXTS, media_type=_METRICS_TYPE)

    async def status_page(self, request: Request) -> Response:
        if not self._is_admin(request):
            return error_response(NOT_FOUND)
        report = await self._watch.look()
        if "text/html" not in request.headers.get("accept", ""):
            return Response(msgspec.json.encode(report), headers=SECURITY_TEXTS, media_type="application/json")
        page = _templates.get_template("status.html").render(report=report, facts=facts_of(report))
        return HTMLResponse(page, headers={**SECURITY_TEXTS, **_CSP})

    def _is_admin(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if self._admin_token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(token.strip().encode(), self._admin_token.encode())


_CSP = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}
_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("proxy"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
