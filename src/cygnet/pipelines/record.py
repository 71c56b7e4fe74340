"""What a run leaves for its receipt, and the time that its networks take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from cygnet.types import ComponentName, Phase, Tiles

Half = Literal["decode", "encode"]
"""Of the VAE."""
_M = TypeVar("_M", bound=torch.nn.Module)


@dataclass(kw_only=True)
class Record:
    """What a run leaves for its receipt; made by the caller, filled while the run goes on."""

    notices: list[str] = field(default_factory=list)
    """What the caller should know, in words."""
    sigmas: tuple[float, ...] = ()
    cached: dict[str, Any] = field(default_factory=dict)
    """What a step cache did: ``skipped`` of ``steps``, and ``tables`` if it measured any; empty without one."""
    tiles: dict[Half, Tiles] = field(default_factory=dict)
    """In which tiles the VAE works on the picture; absent for what it sees whole."""
    parked: bool = False
    """Whether what tiles remember waits in the host's memory; see :class:`~cygnet.pipelines.tiles.Portions`."""
    seconds: dict[Phase, float] = field(default_factory=dict)
    """Time spent per phase, without the caller's own between chunks."""
    at_work: ComponentName | None = None
    """The network whose stage is under way, or failed."""
    stepped_down: bool = False
    """Whether memory ran out and a stage was done again in less."""

    @contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        """Add the time of a ``with`` block to ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


@contextmanager
def using(component: AbstractContextManager[_M], phase: Phase, record: Record) -> Iterator[_M]:
    """A network for the length of a block; the time until it is there counts as loading, the rest as ``phase``."""
    with ExitStack() as stack:
        with record.timed("load"):
            network = stack.enter_context(component)
        with record.timed(phase):
            yield network
