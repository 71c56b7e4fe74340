from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cygnet.errors import RequestError
from cygnet.solvers import (
    SOLVER_NAMES,
    Schedule,
    Solver,
    SolverName,
    StepReport,
    add_noise,
    make_solver,
    sample,
    start_step_for_strength,
)
from cygnet.solvers.dpmpp import DPMSolverPP
from cygnet.solvers.euler import Euler
from cygnet.solvers.unipc import UniPC
from support import golden_array, golden_facts, relative_l2, seeded_normal

FOLLOWING = [name for name in SOLVER_NAMES if name != "renoise"]
"""Those that follow the path; the other one leaves it at every step for one of fresh noise."""


def wavy(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.5 * x + torch.sin(timestep / 150)


def trace_of(solver: SolverName, num_steps: int, shift: float, velocity: Any, x: torch.Tensor) -> list[StepReport]:
    reports: list[StepReport] = []
    result = sample(velocity, x, solver, num_steps, shift, on_step=reports.append)
    assert torch.equal(result, reports[-1].latents)
    return reports


@pytest.mark.parametrize("case", golden_facts()["solver"], ids=lambda case: case["name"])
def test_trajectories_equal_the_reference(case: dict[str, Any]) -> None:
    mixing = seeded_normal("solver.W", (16, 16)) / 4

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.einsum("cthw,cd->dthw", x, mixing)) + timestep / 1000

    start = seeded_normal("solver.x", (16, 2, 3, 4))
    reports = trace_of(case["solver"], case["steps"], case["shift"], velocity, start)
    stored = [reports[0], reports[len(reports) // 2], reports[-1]]
    for report, expected in zip(stored, golden_array(f"{case['name']}.x"), strict=True):
        assert relative_l2(report.latents, expected) < 2e-6


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        ("unipc", [0.96660, 0.94053, 0.94104, 0.99743, 1.15014, 0.95473]),
        ("dpm++", [0.96638, 0.93458, 0.92627, 0.97801, 1.13609, 0.94735]),
        ("euler", [0.96638, 0.93439, 0.91572, 0.94039, 1.05366, 0.88553]),
    ],
)
def test_the_scalar_traces_are_the_published_ones(solver: SolverName, expected: list[float]) -> None:
    trace = [float(report.latents) for report in trace_of(solver, 6, 5.0, wavy, torch.ones(()))]
    assert trace == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize("solver", FOLLOWING)
@pytest.mark.parametrize(("num_steps", "shift"), [(1, 5.0), (2, 1.0), (7, 8.0), (50, 16.0), (1000, 5.0)])
def test_a_straight_path_is_followed_exactly(solver: SolverName, num_steps: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    first = make_solver(solver, num_steps, shift).sigmas[0]
    result = sample(lambda x, t: noise - x_0, add_noise(x_0, noise, first), solver, num_steps, shift)
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1), (DPMSolverPP, 2), (UniPC, 2)])
def test_the_error_falls_with_the_stated_order(kind: type[Solver], order: int) -> None:
    def error(num_steps: int) -> float:
        # Equal steps in log-SNR away from both ends, where the first-order first and last step weigh least.
        levels = [1 / (1 + math.exp(-2 + 4 * i / num_steps)) for i in range(num_steps + 1)]
        solver = kind(Schedule(sigmas=tuple(levels), timesteps=tuple(1000 * level for level in levels[:-1])))
        x = torch.ones((), dtype=torch.float64)
        for _ in solver.timesteps:
            x = solver.step(-(x**2), x)
        return abs(float(x) - 1 / (1 + levels[-1] - levels[0]))  # of dx/dsigma = -x^2 from x = 1

    assert math.log2(error(128) / error(256)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVER_NAMES)
@pytest.mark.parametrize(("num_steps", "shift"), [(100, 16.0), (50, 30.0), (1000, 5.0), (1000, 1000.0)])
def test_repeated_timesteps_run_to_the_end(solver: SolverName, num_steps: int, shift: float) -> None:
    reports = trace_of(solver, num_steps, shift, wavy, torch.ones(2))
    timesteps = [report.timestep for report in reports]
    if solver not in ("euler", "renoise"):
        assert len(set(timesteps)) < num_steps
    assert [report.step for report in reports] == list(range(1, num_steps + 1))
    assert reports[-1].sigma == 0
    assert torch.isfinite(reports[-1].latents).all()


def test_steps_between_repeated_timesteps_still_move() -> None:
    reports = trace_of("unipc", 100, 16.0, wavy, torch.ones((), dtype=torch.float64))
    repeated = [i for i in range(1, 100) if reports[i].timestep == reports[i - 1].timestep]
    assert repeated
    assert all(reports[i].latents != reports[i - 1].latents for i in repeated)


