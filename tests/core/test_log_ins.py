"""Who the browser is after a log-in that cannot be taken in, one that was lost, and one by somebody who knows the session value alone."""

from __future__ import annotations

import msgspec
import pytest

from proxy.core.calls import Attributes, Identify, Push, Reset
from proxy.core.decision import (
    Bind,
    Born,
    Enqueue,
    Forgotten,
    HeldPush,
    Hold,
    Identified,
    LaneFacts,
    Remember,
    Retire,
    Seen,
    Shown,
    VisitorFacts,
)
from proxy.core.reasons import Reason, Status
from proxy.core.request import Candidate
from proxy.core.tokens import TokenProblem, Vouched
from proxy.core.visitors import NOBODY, Trust, Visitor, derived_visitor, fingerprint, may_be, next_session
from tests.core.test_admission import (
    ADA,
    BOB,
    DAY,
    HOUR,
    KEY,
    NOW,
    TRACK,
    Known,
    judged,
    log_in,
    outcomes,
    typed,
    visitor,
)

CARL = "carl@example.com"
S = "s" * 16
V = derived_visitor(S, KEY)


def failing(reason: Reason, names: str | None = BOB) -> Candidate:
    return Candidate(Push("failing", Identify(Attributes(), token="t")), TokenProblem(reason, "", names))


def here(email: str | None, trust: Trust = Trust.VERIFIED) -> Visitor:
    return msgspec.structs.replace(visitor(email, trust if email else None), id=V)


def facts_of(email: str | None, **more: object) -> VisitorFacts:
    at = NOW - DAY if email else None
    return msgspec.structs.replace(VisitorFacts(identified=at, person=email, shown=NOW - DAY, shown_by=V), **more)


FULL = {BOB: LaneFacts(waiting=1_000)}
ERASED = {BOB: NOW + 1.0}
FAILING: dict[str, tuple[Candidate, Known, str]] = {
    "expired": (failing(Reason.EXPIRED_TOKEN), Known(), BOB),
    "from the future, say": (failing(Reason.BAD_TOKEN), Known(), BOB),
    "without an address": (failing(Reason.BAD_TOKEN, ""), Known(), NOBODY),
    "of a full lane": (log_in("failing", BOB), Known(lanes=FULL), BOB),
    "from before an erasure": (log_in("failing", BOB), Known(erased=ERASED), NOBODY),
    "expired, of somebody erased": (failing(Reason.EXPIRED_TOKEN), Known(erased=ERASED), NOBODY),
}


@pytest.mark.parametrize("trust", [Trust.VERIFIED, Trust.ASSERTED])
@pytest.mark.parametrize("kind", FAILING)
def test_a_log_in_that_cannot_be_taken_in_still_ends_another_person(kind: str, trust: Trust) -> None:
    candidate, known, heir = FAILING[kind]
    known = msgspec.structs.replace(known, visitors={V: facts_of(ADA)})
    decision = judged(candidate, ("after", TRACK), cookie=here(ADA, trust), session=S, known=known)
    new_session = next_session("failing", KEY)
    new = derived_visitor(new_session, KEY)
    assert {Retire(V), Born(new, heir), Hold("after", new, TRACK)} <= set(decision.changes)
    assert not [change for change in decision.changes if isinstance(change, Enqueue)]
    assert decision.answer.session == new_session
    assert decision.answer.visitor == Visitor(new, issued=int(NOW))
    if heir == NOBODY:
        assert BOB not in repr(decision.changes)


@pytest.mark.parametrize("kind", FAILING)
def test_what_follows_such_a_log_in_is_bound_to_nobody_else(kind: str) -> None:
    candidate, known, heir = FAILING[kind]
    for before in (None, ADA):
        known = msgspec.structs.replace(known, visitors={V: facts_of(before)})
        decision = judged(
            candidate, ("after", TRACK), log_in("later", CARL), cookie=here(before), session=S, known=known
        )
        [held] = [change for change in decision.changes if isinstance(change, Hold)]
        assert Retire(held.visitor) in decision.changes
        assert not [change for change in decision.changes if isinstance(change, Bind)]
        if heir == BOB and not known.lanes:
            decision = judged(
                candidate, ("after", TRACK), log_in("later", BOB), cookie=here(before), session=S, known=known
            )
            [bound] = [change for change in decision.changes if isinstance(change, Bind)]
            assert (bound.key, bound.keep) == (BOB, ("after",))


