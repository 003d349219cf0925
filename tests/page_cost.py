"""What the script costs the page's main thread in Chromium: `make page-cost`, or `python -m tests.page_cost --pages 200`.

Each page is a fresh document. Timed are the script's evaluation, parsing included; the first push of the page and the second: the call
itself, the write to localStorage and the call of fetch that follow it at once; and a hundred pushes in one go. Beside them stands what an
empty script and a call of fetch cost by themselves. Printed are the median and the 95th percentile, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from proxy.sandbox import create_sandbox
from tests.engines import engine
from tests.front import Front, front
from tests.live import serving
from tests.server import API_KEY, running

PAGE = """<!doctype html><title>Cost</title><script>
addEventListener("load", async () => {
  const source = await (await fetch("/scq/scq.js")).text();
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
  const load = run(source);
  await 0; // what it does behind that, with nothing to send
  const push = async (count) => {
    const settled = [];
    const start = performance.now();
    for (let i = 0; i < count; i++) {
      settled.push(new Promise((resolve) => {
        _scq.push(["track", {addTags: ["cart: Teapot"], success: resolve, failure: resolve}]);
      }));
    }
    await 0; // behind what the script does in the same turn
    const cost = performance.now() - start;
    await Promise.all(settled); // the next one has nothing to take over
    return cost;
  };
  const pushes = [await push(1), await push(1), await push(100)];
  const before = performance.now();
  const request = fetch("/scq/push", {method: "POST", body: '{"v":1,"pushes":[]}', credentials: "include", keepalive: true});
  const bare = performance.now() - before;
  await (await request).text();
  window.cost = [load, ...pushes, empty, bare, _scq.push !== [].push];
});
</script>"""

# Lets performance.now count in steps of 5 microseconds instead of 100.
ISOLATED = {"Cross_Origin_Opener_Policy": "same-origin", "Cross_Origin_Embedder_Policy": "require-corp"}


class Cost(NamedTuple):
    """Of one page, in milliseconds."""

    load: float
    first: float
    second: float
    hundred: float
    empty: float
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
        page = site.put("/cost", PAGE, **ISOLATED)
        tab = browser.open(page)
        for number in range(pages):
            tab.go(f"{page}?{number}")
            *cost, works = tab.wait("window.cost")
            assert works, "the script did not start"
            costs.append(Cost(*cost))
    return costs


def row(name: str, values: list[float]) -> str:
    return f"{name:12} {statistics.median(values):8.2f} {statistics.quantiles(values, n=20)[-1]:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the script costs the page's main thread in Chromium.")
    parser.add_argument("--pages", type=int, default=200, metavar="N")
    costs = measure(parser.parse_args().pages)
    print(f"{'ms':12} {'median':>8} {'p95':>8}")
    print(row("load", [cost.load for cost in costs]))
    print(row("first push", [cost.first for cost in costs]))
    print(row("second push", [cost.second for cost in costs]))
    print(row("100 pushes", [cost.hundred for cost in costs]))
    print(row("empty script", [cost.empty for cost in costs]))
    print(row("fetch alone", [cost.fetch for cost in costs]))


if __name__ == "__main__":
    main()
