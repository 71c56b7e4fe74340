"""From noise to data: ask for a velocity, take a step, until the schedule ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cygnet.solvers.dpmpp import DPMSolverPP
from cygnet.solvers.euler import Euler
from cygnet.solvers.renoise import Renoise
from cygnet.solvers.schedules import check_solver_name, custom_schedule, make_schedule
from cygnet.solvers.solver import Solver
from cygnet.solvers.unipc import UniPC
from cygnet.types import SolverName

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``velocity(x, timestep)``: latents and a float32 scalar tensor in [0, 1000] on their device, to a tensor like x."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """``step`` of ``total`` steps are made. ``latents - sigma * velocity`` estimates the result, for a preview."""

    step: int
    total: int
    timestep: float
    """What the network was told in this step."""
    sigma: float
    """Noise level of ``latents``; 0 after the last step."""
    latents: torch.Tensor
    velocity: torch.Tensor


def make_solver(
    name: SolverName,
    num_steps: int = 50,
    shift: float = 5.0,
    *,
    sigmas: Sequence[float] | None = None,
    start_step: int = 0,
    seed: int = 0,
) -> Solver:
    """A solver at its first step.

    ``name`` is "unipc" (Wan's default), "dpm++", "euler" or "renoise", whose noise ``seed`` decides.
    ``sigmas``, if given, replaces ``num_steps`` and ``shift``
    (see :func:`~cygnet.solvers.schedules.custom_schedule`). ``start_step`` leaves out the first steps, for latents that
    are data noised to the solver's ``sigmas[0]``. Raises :class:`~cygnet.errors.RequestError`, naming the field.
    """
    check_solver_name(name)
    schedule = make_schedule(name, num_steps, shift) if sigmas is None else custom_schedule(sigmas)
    rest = schedule.from_step(start_step)
    if name == "renoise":
        return Renoise(rest, seed)
    kinds: dict[SolverName, type[Solver]] = {"unipc": UniPC, "dpm++": DPMSolverPP, "euler": Euler}
    return kinds[name](rest)


@torch.no_grad()
def sample(
    velocity: Velocity,
    x: torch.Tensor,
    solver: SolverName = "unipc",
    num_steps: int = 50,
    shift: float = 5.0,
    *,
    sigmas: Sequence[float] | None = None,
    start_step: int = 0,
    seed: int = 0,
    on_step: Callable[[StepReport], None] | None = None,
) -> torch.Tensor:
    """Follow ``velocity`` from noise to data; gradients are not recorded.

    ``x`` is standard normal noise of any shape (with ``start_step``: data noised to that level by
    :func:`~cygnet.solvers.flow.add_noise`). Each step calls ``velocity(x, timestep)`` once. ``on_step`` is told after
    each step and stops the run by raising. The rest is as in :func:`make_solver`. Returns float32 (float64 for float64
    ``x``) of the same shape; ``x`` is not modified.
    """
    stepper = make_solver(solver, num_steps, shift, sigmas=sigmas, start_step=start_step, seed=seed)
    latents = x if x.dtype == torch.float64 else x.float()
    for i, timestep in enumerate(stepper.timesteps):
        answer = velocity(latents, torch.tensor(timestep, dtype=torch.float32, device=latents.device))
        latents = stepper.step(answer, latents)
        if on_step is not None:
            on_step(
                StepReport(
                    step=i + 1,
                    total=stepper.num_steps,
                    timestep=timestep,
                    sigma=stepper.sigmas[i + 1],
                    latents=latents,
                    velocity=answer,
                )
            )
    return latents
