"""Every error that cygnet raises on purpose.

    CygnetError                     something cygnet can explain; carries a stable code and an exit code
    ├── RequestError                a field of a request is wrong (also a ValueError)
    ├── WeightFileError             a weight file or model folder cannot be used
    │   ├── UnknownLayoutError      the keys belong to no layout that cygnet knows
    │   └── StateMismatchError      right layout, but tensors are missing, unexpected or of the wrong shape
    ├── MediaError                  a picture or video given as input cannot be used
    ├── ModelNotFoundError          a model name or a component of it is not on this machine
    ├── DownloadError               fetching weights failed
    ├── OutputError                 a result could not be written
    │   └── DiskFullError           because the disk, or this user's share of it, is full
    ├── UnsupportedError            this machine or installation lacks something; the message names the remedy
    ├── NumericalError              NaN or infinity appeared while sampling or decoding
    ├── OutOfMemory                 the machine's or the device's memory did not suffice, or would not
    └── Cancelled                   the caller asked to stop

Kinds that only one place raises stand beside it: DiskSpaceError (a DownloadError) in checkpoints.hub; StoreError in
server.tables; BusyError and DuplicateJobError (a RequestError) in server.store; ChildLost and ChildFailed in
server.child; ServerFailed in cli.jobs; WorkflowFailed in cli.run; InstallError in
server.installer; FetchError in server.fetch.

A message says what was given, what is allowed and what to do next. It never holds a secret.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class CygnetError(Exception):
    """Base class. ``code`` is stable and machine-readable; ``exit_code`` is what the command returns."""

    done: Mapping[str, object] = MappingProxyType({})
    """What was finished before, for programs that read the command's JSON."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1


class RequestError(CygnetError, ValueError):
    """A field of a request has a value that is not allowed."""

    code = "bad_request"
    exit_code = 2

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class WeightFileError(CygnetError):
    """A weight file or model folder is damaged, unsafe or not what was asked for."""

    code = "bad_weights"
    exit_code = 2


class UnknownLayoutError(WeightFileError):
    """The tensor names belong to no layout that cygnet knows."""

    code = "unknown_layout"


class StateMismatchError(WeightFileError):
    """The layout is known, but tensors are missing, unexpected or of the wrong shape."""

    code = "state_mismatch"


class MediaError(CygnetError):
    """A picture or video given as input cannot be used."""

    code = "bad_media"
    exit_code = 2


class ModelNotFoundError(CygnetError):
    """A named model, or a component of it, is not on this machine."""

    code = "model_missing"
    exit_code = 2


class DownloadError(CygnetError):
    """Fetching weights failed; what was fetched so far is kept for the next try."""

    code = "download_failed"


class OutputError(CygnetError):
    """A result could not be written."""

    code = "output_failed"


class DiskFullError(OutputError):
    """The disk, or this user's share of it, is full."""

    code = "disk_full"


class UnsupportedError(CygnetError):
    """This machine or installation lacks something that the request needs."""

    code = "unsupported"


class NumericalError(CygnetError):
    """NaN or infinity appeared in the latents or frames."""

    code = "not_finite"


class OutOfMemory(CygnetError):
    """The machine's or the device's memory did not suffice, or a plan says that it would not."""

    code = "out_of_memory"


class Cancelled(CygnetError):
    """The caller asked to stop; nothing was written."""

    code = "cancelled"
    exit_code = 130


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt it is no Exception, so that nothing swallows it."""


def by_signal(error: BaseException) -> bool:
    """Whether a signal raised this, and not foreign code that raises KeyboardInterrupt by itself.

    Signals are heard in the main thread. Ours takes its handler away before it raises; of another one (asyncio's) the
    traceback goes through the handler. Python's own leaves no trace, so with that one the answer is yes.
    """
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return isinstance(error, Terminated)
    handler = signal.getsignal(signal.SIGINT)
    if handler in (signal.SIG_IGN, None):  # the studio's processes
        return False
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    code = getattr(getattr(handler, "func", handler), "__code__", None)
    return any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))


def text_of(error: BaseException) -> str:
    """What an error says; its type's name for one that says nothing, or whose own ``__str__`` fails."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # foreign code may raise anything, here too
        return type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine's or the device's memory did not suffice, whichever library raised it."""
    text = text_of(error).lower()
    return (
        isinstance(error, MemoryError | OutOfMemory)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text
        or "can't allocate memory" in text
    )
