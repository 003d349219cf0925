"""The oracle: from what was promised and what reached SendX, say whether every promise was kept.

Pure, and separate from the harness (`tests.soak`) that makes the histories, so that it can be shown to find each kind of
violation. Every push carries a tag of its own, by which it is traced through merged and repeated requests. It is told nothing
about how the proxy works, only what its contract says (DESIGN § 5.1 to 5.4):

    lost       acknowledged, and neither applied at SendX nor an increment among the dead letters `ambiguous`
    overtaken  applied before a push of the same contact that was acknowledged earlier
    doubled    an increment that was sent again although it was not known as not applied, or that counts more than once
    astray     at SendX for another contact than the one who pushed it, or pushed by nobody
    refused    a push that had to be taken and was not
    sums       the tallies do not account for every push
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

NOT_APPLIED = 429  # the one answer in these runs that says so


class Violation(StrEnum):
    LOST = "lost"
    OVERTAKEN = "overtaken"
    DOUBLED = "doubled"
    ASTRAY = "astray"
    REFUSED = "refused"
    SUMS = "sums"


class Finding(NamedTuple):
    violation: Violation
    what: str


class Promise(msgspec.Struct, frozen=True):
    """A push that was acknowledged. `tag`: no other push has it."""

    id: str
    tag: str
    increment: bool = False


class Sight(msgspec.Struct, frozen=True):
    """One request as SendX saw it, in order of arrival. `status`: None if it got no answer."""

    contact: str
    tags: tuple[str, ...]
    applied: bool = True
    status: int | None = 200


class Report(msgspec.Struct, frozen=True):
    """What `scq-proxy status --json` says of the store."""

    counters: Mapping[str, int]
    waiting: int
    holding: int
    dead: int


class History(msgspec.Struct, frozen=True):
    """A run, after everything has drained.

    `lanes`: by contact, what was acknowledged, in the order in which it has to arrive. `held`: what visitors pushed who were
    never identified. `dead`: reasons of the dead letters by push id. `counted`: the contacts' number field at the end.
    """

    lanes: Mapping[str, Sequence[Promise]]
    held: Sequence[Promise]
    refused: Sequence[str]
    sights: Sequence[Sight]
    dead: Mapping[str, str]
    counted: Mapping[str, int]
    report: Report


def judge(history: History) -> list[Finding]:
    """Every broken promise; none means that the run kept them all."""
    seen = _Seen(history.sights)
    return [
        *(Finding(Violation.REFUSED, what) for what in history.refused),
        *_astray(history, seen),
        *_lost(history, seen),
        *_overtaken(history, seen),
        *_doubled(history, seen),
        *_wrong_sums(history),
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
        return [number for number in self.carried.get(tag, []) if self.sights[number].status != NOT_APPLIED]

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


def wrong_sums(report: Report) -> list[Finding]:
    """The sums of DESIGN § 5.4, which hold at every instant."""
    tally: Counter[str] = Counter(report.counters)
    died = sum(count for name, count in tally.items() if name.startswith("dead:"))
    gone = tally["discarded"] + tally["erased"]
    return list(
        _unequal(
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
    yield from _unequal(
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


def _unequal(sums: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    for what, (left, right) in sums.items():
        if left != right:
            yield Finding(Violation.SUMS, f"{what}: {left} ≠ {right}")


def report_of(status: Mapping[str, Any]) -> Report:
    """From the one JSON object that `scq-proxy status --json` prints."""
    return msgspec.convert(status, Report)
