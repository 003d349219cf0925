"""A wrong clock, and its correction: nothing is erased, and no wait outlasts it. A shim in front of libc sets the clock."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxy.core.calls import Track
from proxy.core.decision import Decision, Hold, Remember
from proxy.sandbox.api import Sandbox
from proxy.sandbox.faults import Fault
from proxy.store.records import DeadReason, Fate, Settled, Settlement
from proxy.store.rows import CLOCK_BELIEVED, CLOCK_STEP, clock_set_back, may_sweep
from tests.support.server import Browser, arrives, new_email, token, track
from tests.support.shims import built
from tests.support.sqlite import Start, opened, push

NOW, DAY, HOUR, HALF_AN_HOUR = 1_800_000_000.0, 86_400, 3_600, 1_800

DRIVER = """
import asyncio, os, sys, time
from pathlib import Path
from proxy.core.gate import Closure
from proxy.store.records import Settlement
from proxy.core.calls import Track
from proxy.core.decision import Decision, Enqueue, Remember
from proxy.core.turns import Share
from proxy.core.visitors import Trust
from tests.support.sqlite import delivered, health, opened, push

path = Path(sys.argv[1])

def set_clock(seconds):
    Path(os.environ["CLOCK_OFFSET"]).write_text(str(seconds))

async def typed(outbox, number, client="192.0.2.1"):
    address = f"{number}@example.com"
    changes = Enqueue(address, address, address, Trust.ASSERTED, Track(("a",)), client), Remember(address, "v")
    await outbox.append(lambda facts: Decision(changes, None))

async def main():
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wrong_clock.c", tmp_path_factory.mktemp("shim"))


def under_the_clock(path: Path, shim: Path, *lines: str) -> None:
    """Runs these lines in a process whose clock they set."""
    script = DRIVER + "\n".join(f"    {line}" for line in lines) + "\nasyncio.run(main())\n"
    environ = os.environ | {"LD_PRELOAD": str(shim), "CLOCK_OFFSET": str(path.with_name("offset"))}
    where = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=environ,
        cwd=where,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_clock_far_from_the_last_sweep_is_not_trusted_until_it_has_stood_there_for_a_day() -> None:
    step, day = CLOCK_STEP.total_seconds(), CLOCK_BELIEVED.total_seconds()
    assert may_sweep(NOW, None, distrusted_for=0.0)
    for known in (NOW - step, NOW, NOW + step):
        assert may_sweep(NOW, known, distrusted_for=0.0)
    for known in (NOW - step - 1, NOW + step + 1, NOW - 100 * DAY):
        assert not may_sweep(NOW, known, distrusted_for=day - 1)
        assert may_sweep(NOW, known, distrusted_for=day)


def test_a_newest_row_from_the_future_tells_that_the_clock_was_set_back() -> None:
    assert clock_set_back(NOW, None) == clock_set_back(NOW, NOW - HOUR) == clock_set_back(NOW, NOW + 30) == 0.0
    assert clock_set_back(NOW, NOW + HOUR) == HOUR


async def test_a_start_with_a_clock_a_hundred_days_ahead_erases_nothing(tmp_path: Path, shim: Path) -> None:
    outbox = await opened(tmp_path / "scq.db")
    await push(outbox)
    (lease,) = (await outbox.claim(1, 1, 60)).leases
    dead = Settled(lease.pushes[0].seq, Fate.DEAD, reason=DeadReason.REJECTED)
    assert await outbox.settle(Settlement(lease, (dead,)))
    await outbox.append(
        lambda facts: Decision((Hold("held", "visitor", Track(("a",))), Remember("held", "visitor")), None)
    )
    await outbox.close()
    lines = (
        f"set_clock({100 * DAY})",
        "outbox = await opened(path)",
        "await outbox.sweep()",
        "ids = await push(outbox)",
        "await outbox.sweep()",
        "assert any('Check the clock' in each for each in (await health(outbox)).problems)",
        "await outbox.close()",
        "outbox = await opened(path)",
        "await outbox.sweep()",
        "await outbox.close()",
    )
    await asyncio.to_thread(under_the_clock, tmp_path / "scq.db", shim, *lines)
    outbox = await opened(tmp_path / "scq.db")
    await outbox.sweep()
    stats = await outbox.stats()
    assert (stats.dead, stats.holding, stats.health.problems) == (1, 1, ())
    seen = await outbox._writer.submit(lambda connection: connection.execute("SELECT count(*) FROM seen").fetchone()[0])
    assert seen == 3
    await outbox.close()


