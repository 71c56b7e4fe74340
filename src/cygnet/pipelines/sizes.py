"""Which lengths and sizes Wan can make, the nearest ones to those it cannot, and the size that suits a picture."""

from __future__ import annotations

import math

from cygnet.errors import RequestError

FRAME_STRIDE = 4
"""Frames per latent frame after the first, so lengths are 4n+1."""
SIZE_MULTIPLE = 16
"""Pixels per token along one side: 8 by the VAE, 2 by the transformer's patches."""
MAX_POSITIONS = 1024
"""Positions per axis that the published networks count with (Wan-Video/Wan2.1: wan/modules/model.py)."""
MAX_FRAMES = FRAME_STRIDE * (MAX_POSITIONS - 1) + 1
MAX_SIDE = SIZE_MULTIPLE * MAX_POSITIONS
MAX_TOKENS = 2**20
"""Tokens of one video; 81 frames at 1280x720 have 75,600, and beyond a million attention alone takes hours."""
KNOWN_FRAMES = 81
"""The longest clips that the published models were trained on."""

CELLS_AT_ONCE = 60 * 104
"""Latent cells decoded at a time: one latent frame of 832x480 fills memory, several smaller ones save time."""
MAX_CHUNK = 8
"""Latent frames decoded at a time at most; more save nothing."""

AREAS = {"480p": (832, 480), "720p": (1280, 720)}
"""Names for an area of pixels; the pair is its shape when no picture gives another."""


def nearest_frames(num_frames: float) -> tuple[int, ...]:
    """The one or two lengths 4n+1 within the limits that are nearest to ``num_frames``, the lower one first."""
    below = FRAME_STRIDE * math.floor((num_frames - 1) / FRAME_STRIDE) + 1
    above = FRAME_STRIDE * math.ceil((num_frames - 1) / FRAME_STRIDE) + 1
    return _clipped((below, above), 1, MAX_FRAMES)


def nearest_sides(side: float) -> tuple[int, ...]:
    """The one or two multiples of 16 within the limits that are nearest to ``side``, the lower one first."""
    below, above = (SIZE_MULTIPLE * whole(side / SIZE_MULTIPLE) for whole in (math.floor, math.ceil))
    return _clipped((below, above), SIZE_MULTIPLE, MAX_SIDE)


def num_tokens(num_frames: int, width: int, height: int) -> int:
    """Tokens that the transformer works on."""
    return (1 + (num_frames - 1) // FRAME_STRIDE) * (width // SIZE_MULTIPLE) * (height // SIZE_MULTIPLE)


def latent_grid(num_frames: int, width: int, height: int) -> tuple[int, int, int]:
    """``(t, h, w)`` of the latents of a video."""
    half = SIZE_MULTIPLE // 2
    return 1 + (num_frames - 1) // FRAME_STRIDE, height // half, width // half


def latent_frames_at_once(rows: int, columns: int) -> int:
    """How many latent frames of ``rows`` x ``columns`` cells the VAE decodes together.

    A choice by the size alone: kernels may sum other numbers of frames in another order, most of all a single one, so
    the result would depend on whatever else chose.
    """
    return min(max(CELLS_AT_ONCE // (rows * columns), 1), MAX_CHUNK)


def size_for_image(width: int, height: int, area: int, *, reference_exact: bool = False) -> tuple[int, int]:
    """``(width, height)`` of the video for a picture: its aspect, at most ``area`` pixels, both multiples of 16.

    ``reference_exact`` repeats the official computation in floating point, which makes 464 of 480 for a picture of
    832x480 because the root comes out as 479.99999999999994; the default computes in whole numbers. Raises
    :class:`~cygnet.errors.RequestError` if a side would vanish. Source: Wan-Video/Wan2.1: wan/image2video.py.
    """
    if reference_exact:
        aspect = height / width
        rows = round(math.sqrt(area * aspect) // 8 // 2 * 2) // 2
        columns = round(math.sqrt(area / aspect) // 8 // 2 * 2) // 2
    else:
        cell = SIZE_MULTIPLE**2
        rows = math.isqrt(area * height // (width * cell))
        columns = math.isqrt(area * width // (height * cell))
    if not rows or not columns:
        raise RequestError(
            f"the picture is {width}x{height}, too long and thin for a video of {area:,} pixels; crop it first",
            field="image",
        )
    return columns * SIZE_MULTIPLE, rows * SIZE_MULTIPLE


def _clipped(candidates: tuple[int, int], low: int, high: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(min(max(value, low), high) for value in candidates))
