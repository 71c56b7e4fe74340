"""The web server's end: asked to stop, it first lets the running job end, and goes on answering meanwhile."""

from __future__ import annotations

import signal
from types import FrameType

import uvicorn

from cygnet.server.engine import Engine

GRACE = 10.0
"""Seconds that the running job has to end once a stop was asked for."""


class DrainingServer(uvicorn.Server):
    """Stops at a second signal, or when the engine has nothing to do any more, or after :data:`GRACE` seconds."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine
        self._asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks to stop. It is not raised again afterwards: to stop as one was asked to is no failure."""
        if self._asked:
            self._engine.hurry()
        self._asked = True

    def hear_hang_up(self) -> None:
        """Take the closing of the terminal for a signal to stop, unless it is to be ignored, as under nohup."""
        hang_up = getattr(signal, "SIGHUP", None)
        if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
            signal.signal(hang_up, lambda number, frame: self.handle_exit(signal.SIGTERM, frame))

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to stop now."""
        if self._asked and self._engine.drained(GRACE):
            self.should_exit = True
        return await super().on_tick(counter)
