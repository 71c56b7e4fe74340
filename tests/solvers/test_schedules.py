from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cygnet.errors import RequestError
from cygnet.solvers import Schedule, SolverName, custom_schedule, make_schedule, shift_sigma, start_step_for_strength
from support import golden_array, golden_facts

# fmt: off
SHIFT_5_STEPS_50 = (
    999, 995, 991, 987, 982, 978, 973, 968, 963, 957, 952, 946, 940, 934, 927, 920, 913, 906, 898, 890, 882, 873, 863,
    854, 843, 833, 821, 809, 796, 783, 768, 753, 737, 720, 701, 681, 660, 636, 611, 584, 555, 522, 487, 448, 405, 356,
    302, 241, 172, 92,
)
SHIFT_3_STEPS_40 = (
    999, 991, 982, 973, 963, 954, 944, 933, 922, 911, 899, 887, 874, 861, 847, 832, 817, 801, 785, 767, 749, 730, 710,
    688, 666, 642, 617, 590, 562, 531, 499, 465, 428, 388, 345, 299, 249, 195, 136, 71,
)
# fmt: on


@pytest.mark.parametrize("case", golden_facts()["solver"], ids=lambda case: case["name"])
def test_schedules_equal_the_reference(case: dict[str, object]) -> None:
    schedule = make_schedule(case["solver"], case["steps"], case["shift"])  # type: ignore[arg-type]
    assert schedule.timesteps == tuple(golden_array(f"{case['name']}.timesteps").tolist())
    assert schedule.sigmas == pytest.approx(golden_array(f"{case['name']}.sigmas").tolist(), abs=6e-8)


@pytest.mark.parametrize(("shift", "listed"), [(5.0, SHIFT_5_STEPS_50), (3.0, SHIFT_3_STEPS_40)])
def test_unipc_timesteps_are_the_published_lists(shift: float, listed: tuple[int, ...]) -> None:
    assert make_schedule("unipc", len(listed), shift).timesteps == listed


def test_timesteps_at_shift_16_match_both_ends() -> None:
    timesteps = make_schedule("unipc", 50, 16.0).timesteps
    assert timesteps[:5] == (999, 998, 997, 995, 994)
    assert timesteps[-5:] == (639, 581, 504, 399, 245)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 16.0])
def test_timesteps_on_an_integer_fall_on_the_side_that_numpy_chooses(shift: float) -> None:
    first_level = float(np.float32(1 - 1 / 1000))
    for num_steps in range(1, 101):
        for name, first in (("unipc", first_level), ("dpm++", 1.0)):
            grid = np.linspace(first, 0, num_steps + 1)[:-1]
            grid = shift * grid / (1 + (shift - 1) * grid)
            timesteps = make_schedule(name, num_steps, shift).timesteps  # type: ignore[arg-type]
            assert timesteps == tuple((grid * 1000).astype(np.int64))


def test_euler_uses_the_levels_of_dpm_without_cutting_timesteps() -> None:
    euler, dpm = make_schedule("euler", 6, 5.0), make_schedule("dpm++", 6, 5.0)
    assert euler.sigmas == dpm.sigmas
    assert euler.timesteps == tuple(1000 * sigma for sigma in euler.sigmas[:-1])
    assert dpm.timesteps == (1000, 961, 909, 833, 714, 500)


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler", "renoise"])
@pytest.mark.parametrize("shift", [1e-9, 0.1, 1.0, 16.0, 1e9])
def test_longest_and_shortest_schedules_fall_to_zero(name: SolverName, shift: float) -> None:
    for num_steps in (1, 1000):
        schedule = make_schedule(name, num_steps, shift)
        assert schedule.num_steps == num_steps
        assert schedule.sigmas[-1] == 0
        assert all(0 <= t <= 1000 for t in schedule.timesteps)


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 10**6, 4.0, "50", True, None, math.nan])
def test_impossible_step_counts_are_refused(num_steps: object) -> None:
    with pytest.raises(RequestError, match=r"num_steps is .*1 to 1000") as error:
        make_schedule("unipc", num_steps, 5.0)  # type: ignore[arg-type]
    assert error.value.field == "num_steps"


