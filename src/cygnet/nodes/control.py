"""Nodes that steer by a control: VACE, and the Fun models that fill gaps or follow a video.

Besides what :mod:`cygnet.nodes.conditioning` describes, they attach lists, so that several controls can be chained:
``vace_frames`` (raw latents ``[1, 32, t, h, w]``, inactive then reactive), ``vace_mask`` ``[1, 64, t, h, w]`` and
``vace_strength``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from cygnet.nodes.conditioning import (
    NAMES,
    REQUIRED,
    STEERED,
    Conditioning,
    WanFirstLastFrameToVideo,
    attached,
    resized,
)
from cygnet.nodes.grids import CELL, whole_cells
from cygnet.nodes.latents import Latent, empty, encode
from cygnet.nodes.sampling import denormalised
from cygnet.nodes.workshop import FileHandle, Node


class WanVaceToVideo(Node):
    """Steer a VACE model by a control video, a mask of what to make anew, and a reference picture."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = (*STEERED, "INT"), (*NAMES, "trim_latent")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1000.0, "step": 0.01})
        return {
            "required": {**REQUIRED, "strength": strength},
            "optional": {"control_video": ("IMAGE",), "control_masks": ("MASK",), "reference_image": ("IMAGE",)},
        }

    def run(
        self,
        positive: Conditioning,
        negative: Conditioning,
        vae: FileHandle,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        strength: float,
        control_video: torch.Tensor | None = None,
        control_masks: torch.Tensor | None = None,
        reference_image: torch.Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning, Latent, int]:
        network = self.shop.vae(vae)
        video = padded(control_video, length, width, height, 0.5, 3)
        masks = None if control_masks is None else control_masks.reshape(-1, *control_masks.shape[-2:], 1)
        mask = padded(masks, length, width, height, 1.0, 1)
        centred = video - 0.5
        frames = torch.cat((encode(network, centred * (1 - mask) + 0.5), encode(network, centred * mask + 0.5)), dim=1)
        cells = mask_cells(mask, frames.shape[2])
        references = 0
        if reference_image is not None:
            seen = encode(network, resized(reference_image[:1], width, height))  # [1, 16, 1, h, w]
            frames = torch.cat((torch.cat((seen, raw_mean(seen)), dim=1), frames), dim=2)
            references = seen.shape[2]
            cells = F.pad(cells, (0, 0, 0, 0, references, 0))
        latent = empty(width, height, length + 4 * references, batch_size)
        positive, negative = (_with_vace(it, frames, cells, strength) for it in (positive, negative))
        return positive, negative, {"samples": latent}, references


class WanFunInpaintToVideo(WanFirstLastFrameToVideo):
    """Fill a video between its first and last frames."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": REQUIRED,
            "optional": {
                "clip_vision_output": ("CLIP_VISION_OUTPUT",),
                "start_image": ("IMAGE",),
                "end_image": ("IMAGE",),
            },
        }

    def run(  # type: ignore[override]
        self, *, clip_vision_output: torch.Tensor | None = None, **given: Any
    ) -> tuple[Conditioning, Conditioning, Latent]:
        return super().run(**given, clip_vision_start_image=clip_vision_output)


class WanFunControlToVideo(Node):
    """Make a video follow another, such as its edges, depth or poses."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = STEERED, NAMES

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": REQUIRED,
            "optional": {
                "clip_vision_output": ("CLIP_VISION_OUTPUT",),
                "start_image": ("IMAGE",),
                "control_video": ("IMAGE",),
            },
        }

    def run(
        self,
        positive: Conditioning,
        negative: Conditioning,
        vae: FileHandle,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        start_image: torch.Tensor | None = None,
        clip_vision_output: torch.Tensor | None = None,
        control_video: torch.Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning, Latent]:
        latent = empty(width, height, length, batch_size)
        beside = raw_mean(latent[:1]).repeat(1, 2, 1, 1, 1)
        for first, images in ((0, control_video), (16, start_image)):
            if images is not None:
                known = encode(self.shop.vae(vae), resized(images[:length], width, height))
                beside[:, first : first + 16, : known.shape[2]] = known
        extras = {"concat_latent_image": beside, "clip_vision_output": clip_vision_output}
        return attached(positive, extras), attached(negative, extras), {"samples": latent}


def padded(
    images: torch.Tensor | None, length: int, width: int, height: int, value: float, channels: int
) -> torch.Tensor:
    """``[length, H, W, C]``: the pictures at the size, cut or continued by ``value``."""
    whole = torch.full((length, height, width, channels), value)
    if images is not None:
        fitted = resized(images[:length], width, height)[..., :channels]
        whole[: len(fitted)] = fitted
    return whole


def mask_cells(mask: torch.Tensor, latent_frames: int) -> torch.Tensor:
    """``[F, H, W, 1]`` -> ``[1, 64, t, h, w]``: the pixels of a cell as channels, the nearest frames."""
    cells = F.pixel_unshuffle(whole_cells(mask)[..., 0][:, None], CELL)  # [F, 64, h, w]
    size = (latent_frames, *cells.shape[-2:])
    return F.interpolate(cells.transpose(0, 1)[None], size=size, mode="nearest-exact")


def raw_mean(like: torch.Tensor) -> torch.Tensor:
    """Raw latents that normalise to zero, of the shape of ``like [1, 16, t, h, w]``."""
    return denormalised(torch.zeros_like(like))


def _with_vace(conditioning: Conditioning, frames: torch.Tensor, mask: torch.Tensor, strength: float) -> Conditioning:
    """A copy in which every entry has one control more."""
    added = (("vace_frames", frames), ("vace_mask", mask), ("vace_strength", strength))
    return [
        [tensor, {**own, **{name: [*own.get(name, []), value] for name, value in added}}]
        for tensor, own in conditioning
    ]
