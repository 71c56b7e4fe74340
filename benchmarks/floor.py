"""How fast a piece of work could be here: its products, convolutions and attention alone, each at its best.

The operators that do nearly all of the arithmetic are noted while the work runs, with the shapes, types and layouts of
their arguments; then each is repeated by itself on made-up numbers, and the best time is counted as often as it ran.
Nothing that passes over memory between them is in it, so no way of computing the same sums with the same operators is
faster on this machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from benchmarks.measure import Work

_NAMES = (
    "mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn_convolution",
    "_scaled_dot_product_flash_attention_for_cpu",
)  # fmt: skip
_HEAVY = frozenset(
    [getattr(torch.ops.aten, name).default for name in _NAMES if hasattr(torch.ops.aten, name)]
    + ([torch.ops.mkldnn._linear_pointwise.default] if hasattr(torch.ops.mkldnn, "_linear_pointwise") else [])
)
_LEAST, _SECONDS = 3, 0.4
"""Each operator is repeated so often at least, and for so long."""


class _Shape(NamedTuple):
    """What a tensor was like."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made_up(self) -> torch.Tensor:
        """One like it."""
        held = [1 if stride == 0 else size for size, stride in zip(self.size, self.stride, strict=True)]
        return torch.empty_strided(held, self.stride, dtype=self.dtype).normal_().expand(self.size)


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _HEAVY:
            leaves, form = tree_flatten((args, kwargs))
            noted = [
                _Shape(tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
                for leaf in leaves
            ]
            self.calls[(func, form, *noted)] += 1
        return func(*args, **kwargs)


def floor_of(work: Work) -> float:
    """Seconds that the heavy operators of ``work`` take at their best, in the threads of now."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), _Noting() as noted:
        work()
    return sum(_best(func, form, list(leaves)) * count for (func, form, *leaves), count in noted.calls.items())


def _best(func: Callable[..., Any], form: Any, leaves: list[Any]) -> float:
    made = [leaf.made_up() if isinstance(leaf, _Shape) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(made, form)
    best, spent, runs = float("inf"), 0.0, 0
    with torch.no_grad():
        func(*args, **kwargs)
        while runs < _LEAST or (spent < _SECONDS and runs < 100):
            start = time.perf_counter()
            func(*args, **kwargs)
            took = time.perf_counter() - start
            best, spent, runs = min(best, took), spent + took, runs + 1
    return best
