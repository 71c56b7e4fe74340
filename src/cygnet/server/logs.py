"""The last log lines, for the page's log panel."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from cygnet.server.wire import Message

_KEPT = 300


class LogLines(logging.Handler):
    """Keeps the last lines and hands each new one to ``tell``."""

    def __init__(self, tell: Callable[[Message], object] = lambda message: None) -> None:
        super().__init__()
        self.tell = tell
        self._lines: deque[dict[str, str]] = deque(maxlen=_KEPT)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; line ends inside it are escaped, so that one record is one line."""
        text = self.format(record).replace("\r", "\\r").replace("\n", "\\n") + "\n"
        entry = {"t": datetime.fromtimestamp(record.created, UTC).isoformat(), "m": text}
        self._lines.append(entry)
        self.tell(Message("logs", {"entries": [entry], "size": None}))

    def entries(self) -> list[dict[str, str]]:
        """Time and text of every kept line, oldest first."""
        return list(self._lines)

    def text(self) -> str:
        """All kept lines."""
        return "".join(it["m"] for it in self._lines)
