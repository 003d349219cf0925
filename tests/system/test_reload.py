"""SIGHUP: a running server takes over new secrets from their files, all or none, and says so without showing them.

Every secret stands in a file of its own, all else in the `.env` of the server's directory, so that both can change while it runs.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from proxy.core.gate import PROBE_SECONDS
from proxy.sandbox.api import Sandbox
from tests.support.live import eventually
from tests.support.server import (
    ADMIN_TOKEN,
    API_KEY,
    COOKIE_KEY,
    IDENTITY_KEY,
    KID_KEY,
    Browser,
    Server,
    arrives,
    identify,
    login,
    new_email,
    requests_about,
    token,
    track,
)

OLD_API_KEY = "sendx-team-api-key-from-before-" + "0" * 9
NEW_COOKIE_KEY = "cookie-signing-key-of-today-" + "1" * 12
NEW_IDENTITY_KEY = "identity-key-of-today-" + "2" * 18
NEW_ADMIN_TOKEN = "admin-token-of-today-" + "3" * 19
SERVER_KEY, NEW_SERVER_KEY = "server-key-of-the-shop-" + "4" * 17, "server-key-of-today-" + "5" * 20
KEYS = [
    *(API_KEY, OLD_API_KEY, COOKIE_KEY, NEW_COOKIE_KEY, IDENTITY_KEY, KID_KEY, NEW_IDENTITY_KEY),
    *(ADMIN_TOKEN, NEW_ADMIN_TOKEN, SERVER_KEY, NEW_SERVER_KEY),
]
TAKEN, KEPT = "The secrets were reloaded", "The secrets were not reloaded"


class Rotating:
    """A server whose secrets are files. `files`: what stands in them, by setting."""

    def __init__(self, directory: Path, upstream: str, **secrets: str) -> None:
        self.server = Server(directory, upstream)
        self.directory = directory
        self.settings = self.server.settings | {"SCQ_IDENTIFY": "asserted"}
        given = {
            "SCQ_API_KEY": API_KEY,
            "SCQ_SECRET_KEYS": COOKIE_KEY,
            "SCQ_IDENTITY_KEYS": IDENTITY_KEY,
            "SCQ_SERVER_KEYS": "",
            "SCQ_ADMIN_TOKEN": ADMIN_TOKEN,
        }
        for name, text in (given | secrets).items():
            self.settings.pop(name, None)
            self.settings[f"{name}_FILE"] = str(self.file(name))
            self.write(name, text)
        self.write_env()
        self.server.settings = {}  # the environment of a process never changes; its files do

    def file(self, name: str) -> Path:
        return self.directory / name.lower()

    def write(self, name: str, text: str) -> None:
        self.file(name).write_text(text + "\n", encoding="utf-8")

    def write_env(self, **changed: str) -> None:
        self.settings |= changed
        lines = [f"{name}='{text}'\n" for name, text in self.settings.items()]
        (self.directory / ".env").write_text("".join(lines), encoding="utf-8")

    def hang_up(self, answer: str = TAKEN) -> None:
        """SIGHUP, and wait until the log has one more line that says what came of it."""
        before = self.server.log.count(answer)
        self.server.signal(signal.SIGHUP)
        eventually(lambda: self.server.log.count(answer) > before)

    def rotate(self, **secrets: str) -> None:
        for name, text in secrets.items():
            self.write(name, text)
        self.hang_up()


@pytest.fixture
def sandbox(sandbox: Sandbox) -> Iterator[Sandbox]:
    """With its own key again after a test."""
    yield sandbox
    sandbox.key = API_KEY


@pytest.fixture
def rotating(upstream: str, tmp_path: Path) -> Iterator[Rotating]:
    made = Rotating(tmp_path, upstream)
    try:
        made.server.start()
        yield made
        assert "Traceback" not in made.server.log
        assert not [key for key in KEYS if key in made.server.log]
    finally:
        made.server.close()


def admin(server: Server, bearer: str) -> httpx.Response:
    return server.client.get("/scq/status", headers={"Authorization": f"Bearer {bearer}"})


def call(server: Server, key: str, email: str) -> int:
    """The status of an identify by one of the site's servers."""
    path = "/api/v1/rest/contact/identify"
    return server.client.post(path, json={"email": email}, headers={"X-Team-ApiKey": key}).status_code


def no_probe_was_awaited(sandbox: Sandbox, refused: str, delivered: str) -> bool:
    """Whether one contact was delivered before the probe that was due a minute after the 401 that met another."""
    halted, went_on = requests_about(sandbox, refused)[0], requests_about(sandbox, delivered)[-1]
    return went_on.time - halted.time < timedelta(seconds=PROBE_SECONDS)


