"""A 202 is a promise: what it acknowledged arrives, in order, through kill -9, restarts and a SendX that is down.

The real server is killed, stopped and started again on one store; what counts is what reached the sandbox.
"""

from __future__ import annotations

import itertools
import json
import signal
import stat
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from proxy.sandbox.api import Recorded, Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from tests.support.commands import scq
from tests.support.live import PATIENCE_SECONDS, eventually, free_port, serving
from tests.support.server import (
    API_KEY,
    Browser,
    Server,
    arrived,
    arrives,
    events,
    identify,
    login,
    new_email,
    new_id,
    new_ids,
    outcomes,
    requests_about,
    running,
    track,
)

DOWN = Fault(status=503)


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    return {"SCQ_FIELDS": "firstName,Visits"}


@pytest.fixture
def server(server: Server) -> Server:
    """Alive at the start of each test, on one store for all of them, which is what a store is for."""
    if server.died():
        server.start()
    server.log_path.write_text("")
    return server


def tags(found: list[str]) -> list[str]:
    return [event for event in found if event != "identify"]


def first_times(found: list[str]) -> list[str]:
    """Without repeats: delivery is at least once."""
    return list(dict.fromkeys(found))


def nothing_overtook(records: list[Recorded], order: list[str]) -> bool:
    """Whether no request carried a tag before every tag pushed earlier had taken effect, or went along with it."""
    done: set[str] = set()
    for record in records:
        carried = tags(events(record))
        for tag in carried:
            earlier = order[: order.index(tag)]
            if not set(earlier) <= done | set(carried):
                return False
        if carried != sorted(carried, key=order.index):
            return False
        if record.applied:
            done.update(carried)
    return True


# kill -9


def test_a_push_acknowledged_just_before_kill_9_arrives_after_a_restart(server: Server, sandbox: Sandbox) -> None:
    sandbox.faults.stand("*", DOWN)
    ann, browser = new_email(), Browser(server)
    assert browser.statuses(login(ann), track("cart-1")) == ["accepted", "accepted"]
    server.kill()
    sandbox.faults.clear()
    server.start()
    assert arrives(sandbox, ann, "+cart-1") == ["identify", "+cart-1"]


def test_after_kill_9_ids_holds_and_log_outs_are_still_known(server: Server, sandbox: Sandbox) -> None:
    ann, held, reset = new_email(), new_id(), new_id()
    browser, leaver = Browser(server), Browser(server)
    leaver.logs_in(new_email("leaver"))
    retired, old_s = dict(leaver.cookies), leaver.s
    leaver.push(["reset"], ids=[reset])
    browser.push(track("cart-1"), ids=[held])
    server.kill()
    server.start()
    assert browser.statuses(track("cart-1"), login(ann), ids=[held, new_id()]) == ["duplicate", "accepted"]
    assert arrives(sandbox, ann, "+cart-1") == ["identify", "+cart-1"]
    late = leaver.request(["reset"], track("cart-2"), ids=[reset, new_id()], s=leaver.s, cookies=retired)
    assert outcomes(late.json()["results"]) == ["duplicate", "held"]
    late = leaver.request(track("cart-2"), s=old_s, cookies=retired)
    assert outcomes(late.json()["results"]) == ["identity-changed"]


def test_whatever_was_acknowledged_under_load_survives_kill_9_at_any_instant(server: Server, sandbox: Sandbox) -> None:
    people = [new_email(f"p{number}") for number in range(6)]
    promised: dict[str, list[str]] = {}
    busy = threading.Barrier(len(people) + 1)

    def push_until_killed(email: str) -> None:
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            browser = Browser(server)
            browser.logs_in(email)
            mine = promised[email] = []
            busy.wait()
            for number in itertools.count():
                tag = f"cart-{number}"
                body = {"v": 1, "s": browser.s, "pushes": [{"id": new_id(), "call": track(tag)}]}
                headers = {"Origin": browser.origin, "Cookie": f"__Host-scq={browser.cookie}"}
                try:
                    response = client.post(f"{server.url}/scq/push", json=body, headers=headers)
                except httpx.TransportError:
                    return
                assert response.status_code == 202
                mine.append(f"+{tag}")

    threads = [threading.Thread(target=push_until_killed, args=[email]) for email in people]
    for thread in threads:
        thread.start()
    busy.wait()
    eventually(lambda: all(len(promised[email]) >= 10 for email in people))
    server.kill()
    for thread in threads:
        thread.join()
    server.start()
    for email in people:
        eventually(lambda email=email: set(promised[email]) <= set(arrived(sandbox, email)))  # type: ignore[misc]
        order = [f"+cart-{number}" for number in range(len(promised[email]) + 1)]
        assert nothing_overtook(requests_about(sandbox, email), order)


