"""What a piece of work takes, found by doing it without numbers: peak memory, bytes moved, kernels started.

Networks on the meta device know the shapes of everything that they compute and hold none of it. :class:`Ledger` keeps
the account while the very code of a run goes over them: each tensor is entered when it is made and struck off when
nothing refers to it any more. What a kernel takes for itself while it runs is not seen.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten: Any = torch.ops.aten

HEAVY = frozenset(
    ["mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution", "mkldnn_convolution", "linear", "dot"]
)
"""Kernels whose time goes by their operations; that of all others goes by the bytes that they move."""
_FREE = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"])


@dataclass(frozen=True)
class Cost:
    """What some work takes beside weights: bytes at its peak, bytes moved by pointwise kernels, kernels started."""

    peak: int = 0
    moved: int = 0
    kernels: int = 0

    def beyond(self, other: Cost, times: int) -> Cost:
        """This cost after ``times`` more steps of the size that lies between ``other`` and this one."""
        return Cost(
            self.peak + times * max(self.peak - other.peak, 0),
            self.moved + times * (self.moved - other.moved),
            self.kernels + times * (self.kernels - other.kernels),
        )


class Ledger(TorchDispatchMode):
    """Keeps account of the tensors that are made inside its ``with`` block.

    Where a run looks at a value it is told 1, or True; where it compares two tensors as wholes, ``alike``.
    """

    def __init__(self, *, alike: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modes = ExitStack()
        self.alike = alike
        self.live = 0
        self.peak = 0
        self.moved = 0
        self.kernels = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._attention = _EmptyAttention(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False keeps torch from loading its compiler, which takes longer than all traces of a plan."""
        return False

    def __enter__(self) -> Self:
        if torch.is_inference_mode_enabled():  # in which less comes by here
            self._modes.enter_context(torch.inference_mode(False))
            self._modes.enter_context(torch.no_grad())
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._attention.__exit__(*error)  # type: ignore[no-untyped-call]
        self._modes.close()

    @property
    def cost(self) -> Cost:
        """The account so far."""
        return Cost(self.peak, self.moved, self.kernels)

    def mark(self) -> None:
        """Begin the account anew; what is live stays."""
        self.peak, self.moved, self.kernels = self.live, 0, 0

    def enter(self, size: int) -> None:
        """Count ``size`` bytes that some kernel holds beside its result while it runs."""
        if size:
            self.peak = max(self.peak, self.live + size)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            return 1
        if func is aten.equal.default:
            return self.alike
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        for tensor in given:
            self._enter(tensor, made=False)
        name = func.overloadpacket.__name__
        device = given[0].device if given else (kwargs or {}).get("device")
        away = device is not None and device.type == "meta"
        shortcut = _SHORTCUTS.get(name) if away and not func._schema.is_mutable else None
        if away and (name in _IN_PLACE or (name == "mul" and "out" in (kwargs or {}))):
            shortcut = _itself
        out = func(*args, **(kwargs or {})) if shortcut is None else shortcut(*args, **(kwargs or {}))
        made = [value for value in tree_iter(out) if isinstance(value, torch.Tensor)]
        copied = _copied_inside(name, given, made)
        self.enter(copied)
        self.moved += 2 * copied
        fresh = [self._enter(tensor, made=True) for tensor in made]
        if name not in _FREE and (any(fresh) or func._schema.is_mutable):
            self.kernels += 1
            if name not in HEAVY:
                self.moved += sum(_bytes(tensor) for tensor in (*given, *made))
        return out

    def _enter(self, tensor: torch.Tensor, *, made: bool) -> bool:
        """Note a tensor's memory; whether it is new and made here."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._known.get(key)
        if known is not None and known() is not None:
            return False
        size = storage.nbytes() if made else 0

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
        return made


class _EmptyAttention(TorchFunctionMode):
    """Attention as a fused kernel does it: nothing as large as the scores is ever in memory."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") != "scaled_dot_product_attention":
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        batch, heads, rows, _ = q.shape
        out = q.new_empty(batch, rows, heads, v.shape[-1]).transpose(1, 2)
        self._ledger.enter(_bytes(k) + _bytes(v) + 4 * batch * heads * rows)
        self._ledger.kernels += 1
        return out


