"""The first-order solver: one straight piece per step."""

from __future__ import annotations

import torch

from cygnet.solvers.solver import Solver


class Euler(Solver):
    """``x += (sigma_next - sigma) velocity``."""

    def _advance(self, i: int, velocity: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x + (self.sigmas[i + 1] - self.sigmas[i]) * velocity