@pytest.mark.parametrize("kind", [kind for kind, (*_, heir) in FAILING.items() if heir == BOB])
def test_such_a_log_in_of_the_person_who_is_here_changes_nothing(kind: str) -> None:
    candidate, known, _ = FAILING[kind]
    known = Known(visitors={V: facts_of(BOB)}, lanes={} if known.lanes else known.lanes)
    decision = judged(candidate, ("after", TRACK), cookie=here(BOB), session=S, known=known)
    assert not [change for change in decision.changes if isinstance(change, Retire | Born)]
    assert [change.key for change in decision.changes if isinstance(change, Enqueue)][-1:] == [BOB]


def test_a_token_that_does_not_verify_changes_nothing() -> None:
    decision = judged(
        failing(Reason.BAD_TOKEN, None), ("after", TRACK), cookie=here(ADA), known=Known(visitors={V: facts_of(ADA)})
    )
    assert [change.key for change in decision.changes if isinstance(change, Enqueue)] == [ADA]


@pytest.mark.parametrize("token", [Vouched(BOB, Attributes()), TokenProblem(Reason.EXPIRED_TOKEN, "", BOB)])
def test_a_log_in_under_denied_consent_ends_another_person_and_stores_nobody(token: Vouched | TokenProblem) -> None:
    cookie = msgspec.structs.replace(here(ADA), consent=False)
    push = Candidate(Push("failing", Identify(Attributes(), token="t")), token)
    decision = judged(push, ("after", TRACK), cookie=cookie, session=S, known=Known(visitors={V: facts_of(ADA)}))
    assert outcomes(decision) == [Reason.CONSENT_DENIED] * 2
    assert Retire(V) in decision.changes
    assert BOB not in repr(decision.changes)
    assert decision.answer.visitor is not None
    assert (decision.answer.visitor.email, decision.answer.visitor.consent) == (None, False)


def test_a_push_older_than_who_is_here_ends_nobody() -> None:
    visitors = {V: VisitorFacts(retired=True), "v": VisitorFacts(identified=NOW - DAY, person=ADA)}
    stale = judged(failing(Reason.EXPIRED_TOKEN), cookie=visitor(ADA), session=S, known=Known(visitors=visitors))
    assert outcomes(stale) == [Reason.IDENTITY_CHANGED]
    seen = {"failing": Seen("w", Visitor("w", BOB, Trust.VERIFIED), NOW - DAY)}
    known = judged(
        failing(Reason.EXPIRED_TOKEN),
        cookie=here(ADA),
        session=S,
        known=Known(visitors={V: facts_of(ADA)}, pushes=seen),
    )
    assert outcomes(known) == [Status.DUPLICATE]
    assert not [change for change in (*stale.changes, *known.changes) if isinstance(change, Retire)]


# --- A log-in that got no answer


LOST = Reset(fingerprint(BOB))


@pytest.mark.parametrize(
    ("address", "same"),
    [(" Bob@Example.COM", True), ("bob@example.org", False), ("bób@example.com", False), ("#1@example.com", False)],
)
def test_a_fingerprint_stands_for_one_address_in_any_case(address: str, *, same: bool) -> None:
    assert may_be(fingerprint(BOB), address) is same


def test_a_fingerprint_is_what_the_script_makes() -> None:
    assert fingerprint("a") == "#3826002220"  # FNV-1a, 32 bits: the published value for "a"
    assert may_be("#" + fingerprint("bób@example.com".encode().decode("latin-1"))[1:], "bób@example.com")


def test_a_lost_log_in_of_the_person_who_is_here_changes_nothing() -> None:
    known = Known(visitors={V: facts_of(BOB)})
    decision = judged(("lost", LOST), ("after", TRACK), cookie=here(BOB), session=S, known=known)
    assert outcomes(decision) == [Status.ACCEPTED, Status.ACCEPTED]
    assert decision.changes == (Enqueue("after", BOB, BOB, Trust.VERIFIED, TRACK), Remember("after", V))