def _copied_inside(name: str, given: list[torch.Tensor], made: list[torch.Tensor]) -> int:
    """Bytes that a kernel of a processor holds until it ends, its result counted: copies of its input.

    A convolution whose kernel is channels-last wants its input so; enlarging works in its input's layout on a copy of
    its output; a norm in a wider type widens its whole input first.
    """
    if name == "linalg_vector_norm" and made[0].dtype != given[0].dtype:
        return given[0].numel() * made[0].element_size()
    if name not in ("convolution", "mkldnn_convolution", "_upsample_nearest_exact2d") or given[0].ndim not in (4, 5):
        return 0
    layout = torch.channels_last if given[0].ndim == 4 else torch.channels_last_3d
    if given[0].is_contiguous(memory_format=layout):
        return 0
    if name == "_upsample_nearest_exact2d":
        return 2 * _bytes(made[0])
    wants = given[1].is_contiguous(memory_format=layout)
    return _bytes(made[0]) + _bytes(given[0]) if wants else 0


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# Shapes of frequent kernels ------------------------------------------------------------------------------------------
# Torch has those of the meta device in Python, and to find them it loads its compiler: seconds in place of
# milliseconds. A trace with these equals one without, and one of a processor's own kernels (tests/runtime).


def _pointwise(*args: Any, **kwargs: Any) -> torch.Tensor:
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    dtype = tensors[0].dtype
    for one, other in pairwise(tensors):
        dtype = torch.promote_types(dtype, torch.result_type(one, other))
    like = next((tensor for tensor in tensors if tensor.shape == shape), None)
    if like is None:
        return tensors[0].new_empty(shape, dtype=dtype)
    return torch.empty_like(like, dtype=dtype)


def _compared(*args: Any, **kwargs: Any) -> torch.Tensor:
    return _pointwise(*args).to(torch.bool)


def _cat(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    first = tensors[0]
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(first.ndim)
    if layout is None or first.is_contiguous() or not first.is_contiguous(memory_format=layout):
        layout = torch.contiguous_format
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)


def _stack(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    shape = list(tensors[0].shape)
    shape.insert(dim if dim >= 0 else dim + len(shape) + 1, len(tensors))
    return tensors[0].new_empty(shape)


def _arange(*bounds: float, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    whole = all(isinstance(bound, int) for bound in bounds)
    kind = dtype or (torch.int64 if whole else torch.get_default_dtype())
    return torch.empty(math.ceil((end - start) / step), dtype=kind, device="meta")


def _all(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args or kwargs:
        out: torch.Tensor = aten.all(x, *args, **kwargs)
        return out
    return x.new_empty((), dtype=torch.bool)


def _vector_norm(
    x: torch.Tensor,
    order: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return x.sum(dim, keepdim=keepdim, dtype=dtype or x.dtype)


def _mean(
    x: torch.Tensor, dim: list[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    return x.sum(dim, keepdim=keepdim, dtype=dtype)


def _layer_norm(x: torch.Tensor, shape: list[int], *args: Any) -> tuple[torch.Tensor, ...]:
    rows = (*x.shape[: x.ndim - len(shape)], *(1 for _ in shape))
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(rows), x.new_empty(rows)


def _embedding(table: torch.Tensor, rows: torch.Tensor, *args: Any) -> torch.Tensor:
    return table.new_empty(*rows.shape, table.shape[1])


def _addmm(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _itself(x: torch.Tensor, *args: Any, out: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    return x if out is None else out


_IN_PLACE = frozenset(f"{name}_" for name in ("add", "clamp", "copy", "div", "fill", "mul", "silu", "sub", "zero"))
_SHORTCUTS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("mul", "add", "sub", "div", "addcmul", "abs", "neg", "clamp_min", "reciprocal"), _pointwise),
    **dict.fromkeys(("rsqrt", "pow", "gelu", "silu", "sin", "cos"), _pointwise),
    **dict.fromkeys(("eq", "ne"), _compared),
    "cat": _cat,
    "stack": _stack,
    "arange": _arange,
    "all": _all,
    "linalg_vector_norm": _vector_norm,
    "mean": _mean,
    "native_layer_norm": _layer_norm,
    "embedding": _embedding,
    "addmm": _addmm,
}