def test_kill_9_between_send_and_settle_leaves_an_increment_ambiguous_and_the_rest_is_sent_again(
    server: Server, sandbox: Sandbox
) -> None:
    ann, bob = new_email("ann"), new_email("bob")
    people = {email: Browser(server) for email in (ann, bob)}
    for email, browser in people.items():
        browser.logs_in(email)
        arrives(sandbox, email, "identify")
        sandbox.faults.script(email, Fault("hang", applied=True))
    increment = new_id()
    people[ann].push(identify(customFields={"Visits": "++1"}), track("cart-1"), ids=[increment, new_id()])
    people[bob].push(track("cart-2"))
    eventually(lambda: all(requests_about(sandbox, email)[-1].fault == "hang" for email in people))
    server.kill()
    server.start()
    assert arrives(sandbox, ann, "+cart-1")[1:] == ["identify", "+cart-1"], "it was sent once, and hung"
    eventually(lambda: requests_about(sandbox, bob)[-1].fault is None)
    assert [events(record) for record in requests_about(sandbox, bob)][1:] == [["+cart-2"], ["+cart-2"]]
    contact = sandbox.contacts.get(ann)
    assert contact is not None
    assert contact.custom_fields == {"Visits": "1"}
    listed = scq("dead", "list", "--json", "--contact", ann, cwd=server.directory, **server.settings)
    (letter,) = [json.loads(line) for line in listed.out.splitlines()]
    assert (letter["id"], letter["reason"]) == (increment, "ambiguous")


def test_a_request_cut_off_by_kill_9_may_be_repeated(server: Server, sandbox: Sandbox) -> None:
    ann, browser = new_email(), Browser(server)
    browser.logs_in(ann)
    ids, calls = new_ids(20), [track(f"cart-{number}") for number in range(20)]
    browser.request(*calls, ids=ids)  # whatever became of its answer
    server.kill()
    server.start()
    assert browser.statuses(*calls, track("cart-end"), ids=[*ids, new_id()]) == ["duplicate"] * 20 + ["accepted"]
    found = tags(arrives(sandbox, ann, "+cart-end"))
    assert first_times(found) == [f"+cart-{number}" for number in range(20)] + ["+cart-end"]


# SendX down, then up


def test_while_sendx_cannot_be_reached_pushes_are_acknowledged_and_arrive_later(tmp_path: Path) -> None:
    port, app = free_port(), create_sandbox(key=API_KEY)
    sandbox: Sandbox = app.state.sandbox
    with ExitStack() as stack:
        server = stack.enter_context(running(tmp_path, f"http://127.0.0.1:{port}/api/v1/rest"))
        people = [new_email() for _ in range(4)]
        for email in people:
            browser = Browser(server)
            browser.push(track("cart-0"))
            assert browser.statuses(login(email), track("cart-1"), track("cart-2")) == ["accepted"] * 3
        assert server.client.get("/readyz").status_code == 200
        stack.enter_context(serving(app, port=port))
        for email in people:
            assert arrives(sandbox, email, "+cart-2") == ["identify", "+cart-0", "+cart-1", "+cart-2"]


def test_everything_arrives_in_order_per_contact_through_failures(server: Server, sandbox: Sandbox) -> None:
    people = [new_email() for _ in range(5)]
    browsers = [Browser(server) for _ in people]
    fine, page, cut = Fault("ok"), Fault("html", 502), Fault("reset", applied=True)
    faults = [Fault(), fine, page, fine, Fault("reset"), fine, cut, fine, Fault("empty", 500), fine]
    for number, email in enumerate(people):
        sandbox.faults.script(email, *faults[number:], *faults[:number])
    for browser, email in zip(browsers, people, strict=True):
        browser.logs_in(email)
    order = [f"+cart-{number}" for number in range(30)]
    for tag in order:
        for browser in browsers:
            assert browser.statuses(track(tag[1:])) == ["accepted"]
    for email in people:
        assert first_times(tags(arrives(sandbox, email, order[-1]))) == order
        assert nothing_overtook(requests_about(sandbox, email), order)


def test_a_contact_that_waits_for_a_retry_delays_no_other(server: Server, sandbox: Sandbox) -> None:
    stuck, ann = new_email("stuck"), new_email()
    sandbox.faults.stand(stuck, DOWN)
    Browser(server).push(login(stuck), track("cart-1"))
    eventually(lambda: requests_about(sandbox, stuck))
    Browser(server).push(login(ann), track("cart-1"))
    arrives(sandbox, ann, "+cart-1")
    assert arrived(sandbox, stuck) == []


def test_a_rate_limit_of_sendx_closes_the_gate_and_loses_nothing(server: Server, sandbox: Sandbox) -> None:
    ann, bob = new_email("ann"), new_email("bob")
    sandbox.faults.script(ann, Fault(status=429, retry_after=1))
    Browser(server).push(login(ann), track("cart-1"))
    Browser(server).push(login(bob), track("cart-2"))
    assert arrives(sandbox, ann, "+cart-1")[-2:] == ["identify", "+cart-1"]
    assert arrives(sandbox, bob, "+cart-2")[-2:] == ["identify", "+cart-2"]


