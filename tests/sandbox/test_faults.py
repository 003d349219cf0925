"""Faults: each kind of misbehaviour on a real connection, and whose turn it is."""

import socket
import time
from email.utils import parsedate_to_datetime

import httpx
import pytest

from proxy.sandbox.api import create_sandbox
from proxy.sandbox.faults import Fault
from tests.sandbox.conftest import MALFORMED, MISSING, OK, UNAUTHORIZED, Live
from tests.support.live import eventually, serving


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, UNAUTHORIZED),
        (403, b'{"status":"error","message":"Forbidden"}'),
        (404, MISSING),
        (409, b'{"status":"error","message":"Email already exists"}'),
        (422, MALFORMED),
        (429, b'{"status":"error","message":"Rate limit exceeded"}'),
        (500, b'{"status":"error","message":"Internal server error occurred"}'),
        (503, b'{"status":"error","message":"Service Unavailable"}'),
        (599, b'{"status":"error","message":"Error"}'),
        (201, OK),
        (204, b""),
    ],
)
def test_an_ordered_status_comes_with_its_documented_body(live: Live, status: int, body: bytes) -> None:
    live.order(script=[{"status": status}])
    answer = live.identify()
    assert (answer.status_code, answer.content) == (status, body)
    assert "retry-after" not in answer.headers
    assert live.state.contacts.newest_first() == []
    assert live.identify().content == OK


def test_a_429_may_say_when_to_come_back_in_seconds_or_as_a_date(live: Live) -> None:
    live.order(
        script=[
            {"status": 429, "retry_after": 7},
            {"status": 429, "retry_after": 600, "retry_after_date": True},
        ],
    )
    assert live.identify().headers["retry-after"] == "7"
    date = live.identify().headers["retry-after"]
    assert date.endswith(" GMT")
    assert 0 < parsedate_to_datetime(date).timestamp() - time.time() <= 600


def test_a_gateway_answers_with_html(live: Live) -> None:
    live.order(script=[{"kind": "html", "status": 502}])
    answer = live.identify()
    assert (answer.status_code, answer.text) == (502, "<html><body><h1>502 Bad Gateway</h1></body></html>")
    assert answer.headers["content-type"].startswith("text/html")


def test_an_answer_may_be_empty_or_carry_any_body(live: Live) -> None:
    live.order(script=[{"kind": "empty", "status": 200}, {"status": 400, "body": '{"error":"no"}'}])
    empty, other = live.identify(), live.identify()
    assert (empty.status_code, empty.content) == (200, b"")
    assert (other.status_code, other.content) == (400, b'{"error":"no"}')


def test_a_hang_ends_when_the_client_goes_away_and_leaves_the_rest_alone(live: Live) -> None:
    live.order(contact="A@b.co", script=[{"kind": "hang"}])
    with pytest.raises(httpx.ReadTimeout):
        live.client.post("/api/v1/rest/contact/identify", json={"email": "a@b.co"}, timeout=1)
    assert live.identify().content == OK
    assert [(one.status, one.applied, one.fault) for one in live.state.requests] == [
        (None, False, "hang"),
        (200, True, None),
    ]


@pytest.mark.parametrize("header", ["", "Connection: close\r\n"])
def test_a_hang_does_not_block_the_end_of_the_server(header: str) -> None:
    app = create_sandbox()
    app.state.sandbox.faults.stand("*", Fault("hang"))
    head = f"POST /api/v1/rest/contact/identify HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 0\r\n\r\n"
    with serving(app) as url:
        client = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=120)
        client.sendall(head.encode())
        eventually(lambda: app.state.sandbox.requests)
    with client, pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_slow_answer_does_not_block_the_end_of_the_server() -> None:
    app = create_sandbox()
    app.state.sandbox.faults.stand("*", Fault("ok", delay=3600))
    head = b"POST /api/v1/rest/contact/identify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with serving(app) as url:
        client = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=120)
        client.sendall(head)
        eventually(lambda: app.state.sandbox.requests)
    with client:
        assert client.recv(100).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("applied", [False, True])
