"""Norm layers that the transformers share: statistics in float32, results in the input's dtype."""

from __future__ import annotations

import torch
from torch import nn

from cygnet.ops.norms import layer_norm, rms_norm


class RMSNorm(nn.Module):
    """Scale by the root mean square over the last dimension; no mean is subtracted and nothing is added."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` -> the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias over the last dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` -> the same shape and dtype."""
        return layer_norm(x, self.weight, self.bias, eps=self.eps)
