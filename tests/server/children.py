"""What the tests run in child processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from cygnet.server.child import Channel


def echo(channel: Channel, options: Mapping[str, Any]) -> None:
    channel.send({"hello": options.get("name"), "pid": os.getpid()})
    while (message := channel.receive()) is not None:
        match message["what"]:
            case "echo":
                channel.answer(message, lambda text=message["text"]: text)
            case "fail":
                channel.answer(message, lambda: 1 / 0)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "leave":
                sys.exit(3)
    channel.send({"goodbye": True})