def test_a_reset_breaks_the_connection_before_or_after_the_request_took_effect(live: Live, applied: bool) -> None:
    live.order(script=[{"kind": "reset", "applied": applied}])
    with pytest.raises(httpx.ReadError):
        live.identify()
    assert bool(live.state.contacts.newest_first()) is applied
    assert (live.state.requests[0].status, live.state.requests[0].applied) == (None, applied)
    assert live.identify().content == OK


def test_a_reset_of_a_reused_connection_is_seen_too(live: Live) -> None:
    live.identify()
    live.order(script=[{"kind": "reset"}])
    with pytest.raises(httpx.ReadError):
        live.track(addTags=["x"])


async def test_a_reset_without_a_server_fails_the_call_itself() -> None:
    app = create_sandbox()
    app.state.sandbox.faults.script("*", Fault("reset"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
        with pytest.raises(ConnectionResetError):
            await client.post("/api/v1/rest/contact/identify", json={"email": "a@b.co"})


def test_a_slow_answer_takes_effect_at_once_and_comes_later(live: Live) -> None:
    live.order(script=[{"kind": "ok", "delay": 3600}, {"kind": "ok", "delay": 0.01}])
    with pytest.raises(httpx.ReadTimeout):
        live.client.post("/api/v1/rest/contact/identify", json={"email": "a@b.co"}, timeout=1)
    assert live.contact().tags == ()
    assert live.track(addTags=["x"]).content == OK


def test_an_error_may_come_although_the_request_took_effect(live: Live) -> None:
    live.order(script=[{"status": 500, "applied": True}])
    assert live.identify().status_code == 500
    assert live.contact().email == "a@b.co"
    assert live.state.requests[0].applied


def test_a_script_is_consumed_one_by_one_and_ignores_the_case_of_the_address(live: Live) -> None:
    live.order(contact="A@B.co", script=[{"status": 500}, {"kind": "ok"}, {"status": 429}])
    assert live.identify("c@d.co").status_code == 200
    assert [live.identify("a@b.CO").status_code for _ in range(4)] == [500, 200, 429, 200]


def test_one_contacts_orders_go_before_everybodys_and_a_script_before_a_standing_fault(live: Live) -> None:
    live.order(script=[{"status": 503}], standing={"status": 502})
    live.order(contact="a@b.co", script=[{"status": 500}], standing={"status": 501})
    assert [live.identify("a@b.co").status_code for _ in range(3)] == [500, 501, 501]
    assert [live.identify("c@d.co").status_code for _ in range(3)] == [503, 502, 502]


def test_faults_reach_legacy_tracks_events_and_bulks_of_a_contact(live: Live) -> None:
    live.order(contact="a@b.co", standing={"status": 500})
    assert live.legacy("contact/track", {"addTags": []}, email="a@b.co").status_code == 500
    assert live.rest("events/custom", {"identifier": "a@b.co", "name": "x"}).status_code == 500
    assert live.rest("contact/identify/bulk", [{"email": "c@d.co"}, {"email": "a@b.co"}]).status_code == 500


def test_a_standing_fault_stays_until_removed(live: Live) -> None:
    faults = live.order(standing={"status": 500})
    assert faults["standing"]["*"]["status"] == 500
    assert [live.identify().status_code for _ in range(3)] == [500] * 3
    assert live.order(standing=None) == {"script": {}, "standing": {}}
    assert live.identify().status_code == 200


def test_clearing_the_faults_removes_scripts_and_standing_faults(live: Live) -> None:
    live.order(contact="a@b.co", script=[{"status": 500}], standing={"status": 500})
    assert live.order(clear=True) == {"script": {}, "standing": {}}
    assert live.identify().status_code == 200


def test_a_violation_is_recorded_even_behind_a_fault(live: Live) -> None:
    live.order(standing={"status": 500})
    assert live.identify(age=3).status_code == 500
    assert len(live.state.violations) == 1
