"""Scripted browsers, which keep cookies as a real one does."""

import pytest

from tests.support.server import Browser, Server, new_email


@pytest.fixture
def browser(server: Server) -> Browser:
    return Browser(server)


@pytest.fixture
def ann(server: Server) -> Browser:
    """A browser on which somebody has logged in."""
    browser = Browser(server)
    browser.logs_in(new_email())
    return browser
