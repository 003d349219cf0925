"""The small form of `python -m tests.load.bench`: every row is there and was measured rightly. Nothing about how fast anything is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.load.bench import claims, ingest, postgres, report
from tests.load.bench.__main__ import DELIVERING, HELD, LIMITS, Plan, conduct, full_cells, quick_cells
from tests.load.bench.contestants.table import HTTPX, NGINX, NODE, OUR_HTTP, Contestant, missing
from tests.load.bench.ingest import Cell, Entry, Pace, Results, Row, Sample, Start
from tests.load.bench.losses import Loss, Trial
from tests.load.bench.postgres import Extent
from tests.load.bench.programs import Launch, Program
from tests.load.bench.traffic import TAG, Crowd, new_id
from tests.load.bench.upstream import Upstream, content_length
from tests.load.soak import quiet_port
from tests.support.live import PATIENCE_SECONDS

CONNECTIONS = 4
PASSING = [Entry(contestant, latency_ms) for latency_ms in (0, 10) for contestant in (HTTPX, NODE, NGINX)]
SMALL = Plan(
    cells=[
        *(Cell(entry, 1, CONNECTIONS) for entry in (*LIMITS, Entry(OUR_HTTP), HELD, DELIVERING, *PASSING)),
        Cell(HELD, 10, CONNECTIONS),
        Cell(Entry(HELD.contestant, 0, shut=True, waiting=1_000), 1, CONNECTIONS),
    ],
    pace=Pace(rounds=1, seconds=1, warm_up=0),
    delivery_requests=100,
    delivery_rounds=1,
    extent=Extent(
        workers=(1, 2),
        pushes=(1,),
        connections=CONNECTIONS,
        requests=500,
        backlogs=("merged",),
        parked=(0, 100_000),
        claims=10,
    ),
    trial=Trial(rate=50, before_seconds=0.5, down_seconds=0.5, after_seconds=0.5, kills=1, kill_seconds=0.5),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the smallest run has found."""
    if lacking := missing() + postgres.missing():
        reason = f"missing: {', '.join(lacking)}; .ci/setup bench installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return conduct(SMALL, tmp_path_factory.mktemp("bench"), lambda line: print(line, file=sys.stderr))


def test_every_contestant_is_measured_and_none_is_refused(found: dict[str, Any]) -> None:
    assert found["refused"] == {}
    measured = [(row["contestant"], row["pushes_per_request"], row["connections"]) for row in found["ingest"]]
    assert measured == [(cell.entry.name, cell.pushes, cell.connections) for cell in SMALL.cells]
    assert all(row["medians"]["pushes_per_second"] > 0 for row in found["ingest"])
    assert set(found["starts"]) == {cell.entry.name for cell in SMALL.cells}
    assert all(start["mb"] > 0 and start["load_mb"] >= start["mb"] for start in found["starts"].values())


def test_everything_that_waits_is_delivered(found: dict[str, Any]) -> None:
    assert [line["name"] for line in found["delivery"]] == ["bare-loop", "single", "unmergeable", "merged"]
    assert all(line["medians"]["requests_per_second"] > 0 for line in found["delivery"])


def test_what_the_proxy_acknowledges_is_not_lost(found: dict[str, Any]) -> None:
    losses = [loss for loss in found["losses"] if loss["contestant"] == "scq-proxy"]
    assert [loss["fault"] for loss in losses] == ["SendX down for 0.5 s", "killed 1 times"]
    assert all(loss["acknowledged"] > 0 and loss["lost"] == 0 for loss in losses)
    assert losses[0]["gone"] == 0
    others = {loss["contestant"] for loss in found["losses"]} - {"scq-proxy"}
    assert others == {"httpx", "node", "nginx", "httpx-first"}


def test_workers_on_postgresql_are_measured_beside_sqlite(found: dict[str, Any]) -> None:
    told = found["postgres"]
    assert told["refused"] == {}
    assert [row["contestant"] for row in told["ingest"]] == ["sqlite-held", "postgres-1-held", "postgres-2-held"]
    assert all(row["medians"]["pushes_per_second"] > 0 for row in told["ingest"])
    assert [line["name"] for line in told["delivery"]["merged"]] == ["sqlite", "postgres-1", "postgres-2"]
    assert all(line["medians"]["requests_per_second"] > 0 for line in told["delivery"]["merged"])
    assert "fsync on" in found["machine"]["PostgreSQL"]


def test_the_cost_of_a_claim_does_not_grow_with_the_lanes_that_wait_for_a_retry(found: dict[str, Any]) -> None:
    none, many = found["postgres"]["claims"]
    assert (none["parked"], many["parked"]) == (0, 100_000)
    assert many["medians"]["blocks"] <= 2 * none["medians"]["blocks"]
    assert all(cost["medians"]["claim_ms"] > 0 and cost["medians"]["settle_ms"] > 0 for cost in (none, many))


