"""Clients get what is theirs, in order, and a slow one harms nobody."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cygnet.graph.events import Place
from cygnet.server import sockets as module
from cygnet.server.sockets import Socket, Sockets
from cygnet.server.wire import Message, Preview, over, status


class Wire:
    """A transport that keeps what it is given; with a closed gate it is a client that does not read."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.closed: tuple[int, str] | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def send_text(self, text: str) -> None:
        await self.gate.wait()
        self.got.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        await self.gate.wait()
        self.got.append(data)

    async def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    @property
    def types(self) -> list[str]:
        return [it["type"] if isinstance(it, dict) else "bytes" for it in self.got]


def preview(image: bytes, node: str = "1") -> Preview:
    return Preview("j", Place(node=node, display=node, real=node), image, "image/jpeg")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_first_message_names_the_client_and_the_queue() -> None:
    async def story() -> None:
        sockets, wire = Sockets({}), Wire()
        socket = sockets.join(None, wire, 3)
        task = asyncio.create_task(socket.pump())
        await settle()
        assert wire.got == [
            {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 3}}, "sid": socket.client_id}}
        ]
        assert len(socket.client_id) == 32
        task.cancel()

    asyncio.run(story())


def test_job_messages_go_to_their_client_and_status_to_all() -> None:
    async def story() -> None:
        sockets, first, second = Sockets({}), Wire(), Wire()
        joined = [sockets.join("a", first, 0), sockets.join("b", second, 0)]
        tasks = [asyncio.create_task(it.pump()) for it in joined]
        sockets.send(over("j"), "a")
        sockets.send(over("j"), "nobody")
        sockets.send(status(1), "a")
        sockets.send(over("k"), None)
        sockets.subscribe("b", True)
        sockets.subscribe("nobody", True)
        sockets.send_log(Message("logs", {}))
        await settle()
        assert first.types == ["status", "executing", "status", "executing"]
        assert second.types == ["status", "status", "executing", "logs"]
        for task in tasks:
            task.cancel()

    asyncio.run(story())


def test_a_newer_connection_replaces_the_older_whose_late_end_changes_nothing() -> None:
    async def story() -> None:
        sockets, old, new = Sockets({}), Wire(), Wire()
        first = sockets.join("a", old, 0)
        pumps = [asyncio.create_task(first.pump())]
        second = sockets.join("a", new, 0)
        pumps.append(asyncio.create_task(second.pump()))
        await settle()
        assert old.closed is not None
        sockets.leave(first)
        sockets.send(over("j"), "a")
        await settle()
        assert new.types == ["status", "executing"]
        sockets.leave(second)
        assert len(sockets) == 0
        pumps[1].cancel()

    asyncio.run(story())


def test_flags_are_answered_and_decide_the_form_of_previews() -> None:
    async def story() -> None:
        sockets, wire = Sockets({"supports_preview_metadata": True}), Wire()
        socket = sockets.join("a", wire, 0)
        task = asyncio.create_task(socket.pump())
        sockets.send(preview(b"x"), "a")
        await settle()
        for noise in (None, [], "x", {"type": "other"}, {"type": "feature_flags", "data": 3}):
            sockets.hear(socket, noise)
        sockets.hear(socket, {"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        sockets.send(preview(b"x"), "a")
        await settle()
        frames = [it[:4] for it in wire.got if isinstance(it, bytes)]
        assert frames == [b"\0\0\0\1", b"\0\0\0\4"]
        answers = [it for it in wire.got if isinstance(it, dict) and it["type"] == "feature_flags"]
        assert answers[-1]["data"] == {"supports_preview_metadata": True}
        task.cancel()

    asyncio.run(story())


def test_a_client_that_does_not_read_keeps_only_the_newest_preview_of_each_node() -> None:
    async def story() -> None:
        sockets, wire = Sockets({}), Wire()
        socket = sockets.join("a", wire, 0)
        task = asyncio.create_task(socket.pump())
        await settle()
        wire.gate.clear()
        for i in range(1000):
            sockets.send(preview(str(i).encode()), "a")
            sockets.send(preview(str(i).encode(), "2"), "a")
        sockets.send(over("j"), "a")
        await settle()
        wire.gate.set()
        await settle()
        images = [it[8:] for it in wire.got if isinstance(it, bytes)]
        assert images[-2:] == [b"999", b"999"]
        assert len(images) <= 3
        assert "executing" in wire.types
        task.cancel()

    asyncio.run(story())


@pytest.mark.parametrize(("times", "size"), [(module.MOST_WAITING + 1, 10), (70, 2**20)])
def test_a_client_that_never_reads_is_dropped(times: int, size: int) -> None:
    async def story() -> None:
        sockets, wire = Sockets({}), Wire()
        wire.gate.clear()
        socket = sockets.join("a", wire, 0)
        task = asyncio.create_task(socket.pump())
        await settle()
        for i in range(times):
            sockets.send(Message("executed", {"output": "x" * size}), "a")
            assert socket._waiting <= module.MOST_BYTES, i
        wire.gate.set()
        await settle()
        assert wire.closed == (1013, "too slow; reconnect to catch up")
        assert task.done()

    asyncio.run(story())


def test_what_waits_for_a_client_is_bounded_in_bytes(monkeypatch: Any) -> None:
    async def story() -> None:
        monkeypatch.setattr(module, "MOST_BYTES", 100_000)
        sockets, wire = Sockets({}), Wire()
        wire.gate.clear()
        socket = sockets.join("a", wire, 0)
        task = asyncio.create_task(socket.pump())
        for i in range(1000):
            sockets.send(preview(b"x" * 1000, str(i)), "a")
            assert sum(map(len, socket._previews.values())) <= 100_000
        for _ in range(200):
            sockets.send(Message("progress_state", {"nodes": "x" * 10_000}), "a")
            assert socket._waiting <= 100_000
        wire.gate.set()
        await settle()
        assert wire.closed == (1013, "too slow; reconnect to catch up")
        assert task.done()

    asyncio.run(story())


def test_a_client_that_reads_nothing_is_given_up(monkeypatch: Any) -> None:
    async def story() -> None:
        monkeypatch.setattr(module, "READ_WITHIN", 0.05)
        sockets, wire = Sockets({}), Wire()
        wire.gate.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sockets.join("a", wire, 0).pump(), 5)
        assert wire.got == []

    asyncio.run(story())


def test_there_is_a_limit_to_clients(monkeypatch: Any) -> None:
    async def story() -> None:
        monkeypatch.setattr(module, "MOST_SOCKETS", 2)
        sockets, wire = Sockets({}), Wire()
        for name in "ab":
            sockets.join(name, Wire(), 0)
        refused = sockets.join("c", wire, 0)
        await refused.pump()
        assert wire.closed == (1013, "too many clients")
        assert isinstance(sockets.join("a", Wire(), 0), Socket)
        assert len(sockets) == 2
        sockets.end_all()

    asyncio.run(story())
