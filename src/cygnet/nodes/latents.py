"""Latents as they flow through a graph, and the nodes that make, decode and trim them.

``LATENT`` is ``{"samples": [B, 16, t, h, w]}`` on the autoencoder's own scale, not normalised, so that nodes of other
makers can mix them; the sampler normalises on its way in. ``IMAGE`` is ``[B, H, W, C]`` float32 in 0..1 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from cygnet.assembly import release_unused
from cygnet.errors import OutOfMemory, out_of_memory, text_of
from cygnet.graph.context import current
from cygnet.models.vae.model import WanVAE
from cygnet.nodes.grids import CELL, whole_cells
from cygnet.nodes.workshop import FileHandle, Node
from cygnet.pipelines.record import Half
from cygnet.pipelines.sizes import latent_frames_at_once
from cygnet.pipelines.tiles import decode_chunks, encode_chunks, in_portions, smaller
from cygnet.types import Tiles

Latent = dict[str, Any]
_T = TypeVar("_T")
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
        length, *grid = samples["samples"].shape[2:]
        height, width = (side * CELL for side in grid)
        at_once = min(latent_frames_at_once(*grid), length - 1)

        def decoded(tiles: Tiles | None) -> torch.Tensor:
            return decode(network, samples["samples"], tiles)

        return (within_memory("decode", decoded, width, height, at_once=at_once),)


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


def within_memory(half: Half, work: Callable[[Tiles | None], _T], width: int, height: int, *, at_once: int = 1) -> _T:
    """``work`` on whole frames; where memory runs out in smaller and smaller portions, which a line on the node says.

    ``at_once`` as of :func:`~cygnet.pipelines.tiles.smaller`.
    """
    tiles: Tiles | None = None
    while True:
        try:
            return work(tiles)
        except Exception as error:
            if not out_of_memory(error):
                raise
            told = text_of(error)
        # Only here, with the error and the frames that it refers to gone, can what was computed be freed.
        tiles = smaller(tiles, width, height, at_once)
        if tiles is None:
            raise OutOfMemory(f"{told}; not even the smallest tiles of a frame can be {half}d")
        release_unused()
        current().say(f"memory ran out; {in_portions(half, tiles, width, height)}")


def decode(network: WanVAE, samples: torch.Tensor, tiles: Tiles | None) -> torch.Tensor:
    """Frames ``[B * T, H, W, 3]`` in 0..1 of raw latents ``[B, 16, t, h, w]``."""
    frames: list[torch.Tensor] = []
    batch, _, length, *grid = samples.shape
    at_once = latent_frames_at_once(*grid) if tiles is None else 1
    for number, latents in enumerate(samples):
        given = network.normalise(latents[None].to(network.device, network.dtype))
        for piece, chunk in enumerate(decode_chunks(network, given, chunk=at_once, tiles=tiles, parked=True)):
            frames.append(((chunk[0].float() + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0).cpu())
            current().progress(number * length + min(1 + piece * at_once, length), batch * length)
    return torch.cat(frames)


@torch.no_grad()
def encode(network: WanVAE, images: torch.Tensor) -> torch.Tensor:
    """Raw latents ``[1, 16, t, h, w]`` of frames ``[T, H, W, C]`` in 0..1; as many as make whole latent frames, and of
    each as many pixels as make whole cells.
    """
    count = (images.shape[0] - 1) // 4 * 4 + 1
    video = whole_cells(images[:count, :, :, :3]).permute(3, 0, 1, 2)[None] * 2 - 1
    pieces = [video[:, :, :1], *(video[:, :, 1:].split(4, dim=2) if count > 1 else ())]  # [1, 3, 1 or 4, H, W]

    def encoded(tiles: Tiles | None) -> torch.Tensor:
        latents: list[torch.Tensor] = []
        for piece in encode_chunks(network, pieces, tiles=tiles, parked=True):
            latents.append(piece)
            current().progress(len(latents), len(pieces))
        raw: torch.Tensor = network.denormalise(torch.cat(latents, dim=2).float()).cpu()
        return raw

    return within_memory("encode", encoded, video.shape[4], video.shape[3])
