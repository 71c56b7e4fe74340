"""Nodes that measure, scale, cut, join and mark pictures and masks.

``IMAGE`` is ``[B, H, W, C]`` and ``MASK`` ``[B, H, W]``, both float32 in 0..1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cygnet.graph.context import current
from cygnet.nodes.latents import MOST
from cygnet.nodes.videos import video_components
from cygnet.nodes.workshop import Node

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")


class GetImageSize(Node):
    """Width, height and number of pictures, also shown on the node."""

    CATEGORY = "image"
    RETURN_TYPES = ("INT", "INT", "INT")
    RETURN_NAMES = ("width", "height", "batch_size")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def run(self, image: torch.Tensor, unique_id: str = "") -> tuple[int, int, int]:
        count, height, width = image.shape[:3]
        current().say(f"width: {width}, height: {height}\n batch size: {count}")
        return width, height, count


class GetVideoComponents(Node):
    """Frames, sound and rate of a video."""

    CATEGORY = "image/video"
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    RETURN_NAMES = ("images", "audio", "fps")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO",)}}

    def run(self, video: Any) -> tuple[torch.Tensor, Any, float]:
        it = video_components(video)
        return it.images, it.audio, float(it.frame_rate)


class ImageScale(Node):
    """Pictures of another size; 0 for one side keeps the aspect."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 512, "min": 0, "max": MOST, "step": 1})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(METHODS),),
                "width": side,
                "height": side,
                "crop": (["disabled", "center"],),
            }
        }

    def run(self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[torch.Tensor]:
        rows, columns = image.shape[1:3]
        if width == 0 and height == 0:
            return (image,)
        width = width or max(1, round(columns * height / rows))
        height = height or max(1, round(rows * width / columns))
        if crop == "center":
            image = centre(image, width / height)
        return (scaled(image, width, height, upscale_method),)


class JoinImageWithAlpha(Node):
    """A picture with a mask as what is not seen of it."""

    CATEGORY = "mask/compositing"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "alpha": ("MASK",)}}

    def run(self, image: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor]:
        count = min(len(image), len(alpha))
        fitted = scaled(alpha[:count, :, :, None], image.shape[2], image.shape[1], "bilinear")
        return (torch.cat((image[:count, :, :, :3], 1 - fitted), dim=-1),)


