"""What the operator sees: health, metrics, and the report behind `scq-proxy status` and the status page.

Numbers and names of tags or fields only: no address, no key and no payload gets here. Public paths tell a stranger no more than whether
the process serves and stores; the rest needs SCQ_ADMIN_TOKEN, and without it does not exist.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import jinja2
import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from proxy.core.gate import Closure
from proxy.core.identity import ProbeCodec
from proxy.delivery.account import ADVICE, DeliveryState
from proxy.errors import StoreUnavailable
from proxy.store.outbox import Durability, Health, Outbox, RefusedName, Stats
from proxy.web.access import ClientAddresses

LAG = timedelta(minutes=5)  # the oldest push has waited longer: worth a look
SIGN_UPS_AHEAD = timedelta(hours=1)  # an hour's worth of sign-ups goes at once
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Report(msgspec.Struct, frozen=True):
    """The state of the whole proxy. `problems`: sentences for a person, each with what to do; none: all is well.

    `delivery` is None where nobody sends who could be asked: no server runs, or only others send. Ages are in seconds.
    """

    problems: tuple[str, ...]
    waiting: int
    holding: int
    dead: int
    lag_seconds: float
    counters: Mapping[str, int]
    restarts: int
    delivery: DeliveryState | None
    refused_names: tuple[RefusedName, ...]
    store: Health = Health()


def make_report(
    stats: Stats, delivery: DeliveryState | None, restarts: int, now: float, closure: Closure | None = None
) -> Report:
    """`closure`: what the store says of the gate, where nobody who sends can be asked."""
    lag = max(0.0, now - stats.oldest) if stats.oldest is not None else 0.0
    return Report(
        (*_of_gate(delivery, closure), *_problems(stats, delivery, lag, now)),
        stats.waiting,
        stats.holding,
        stats.dead,
        lag,
        stats.counters,
        restarts,
        delivery,
        stats.refused_names,
        stats.health,
    )


def _of_gate(delivery: DeliveryState | None, closure: Closure | None) -> Iterable[str]:
    halted = delivery.halted if delivery is not None else closure.halted if closure is not None else None
    if halted is not None:
        why = (delivery.last_error if delivery is not None else None) or ADVICE[halted]
        yield f"Sending is halted: {why}. Nothing is lost; one probe a minute is sent."


def _problems(stats: Stats, delivery: DeliveryState | None, lag: float, now: float) -> Iterable[str]:
    if delivery is not None and not delivery.running:
        yield "The forwarder is down and is being restarted: the log of the server says why."
    put_off = stats.sign_ups_until - SIGN_UPS_AHEAD.total_seconds() - now
    if put_off > 0:
        yield (
            f"More addresses are typed than SCQ_SIGNUPS_PER_HOUR: the newest is sent in {timedelta(seconds=int(put_off))}. If that is "
            "no campaign of yours, somebody plays with the form: scq-proxy erase forgets an address."
        )
    elif lag > LAG.total_seconds():
        yield f"The oldest push has waited for {timedelta(seconds=int(lag))}: SendX is slow or down, or nothing sends."
    yield from stats.health.problems
    if stats.dead:
        letters = "1 dead letter" if stats.dead == 1 else f"{stats.dead} dead letters"
        yield f"{letters}: refused by SendX, tried in vain for days, or of unknown outcome. scq-proxy dead list shows which and why."


async def read_report(outbox: Outbox) -> Report:
    """What the store alone tells."""
    closure = (await outbox.claim(0, 1, 0.0)).closure
    return make_report(await outbox.stats(), None, 0, time.time(), closure)


class Ops:
    """The endpoints. `delivery`: the forwarder's state now, None if this process has none; `restarts`: how often it had to be restarted."""

    def __init__(
        self,
        outbox: Outbox,
        delivery: Callable[[], DeliveryState | None],
        restarts: Callable[[], int],
        addresses: ClientAddresses,
    ) -> None:
        self._addresses = addresses
        self._outbox, self._delivery, self._restarts = outbox, delivery, restarts
        self._admin_token: str | None = None
        self._probes = ProbeCodec([])

    def use(self, admin_token: str | None, probes: ProbeCodec) -> None:
        """From the next request on. Without a token, what is the operator's does not exist."""
        self._admin_token, self._probes = admin_token, probes

    async def report(self) -> Report:
        delivery = self._delivery()
        if delivery is None:
            return await read_report(self._outbox)
        return make_report(await self._outbox.stats(), delivery, self._restarts(), time.time())

    async def status(self, arguments: Mapping[str, Any]) -> AsyncIterator[Report]:
        """The control command behind `scq-proxy status`."""
        yield await self.report()

    async def durability(self, arguments: Mapping[str, Any]) -> AsyncIterator[Durability]:
        """The control command behind `scq-proxy check`."""
        yield await self._outbox.durability()

    async def check(self, request: Request) -> Response:
        """What arrives here of a request, for whoever proves to have the signing key: names of cookies, client address."""
        if not self._probes.holds(request.headers.get("x-scq-check", ""), time.time()):
            return not_found()
        forwarded_for = ",".join(request.headers.getlist("x-forwarded-for"))
        seen = {
            "client": self._addresses.of(request.client.host if request.client else None, forwarded_for),
            "forwarded": bool(forwarded_for),
            "cookies": ",".join(request.cookies),
        }
        return JSONResponse(seen, headers=_NO_STORE)

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=_NO_STORE)

    async def readyz(self, request: Request) -> Response:
        try:
            await self._outbox.ready()
        except StoreUnavailable as error:
            headers = _NO_STORE | {"Retry-After": str(error.retry_after)}
            return JSONResponse({"status": "unavailable", "message": error.message}, 503, headers)
        return JSONResponse({"status": "ok"}, headers=_NO_STORE)

    async def metrics(self, request: Request) -> Response:
        """What the store knows is left out while it cannot tell: the rest matters most just then."""
        if not self._is_admin(request):
            return not_found()
        try:
            report = await self.report()
        except StoreUnavailable:
            report = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Exposition(report, self._delivery(), self._restarts()))
        return Response(generate_latest(registry), headers=_NO_STORE, media_type=_METRICS_TYPE)

    async def status_page(self, request: Request) -> Response:
        if not self._is_admin(request):
            return not_found()
        try:
            report = await self.report()
        except StoreUnavailable as error:
            return JSONResponse({"error": "store-unavailable", "message": error.message}, 503, _NO_STORE)
        if "text/html" not in request.headers.get("accept", ""):
            return Response(msgspec.json.encode(report), headers=_NO_STORE, media_type="application/json")
        lag = timedelta(seconds=int(report.lag_seconds))
        page = _templates.get_template("status.html").render(report=report, lag=lag)
        return HTMLResponse(page, headers=_NO_STORE | _CSP)

    def _is_admin(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if self._admin_token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(token.strip().encode(), self._admin_token.encode())


_CSP = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("proxy"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def not_found() -> Response:
    return JSONResponse({"error": "not-found", "message": "There is nothing at this path."}, 404, _NO_STORE)


class _Exposition(Collector):
    """A report as Prometheus metrics; without one, what this process knows by itself."""

    def __init__(self, report: Report | None, delivery: DeliveryState | None, restarts: int) -> None:
        self._report, self._delivery, self._restarts = report, delivery, restarts

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("scq_store_up", "1 if the store answers", float(self._report is not None))
        if self._report is not None:
            yield from _transitions(self._report.counters)
            yield from _backlog(self._report)
            yield from _store(self._report.store)
        if self._delivery is not None:
            restarts = "Times the forwarder had to be restarted"
            yield CounterMetricFamily("scq_forwarder_restarts", restarts, self._restarts)
            yield from _upstream(self._delivery)


def _backlog(report: Report) -> Iterable[Metric]:
    yield GaugeMetricFamily("scq_waiting", "Pushes acknowledged and not yet sent", report.waiting)
    yield GaugeMetricFamily("scq_holding", "Pushes of visitors who are not identified", report.holding)
    yield GaugeMetricFamily("scq_dead_letters", "Dead letters that wait for a decision", report.dead)
    yield GaugeMetricFamily("scq_lag_seconds", "Age of the oldest waiting push", report.lag_seconds)


def _transitions(counters: Mapping[str, int]) -> Iterable[Metric]:
    pushes = CounterMetricFamily("scq_pushes", "Pushes by transition, since the store was made", labels=["to"])
    refused = CounterMetricFamily("scq_refused", "Pushes refused, by reason", labels=["reason"])
    for name, value in counters.items():
        kind, _, reason = name.partition(":")
        if kind == "refused":
            refused.add_metric([reason], value)
        else:
            pushes.add_metric([name.replace(":", "_")], value)
    yield pushes
    yield refused


def _store(health: Health) -> Iterable[Metric]:
    """Seconds by commits is the mean latency of a commit, jobs by commits the mean size of a batch."""
    yield CounterMetricFamily(
        "scq_store_commits", "Transactions that wrote something and were committed", health.commits
    )
    yield CounterMetricFamily("scq_store_commit_seconds", "Time that they took", health.commit_seconds)
    yield CounterMetricFamily("scq_store_jobs", "Jobs that ran in them", health.jobs)
    yield CounterMetricFamily("scq_store_failed_commits", "Transactions that failed", health.failed_commits)
    yield CounterMetricFamily("scq_store_reopened", "Times it was opened again after a failure", health.reopened)
    yield GaugeMetricFamily("scq_store_set_aside", "Damaged stores kept beside this one", health.set_aside)
    if health.log_frames is not None:
        yield GaugeMetricFamily("scq_store_log_frames", "Pages of the log that are not checkpointed", health.log_frames)
    if health.headroom_bytes is not None:
        room = "Disk space above the floor at which ingest stops; below zero, it has stopped"
        yield GaugeMetricFamily("scq_store_headroom_bytes", room, health.headroom_bytes)


def _upstream(delivery: DeliveryState) -> Iterable[Metric]:
    gate = GaugeMetricFamily("scq_gate", "1 for the state that the gate to SendX is in", labels=["state"])
    for state in ("open", "closed", "half-open", "halted"):
        gate.add_metric([state], float(delivery.gate == state))
    yield gate
    requests = CounterMetricFamily("scq_upstream_requests", "Requests to SendX by verdict", labels=["verdict"])
    for verdict, count in delivery.requests.items():
        requests.add_metric([str(verdict)], count)
    yield requests
    yield CounterMetricFamily("scq_upstream_seconds", "Time that requests to SendX took", delivery.latency_seconds)
    yield GaugeMetricFamily("scq_upstream_in_flight", "Requests to SendX under way", delivery.in_flight)
    yield GaugeMetricFamily("scq_upstream_concurrency", "Requests to SendX allowed at once now", delivery.limit)
