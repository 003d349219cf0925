"""A served sandbox, shared by the tests of one file, and the bodies that SendX's docs publish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.contacts import Contact
from proxy.sandbox.faults import Switches
from tests.support.live import serving

OK = b'{"status":"200","message":"OK"}'
MISSING = b'{"status":"error","message":"Resource not found"}'
MALFORMED = b'{"status":"error","message":"Request body is not in proper format"}'
UNAUTHORIZED = b'{"status":401,"message":"The Team ID or API Key specified is not valid"}'
BULK_OK = b'{"status":"success","message":"All contacts processed successfully"}'
EVENT_OK = b'{"status":"success","message":"Event tracked successfully"}'


class Live:
    """A served sandbox, its state, and a client that has the key."""

    def __init__(self, url: str, app: Starlette, client: httpx.Client) -> None:
        self.url = url
        self.state: Sandbox = app.state.sandbox
        self.client = client

    def rest(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(f"/api/v1/rest/{path}", json=body)

    def identify(self, email: str = "a@b.co", **fields: Any) -> httpx.Response:
        return self.rest("contact/identify", {"email": email, **fields})

    def track(self, email: str = "a@b.co", **fields: Any) -> httpx.Response:
        return self.rest("contact/track", {"email": email, **fields})

    def legacy(self, path: str, body: Any, **query: str) -> httpx.Response:
        return self.client.post(f"/api/v1/{path}", json=body, params={"team_id": "team", **query})

    def contact(self, email: str = "a@b.co") -> Contact:
        contact = self.state.contacts.get(email)
        assert contact is not None
        return contact

    def switch(self, **values: str) -> None:
        assert self.client.post("/sandbox/switches", json=values).status_code == 200

    def order(self, **fault_order: Any) -> dict[str, Any]:
        answer = self.client.post("/sandbox/faults", json=fault_order)
        assert answer.status_code == 200, answer.text
        faults: dict[str, Any] = answer.json()
        return faults


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    app = create_sandbox(key="key", team_id="team")
    headers = {"X-Team-ApiKey": "key", "api_key": "key"}
    with serving(app) as url, httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=120) as client:
        yield Live(url, app, client)


@pytest.fixture
def live(served: Live) -> Live:
    """One server for all tests; each starts as if it had just come up."""
    served.state.clear()
    served.state.switches = Switches()
    return served
