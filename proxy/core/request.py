"""One browser request as `web.push` puts it to `admission`, and the answer to it. Time and randomness come in the `Request`."""

import math
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from proxy.core.calls import BadPush, Push
from proxy.core.reasons import Reason, Status
from proxy.core.tokens import TokenProblem, Vouched
from proxy.core.visitors import Visitor

# For each push that a lane has room for: some may be large, but not all. `SCQ_LANE_MAX` pushes of 64 KB each would be 640 MB for one contact,
# and a single browser can send them.
LANE_BYTES_PER_PUSH = 4_096


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What is bounded; see the settings. `traces_per_hour`: how many log-outs and consents of unknown visitors are remembered.

    `takes_turns`: sign-ups wait for their turn.
    """

    verified_for: timedelta
    lane_max: int
    hold_max: int
    honour_gpc: bool
    takes_turns: bool
    traces_per_hour: float


class Candidate(msgspec.Struct, frozen=True):
    """A push as parsed. `token`: what its identity token proved, verified before the transaction.

    `repeats`: its client address has said the same about the same typed address before.
    """

    push: Push | BadPush
    token: Vouched | TokenProblem | None = None
    repeats: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the browser sent. `cookie`: the visitor of a cookie that verified; `session`: the `s` of the batch; `now`: Unix seconds.

    `stranger`: the visitor id of a browser that shows neither. It is drawn before the request is judged, which may happen more than once,
    and is unused with a session value.

    Of what strangers may bring (see `strangers`): `client`: its address; `over`: a network of it has brought its share of bytes; `full`: lane keys
    for which it has brought its share of pushes; `most_bytes`: that all strangers together may have in the store.
    """

    now: float
    cookie: Visitor | None
    session: str | None
    gpc: bool
    candidates: Sequence[Candidate]
    stranger: str
    client: str = ""
    over: bool = False
    full: frozenset[str] = frozenset()
    most_bytes: float = math.inf


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One push's line in the answer (wire contract). `where`: which part of the push is refused; `message`: what to do."""

    id: str | None
    status: Status
    reason: Reason | None = None
    where: str | None = None
    message: str | None = None
    dropped: tuple[str, ...] = ()


class PushAnswer(msgspec.Struct, frozen=True):
    """`visitor`: set this cookie, None leaves the browser's as it is; `session`: the new `s`.

    `unvouched`: of the pushes taken that nobody has vouched for, the lane key each, empty for one that is held.
    """

    results: tuple[Result, ...]
    visitor: Visitor | None = None
    session: str | None = None
    unvouched: tuple[str, ...] = ()
