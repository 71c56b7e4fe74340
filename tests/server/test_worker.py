"""What the worker does when orders come at awkward moments."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any, cast

from tests.server.children import CLASSES
from tests.server.conftest import PROMPT

from cygnet.server.child import Channel
from cygnet.server.worker import serve_jobs


class Retrying:
    """A server that asks for the job again before the worker has done with the end that it told."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str]] = []
        self._orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._heard = threading.Event()
        self._order(1)

    def _order(self, fence: int) -> None:
        self._orders.put({"what": "run", "job": "j", "fence": fence, "prompt": PROMPT, "outputs": ["2"], "extra": {}})

    def receive(self) -> dict[str, Any] | None:
        if self._orders.empty() and self.ends:
            self._heard.set()
        return self._orders.get()

    def send(self, message: Mapping[str, Any]) -> None:
        if message.get("event") != "JobEnded":
            return
        self.ends.append((message["fence"], message["state"]))
        if message["fence"] == 1:
            self._order(2)
            assert self._heard.wait(10)
        else:
            self._orders.put(None)


def test_a_job_can_be_asked_for_again_while_its_earlier_run_is_being_ended() -> None:
    server = Retrying()
    serve_jobs(cast("Channel", server), CLASSES)
    assert server.ends == [(1, "success"), (2, "success")]