def test_a_new_sendx_key_ends_the_halt_that_the_old_one_led_to_at_once(rotating: Rotating, sandbox: Sandbox) -> None:
    server = rotating.server
    rotating.rotate(SCQ_API_KEY=OLD_API_KEY)
    ann, bob, eve = new_email("ann"), new_email("bob"), new_email("eve")
    Browser(server).push(login(ann), track("cart-1"))
    eventually(lambda: "Sending is halted (401)" in server.log)
    Browser(server).push(login(bob), track("cart-1"))  # waits behind the halt, without a request
    assert {record.status for record in requests_about(sandbox, ann)} == {401}
    rotating.rotate(SCQ_API_KEY=API_KEY)
    assert "The secrets were reloaded: SCQ_API_KEY changed; by SIGHUP" in server.log
    assert arrives(sandbox, bob, "+cart-1") == ["identify", "+cart-1"]
    assert no_probe_was_awaited(sandbox, ann, bob)
    Browser(server).push(login(eve), track("cart-1"))
    assert arrives(sandbox, eve, "+cart-1") == ["identify", "+cart-1"]
    eventually(lambda: re.search("Resolved after .*Sending is halted", server.log))
    assert sandbox.violations == []


def test_a_new_sendx_key_is_used_from_the_next_request_on(rotating: Rotating, sandbox: Sandbox) -> None:
    server, ann = rotating.server, Browser(rotating.server)
    email = new_email()
    ann.push(login(email), track("cart-1"))
    arrives(sandbox, email, "+cart-1")
    sandbox.key = NEW_SERVER_KEY  # SendX itself has a new key now
    rotating.rotate(SCQ_API_KEY=NEW_SERVER_KEY)
    ann.push(track("cart-2"))
    assert arrives(sandbox, email, "+cart-2") == ["identify", "+cart-1", "+cart-2"]
    assert "halted" not in server.log


def test_cookie_keys_are_rolled_over_without_a_restart(rotating: Rotating) -> None:
    server, ann = rotating.server, Browser(rotating.server)
    ann.logs_in(new_email("ann"))
    rotating.rotate(SCQ_SECRET_KEYS=f"{COOKIE_KEY},{NEW_COOKIE_KEY}")
    assert ann.statuses(track("cart-1")) == ["accepted"], "both are listed: the old cookie counts"
    bob = Browser(server)
    bob.logs_in(new_email("bob"))
    rotating.rotate(SCQ_SECRET_KEYS=NEW_COOKIE_KEY)
    assert bob.statuses(track("cart-1")) == ["accepted"], "signed with the newer one"
    assert ann.statuses(track("cart-1")) == ["held"]


def test_identity_keys_are_rolled_over_without_a_restart(rotating: Rotating) -> None:
    server = rotating.server
    old, new = token(new_email()), token(new_email(), key=NEW_IDENTITY_KEY)
    named = token(new_email(), key=KID_KEY, headers={"kid": "backend"})

    def believed(text: str) -> bool:
        return Browser(server).statuses(identify(token=text)) == ["accepted"]

    assert [believed(text) for text in (old, new, named)] == [True, False, False]
    rotating.rotate(SCQ_IDENTITY_KEYS=f"{IDENTITY_KEY},{NEW_IDENTITY_KEY},backend={KID_KEY}")
    assert [believed(text) for text in (old, new, named)] == [True, True, True]
    rotating.rotate(SCQ_IDENTITY_KEYS=NEW_IDENTITY_KEY)
    assert [believed(text) for text in (old, new, named)] == [False, True, False]


def test_server_keys_come_change_and_go_without_a_restart(rotating: Rotating, sandbox: Sandbox) -> None:
    server, email = rotating.server, new_email()
    assert call(server, SERVER_KEY, email) == 404
    rotating.rotate(SCQ_SERVER_KEYS=SERVER_KEY)
    assert call(server, SERVER_KEY, email) == 200
    arrives(sandbox, email, "identify")
    rotating.rotate(SCQ_SERVER_KEYS=f"{SERVER_KEY}\n{NEW_SERVER_KEY}")
    assert [call(server, key, email) for key in (SERVER_KEY, NEW_SERVER_KEY)] == [200, 200]
    rotating.rotate(SCQ_SERVER_KEYS=NEW_SERVER_KEY)
    assert [call(server, key, email) for key in (SERVER_KEY, NEW_SERVER_KEY)] == [401, 200]
    rotating.rotate(SCQ_SERVER_KEYS="")
    assert call(server, NEW_SERVER_KEY, email) == 404


