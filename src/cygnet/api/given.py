"""Pictures and videos as programs give them, read into the tensors of a request.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cygnet.errors import RequestError
from cygnet.media.frames import to_signed
from cygnet.media.image import load_image, picture_from_array, picture_from_pillow
from cygnet.media.video_read import read_video
from cygnet.pipelines.inputs import Inputs, check_pixels

Frames = npt.NDArray[np.uint8]
ImageLike = str | os.PathLike[str] | bytes | Image.Image | Frames | torch.Tensor
"""A file, its bytes, a Pillow picture, uint8 ``[H, W, 3]``, or float ``[3, H, W]`` in [-1, 1]."""
VideoLike = str | os.PathLike[str] | Frames | torch.Tensor
"""A file, uint8 ``[T, H, W, 3]``, or float ``[3, T, H, W]`` in [-1, 1]."""


@dataclass(frozen=True)
class Given:
    """The pictures of a request as tensors, what was done to read them, and what a receipt says of them."""

    inputs: Inputs
    notices: tuple[str, ...]
    described: Mapping[str, Any]

    @classmethod
    def read(cls, image: ImageLike | None, last_image: ImageLike | None, video: VideoLike | None) -> Given:
        notices: list[str] = []
        pixels: dict[str, torch.Tensor] = {}
        for name, value in (("image", image), ("last_image", last_image)):
            if value is not None:
                pixels[name] = _image_tensor(name, value, notices)
        if video is not None:
            pixels["video"] = _video_tensor(video, notices)
        described = {name: _describe_pixels(value) for name, value in pixels.items()}
        return cls(Inputs(**pixels), tuple(notices), described)


def _image_tensor(name: str, value: ImageLike, notices: list[str]) -> torch.Tensor:
    """Float32 ``[3, H, W]`` in [-1, 1]; raises ``MediaError`` or ``RequestError``."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return _pixels(name, value, 3)
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        picture = picture_from_array(value)
    elif isinstance(value, Image.Image):
        picture = picture_from_pillow(value)
    elif isinstance(value, str | os.PathLike | bytes):
        picture = load_image(value)
    else:
        raise RequestError(
            f"{name} is of type {type(value).__name__}; give a path, a Pillow picture, uint8 [H, W, 3], or a float "
            "tensor [3, H, W] in [-1, 1]",
            field=name,
        )
    notices += [f"{name}: {note}" for note in picture.notes]
    return to_signed(picture.pixels[None])[:, 0]


def _video_tensor(value: VideoLike, notices: list[str]) -> torch.Tensor:
    """Float32 ``[3, T, H, W]`` in [-1, 1]; raises ``MediaError`` or ``RequestError``."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return _pixels("video", value, 4)
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3 or not value.size:
            raise RequestError(
                f"video is {value.dtype} {list(value.shape)}; it must be uint8 [T, H, W, 3]", field="video"
            )
        return to_signed(value)
    if not isinstance(value, str | os.PathLike):
        raise RequestError(
            f"video is of type {type(value).__name__}; give a path, uint8 [T, H, W, 3], or a float tensor "
            "[3, T, H, W] in [-1, 1]",
            field="video",
        )
    clip = read_video(value)
    notices += [f"video: {note}" for note in clip.notes]
    return to_signed(clip.frames)


def _pixels(name: str, value: torch.Tensor, axes: int) -> torch.Tensor:
    """A picture (3 axes) or video (4) that was given as a float tensor, checked."""
    check_pixels(name, value, axes)
    return value.detach().float().cpu()


def _describe_pixels(pixels: torch.Tensor) -> dict[str, Any]:
    data = pixels.contiguous().numpy().tobytes()
    return {"shape": list(pixels.shape), "sha256": hashlib.sha256(data).hexdigest()}
