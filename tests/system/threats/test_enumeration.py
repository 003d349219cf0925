"""Nothing tells a stranger whether an address is known."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence

import pytest

from proxy.sandbox.api import Sandbox
from tests.support.commands import scq
from tests.support.live import eventually
from tests.support.server import HOST, SERVER_KEY, Browser, Json, Server, arrives, identify, login, new_ids, track


def person(name: str) -> str:
    """An address of the same length for every name of the same length."""
    return f"{name}.{secrets.token_hex(6)}@example.com"


@pytest.fixture(scope="module")
def people(server: Server, sandbox_app: tuple[Sandbox, str]) -> Mapping[str, str]:
    """An address of every kind that there is, known to SendX as well where it is known here."""
    sandbox, _ = sandbox_app
    found = {name: person(name) for name in ("nobod", "typed", "known", "erase", "moved", "queue", "serve", "upper")}
    Browser(server).push(identify(email=found["typed"], tags=["newsletter"]))
    for name in ("known", "erase", "moved", "upper"):
        Browser(server).push(login(found[name], firstName="F", tags=["vip"]), track("cart-1"))
        arrives(sandbox, found[name], "+cart-1")
    Browser(server).push(login(found["moved"], newEmail=person("movto")))
    eventually(lambda: sandbox.contacts.get(found["moved"]) is None)
    assert scq("erase", found["erase"], cwd=server.directory, **server.settings).code == 0
    erased_at = time.time()  # cookies count in whole seconds
    eventually(lambda: int(time.time()) > erased_at)
    path = "/api/v1/rest/contact/identify"
    assert (
        server.client.post(path, json={"email": found["serve"]}, headers={"X-Team-ApiKey": SERVER_KEY}).status_code
        == 200
    )
    Browser(server).push(login(found["queue"]), *[track(f"cart-{number}") for number in range(40)])
    found["upper"] = found["upper"].upper()
    return found


def transcript(server: Server, conversations: Sequence[Sequence[Json]], email: str, **headers: str) -> list[Json]:
    """All that a stranger learns from typing the address and going on, with what differs from visitor to visitor taken out."""
    stranger, said = Browser(server, **headers), []
    for calls in conversations:
        ids = new_ids(len(calls))
        response = stranger.request(*[json.loads(json.dumps(call).replace("EMAIL", email)) for call in calls], ids=ids)
        stranger.adopt(response)
        text = response.text.replace(stranger.s or "-", "S")
        for number, push_id in enumerate(ids):
            text = text.replace(push_id, f"ID{number}")
        names = {name: value for name, value in response.headers.items() if name not in ("date", "set-cookie")}
        cookie = re.sub(
            r"=[^;]+\.", lambda found: f"={len(found[0])}.", response.headers.get("set-cookie", ""), count=1
        )
        said.append((response.status_code, text, names, re.sub(r"\.[\w-]+;", f".{43};", cookie)))
    return said


TALKS: dict[str, Sequence[Sequence[Json]]] = {
    "a newsletter form": [[identify(email="EMAIL", tags=["newsletter"], firstName="A")]],
    "more than is offered": [
        [identify(email="EMAIL", tags=["vip", "newsletter"], company="C", customFields={"a": 1}, newEmail="x@y.co")]
    ],
    "tracks behind it": [
        [identify(email="EMAIL"), track("typed-1"), track("cart-1"), track("newsletter", remove=["newsletter"])]
    ],
    "tracks before it": [[track("typed-1"), track("cart-1")], [identify(email="EMAIL")], [track("typed-2")]],
    "again and again": [[identify(email="EMAIL", lastName="B")]] * 3
    + [[identify(lastName="C"), identify(email="EMAIL")]],
    "a log-out": [[identify(email="EMAIL")], [["reset"]], [track("cart-1")], [identify(email="EMAIL")]],
    "consent": [
        [identify(email="EMAIL")],
        [["consent", "denied"]],
        [track("typed-1")],
        [["consent", "granted"], track("typed-1")],
    ],
    "a token that is none": [[identify(email="EMAIL", token="a.b.c")], [identify(token="EMAIL")]],
}


@pytest.mark.parametrize("talk", TALKS)
def test_no_answer_tells_whether_an_address_is_known(server: Server, people: Mapping[str, str], talk: str) -> None:
    heard = {name: transcript(server, TALKS[talk], email) for name, email in people.items()}
    for name, said in heard.items():
        assert said == heard["nobod"], name


@pytest.mark.parametrize(
    "talk", ["a newsletter form", "more than is offered", "a token that is none", "again and again"]
)
def test_no_refusal_tells_whether_an_address_is_known(strict: Server, sandbox: Sandbox, talk: str) -> None:
    known, nobody = person("known"), person("nobod")
    Browser(strict, host=HOST).push(login(known), track("cart-1"))
    arrives(sandbox, known, "+cart-1")
    heard = [transcript(strict, TALKS[talk], email, host=HOST) for email in (known, nobody, known.upper())]
    assert heard[0] == heard[1] == heard[2]
    assert '"refused"' in heard[0][0][1]


def test_what_a_typed_visitor_pushes_later_is_answered_as_late_as_the_address_was(server: Server) -> None:
    stranger, seconds = Browser(server), []
    stranger.push(identify(email=person("later")))
    for calls in (
        [track("newsletter")],
        [identify(firstName="F")],
        [["consent", "granted"]],
        [track("newsletter")] * 50,
    ):
        started = time.perf_counter()
        stranger.push(*calls)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) >= 0.025
    assert seconds[-1] >= 0.150, "the more is pushed, the more can differ"
