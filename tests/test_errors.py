"""Unexpected errors in the log: type and place, never the message, and every error of a group."""

import pytest

from proxy.errors import describe


def raised(error: Exception) -> Exception:
    """The error with a traceback."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_an_error_is_its_type_and_its_place_without_its_message() -> None:
    said = describe(raised(KeyError("ann@example.com")))
    assert said.startswith("KeyError at test_errors.py:")
    assert "ann" not in said


def test_a_group_is_opened_to_its_last_error_and_each_kind_is_told_once() -> None:
    inner = ExceptionGroup("ann@example.com", [raised(KeyError("ann@example.com")) for _ in range(3)])
    said = describe(raised(ExceptionGroup("senders", [inner, raised(OSError(5, "ann@example.com"))])))
    assert said.startswith("2 at once: 3 at once: KeyError at test_errors.py:")
    assert "; OSError (Input/output error) at test_errors.py:" in said
    assert said.count("KeyError") == 1
    assert "ann" not in said


def test_a_group_of_one_is_that_one() -> None:
    error = raised(KeyError("key"))
    assert describe(ExceptionGroup("one", [error])) == describe(error)
