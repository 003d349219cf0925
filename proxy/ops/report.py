"""The state of the proxy as one value, with its problems: what `scq-proxy status`, the status page and metrics show.

Numbers and names of tags or fields only: no address, no key and no payload gets here.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from proxy import __version__
from proxy.core.reasons import reason_of
from proxy.delivery.account import DeliveryState
from proxy.ops.conditions import Condition, Memory, Seen, backlog_seconds, conditions, lag_seconds
from proxy.store.outbox import Outbox
from proxy.store.records import Health, RefusedName

_SAME_SECOND = 1.0  # seconds: what is read while it happens may be a moment ahead


class Report(msgspec.Struct, frozen=True):
    """The state of the whole proxy. `problems`: sentences for a person, each with what to do; none: all is well.

    `delivery` is None if no server runs, or the one that was asked does not deliver. Ages are in seconds. `conditions`: the problems that
    come and go by themselves. `at`: when this was read (Unix seconds). `uptime_seconds`: of the server, None if none was asked. `rate`:
    deliveries per second over the last minute; `backlog_seconds`: the time to drain the backlog at that rate, sign-ups aside; None where unknown.
    `defects`: requests that failed because of a fault in this program. `sign_ups`: typed addresses waiting for
    their turn; `unvouched_bytes`: the bytes in the store that nobody has vouched for.
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
    conditions: tuple[Condition, ...] = ()
    version: str = __version__
    at: float = 0.0
    uptime_seconds: float | None = None
    rate: float | None = None
    backlog_seconds: float | None = None
    defects: int = 0
    sign_ups: int = 0
    unvouched_bytes: int = 0


def make_report(seen: Seen, memory: Memory, found: tuple[Condition, ...], uptime_seconds: float | None) -> Report:
    stats = seen.stats
    return Report(
        (*(each.sentence for each in found), *_of_dead_letters(stats.dead)),
        stats.waiting,
        stats.holding,
        stats.dead,
        lag_seconds(seen),
        stats.counters,
        seen.restarts,
        seen.delivery,
        stats.refused_names,
        stats.health,
        found,
        at=seen.now,
        uptime_seconds=uptime_seconds,
        rate=memory.rate,
        backlog_seconds=backlog_seconds(stats, memory.rate),
        defects=seen.defects,
        sign_ups=stats.sign_ups,
        unvouched_bytes=stats.unvouched_bytes,
    )


def together(reports: Sequence[Report]) -> Report:
    """Returns what several processes on one database see, at least one: the problems of all, and what all have in common."""
    if len(reports) == 1:
        return reports[0]
    found = tuple({each.key: each for report in reports for each in report.conditions}.values())
    latest = max(reports, key=lambda report: report.at)
    problems = (*(each.sentence for each in found), *_of_dead_letters(latest.dead))
    return msgspec.structs.replace(latest, problems=problems, conditions=found, delivery=None, uptime_seconds=None)


def _of_dead_letters(count: int) -> Iterable[str]:
    """Yields the problem of dead letters, which is not a condition because it lasts until an operator decides."""
    if count:
        letters = "1 dead letter" if count == 1 else f"{count} dead letters"
        yield f"{letters}: refused by SendX, tried in vain for days, or of unknown outcome. scq-proxy dead list shows which and why."


def missing_server(report: Report) -> Iterable[str]:
    """Yields the problem of a store that no server serves while pushes wait in it."""
    if report.waiting:
        yield f"No server is running while pushes wait to be sent ({report.waiting}): start scq-proxy serve."


def facts_of(report: Report) -> list[tuple[str, object]]:
    """Returns the labels and values that people are shown."""
    delivery, store = report.delivery, report.store
    facts: list[tuple[str, object]] = [
        ("waiting", report.waiting),
        ("oldest waiting for", _age(report.lag_seconds)),
        ("typed addresses waiting for their turn", report.sign_ups),
        ("held for visitors not identified", report.holding),
        ("kept of what nobody has vouched for", f"{report.unvouched_bytes / 1_048_576:.1f} MB"),
        ("dead letters", report.dead),
        ("delivered so far", report.counters.get("delivered", 0)),
    ]
    if report.rate is not None:
        facts.append(("delivered per second", f"{report.rate:.1f}"))
    if report.backlog_seconds:
        facts.append(("time to drain the backlog", _age(report.backlog_seconds)))
    if delivery is not None:
        facts += [
            ("gate to SendX", delivery.gate),
            (
                "concurrent requests to SendX",
                f"{delivery.in_flight} in flight, {delivery.limit} of {delivery.concurrency} allowed",
            ),
            ("last delivery", _ago(delivery.last_delivered_at, report.at)),
            *_last_error(delivery, report.at),
            ("forwarder restarts", report.restarts),
        ]
    if store.headroom_bytes is not None:
        facts.append(("disk space above SCQ_MIN_FREE_MB", f"{store.headroom_bytes / 1e9:.1f} GB"))
    if report.uptime_seconds is not None:
        facts.append(
            (
                "commits",
                f"{store.commits}, {store.failed_commits} failed; the store was reopened {store.reopened} times",
            )
        )
        facts.append(("uptime", _age(report.uptime_seconds)))
    read = datetime.fromtimestamp(report.at, UTC).isoformat(" ", "seconds").replace("+00:00", " UTC")
    facts += [("version", report.version), ("read at", read)]
    refused = ((reason_of(name), count) for name, count in report.counters.items() if count)
    return facts + [(f"refused, {reason}", count) for reason, count in refused if reason is not None]


def _last_error(delivery: DeliveryState, now: float) -> Iterable[tuple[str, str]]:
    """Yields the last error, labelled as resolved if a delivery has followed."""
    if delivery.last_error is None or delivery.last_error_at is None:
        return
    over = delivery.last_delivered_at is not None and delivery.last_delivered_at >= delivery.last_error_at
    over |= delivery.last_error_at > now + _SAME_SECOND and delivery.failing_since is None  # the clock was set back
    label = "last error (resolved)" if over else "last error"
    yield label, f"{delivery.last_error}, {_ago(delivery.last_error_at, now)}"


def _ago(at: float | None, now: float) -> str:
    if at is not None and at > now + _SAME_SECOND:
        return "before the clock was set back"
    return f"{_age(now - at)} ago" if at is not None else "none yet"


def _age(seconds: float) -> timedelta:
    return timedelta(seconds=max(0, int(seconds)))


async def read_report(outbox: Outbox) -> Report:
    """Returns a report from the store alone, for when no server is asked."""
    seen = Seen(stats=await outbox.stats(), now=outbox.now(), clock=time.monotonic())
    return make_report(seen, Memory(), conditions(seen, Memory()), None)
