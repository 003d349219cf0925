"""Whatever SendX answers, nothing is lost, overtaken or counted twice, and the forwarder lives: the short form of `make fuzz-answers`."""

import logging

import pytest

from proxy.store.sqlite.outbox import SqliteOutbox
from tests.support.fuzz import DEFECTS, fuzzing


@pytest.mark.parametrize("tls", [False, True])
async def test_no_answer_stops_the_forwarder_or_breaks_a_promise(
    outbox: SqliteOutbox, caplog: pytest.LogCaptureFixture, tls: bool
) -> None:
    with caplog.at_level(logging.ERROR):
        async with fuzzing(outbox, seed=16) as fuzz:
            history, findings = await fuzz.round(16, 12, tls=tls)
    assert findings == []
    assert len(history.sights) > 100
    assert set(history.dead.values()) >= {"ambiguous", "rejected"}
    assert not [line for line in caplog.text.splitlines() if any(defect in line for defect in DEFECTS)]
