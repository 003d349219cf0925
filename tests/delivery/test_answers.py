"""The bodies of a 2xx that count as SendX's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.retry import Call
from proxy.delivery.answers import bears_out, is_an_error
from proxy.sandbox.contacts import BULK_OK, EVENT_OK, LEGACY_TRACKED
from proxy.sandbox.faults import OK

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    "body",
    [
        OK,
        BULK_OK,
        EVENT_OK,
        LEGACY_TRACKED,
        b"{}",
        b' {"status":200}\r\n',
        b'{"status":"success"}',
        b'{"status":"399"}',
        b'{"status":null,"error":null}',
        b'{"status":true,"error":false}',
        b'{"status":["error"],"error":""}',
        b'{"error":[]}',
        b'{"error":{}}',
        b'{"data":{"error":"x","status":"error"}}',
        b'{"message":"error"}',
        b'{"message":"a text cut within an emoji \\ud83d"}',
        b'{"message":"Zo\xeb"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_an_object_that_does_not_say_otherwise_bears_a_success_out(body: bytes) -> None:
    assert bears_out(body, Call.IDENTIFY)
    assert bears_out(body, Call.TRACK)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"OK",
        b"null",
        b"true",
        b"200",
        b'"OK"',
        b"[]",
        b"{",
        b'{"status":"200"}{}',
        b"[" * 60_000,
        b"<!doctype html><title>Sign in to this network</title>",
        b"<html><body><h1>We are back soon</h1></body></html>",
        b'{"status":"error"}',
        b'{"status":" Error "}',
        b'{"status":400}',
        b'{"status":401,"message":"The Team ID or API Key specified is not valid"}',
        b'{"status":"500"}',
        b'{"status":" 503 "}',
        b'{"status":422.0}',
        b'{"status":1' + b"0" * 400 + b"}",
        b'{"status":"200","error":"boom"}',
        b'{"error":true}',
        b'{"error":{"code":7}}',
        b'{"error":["x"]}',
    ],
)
def test_anything_else_does_not(body: bytes) -> None:
    assert not bears_out(body, Call.IDENTIFY)
    assert not bears_out(body, Call.TRACK)


@pytest.mark.parametrize("body", [b"{}", b' \r\n{"error":"x"}', b"\xef\xbb\xbf{", b'{"message":"cut o'])
def test_an_error_of_sendx_begins_as_an_object(body: bytes) -> None:
    assert is_an_error(body)


@pytest.mark.parametrize("body", [b"", b"<html>{", b'"x"', b"[{}]", b"400", b"error code: 1001"])
def test_an_error_of_somebody_else_does_not(body: bytes) -> None:
    assert not is_an_error(body)


def test_where_a_list_was_asked_for_a_list_does() -> None:
    assert bears_out(b'[{"id":"tag_1","name":"a"}]', Call.LIST_TAGS)
    assert bears_out(b'{"status":"200","data":[]}', Call.LIST_TAGS)
    assert not bears_out(b'{"status":"error"}', Call.LIST_TAGS)
    assert not bears_out(b"<html>", Call.LIST_TAGS)


@given(
    st.binary()
    | st.dictionaries(st.sampled_from(["status", "error"]), JSON).map(
        lambda body: repr(body).encode("utf-8", "replace")
    )
)
def test_no_body_breaks_us(body: bytes) -> None:
    assert bears_out(body, Call.IDENTIFY) in (True, False)