@pytest.mark.parametrize("before", [None, ADA])
def test_a_lost_log_in_of_another_person_ends_who_was_here_and_waits_for_them(before: str | None) -> None:
    known = Known(visitors={V: facts_of(before)})
    pushes = (("lost", LOST), ("after", TRACK))
    for later, kept in ((BOB, ("after",)), (ADA, ()), (CARL, ())):
        decision = judged(*pushes, log_in("later", later), cookie=here(before), session=S, known=known)
        assert [change.keep for change in decision.changes if isinstance(change, Bind)] == ([kept] if kept else [])
        [held] = [change for change in decision.changes if isinstance(change, Hold)]
        assert (Retire(held.visitor) in decision.changes) is (not kept)
        assert (held.visitor == V) is (before is None)


def test_a_lost_log_in_does_not_take_what_the_visitor_did_before_it() -> None:
    known = Known(visitors={V: facts_of(None, holding=1)}, waiting={V: [HeldPush("h", TRACK, NOW - HOUR)]})
    decision = judged(("lost", LOST), ("after", TRACK), log_in("later", BOB), cookie=here(None), session=S, known=known)
    [bound] = [change for change in decision.changes if isinstance(change, Bind)]
    assert bound.keep == ("h", "after")


def test_a_lost_log_in_that_the_store_knows_says_who() -> None:
    after = Visitor("w", BOB, Trust.VERIFIED, issued=int(NOW), verified=int(NOW))
    visitors = {"w": VisitorFacts(identified=NOW - 5.0, person=BOB), V: VisitorFacts(retired=True)}
    known = Known(visitors=visitors, pushes={"lost": Seen(V, after, NOW - 5.0)})
    for call in (LOST, Reset()):
        decision = judged(("lost", call), ("after", TRACK), cookie=here(ADA), session=S, known=known)
        assert outcomes(decision) == [Status.DUPLICATE, Status.ACCEPTED]
        assert [change.key for change in decision.changes if isinstance(change, Enqueue)] == [BOB]
        assert decision.answer.visitor == after


def test_a_log_in_that_comes_after_its_page_gave_it_up_is_taken_in() -> None:
    new = derived_visitor(next_session("lost", KEY), KEY)
    visitors = {V: VisitorFacts(retired=True), new: VisitorFacts(person=fingerprint(BOB), holding=1)}
    waiting = {new: [HeldPush("after", TRACK, NOW - 1.0)]}
    known = Known(visitors=visitors, waiting=waiting, pushes={"lost": Seen(V, Visitor(new), NOW - 1.0)})
    decision = judged(log_in("lost", BOB), cookie=here(ADA), session=S, known=known)
    assert outcomes(decision) == [Status.ACCEPTED]
    assert Bind(new, BOB, BOB, Trust.VERIFIED, ("after",)) in decision.changes
    assert decision.answer.session == next_session("lost", KEY)


def test_a_lost_log_in_is_remembered_once_it_has_changed_who_is_here() -> None:
    decision = judged(("lost", LOST), cookie=here(ADA), session=S, known=Known(visitors={V: facts_of(ADA)}))
    new = derived_visitor(next_session("lost", KEY), KEY)
    assert Remember("lost", V, Visitor(new, issued=int(NOW))) in decision.changes
    assert decision.answer.session == next_session("lost", KEY)


# --- The session value alone


@pytest.mark.parametrize("facts", [facts_of(None), facts_of(ADA), facts_of(ADA, shown=None, shown_by=None)])
def test_a_session_value_alone_is_a_new_visitors_once_its_browser_has_had_a_cookie(facts: VisitorFacts) -> None:
    waiting = {V: [HeldPush("h", TRACK, NOW - HOUR)]} if not facts.identified else {}
    known = Known(visitors={V: msgspec.structs.replace(facts, holding=len(waiting))}, waiting=waiting)
    decision = judged(("a", TRACK), log_in("b", BOB), ("c", Reset()), session=S, known=known)
    assert V not in {getattr(change, "visitor", None) for change in decision.changes}
    [bound] = [change for change in decision.changes if isinstance(change, Bind)]
    assert bound.keep == ("a",)
    assert decision.answer.session
    assert decision.answer.visitor is not None
    again = judged(("a", TRACK), session=S, known=known)
    assert again.answer.session
    assert derived_visitor(again.answer.session, KEY) == bound.visitor


