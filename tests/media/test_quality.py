from __future__ import annotations

import math

import numpy as np
import pytest

from cygnet.errors import RequestError
from cygnet.media.quality import motion, psnr, ssim

NOISE = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)


def flat(value: int, side: int = 12) -> np.ndarray:
    return np.full((2, side, side, 3), value, dtype=np.uint8)


def test_equal_videos_are_infinitely_alike() -> None:
    assert psnr(NOISE, NOISE) == math.inf
    assert ssim(NOISE, NOISE) == pytest.approx(1.0, abs=1e-12)


def test_psnr_is_the_one_of_the_mean_square() -> None:
    assert psnr(flat(100), flat(110)) == pytest.approx(20 * math.log10(255 / 10))


def test_ssim_of_flat_pictures_is_that_of_their_brightness() -> None:
    c1 = (0.01 * 255) ** 2
    assert ssim(flat(100), flat(150)) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_ssim_of_one_window_is_the_formula_of_the_paper() -> None:
    rng = np.random.default_rng(1)
    x, y = (rng.integers(0, 256, (1, 11, 11, 3), dtype=np.uint8) for _ in range(2))
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    expected = []
    for colour in range(3):
        a, b = x[0, :, :, colour].astype(float), y[0, :, :, colour].astype(float)
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        expected.append(
            (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
    assert ssim(x, y) == pytest.approx(np.mean(expected), abs=1e-9)


def test_motion_is_the_mean_change_between_frames() -> None:
    video = np.concatenate([flat(10)[:1], flat(14)[:1], flat(12)[:1]])
    assert motion(video) == 3.0
    assert motion(video[:1]) == 0.0


def test_videos_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(RequestError, match="must be alike"):
        psnr(NOISE, NOISE[:2])
    with pytest.raises(RequestError, match="SSIM looks through windows of 11x11"):
        ssim(flat(1, side=8), flat(1, side=8))
