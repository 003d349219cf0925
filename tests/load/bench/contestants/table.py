"""Who takes part, and how each is started."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.load.bench.machine import NPM, ROOT
from tests.load.bench.programs import Launch
from tests.load.bench.traffic import TAG
from tests.load.soak import quiet_port
from tests.support.server import ADMIN_TOKEN, API_KEY, command, environment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contestant:
    """Somebody to be measured.

    `name`: in the JSON. `launch` gets SendX's port and a directory of its own. `durable`: it stores what it acknowledges.
    `one_by_one`: it sends the pushes of a request one after the other, and answers then.
    """

    name: str
    title: str
    launch: Callable[[int, Path], Launch]
    durable: bool = False
    one_by_one: bool = False


def _limit(app: str, http: str) -> Callable[[int, Path], Launch]:
    def launch(upstream_port: int, directory: Path) -> Launch:
        port = quiet_port()
        arguments = ["--app", app, "--http", http, "--port", str(port)]
        return Launch([sys.executable, "-m", "tests.load.bench.contestants.limits", *arguments], port, _python())

    return launch


def _proxy(upstream_port: int, directory: Path) -> Launch:
    port = quiet_port()
    settings = environment(
        f"http://127.0.0.1:{upstream_port}/api/v1/rest",
        directory / "scq.db",
        SCQ_TAGS=f"{TAG},tag-*",
        SCQ_ADMIN_TOKEN=ADMIN_TOKEN,
        SCQ_PORT=str(port),
        SCQ_LANE_MAX="10000000",
        SCQ_LOG_LEVEL="info",
        SCQ_UPSTREAM_TIMEOUT="20",
    )

    def clear() -> None:
        for file in directory.glob("scq.db*"):
            file.unlink()

    return Launch(command("serve"), port, settings, clear=clear)


def _starlette_httpx(*options: str) -> Callable[[int, Path], Launch]:
    def launch(upstream_port: int, directory: Path) -> Launch:
        port = quiet_port()
        arguments = [
            sys.executable,
            "-m",
            "tests.load.bench.contestants.starlette_httpx",
            "--port",
            str(port),
            *options,
        ]
        return Launch(arguments, port, _python() | _passing(upstream_port))

    return launch


def _fastify_undici(upstream_port: int, directory: Path) -> Launch:
    port = quiet_port()
    environ = _passing(upstream_port) | {"PORT": str(port), "NPM": str(NPM), "NODE_ENV": "production"}
    return Launch(["node", str(HERE / "fastify_undici.mjs")], port, environ)


def _nginx(upstream_port: int, directory: Path) -> Launch:
    port = quiet_port()
    configuration = (HERE / "nginx.conf").read_text()
    for name, text in {"PORT": str(port), "UPSTREAM_PORT": str(upstream_port), "API_KEY": API_KEY}.items():
        configuration = configuration.replace(f"@{name}@", text)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "nginx.conf").write_text(configuration)
    return Launch([_nginx_command() or "nginx", "-p", f"{directory}/", "-c", "nginx.conf", "-e", "stderr"], port, {})


def _python() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT)}


def _passing(upstream_port: int) -> dict[str, str]:
    return {"UPSTREAM": f"http://127.0.0.1:{upstream_port}/api/v1/rest", "API_KEY": API_KEY}


def _nginx_command() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


ASGI = Contestant("asgi", "bare ASGI function", _limit("asgi", "stock"))
OUR_HTTP = Contestant("asgi-http1", "bare ASGI function, our HTTP", _limit("asgi", "ours"))
STARLETTE = Contestant("starlette", "Starlette route", _limit("starlette", "stock"))
PROXY = Contestant("scq-proxy", "scq-proxy", _proxy, durable=True)
HTTPX = Contestant("httpx", "Starlette + httpx", _starlette_httpx(), one_by_one=True)
HTTPX_FIRST = Contestant("httpx-first", "Starlette + httpx, answers first", _starlette_httpx("--answer-first"))
NODE = Contestant("node", "fastify + undici", _fastify_undici, one_by_one=True)
NGINX = Contestant("nginx", "nginx", _nginx)

PASSTHROUGHS = (HTTPX, NODE, NGINX)


def missing() -> list[str]:
    """What has to be installed before anything can be measured."""
    tools = [name for name in ("wrk", "taskset", "node") if shutil.which(name) is None]
    tools += [] if _nginx_command() else ["nginx"]
    return tools + [name for name in ("fastify", "undici") if not (NPM / name).exists()]
