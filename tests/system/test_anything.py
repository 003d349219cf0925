"""Nothing at all is answered with a 5xx."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.anything import keys, values
from tests.support.server import Browser, Server
from tests.support.wire import error

methods = st.sampled_from(["track", "identify", "reset", "consent", "other"])
calls = values | st.tuples(methods, values) | st.tuples(methods, st.dictionaries(keys, values, max_size=5))
ids = st.uuids().map(str) | values
pushes = values | st.fixed_dictionaries({"id": ids, "call": calls})
bodies = (
    values
    | st.fixed_dictionaries({"v": st.just(1) | values, "pushes": values})
    | st.fixed_dictionaries({"v": st.just(1), "s": values, "pushes": st.lists(pushes, max_size=6)})
)
# Python writes lone surrogates as escapes, and NaN and Infinity as words that are not JSON: both are welcome here.
written = bodies.map(json.dumps).map(str.encode)
spoiled = st.tuples(written, st.integers(0, 400), st.binary(max_size=4)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)


@settings(max_examples=400)
@given(body=st.binary(max_size=200) | written | spoiled, cookie=st.booleans())
@example(body=b"", cookie=True)
@example(body=b'{"v":1,"pushes":[{"id":"%s","call":["track",{"addTags":[]}]}]}' % (b"a" * 32), cookie=False)
def test_nothing_at_all_is_answered_with_a_5xx(server: Server, ann: Browser, body: bytes, cookie: bool) -> None:
    response = server.send(body, cookie=f"__Host-scq={ann.cookie}" if cookie else "")
    assert response.status_code in (202, 400, 413)
    if response.status_code != 202:
        error(response)
        return
    results = response.json()["results"]
    assert len(results) == len(json.loads(body)["pushes"])
    for result in results:
        assert result["status"] in ("accepted", "held", "duplicate", "refused")
        assert (result["status"] == "refused") == ("reason" in result)
