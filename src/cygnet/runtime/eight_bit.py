"""Linear layers that keep their matrix in eight bits, half of bfloat16's memory, and widen it when they run.

The arithmetic is that of a layer whose matrix was widened when it was loaded, bit for bit: eight bits are only how it
is kept. For files that store their weights so, see :mod:`cygnet.checkpoints.quantised` for their schemes, and for
weights that are rounded as they are loaded, :data:`WeightDtype`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import nn

from cygnet.errors import RequestError
from cygnet.ops.quantised import dequantise
from cygnet.runtime.products import linear

WeightDtype = Literal["auto", "fp8", "int8"]
"""What the matrices of a transformer's blocks are kept in; "auto": what they compute in, or the file's own 8 bits."""
KINDS: Mapping[str, torch.dtype] = MappingProxyType({"fp8": torch.float8_e4m3fn, "int8": torch.int8})


def check_weight_dtype(name: str) -> None:
    """Raise :class:`~cygnet.errors.RequestError` unless it is one of :data:`WeightDtype`."""
    if name not in get_args(WeightDtype):
        raise RequestError(
            f"weight_dtype is {name!r}; give one of: {', '.join(get_args(WeightDtype))}", field="weight_dtype"
        )


def between_ends(names: Iterable[str]) -> list[str]:
    """Of weights such as ``blocks.3.ffn.0.weight`` those in neither the first nor the last block of their stack.

    Rounding these two costs most; and what is in no block (embeddings, modulation, the head) is never among ``names``.
    """
    placed = [(name, *name.split(".", 2)[:2]) for name in names]
    last: dict[str, int] = {}
    for _, stack, number in placed:
        last[stack] = max(last.get(stack, 0), int(number))
    return [name for name, stack, number in placed if 0 < int(number) < last[stack]]


class EightBitLinear(nn.Module):
    """``x @ (stored * scale).T + bias``, in the dtype of ``x``."""

    stored: torch.Tensor
    scale: torch.Tensor | None

    def __init__(self, stored: torch.Tensor, scale: torch.Tensor | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.bias = bias

    @property
    def in_features(self) -> int:
        """Width of what it takes."""
        return self.stored.shape[1]

    @property
    def out_features(self) -> int:
        """Width of what it gives."""
        return self.stored.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        return linear(x, dequantise(self.stored, self.scale, x.dtype), self.bias)


def keep_in_eight_bits(
    module: nn.Module, matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]], device: torch.device | str
) -> None:
    """Put an :class:`EightBitLinear` in the place of each linear layer whose weight is named, with values and scale."""
    for name, (stored, scale) in matrices.items():
        path = name.removesuffix(".weight")
        parent, _, leaf = path.rpartition(".")
        layer = module.get_submodule(path)
        assert isinstance(layer, nn.Linear), f"{path} is a {type(layer).__name__}"
        own_scale = None if scale is None else scale.to(device)
        setattr(module.get_submodule(parent), leaf, EightBitLinear(stored.to(device), own_scale, layer.bias))
