"""Whatever happens in a browser, nothing lands on somebody who is not in it, under whatever sequence of steps Hypothesis can think of.

The pages of the model do what `static/scq.js` does: they keep what has no answer, repeat it from the front, share the session value, and leave a
log-out in the place of a log-in to the next page. The model knows who sat there when a push was made, and nothing of the rules of admission.
The ledger is never written to a store, so it is all that is known, and its clock is the test's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.core.admission import judge
from proxy.core.calls import Attributes, Call, Consent, Identify, Push, Reset, Track
from proxy.core.policy import Policy
from proxy.core.reasons import Reason, Status
from proxy.core.request import Candidate, Limits, PushAnswer, Request
from proxy.core.tokens import TokenProblem, Vouched
from proxy.core.visitors import Visitor, fingerprint
from proxy.store.facts import FactKind, Known
from proxy.store.ledger import Ledger
from tests.core.test_admission import KEY, LIMITS, NOW, TRACK

PEOPLE = ("ann@example.com", "bob@example.com", "carl@example.com")
EVE = "eve@example.com"
POLICY = Policy(tags=["*"], fields=["*"], asserted_tags=["*"], asserted_fields=["*"], asserted_identify=False)
ROOMY: Limits = msgspec.structs.replace(LIMITS, hold_max=1_000, traces_per_hour=1e9)
MINUTE, HOUR = 60.0, 3_600.0
STORED = (Status.ACCEPTED, Status.HELD)


@dataclass(frozen=True)
class Waiting:
    """A push without an answer, under the session value of its time. `person`: for whom it is a log-in."""

    candidate: Candidate
    session: str
    person: str | None = None

    @property
    def id(self) -> str:
        assert self.candidate.push.id is not None
        return self.candidate.push.id

    def left_behind(self) -> Waiting:
        """As the next page finds it."""
        if self.person is None:
            return self
        return replace(self, candidate=Candidate(Push(self.id, Reset(fingerprint(self.person)))))


@dataclass
class Device:
    """A browser. `truth`: who sits there, None until somebody has said so; `people`: all who ever did.

    `shown`: when a request under this session value first carried a cookie and stored something.
    """

    session: str
    cookie: Visitor | None = None
    truth: str | None = None
    people: set[str] = field(default_factory=set)
    tabs: list[list[Waiting]] = field(default_factory=lambda: [[], []])
    shown: dict[str, float] = field(default_factory=dict)


def nothing(_: FactKind, __: str) -> None:
    """All there is is known."""


class Browsers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now, self.ids = NOW, count()
        self.ledger = Ledger(Known(KEY), nothing)
        self.devices = [Device(self._name("s")) for _ in range(2)]
        self.allowed: dict[str, set[str]] = {}  # by push id: who may get it

    def _name(self, kind: str) -> str:
        return f"{kind}{next(self.ids):020}"

    # What a page does

    @rule(device=st.integers(0, 1), tab=st.integers(0, 1))
    def track(self, device: int, tab: int) -> None:
        self._push(device, tab, TRACK)

    @rule(
        device=st.integers(0, 1),
        person=st.sampled_from(PEOPLE),
        problem=st.sampled_from([None, None, None, Reason.EXPIRED_TOKEN, Reason.BAD_TOKEN]),
    )
    def log_in(self, device: int, person: str, problem: Reason | None) -> None:
        """In the first tab only: of two that log in at once, either may be the one who counts."""
        at = self.devices[device]
        token = TokenProblem(problem, "", person) if problem else Vouched(person, Attributes(), issued=self.now)
        self._push(device, 0, Identify(Attributes(), token="t"), token, person)
        at.truth = person
        at.people.add(person)

    @rule(device=st.integers(0, 1))
    def log_out(self, device: int) -> None:
        self._push(device, 0, Reset())

    @rule(device=st.integers(0, 1), tab=st.integers(0, 1), granted=st.booleans())
    def consent(self, device: int, tab: int, *, granted: bool) -> None:
        self._push(device, tab, Consent(granted))

    def _push(
        self, device: int, tab: int, call: Call, token: Vouched | TokenProblem | None = None, person: str | None = None
    ) -> None:
        at, push_id = self.devices[device], self._name("p")
        candidate = Candidate(Push(push_id, call), token)
        at.tabs[tab].append(Waiting(candidate, at.session, person))
        if isinstance(call, Track):
            alone = tab == 0 or not at.tabs[0]  # no log-in of another tab is on its way
            self.allowed[push_id] = {at.truth} if at.truth and alone else at.people

    @rule(device=st.integers(0, 1), tab=st.integers(0, 1))
    def next_page(self, device: int, tab: int) -> None:
        at = self.devices[device]
        if at.tabs[tab]:
            at.tabs[tab] = [each.left_behind() for each in at.tabs[tab]]
            at.session = self._name("s")
            for waiting in at.tabs[1]:
                # Under a value that the proxy may never have seen. It cannot end the value together with the visitor.
                self.allowed[waiting.id] = at.people

    # What the network does

    @rule(device=st.integers(0, 1), tab=st.integers(0, 1), answered=st.booleans())
    def send(self, device: int, tab: int, *, answered: bool) -> None:
        at = self.devices[device]
        while batch := self._batch(at.tabs[tab]):
            answer = self._request(batch, at)
            if not answered:
                return
            ids = {each.id for each in batch}
            at.tabs[tab] = [each for each in at.tabs[tab] if each.id not in ids]
            if answer.visitor is not None:
                at.cookie = answer.visitor
            if answer.session is not None:
                self._adopt(at, tab, batch[0].session, answer.session)

    def _batch(self, waiting: list[Waiting]) -> list[Waiting]:
        return [each for each in waiting if each.session == waiting[0].session]

    def _adopt(self, at: Device, tab: int, old: str, new: str) -> None:
        at.session = new if at.session == old else at.session
        at.tabs[tab] = [replace(each, session=new) if each.session == old else each for each in at.tabs[tab]]

    def _request(self, batch: list[Waiting], at: Device) -> PushAnswer:
        answer = self._judge([each.candidate for each in batch], batch[0].session, at.cookie)
        if at.cookie is not None and any(result.status in STORED for result in answer.results):
            at.shown.setdefault(batch[0].session, self.now)
        return answer

    def _judge(self, candidates: list[Candidate], session: str | None, cookie: Visitor | None) -> PushAnswer:
        self.ledger.known.now = self.now
        request = Request(
            now=self.now, cookie=cookie, session=session, gpc=False, candidates=candidates, stranger=self._name("v")
        )
        decision = judge(request, self.ledger, POLICY, ROOMY)
        self.ledger.carry_out(decision.changes)
        return decision.answer

    @rule(seconds=st.sampled_from([1.0, 59.0, 2 * MINUTE, 2 * HOUR]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # Somebody who knows the session value, and has seen nothing else

    @rule(
        device=st.integers(0, 1),
        deeds=st.lists(st.sampled_from(["track", "log in", "reset"]), min_size=1, max_size=3),
        own=st.booleans(),
    )
    def stranger(self, device: int, deeds: list[str], *, own: bool) -> None:
        at = self.devices[device]
        if self.now <= at.shown.get(at.session, self.now) + MINUTE:
            return  # before that, the value finds its visitor
        candidates = []
        for deed in deeds:
            push_id = self._name("e")
            self.allowed[push_id] = {EVE}
            if deed == "log in":
                log_in = Identify(Attributes(), token="t")
                candidates.append(Candidate(Push(push_id, log_in), Vouched(EVE, Attributes(), issued=self.now)))
            else:
                candidates.append(Candidate(Push(push_id, TRACK if deed == "track" else Reset())))
        self._judge(candidates, at.session, Visitor(self._name("v"), issued=int(self.now)) if own else None)

    # What must hold

    @invariant()
    def nothing_lands_on_somebody_who_is_not_there(self) -> None:
        for key, push_id, *_ in self.ledger.writes.pushes:
            if push_id in self.allowed:
                assert key in self.allowed[push_id], (key, push_id, self.allowed[push_id])


TestBrowsers = Browsers.TestCase
# The same examples each time: one in some ten thousand is a sequence that nobody has thought of yet, and not a reason to hold up a change.
TestBrowsers.settings = settings(max_examples=400, stateful_step_count=60, derandomize=True, database=None)


@pytest.mark.parametrize("logged_out", [False, True])
def test_a_log_in_too_old_to_say_who_is_told_to_the_browser(*, logged_out: bool) -> None:
    """The pushes that follow come under another session value, which another tab has drawn."""
    browsers = Browsers()
    if logged_out:
        browsers.log_out(0)
    browsers.consent(0, 1, granted=True)
    browsers.log_in(0, "ann@example.com", None)
    browsers.send(0, 0, answered=False)
    browsers.next_page(0, 1)
    browsers.time_passes(2 * HOUR)
    browsers.track(0, 0)
    browsers.send(0, 0, answered=True)
    browsers.log_in(0, "carl@example.com", None)
    browsers.send(0, 0, answered=False)
    browsers.nothing_lands_on_somebody_who_is_not_there()


@pytest.mark.parametrize("earlier", [(), ("ann@example.com",)])
def test_a_lost_log_in_counts_again_in_a_browser_that_has_become_another_visitor_since(
    earlier: tuple[str, ...],
) -> None:
    browsers = Browsers()
    for person in earlier:
        browsers.log_in(0, person, None)
    browsers.log_in(0, "carl@example.com", None)
    browsers.next_page(0, 0)
    browsers.send(0, 0, answered=False)
    browsers.track(0, 1)
    browsers.send(0, 1, answered=True)
    browsers.track(0, 0)
    browsers.log_in(0, "ann@example.com", None)
    browsers.send(0, 0, answered=True)
    browsers.nothing_lands_on_somebody_who_is_not_there()
