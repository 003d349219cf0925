"""Libraries that pages have beside the script, as their makers publish them, on three engines.

They evaluate the script as text, wrap fetch, timers and promises, change built-in prototypes, or watch the page. Whatever they do, what is
pushed arrives once and in order, at the proxy and nowhere else, and nothing is thrown.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.engines import Tab
from tests.support.live import eventually
from tests.support.npm import NPM, need
from tests.support.server import new_email
from tests.support.shim import EMBED, Site, identify, outcomes, succeeded

pytestmark = pytest.mark.browser

PROTOTYPE = Path("/usr/share/javascript/prototype/prototype.js")  # 1.7.3, of Debian: npm has no Prototype
# What Prototype up to 1.6 adds as well. JSON.stringify then writes an array as one text.
OLD_PROTOTYPE = "Array.prototype.toJSON = function () { return '[' + this.map(Object.toJSON).join(', ') + ']'; };"

# The page's requests to other hosts.
ELSEWHERE = """performance.getEntriesByType("resource").map(({name}) => name)
  .filter((name) => /^http/.test(name) && !name.startsWith(location.origin + "/"))"""


def library(site: Site, file: str, before: str = "") -> str:
    """Serve a file of an npm package, with this before it; returns a tag that loads it."""
    need("/".join(file.split("/")[: 2 if file.startswith("@") else 1]))
    site.put(f"/{file}", before + (NPM / file).read_text())
    return f'<script src="/{file}"></script>'


def require_delivery(site: Site, head: str, body: str = "", own: tuple[str, ...] = ()) -> Tab:
    """What a page with this in its head pushes arrives once and in order, and is posted nowhere else. `own`: paths the library posts to."""
    email = new_email()
    tab = site.browser.open(site.page("/shop/tea", f"{identify(email)}; track('t-1');", embed=head, body=body))
    site.await_story(email, "identify", "+t-1")
    tab.run("track('t-2')")
    site.await_story(email, "identify", "+t-1", "+t-2")
    tab.run("void delete Array.prototype.toJSON")  # see OLD_PROTOTYPE: it would change what is read out of the page
    assert outcomes(tab, 3) == succeeded("identify", "t-1", "t-2")
    astray = [attempt.calls for attempt in site.tries if not attempt.results]  # to another path than the proxy's
    others = [path for path, headers in site.gets if "content-length" in headers or path.endswith("/push")]
    assert astray + [path for path in others if not path.startswith(own)] == []
    assert tab.run(ELSEWHERE) == []
    return tab


# Libraries that evaluate scripts as text

JQUERY = {"1.12": "jquery-1/dist/jquery.min.js", "3.7": "jquery/dist/jquery.min.js"}
BY_JQUERY = {
    "getScript": "$.getScript('/scq/scq.js')",
    "append": """$("head").append('<script src="/scq/scq.js"><' + '/script>')""",
    "load": "$('#here').load('/fragment.html')",
}


@pytest.mark.parametrize("version", JQUERY)
@pytest.mark.parametrize("way", BY_JQUERY)
def test_jquery_loads_the_script(site: Site, version: str, way: str) -> None:
    site.put("/fragment.html", "<p>Tea</p><script src='/scq/scq.js'></script>")
    head = f"{library(site, JQUERY[version])}<script>$(() => {BY_JQUERY[way]})</script>"
    require_delivery(site, head, "<div id=here></div>")


# Libraries that wrap fetch


@pytest.mark.parametrize("package", ["elastic-5.12", "@elastic/apm-rum"], ids=["5.12", "5.17"])
def test_elastic_rum_watches_requests(site: Site, package: str) -> None:
    start = "elasticApm.init({serviceName: 'shop', serverUrl: location.origin})"
    file = f"{package}/dist/bundles/elastic-apm-rum.umd.min.js"
    head = f"{library(site, file)}<script>{start}</script>{EMBED}"
    tab = require_delivery(site, head, own=("/intake/",))
    assert tab.run("/native code/.test(fetch)") is False


def test_fetch_intercept_reads_urls_and_headers_of_requests(site: Site) -> None:
    head = library(site, "fetch-intercept/lib/browser.min.js", "var module = {};")
    head += """<script>module.exports.register({
      request: (url, options) => url.startsWith("/api/") || url.split("?").length > 1
        ? [url, {...options, headers: {...options.headers, "X-Shop": "1"}}] : [url, options],
      response: (response) => response,
    })</script>"""
    require_delivery(site, head + EMBED)


# Libraries that change what is built in


@pytest.mark.parametrize("more", ["", OLD_PROTOTYPE], ids=["1.7.3", "1.6"])
def test_prototype_extends_built_in_objects(site: Site, more: str) -> None:
    if not PROTOTYPE.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("missing: libjs-prototype, of Debian")
    site.put("/prototype.js", PROTOTYPE.read_text())
    require_delivery(site, f'<script src="/prototype.js"></script><script>{more}</script>{EMBED}')


IN_ZONE = """
  let busy, idle, answered;
  const zone = Zone.current.fork({name: "shop", onHasTask(parent, _, target, {change, macroTask}) {
    if (change === "macroTask") { busy = macroTask; idle = performance.now(); }
    parent.hasTask(target, {change, macroTask});
  }});
