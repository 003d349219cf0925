"""The control socket on its own: it stays reachable, and a command trusts only its own user's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import StoreRefused
from proxy.ops.control import Command, Control, ask, socket_path


class Hello(Command, frozen=True):
    pass


async def hello(command: Hello) -> AsyncIterator[str]:
    yield "hello"


async def answers(store: Path) -> list[Any]:
    return [answer async for answer in ask(store, Hello())]


async def until_it_answers(store: Path) -> list[Any]:
    async with asyncio.timeout(120):
        while True:
            try:
                return await answers(store)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)


async def test_a_socket_that_was_removed_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "scq.db"
    control = Control(store, {Hello: hello}, watch_seconds=0.02)
    await control.start()
    socket_path(store).unlink()
    assert await until_it_answers(store) == ["hello"]
    assert "was removed and is made again" in caplog.text
    await control.close()
    assert not socket_path(store).exists()


async def test_what_took_the_sockets_place_is_not_removed_at_the_end(tmp_path: Path) -> None:
    store = tmp_path / "scq.db"
    control = Control(store, {Hello: hello}, watch_seconds=60)
    await control.start()
    socket_path(store).unlink()
    socket_path(store).write_text("somebody's")
    await control.close()
    assert socket_path(store).read_text() == "somebody's"


async def test_a_place_where_no_socket_can_be_made_is_named(tmp_path: Path) -> None:
    socket_path(tmp_path / "scq.db").mkdir()
    with pytest.raises(StoreRefused, match=r"scq\.db\.sock cannot be made .*: remove what stands there"):
        await Control(tmp_path / "scq.db", {Hello: hello}).start()


class Goodbye(Command, frozen=True):
    pass


async def test_a_command_of_another_version_is_refused(tmp_path: Path) -> None:
    control = Control(tmp_path / "scq.db", {Hello: hello}, watch_seconds=60)
    await control.start()
    with pytest.raises(StoreRefused, match="does not know this command: it is of another version"):
        await anext(ask(tmp_path / "scq.db", Goodbye()))
    await control.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_command_does_not_talk_to_a_socket_of_another_user(tmp_path: Path) -> None:
    path = socket_path(tmp_path / "scq.db")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(path, 65_534, 65_534)
        with pytest.raises(StoreRefused, match="belongs to another user"):
            await answers(tmp_path / "scq.db")
