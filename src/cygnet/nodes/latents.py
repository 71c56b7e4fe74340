"""Latents as they flow through a graph, and the nodes that make, decode and trim them.

``LATENT`` is ``{"samples": [B, 16, t, h, w]}`` on the autoencoder's own scale, not normalised, so that nodes of other
makers can mix them; the sampler normalises on its way in. ``IMAGE`` is ``[B, H, W, C]`` float32 in 0..1 on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch

from cygnet.graph.context import current
from cygnet.nodes.grids import CELL, whole_cells
from cygnet.nodes.workshop import FileHandle, Node
from cygnet.pipelines.sizes import latent_frames_at_once

Latent = dict[str, Any]
MOST = 16384


class EmptyHunyuanLatentVideo(Node):
    """Latents of nothing, to be filled by a sampler."""

    CATEGORY = "latent/video"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "width": ("INT", {"default": 848, "min": 16, "max": MOST, "step": 16}),
                "height": ("INT", {"default": 480, "min": 16, "max": MOST, "step": 16}),
                "length": ("INT", {"default": 25, "min": 1, "max": MOST, "step": 4}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def run(self, width: int, height: int, length: int, batch_size: int) -> tuple[Latent]:
        return ({"samples": empty(width, height, length, batch_size)},)


class EmptySD3LatentImage(Node):
    """Latents of a picture."""

    CATEGORY = "latent/sd3"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 1024, "min": 16, "max": MOST, "step": 16})
        count = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"width": side, "height": side, "batch_size": count}}

    def run(self, width: int, height: int, batch_size: int) -> tuple[Latent]:
        return ({"samples": empty(width, height, 1, batch_size)},)


class VAEDecode(Node):
    """Latents to frames."""

    CATEGORY = "latent"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def run(self, samples: Latent, vae: FileHandle) -> tuple[torch.Tensor]:
        network = self.shop.vae(vae)
        frames: list[torch.Tensor] = []
        batch, _, length, *grid = samples["samples"].shape
        at_once = latent_frames_at_once(*grid)
        for number, latents in enumerate(samples["samples"]):
            given = network.normalise(latents[None].to(network.device, network.dtype))
            for piece, chunk in enumerate(network.decode_chunks(given, chunk=at_once)):
                frames.append(((chunk[0].float() + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0).cpu())
                current().progress(number * length + min(1 + piece * at_once, length), batch * length)
        return (torch.cat(frames),)


class VAEEncode(Node):
    """Frames to latents."""

    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def run(self, pixels: torch.Tensor, vae: FileHandle) -> tuple[Latent]:
        network = self.shop.vae(vae)
        return ({"samples": encode(network, pixels)},)


class TrimVideoLatent(Node):
    """Drop the first latent frames."""

    CATEGORY = "latent/video"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "trim_amount": ("INT", {"default": 0, "min": 0, "max": 99999})}}

    def run(self, samples: Latent, trim_amount: int) -> tuple[Latent]:
        return ({**samples, "samples": samples["samples"][:, :, trim_amount:]},)


def empty(width: int, height: int, length: int, batch_size: int = 1) -> torch.Tensor:
    """Zeros ``[B, 16, t, h, w]``."""
    return torch.zeros(batch_size, 16, (length - 1) // 4 + 1, height // CELL, width // CELL)


@torch.no_grad()
def encode(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Raw latents ``[1, 16, t, h, w]`` of frames ``[T, H, W, C]`` in 0..1; as many as make whole latent frames, and of
    each as many pixels as make whole cells.
    """
    count = (images.shape[0] - 1) // 4 * 4 + 1
    video = (whole_cells(images[:count, :, :, :3]).permute(3, 0, 1, 2)[None] * 2 - 1).to(network.device, network.dtype)
    pieces = [video[:, :, :1], *(video[:, :, 1:].split(4, dim=2) if count > 1 else ())]  # [1, 3, 1 or 4, H, W]
    latents = []
    for piece in network.encode_chunks(pieces):
        latents.append(piece)
        current().progress(len(latents), len(pieces))
    raw: torch.Tensor = network.denormalise(torch.cat(latents, dim=2).float()).cpu()
    return raw
