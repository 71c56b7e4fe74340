"""Weights to eight bits, and back to the type that they compute in. In every scheme weight = stored value * scale."""

from __future__ import annotations

import torch

SMALLEST_ROW = 1e-12
"""A row whose largest value is below this is rounded as if it were this: rows of zeros need a scale too."""


def quantise_rows(values: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """``values [rows, columns]`` float32 in an 8-bit type, and the scale ``[rows, 1]`` float32 that restores each row.

    The largest value of a row becomes the largest of ``kind``: 127 of int8, which is used from -127 on, 448 of
    ``float8_e4m3fn``. What is restored is off by at most half a scale in int8, by a sixteenth of the value or a 1024th
    of the scale in ``float8_e4m3fn``. ``values`` is overwritten. NaN and infinity show in the scale of their row.
    """
    most = 127.0 if kind == torch.int8 else float(torch.finfo(kind).max)
    largest = torch.maximum(values.amax(dim=1, keepdim=True), -values.amin(dim=1, keepdim=True))
    scale = largest.clamp_min(SMALLEST_ROW) / most
    values.div_(scale)
    if kind == torch.int8:
        values.round_()
    return values.to(kind), scale


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
