"""Sigma schedules and steppers, shared by sampling and training."""

from cygnet.solvers.flow import add_noise, predict_noise, predict_x_0, velocity_target
from cygnet.solvers.sample import StepReport, Velocity, make_solver, sample
from cygnet.solvers.schedules import (
    Schedule,
    custom_schedule,
    make_schedule,
    shift_sigma,
    start_step_for_strength,
)
from cygnet.solvers.solver import Solver
from cygnet.types import SOLVER_NAMES, SolverName

__all__ = [
    "SOLVER_NAMES",
    "Schedule",
    "Solver",
    "SolverName",
    "StepReport",
    "Velocity",
    "add_noise",
    "custom_schedule",
    "make_schedule",
    "make_solver",
    "predict_noise",
    "predict_x_0",
    "sample",
    "shift_sigma",
    "start_step_for_strength",
    "velocity_target",
]
