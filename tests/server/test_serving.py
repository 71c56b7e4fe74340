"""Asked to stop, the server lets the running job end, answers until then, and takes no more jobs."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import uvicorn
from tests.server.conftest import HERE, PROMPT

from cygnet.graph.folders import Folders
from cygnet.server import serving
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.serving import DrainingServer
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore


class Running:
    """A server in a thread, at an address."""

    def __init__(self, base: Path) -> None:
        settings = Settings(folders=Folders.below(base), user=base / "user")
        self.store = JobStore(base / "jobs.sqlite")
        self.engine = Engine(self.store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue")
        config = uvicorn.Config(create_app(self.engine, settings), log_config=None, timeout_graceful_shutdown=1)
        self.server = DrainingServer(config, self.engine)
        self.bound = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.bound.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]})

    def ask(self, route: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self.url + route, data), timeout=30) as answer:
            return json.load(answer)

    def submit(self, text: str) -> str:
        prompt = {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": text}}}
        return str(self.ask("/prompt", {"prompt": prompt})["prompt_id"])

    def begun(self) -> None:
        while not self.ask("/queue")["queue_running"]:
            time.sleep(0.01)


@contextmanager
def running(base: Path) -> Iterator[Running]:
    it = Running(base)
    it.thread.start()
    try:
        yield it
    finally:
        it.server.force_exit = it.server.should_exit = True
        it.thread.join(30)
        it.store.close()


def test_the_running_job_ends_and_the_server_answers_until_then(tmp_path: Path) -> None:
    with running(tmp_path) as studio:
        job, waiting = studio.submit("short"), studio.submit("wait")
        studio.begun()
        studio.server.handle_exit(signal.SIGTERM, None)
        while studio.ask("/health")["status"] != "draining":
            time.sleep(0.01)
        with pytest.raises(HTTPError) as refused:
            studio.submit("late")
        assert refused.value.code == 503
        studio.thread.join(30)
        assert not studio.thread.is_alive()
        assert [studio.store.require(it).state for it in (job, waiting)] == ["completed", "pending"]


def test_a_job_that_takes_too_long_is_begun_again_by_the_next_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "GRACE", 0.3)
    with running(tmp_path) as studio:
        job = studio.submit("wait")
        studio.begun()
        studio.server.handle_exit(signal.SIGTERM, None)
        studio.thread.join(20)
        assert not studio.thread.is_alive(), "it does not wait a second time"
        record = studio.store.require(job)
        assert (record.state, record.attempts) == ("pending", 0)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as studio:
        studio.submit("wait")
        studio.begun()
        studio.server.handle_exit(signal.SIGTERM, None)
        studio.server.handle_exit(signal.SIGTERM, None)
        studio.thread.join(5)
        assert not studio.thread.is_alive()


def test_a_closed_terminal_asks_to_stop_but_under_nohup_does_not(tmp_path: Path) -> None:
    settings = Settings(folders=Folders.below(tmp_path), user=tmp_path / "user")
    store = JobStore(tmp_path / "jobs.sqlite")
    engine = Engine(store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue")
    server = DrainingServer(uvicorn.Config(create_app(engine, settings), log_config=None), engine)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server.hear_hang_up()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        server.hear_hang_up()
        signal.raise_signal(signal.SIGHUP)
        assert server._asked
    finally:
        signal.signal(signal.SIGHUP, before)
        store.close()
