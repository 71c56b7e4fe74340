"""Normalisation whose statistics are taken in float32 whatever the input's type."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Divide by the root mean square over the last dimension, then scale.

    x ``[..., D]``, any floating dtype; weight ``[D]``. The mean of squares and the division are float32; the quotient
    is cast back to ``x.dtype`` before it is multiplied by ``weight``, so the result has the promoted type of the two.
    """
    x_fp32 = x.float()
    normed = x_fp32 * torch.rsqrt(x_fp32.square().mean(dim=-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def channel_scale(x: torch.Tensor, dim: int) -> torch.Tensor:
    """What brings each vector along ``dim`` to root-mean-square 1: ``sqrt(C) / max(|x|, 1e-12)``, in ``x.dtype``.

    The vectors' lengths C are ``x.shape[dim]``; ``dim`` is kept with length 1. Sums are float32. In float16 the scale
    of vectors whose root mean square is below 1.5e-5 is the largest that there is: they stay shorter than 1.
    """
    # A processor asked for a float32 result of bfloat16 first widens all of x, which takes a hundred times as long as
    # the norm; its sums are float32 in any case, and the result is rounded to x's dtype all the same. Float16 has
    # neither numbers as large as norms of thousands nor 1e-12.
    wide = None if x.device.type == "cpu" and x.dtype != torch.float16 else torch.float32
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide).clamp_min(1e-12)
    scale: torch.Tensor = math.sqrt(x.shape[dim]) / norm
    if x.dtype == torch.float16:  # else infinity, and NaN of a vector of zeros
        scale = scale.clamp_max(torch.finfo(x.dtype).max)
    return scale.to(x.dtype)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, *, eps: float
) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation over the last dimension, then scale and add.

    x ``[..., D]``, any floating dtype; weight and bias ``[D]`` or None. Everything is computed in float32 and the
    result cast back to ``x.dtype``.
    """
    return F.layer_norm(
        x.float(),
        x.shape[-1:],
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
        eps,
    ).to(x.dtype)
