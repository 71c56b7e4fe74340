"""The straight path between data and noise that Wan learns, in the four forms that solvers and training need.

``x_t = (1 - sigma) x_0 + sigma noise`` with sigma in [0, 1]; the network predicts ``velocity = noise - x_0``.
``sigma`` is a float, or a tensor ``[B]`` with one level per sample of a ``[B, ...]`` batch. Arguments are not modified.
"""

from __future__ import annotations

import torch


def add_noise(x_0: torch.Tensor, noise: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """``x_t`` at level ``sigma``; the three tensors have one shape, any floating dtype."""
    level = _per_sample(sigma, x_0)
    return (1 - level) * x_0 + level * noise


def velocity_target(x_0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the network should predict at every ``sigma`` on the path from ``noise`` to ``x_0``."""
    return noise - x_0


def predict_x_0(x_t: torch.Tensor, velocity: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """The clean end of the straight line through ``x_t`` along ``velocity``."""
    return x_t - _per_sample(sigma, x_t) * velocity


def predict_noise(x_t: torch.Tensor, velocity: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """The noisy end of the straight line through ``x_t`` along ``velocity``."""
    return x_t + (1 - _per_sample(sigma, x_t)) * velocity


def _per_sample(sigma: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    if isinstance(sigma, torch.Tensor) and sigma.ndim == 1:
        return sigma.reshape(-1, *[1] * (like.ndim - 1))
    return sigma
