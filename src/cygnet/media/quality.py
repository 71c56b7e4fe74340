"""How like two videos are, and how much they move.

Legend: ``T H W`` frames, height, width; videos are uint8 ``[T, H, W, 3]``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from cygnet.errors import RequestError
from cygnet.media.frames import Frames

PEAK = 255.0
WINDOW, SPREAD = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(a: Frames, b: Frames) -> float:
    """Peak signal-to-noise ratio over all values, in dB; infinite for equal ones. Takes single pictures too.

    Raises :class:`~cygnet.errors.RequestError` when the shapes differ; so do the others.
    """
    _check(a, b)
    total = 0.0
    for one, other in zip(a, b, strict=True):  # by the frame: whole videos in float64 would be large
        total += float(np.square(one.astype(np.float64) - other.astype(np.float64)).sum())
    return math.inf if total == 0 else 10 * math.log10(PEAK**2 * a.size / total)


def ssim(a: Frames, b: Frames) -> float:
    """Structural similarity, the mean over windows, colours and frames; 1 for equal videos.

    Gaussian windows of 11x11 pixels with a standard deviation of 1.5, only where they lie whole inside the frame.
    Frames are at least 11 pixels wide and high. Source: Wang et al., IEEE Transactions on Image Processing 13(4), 2004.
    """
    _check(a, b)
    if a.ndim != 4 or min(a.shape[1:3]) < WINDOW:
        raise RequestError(
            f"the videos are {list(a.shape)}; SSIM looks through windows of {WINDOW}x{WINDOW} at [T, H, W, 3]",
            field="frames",
        )
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SPREAD**2))
    line = line / line.sum()

    def blurred(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    values = []
    for one, other in zip(a, b, strict=True):
        x, y = (torch.from_numpy(np.array(frame)).permute(2, 0, 1)[:, None].double() for frame in (one, other))
        mean_x, mean_y = blurred(x), blurred(y)
        # Through rounding a variance can come out a little below 0.
        var_x, var_y = ((blurred(it * it) - mean * mean).clamp_min(0) for it, mean in ((x, mean_x), (y, mean_y)))
        covariance = blurred(x * y) - mean_x * mean_y
        likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        values.append(float((likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()))
    return float(np.mean(values))


def motion(video: Frames) -> float:
    """The mean absolute change of a value from each frame to the next, 0 to 255; 0 for a single frame."""
    if len(video) < 2:
        return 0.0
    steps = [np.abs(b.astype(np.int16) - a.astype(np.int16)).mean() for a, b in itertools.pairwise(video)]
    return float(np.mean(steps))


def _check(a: Frames, b: Frames) -> None:
    if a.shape != b.shape or not a.size:
        raise RequestError(f"the videos are {list(a.shape)} and {list(b.shape)}; they must be alike, and not empty")
