"""The samplers of node graphs solve the flow whose answer is known, and walk the levels that graphs expect."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cygnet.errors import RequestError
from cygnet.solvers.sigma_space import SAMPLERS, SCHEDULERS, Walk, node_sigmas, without_repeats

MEAN, SPREAD = 0.7, 0.4
SECOND_ORDER = ("heun", "dpmpp_2m", "res_multistep")
UNIPC = ("uni_pc", "uni_pc_bh2")


def gaussian(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The best estimate of data that are normal with MEAN and SPREAD, seen through noise of level ``sigma``."""
    kept = 1 - sigma
    variance = kept**2 * SPREAD**2 + sigma**2
    return MEAN + kept * SPREAD**2 / variance * (x - kept * MEAN)


def run(name: str, steps: int, *, scheduler: str = "simple") -> torch.Tensor:
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    walk = Walk(denoise=gaussian, noise=lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return SAMPLERS[name](walk, noise, node_sigmas(scheduler, steps, 3.0, sampler=name))


def error(name: str, steps: int) -> float:
    exact = MEAN + SPREAD * torch.linspace(-2, 2, 9, dtype=torch.float64)
    return float((run(name, steps) - exact).abs().max())


@pytest.mark.parametrize("name", ["euler", "ddim", *SECOND_ORDER, *UNIPC])
def test_deterministic_samplers_reach_the_exact_answer(name: str) -> None:
    assert error(name, 400) < (0.008 if name in ("euler", "ddim") else 0.002)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_higher_orders_beat_euler(name: str) -> None:
    assert error(name, 20) < 0.5 * error("euler", 20)


@pytest.mark.parametrize("name", UNIPC)
def test_unipc_is_of_third_order_between_its_ends(name: str) -> None:
    def deviation(sigma: float) -> float:
        return math.hypot((1 - sigma) * SPREAD, sigma)

    def off(steps: int) -> float:
        # The last step is of first order by design; here it is so short that it does not show.
        sigmas = [0.9 * (0.1 / 0.9) ** (i / steps) for i in range(steps + 1)]
        sigmas += [0.1 * 0.9999**i for i in (2, 3, 4)]
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)
        found = SAMPLERS[name](Walk(denoise=gaussian, noise=torch.randn_like), x, sigmas)
        end = sigmas[-1]
        exact = (1 - end) * MEAN + (x - 0.1 * MEAN) / deviation(0.9) * deviation(end)
        return float((found - exact).abs().max())

    assert off(40) < off(10) / 4**2.5


@pytest.mark.parametrize("name", ["euler_ancestral", "lcm", "er_sde"])
def test_stochastic_samplers_give_the_right_distribution(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    walk = Walk(denoise=gaussian, noise=lambda x: torch.randn(x.shape, generator=generator))
    x = torch.randn(20_000, generator=generator)
    found = SAMPLERS[name](walk, x, node_sigmas("simple", 400, 3.0))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.03)
    if name != "lcm":  # which collapses towards the mean, step by step, unless the model is a consistency model
        assert float(found.std()) == pytest.approx(SPREAD, rel=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_few_steps_work_and_every_step_is_told(name: str, steps: int) -> None:
    told: list[int] = []
    walk = Walk(denoise=gaussian, noise=torch.randn_like, on_step=lambda step, x, x_0: told.append(step))
    found = SAMPLERS[name](walk, torch.ones(3), node_sigmas("simple", steps, 5.0, sampler=name))
    assert bool(torch.isfinite(found).all())
    assert told == list(range(steps))


def test_the_simple_schedule_is_the_published_one() -> None:
    sigmas = node_sigmas("simple", 30, 8.0, sampler="uni_pc")
    assert sigmas[:3] == pytest.approx([1.0, 0.995885, 0.991525], abs=1e-6)
    assert sigmas[-3:] == pytest.approx([0.46218, 0.357388, 0.0], abs=1e-6)
    assert len(sigmas) == 31


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_levels_fall_from_one_to_zero(scheduler: str, steps: int) -> None:
    sigmas = node_sigmas(scheduler, steps, 8.0)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(1.0)
    assert sigmas[-1] == 0
    assert all(high > low for high, low in pairwise(sigmas))


def test_unipc_leaves_out_the_level_before_the_last() -> None:
    longer = node_sigmas("simple", 21, 8.0)
    assert node_sigmas("simple", 20, 8.0, sampler="uni_pc") == [*longer[:-2], 0.0]


def test_partial_denoising_uses_the_end_of_a_longer_schedule() -> None:
    assert node_sigmas("simple", 10, 8.0, denoise=0.5) == node_sigmas("simple", 20, 8.0)[-11:]
    assert node_sigmas("simple", 10, 8.0, denoise=0.0) == []
    assert len(node_sigmas("simple", 10, 8.0, denoise=0.3, sampler="uni_pc")) == 11


def test_an_unknown_scheduler_is_refused_with_the_names() -> None:
    with pytest.raises(RequestError, match="simple, sgm_uniform"):
        node_sigmas("beta57", 10, 8.0)


def test_unipc_needs_no_more_evaluations_than_steps() -> None:
    count = 0

    def counted(x: torch.Tensor, sigma: float) -> torch.Tensor:
        nonlocal count
        count += 1
        return gaussian(x, sigma)

    walk = Walk(denoise=counted, noise=torch.randn_like)
    SAMPLERS["uni_pc"](walk, torch.ones(2), node_sigmas("simple", 20, 8.0, sampler="uni_pc"))
    assert count == 20
    assert math.isfinite(float(run("uni_pc", 20).sum()))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_more_steps_than_there_are_levels_are_walked_without_the_repeats(sampler: str, scheduler: str) -> None:
    sigmas = without_repeats(node_sigmas(scheduler, 1500, 3.0, sampler=sampler))
    assert sorted(set(sigmas), reverse=True) == sigmas
    walk = Walk(denoise=lambda x, sigma: 0.5 * x, noise=torch.randn_like, on_step=lambda step, x, x_0: None)
    torch.manual_seed(0)
    assert SAMPLERS[sampler](walk, torch.randn(1, 4), sigmas).isfinite().all()