@pytest.mark.parametrize("solver", FOLLOWING)
def test_a_late_start_takes_the_rest_of_the_steps(solver: SolverName) -> None:
    start_step = start_step_for_strength(0.4, 10)
    stepper = make_solver(solver, 10, 5.0, start_step=start_step)
    assert stepper.num_steps == 4
    x_0, noise = torch.full((3,), 2.0), torch.full((3,), -1.0)
    seen: list[float] = []

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(float(timestep))
        return noise - x_0

    result = sample(
        velocity, add_noise(x_0, noise, stepper.sigmas[0]), solver, num_steps=10, shift=5.0, start_step=start_step
    )
    assert seen == pytest.approx(make_solver(solver, 10, 5.0).timesteps[6:])
    torch.testing.assert_close(result, x_0)


@pytest.mark.parametrize("solver", SOLVER_NAMES)
def test_custom_levels_replace_the_schedule(solver: SolverName) -> None:
    seen: list[float] = []

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(float(timestep))
        return wavy(x, timestep)

    result = sample(velocity, torch.ones(2), solver, sigmas=[1.0, 0.9375, 0.75, 0.5])
    assert seen == [1000.0, 937.5, 750.0, 500.0]
    assert torch.isfinite(result).all()


def test_the_velocity_gets_the_timestep_as_a_float32_scalar_on_the_latents_device() -> None:
    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        assert timestep.shape == ()
        assert timestep.dtype == torch.float32
        assert timestep.device == x.device
        return x

    sample(velocity, torch.ones(2), num_steps=2)


def test_half_precision_is_integrated_in_float32_and_arguments_stay_as_they_were() -> None:
    start = torch.ones(4, dtype=torch.bfloat16)
    answers: list[torch.Tensor] = []

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        answers.append(torch.full((4,), 0.5, dtype=torch.bfloat16))
        return answers[-1]

    result = sample(velocity, start, num_steps=4)
    assert result.dtype == torch.float32
    assert torch.equal(start, torch.ones(4, dtype=torch.bfloat16))
    assert all(torch.equal(answer, torch.full((4,), 0.5, dtype=torch.bfloat16)) for answer in answers)


def test_no_gradient_is_recorded_through_a_run() -> None:
    scale = torch.ones((), requires_grad=True)
    assert not sample(lambda x, t: scale * x, torch.ones(2), num_steps=3).requires_grad


def test_the_preview_estimate_ends_at_the_result() -> None:
    last = trace_of("dpm++", 5, 5.0, wavy, torch.ones(2))[-1]
    assert torch.equal(last.latents - last.sigma * last.velocity, last.latents)


def test_on_step_can_stop_the_run() -> None:
    calls: list[int] = []

    def stop_at_two(report: StepReport) -> None:
        calls.append(report.step)
        if report.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(wavy, torch.ones(2), num_steps=5, on_step=stop_at_two)
    assert calls == [1, 2]


def test_renoising_estimates_the_data_and_noises_it_with_what_follows_the_start_of_the_seed() -> None:
    generator = torch.Generator().manual_seed(5)
    start, second = (torch.randn(2, 3, generator=generator) for _ in range(2))
    sigmas = make_solver("renoise", 2, 5.0).sigmas
    assert sigmas == pytest.approx((1.0, 5 / 6, 0.0))
    reports: list[StepReport] = []
    result = sample(wavy, start, "renoise", 2, 5.0, seed=5, on_step=reports.append)
    x_0 = start - wavy(start, torch.tensor(1000.0))
    between = (1 - sigmas[1]) * x_0 + sigmas[1] * second
    torch.testing.assert_close(reports[0].latents, between)
    torch.testing.assert_close(result, between - sigmas[1] * wavy(between, torch.tensor(1000 * sigmas[1])))
    assert not torch.equal(result, sample(wavy, start, "renoise", 2, 5.0, seed=6))


@pytest.mark.parametrize("solver", SOLVER_NAMES)
def test_a_finished_solver_refuses_another_step(solver: SolverName) -> None:
    stepper = make_solver(solver, 1, 5.0)
    x = stepper.step(torch.ones(2), torch.ones(2))
    with pytest.raises(RequestError, match="all 1 steps"):
        stepper.step(torch.ones(2), x)


def test_a_velocity_of_another_shape_is_refused() -> None:
    with pytest.raises(RequestError, match=r"\(1, 2\).*\(2,\)"):
        sample(lambda x, t: x[None], torch.ones(2), num_steps=2)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"solver": "ddim"}, "solver"),
        ({"solver": "ddim", "sigmas": [1.0]}, "solver"),
        ({"num_steps": 0}, "num_steps"),
        ({"shift": 0.0}, "shift"),
        ({"sigmas": [0.5, 1.0]}, "sigmas"),
        ({"start_step": 50}, "start_step"),
    ],
)
def test_bad_requests_name_their_field_before_the_network_is_asked(arguments: dict[str, Any], field: str) -> None:
    def never(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked although the request is wrong")

    with pytest.raises(RequestError) as error:
        sample(never, torch.ones(2), **arguments)
    assert error.value.field == field
