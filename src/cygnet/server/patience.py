"""How long the server waits for slow clients, and how much of what they send it holds.

A body may come slowly, as over a bad line, but not for ever; a connection may say nothing for a while, but when places
are scarce the one that has waited longest makes room, so that whoever asks properly is always heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from cygnet.server.guard import App, Receive, Scope, Send

GRACE = 20.0
"""Seconds before a body's rate is looked at, and the longest pause within it."""
LEAST_RATE = 1024
"""Bytes a second that a body must bring on the whole."""
HEADERS_WITHIN = 15.0
"""Seconds for the line and the headers of a request; at most twice that on a connection that was used before."""
READ_WITHIN = 300.0
"""Seconds for which a client may read nothing of what waits for it; a paused video asks again."""
MOST_CONNECTIONS = 600


@dataclass(eq=False)
class Patience:
    """ASGI middleware: bodies come at a bearable rate, and all that are held together have at most ``most`` bytes."""

    app: App
    most: int
    held: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on; its body is watched while it is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = asyncio.get_running_loop().time()
        total = 0
        complete = False

        async def watched() -> MutableMapping[str, Any]:
            nonlocal total, complete
            if complete:  # all that can come is the end of the connection
                return await receive()
            late = started + GRACE + total / LEAST_RATE - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(max(0.0, min(GRACE, late))):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the body comes too slowly", {"connection": "close"}) from error
            size = len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size and self.held + size > self.most:
                raise HTTPException(503, "too much is being sent at once; try again", {"retry-after": "5"})
            total += size
            self.held += size
            return message

        try:
            await self.app(scope, watched, send)
        finally:
            self.held -= total


class PatientProtocol(H11Protocol):
    """uvicorn's connection, with an end to its patience. Belongs to the event loop."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._seen = self.cycle
        self._unread: asyncio.TimerHandle | None = None
        self._watch = self.loop.call_later(HEADERS_WITHIN, self._look)
        if len(self.connections) > MOST_CONNECTIONS:
            waiting = [it for it in self.connections if isinstance(it, PatientProtocol) and it.is_waiting()]
            min(waiting, key=lambda it: it._since, default=self).transport.abort()

    def is_waiting(self) -> bool:
        """Whether it has no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # a socket looks after itself
            return
        if self.is_waiting() and self.cycle is self._seen:
            self.transport.abort()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(HEADERS_WITHIN, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._watch.cancel()
        self._read_on()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is sent to."""
        super().pause_writing()
        self._unread = self.loop.call_later(READ_WITHIN, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        self._read_on()
        super().resume_writing()

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
