"""A report as Prometheus metrics."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.core.reasons import DROPPED_VALUES, reason_of
from proxy.delivery.account import DeliveryState
from proxy.ops.conditions import Kind
from proxy.ops.report import Report


class Exposition(Collector):
    """A report as Prometheus metrics. Those of the store are left out while it is unavailable: they would be stale."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        report = self._report
        wrong = {each.kind for each in report.conditions}
        store_up = Kind.UNAVAILABLE not in wrong
        yield Counter(
            "scq_defects",
            "Requests answered 503 or not at all because of a fault in this program or because memory ran out",
            report.defects,
        )
        yield Gauge("scq_store_up", "1 if the store answers", float(store_up))
        problem = Gauge("scq_problem", "1 while this problem lasts: scq-proxy status says what to do", labels=["kind"])
        yield _labelled(problem, {kind: float(kind in wrong) for kind in Kind})
        if store_up:
            yield from _transitions(report.counters)
            yield from _store(report)
        if report.delivery is not None:
            yield Counter("scq_forwarder_restarts", "Times the forwarder had to be restarted", report.restarts)
            yield from _upstream(report.delivery)


def _transitions(counters: Mapping[str, int]) -> Iterable[Metric]:
    reasons = {name: reason for name in counters if (reason := reason_of(name)) is not None}
    others = reasons.keys() | {DROPPED_VALUES}
    pushes = {name.replace(":", "_"): count for name, count in counters.items() if name not in others}
    refused = {reason: counters[name] for name, reason in reasons.items()}
    yield _labelled(Counter("scq_pushes", "Pushes by transition, since the store was made", labels=["to"]), pushes)
    yield _labelled(Counter("scq_refused", "Pushes refused, by reason", labels=["reason"]), refused)
    dropped = "Values dropped from identifies and tracks because SendX could not take them"
    yield Counter("scq_dropped_values", dropped, counters.get(DROPPED_VALUES, 0))


def _store(report: Report) -> Iterable[Metric]:
    """Seconds by commits is the mean latency of a commit, jobs by commits the mean size of a batch."""
    room = "Disk space above the floor at which ingest stops; below zero, it has stopped"
    health = report.store
    rows: list[tuple[type[Gauge | Counter], str, str, float | None]] = [
        (Gauge, "scq_waiting", "Pushes acknowledged and not yet sent", report.waiting),
        (Gauge, "scq_holding", "Pushes of visitors who are not identified", report.holding),
        (Gauge, "scq_sign_ups", "Typed addresses that wait for their turn", report.sign_ups),
        (Gauge, "scq_unvouched_bytes", "Bytes kept of what nobody has vouched for", report.unvouched_bytes),
        (Gauge, "scq_dead_letters", "Dead letters that wait for a decision", report.dead),
        (Gauge, "scq_lag_seconds", "Age of the oldest waiting push", report.lag_seconds),
        (Counter, "scq_store_commits", "Transactions that wrote something and were committed", health.commits),
        (Counter, "scq_store_commit_seconds", "Time that they took", health.commit_seconds),
        (Counter, "scq_store_jobs", "Jobs that ran in them", health.jobs),
        (Counter, "scq_store_failed_commits", "Transactions that failed", health.failed_commits),
        (Counter, "scq_store_reopened", "Times it was reopened after a failure", health.reopened),
        (Counter, "scq_store_replaced", "Times it was deleted or replaced while in use", health.replaced),
        (Gauge, "scq_store_set_aside", "Damaged stores kept beside this one", health.set_aside),
        (
            Counter,
            "scq_store_failovers",
            "Times the database server changed, or went back to an earlier state",
            health.failovers,
        ),
        (Counter, "scq_store_lost", "Acknowledged pushes that were found missing after a failover", health.lost),
        (
            Gauge,
            "scq_store_clock_ahead_seconds",
            "By how much its clock is ahead of this machine's",
            health.clock_ahead_seconds,
        ),
        (Gauge, "scq_store_log_frames", "Pages of the log that are not checkpointed", health.log_frames),
        (Gauge, "scq_store_headroom_bytes", room, health.headroom_bytes),
    ]
    return [kind(name, text, value) for kind, name, text, value in rows if value is not None]


def _upstream(delivery: DeliveryState) -> Iterable[Metric]:
    gate = {state: float(delivery.gate == state) for state in ("open", "closed", "half-open", "halted")}
    yield _labelled(Gauge("scq_gate", "1 for the state that the gate to SendX is in", labels=["state"]), gate)
    requests = Counter("scq_upstream_requests", "Requests to SendX by verdict", labels=["verdict"])
    yield _labelled(requests, delivery.requests)
    yield Counter("scq_upstream_seconds", "Time that requests to SendX took", delivery.latency_seconds)
    if delivery.last_delivered_at is not None:
        yield Gauge("scq_last_delivery_timestamp_seconds", "When a push was last delivered", delivery.last_delivered_at)
    yield Gauge("scq_upstream_in_flight", "Requests to SendX under way", delivery.in_flight)
    yield Gauge("scq_upstream_concurrency", "Requests to SendX allowed at once now", delivery.limit)


def _labelled(family: Gauge | Counter, values: Mapping[Any, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([str(label)], value)
    return family