"""


def test_zone_js_sees_no_timer_pending_after_an_answer(site: Site) -> None:
    """Angular takes a page as ready once its zone has no timer left."""
    head = library(site, "zone.js/bundles/zone.umd.min.js")
    tab = require_delivery(site, f"{head}<script>{IN_ZONE}</script>{EMBED}")
    success = "() => { answered = performance.now(); }"
    push = f"_scq.push(['track', {{addTags: ['t-3'], success: {success}}}])"
    assert tab.run(f"[zone.run(() => {push}), busy][1]")
    tab.wait("answered && !busy")
    assert tab.run("idle - answered") < 5_000


# A library that watches the page

SENTRY = {
    "@sentry/browser": "build/npm/esm/prod/index.js",
    "@sentry/browser-utils": "build/esm/index.js",
    "@sentry/conventions/attributes": "dist/attributes.mjs",
    "@sentry/conventions/metrics": "dist/metrics.mjs",
    "@sentry/conventions/op": "dist/op.mjs",
    "@sentry/core": "build/esm/index.js",
    "@sentry/core/browser": "build/esm/browser.js",
    "@sentry/feedback": "build/npm/esm/index.js",
    "@sentry/replay": "build/npm/esm/index.js",
    "@sentry/replay-canvas": "build/npm/esm/index.js",
    "web-vitals": "dist/web-vitals.js",
}
RECORDING = """<script type="module">
  import * as Sentry from "@sentry/browser";
  Sentry.init({
    dsn: `http://key@${location.host}/1`,
    integrations: [Sentry.browserTracingIntegration(), Sentry.replayIntegration({networkDetailAllowUrls: [location.origin]})],
    tracesSampleRate: 1, tracePropagationTargets: [/./], replaysSessionSampleRate: 1,
  });
  document.head.append(Object.assign(document.createElement("script"), {src: "/scq/scq.js"}));
</script>"""


def modules(site: Site, entries: dict[str, str]) -> str:
    """Serve what is beside these entries of npm packages, and below; returns the import map."""
    imports = {}
    for name, entry in entries.items():
        package = "/".join(name.split("/")[: 2 if name.startswith("@") else 1])
        need(package)
        for file in (NPM / package / entry).parent.rglob("*"):
            if file.suffix in (".js", ".mjs"):
                site.put(f"/{file.relative_to(NPM)}", file.read_text(), Content_Type="text/javascript")
        imports[name] = f"/{package}/{entry}"
    return f'<script type="importmap">{json.dumps({"imports": imports})}</script>'


def test_sentry_traces_requests_and_records_the_page(site: Site) -> None:
    require_delivery(site, modules(site, SENTRY) + RECORDING, own=("/api/1/",))
    assert "sentry-trace" in site.tries[-1].headers
    eventually(lambda: any("/envelope/" in path for path, _ in site.gets))
