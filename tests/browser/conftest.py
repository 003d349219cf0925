"""A tab on the site that the proxy serves."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from tests.support.browser import Visit
from tests.support.site import TOLD, Site
from tests.support.tabs import (
    EMBED,
)

# Fixtures


@pytest.fixture
def page(site: Site, visit: Visit) -> Page:
    """A tab on a page with the embed tag."""
    return visit.open(site.put("/", f"<script>{TOLD}</script>", EMBED))
