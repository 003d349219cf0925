"""How large scripts of this kind are, as one table: ours as built, and others' from the packages that their makers publish on npm.

    python -m tests.load.sizes           the table, which needs the network and `.ci/setup test`
    python -m tests.load.sizes --ours    ours alone, from static/

Each is measured as the one file that a page loads first, compressed as well as gzip and brotli can. What is published for bundlers,
and not minified, goes through terser before that; what a script loads later is not counted. Makers who publish no such file on npm
(Fathom, Umami) are not in it.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import brotli

ROOT = Path(__file__).parents[2]
MIN = ROOT / "static" / "scq.min.js"
TERSER = ROOT / ".venv" / "npm" / "node_modules" / ".bin" / "terser"


@dataclass(frozen=True)
class Peer:
    """`package`: name and version on npm. `path`: the file in it that a page would load."""

    name: str
    package: str
    path: str


PEERS = (
    Peer("Plausible", "@plausible-analytics/tracker@0.4.6", "plausible.js"),
    Peer("OpenPanel", "@openpanel/web@1.4.1", "dist/src/tracker.global.js"),
    Peer("Swetrix", "swetrix@4.6.1", "dist/swetrix.js"),
    Peer("Snowplow", "@snowplow/browser-tracker@4.10.1", "dist/index.umd.min.js"),
    Peer("Segment", "@segment/analytics-next@1.84.3", "dist/umd/standalone.js"),
    Peer("RudderStack", "@rudderstack/analytics-js@3.34.1", "dist/npm/modern/umd/index.js"),
    Peer("PostHog", "posthog-js@1.449.2", "dist/array.js"),
)


@dataclass(frozen=True)
class Size:
    """In bytes: as it is, after gzip -9, after brotli -q 11."""

    raw: int
    gzip: int
    brotli: int


def size_of(script: bytes) -> Size:
    return Size(len(script), len(gzip.compress(script, 9, mtime=0)), len(brotli.compress(script, quality=11)))


def minified(script: bytes) -> bytes:
    """The script by terser, or as it was if it was smaller."""
    made = subprocess.run(
        [TERSER, "--ecma", "2018", "--compress", "--mangle"], input=script, capture_output=True, check=True
    )
    return min(made.stdout.rstrip(b"\n"), script, key=len)


def fetched(peer: Peer, folder: Path) -> bytes:
    """The peer's file, out of its package as npm delivers it."""
    command = ["npm", "pack", "--silent", "--loglevel=error", "--pack-destination", str(folder), peer.package]
    name = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder).stdout.split()[-1]
    with tarfile.open(folder / name) as package:
        file = package.extractfile(f"package/{peer.path}")
        assert file is not None, f"{peer.package} has no {peer.path}"
        return file.read()


def rows() -> Iterator[str]:
    yield "| script | minified | gzip -9 | brotli | package and file |"
    yield "|---|---|---|---|---|"
    yield _row("**scq-proxy**", MIN.read_bytes(), "`static/scq.min.js`")
    with tempfile.TemporaryDirectory() as folder:
        for peer in PEERS:
            yield _row(peer.name, minified(fetched(peer, Path(folder))), f"`{peer.package}` `{peer.path}`")


def _row(name: str, script: bytes, source: str) -> str:
    size = size_of(script)
    return f"| {name} | {size.raw:,} | {size.gzip:,} | {size.brotli:,} | {source} |"


def main() -> None:
    if sys.argv[1:] == ["--ours"]:
        size = size_of(MIN.read_bytes())
        print(f"scq.min.js: {size.raw:,} bytes, gzip -9 {size.gzip:,}, brotli {size.brotli:,}")
        return
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