@pytest.mark.parametrize(
    "shift",
    [0, 0.0, -1.0, math.nan, math.inf, "5", True, None, 1e10, 1e-320, 10**400],
    ids=lambda shift: repr(shift)[:9],
)
def test_impossible_shifts_are_refused(shift: object) -> None:
    with pytest.raises(RequestError, match="shift is ") as error:
        make_schedule("dpm++", 50, shift)  # type: ignore[arg-type]
    assert error.value.field == "shift"


@pytest.mark.parametrize("name", ["", "UniPC", "heun", None, ["unipc"]])
def test_an_unknown_solver_is_refused_with_the_list(name: object) -> None:
    with pytest.raises(RequestError, match=r'"unipc", "dpm\+\+", "euler"') as error:
        make_schedule(name, 50, 5.0)  # type: ignore[arg-type]
    assert error.value.field == "solver"


def test_a_custom_schedule_closes_with_zero_once() -> None:
    expected = Schedule(sigmas=(1.0, 0.75, 0.5, 0.0), timesteps=(1000.0, 750.0, 500.0))
    assert custom_schedule([1.0, 0.75, 0.5]) == expected
    assert custom_schedule([1, 0.75, 0.5, 0]) == expected


@pytest.mark.parametrize(
    "sigmas", [[], [0.0], [0.5, 0.5], [0.5, 0.7], [1.1, 0.5], [0.5, -0.1], [math.nan], ["1"], [True]]
)
def test_impossible_custom_levels_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(RequestError, match="sigmas ") as error:
        custom_schedule(sigmas)
    assert error.value.field == "sigmas"


def test_a_schedule_can_be_entered_late() -> None:
    whole = make_schedule("unipc", 10, 5.0)
    rest = whole.from_step(7)
    assert rest.sigmas == whole.sigmas[7:]
    assert rest.timesteps == whole.timesteps[7:]


@pytest.mark.parametrize("start_step", [-1, 10, 1.0, True, None])
def test_a_start_outside_the_schedule_is_refused(start_step: object) -> None:
    with pytest.raises(RequestError, match=r"start_step is .*0 to 9") as error:
        make_schedule("unipc", 10, 5.0).from_step(start_step)  # type: ignore[arg-type]
    assert error.value.field == "start_step"


@pytest.mark.parametrize(("strength", "expected"), [(1, 0), (1.0, 0), (0.5, 5), (0.3, 7), (0.001, 9)])
def test_strength_is_the_share_of_steps_that_run(strength: float, expected: int) -> None:
    assert start_step_for_strength(strength, 10) == expected


@pytest.mark.parametrize("strength", [0, 0.0, -0.1, 1.01, math.nan, math.inf, "1", True, None])
def test_impossible_strengths_are_refused(strength: object) -> None:
    with pytest.raises(RequestError, match="strength is ") as error:
        start_step_for_strength(strength, 10)  # type: ignore[arg-type]
    assert error.value.field == "strength"


def test_the_shift_map_is_the_same_for_numbers_and_tensors_and_keeps_the_ends() -> None:
    levels = [0.0, 0.25, 0.5, 1.0]
    shifted = shift_sigma(torch.tensor(levels, dtype=torch.float64), 5.0)
    assert shifted.tolist() == [shift_sigma(level, 5.0) for level in levels]
    assert shifted.tolist() == pytest.approx([0.0, 0.625, 5 / 6, 1.0])


def test_a_schedule_that_does_not_fall_cannot_be_made() -> None:
    for sigmas, timesteps in [((1.0, 0.0), ()), ((0.5, 0.5, 0.0), (1.0, 1.0)), ((1.5, 0.0), (1.0,)), ((0.0,), ())]:
        with pytest.raises(ValueError):
            Schedule(sigmas=sigmas, timesteps=timesteps)
