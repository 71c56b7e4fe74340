"""Sizes that are off the grids of the networks: the page offers multiples of 16, and prompts may hold any.

The autoencoder works on cells of 8 x 8 pixels: what of a frame fills none is cut off evenly. The transformer works on
patches of 2 x 2 cells: latents of an odd side are continued around their edge for it, and its answer is cut again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from cygnet.errors import RequestError
from cygnet.models.dit.config import CAMERA_SCALE
from cygnet.pipelines.conditioning import Conditioning

CELL = 8
"""Pixels of a latent cell's side."""


def whole_cells(images: torch.Tensor) -> torch.Tensor:
    """``[T, H, W, C]`` without the pixels at the edges that fill no cell. Raises RequestError if none is filled."""
    rows, columns = images.shape[1:3]
    height, width = rows // CELL * CELL, columns // CELL * CELL
    if not height or not width:
        raise RequestError(
            f"the picture is {columns}x{rows} pixels; the VAE takes {CELL}x{CELL} at least: scale it up first",
            field="pixels",
        )
    return _middle(images, 1, height, width)


def whole_patches(latents: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """``[..., t, h, w]`` continued around its edges to multiples of ``patch``, a side of each in that order."""
    lacking = [-size % side for size, side in zip(latents.shape[-3:], patch, strict=True)]
    if not any(lacking):
        return latents
    return F.pad(latents, [it for more in reversed(lacking) for it in (0, more)], mode="circular")


def steering_of_whole_patches(steering: Conditioning, latents: torch.Tensor, patch: Sequence[int]) -> Conditioning:
    """What lies beside ``latents [1, 16, t, h, w]``, continued with them."""
    condition, camera = steering.image_condition, _on_cells(steering.camera, latents)
    pixels = (patch[0], patch[1] * CAMERA_SCALE, patch[2] * CAMERA_SCALE)
    return replace(
        steering,
        image_condition=None if condition is None else whole_patches(condition, patch),
        vace=tuple(replace(it, latents=whole_patches(it.latents, patch)) for it in steering.vace),
        camera=None if camera is None else whole_patches(camera, pixels),
    )


def _on_cells(camera: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor | None:
    """Rays ``[1, 24, t, H, W]`` of the pixels that fill the cells of ``latents``; of another size as they are."""
    if camera is None:
        return None
    height, width = (side * CAMERA_SCALE for side in latents.shape[-2:])
    over = camera.shape[-2] - height, camera.shape[-1] - width
    return _middle(camera, 3, height, width) if all(0 <= it < CAMERA_SCALE for it in over) else camera


def _middle(values: torch.Tensor, axis: int, height: int, width: int) -> torch.Tensor:
    """The middle of the two axes from ``axis`` on."""
    top, left = (values.shape[axis] - height) // 2, (values.shape[axis + 1] - width) // 2
    return values.narrow(axis, top, height).narrow(axis + 1, left, width)
