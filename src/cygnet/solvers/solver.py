"""What every solver shares: its schedule, its own step index, and the checks around one step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from cygnet.errors import RequestError
from cygnet.solvers.schedules import Schedule


class Solver(ABC):
    """Walks one batch of latents down a schedule; make a new one for each run.

    The owner evaluates the network at ``timesteps[step_index]`` and hands the velocity to :meth:`step`. History lives
    here and nowhere else. Coefficients are float64 scalars; tensors are float32 (float64 if the latents are).
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._step_index = 0

    @property
    def sigmas(self) -> tuple[float, ...]:
        """``num_steps + 1`` falling noise levels; the latents handed to the first step are at ``sigmas[0]``."""
        return self._schedule.sigmas

    @property
    def timesteps(self) -> tuple[float, ...]:
        """``num_steps`` values in [0, 1000] to feed the network; neighbours may be equal."""
        return self._schedule.timesteps

    @property
    def num_steps(self) -> int:
        """Steps in the whole schedule."""
        return self._schedule.num_steps

    @property
    def step_index(self) -> int:
        """Steps made so far; the next velocity belongs to ``timesteps[step_index]``."""
        return self._step_index

    def step(self, velocity: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Latents at the next noise level.

        ``x`` is what the previous step returned (or the start) and ``velocity`` the network's output for it: one shape,
        any floating dtype. Returns float32 (float64 for float64 ``x``); changes neither argument. Raises
        :class:`~cygnet.errors.RequestError` when the shapes differ or all steps are made.
        """
        if self._step_index >= self.num_steps:
            raise RequestError(f"all {self.num_steps} steps of this solver are made; make a new solver for a new run")
        if velocity.shape != x.shape:
            raise RequestError(
                f"velocity has shape {tuple(velocity.shape)} but the latents have {tuple(x.shape)}; they must be equal"
            )
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        x_next = self._advance(self._step_index, velocity.to(precise), x.to(precise))
        self._step_index += 1
        return x_next

    @abstractmethod
    def _advance(self, i: int, velocity: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """From ``sigmas[i]`` to ``sigmas[i + 1]``."""


@dataclass(frozen=True)
class ExponentialStep:
    """One step in log-SNR time, exact while the estimate of the data stays constant."""

    sigma: float
    sigma_next: float

    @property
    def length(self) -> float:
        """Step in log-SNR; infinite where a level is 0 or 1."""
        return log_snr(self.sigma_next) - log_snr(self.sigma)

    @property
    def gain(self) -> float:
        """Weight of the estimate in the next sample, and of every correction to it."""
        return -(1 - self.sigma_next) * math.expm1(-self.length)

    def apply(self, x: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
        """From ``x`` at ``sigma`` to ``sigma_next``, given the estimate ``x_0``."""
        return (self.sigma_next / self.sigma) * x + self.gain * x_0


def log_snr(sigma: float) -> float:
    """``lambda = ln((1 - sigma) / sigma)``, the time in which exponential solvers are exact; infinite at 0 and 1."""
    if sigma == 0:
        return math.inf
    if sigma == 1:
        return -math.inf
    return math.log((1 - sigma) / sigma)
