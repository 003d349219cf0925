"""Three browser engines behind one small interface: Debian's Chromium, Firefox ESR and WebKitGTK.

    with engine("firefox") as browser:
        tab = browser.open("http://127.0.0.1:8000/")
        tab.run("document.title"); tab.click("#away"); tab.back(); tab.close()

Each speaks to its browser directly: the DevTools protocol with Chromium, WebDriver BiDi with Firefox (no geckodriver), classic
WebDriver with WebKitGTK's MiniBrowser, for which an Xvfb is started. A tab does what a person does; it answers no request,
injects no script before the page's own, and waits for nothing but what it says. All tabs of one engine share a profile, so tests
keep apart by address: each of 127.0.0.0/8 has cookies and storage of its own.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import select
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.support.live import PATIENCE_SECONDS, eventually, free_port

NAMES = ("chromium", "firefox", "webkit")

CHROMIUM = "/usr/bin/chromium"
FIREFOX = "/usr/bin/firefox-esr"
WEBKIT_DRIVER = "/usr/bin/WebKitWebDriver"
XVFB = "/usr/bin/Xvfb"
PACKAGES = {CHROMIUM: "chromium", FIREFOX: "firefox-esr", WEBKIT_DRIVER: "webkit2gtk-driver", XVFB: "xvfb"}


CHROMIUM_ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-sandbox",  # Chromium's own sandbox refuses to start as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-quic",
)
FIREFOX_PREFERENCES: dict[str, bool | int | str] = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.aboutwelcome.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",  # nothing is fetched from Mozilla
    "toolkit.telemetry.server": "data:,",
}


class EngineError(Exception):
    """A command to the browser failed: the page threw, or it is being replaced by the next one just now."""


class Tab(ABC):
    """One tab."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @abstractmethod
    def go(self, url: str) -> None:
        """Navigate there, and wait until the page has loaded."""

    @abstractmethod
    def evaluate(self, script: str) -> Any:
        """The value, a string, of an expression; a promise is awaited. Raises EngineError."""

    @abstractmethod
    def click(self, selector: str) -> None:
        """Click with the mouse."""

    @abstractmethod
    def close(self) -> None:
        """Close it at once."""

    def crash(self) -> None:
        """End its process; nothing runs any more. Raises NotImplementedError where the engine cannot."""
        raise NotImplementedError

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, through JSON; undefined is None. Promises are awaited. Raises EngineError."""
        return json.loads(self.evaluate(f"(async () => JSON.stringify((await ({script}\n)) ?? null))()"))

    def wait(self, script: str, timeout: float = PATIENCE_SECONDS) -> Any:
        """Wait until the expression's value is true, across navigations, and return it."""
        return eventually(lambda: self._try(script), timeout)

    def back(self) -> None:
        """Press back. May return before the page is there: one out of the back/forward cache does not load."""
        self.run("void setTimeout(() => history.back())")

    def _try(self, script: str) -> Any:
        with suppress(EngineError):
            return self.run(script)
        return None


class Engine(ABC):
    """A running browser."""

    name: str

    def __init__(self) -> None:
        self.tabs: list[Tab] = []

    @abstractmethod
    def new_tab(self) -> Tab:
        """An empty tab, in front of the others."""

    @abstractmethod
    def quit(self) -> None:
        """Ask the browser to end."""

    def open(self, url: str) -> Tab:
        """A new tab at `url`, loaded."""
        tab = self.new_tab()
        self.tabs.append(tab)
        tab.go(url)
        return tab

    def close_tabs(self) -> None:
        """Close whatever is still open."""
        for tab in self.tabs:
            with suppress(EngineError):
                tab.close()
        self.tabs.clear()

    def set_offline(self, tab: Tab, offline: bool) -> None:
        """Take the tab off the network, or back. Raises NotImplementedError where the engine cannot."""
        raise NotImplementedError


