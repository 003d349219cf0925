"""Content blockers let everything of ours pass: uBlock Origin's engine and Ghostery's, asked with the lists that uBlock Origin has on.

The engines are their makers' own, and the lists are those of Debian's package. The same run asks about the usual names of other products,
which are blocked.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from proxy.app import create_app
from proxy.config.settings import load_settings
from tests.support.live import serving
from tests.support.npm import NPM, need
from tests.support.server import environment

ASK = Path(__file__).parents[1] / "support" / "blockers.mjs"
UBLOCK_ORIGIN = Path("/usr/share/chromium/extensions/ublock-origin")

PAGE = "https://www.example.com/"
HOSTS = ("www.example.com", "t.example.com")  # the site's own, and a sister of it
TYPES = ("script", "xmlhttprequest", "ping")  # a tag, fetch, and fetch with keepalive as some browsers call it
# Plausible, Matomo and Google's Tag Manager, where they are by default, also on the site's own host.
OTHERS = (
    ("https://plausible.io/js/script.js", "script"),
    ("https://plausible.io/api/event", "xmlhttprequest"),
    ("https://www.example.com/js/plausible.js", "script"),
    ("https://www.example.com/matomo.js", "script"),
    ("https://www.example.com/matomo.php", "xmlhttprequest"),
    ("https://www.example.com/matomo.php", "ping"),
    ("https://www.googletagmanager.com/gtm.js?id=GTM-ABC123", "script"),
    ("https://www.example.com/gtm.js", "script"),
)


def paths(store: Path) -> set[str]:
    """Every path that the program serves to the public, as its routes say."""
    app = create_app(load_settings(environment("https://sendx.example", store), None))
    with serving(app):  # fills the routes
        routes = [route.path for route in app.routes if isinstance(route, Route)]
    public = [path for path in routes if path.startswith(("/scq/", "/prod/"))]
    return {path.format(name="TEAMID", digest="0123456789ab") for path in public}


def blocked(requests: Sequence[tuple[str, str]]) -> dict[str, list[Any]]:
    """Returns for each engine the requests that it blocks: URL, type, and the filter."""
    need("@gorhill/ubo-core", "@ghostery/adblocker")
    if not UBLOCK_ORIGIN.is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("missing: webext-ublock-origin-chromium, of Debian")
    given = json.dumps({"page": PAGE, "requests": requests})
    done = subprocess.run(
        ["node", ASK, NPM, UBLOCK_ORIGIN], input=given, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def test_blockers_stop_other_products_and_nothing_of_ours(tmp_path: Path) -> None:
    served = paths(tmp_path / "scq.db")
    assert {"/scq/scq.js", "/scq/scq.debug.js", "/scq/push", "/prod/TEAMID.js", "/prod/push"} <= served
    ours = [(f"https://{host}{path}", kind) for host, path, kind in product(HOSTS, sorted(served), TYPES)]
    for engine, found in blocked([*ours, *OTHERS]).items():
        assert [(url, kind) for url, kind, _ in found] == list(OTHERS), f"{engine}: {found}"
