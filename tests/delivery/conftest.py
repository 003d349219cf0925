"""The SQLite outbox and a SendX that misbehaves by script, as fixtures."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.store.sqlite.outbox import SqliteOutbox, open_outbox
from tests.support.live import serving
from tests.support.sending import KEY


@pytest.fixture
def sendx() -> Iterator[tuple[Sandbox, str]]:
    app = create_sandbox(key=KEY)
    with serving(app) as url:
        yield app.state.sandbox, url


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[SqliteOutbox]:
    opened = await open_outbox(
        tmp_path / "scq.db",
        create=True,
        hold_age=timedelta(days=30),
        dead_age=timedelta(days=90),
        min_free_bytes=0,
    )
    yield opened
    await opened.close()
