"""What the tests of training share besides fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cygnet.media.video import open_writer
from cygnet.training.config import TrainConfig

Configure = Callable[..., TrainConfig]
"""Makes a complete configuration; keyword arguments replace or extend its tables."""


def write_clip(path: Path, frames: int = 5, side: int = 32, seed: int = 0, fps: int = 16) -> Path:
    rng = np.random.default_rng(seed)
    still = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    pixels = np.stack([np.roll(still, 3 * number, axis=1) for number in range(frames)])
    with open_writer(path, width=side, height=side, fps=fps, num_frames=frames, overwrite=True) as writer:
        writer.write(pixels)
    return path
