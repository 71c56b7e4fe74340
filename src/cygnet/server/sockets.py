"""Connected clients: who they are, and what is still to be sent to each.

Messages are put in from the event loop and never wait for a client. One that reads slowly loses previews first, all but
the newest of each node, since a newer one replaces it; when too many texts wait it is dropped, and catches up when it
reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cygnet.server.wire import Line, Message, Outgoing, Preview, status

MOST_WAITING = 5000
"""Texts that may wait for one client."""
MOST_BYTES = 32 * 2**20
"""Bytes that may wait for one client; a job of many nodes tells of all of them at every step."""
READ_WITHIN = 30.0
"""Seconds for which a client may read nothing."""
MOST_SOCKETS = 200


class Transport(Protocol):
    """The connection itself."""

    async def send_text(self, text: str) -> None:
        """Send a text message."""
        ...

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """End the connection."""
        ...


@dataclass(eq=False)
class Socket:
    """One client's connection."""

    client_id: str
    transport: Transport
    flags: Mapping[str, Any] = field(default_factory=dict)
    """What the client says it understands; empty for old ones."""
    log: bool = False
    """Whether it wants log lines."""
    _texts: deque[str | bytes] = field(default_factory=deque)
    _waiting: int = 0
    """Length of all texts."""
    _previews: dict[str, bytes] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _over: tuple[int, str] | None = None

    def put(self, item: Outgoing) -> None:
        """Line something up for sending."""
        if self._over is not None:
            return
        match item:
            case Message():
                self._append(item.text())
            case Preview():
                self._previews[item.place.node] = item.frame(metadata=bool(self.flags.get("supports_preview_metadata")))
            case Line():
                self._append(item.frame(metadata=bool(self.flags.get("supports_progress_text_metadata"))))
        if sum(map(len, self._previews.values())) > MOST_BYTES:
            self._previews.clear()
        if len(self._texts) > MOST_WAITING or self._waiting > MOST_BYTES:
            self.end(1013, "too slow; reconnect to catch up")
        self._news.set()

    def _append(self, text: str | bytes) -> None:
        self._texts.append(text)
        self._waiting += len(text)

    def end(self, code: int, reason: str) -> None:
        """Close the connection; what waits is thrown away."""
        self._texts.clear()
        self._waiting = 0
        self._previews.clear()
        self._over = (code, reason)
        self._news.set()

    async def pump(self) -> None:
        """Send what is lined up until the connection ends; the one place that writes to the transport.

        Raises TimeoutError for a client that reads nothing any more.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            while self._texts or self._previews:
                if self._texts:
                    text = self._texts.popleft()
                    self._waiting -= len(text)
                    await self._send(text)
                else:
                    await self._send(self._previews.pop(next(iter(self._previews))))
            if self._over is not None:
                async with asyncio.timeout(READ_WITHIN):
                    await self.transport.close(*self._over)
                return

    async def _send(self, data: str | bytes) -> None:
        async with asyncio.timeout(READ_WITHIN):
            await (self.transport.send_text(data) if isinstance(data, str) else self.transport.send_bytes(data))


class Sockets:
    """All connections, by client id."""

    def __init__(self, features: Mapping[str, Any]) -> None:
        self.features = features
        """What the server says it can do."""
        self._open: dict[str, Socket] = {}

    def __len__(self) -> int:
        return len(self._open)

    def join(self, client_id: str | None, transport: Transport, remaining: int) -> Socket:
        """A client has connected. It is given an id if it has none, and replaces an older connection of its id."""
        socket = Socket(client_id or uuid.uuid4().hex, transport)
        if len(self._open) >= MOST_SOCKETS and socket.client_id not in self._open:
            socket.end(1013, "too many clients")
            return socket
        older = self._open.get(socket.client_id)
        if older is not None:
            older.end(1000, "replaced by a newer connection")
        self._open[socket.client_id] = socket
        socket.put(status(remaining, socket.client_id))
        return socket

    def leave(self, socket: Socket) -> None:
        """A connection has ended; a newer one of the same client stays."""
        if self._open.get(socket.client_id) is socket:
            del self._open[socket.client_id]

    def hear(self, socket: Socket, message: object) -> None:
        """What a client says: it may tell its flags, which is answered with the server's; all else is ignored."""
        if isinstance(message, Mapping) and message.get("type") == "feature_flags":
            flags = message.get("data")
            socket.flags = flags if isinstance(flags, Mapping) else {}
            socket.put(Message("feature_flags", self.features))

    def send(self, item: Outgoing, client_id: str | None = None) -> None:
        """To the client that a job belongs to, if it is there; to all when the message says so or the job has none."""
        to_all = client_id is None or (isinstance(item, Message) and item.to_all)
        for socket in [*self._open.values()] if to_all else [it for it in [self._open.get(client_id or "")] if it]:
            socket.put(item)

    def send_log(self, message: Message) -> None:
        """To those that asked for log lines."""
        for socket in self._open.values():
            if socket.log:
                socket.put(message)

    def subscribe(self, client_id: str, wanted: bool) -> None:
        """Begin or end sending log lines to a client."""
        with contextlib.suppress(KeyError):
            self._open[client_id].log = wanted

    def end_all(self) -> None:
        """The server stops; clients reconnect by themselves."""
        for socket in self._open.values():
            socket.end(1012, "the server restarts")
