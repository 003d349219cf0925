"""What the script costs the page's main thread in Chromium: `make page-cost`, or `python -m tests.load.page_cost --pages 200`.

Each page is a fresh document. Timed are the script's evaluation, parsing included; its look for what earlier pages left, in a task of its
own, where localStorage is touched first; the first push of the page and the second: the call itself, which the page waits for, and with it
the write to localStorage and the call of fetch, which follow once the page's own code has ended; and a hundred pushes in one go. Beside
them stands what an empty script, the first touch of localStorage and the first fetch of a page, of the same kind, cost by themselves.
Printed are the median and the 95th percentile, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from proxy.sandbox.api import create_sandbox
from tests.support.engines import engine
from tests.support.front import Front, front
from tests.support.live import serving
from tests.support.server import API_KEY, running

SCRIPT = Path(__file__).parents[2] / "static" / "scq.min.js"

PAGE = """<!doctype html><title>Cost</title><script>
addEventListener("load", async () => {
  const source = SOURCE;
  if (location.search.endsWith("fetch")) {
    const before = performance.now();
    localStorage.scq;
    const start = performance.now();
    const request = fetch("/scq/push", {method: "POST", body: '{"v":1,"pushes":[]}', credentials: "include", keepalive: true});
    window.cost = [start - before, performance.now() - start];
    await (await request).text();
    return;
  }
  const run = (text) => {
    const script = document.createElement("script");
    script.dataset.src = "/scq/scq.js";
    script.textContent = text;
    const start = performance.now();
    document.head.append(script);
    return performance.now() - start;
  };
  run("{}"); // what the first script of a page costs in any case
  const empty = run("{ }");
  const later = setTimeout;
  const behind = new Promise((resolve) => {
    setTimeout = (work) => later(async () => {
      const start = performance.now();
      work();
      await 0;
      resolve(performance.now() - start);
    });
  });
  const start = performance.now();
  run(source);
  await 0; // behind what the script does in the same turn
  const load = performance.now() - start;
  setTimeout = later;
  const claim = await behind;
  const push = async (count) => {
    const settled = [];
    const start = performance.now();
    for (let i = 0; i < count; i++) {
      settled.push(new Promise((resolve) => {
        _scq.push(["track", {addTags: ["cart: Teapot"], success: resolve, failure: resolve}]);
      }));
    }
    const call = performance.now() - start;
    await 0; // behind what the script does in the same turn
    const cost = performance.now() - start;
    await Promise.all(settled); // the next one has nothing to take over
    return [call, cost];
  };
  const pushes = [await push(1), await push(1), await push(100)];
  window.cost = [load, claim, ...pushes.flat(), empty, _scq.push !== [].push];
});
</script>"""

# Lets performance.now count in steps of 5 microseconds instead of 100.
ISOLATED = {"Cross_Origin_Opener_Policy": "same-origin", "Cross_Origin_Embedder_Policy": "require-corp"}

ROWS = (
    "load",
    "what is left, later",
    "first push, call",
    "first push",
    "second push, call",
    "second push",
    "100 pushes, call",
    "100 pushes",
    "empty script",
    "first storage",
    "first fetch",
)


class Cost(NamedTuple):
    """Of one page, in milliseconds."""

    load: float
    claim: float
    first_call: float
    first: float
    second_call: float
    second: float
    hundred_call: float
    hundred: float
    empty: float
    storage: float
    fetch: float


def measure(pages: int) -> list[Cost]:
    costs = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(create_sandbox(key=API_KEY)) as url,
        running(
            Path(folder), f"{url}/api/v1/rest", SCQ_TAGS="*", SCQ_LOG_LEVEL="warning", SCQ_RATE_PER_IP="0"
        ) as server,
        front(server.url, Front) as site,
        engine("chromium") as browser,
    ):
        page = site.put("/cost", PAGE.replace("SOURCE", json.dumps(SCRIPT.read_text())), **ISOLATED)
        tab = browser.open(page)
        for number in range(pages):
            tab.go(f"{page}?{number}")
            *cost, works = tab.wait("window.cost")
            assert works, "the script did not start"
            tab.go(f"{page}?{number}-fetch")
            cost.extend(tab.wait("window.cost"))
            costs.append(Cost(*cost))
    return costs


def row(name: str, values: Sequence[float]) -> str:
    return f"{name:20} {statistics.median(values):8.2f} {statistics.quantiles(values, n=20)[-1]:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the script costs the page's main thread in Chromium.")
    parser.add_argument("--pages", type=int, default=200, metavar="N")
    costs = measure(parser.parse_args().pages)
    print(f"{'ms':20} {'median':>8} {'p95':>8}")
    for name, values in zip(ROWS, zip(*costs, strict=True), strict=True):
        print(row(name, values))


if __name__ == "__main__":
    main()