@contextmanager
def engine(name: str, **preferences: bool) -> Iterator[Engine]:
    """Run an engine while the block runs. `preferences`: of Firefox, underscores for dots.

    Where something is missing the test is skipped, or with `CI` set fails.
    """
    with ExitStack() as stack:
        started = _STARTERS[name](stack, {key.replace("_", "."): value for key, value in preferences.items()})
        try:
            yield started
            started.close_tabs()
        finally:
            with suppress(EngineError, OSError):
                started.quit()


# Chromium and Firefox: commands as JSON over a WebSocket


class _Wire:
    """A WebSocket on which commands are answered by number; events between are handed to `heard`."""

    def __init__(self, socket: ClientConnection, heard: Callable[[dict[str, Any]], None]) -> None:
        self._socket, self._heard = socket, heard
        self._numbers = itertools.count(1)

    def send(self, method: str, params: dict[str, Any], **envelope: str) -> int:
        """Send a command and return its number."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params, **envelope}))
        return number

    def call(self, method: str, params: dict[str, Any], **envelope: str) -> Any:
        """Send a command and return its result. Raises EngineError."""
        number = self.send(method, params, **envelope)
        try:
            while (answer := json.loads(self._socket.recv(PATIENCE_SECONDS))).get("id") != number:
                self._heard(answer)
        except TimeoutError:
            raise EngineError(f"{method}: no answer within {PATIENCE_SECONDS:g} s") from None
        if "error" in answer:
            raise EngineError(f"{method}: {answer.get('message') or answer['error']}")
        return answer["result"]


class _Chromium(Engine):
    name = "chromium"

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__()
        self.wire = _Wire(socket, self._hear)
        # Sessions of each tab's pages, the one in sight first. A tab has several while it prerenders; attached to a page without
        # its tab, DevTools forbids that.
        self.pages: dict[str, list[str]] = {}

    def new_tab(self) -> _ChromiumTab:
        target = self.wire.call("Target.createTarget", {"url": "about:blank", "forTab": True})["targetId"]
        session = self.wire.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self.pages[session] = []
        attach = {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": True}
        self.wire.call("Target.setAutoAttach", attach, sessionId=session)
        return _ChromiumTab(self, target, session)

    def _hear(self, event: dict[str, Any]) -> None:
        method, pages = event.get("method"), self.pages.get(event.get("sessionId", ""), [])
        if method == "Target.attachedToTarget":
            pages.append(event["params"]["sessionId"])
        elif method == "Target.detachedFromTarget" and event["params"]["sessionId"] in pages:
            pages.remove(event["params"]["sessionId"])

    def set_offline(self, tab: Tab, offline: bool) -> None:
        assert isinstance(tab, _ChromiumTab)
        tab.call("Network.enable")
        conditions = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        tab.call("Network.emulateNetworkConditions", **conditions)

    def quit(self) -> None:
        self.wire.call("Browser.close", {})


class _ChromiumTab(Tab):
    def __init__(self, browser: _Chromium, target: str, session: str) -> None:
        super().__init__(browser)
        self._wire, self._pages = browser.wire, browser.pages[session]
        self._target, self._crashed = target, False

    def call(self, method: str, **params: Any) -> Any:
        if self._crashed or not self._pages:
            raise EngineError(f"{method}: the tab has gone")
        return self._wire.call(method, params, sessionId=self._pages[0])

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise EngineError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"]["value"]

    def click(self, selector: str) -> None:
        middle = f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({_element(selector)}.getBoundingClientRect())"
        x, y = self.run(middle)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self) -> None:
        if self._crashed:
            self._wire.call("Target.closeTarget", {"targetId": self._target})
        else:
            self.call("Page.close")

    def crash(self) -> None:
        self._wire.send("Page.crash", {}, sessionId=self._pages[0])  # nobody is left to answer
        self._crashed = True


class _Firefox(Engine):
    name = "firefox"

    def __init__(self, wire: _Wire) -> None:
        super().__init__()
        self.wire = wire

    def new_tab(self) -> _FirefoxTab:
        return _FirefoxTab(self, self.wire, self.wire.call("browsingContext.create", {"type": "tab"})["context"])

    def set_offline(self, tab: Tab, offline: bool) -> None:
        assert isinstance(tab, _FirefoxTab)
        conditions = {"type": "offline"} if offline else None
        tab.call("emulation.setNetworkConditions", {"networkConditions": conditions, "contexts": [tab.context]})

    def quit(self) -> None:
        self.wire.call("browser.close", {})


class _FirefoxTab(Tab):
    def __init__(self, browser: Engine, wire: _Wire, context: str) -> None:
        super().__init__(browser)
        self._wire, self.context = wire, context

    def call(self, method: str, params: dict[str, Any]) -> Any:
        return self._wire.call(method, params)

    def go(self, url: str) -> None:
        self.call("browsingContext.navigate", {"context": self.context, "url": url, "wait": "complete"})

    def evaluate(self, script: str) -> Any:
        return self._remote(script)["value"]

    def click(self, selector: str) -> None:
        shared = eventually(lambda: self._remote(_element(selector)).get("sharedId"))  # the page may still be coming
        origin = {"type": "element", "element": {"sharedId": shared}}
        moves: list[dict[str, Any]] = [
            {"type": "pointerMove", "x": 0, "y": 0, "origin": origin},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": moves}
        self.call("input.performActions", {"context": self.context, "actions": [mouse]})

    def close(self) -> None:
        self.call("browsingContext.close", {"context": self.context})

    def _remote(self, script: str) -> Any:
        target = {"context": self.context}
        answer = self.call("script.evaluate", {"expression": script, "target": target, "awaitPromise": True})
        if answer["type"] != "success":
            raise EngineError(f"{script}: {answer['exceptionDetails']['text']}")
        return answer["result"]


def _element(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


def _start_chromium(stack: ExitStack, _: dict[str, bool]) -> Engine:
    _require(CHROMIUM)
    profile = _profile(stack)
    arguments = [CHROMIUM, *CHROMIUM_ARGUMENTS, f"--user-data-dir={profile}"]
    address = _spawn_listening(stack, arguments, r"DevTools listening on (ws://\S+)\s")
    return _Chromium(stack.enter_context(_connect(address)))


def _start_firefox(stack: ExitStack, preferences: dict[str, bool]) -> Engine:
    _require(FIREFOX)
    profile = _profile(stack)
    wanted = {**FIREFOX_PREFERENCES, **preferences}
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in wanted.items()]
    (profile / "user.js").write_text("".join(lines))
    arguments = [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    address = _spawn_listening(stack, arguments, r"WebDriver BiDi listening on (ws://\S+)\s")
    wire = _Wire(stack.enter_context(_connect(f"{address}/session")), lambda event: None)
    wire.call("session.new", {"capabilities": {}})
    return _Firefox(wire)


def _connect(address: str) -> ClientConnection:
    return connect(address, max_size=None, compression=None, proxy=None, open_timeout=PATIENCE_SECONDS)


# WebKitGTK: one HTTP request for each command, as the W3C says


class _Driver:
    """A session of WebKitWebDriver."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self._session = ""
        options = {"binary": str(_mini_browser()), "args": ["--automation"]}
        wanted = {"browserName": "MiniBrowser", "webkitgtk:browserOptions": options}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self._session = f"/session/{session}"
        self.window: str = self.call("GET", "/window")

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a command and return its value. Raises EngineError."""
        text = json.dumps(body or {}) if method == "POST" else None
        try:
            self._connection.request(method, self._session + path, text, {"Content-Type": "application/json"})
            answer = json.load(self._connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            raise EngineError(f"{method} {path}: {error}") from error
        value = answer["value"]
        if isinstance(value, dict) and "error" in value:
            raise EngineError(f"{method} {path}: {value['error']}: {value.get('message')}")
        return value

    def end(self) -> None:
        self.call("DELETE", "")
        self._connection.close()

    def show(self, window: str) -> None:
        """Aim the next commands at a window."""
        if window != self.window:
            self.call("POST", "/window", {"handle": window})
            self.window = window


class _WebKit(Engine):
    name = "webkit"

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self.driver, self._first = driver, driver.window

    def new_tab(self) -> _WebKitTab:
        self.driver.show(self._first)  # the window aimed at may have closed
        return _WebKitTab(self, self.driver, self.driver.call("POST", "/window/new", {"type": "tab"})["handle"])

    def quit(self) -> None:
        self.driver.end()


class _WebKitTab(Tab):
    def __init__(self, browser: Engine, driver: _Driver, window: str) -> None:
        super().__init__(browser)
        self._driver, self._window = driver, window

    def call(self, path: str, body: dict[str, Any]) -> Any:
        self._driver.show(self._window)
        return self._driver.call("POST", path, body)

    def go(self, url: str) -> None:
        self.call("/url", {"url": url})

    def evaluate(self, script: str) -> Any:
        wrapped = f"const tell = arguments[0]; ({script}).then(tell, (error) => tell({{thrown: String(error)}}))"
        value = self.call("/execute/async", {"script": wrapped, "args": []})
        if not isinstance(value, str):
            raise EngineError(f"{script}: {value}")
        return value

    def click(self, selector: str) -> None:
        element = self.call("/element", {"using": "css selector", "value": selector})
        self.call(f"/element/{next(iter(element.values()))}/click", {})

    def back(self) -> None:
        self.call("/back", {})  # a script that meets the page on its way out is never answered

    def close(self) -> None:
        self._driver.show(self._window)
        self._driver.call("DELETE", "/window")
        self._driver.window = ""


def _start_webkit(stack: ExitStack, _: dict[str, bool]) -> Engine:
    _require(WEBKIT_DRIVER, XVFB)
    port = free_port()
    environ = {**os.environ, "DISPLAY": _start_display(stack)}
    _spawn(stack, [WEBKIT_DRIVER, "--host=127.0.0.1", f"--port={port}"], env=environ)
    eventually(lambda: _is_listening(port), PATIENCE_SECONDS)
    return _WebKit(_Driver(port))


def _start_display(stack: ExitStack) -> str:
    """Run an Xvfb on a display that is free; returns its name."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as told:
        try:
            screen = ["-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
            _spawn(stack, [XVFB, "-displayfd", str(writer), *screen], pass_fds=[writer])
        finally:
            os.close(writer)
        return ":" + _read_display(told)


def _is_listening(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/status")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _mini_browser() -> Path:
    found = sorted(Path("/usr").glob("lib*/**/webkit2gtk-4.*/MiniBrowser"))
    assert found, "MiniBrowser is missing, which Debian's webkit2gtk-driver depends on"
    return found[-1]


# Processes


_STARTERS: dict[str, Callable[[ExitStack, dict[str, bool]], Engine]] = {
    "chromium": _start_chromium,
    "firefox": _start_firefox,
    "webkit": _start_webkit,
}


def _require(*paths: str) -> None:
    missing = [path for path in paths if not Path(path).exists()]
    if not missing:
        return
    packages = " ".join(PACKAGES[path] for path in missing)
    reason = f"{', '.join(missing)} missing; install with: apt-get install -y --no-install-recommends {packages}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _profile(stack: ExitStack) -> Path:
    # A browser may still be writing while it is ended.
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scq-", ignore_cleanup_errors=True)))


def _spawn(stack: ExitStack, arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, which is ended with the block."""
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process: subprocess.Popen[bytes] = subprocess.Popen(arguments, start_new_session=True, **(quiet | options))
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)


def _spawn_listening(stack: ExitStack, arguments: Sequence[str], pattern: str) -> str:
    """Start a browser and return the address that it says it listens on."""
    log = _profile(stack) / "log"
    with log.open("wb") as output:
        process = _spawn(stack, arguments, stderr=output)

    def found() -> re.Match[str] | None:
        text = log.read_text("utf-8", "replace")
        assert process.poll() is None, f"{arguments[0]} ended at once:\n{text}"
        return re.search(pattern, text)

    match = eventually(found, PATIENCE_SECONDS)
    assert match is not None
    return match[1]


def _read_display(told: IO[bytes]) -> str:
    ready, _, _ = select.select([told], [], [], PATIENCE_SECONDS)
    number = told.readline().decode().strip() if ready else ""
    assert number, f"{XVFB} did not start"
    return number
