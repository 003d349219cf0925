"""The demo: the fake SendX, the proxy and the example shop in one process.

The shop and the proxy share one origin, as on a real site; the fake SendX has a port of its own. The store is a real SQLite file in a directory
that goes with the demo. Nothing here is for production: the secrets are drawn at every start.
"""

import runpy
import secrets
import tempfile
from collections.abc import Callable

from starlette.applications import Starlette

from proxy.app import create_app
from proxy.config.settings import Settings, load_settings
from proxy.resources import shipped
from proxy.sandbox.api import create_sandbox
from proxy.web.server import Site, serve

SANDBOX_KEY = "sandbox"


async def run_demo(
    *, host: str, port: int, sandbox_port: int, origin: str | None, on_listening: Callable[[str, str], None]
) -> None:
    """Serves the demo until a signal. `origin`: where the browser finds the shop, if not at http://host:port.

    `on_listening` gets the two URLs to open: the shop's and the sandbox page's.
    """
    shop_url, sandbox_url = origin or _url(host, port), _url(host, sandbox_port)
    with tempfile.TemporaryDirectory(prefix="scq-proxy-demo-") as directory:
        settings = _settings(directory, shop_url, sandbox_port)
        sites = [
            Site(create_sandbox(key=SANDBOX_KEY), host, sandbox_port),
            Site(create_app(settings, fallback=_shop(settings, sandbox_url)), host, port, asks="/healthz"),
        ]
        await serve(sites, lambda _: on_listening(shop_url, sandbox_url))


def _settings(directory: str, origin: str, sandbox_port: int) -> Settings:
    environ = {
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


def _shop(settings: Settings, sandbox_url: str) -> Starlette:
    """Returns the example shop, run from its own file: like any site's back end, it is not part of the package."""
    shop = runpy.run_path(str(shipped("examples/shop/shop.py")))
    app: Starlette = shop["create_shop"](
        identity_key=settings.identity_keys[0].secret.reveal(),
        script_url=f"{settings.prefix}/{settings.script}",
        sandbox_url=sandbox_url,
    )
    return app


def _url(host: str, port: int) -> str:
    """Returns the URL at which a browser on this machine reaches what listens on `host`."""
    names = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
    return f"http://{names.get(host, f'[{host}]' if ':' in host else host)}:{port}"
