"""Processes of our own that do what must not happen in the server: import foreign code, hold models, crash.

Both sides speak JSON over a pipe. The server asks (``{"ask": number, "what": name, ...}``) and is answered
(``{"answer": number, "value": ...}`` or ``"error"``); in between a child may tell other things, such as a job's events.
JSON and not pickle: what a crashed or captured child sends cannot run code in the server.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from cygnet.errors import CygnetError, by_signal

PATIENCE = 120.0
"""Seconds for an answer; the first one comes after the process has imported its nodes."""
BEAT = 5.0
"""Seconds between two signs of life of a child."""
MOST_MISSED = 24
"""Signs of life that may fail to come one after another; then the process is frozen, and is ended. They are counted by
the server's own ticks and not by a clock, so that a machine that sleeps loses no child."""
ORPHAN_GRACE = 2.0
"""Seconds that a child has to end by itself once its server is gone; a node that does not heed a stop is cut off."""
_ESCAPE = re.compile(rb"\\(?:u[dD][89aAbB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F]..)|.)", re.DOTALL)
"""Any escape in JSON: a pair of surrogates, half of one, or another."""
_log = logging.getLogger(__name__)


class ChildLost(CygnetError):
    """The process that was asked is gone."""

    code = "worker_lost"


class ChildFailed(CygnetError):
    """The process answered that it could not; the message is its own."""

    code = "worker_failed"


class Channel:
    """The child's end. Sending may be done from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the server is gone or asks to stop."""
        try:
            message: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return None if message.get("what") == "stop" else message

    def send(self, message: Mapping[str, Any]) -> None:
        """Tell the server something; silently nothing when it is gone, which :meth:`receive` will say.

        Raises TypeError, ValueError or RecursionError for what is no JSON.
        """
        data = encoded(message)
        with self._lock, contextlib.suppress(OSError):
            self._connection.send_bytes(data)

    def answer(self, message: Mapping[str, Any], work: Callable[[], Any]) -> None:
        """Do what was asked and send the result, or in words why there is none."""
        try:
            self.send({"answer": message["ask"], "value": work()})
        except BaseException as error:  # the server must hear of any failure, also that an answer is no JSON
            if by_signal(error):
                raise
            _log.exception("failed: %s", message.get("what"))
            self.send({"answer": message["ask"], "error": f"{type(error).__name__}: {error}"})


def encoded(value: object) -> bytes:
    """JSON; foreign code gives numbers of numpy and torch where numbers of Python are meant, and they are taken so.

    Raises TypeError, ValueError or RecursionError for what is no JSON.
    """
    return json.dumps(value, default=_plain).encode()


def _plain(value: Any) -> Any:
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        return item()
    raise TypeError(f"a {type(value).__name__} is no JSON")


def _run(target: str, options: Mapping[str, Any], connection: Connection, beat: float) -> None:
    """The child's main: ``target`` is ``module:function``, called with its channel and options."""
    _leave_signals_to_the_server()
    faulthandler.enable()  # a crash leaves its stack on stderr
    channel = Channel(connection)
    threading.Thread(target=_beat, args=(channel, beat), daemon=True, name="tells that the process lives").start()
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(channel, options)


def _signals_to_stop() -> list[signal.Signals]:
    """Those that Ctrl-C, service managers and closing terminals send to all processes, not to the server alone."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Start a process in here so that no signal to stop ends it before it has said what it does about them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _signals_to_stop())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_server() -> None:
    """The server decides what happens to its children: it sends a message, or kills.

    A handler that does nothing and not SIG_IGN, which what a node starts (ffmpeg, say) would inherit: its owner could
    not terminate it any more. Ctrl-C alone is ignored there too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    others = [it for it in _signals_to_stop() if it != signal.SIGINT]
    for number in others:
        signal.signal(number, lambda number, frame: None)
    if hasattr(os, "register_at_fork"):  # a new program has the defaults; a fork keeps handlers
        os.register_at_fork(after_in_child=lambda: [signal.signal(it, signal.SIG_DFL) for it in others])
        for number in others:
            signal.siginterrupt(number, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _signals_to_stop())


def _beat(channel: Channel, seconds: float) -> None:
    """Tell that this process lives, and end it when its server does not: its job may be begun elsewhere by now."""
    server = multiprocessing.parent_process()
    assert server is not None
    while server.is_alive():
        channel.send({"beat": True})
        server.join(seconds)
    time.sleep(ORPHAN_GRACE)
    os._exit(1)


