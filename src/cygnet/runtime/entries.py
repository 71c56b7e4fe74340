"""What is called of a network's blocks from outside, and a way to do something around each such call.

A block's ``forward`` is not all that runs of it: the prompt's keys are computed before, and VACE's control branch goes
in and comes out by layers of its own. Weights that come in block by block must be there for each. Hooks would do that
for modules, not for methods; and a block with hooks on its parts runs uncompiled (:mod:`cygnet.runtime.compile`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

FORWARD = "forward"
OUTSIDE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cross_attn.keys": ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img"),
        "before_proj": ("before_proj",),
        "after_proj": ("after_proj",),
    }
)
"""What is called of a block beside its forward, and the layers that this runs; the forward runs none of those."""
ENTRIES = (FORWARD, *OUTSIDE)
"""All that is called of a block."""


class Entry:
    """Something that is put around one method or part of a block, until :meth:`remove`."""

    def __init__(self, owner: nn.Module, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._owner, self._name = owner, name
        self._before = vars(owner).get(name)
        called = getattr(owner, name)
        self._ours = functools.wraps(called, updated=())(around(called))
        setattr(owner, name, self._ours)

    @classmethod
    def find(
        cls, block: nn.Module, path: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> Entry | None:
        """One around the method or part ``path`` of ``block``; None for a block without it.

        ``around`` is given what would be called, and returns what is called in its place.
        """
        parent, _, name = path.rpartition(".")
        try:
            owner = block.get_submodule(parent)
            called = getattr(owner, name)
        except AttributeError:
            return None
        return cls(called, FORWARD, around) if isinstance(called, nn.Module) else cls(owner, name, around)

    def remove(self) -> None:
        """Put back what was there before; nothing if something else was put around this since, for that calls it."""
        if vars(self._owner).get(self._name) is not self._ours:
            return
        delattr(self._owner, self._name)
        if self._before is not None:
            setattr(self._owner, self._name, self._before)
