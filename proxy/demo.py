"""The demo: the fake SendX, the proxy and the example shop in one process, with a real SQLite file.

The shop and the proxy share one origin, as they should in real life; the fake SendX has a port of its own. The store is in a directory that goes
with the demo. Nothing here is for production: the secrets are drawn at every start.
"""

from __future__ import annotations

import importlib.util
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

from starlette.applications import Starlette

from proxy.app import create_app
from proxy.config.settings import Settings, load_settings
from proxy.resources import shipped
from proxy.sandbox.api import create_sandbox
from proxy.web.server import Site, serve

SANDBOX_KEY = "sandbox"


class _ShopModule(Protocol):
    def create_shop(self, *, identity_key: str, script_url: str, sandbox_url: str | None) -> Starlette: ...


async def run_demo(
    *, host: str, port: int, sandbox_port: int, origin: str | None, on_listening: Callable[[str, str], None]
) -> None:
    """Serves the demo until a signal. `origin`: where the browser finds the shop, if not at http://host:port.

    `on_listening` gets the two addresses to open: the shop's and the sandbox page's.
    """
    shop_url = origin or f"http://{_reachable(host)}:{port}"
    sandbox_url = f"http://{_reachable(host)}:{sandbox_port}"
    with tempfile.TemporaryDirectory(prefix="scq-proxy-demo-") as directory:
        settings = demo_settings(Path(directory), shop_url, sandbox_port)
        shop = load_shop().create_shop(
            identity_key=settings.identity_keys[0].secret.reveal(),
            script_url=f"{settings.prefix}/scq.js",
            sandbox_url=sandbox_url,
        )
        sites = [
            Site(create_sandbox(key=SANDBOX_KEY), host, sandbox_port),
            Site(create_app(settings, fallback=shop), host, port),
        ]
        await serve(sites, lambda ports: on_listening(shop_url, sandbox_url))


def demo_settings(directory: Path, origin: str, sandbox_port: int) -> Settings:
    """Settings that make the shop work, with secrets of their own."""
    environ: Mapping[str, str] = {
        "SCQ_API_KEY": SANDBOX_KEY,
        "SCQ_UPSTREAM": f"http://127.0.0.1:{sandbox_port}/api/v1/rest",
        "SCQ_SECRET_KEYS": secrets.token_urlsafe(32),
        "SCQ_IDENTITY_KEYS": secrets.token_urlsafe(32),
        "SCQ_ORIGINS": origin,
        "SCQ_IDENTIFY": "asserted",
        "SCQ_TAGS": "newsletter,cart: *,clicked upgrade",
        "SCQ_ASSERTED_TAGS": "newsletter",
        "SCQ_STORE": f"sqlite:///{directory}/scq.db",
        "SCQ_MIN_FREE_MB": "16",
    }
    return load_settings(environ, None)


def load_shop() -> _ShopModule:
    """The example's own module, from its own file: it is no part of the package, as a site's back end is none."""
    spec = importlib.util.spec_from_file_location("scq_proxy_shop", shipped("examples/shop/shop.py"))
    if spec is None or spec.loader is None:
        raise RuntimeError("examples/shop/shop.py is missing from this installation")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return cast(_ShopModule, module)


def _reachable(host: str) -> str:
    """A name under which a browser on this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
