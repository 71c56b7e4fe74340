"""Noise levels at which the network is asked, and the timesteps it is told.

``sigma`` in [0, 1] is the share of noise in the latents (1 pure noise, 0 clean); ``timestep`` = 1000 sigma. Both are
Python floats in float64: the levels near 1 differ by less than float32 can hold once ``shift`` is large.
Source: Wan-Video/Wan2.1 revision 9737cba, ``wan/utils/fm_solvers.py`` and ``fm_solvers_unipc.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch

from cygnet.errors import RequestError
from cygnet.types import SOLVER_NAMES, SolverName

NUM_TRAIN_TIMESTEPS = 1000
MAX_STEPS = 1000
MIN_SHIFT, MAX_SHIFT = 1e-9, 1e9
"""Beyond them, neighbouring levels of a long schedule coincide in float64."""

# The reference keeps its largest level, 1 - 1/1000, in float32 before it builds the float64 grid from it. The excess of
# 1e-8 decides on which side of an integer a timestep falls when the exact product is one.
_UNIPC_FIRST_LEVEL = 0.9990000128746033


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """``N + 1`` falling noise levels and the ``N`` timesteps that belong to all but the last."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.timesteps or len(self.sigmas) != len(self.timesteps) + 1:
            raise ValueError(f"{len(self.sigmas)} sigmas need one timestep less, not {len(self.timesteps)}")
        falling = all(high > low for high, low in itertools.pairwise(self.sigmas))
        if not (falling and self.sigmas[0] <= 1 and self.sigmas[-1] >= 0):
            raise ValueError("sigmas must fall strictly within [0, 1]")

    @property
    def num_steps(self) -> int:
        """Evaluations of the network that the schedule asks for."""
        return len(self.timesteps)

    def from_step(self, start_step: int) -> Schedule:
        """The rest of the schedule, for latents that are already at ``sigmas[start_step]``.

        Raises :class:`~cygnet.errors.RequestError` unless ``0 <= start_step < num_steps``.
        """
        if type(start_step) is not int or not 0 <= start_step < self.num_steps:
            raise RequestError(
                f"start_step is {start_step!r}; a schedule of {self.num_steps} steps allows whole numbers from 0 to "
                f"{self.num_steps - 1}",
                field="start_step",
            )
        return Schedule(sigmas=self.sigmas[start_step:], timesteps=self.timesteps[start_step:])


def check_solver_name(name: str) -> None:
    """Raise :class:`~cygnet.errors.RequestError`, listing the names, unless ``name`` is one of them."""
    if name not in SOLVER_NAMES:
        allowed = ", ".join(f'"{known}"' for known in SOLVER_NAMES)
        raise RequestError(f"solver is {name!r}; choose one of {allowed}", field="solver")


@overload
def shift_sigma(sigma: float, shift: float) -> float: ...
@overload
def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor: ...
def shift_sigma(sigma: float | torch.Tensor, shift: float) -> float | torch.Tensor:
    """Move levels towards noise (shift > 1): ``s u / (1 + (s - 1) u)``; keeps 0 and 1 where they are."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def make_schedule(name: SolverName, num_steps: int, shift: float) -> Schedule:
    """The schedule that the reference uses with a solver.

    ``num_steps`` is 1..1000 and ``shift`` 1e-9..1e9, else :class:`~cygnet.errors.RequestError`. UniPC starts at 0.999
    before the shift, the others at 1. UniPC and DPM++ feed the network whole timesteps, cut (not
    rounded) from the float64 product, while their update uses the exact sigma; Euler and renoise, which the reference
    lacks, feed the exact product. Large shifts repeat whole timesteps: nothing may look a step up by its timestep.
    """
    check_solver_name(name)
    if type(num_steps) is not int or not 1 <= num_steps <= MAX_STEPS:
        raise RequestError(
            f"num_steps is {num_steps!r}; allowed are whole numbers from 1 to {MAX_STEPS}", field="num_steps"
        )
    if not _is_number(shift) or not MIN_SHIFT <= shift <= MAX_SHIFT:
        raise RequestError(
            f"shift is {shift!r}; it must be a number from {MIN_SHIFT:g} to {MAX_SHIFT:g} (Wan uses 3 to 16)",
            field="shift",
        )
    first = _UNIPC_FIRST_LEVEL if name == "unipc" else 1.0
    stride = -first / num_steps
    # Rounding in the shift map can put its fixed point 1 a little above 1.
    levels = [min(1.0, shift_sigma(first + i * stride, shift)) for i in range(num_steps)]
    exact = [level * NUM_TRAIN_TIMESTEPS for level in levels]
    timesteps = exact if name in ("euler", "renoise") else [float(int(t)) for t in exact]
    return Schedule(sigmas=(*levels, 0.0), timesteps=tuple(timesteps))


def custom_schedule(sigmas: Sequence[float]) -> Schedule:
    """A schedule from a list of levels, for models distilled to few steps.

    The levels fall strictly and lie in (0, 1]; a closing 0 may be written or left out. Timesteps are 1000 sigma, not
    cut. Raises :class:`~cygnet.errors.RequestError` otherwise.
    """
    given = list(sigmas)
    if not all(_is_number(level) and 0 <= level <= 1 for level in given):
        raise RequestError(f"sigmas is {given!r}; every level must be a number from 0 to 1", field="sigmas")
    levels = [float(level) for level in given]
    if levels and levels[-1] == 0:
        levels.pop()
    if not 1 <= len(levels) <= MAX_STEPS:
        raise RequestError(f"sigmas holds {len(levels)} levels above 0; allowed are 1 to {MAX_STEPS}", field="sigmas")
    falling = all(high > low for high, low in itertools.pairwise(levels))
    if not (falling and levels[-1] > 0):
        raise RequestError(
            f"sigmas is {given}; levels must fall strictly and 0 may only close them, as in [1.0, 0.94, 0.83, 0.62]",
            field="sigmas",
        )
    return Schedule(sigmas=(*levels, 0.0), timesteps=tuple(level * NUM_TRAIN_TIMESTEPS for level in levels))


def start_step_for_strength(strength: float, num_steps: int) -> int:
    """First step of a video-to-video run: the last ``strength`` share of ``num_steps``, at least one step.

    ``strength`` is above 0 (keep the source) and at most 1 (start from pure noise), else
    :class:`~cygnet.errors.RequestError`.
    """
    if not _is_number(strength) or not 0 < strength <= 1:
        raise RequestError(f"strength is {strength!r}; it must be above 0 and at most 1", field="strength")
    return num_steps - max(1, round(strength * num_steps))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