def test_the_admin_token_changes_and_goes_without_a_restart(rotating: Rotating) -> None:
    server = rotating.server
    assert [admin(server, key).status_code for key in (ADMIN_TOKEN, NEW_ADMIN_TOKEN)] == [200, 404]
    rotating.rotate(SCQ_ADMIN_TOKEN=NEW_ADMIN_TOKEN)
    assert [admin(server, key).status_code for key in (ADMIN_TOKEN, NEW_ADMIN_TOKEN)] == [404, 200]
    rotating.rotate(SCQ_ADMIN_TOKEN="")
    assert [admin(server, key).status_code for key in (ADMIN_TOKEN, NEW_ADMIN_TOKEN, "None")] == [404, 404, 404]


@pytest.mark.parametrize(
    ("name", "spoiled"),
    [
        ("SCQ_SECRET_KEYS", NEW_COOKIE_KEY[:31]),
        ("SCQ_SECRET_KEYS", ""),
        ("SCQ_SECRET_KEYS", f"{NEW_COOKIE_KEY},{NEW_COOKIE_KEY}"),
        ("SCQ_IDENTITY_KEYS", "kid=short-secret"),
        ("SCQ_ADMIN_TOKEN", f"{NEW_ADMIN_TOKEN}\x07"),
        ("SCQ_API_KEY", None),
    ],
)
def test_a_bad_file_changes_nothing_and_is_named_without_its_content(
    rotating: Rotating, name: str, spoiled: str | None
) -> None:
    server, ann = rotating.server, Browser(rotating.server)
    ann.logs_in(new_email())
    rotating.write("SCQ_SERVER_KEYS", SERVER_KEY)  # good, and still not taken: all or none
    if spoiled is None:
        rotating.file(name).unlink()
    else:
        rotating.write(name, spoiled)
    rotating.hang_up(KEPT)
    said = server.log.partition(KEPT)[2]
    assert name in said
    assert not spoiled or spoiled not in said
    assert TAKEN not in server.log
    assert ann.statuses(track("cart-1"), login(new_email())) == ["accepted", "accepted"]
    assert admin(server, ADMIN_TOKEN).status_code == 200
    assert call(server, SERVER_KEY, new_email()) == 404


def test_a_file_that_is_mended_is_taken_at_the_next_signal(rotating: Rotating) -> None:
    rotating.write("SCQ_SERVER_KEYS", "short")
    rotating.hang_up(KEPT)
    rotating.rotate(SCQ_SERVER_KEYS=SERVER_KEY)
    assert call(rotating.server, SERVER_KEY, new_email()) == 200


def test_other_settings_that_have_changed_are_named_and_wait_for_a_restart(rotating: Rotating) -> None:
    server = rotating.server
    rotating.write_env(SCQ_TAGS="other-*", SCQ_LANE_MAX="7", SCQ_STORE=f"sqlite:///{rotating.directory}/other.db")
    rotating.rotate(SCQ_SERVER_KEYS=SERVER_KEY)
    line = eventually(lambda: [each for each in server.log.splitlines() if "after a restart" in each])[-1]
    assert sorted(line.rpartition(": ")[2].split(", ")) == ["SCQ_LANE_MAX", "SCQ_STORE", "SCQ_TAGS"]
    assert call(server, SERVER_KEY, new_email()) == 200, "the secrets are taken all the same"
    ann = Browser(server)
    ann.logs_in(new_email())
    assert ann.statuses(track("cart-1"), track("other-1")) == ["accepted", "tag-not-allowed"]
    assert not (rotating.directory / "other.db").exists()
    rotating.write_env(SCQ_STORE=f"sqlite:///{server.store}")
    server.restart()
    assert ann.statuses(track("other-1"), track("cart-1")) == ["accepted", "tag-not-allowed"]


def test_a_signal_without_a_change_changes_nothing(rotating: Rotating, sandbox: Sandbox) -> None:
    server, ann, email = rotating.server, Browser(rotating.server), new_email()
    ann.push(login(email), track("cart-1"))
    for _ in range(3):
        rotating.hang_up()
    assert ann.statuses(track("cart-2")) == ["accepted"]
    assert arrives(sandbox, email, "+cart-2") == ["identify", "+cart-1", "+cart-2"]
    assert "after a restart" not in server.log
    assert server.stop() == 0


def test_the_contact_that_met_the_401_goes_at_once_too(rotating: Rotating, sandbox: Sandbox) -> None:
    rotating.rotate(SCQ_API_KEY=OLD_API_KEY)
    ann = new_email()
    Browser(rotating.server).push(login(ann), track("cart-1"))
    eventually(lambda: "Sending is halted (401)" in rotating.server.log)
    rotating.rotate(SCQ_API_KEY=API_KEY)
    arrives(sandbox, ann, "+cart-1")
    assert no_probe_was_awaited(sandbox, ann, ann)
