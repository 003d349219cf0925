"""The oracle: from what was promised and what reached SendX, say whether every promise was kept.

Pure, and separate from the harnesses (`tests.load.soak`, `tests.load.soak_nodes`) that make the histories, so that it can be shown to find each
kind of violation. Every push carries a tag of its own, by which it is traced through merged and repeated requests. It is told nothing
about how the proxy works, only what its contract says:

    lost       acknowledged, and neither applied at SendX nor an increment among the dead letters `ambiguous`
    overtaken  applied before a push of the same contact that was acknowledged earlier
    doubled    an increment that was sent again although it was not known as not applied, or that counts more than once; or an id
               that was accepted twice
    repeated   sent again although it was known as delivered, but for what a node may do that was stopped and woken (`_repeated`)
    astray     at SendX for another contact than the one who pushed it, or pushed by nobody
    refused    a push that had to be taken and was not
    gate       sent while a node was known to have been told by SendX to wait
    pace       more requests than all nodes together may send
    sums       the tallies do not account for every push
    defects    a forwarder died, or the log tells of another defect of the proxy
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

NOT_APPLIED = (401, 402, 403, 407, 408, 421, 423, 425, 429)  # the answers in these runs that say so


class Violation(StrEnum):
    LOST = "lost"
    OVERTAKEN = "overtaken"
    DOUBLED = "doubled"
    REPEATED = "repeated"
    ASTRAY = "astray"
    REFUSED = "refused"
    GATE = "gate"
    PACE = "pace"
    SUMS = "sums"
    DEFECTS = "defects"


class Finding(NamedTuple):
    violation: Violation
    what: str


class Promise(msgspec.Struct, frozen=True):
    """A push that was acknowledged. `tag`: no other push has it."""

    id: str
    tag: str
    increment: bool = False


class Sight(msgspec.Struct, frozen=True):
    """One request as SendX saw it, in order of arrival.

    `status`: None if its sender got no answer, whatever SendX said; `node`: who sent it; `at`: Unix seconds; `arrived`: False if it was lost on
    its way, of which the sender knows as little as of a request that gets no answer.
    """

    contact: str
    tags: tuple[str, ...]
    applied: bool = True
    status: int | None = 200
    node: str = ""
    at: float = 0.0
    arrived: bool = True

    @property
    def delivers(self) -> bool:
        return self.status is not None and self.status < 300


class Hush(msgspec.Struct, frozen=True):
    """A time in which SendX was not to hear from any node, in Unix seconds, and why.

    `late`: what each node may have had under way before; a busy machine can hold it up for any time.
    """

    since: float
    until: float
    why: str
    late: int = 0


class Pace(msgspec.Struct, frozen=True):
    """`most` requests at SendX in any `seconds`."""

    most: int
    seconds: float


class Report(msgspec.Struct, frozen=True):
    """What `scq-proxy status --json` says of the store."""

    counters: Mapping[str, int]
    waiting: int
    holding: int
    dead: int


class History(msgspec.Struct, frozen=True):
    """A run, after everything has drained.

    `lanes`: by contact, what was acknowledged, in the order in which it has to arrive. `held`: what visitors pushed who were
    never identified. `dead`: reasons of the dead letters by push id; `cut_off`: those whose sender ended before it knew what had become
    of them. `counted`: the contacts' number field at the end. `rejected`: by id, what SendX refused for good, so that a dead letter is all
    that can become of it. `twice`: what was accepted although it had been before. `wakes`: by node, when it was woken after its leases had
    ended, in order. `defects`: lines of the proxy's log.
    """

    lanes: Mapping[str, Sequence[Promise]]
    held: Sequence[Promise]
    refused: Sequence[str]
    sights: Sequence[Sight]
    dead: Mapping[str, str]
    counted: Mapping[str, int]
    report: Report
    rejected: Collection[str] = ()
    twice: Sequence[str] = ()
    cut_off: Collection[str] = ()
    defects: Sequence[str] = ()
    wakes: Mapping[str, Sequence[float]] = {}
    hushes: Sequence[Hush] = ()
    pace: Pace | None = None


def judge(history: History) -> list[Finding]:
    """Every broken promise; none means that the run kept them all."""
    seen = _Seen(history.sights)
    return [
        *(Finding(Violation.REFUSED, what) for what in history.refused),
        *_astray(history, seen),
        *_lost(history, seen),
        *_overtaken(history, seen),
        *(Finding(Violation.DOUBLED, what) for what in history.twice),
        *_doubled(history, seen),
        *_repeated(history),
        *_loud(history),
        *_hasty(history),
        *_wrong_sums(history),
        *(Finding(Violation.DEFECTS, what) for what in history.defects),
    ]


class _Seen:
    """By tag: where it was first applied, (request, place in it), and the numbers of all requests that carried it."""

    def __init__(self, sights: Sequence[Sight]) -> None:
        self.sights = sights
        self.first_applied: dict[str, tuple[int, int]] = {}
        self.carried: dict[str, list[int]] = {}
        for number, sight in enumerate(sights):
            for place, tag in enumerate(sight.tags):
                self.carried.setdefault(tag, []).append(number)
                if sight.applied:
                    self.first_applied.setdefault(tag, (number, place))

    def risky(self, tag: str) -> list[int]:
        """Requests with this tag that may have been applied, for all that the sender could know."""
        return [number for number in self.carried.get(tag, []) if self.sights[number].status not in NOT_APPLIED]

    def times_applied(self, tag: str) -> int:
        return sum(self.sights[number].applied for number in self.carried.get(tag, []))


def _astray(history: History, seen: _Seen) -> Iterator[Finding]:
    owners = {promise.tag: contact for contact, lane in history.lanes.items() for promise in lane}
    for tag, numbers in seen.carried.items():
        for contact in {seen.sights[number].contact for number in numbers} - {owners.get(tag)}:
            yield Finding(Violation.ASTRAY, f"{tag} of {owners.get(tag, 'nobody identified')} was sent for {contact}")


def _lost(history: History, seen: _Seen) -> Iterator[Finding]:
    for contact, lane in history.lanes.items():
        for promise in lane:
            reason = history.dead.get(promise.id)
            if reason is not None and promise.id in history.rejected:
                continue
            if reason is None and promise.tag not in seen.first_applied:
                yield Finding(Violation.LOST, f"{promise.tag} of {contact} never took effect")
            if reason is not None and not (promise.increment and reason == "ambiguous"):
                yield Finding(Violation.LOST, f"{promise.tag} of {contact} is a dead letter, {reason}")


def _overtaken(history: History, seen: _Seen) -> Iterator[Finding]:
    """What is `ambiguous` may have been applied late, so it can be overtaken; but it may overtake nobody."""
    for contact, lane in history.lanes.items():
        last, last_tag = (-1, -1), ""
        for promise in lane:
            applied = seen.first_applied.get(promise.tag)
            if applied is None:
                continue
            if applied < last:
                yield Finding(Violation.OVERTAKEN, f"{last_tag} of {contact} was overtaken by {promise.tag}")
            elif promise.id not in history.dead:
                last, last_tag = applied, promise.tag


def _doubled(history: History, seen: _Seen) -> Iterator[Finding]:
    for contact, lane in history.lanes.items():
        increments = [promise for promise in lane if promise.increment]
        for promise in increments:
            risky, applied = seen.risky(promise.tag), seen.times_applied(promise.tag)
            if len(risky) > 1 or applied > 1:
                what = f"{promise.tag} of {contact} was sent {len(risky)} times and took effect {applied} times"
                yield Finding(Violation.DOUBLED, what)
            if any(len(seen.sights[number].tags) > 1 for number in risky):
                yield Finding(Violation.DOUBLED, f"{promise.tag} of {contact} is an increment and was not sent alone")
        took_effect = sum(seen.times_applied(promise.tag) for promise in increments)
        counted = history.counted.get(contact, 0)
        if counted > len(increments) or counted != took_effect:
            what = f"{contact} counts {counted}, after {len(increments)} increments of which {took_effect} took effect"
            yield Finding(Violation.DOUBLED, what)


def _repeated(history: History) -> Iterator[Finding]:
    """Requests that begin before what their lane is known to have settled.

    What was sent and not settled is sent again, from its beginning: that is a repeat as well, and what at least once means. But who
    begins somewhere in a lane was given it from there on, so all before it was settled. To send that again takes a node that was stopped
    between its last look at its lease and the request: one request, for each time that it was woken. Then it looks, and stops.
    """
    places = {promise.tag: place for lane in history.lanes.values() for place, promise in enumerate(lane)}
    lanes: dict[str, _Progress] = {}
    excused: set[tuple[str, str, float]] = set()
    for sight in history.sights:
        spots = [places[tag] for tag in sight.tags if tag in places]
        if not spots or not lanes.setdefault(sight.contact, _Progress()).goes_back(sight, min(spots), max(spots)):
            continue
        woken = (
            sight.contact,
            sight.node,
            max((at for at in history.wakes.get(sight.node, ()) if at <= sight.at), default=0.0),
        )
        if woken[-1] == 0.0 or woken in excused:
            yield Finding(
                Violation.REPEATED,
                f"{sight.tags} of {sight.contact} by {sight.node or 'the node'}, settled long before",
            )
        excused.add(woken)


class _Progress:
    """Of one lane. `settled`: how many of its pushes surely were when the last request came."""

    def __init__(self) -> None:
        self.settled = 0
        self._applied: set[int] = set()
        self._next: dict[str, int] = {}  # by node: where it goes on, if its last request was delivered

    def goes_back(self, sight: Sight, first: int, last: int) -> bool:
        back = first < self.settled
        if not back and self._next.get(sight.node) != first:
            self.settled = first  # it begins here
        repeats = first in self._applied  # else it was overtaken
        if sight.applied:
            self._applied.update(range(first, last + 1))
        self._next[sight.node] = last + 1 if sight.delivers else -1
        return back and repeats


def _loud(history: History) -> Iterator[Finding]:
    for hush in history.hushes:
        heard = [sight for sight in history.sights if hush.since < sight.at < hush.until]
        if any(count > hush.late for count in Counter(sight.node for sight in heard).values()):
            nodes = ", ".join(sorted({sight.node for sight in heard}))
            late = max(sight.at for sight in heard) - hush.since
            yield Finding(
                Violation.GATE, f"{len(heard)} requests by {nodes}, up to {late:.1f} s into a hush: {hush.why}"
            )


def _hasty(history: History) -> Iterator[Finding]:
    if history.pace is not None and (most := busiest(history.sights, history.pace.seconds)) > history.pace.most:
        what = f"{most} requests in {history.pace.seconds:g} s, where {history.pace.most} are the most"
        yield Finding(Violation.PACE, what)


def applied_again(sights: Sequence[Sight]) -> int:
    """How often something took effect that had before: what at least once costs."""
    times = Counter((sight.contact, tag) for sight in sights if sight.applied for tag in sight.tags)
    return times.total() - len(times)


class Unarrived(NamedTuple):
    """Counts increments that are dead letters although SendX never saw them, the price of at most once.

    `lost`: on their way, of which nobody tells the sender; `cut_off`: with their sender; `needless`: neither of the two.
    """

    lost: int
    cut_off: int
    needless: int


def never_arrived(history: History) -> Unarrived:
    arrived = {tag for sight in history.sights if sight.arrived for tag in sight.tags}
    sent = {tag for sight in history.sights for tag in sight.tags}
    letters = [promise for lane in history.lanes.values() for promise in lane if promise.id in history.dead]
    unarrived = [promise for promise in letters if promise.tag not in arrived]
    lost = sum(promise.tag in sent for promise in unarrived)
    cut_off = sum(promise.tag not in sent and promise.id in history.cut_off for promise in unarrived)
    return Unarrived(lost, cut_off, len(unarrived) - lost - cut_off)


def busiest(sights: Sequence[Sight], seconds: float) -> int:
    """The most requests in any so many seconds."""
    times = sorted(sight.at for sight in sights)
    first, most = 0, 0
    for number, at in enumerate(times):
        while times[first] <= at - seconds:
            first += 1
        most = max(most, number - first + 1)
    return most


def wrong_sums(report: Report) -> list[Finding]:
    """The sums of DESIGN § 5.4, which hold at every instant."""
    tally: Counter[str] = Counter(report.counters)
    died = sum(count for name, count in tally.items() if name.startswith("dead:"))
    gone = tally["discarded"] + tally["erased"]
    return list(
        unequal(
            {
                "accepted + bound = delivered + waiting + dead + discarded + erased": (
                    tally["accepted"] + tally["bound"],
                    tally["delivered"] + report.waiting + report.dead + gone,
                ),
                "held = bound + holding + expired + refused + erased": (
                    tally["held"],
                    tally["bound"]
                    + report.holding
                    + tally["hold_expired"]
                    + tally["hold_refused"]
                    + tally["hold_erased"],
                ),
                "died = dead + replayed + discarded": (died, report.dead + tally["replayed"] + tally["discarded"]),
            }
        )
    )


def _wrong_sums(history: History) -> Iterator[Finding]:
    yield from wrong_sums(history.report)
    tally: Counter[str] = Counter(history.report.counters)
    promised = {promise.id for lane in history.lanes.values() for promise in lane}
    yield from unequal(
        {
            "accepted + held = pushes acknowledged": (
                tally["accepted"] + tally["held"],
                len(promised) + len(history.held),
            ),
            "holding = pushes of visitors who were never identified": (history.report.holding, len(history.held)),
            "delivered = pushes of identified visitors - dead letters": (
                tally["delivered"],
                len(promised) - len(history.dead),
            ),
            "waiting = 0": (history.report.waiting, 0),
            "dead = dead letters that are listed": (history.report.dead, len(history.dead)),
            "dead letters = those of pushes that were acknowledged": (
                len(history.dead),
                len(promised & {*history.dead}),
            ),
        }
    )


def unequal(sums: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    for what, (left, right) in sums.items():
        if left != right:
            yield Finding(Violation.SUMS, f"{what}: {left} ≠ {right}")


def report_of(status: Mapping[str, Any]) -> Report:
    """From the one JSON object that `scq-proxy status --json` prints."""
    return msgspec.convert(status, Report)