@pytest.mark.parametrize("restart", ["in use", "at a restart"])
def test_a_clock_that_is_set_right_ends_the_waits_that_it_has_set(tmp_path: Path, shim: Path, restart: str) -> None:
    opens_again = ("await outbox.close()", "outbox = await opened(path)") if restart == "at a restart" else ()
    under_the_clock(
        tmp_path / "scq.db",
        shim,
        f"set_clock({HOUR})",
        "outbox = await opened(path)",
        "await push(outbox)",
        "(lease,) = (await outbox.claim(1, 1, 60)).leases",
        "assert await outbox.settle(Settlement(lease, (), 1, time.time() + 20))",
        "assert not (await outbox.claim(1, 1, 60)).leases",
        "shut = Closure(time.time() + 60, 1)",
        "await outbox.move_gate(None, shut)",
        "set_clock(0)",
        *opens_again,
        "closure = (await outbox.claim(1, 1, 60)).closure",
        "assert closure.until <= time.time()",
        "assert len((await outbox.claim(1, 1, 60, probe=closure)).leases) == 1",
        "await outbox.close()",
    )


# Nobody can tell a clock that was set ahead meanwhile from time that has passed.
@pytest.mark.parametrize(("jump", "restart"), [(10 * DAY, "in use"), (0, "in use"), (0, "at a restart")])
def test_a_clock_that_is_set_gives_no_turn_and_loses_none(tmp_path: Path, shim: Path, jump: int, restart: str) -> None:
    """Half of an hour's number has left: the next one may leave half an hour later, whatever the clock says."""
    opens_again = ("await outbox.close()", "outbox = await opened(path)") if restart == "at a restart" else ()
    under_the_clock(
        tmp_path / "scq.db",
        shim,
        f"set_clock({10 * DAY - jump})",
        "outbox = await opened(path)",
        "for number in range(3): await typed(outbox, number)",
        "two = Share(per_hour=2, per_client=2)",
        "assert len((await outbox.claim(9, 9, 3600, share=two)).leases) == 1",
        f"set_clock({jump})",
        *opens_again,
        "assert len([each for each in (await outbox.claim(9, 9, 60, share=two)).leases if each.sign_up]) == 0",
        "until = await outbox._writer.submit(lambda store: store.execute('SELECT until FROM schedules WHERE name = ?', ('sign-ups',)).fetchone()[0])",
        "assert 0 < until - time.time() < 7300",
        "assert len([each for each in (await outbox.claim(9, 9, 60)).leases if each.sign_up]) == 2",
        "await outbox.close()",
    )


@pytest.mark.parametrize("restart", ["in use", "at a restart"])
def test_a_network_that_was_served_under_a_wrong_clock_is_not_last_for_it(
    tmp_path: Path, shim: Path, restart: str
) -> None:
    opens_again = ("await outbox.close()", "outbox = await opened(path)") if restart == "at a restart" else ()
    under_the_clock(
        tmp_path / "scq.db",
        shim,
        f"set_clock({10 * DAY})",
        "outbox = await opened(path)",
        "await typed(outbox, 0)",
        "assert len((await outbox.claim(1, 1, 60)).leases) == 1",
        "set_clock(0)",
        *opens_again,
        "for number in range(1, 9): await typed(outbox, number, '203.0.113.1')",
        "assert len((await outbox.claim(3, 1, 60)).leases) == 3",
        "await typed(outbox, 9)",
        "(lease,) = [each for each in (await outbox.claim(1, 1, 60)).leases]",
        "assert lease.sign_up == '192.0.2.1', lease",
        "await outbox.close()",
    )


def test_a_clock_that_is_set_ahead_ends_no_lease(tmp_path: Path, shim: Path) -> None:
    under_the_clock(
        tmp_path / "scq.db",
        shim,
        "set_clock(0)",
        "outbox = await opened(path)",
        "await push(outbox)",
        "(lease,) = (await outbox.claim(1, 1, 60)).leases",
        f"set_clock({HOUR})",
        "assert not (await outbox.claim(1, 1, 60)).leases",
        "assert await outbox.settle(delivered(lease))",
        "await outbox.close()",
    )


def test_a_throttled_account_and_a_contact_in_retry_do_not_wait_for_a_clock_that_was_ahead(
    tmp_path: Path, shim: Path, start: Start, sandbox: Sandbox
) -> None:
    offset = tmp_path / "offset"
    offset.write_text(str(HALF_AN_HOUR))
    with start(tmp_path / "scq.db", LD_PRELOAD=str(shim), CLOCK_OFFSET=str(offset)) as server:
        sandbox.faults.stand("*", Fault(status=429, retry_after=60))
        browser, ann = Browser(server), new_email()
        assert browser.statuses(["identify", {"token": token(ann, exp_in=HOUR)}]) == ["accepted"]
        before = time.monotonic()
        while "throttles this account" not in server.log:
            time.sleep(0.02)
        sandbox.faults.clear()
        offset.write_text("0")
        arrives(sandbox, ann, "identify")
        assert time.monotonic() - before < 50
        assert browser.statuses(track("cart-1")) == ["accepted"], "a cookie from the future counts"
