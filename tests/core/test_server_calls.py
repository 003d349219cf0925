"""A server's call that finds no room. Its content is tested over the wire, in `web/test_server_api.py`."""

from __future__ import annotations

import pytest

from proxy.core.calls import Track
from proxy.core.decision import Enqueue, LaneFacts, Refused
from proxy.core.reasons import Reason
from proxy.core.server_calls import Outcome, ServerCall, ServerPush, admit
from tests.core.test_admission import ADA, BOB, Known

LANE_MAX = 10
CALL = ServerCall("track", (ServerPush(ADA, Track(("a",))), ServerPush(BOB, Track(("a",)))), ("i", "j"), "the shop")


@pytest.mark.parametrize(
    ("lane", "outcome"),
    [
        (LaneFacts(waiting=9, bytes=40_959), Outcome.STORED),
        (LaneFacts(waiting=10), Outcome.LANE_FULL),
        (LaneFacts(waiting=1, bytes=40_960), Outcome.LANE_FULL),
    ],
)
def test_a_call_is_stored_if_every_lane_has_room_for_pushes_and_for_their_bytes(
    lane: LaneFacts, outcome: Outcome
) -> None:
    decision = admit(CALL, Known(lanes={BOB: lane}), LANE_MAX)
    assert decision.answer is outcome
    if outcome is Outcome.LANE_FULL:
        assert decision.changes == (Refused(Reason.LANE_FULL),) * 2
    else:
        assert [each.id for each in decision.changes if isinstance(each, Enqueue)] == ["i", "j"]
