"""Nodes that turn text and pictures into what steers a sampler.

``CONDITIONING`` is a list of ``[tensor [1, n, D], extras]``. The extras that the Wan nodes attach:
``concat_latent_image`` (raw latents of the given frames), ``concat_mask`` (1 where a frame is to be generated) and
``clip_vision_output``.
"""

from __future__ import annotations

from typing import Any

import torch

from cygnet.errors import RequestError
from cygnet.nodes.images import centre, scaled
from cygnet.nodes.latents import MOST, Latent, empty, encode
from cygnet.nodes.workshop import FileHandle, Node

Conditioning = list[list[Any]]


class CLIPTextEncode(Node):
    """A prompt to text features."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP",)}}

    def run(self, text: str, clip: FileHandle) -> tuple[Conditioning]:
        if not isinstance(clip, FileHandle):
            raise RequestError("clip is empty: the loader before it gave no text encoder", field="clip")
        return ([[self.shop.text_encoder(clip).encode(text).float().cpu()[None], {}]],)


class CLIPVisionEncode(Node):
    """A picture to image features."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip_vision": ("CLIP_VISION",), "image": ("IMAGE",), "crop": (["center", "none"],)}}

    def run(self, clip_vision: FileHandle, image: torch.Tensor, crop: str) -> tuple[torch.Tensor]:
        eye = self.shop.image_encoder(clip_vision)
        picture = image[0, :, :, :3].permute(2, 0, 1) * 2 - 1  # [3, H, W]
        if crop == "center":
            side = min(picture.shape[1:])
            top, left = (picture.shape[1] - side) // 2, (picture.shape[2] - side) // 2
            picture = picture[:, top : top + side, left : left + side]
        return (eye.encode(picture).float().cpu()[None],)


REQUIRED = {
    "positive": ("CONDITIONING",),
    "negative": ("CONDITIONING",),
    "vae": ("VAE",),
    "width": ("INT", {"default": 832, "min": 16, "max": MOST, "step": 16}),
    "height": ("INT", {"default": 480, "min": 16, "max": MOST, "step": 16}),
    "length": ("INT", {"default": 81, "min": 1, "max": MOST, "step": 4}),
    "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
}
STEERED = ("CONDITIONING", "CONDITIONING", "LATENT")
NAMES = ("positive", "negative", "latent")


class WanImageToVideo(Node):
    """Steer a video by its first frames."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = STEERED, NAMES

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": REQUIRED,
            "optional": {"clip_vision_output": ("CLIP_VISION_OUTPUT",), "start_image": ("IMAGE",)},
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
    ) -> tuple[Conditioning, Conditioning, Latent]:
        latent = empty(width, height, length, batch_size)
        extras: dict[str, Any] = {}
        if start_image is not None:
            start = resized(start_image[:length], width, height)
            extras["concat_latent_image"] = encode(self.shop.vae(vae), filled(start, None, length, width, height))
            mask = torch.ones(1, 1, *latent.shape[2:])
            mask[:, :, : (len(start) - 1) // 4 + 1] = 0
            extras["concat_mask"] = mask
        extras["clip_vision_output"] = clip_vision_output
        return attached(positive, extras), attached(negative, extras), {"samples": latent}


class WanFirstLastFrameToVideo(Node):
    """Steer a video by its first and last frames."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = STEERED, NAMES

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": REQUIRED,
            "optional": {
                "clip_vision_start_image": ("CLIP_VISION_OUTPUT",),
                "clip_vision_end_image": ("CLIP_VISION_OUTPUT",),
                "start_image": ("IMAGE",),
                "end_image": ("IMAGE",),
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
        end_image: torch.Tensor | None = None,
        clip_vision_start_image: torch.Tensor | None = None,
        clip_vision_end_image: torch.Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning, Latent]:
        latent = empty(width, height, length, batch_size)
        start = None if start_image is None else resized(start_image[:length], width, height)
        end = None if end_image is None else resized(end_image[-length:], width, height)
        frames = filled(start, end, length, width, height)
        seen = [it for it in (clip_vision_start_image, clip_vision_end_image) if it is not None]
        extras: dict[str, Any] = {
            "concat_latent_image": encode(self.shop.vae(vae), frames),
            "concat_mask": frame_mask(latent, start, end),
            "clip_vision_output": torch.cat(seen, dim=1) if seen else None,
        }
        return attached(positive, extras), attached(negative, extras), {"samples": latent}


def resized(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """``[B, H, W, C]`` scaled to cover the size, the rest cut off evenly; bilinear."""
    return scaled(centre(images, width / height), width, height, "bilinear")


def filled(start: torch.Tensor | None, end: torch.Tensor | None, length: int, width: int, height: int) -> torch.Tensor:
    """``[length, H, W, 3]``: the given frames at both ends and mid-grey between."""
    frames = torch.full((length, height, width, 3), 0.5)
    if start is not None:
        frames[: len(start)] = start[..., :3]
    if end is not None:
        frames[-len(end) :] = end[..., :3]
    return frames


def frame_mask(latent: torch.Tensor, start: torch.Tensor | None, end: torch.Tensor | None) -> torch.Tensor:
    """``[1, 4, t, h, w]`` for latents ``[B, 16, t, h, w]``: 0 for each given frame, 1 elsewhere.

    A channel stands for one of the four frames in a latent frame; the first frame counts four times.
    """
    sub_frames = torch.ones(4 * latent.shape[2])
    if start is not None:
        sub_frames[: len(start) + 3] = 0
    if end is not None:
        sub_frames[-len(end) :] = 0
    rows = sub_frames.view(-1, 4).T[None, :, :, None, None]
    return rows.expand(1, 4, *latent.shape[2:]).clone()


def attached(conditioning: Conditioning, extras: dict[str, Any]) -> Conditioning:
    """A copy in which every entry carries those of ``extras`` that are not None."""
    given = {name: value for name, value in extras.items() if value is not None}
    return [[tensor, {**own, **given}] for tensor, own in conditioning]
