"""The sampler of models distilled to few steps: estimate the data, noise it afresh to the next level."""

from __future__ import annotations

import torch

from cygnet.solvers.flow import add_noise, predict_x_0
from cygnet.solvers.schedules import Schedule
from cygnet.solvers.solver import Solver


class Renoise(Solver):
    """``x_0 = x - sigma velocity``, then ``x = (1 - sigma_next) x_0 + sigma_next noise`` with noise of its own.

    The noise goes on where that of the start ended: both are as if one generator of the CPU, seeded with ``seed``, had
    made all of it. Source: Self-Forcing and CausVid (guandeh17/Self-Forcing, tianweiy/CausVid).
    """

    def __init__(self, schedule: Schedule, seed: int = 0) -> None:
        super().__init__(schedule)
        self._seed = seed
        self._generator: torch.Generator | None = None

    def _advance(self, i: int, velocity: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x_0 = predict_x_0(x, velocity, self.sigmas[i])
        following = self.sigmas[i + 1]
        return x_0 if following == 0 else add_noise(x_0, self._noise(x), following)

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self._seed)
            torch.randn(like.shape, generator=self._generator)  # that of the start
        return torch.randn(like.shape, generator=self._generator).to(like)
