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


def matmul_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """The same from plain matrix products, holding all scores: for training short sequences on a CPU.

    There the fused kernel's backward pass takes several times as long as these products'.
    """
    scores = torch.matmul(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-1, -2)).float()
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)
