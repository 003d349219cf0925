"""Every defect that was ever found, replayed: each file of `tests/findings/` tells what went wrong, what is sent, and what must come of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from proxy.sandbox.api import Sandbox
from tests.support.server import Browser, Json, Server, arrives, is_anywhere, new_email, new_id, outcomes, token
from tests.support.threats import assert_nothing_failed, sent
from tests.support.wire import batch

FINDINGS = sorted((Path(__file__).parents[2] / "findings").glob("*.json"))


class Replay:
    """One finding against the running server. In its texts, $name is an address and #name a tag, one for each name, and %name an id."""

    def __init__(self, server: Server, sandbox: Sandbox) -> None:
        self.server, self.sandbox = server, sandbox
        self._names: dict[str, str] = {}
        self._browsers: dict[str, Browser] = {}

    def fill(self, value: Json) -> Json:
        """The value with names and pieces put in: {"repeat": text, "times": n}, {"join": [...]}, {"nest": levels}, {"sign": claims} and the rest."""
        if isinstance(value, str):
            return re.sub(r"([$#%])([a-z]+)\b", self._named, value)
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not isinstance(value, dict):
            return value
        match value:
            case {"repeat": text, "times": times}:
                return self.fill(text) * times
            case {"join": parts}:
                return "".join(self.fill(part) for part in parts)
            case {"nest": levels}:
                return json.loads("[" * levels + "]" * levels)
            case {"sign": said}:
                return token(**self.fill(said))
            case {"float": text}:
                return float(text)
            case {"power": digits}:
                return 10**digits
        return {self.fill(key): self.fill(item) for key, item in value.items()}

    def _named(self, found: re.Match[str]) -> str:
        make = {"$": new_email, "#": lambda: f"cart-{new_id()[:8]}", "%": new_id}[found[1]]
        return self._names.setdefault(found[0], make())

    def browser(self, name: str) -> Browser:
        return self._browsers.setdefault(name, Browser(self.server))

    def step(self, step: dict[str, Json]) -> None:
        """A request as it is written, a body, calls of a browser, or what must have arrived at SendX in the end."""
        self._names = {name: text for name, text in self._names.items() if not name.startswith("%")}
        if "raw" in step:
            answer = self.server.raw(self.fill(step["raw"]).encode("latin-1"))
            assert re.match(rf"HTTP/1.1 ({step['answer']}) ", answer.decode("latin-1")), answer[:200]
        elif "body" in step:
            response = self.server.send(self.fill(step["body"]).encode())
            assert response.status_code in step["status"]
            assert response.status_code != 202 or outcomes(response.json()["results"]) == step.get("outcomes", [])
        elif "calls" in step:
            self._calls(self.browser(step.get("browser", "a")), step)
        else:
            self._arrives(self.fill(step["arrives"]), self.fill(step.get("nowhere", [])))

    def _calls(self, browser: Browser, step: dict[str, Json]) -> None:
        calls = self.fill(step["calls"])
        if "with_s_of" in step:
            browser.s = self.browser(step["with_s_of"]).s
        if "cookie" in step:
            header = step["cookie"].replace("GENUINE", browser.cookie).encode("latin-1")
            results = sent(self.server, batch(*calls), [(b"Cookie", header)]).json()["results"]
        else:
            results = browser.push(*calls)
        assert outcomes(results) == step["outcomes"]

    def _arrives(self, expected: dict[str, list[str]], nowhere: list[str]) -> None:
        for address, tags in expected.items():
            events = arrives(self.sandbox, address, tags[-1])
            assert [event for event in events if event != "identify"] == tags, "identifies may have been merged"
        for text in nowhere:
            assert not is_anywhere(self.sandbox, text)


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_what_was_found_once_stays_mended(server: Server, sandbox: Sandbox, path: Path) -> None:
    finding = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(finding) == ["found", "now", "steps"]
    replay = Replay(server, sandbox)
    for step in finding["steps"]:
        replay.step(step)
    assert_nothing_failed(server)


def test_the_corpus_of_findings_is_not_lost() -> None:
    assert len(FINDINGS) >= 20
