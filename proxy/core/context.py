"""The `Context` of a request, against which its pushes are judged, and its `Intake`, which gathers what they bring."""

from datetime import timedelta

import msgspec

from proxy.core.decision import (
    Change,
    Enqueue,
    Facts,
    Forgotten,
    Hold,
    NotOffered,
    Remember,
    Schedule,
    Scheduled,
)
from proxy.core.policy import Policy
from proxy.core.reasons import Status
from proxy.core.request import LANE_BYTES_PER_PUSH, Limits, Request, Result
from proxy.core.visitors import Trust, Visitor

_TYPED_AGE = timedelta(days=1)
_NAMES_COUNTED = 20  # per request, of what is not offered
_ASSERTED_SHARE = 4  # pushes of asserted trust may fill one part in this many of a lane
_HOUR = 3_600.0  # seconds


class Intake(msgspec.Struct):
    """Gathers what the request has brought so far; it only grows.

    `ids`: accepted or held; `queued`: pushes by lane key; `busy`: schedules as this request leaves them; `unvouched`: as in `PushAnswer`.
    """

    changes: list[Change] = []
    ids: set[str] = set()
    queued: dict[str, int] = {}
    busy: dict[Schedule, float] = {}
    not_offered: set[tuple[str, str]] = set()
    unvouched: list[str] = []

    def enqueue(self, push: Enqueue) -> None:
        self.queued[push.key] = self.queued.get(push.key, 0) + 1
        if push.trust is not Trust.VERIFIED:
            self.unvouched.append(push.key)
        self.changes.append(push)

    def hold(self, push: Hold) -> None:
        self.unvouched.append("")
        self.changes.append(push)

    def forget(self, key: str) -> None:
        """Drops a push for somebody who was erased, and counts it as any other of its kind."""
        self.unvouched.append(key)
        self.changes.append(Forgotten())

    def note_not_offered(self, name: str, setting: str) -> None:
        if len(self.not_offered) < _NAMES_COUNTED and (name, setting) not in self.not_offered:
            self.not_offered.add((name, setting))
            self.changes.append(NotOffered(name, setting))


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Holds what every push of the request is judged against. `cookie`: as it counts today; `shown`: the visitor id that the request shows."""

    request: Request
    facts: Facts
    policy: Policy
    limits: Limits
    cookie: Visitor | None
    shown: str
    intake: Intake = msgspec.field(default_factory=Intake)

    def trust(self, who: Visitor) -> Trust:
        return who.trust_at(self.request.now, self.limits.verified_for)

    def is_full(self, key: str, trust: Trust) -> bool:
        """Returns whether the lane has no room left for a push of this trust.

        For strangers that depends on what their own network has brought, not on whose lane it is, until they have filled their part of it. What
        this request itself has queued counts as pushes only: its bytes are few.
        """
        if trust is not Trust.VERIFIED and (key in self.request.full or self.strangers_are_full()):
            return True
        lane = self.facts.lane(key)
        room = lane_room(trust, self.limits.lane_max)
        return lane.waiting + self.intake.queued.get(key, 0) >= room or lane.bytes >= room * LANE_BYTES_PER_PUSH

    def still_counts(self, key: str) -> bool:
        """Returns whether what was taken for this address before has not been dropped: it waits, or the address takes no turns."""
        lane = self.facts.lane(key)
        return bool(lane.waiting or self.intake.queued.get(key) or lane.verified)

    def strangers_are_full(self) -> bool:
        """Returns whether the client's network, or all strangers together, have brought as many bytes as they may."""
        return self.request.over or self.facts.unvouched_bytes() >= self.request.most_bytes

    def recently_erased(self, key: str) -> bool:
        """Returns whether a typed address may be older than its erasure: the shim keeps one for a day. The answer does not show it."""
        erased_at = self.facts.erased_at(key)
        return erased_at is not None and self.request.now <= erased_at + _TYPED_AGE.total_seconds()

    def book(self, name: Schedule, per_hour: float) -> float:
        """Takes the next place in the schedule, and returns when it is (Unix seconds)."""
        if not per_hour:
            return self.request.now
        at, until = next_booking(self.busy_until(name), per_hour, self.request.now)
        self.intake.busy[name] = until
        self.intake.changes.append(Scheduled(name, until))
        return at

    def busy_until(self, name: Schedule) -> float:
        return self.intake.busy.get(name) or self.facts.schedule(name)

    def accept(
        self, push_id: str, after: Visitor | None = None, *, trace: bool = True, dropped: tuple[str, ...] = ()
    ) -> Result:
        self.remember(push_id, after, trace=trace)
        return Result(push_id, Status.ACCEPTED, dropped=dropped)

    def remember(
        self, push_id: str, after: Visitor | None = None, *, trace: bool = True, unvouched: bool = False
    ) -> None:
        """Remembers the id. `after`: who the browser is from here on, None if the push does not say; `trace`: in the store, too.

        `unvouched`: as in `Remember`.
        """
        self.intake.ids.add(push_id)
        if after is not None:
            after = msgspec.structs.replace(after, issued=int(self.request.now))
        if trace:
            self.intake.changes.append(Remember(push_id, self.shown, after, unvouched))

    def accept_trace(self, push_id: str, after: Visitor, before: Visitor, *, trace: bool) -> Result:
        """Accepts a log-out or a consent of `before`. What it leaves counts as brought by strangers, unless a token says who that is."""
        unvouched = trace and self.trust(before) is not Trust.VERIFIED
        if unvouched:
            self.intake.unvouched.append("")
        self.remember(push_id, after, trace=trace, unvouched=unvouched)
        return Result(push_id, Status.ACCEPTED)


def lane_room(trust: Trust, lane_max: int) -> int:
    """Returns how many pushes may wait in the lane before one of this trust is refused.

    Anybody can assert any address: that must not fill the lane of the person who owns it.
    """
    return lane_max if trust is Trust.VERIFIED else max(1, lane_max // _ASSERTED_SHARE)


def next_booking(busy_until: float, per_hour: float, now: float) -> tuple[float, float]:
    """Returns when the next place in a schedule is, and until when it is busy after that (Unix seconds)."""
    until = max(busy_until, now) + _HOUR / per_hour
    return max(until - _HOUR, now), until
