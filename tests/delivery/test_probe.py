"""The table of a probe's stages, row by row."""

import pytest

from proxy.delivery.probe import Probe, Stage
from proxy.store.records import Lease

LEASE = Lease(lane=1, epoch=1, until=60.0, failures=0, pushes=())
OTHER = Lease(lane=1, epoch=2, until=60.0, failures=0, pushes=())
NONE, OUT, ANSWERED, OVER = Probe(), Probe(Stage.OUT, LEASE), Probe(Stage.ANSWERED, LEASE), Probe(Stage.OVER)


@pytest.mark.parametrize(
    ("before", "claimed", "answered", "ended", "told"),
    [
        (NONE, OUT, NONE, NONE, NONE),
        (OUT, OUT, ANSWERED, OVER, OUT),
        (ANSWERED, ANSWERED, ANSWERED, OVER, ANSWERED),
        (OVER, OVER, OVER, OVER, NONE),
    ],
)
def test_the_table_of_stages(before: Probe, claimed: Probe, answered: Probe, ended: Probe, told: Probe) -> None:
    after = (before.claimed(LEASE), before.answered(LEASE), before.ended(LEASE), before.told())
    assert after == (claimed, answered, ended, told)
    assert before.passes(LEASE) == (before is OUT)
    assert before.busy == (before in (OUT, ANSWERED))


@pytest.mark.parametrize("before", [NONE, OUT, ANSWERED, OVER])
def test_what_happens_to_another_lane_is_not_the_probe_s(before: Probe) -> None:
    assert before.answered(OTHER) == before.ended(OTHER) == before
    assert not before.passes(OTHER)
    assert before is NONE or before.claimed(OTHER) == before
