"""Serves the script: compressed once at start, under a short-lived, a hashed and a SendX-like path, and a build for debugging.

{prefix}/scq.js           cached for ten minutes, revalidated by ETag; stale for a week, so that pages have it while the proxy is down
{prefix}/scq.<hash>.js    the same bytes, cached for ever; a hash of another version gets the current bytes, shortly cached
/prod/<anything>.js       the same but for the endpoint, so that SendX's install snippet works with only its host name changed
{prefix}/scq.debug.js     the development build, which explains itself in the console and says who the browser is; cached by nobody

The name may be the site's own (`paths`). Each response carries the path of the endpoint beside the path that was asked for: a page may run a
copy of the script from anywhere, and still has to post here or nowhere. It minifies nothing: `.ci/shim` makes scq.min.js of scq.js beforehand.
The development build is scq.js itself with DEBUG switched on.
"""

import base64
import gzip
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import brotli
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy import __version__
from proxy.core.visitors import Trust
from proxy.resources import shipped
from proxy.web.asgi import Header

# Stale for a week at most: as long as the script keeps what could not be delivered.
SHORT_CACHE = "public, max-age=600, stale-while-revalidate=604800, stale-if-error=604800"
IMMUTABLE = "public, max-age=31536000, immutable"
_PUBLIC = {
    "X-Content-Type-Options": "nosniff",
    # A script tag with `integrity` on a sister sub-domain asks with CORS; the script is public.
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",  # the same, for pages that require it (COEP)
}
_ENDPOINT = "/scq/push"  # in the sources, for a copy that no proxy has served
_DEBUG_BANNER = b"/* The development build of scq.js, for a tag with data-debug. */\n"


@dataclass(frozen=True)
class Shim:
    """A script and its compressed forms. `digest`: the part of its hashed name."""

    source: bytes
    digest: str
    encoded: dict[str, bytes]

    @property
    def integrity(self) -> str:
        """The value of a script tag's `integrity` attribute (SRI)."""
        return "sha384-" + base64.b64encode(hashlib.sha384(self.source).digest()).decode("ascii")

    def respond(self, request: Request) -> Response:
        name = request.path_params.get("digest")
        encoding = _accepted(request.headers.get("accept-encoding", ""))
        body = self.encoded[encoding] if encoding else self.source
        etag = f'"{self.digest}-{encoding or "raw"}"'
        headers = {
            "ETag": etag,
            "Cache-Control": IMMUTABLE if name == self.digest else SHORT_CACHE,
            "Vary": "Accept-Encoding",
            **_PUBLIC,
        }
        if etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if encoding:
            headers["Content-Encoding"] = encoding
        return Response(body, headers=headers, media_type="text/javascript")


class DebugShim:
    """The development build, which names the browser's trust and is therefore private.

    `trust_of`: judges the headers of a request.
    """

    def __init__(self, endpoint: str, trust_of: Callable[[Sequence[Header]], Trust]) -> None:
        self._sources = {trust: debug_source(endpoint, trust.name.lower()) for trust in Trust}
        self._trust_of = trust_of

    def respond(self, request: Request) -> Response:
        source = self._sources[self._trust_of(request.scope["headers"])]
        headers = {"Cache-Control": "no-store", "Vary": "Cookie", **_PUBLIC}
        return Response(source, headers=headers, media_type="text/javascript")


def load_shim(endpoint: str) -> Shim:
    """Returns the script for pages. `endpoint`: the public path that it posts to."""
    return make_shim(_baked(shipped("static/scq.min.js").read_bytes(), {_ENDPOINT: endpoint}))


def debug_source(endpoint: str, trust: str) -> bytes:
    """Returns the same with the lines that log to the console, not minified. `trust`: how well the browser is known."""
    source = re.sub(rb"\bDEBUG\b", b"true", shipped("static/scq.js").read_bytes())
    return _DEBUG_BANNER + _baked(source, {_ENDPOINT: endpoint, "VERSION": __version__, "TRUST": trust})


def _baked(source: bytes, values: Mapping[str, str]) -> bytes:
    """Returns the script with each value in place of the literal of its name."""
    for name, value in values.items():
        source = source.replace(b'"%b"' % name.encode(), msgspec.json.encode(value))
    return source


def make_shim(source: bytes) -> Shim:
    digest = hashlib.sha256(source).hexdigest()[:12]
    encoded = {"br": brotli.compress(source, quality=11), "gzip": gzip.compress(source, 9, mtime=0)}
    return Shim(source, digest, encoded)


def _accepted(header: str) -> str | None:
    offers = {}
    for part in header.lower().split(","):
        name, _, parameters = part.strip().partition(";")
        offers[name.strip()] = parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return next((encoding for encoding in ("br", "gzip") if offers.get(encoding)), None)
