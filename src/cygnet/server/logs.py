"""The server's log: the last lines for the page's log panel, and all of them on stderr as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from cygnet.server.wire import Message

_KEPT = 300
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class LogLines(logging.Handler):
    """Keeps the last lines and hands each new one to ``tell``."""

    def __init__(self, tell: Callable[[Message], object] = lambda message: None) -> None:
        super().__init__()
        self.tell = tell
        self._lines: deque[dict[str, str]] = deque(maxlen=_KEPT)
        self.setFormatter(TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; line ends inside it are escaped, so that one record is one line."""
        text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], self.format(record)) + "\n"
        entry = {"t": datetime.fromtimestamp(record.created, UTC).isoformat(), "m": text}
        self._lines.append(entry)
        self.tell(Message("logs", {"entries": [entry], "size": None}))

    def entries(self) -> list[dict[str, str]]:
        """Time and text of every kept line, oldest first."""
        return list(self._lines)

    def text(self) -> str:
        """All kept lines."""
        return "".join(it["m"] for it in self._lines)


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, message, and what the record carries of a job."""

    FACTS = ("job", "state", "seconds")

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in self.FACTS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextLines(logging.Formatter):
    """Time, level and message on one line; only a traceback has lines of its own.

    What clients and packs write can be in a message; it can neither begin a line of its own nor steer a terminal.
    """

    def __init__(self, form: str = "%(asctime)s %(levelname)s %(message)s") -> None:
        super().__init__(form)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with control characters escaped."""
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], super().formatMessage(record))


def log_to_stderr(level: str, form: Literal["text", "json"]) -> None:
    """Send the log of cygnet and of the web server to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name in ("cygnet", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level if name == "cygnet" else max(logging.WARNING, logging.getLevelNamesMapping()[level]))
        logger.propagate = False
