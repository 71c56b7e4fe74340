"""Smaller nodes beside the main ones: tiles, latents cut and joined, masks and animated PNG files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from cygnet.errors import RequestError
from cygnet.nodes.conditioning import Conditioning
from cygnet.nodes.described import described
from cygnet.nodes.files import HIDDEN, PICTURES, LoadImage, animated, input_files, save_whole
from cygnet.nodes.grids import CELL
from cygnet.nodes.images import METHODS, scaled
from cygnet.nodes.latents import MOST, Latent, decode
from cygnet.nodes.videos import to_bytes
from cygnet.nodes.workshop import FileHandle, Node
from cygnet.pipelines.tiles import within

_AXES = {"x": -1, "y": -2, "t": -3}


class ConditioningZeroOut(Node):
    """Conditioning that says nothing."""

    CATEGORY = "advanced/conditioning"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def run(self, conditioning: Conditioning) -> tuple[Conditioning]:
        return ([[torch.zeros_like(tensor), dict(own)] for tensor, own in conditioning],)


class ImageScaleBy(Node):
    """Pictures so many times as large."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(METHODS),),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def run(self, image: torch.Tensor, upscale_method: str, scale_by: float) -> tuple[torch.Tensor]:
        height, width = (max(1, round(side * scale_by)) for side in image.shape[1:3])
        return (scaled(image, width, height, upscale_method),)


class ImageScaleToTotalPixels(Node):
    """Pictures of so many pixels, in the aspect that they have."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(METHODS),),
                "megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0, "step": 0.01}),
            }
        }

    def run(self, image: torch.Tensor, upscale_method: str, megapixels: float) -> tuple[torch.Tensor]:
        height, width = image.shape[1:3]
        factor = math.sqrt(megapixels * 1024**2 / (width * height))
        return (scaled(image, round(width * factor), round(height * factor), upscale_method),)


class LatentCut(Node):
    """A piece of a latent along one axis; a negative index counts from the end."""

    CATEGORY = "latent/advanced"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT", {}),
                "dim": ("COMBO", {"multiselect": False, "options": list(_AXES)}),
                "index": ("INT", {"default": 0, "min": -MOST, "max": MOST, "step": 1}),
                "amount": ("INT", {"default": 1, "min": 1, "max": MOST, "step": 1}),
            }
        }

    def run(self, samples: Latent, dim: str, index: int, amount: int) -> tuple[Latent]:
        whole: torch.Tensor = samples["samples"]
        length = whole.shape[_AXES[dim]]
        start = max(0, min(index + length if index < 0 else index, length - 1))
        piece = whole.narrow(_AXES[dim], start, min(amount, length - start)).clone()
        return ({**samples, "samples": piece},)


class LatentConcat(Node):
    """Two latents one behind the other along an axis; with a minus the second comes first."""

    CATEGORY = "latent/advanced"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        axes = [word for axis in _AXES for word in (axis, f"-{axis}")]
        return {
            "required": {
                "samples1": ("LATENT", {}),
                "samples2": ("LATENT", {}),
                "dim": ("COMBO", {"multiselect": False, "options": axes}),
            }
        }

    def run(self, samples1: Latent, samples2: Latent, dim: str) -> tuple[Latent]:
        first, second = samples1["samples"], samples2["samples"]
        axis = _AXES[dim.removeprefix("-")]
        shapes = [[size for at, size in enumerate(it.shape) if at - it.ndim != axis] for it in (first, second)]
        if first.ndim != second.ndim or shapes[0] != shapes[1]:
            raise RequestError(
                f"latents of {list(first.shape)} and {list(second.shape)} differ in more than "
                f"{dim.removeprefix('-')!r}; give two that fit",
                field="dim",
            )
        parts = (second, first) if dim.startswith("-") else (first, second)
        return ({**samples1, "samples": torch.cat(parts, dim=axis)},)


class VAEDecodeTiled(Node):
    """Latents to frames, a tile of the picture at a time, where the whole does not fit into memory.

    Each tile sees all that its pixels depend on, so the overlap that is asked for does not matter: there is nothing to
    blend. Time needs no tiles: the autoencoder decodes a video frame by frame with nothing lost.
    """

    CATEGORY = "experimental"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "vae": ("VAE",),
                "tile_size": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 32}),
                "overlap": ("INT", {"default": 64, "min": 0, "max": 4096, "step": 32}),
                "temporal_size": ("INT", {"default": 64, "min": 8, "max": 4096, "step": 4}),
                "temporal_overlap": ("INT", {"default": 8, "min": 4, "max": 4096, "step": 4}),
            }
        }

    def run(
        self,
        samples: Latent,
        vae: FileHandle,
        tile_size: int,
        overlap: int,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> tuple[torch.Tensor]:
        network = self.shop.vae(vae)
        height, width = (side * CELL for side in samples["samples"].shape[3:])
        tiles = within(network.config, tile_size, width, height)
        return (decode(network, samples["samples"], tiles),)


class LoadImageMask(LoadImage):
    """One channel of a picture of the input folder, as a mask; of alpha what is not seen."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)  # type: ignore[assignment]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": (input_files(cls.shop, PICTURES), {"image_upload": True}),
                "channel": (["alpha", "red", "green", "blue"],),
            }
        }

    def run(self, image: str, channel: str) -> tuple[torch.Tensor]:  # type: ignore[override]
        pixels, unseen = super().run(image)
        if channel == "alpha":
            return (unseen,)
        return (pixels[..., ("red", "green", "blue").index(channel)],)


class SaveAnimatedPNG(Node):
    """Frames to an animated PNG file of the output folder."""

    CATEGORY = "image/animation"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
                "fps": ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "compress_level": ("INT", {"default": 4, "min": 0, "max": 9}),
            },
            "hidden": HIDDEN,
        }

    def run(
        self,
        images: torch.Tensor,
        filename_prefix: str,
        fps: float,
        compress_level: int,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        height, width = images.shape[1:3]
        notes = PngImagePlugin.PngInfo()
        for name, text in described(self.shop, prompt, extra_pnginfo).items():
            # Readers of workflows look behind the first frame, in chunks of this name.
            notes.add(b"comf", name.encode("latin-1") + b"\0" + text.encode("latin-1"), after_idat=True)
        first, *rest = (Image.fromarray(to_bytes(frame, 4)) for frame in images)

        def made(path: Path) -> None:
            first.save(
                path,
                format="PNG",
                pnginfo=notes,
                compress_level=compress_level,
                save_all=True,
                duration=1000 / fps,
                append_images=rest,
            )

        saved = save_whole(self.shop, filename_prefix, ".png", made, width=width, height=height)
        return animated(saved, len(images) != 1)