@pytest.mark.parametrize("facts", [facts_of(None, shown=NOW - 60.0), VisitorFacts()])
def test_a_session_value_finds_its_visitor_before_that(facts: VisitorFacts) -> None:
    decision = judged(("a", TRACK), session=S, known=Known(visitors={V: facts}))
    assert Hold("a", V, TRACK) in decision.changes
    assert decision.answer.session is None


@pytest.mark.parametrize("cookie", [None, here(None)])
@pytest.mark.parametrize("by", [log_in("b", BOB), Candidate(Push("b", typed(BOB)))])
def test_a_log_in_as_somebody_else_than_identified_the_visitor_is_a_new_visitors(
    cookie: Visitor | None, by: Candidate
) -> None:
    facts = VisitorFacts(identified=NOW - 5.0, person=ADA, holding=1)
    known = Known(visitors={V: facts}, waiting={V: [HeldPush("h", TRACK, NOW - 1.0)]})
    decision = judged(by, cookie=cookie, session=S, known=known)
    new_session = next_session("b", KEY)
    identified = [change.visitor for change in decision.changes if isinstance(change, Identified)]
    assert identified == [derived_visitor(new_session, KEY)]
    assert not [change for change in decision.changes if isinstance(change, Retire | Bind)]
    assert decision.answer.session == new_session


def test_a_log_in_as_the_same_person_finds_the_visitor() -> None:
    facts = VisitorFacts(identified=NOW - 5.0, person=BOB)
    decision = judged(log_in("b", BOB), session=S, known=Known(visitors={V: facts}))
    assert decision.answer.visitor is not None
    assert decision.answer.visitor.id == V


def test_a_first_log_in_keeps_the_session_value_for_other_tabs() -> None:
    decision = judged(log_in("b", BOB), cookie=here(None), session=S, known=Known(visitors={V: facts_of(None)}))
    assert decision.answer.session is None
    assert not [change for change in decision.changes if isinstance(change, Retire)]


@pytest.mark.parametrize(
    ("cookie", "facts", "marks"),
    [
        (here(None), {}, [Shown(V, V)]),
        (here(None), {V: facts_of(None)}, []),
        (
            msgspec.structs.replace(here(None), issued=int(NOW - 8 * DAY)),
            {V: facts_of(None)},
            [Shown(V, V)],
        ),  # kept young
        (here(ADA), {V: facts_of(ADA, shown=None)}, []),
        (visitor(ADA), {"v": facts_of(ADA)}, [Shown(V, "v")]),  # the session value is not the cookie's
        (None, {}, []),
    ],
)
def test_a_visitor_is_shown_once_a_request_has_carried_its_cookie(
    cookie: Visitor | None, facts: dict[str, VisitorFacts], marks: list[Shown]
) -> None:
    decision = judged(("a", TRACK), cookie=cookie, session=S, known=Known(visitors=facts))
    assert [change for change in decision.changes if isinstance(change, Shown)] == marks


def test_a_browser_that_shows_a_cookie_is_marked_only_where_something_is_stored() -> None:
    assert judged(failing(Reason.BAD_TOKEN, None), cookie=here(None), session=S).changes[1:] == ()


def test_an_erased_persons_late_log_in_is_remembered_with_the_visitor_that_follows() -> None:
    known = Known(visitors={V: facts_of(ADA)}, erased=ERASED)
    decision = judged(log_in("failing", BOB), cookie=here(ADA), session=S, known=known)
    assert decision.changes[0] == Forgotten()
    assert outcomes(decision) == [Status.ACCEPTED]
    assert decision.answer.visitor is not None
    assert [change.after for change in decision.changes if isinstance(change, Remember)] == [decision.answer.visitor]


def test_what_follows_a_log_in_too_old_to_say_who_is_its_persons_or_nobodys() -> None:
    known = Known(visitors={V: facts_of(ADA)}, pushes={"old": Seen(V, here(ADA), NOW - 2 * HOUR)})
    for later, kept in ((ADA, ("after",)), (BOB, ())):
        decision = judged(log_in("old", ADA), ("after", TRACK), log_in("later", later), session=S, known=known)
        assert outcomes(decision) == [Status.DUPLICATE, Status.HELD, Status.ACCEPTED]
        assert [change.keep for change in decision.changes if isinstance(change, Bind)] == ([kept] if kept else [])
