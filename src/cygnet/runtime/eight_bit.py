"""Linear layers that keep their matrix in eight bits, half of bfloat16's memory, and widen it when they run.

The arithmetic is that of a layer whose matrix was widened when it was loaded, bit for bit: eight bits are only how it
is kept. For files that store their weights so; see :mod:`cygnet.checkpoints.quantised` for their schemes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from cygnet.ops.quantised import dequantise
from cygnet.runtime.products import linear


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