def test_the_machine_is_told(found: dict[str, Any]) -> None:
    assert {"cores", "Python", "SQLite", "PostgreSQL", "commit", "fsync", "file system", "fastify", "wrk"} <= set(
        found["machine"]
    )
    assert "missing" not in found["machine"].values()
    json.dumps(found)


# Without measuring anything


def test_a_contestant_that_fails_is_not_reported(tmp_path: Path) -> None:
    def launch(upstream_port: int, directory: Path) -> Launch:
        """Serves GET, answers a POST with 501."""
        directory.mkdir(exist_ok=True)
        (directory / "healthz").touch()
        port = quiet_port()
        arguments = [
            sys.executable,
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            "--directory",
            str(directory),
            str(port),
        ]
        return Launch(arguments, port, {})

    broken = Entry(Contestant("broken", "broken", launch))
    load = ingest.Load(tmp_path, [1])

    async def run() -> None:
        program = Program("broken", broken.contestant.launch(0, tmp_path / "broken"), tmp_path / "broken")
        seat = ingest.Seat(broken, program, Upstream(), load, Pace(1, 1, 0))
        try:
            await seat.start()
            with pytest.raises(ingest.Refused, match=r"the first answer is HTTP/1\.0 501"):
                await seat.run(Cell(broken))
        finally:
            program.close()

    asyncio.run(run())


def test_requests_are_well_formed_and_of_the_length_that_they_say() -> None:
    ids = [new_id() for _ in range(10)]
    template = Crowd().templates(10)[0]
    head, _, body = template.filled(ids).partition(b"\r\n\r\n")
    assert len(body) == content_length(head)
    pushes = json.loads(body)["pushes"]
    assert [push["id"] for push in pushes] == ids
    assert {push["call"][1]["addTags"][0] for push in pushes} == {TAG}
    assert len({*ids}) == 10
    assert all(len(push_id) == len(ids[0]) <= 64 for push_id in ids)


def test_the_upstream_answers_each_request_and_comes_back_on_its_port() -> None:
    async def run() -> None:
        bodies: list[bytes] = []
        async with Upstream(bodies=bodies) as upstream:
            port = upstream.port
            request = b"POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 4\r\n\r\nbody"
            assert b" 200 OK" in await ingest.post(port, request)
            upstream.go_down()
            with pytest.raises(ConnectionRefusedError):
                await ingest.post(port, request)
            await upstream.come_up()
            assert upstream.port == port
            assert b" 200 OK" in await ingest.post(port, request)
            assert bodies == [b"body", b"body"]
        async with Upstream(shut=True) as upstream:
            assert b" 429 " in await ingest.post(upstream.port, request)

    asyncio.run(run())


def test_no_cell_is_measured_twice_and_the_quick_form_is_part_of_the_full_one() -> None:
    full = full_cells(1_000_000)
    assert len({*full}) == len(full)
    assert {*quick_cells()} <= {*full}


def sample(pushes_per_second: float, p99_ms: float = 1.0) -> Sample:
    return Sample(pushes_per_second, 1.0, p99_ms, 2.0, cpu=1.0, load_core=0.5)


def test_figures_are_medians_of_the_rounds() -> None:
    assert Row(Cell(HELD), [sample(9), sample(1), sample(2)]).median("pushes_per_second") == 2


def test_a_claim_compares_under_the_same_load() -> None:
    asgi, starlette = LIMITS
    rows = [
        Row(Cell(asgi), [sample(200)]),
        Row(Cell(starlette), [sample(100, p99_ms=2)]),
        Row(Cell(starlette, connections=16), [sample(1)]),
        Row(Cell(HELD), [sample(90, p99_ms=7)]),
    ]
    results = Results(rows, {HELD.name: Start(0.5, 60, 70)}, {}, 1_000)
    judged = {claim.what: (claim.measured, claim.holds) for claim in claims.of_ingest(results)}
    assert judged == {
        "pushes/s beside the Starlette route": (0.9, True),
        "pushes/s beside the bare ASGI function": (0.45, True),
        "p99 beside the Starlette route": (3.5, False),
        "seconds until it serves": (0.5, True),
    }
    assert "0.90" in report.ingest_text(results)


def test_what_is_lost_is_claimed_of_the_proxy_alone() -> None:
    lost = [Loss(name, name, "killed", sent=10, acknowledged=9, arrived=7, lost=2) for name in ("scq-proxy", "node")]
    (claim,) = claims.of_losses(lost)
    assert not claim.holds
    assert (lost[0].refused, lost[0].gone) == (1, 3)


def test_the_command_says_what_is_missing() -> None:
    environ = os.environ | {"PATH": "/nowhere"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.load.bench", "--quick"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ran.returncode == 2
    assert "wrk" in ran.stderr
