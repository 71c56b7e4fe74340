"""What a running node can reach: its progress, previews, and whether it should stop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from cygnet.graph.events import NodePreviewed, NodeProgressed, NodeSpoke, Place, Sink
from cygnet.types import CancelToken


@dataclass(frozen=True)
class Context:
    """One node's view of the job that runs it."""

    place: Place
    sink: Sink
    cancel: CancelToken
    preview_method: str = "auto"
    """How previews are made: ``auto`` (or ``taesd``), ``latent2rgb`` or ``none``."""
    job: str = ""
    """The job's id, where it has one."""
    call: int = 0
    """The number of this call of the node, which is called once for each member of a list."""
    graphs: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)
    """Numbers for the expansions that this call makes."""

    def progress(self, value: float, total: float) -> None:
        """Report that ``value`` of ``total`` units are done. Raises :class:`~cygnet.errors.Cancelled` on a stop."""
        self.cancel.check()
        self.sink(NodeProgressed(self.place, value, total))

    def preview(self, image: bytes, media_type: Literal["image/jpeg", "image/png"]) -> None:
        """Show a whole picture file on the node."""
        self.sink(NodePreviewed(self.place, image, media_type))

    def say(self, text: str) -> None:
        """Show a line of text on the node."""
        self.sink(NodeSpoke(self.place, text))


_current: ContextVar[Context | None] = ContextVar("node", default=None)


def current() -> Context:
    """The context of the node that is running; one that nobody watches outside a job."""
    return _current.get() or Context(Place(node="", display="", real=""), lambda event: None, CancelToken())


def in_a_node() -> bool:
    """Whether a node is running in this thread or task."""
    return _current.get() is not None


@contextmanager
def running(context: Context) -> Iterator[None]:
    """Make ``context`` the current one for the length of a ``with`` block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
