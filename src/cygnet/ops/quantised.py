"""Eight-bit weights back to the type that they compute in. In every scheme weight = stored value * scale."""

from __future__ import annotations

import torch


def dequantise(stored: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """``stored`` in ``dtype``, times ``scale``: one number, ``[rows]``, ``[rows, 1…]`` or ``[rows, blocks, 1]``.

    The product is formed in float32 and rounded once. The result shares no memory with ``stored``.
    """
    if scale is None:
        return stored.to(dtype, copy=True)
    values, factor = stored.to(torch.float32), scale.to(torch.float32)
    if factor.numel() == 1:
        return values.mul_(factor.reshape(())).to(dtype)
    if factor.ndim == 3 and values.ndim == 2:
        rows, blocks, _ = factor.shape
        return values.view(rows, blocks, -1).mul_(factor).view(stored.shape).to(dtype)
    return values.mul_(factor.reshape(-1, *(1,) * (values.ndim - 1))).to(dtype)
