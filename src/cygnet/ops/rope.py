"""Rotary position embedding over three axes, in real arithmetic.

Legend: t h w token grid, L = t*h*w tokens, K head width, N heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class RotaryTable(NamedTuple):
    """Cosine and sine of every token's angles, float32 ``[L, K/2]``."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotary_table(grid: tuple[int, int, int], head_width: int, device: torch.device | None = None) -> RotaryTable:
    """Angles for a (t, h, w) grid, row-major over t, h, w; positions start at 0 and have no upper limit.

    The pairs of a head are shared out as time first, then height, then width: of K = 128, 22 + 21 + 21 pairs.
    Angles are computed in float64, for large positions lose several digits in float32.
    """
    spatial = 2 * (head_width // 6)
    widths = (head_width - 2 * spatial, spatial, spatial)
    angles = []
    for axis, (count, width) in enumerate(zip(grid, widths, strict=True)):
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        line = torch.arange(count, dtype=torch.float64, device=device)[:, None] * frequencies
        shape = [1, 1, 1, line.shape[1]]
        shape[axis] = count
        angles.append(line.view(shape).expand(*grid, line.shape[1]))
    angle = torch.cat(angles, dim=-1).flatten(0, 2)
    return RotaryTable(angle.cos().float(), angle.sin().float())


def rotate(x: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Turn each pair (2p, 2p+1) of ``x [B, L, N, K]`` by its token's angle, in float32; returned in x's dtype."""
    if not torch.compiler.is_compiling() and not x.requires_grad:
        # One complex product for the four real ones, the same bits; the compiler fuses only the real form.
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(table.cos, table.sin)[:, None]).flatten(-2).to(x.dtype)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [B, L, N, K/2]
    cos, sin = table.cos[:, None], table.sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
