"""A clip's file to the pixels that are trained on: decoded, brought to the rate, cut to a size and a length.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cygnet.errors import MediaError
from cygnet.media.frames import to_signed
from cygnet.media.image import load_image
from cygnet.media.video_read import read_video
from cygnet.pipelines.conditioning import crop_to_aspect
from cygnet.training.dataset import PICTURE_SUFFIXES, Item


@dataclass(frozen=True, order=True)
class Bucket:
    """Clips that can be in one batch: all of one size and length."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


@dataclass(frozen=True)
class RawClip:
    """Decoded frames uint8 ``[T, H, W, 3]`` at the asked-for rate; one frame for a picture."""

    frames: npt.NDArray[np.uint8]
    fps: float
    notes: tuple[str, ...] = ()


def read_clip(item: Item, fps: float) -> RawClip:
    """Decode a clip and bring it to ``fps`` by taking the nearest frame in time; raises MediaError.

    A file that has vanished since the data set was read is a MediaError too.
    """
    try:
        with item.file() as path:
            if item.suffix in PICTURE_SUFFIXES:
                picture = load_image(path)
                return RawClip(picture.pixels[None], fps, picture.notes)
            clip = read_video(path)
    except OSError as error:
        raise MediaError(f"{item.name!r} cannot be read: {(error.strerror or 'refused').lower()}") from error
    return RawClip(clip.frames[_nearest_in_time(len(clip.frames), clip.fps, fps)], fps, clip.notes)


def _nearest_in_time(count: int, have: float, want: float) -> npt.NDArray[np.intp]:
    if abs(have - want) <= 0.01 * want:
        return np.arange(count)
    kept = max(1, math.floor((count - 1) * want / have + 1e-6) + 1)
    return np.minimum(np.round(np.arange(kept) * have / want).astype(np.intp), count - 1)


def bucket_for(
    width: int, height: int, count: int, sizes: Sequence[tuple[int, int]], lengths: Sequence[int]
) -> Bucket | None:
    """Where a clip belongs: the size of the nearest aspect and the longest length it fills; None if it is too short.

    A single frame belongs to length 1. A clip of more frames than one that fills no length is too short.
    """
    aspect = math.log(width / height)
    # Of equal aspects the largest that the clip covers without being enlarged, else the smallest.
    nearest = min(abs(math.log(w / h) - aspect) for w, h in sizes)
    fitting = [(w, h) for w, h in sizes if abs(abs(math.log(w / h) - aspect) - nearest) < 1e-9]
    covered = [(w, h) for w, h in fitting if w <= width and h <= height]
    chosen = max(covered, key=lambda s: s[0] * s[1]) if covered else min(fitting, key=lambda s: s[0] * s[1])
    if count == 1:
        return Bucket(*chosen, 1)
    filled = [length for length in lengths if length <= count]
    return Bucket(*chosen, max(filled)) if filled else None


def pixels_of(clip: RawClip, bucket: Bucket) -> torch.Tensor:
    """``[3, T, H, W]`` in [-1, 1]: the first frames of the clip, scaled to cover the bucket's size and cut evenly."""
    video = crop_to_aspect(to_signed(clip.frames[: bucket.frames]), bucket.width, bucket.height)
    if video.shape[2:] == (bucket.height, bucket.width):
        return video
    rows = F.interpolate(
        video.transpose(0, 1), size=(bucket.height, bucket.width), mode="bicubic", antialias=True, align_corners=False
    )
    return rows.clamp(-1, 1).transpose(0, 1)
