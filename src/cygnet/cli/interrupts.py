"""Signals: the first Ctrl-C asks the work to stop, the second stops it, SIGTERM unwinds with everything cleaned up.

A signal's exception can come up between any two instructions, also right after a file was made and before anybody knows
its name. Such places are put into :func:`uninterrupted`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType

from cygnet.errors import Terminated
from cygnet.types import CancelToken

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclass
class _Hold:
    """How many blocks must not be interrupted now, and what is to be raised when they are over."""

    depth: int = 0
    pending: type[BaseException] | None = None


_hold = _Hold()  # one per process, as signals are


def _raise(kind: type[BaseException]) -> None:
    if _hold.depth:
        _hold.pending = kind
    else:
        raise kind


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What signals would raise within this block is raised at its end. For blocks of moments, not of work."""
    _hold.depth += 1
    try:
        yield
    finally:
        _hold.depth -= 1
        if not _hold.depth and _hold.pending is not None:
            kind, _hold.pending = _hold.pending, None
            raise kind


class WholeStack(ExitStack):
    """An ExitStack whose clean-up is not interrupted."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        with uninterrupted():
            return bool(super().__exit__(kind, error, trace))


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """Within the block SIGTERM raises :class:`Terminated`, so that ``finally`` clauses run; a second ends at once."""

    def on_terminate(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _raise(Terminated)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def cancelled_by_interrupt(note: Callable[[str], None]) -> Iterator[CancelToken]:
    """Within the block the first Ctrl-C sets the token, the second raises KeyboardInterrupt, a third ends at once.

    Long work checks the token between its units; what it was doing is cleaned up in each of the first two cases.
    """
    token = CancelToken()

    def on_interrupt(_: int, __: FrameType | None) -> None:
        if not token.cancelled:
            token.cancel()
            note("stopping after this step; press Ctrl-C again to stop at once")
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _raise(KeyboardInterrupt)

    if threading.current_thread() is not threading.main_thread():
        yield token
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield token
    finally:
        signal.signal(signal.SIGINT, before)
