"""Serves the script: compressed once at start, under a short-lived, a hashed and a SendX-like path, and a build for debugging.

{prefix}/scq.js           cached for ten minutes, revalidated by ETag
{prefix}/scq.<hash>.js    the same bytes, cached for ever; a hash of another version gets the current bytes, shortly cached
/prod/<anything>.js       the same, so that SendX's install snippet works with only its host name changed
{prefix}/scq.debug.js     the development build, which explains itself in the console; never cached for ever

It minifies nothing: `.ci/shim` makes scq.min.js of scq.js beforehand. The development build is scq.js itself with DEBUG switched on.
"""

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass

import brotli
from starlette.requests import Request
from starlette.responses import Response

from proxy.resources import shipped

SHORT_CACHE = "public, max-age=600"
IMMUTABLE = "public, max-age=31536000, immutable"
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
            "X-Content-Type-Options": "nosniff",
            # A script tag with `integrity` on a sister sub-domain asks with CORS; the script is public.
            "Access-Control-Allow-Origin": "*",
            "Cross-Origin-Resource-Policy": "cross-origin",  # the same, for pages that require it (COEP)
        }
        if etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if encoding:
            headers["Content-Encoding"] = encoding
        return Response(body, headers=headers, media_type="text/javascript")


def load_shim() -> Shim:
    return make_shim(shipped("static/scq.min.js").read_bytes())


def load_debug_shim() -> Shim:
    """Returns the same with the lines that log to the console, not minified."""
    return make_shim(_DEBUG_BANNER + re.sub(rb"\bDEBUG\b", b"true", shipped("static/scq.js").read_bytes()))


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