def test_an_increment_whose_outcome_is_unknown_is_never_sent_twice(server: Server, sandbox: Sandbox) -> None:
    ann, browser = new_email(), Browser(server)
    browser.logs_in(ann)
    arrives(sandbox, ann, "identify")
    sandbox.faults.script(ann, Fault("reset", applied=True))
    browser.push(identify(customFields={"Visits": "++1"}), track("cart-1"))
    arrives(sandbox, ann, "+cart-1")
    contact = sandbox.contacts.get(ann)
    assert contact is not None
    assert contact.custom_fields == {"Visits": "1"}


# SIGTERM


def test_sigterm_ends_it_cleanly_and_nothing_is_lost(server: Server, sandbox: Sandbox) -> None:
    sandbox.faults.stand("*", Fault("ok", delay=0.3))
    people = [new_email() for _ in range(10)]
    for email in people:
        assert Browser(server).statuses(login(email), track("cart-1")) == ["accepted", "accepted"]
    assert server.stop() == 0
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log
    sandbox.faults.clear()
    server.start()
    for email in people:
        assert first_times(arrives(sandbox, email, "+cart-1")) == ["identify", "+cart-1"]


def test_sigterm_while_sendx_hangs_ends_it_too(server: Server, sandbox: Sandbox) -> None:
    sandbox.faults.stand("*", Fault("hang"))
    server.restart(SCQ_UPSTREAM_TIMEOUT="3")
    ann = new_email()
    Browser(server).push(login(ann), track("cart-1"))
    eventually(lambda: requests_about(sandbox, ann))
    assert server.stop() == 0
    assert "Traceback" not in server.log
    sandbox.faults.clear()
    server.start(more={"SCQ_UPSTREAM_TIMEOUT": "50"})
    arrives(sandbox, ann, "+cart-1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(
    server: Server, sandbox: Sandbox, number: signal.Signals
) -> None:
    sandbox.faults.stand("*", Fault("hang"))
    ann = new_email()
    Browser(server).push(login(ann), track("cart-1"))
    eventually(lambda: requests_about(sandbox, ann))
    server.signal(number)
    eventually(lambda: not server.serves())
    server.signal(number)
    assert server.wait() == -number
    sandbox.faults.clear()
    server.start()
    arrives(sandbox, ann, "+cart-1")


def test_a_request_under_way_at_sigterm_is_answered_and_kept(server: Server, sandbox: Sandbox) -> None:
    ann, browser = new_email(), Browser(server)
    browser.logs_in(ann)
    promised: list[str] = []

    def push_until_closed() -> None:
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            for number in itertools.count():
                pushes = [{"id": new_id(), "call": track(f"cart-{number}")}]
                headers = {"Origin": browser.origin, "Cookie": f"__Host-scq={browser.cookie}"}
                try:
                    response = client.post(f"{server.url}/scq/push", json={"v": 1, "pushes": pushes}, headers=headers)
                except httpx.TransportError:
                    return
                assert response.status_code in (202, 503)
                if response.status_code == 503:
                    return
                promised.append(f"+cart-{number}")

    thread = threading.Thread(target=push_until_closed)
    thread.start()
    eventually(lambda: len(promised) >= 20)
    assert server.stop() == 0
    thread.join()
    assert "Traceback" not in server.log
    server.start()
    assert first_times(tags(arrives(sandbox, ann, promised[-1])))[: len(promised)] == promised


# The store


def test_a_second_server_on_the_same_store_is_refused(server: Server) -> None:
    settings = server.settings | {"SCQ_PORT": str(free_port())}
    second = scq("serve", cwd=server.directory, **settings)
    assert second.code == 2
    assert str(server.store) in second.err
    assert second.out == ""
    assert Browser(server).statuses(track("cart-1")) == ["held"]


def test_a_port_in_use_is_named_and_exits_2(server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    settings = server.settings | {"SCQ_STORE": f"sqlite:///{other}/scq.db"}
    second = scq("serve", cwd=other, **settings)
    assert second.code == 2
    assert "SCQ_PORT" in second.err
    assert str(server.port) in second.err


def test_a_store_that_cannot_be_opened_is_named_and_exits_2(server: Server, tmp_path: Path) -> None:
    no_store = tmp_path / "text.db"
    no_store.write_text("This is a text, not a store. " * 200)
    for path in (no_store, tmp_path / "missing" / "scq.db", tmp_path):
        more = {"SCQ_STORE": f"sqlite:///{path}", "SCQ_PORT": str(free_port()), "SCQ_LOG_LEVEL": "info"}
        settings = server.settings | more
        refused = scq("serve", cwd=tmp_path, **settings)
        assert refused.code == 2, path
        assert str(path) in refused.err or "SCQ_STORE" in refused.err


def test_nobody_else_can_read_the_store(server: Server) -> None:
    Browser(server).push(login(new_email()))
    files = [path for path in server.directory.iterdir() if path.name.startswith("scq.db")]
    assert len(files) >= 2
    for path in files:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path.name
