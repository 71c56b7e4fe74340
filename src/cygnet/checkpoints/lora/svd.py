"""The best low-rank change for a matrix, and how much of the matrix it holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

EXACT_SIDE = 512
"""Matrices of which one side is at most this long are decomposed exactly; larger ones by a random projection."""
_OVERSAMPLING, _ITERATIONS = 16, 4


@dataclass(frozen=True)
class Truncated:
    """``up [out, R] @ down [R, in]``, and the share of the matrix's energy (its squared values) that this holds."""

    down: torch.Tensor
    up: torch.Tensor
    energy: float
    """In the whole matrix, as a sum of squares."""
    lost: float
    """In what is left: the sum of squares of the matrix less the product, computed and not estimated."""


def truncated(matrix: torch.Tensor, rank: int) -> Truncated:
    """The part of rank at most ``rank`` of ``matrix [out, in]`` (float32) that is nearest to it.

    The singular values are shared out evenly between the two factors. Large matrices take Halko's randomised method
    (arXiv 0909.4061) with four power iterations, seeded, which comes within a fraction of a percent of the best.
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= EXACT_SIDE:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, min(rank + _OVERSAMPLING, *matrix.shape), niter=_ITERATIONS)
        vh = v.T
    root = s[:rank].sqrt()
    up, down = (u[:, :rank] * root).contiguous(), (root[:, None] * vh[:rank]).contiguous()
    energy = float(matrix.double().square().sum())
    lost = float((matrix - up @ down).double().square().sum())
    return Truncated(down, up, energy, lost)
