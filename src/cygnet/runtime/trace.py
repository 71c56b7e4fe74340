"""What a piece of work takes, found by doing it without numbers: peak memory, bytes moved, kernels started.

Networks on the meta device know the shapes of everything that they compute and hold none of it. :class:`Ledger` keeps
the account while the very code of a run goes over them: each tensor is entered when it is made and struck off when
nothing refers to it any more. What a kernel takes for itself while it runs is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
        self.alike = alike
        self.live = 0
        self.peak = 0
        self.moved = 0
        self.kernels = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._attention = _EmptyAttention(self)

    def __enter__(self) -> Ledger:
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._attention.__exit__(*error)  # type: ignore[no-untyped-call]

    @property
    def cost(self) -> Cost:
        """The account so far."""
        return Cost(self.peak, self.moved, self.kernels)

    def mark(self) -> None:
        """Begin the account anew; what is live stays."""
        self.peak, self.moved, self.kernels = self.live, 0, 0

    def enter(self, size: int) -> None:
        """Count ``size`` bytes that some kernel holds while it runs."""
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
        out = func(*args, **(kwargs or {}))
        made = [value for value in tree_iter(out) if isinstance(value, torch.Tensor)]
        fresh = [self._enter(tensor, made=True) for tensor in made]
        name = func.overloadpacket.__name__
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


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """All weights of a network."""
    yield from module.parameters()
    yield from module.buffers()
