"""Attention kernels behind the :class:`cygnet.types.Attention` signature."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Torch's own fused attention; exact on every device. Shapes as in :class:`cygnet.types.Attention`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
