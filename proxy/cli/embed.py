"""The embed tag in its forms, and what a page's Content-Security-Policy must allow for each.

Text in, text out: it serves nothing and reads no settings. The command that prints it is in `cli_snippet`.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from proxy.web.paths import Paths
from proxy.web.shim import Shim

SENDX_HOST = "cdn.sendx.io"
# SendX's install snippet, as its customers paste it; TEAMID stands for theirs. Source: SendX docs.
SENDX_SNIPPET = """\
<script type="text/javascript">
 var _scq = _scq || [];
 var _scs = _scs || {};
 _scs.teamId = 'TEAMID';
 (function() {
   var dc = document.createElement('script');
   dc.type = 'text/javascript';
   dc.async = true;
   dc.src = '//cdn.sendx.io/prod/TEAMID.js';
   var s = document.getElementsByTagName('script')[0];
   s.parentNode.insertBefore(dc, s);
 })();
</script>
"""
SENDX_NAMES = frozenset(re.findall(r"^ var (\w+) =", SENDX_SNIPPET, re.MULTILINE))  # the globals that it sets
OWN_HOST = "www.example.com"  # stands for the site's own where we do not know it


class Form(StrEnum):
    """How the script comes into the page."""

    LINKED = "linked"  # under its short-lived address: a new version arrives by itself
    HASHED = "hashed"  # under the address of one version, with its integrity
    INLINE = "inline"  # with the page, without a request
    SENDX = "sendx"  # by SendX's own install snippet, with one host name changed


@dataclass(frozen=True)
class Snippet:
    """`html` to paste into pages; `notes` for whoever pastes it, in paragraphs."""

    html: str
    notes: tuple[str, ...]


def make_snippet(form: Form, shim: Shim, *, paths: Paths, host: str, queue: str, debug: bool, spa: bool) -> Snippet:
    """The tag for a proxy at `host`, or with an empty one at the page's own. `shim`: the build that the tag is about.

    `debug` says that this is the development build; it has no address of its own with `HASHED` and `SENDX`.
    """
    made = _sendx(host) if form is Form.SENDX else _tag(form, shim, paths, host, queue, debug)
    return Snippet(made.html + _spa_comment(queue), made.notes) if spa else made


def _tag(form: Form, shim: Shim, paths: Paths, host: str, queue: str, debug: bool) -> Snippet:
    base = f"https://{host}" if host else ""
    options = (" data-debug" if debug else "") + (f' data-queue="{queue}"' if queue != "_scq" else "")
    script = shim.source.decode("utf-8")
    if form is Form.INLINE:
        html = f'<script data-src="{base}{paths.script_path}"{options}>{script}</script>\n'
        return Snippet(html, (_policy([_hash(script)], host),))
    early = f"window.{queue} = window.{queue} || [];"
    notes = [_policy([_source(host), _hash(early)], host)]
    if form is Form.HASHED:
        address = f'{base}{paths.hashed_path(shim.digest)}" integrity="{shim.integrity}" crossorigin="anonymous'
        notes.append(
            "Print this tag again after each upgrade: a browser refuses a script that is not the one it names."
        )
    else:
        address = base + (paths.debug_path if debug else paths.script_path)
    return Snippet(f'<script>{early}</script>\n<script async src="{address}"{options}></script>\n', tuple(notes))


def _sendx(host: str) -> Snippet:
    own = host or OWN_HOST
    steps = [
        f"In SendX's snippet change one host name, in the line with dc.src: {SENDX_HOST} becomes {own}. All else stays.",
        "Let your web server pass /prod/ to the proxy. Pop-ups, forms and web push end with SendX's own script.",
        f"A Content-Security-Policy that lists {SENDX_HOST} under script-src needs {_source(host)} there instead, and\n"
        f"  connect-src {_source(host)}",
    ]
    if not host:
        steps.insert(1, f"{own} stands for the host name of your pages; --host puts it in.")
    return Snippet(SENDX_SNIPPET.replace(SENDX_HOST, own), tuple(steps))


def _spa_comment(queue: str) -> str:
    push = f'(window.{queue} = window.{queue} || []).push(["track", {{ addTags: ["…"] }}])'
    return (
        f"<!-- Once, in the page that every route shares. Then from any component, on any route, at any time: {push}."
        " After a log-in push identify, on log-out reset. A change of route needs no call. -->\n"
    )


def _policy(scripts: list[str], host: str) -> str:
    return (
        "A Content-Security-Policy, if your pages have one, must allow\n"
        f"  script-src {' '.join(scripts)}\n  connect-src {_source(host)}"
    )


def _source(host: str) -> str:
    return f"https://{host}" if host else "'self'"


def _hash(script: str) -> str:
    """The source expression that allows this inline script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"