@dataclass(eq=False)
class Child:
    """The server's end of one process. Made, used and heard on the event loop."""

    target: str
    options: Mapping[str, Any]
    heard: Callable[[dict[str, Any]], None]
    """Called with everything that is no answer."""
    ended: Callable[[str], None]
    """Called once with how the process ended, in words."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _open: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _process: SpawnProcess | None = None
    _connection: Connection | None = None
    _outbox: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _missed: int = 0
    _tick: asyncio.TimerHandle | None = None
    _verdict: str | None = None
    """Why the server ended it."""

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and not self._over.is_set() else None

    def start(self) -> None:
        """Start the process; what is asked before it is ready waits."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(self.target, dict(self.options), theirs, BEAT), daemon=True)
        with _held_back():
            self._process.start()
        atexit.register(self.kill)  # multiprocessing would terminate it then, which it does not heed, and wait
        theirs.close()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True, name=f"reads {self.target}").start()
        threading.Thread(target=self._write, daemon=True, name=f"writes {self.target}").start()
        self._tick = loop.call_later(BEAT, self._expect)

    def _expect(self) -> None:
        self._missed += 1
        if self._missed > MOST_MISSED:
            self.kill(f"gave no sign of life for {MOST_MISSED * BEAT:g} s and was ended")
        elif not self._over.is_set():
            self._tick = asyncio.get_running_loop().call_later(BEAT, self._expect)

    def _write(self) -> None:
        """Send what :meth:`tell` is given; a pipe that is full holds up this thread alone."""
        assert self._connection is not None
        with contextlib.suppress(OSError):
            while (data := self._outbox.get()) is not None:
                self._connection.send_bytes(data)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._connection is not None
        assert self._process is not None
        with contextlib.suppress(EOFError, OSError, RuntimeError):  # the last: the loop is closed
            while True:
                data = self._connection.recv_bytes()
                try:
                    # No client could read a NaN, or half of a character (of a file name that is no text).
                    message = json.loads(_whole(data), parse_constant=lambda name: None)
                except ValueError:
                    _log.warning("a child sent what is no JSON; ignored")
                    continue
                loop.call_soon_threadsafe(self._take, message)
        self._process.join()
        with contextlib.suppress(RuntimeError):  # the loop may be closed already
            loop.call_soon_threadsafe(self._lost, how_it_ended(self._process.exitcode))

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict) or "answer" not in message:
            if isinstance(message, dict) and "beat" in message:
                self._missed = 0
            elif isinstance(message, dict):
                self.heard(message)
            return
        future = self._open.pop(message["answer"], None)
        if future is not None and not future.done():
            if "error" in message:
                future.set_exception(ChildFailed(str(message["error"])))
            else:
                future.set_result(message.get("value"))

    def _lost(self, how: str) -> None:
        how = self._verdict or how
        atexit.unregister(self.kill)
        if self._tick is not None:
            self._tick.cancel()
        for future in self._open.values():
            if not future.done():
                future.set_exception(ChildLost(f"the process {how}"))
        self._open.clear()
        self._outbox.put(None)
        self._over.set()
        self.ended(how)

    def tell(self, what: str, **more: Any) -> None:
        """Send without waiting for an answer."""
        self._outbox.put(json.dumps({"what": what, **more}).encode())

    async def ask(self, what: str, **more: Any) -> Any:
        """Send and wait for the answer. Raises :class:`ChildFailed`, or :class:`ChildLost` when the process ends.

        One that does not answer for :data:`PATIENCE` seconds hangs, and is ended.
        """
        if self.pid is None:
            raise ChildLost("the process is not running")
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[number] = future
        self.tell(what, ask=number, **more)
        try:
            return await asyncio.wait_for(future, PATIENCE)
        except TimeoutError:
            _log.error("the process of %s does not answer; ending it", self.target)
            self.kill()
            raise ChildLost(f"the process did not answer for {PATIENCE:g} s") from None
        finally:
            self._open.pop(number, None)

    async def stop(self, grace: float) -> None:
        """Ask it to stop, and after ``grace`` seconds end it by force."""
        if self._process is None:
            return
        self.tell("stop")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), grace)  # the reading thread alone waits for the process
        self.kill()

    def kill(self, why: str | None = None) -> None:
        """End it now; ``why`` is told in place of the signal that it ended by."""
        if self._process is not None and not self._over.is_set():
            self._verdict = self._verdict or why
            self._process.kill()


def _whole(data: bytes) -> bytes:
    """JSON with the replacement character for every half of a surrogate pair."""

    def mend(found: re.Match[bytes]) -> bytes:
        return b"\\ufffd" if found["half"] else found[0]

    return _ESCAPE.sub(mend, data) if b"\\ud" in data else data


def how_it_ended(exit_code: int | None) -> str:
    """An exit code in words."""
    if exit_code is None:
        return "is still running"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    if -exit_code == signal.SIGKILL:
        return "was killed (by the system for lack of memory, or by somebody)"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"
