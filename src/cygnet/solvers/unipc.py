"""UniPC of order two (bh2, predicting data): Wan's default solver.

Each step first corrects the sample it was given with the network's answer for it, then predicts the next sample. The
correction costs no evaluation: the answer is not asked for again at the corrected sample.
Source: Zhao et al. 2023, "UniPC" (arXiv 2302.04867), with B(h) = e^h - 1, and orders as in Wan-Video/Wan2.1 9737cba.
"""

from __future__ import annotations

import math

import torch

from cygnet.solvers.flow import predict_x_0
from cygnet.solvers.schedules import Schedule
from cygnet.solvers.solver import ExponentialStep, Solver

MAX_ORDER = 2


class UniPC(Solver):
    """First order in the first and last step, second order between; the corrector follows the predictor's order."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._x_0_history: list[torch.Tensor] = []
        """Data estimates of the last two steps, oldest first."""
        self._corrected: torch.Tensor | None = None
        """The corrected sample from which the last prediction started."""
        self._order = 0
        """Order of the last prediction."""

    def _advance(self, i: int, velocity: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x_0 = predict_x_0(x, velocity, self.sigmas[i])
        corrected = x if self._corrected is None else self._correct(i, self._corrected, x_0)
        order = min(MAX_ORDER, self.num_steps - i, i + 1)
        predicted = self._predict(i, order, corrected, x_0)
        self._x_0_history = [*self._x_0_history[1 - MAX_ORDER :], x_0]
        self._corrected, self._order = corrected, order
        return predicted

    def _predict(self, i: int, order: int, x: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
        """From the corrected sample at ``sigmas[i]`` to a first guess at ``sigmas[i + 1]``."""
        step = self._exponential_step(i)
        base = step.apply(x, x_0)
        if order == 1:
            return base
        ratio = self._history_ratio(i)
        return base + (0.5 * step.gain / ratio) * (self._x_0_history[-1] - x_0)

    def _correct(self, i: int, previous: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
        """A better sample at ``sigmas[i]``, from the one at ``sigmas[i - 1]`` and the estimate ``x_0`` made here."""
        step = self._exponential_step(i - 1)
        previous_x_0 = self._x_0_history[-1]
        base = step.apply(previous, previous_x_0)
        if self._order == 1:
            return base + (0.5 * step.gain) * (x_0 - previous_x_0)
        ratio = self._history_ratio(i - 1)
        phi = math.expm1(-step.length)
        psi = phi / -step.length - 1
        b_1 = psi / phi
        b_2 = 2 * (psi / -step.length - 0.5) / phi
        weight_history = (b_1 - b_2) / (1 - ratio)
        weight_here = b_1 - weight_history
        slope = (self._x_0_history[-2] - previous_x_0) / ratio
        return base + step.gain * (weight_history * slope + weight_here * (x_0 - previous_x_0))

    def _exponential_step(self, i: int) -> ExponentialStep:
        return ExponentialStep(self.sigmas[i], self.sigmas[i + 1])

    def _history_ratio(self, i: int) -> float:
        """Place of the estimate before step ``i``, in units of that step: negative, -inf if it was made at sigma 1."""
        return -self._exponential_step(i - 1).length / self._exponential_step(i).length