class GrowMask(Node):
    """A mask grown or, with a negative number, shrunk by so many pixels."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "mask": ("MASK",),
                "expand": ("INT", {"default": 0, "min": -MOST, "max": MOST, "step": 1}),
                "tapered_corners": ("BOOLEAN", {"default": True}),
            }
        }

    def run(self, mask: torch.Tensor, expand: int, tapered_corners: bool) -> tuple[torch.Tensor]:
        grown = mask.reshape(-1, 1, *mask.shape[-2:]) * (1 if expand >= 0 else -1)
        for _ in range(abs(expand)):
            across = F.max_pool2d(grown, (1, 3), 1, (0, 1))
            down = F.max_pool2d(grown, (3, 1), 1, (1, 0))
            grown = torch.maximum(across, down) if tapered_corners else F.max_pool2d(grown, 3, 1, 1)
        return ((grown if expand >= 0 else -grown)[:, 0],)


class ImagePadForOutpaint(Node):
    """A grey border, and a mask that says where it is."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 0, "min": 0, "max": MOST, "step": 8})
        return {
            "required": {
                "image": ("IMAGE",),
                "left": side,
                "top": side,
                "right": side,
                "bottom": side,
                "feathering": ("INT", {"default": 40, "min": 0, "max": MOST, "step": 1}),
            }
        }

    def run(
        self, image: torch.Tensor, left: int, top: int, right: int, bottom: int, feathering: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count, rows, columns, channels = image.shape
        padded = torch.full((count, rows + top + bottom, columns + left + right, channels), 0.5)
        padded[:, top : top + rows, left : left + columns] = image
        mask = torch.ones(1, rows + top + bottom, columns + left + right)
        inner = torch.zeros(rows, columns)
        if feathering > 0 and feathering * 2 < rows and feathering * 2 < columns:
            y, x = torch.arange(rows)[:, None], torch.arange(columns)[None]
            far = torch.full((rows, columns), float("inf"))
            for side, distance in ((top, y), (bottom, rows - y), (left, x), (right, columns - x)):
                if side:
                    far = torch.minimum(far, distance.expand(rows, columns).float())
            inner = ((feathering - far).clamp_min(0) / feathering).square()
        mask[:, top : top + rows, left : left + columns] = inner
        return padded, mask


class ImageCompositeMasked(Node):
    """One picture pasted on another through a mask."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        place = ("INT", {"default": 0, "min": 0, "max": MOST, "step": 1})
        return {
            "required": {
                "destination": ("IMAGE",),
                "source": ("IMAGE",),
                "x": place,
                "y": place,
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def run(
        self,
        destination: torch.Tensor,
        source: torch.Tensor,
        x: int,
        y: int,
        resize_source: bool,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        result = destination.clone()
        count, rows, columns = result.shape[:3]
        if resize_source:
            source = scaled(source, columns, rows, "bilinear")
        cover = torch.ones(1, *source.shape[1:3]) if mask is None else mask
        cover = scaled(cover[..., None], source.shape[2], source.shape[1], "bilinear")
        height, width = min(source.shape[1], rows - y), min(source.shape[2], columns - x)
        if height <= 0 or width <= 0:
            return (result,)
        channels = min(result.shape[3], source.shape[3])
        for i in range(count):
            given = source[i % len(source), :height, :width, :channels]
            share = cover[i % len(cover), :height, :width]
            part = result[i, y : y + height, x : x + width, :channels]
            part.copy_(share * given + (1 - share) * part)
        return (result,)


class Canny(Node):
    """Edges, white on black."""

    CATEGORY = "image/preprocessors"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        limits = {"min": 0.01, "max": 0.99, "step": 0.01}
        return {
            "required": {
                "image": ("IMAGE",),
                "low_threshold": ("FLOAT", {"default": 0.4, **limits}),
                "high_threshold": ("FLOAT", {"default": 0.8, **limits}),
            }
        }

    def run(self, image: torch.Tensor, low_threshold: float, high_threshold: float) -> tuple[torch.Tensor]:
        edges = torch.cat([canny(frame[None], low_threshold, high_threshold) for frame in image])
        return (edges[..., None].expand(-1, -1, -1, 3).clone(),)


def canny(image: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Edges ``[B, H, W]``, 0 or 1: blur, slopes, thinning, then strong edges and the weak ones that touch them.

    Source: Canny 1986; a blur of 5x5 with deviation 1 and Sobel slopes, as usual.
    """
    grey = (image[..., :3] @ torch.tensor([0.299, 0.587, 0.114]))[:, None]  # [B, 1, H, W]
    bell = torch.exp(-torch.arange(-2.0, 3.0).square() / 2)
    bell = bell / bell.sum()
    blurred = F.conv2d(F.pad(grey, (2, 2, 2, 2), "reflect"), (bell[:, None] * bell)[None, None])
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    slopes = F.conv2d(F.pad(blurred, (1, 1, 1, 1), "replicate"), torch.stack((sobel, sobel.T))[:, None])
    strength = slopes.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
    direction = (torch.atan2(slopes[:, 1:], slopes[:, :1]) / (math.pi / 4)).round().long() % 4
    around = F.pad(strength, (1, 1, 1, 1))
    rows, columns = strength.shape[2:]

    def shifted(dy: int, dx: int) -> torch.Tensor:
        return around[:, :, 1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]

    highest = torch.zeros_like(strength, dtype=torch.bool)
    for kind, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        peak = (strength > shifted(dy, dx)) & (strength > shifted(-dy, -dx))
        highest |= (direction == kind) & peak
    thin = strength * highest
    strong, weak = (thin > high).float(), (thin > low).float()
    while True:
        grown = F.max_pool2d(strong, 3, 1, 1) * weak
        grown = torch.maximum(grown, strong)
        if torch.equal(grown, strong):
            return strong[:, 0]
        strong = grown


def centre(image: torch.Tensor, aspect: float) -> torch.Tensor:
    """The largest part of ``[B, H, W, C]`` about its middle with that width over height."""
    rows, columns = image.shape[1:3]
    if columns / rows > aspect:
        left = round((columns - columns * aspect / (columns / rows)) / 2)
        return image[:, :, left : columns - left]
    top = round((rows - rows * (columns / rows) / aspect) / 2)
    return image[:, top : rows - top]


def scaled(image: torch.Tensor, width: int, height: int, method: str) -> torch.Tensor:
    """``[B, H, W, C]`` stretched to a size."""
    if tuple(image.shape[1:3]) == (height, width):
        return image
    if method == "lanczos":
        return torch.stack([_lanczos(frame, width, height) for frame in image])
    return F.interpolate(image.movedim(-1, 1), size=(height, width), mode=method).movedim(1, -1)


def _lanczos(frame: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Through 8 bits, as Pillow resizes."""
    pixels = (frame.clamp(0, 1) * 255).byte().numpy()
    channels = [Image.fromarray(pixels[..., c]) for c in range(pixels.shape[-1])]
    done = [np.asarray(it.resize((width, height), Image.Resampling.LANCZOS)) for it in channels]
    return torch.from_numpy(np.stack(done, axis=-1).astype(np.float32) / 255)
