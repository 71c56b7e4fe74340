from __future__ import annotations

import pytest
import torch

from cygnet.solvers import add_noise, predict_noise, predict_x_0, velocity_target


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 4, 2, 2, 2, generator=generator, dtype=torch.float64)
    return x_0, noise


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)])
def test_both_ends_of_the_path_come_back_from_any_level(sigma: float | torch.Tensor) -> None:
    x_0, noise = pair()
    x_t, velocity = add_noise(x_0, noise, sigma), velocity_target(x_0, noise)
    torch.testing.assert_close(predict_x_0(x_t, velocity, sigma), x_0)
    torch.testing.assert_close(predict_noise(x_t, velocity, sigma), noise)


def test_the_ends_of_the_path_are_data_and_noise() -> None:
    x_0, noise = pair()
    assert torch.equal(add_noise(x_0, noise, 0.0), x_0)
    assert torch.equal(add_noise(x_0, noise, 1.0), noise)


def test_a_vector_of_levels_is_one_level_per_sample() -> None:
    x_0, noise = pair()
    levels = [0.1, 0.5, 0.9]
    together = add_noise(x_0, noise, torch.tensor(levels, dtype=torch.float64))
    for i, level in enumerate(levels):
        torch.testing.assert_close(together[i], add_noise(x_0[i], noise[i], level))


def test_velocity_is_the_slope_of_the_path() -> None:
    x_0, noise = pair()
    slope = (add_noise(x_0, noise, 0.75) - add_noise(x_0, noise, 0.25)) / 0.5
    torch.testing.assert_close(slope, velocity_target(x_0, noise))
