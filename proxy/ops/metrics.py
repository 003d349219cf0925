"""A report as Prometheus metrics."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.core.reasons import reason_of
from proxy.delivery.account import DeliveryState
from proxy.ops.report import Report
from proxy.store.records import Health


class Exposition(Collector):
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
    for name, count in counters.items():
        reason = reason_of(name)
        if reason is None:
            pushes.add_metric([name.replace(":", "_")], count)
        else:
            refused.add_metric([reason], count)
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
