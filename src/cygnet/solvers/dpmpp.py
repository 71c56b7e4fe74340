"""DPM-Solver++ (2M): second order from the previous estimate, one network evaluation per step.

Source: Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095), multistep second order in the midpoint form, predicting data.
"""

from __future__ import annotations

import torch

from cygnet.solvers.flow import predict_x_0
from cygnet.solvers.schedules import Schedule
from cygnet.solvers.solver import ExponentialStep, Solver


class DPMSolverPP(Solver):
    """First order in the first and last step, second order between."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._previous_x_0: torch.Tensor | None = None

    def _advance(self, i: int, velocity: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        step = ExponentialStep(self.sigmas[i], self.sigmas[i + 1])
        x_0 = predict_x_0(x, velocity, step.sigma)
        x_next = step.apply(x, x_0)
        if self._previous_x_0 is not None and i < self.num_steps - 1:
            # From sigma 1 the previous step is infinitely long, and the ratio removes the correction.
            ratio = ExponentialStep(self.sigmas[i - 1], step.sigma).length / step.length
            x_next = x_next + (0.5 * step.gain / ratio) * (x_0 - self._previous_x_0)
        self._previous_x_0 = x_0
        return x_next
