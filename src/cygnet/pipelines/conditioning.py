"""From prompt, pictures and source video to what the denoising starts from and is steered by.

Legend: ``T H W`` frames, height, width; ``t h w`` latent grid; ``n`` text rows; ``D`` text width. Pictures are float32
``[3, H, W]`` and videos ``[3, T, H, W]``, both in [-1, 1].
Source: Wan-Video/Wan2.1: wan/image2video.py and first_last_frame2video.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cygnet.errors import NumericalError
from cygnet.models.clip.model import CLIPVision
from cygnet.models.clip.preprocess import preprocess
from cygnet.models.dit.control import VaceContext
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.prompt import encode_tokens
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.sizes import FRAME_STRIDE
from cygnet.pipelines.tiles import encode_chunks
from cygnet.types import Tiles


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """All that steers the denoising; every tensor has a batch axis of 1."""

    context: torch.Tensor
    """``[1, n, D]``: the prompt."""
    negative_context: torch.Tensor | None = None
    """``[1, n', D]``; None when nothing is guided."""
    image_context: torch.Tensor | None = None
    """``[1, 257 or 514, 1280]``: CLIP's view of one or two pictures."""
    image_condition: torch.Tensor | None = None
    """``[1, 20, t, h, w]``: mask and latents of the given frames; 32 or 16 channels in the Fun models."""
    vace: tuple[VaceContext, ...] = ()
    """Controls of a VACE model."""
    camera: torch.Tensor | None = None
    """``[1, 24, t, H, W]``: rays of a Fun camera model."""


def encode_text(
    model: UMT5Encoder, tokenizer: Tokenizer, text: str, *, what: str = "the prompt"
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Features ``[1, n, D]`` of ``text`` and a notice if its end did not fit the 512 tokens; ``what`` names it there.

    Raises :class:`~cygnet.errors.NumericalError` if the features are not finite, and as
    :func:`cygnet.models.umt5.prompt.encode_prompt`.
    """
    tokenizer.check_fits(model.config.vocab_size)
    tokens = tokenizer.tokenize(text)
    features = encode_tokens(model, tokens)
    if not bool(torch.isfinite(features).all()):
        raise NumericalError(
            f"the text encoder made NaN or infinity of {what}; its weights are damaged, or {features.dtype} "
            "overflows: verify the file, or use float32"
        )
    if not tokens.num_cut:
        return features.unsqueeze(0), ()
    start = tokens.cut_text if len(tokens.cut_text) <= 60 else tokens.cut_text[:59] + "…"
    return features.unsqueeze(0), (
        f"{what} is too long: its last {tokens.num_cut} tokens were left out, from {start!r} on",
    )


@torch.no_grad()
def encode_images(model: CLIPVision, images: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """CLIP tokens ``[1, 257 * len(images), D]`` of pictures at their original sizes, one after the other."""
    weight = model.patch_embedding.weight
    side = model.config.image_size
    tokens = [model(preprocess(image, side).to(weight.device, weight.dtype)) for image in images]
    return torch.cat(tokens, dim=1)


def image_mask(num_frames: int, height: int, width: int, *, last: bool) -> torch.Tensor:
    """``[1, 4, t, h, w]`` on a latent grid ``h x w``: 1 where a frame is given.

    Channel r of latent frame j stands for pixel frame 4j - 3 + r, and all channels of latent frame 0 for frame 0.
    A given last frame is therefore marked in one channel only; the networks were trained that way.
    """
    given = torch.zeros(num_frames, dtype=torch.float32)
    given[0] = 1
    if last:
        given[-1] = 1
    rows = torch.cat((given[:1].expand(FRAME_STRIDE - 1), given)).view(-1, FRAME_STRIDE).T  # [4, t]
    return rows[None, :, :, None, None].expand(1, -1, -1, height, width).contiguous()


def image_condition(
    vae: WanVAE,
    image: torch.Tensor,
    *,
    num_frames: int,
    width: int,
    height: int,
    last_image: torch.Tensor | None = None,
    tiles: Tiles | None = None,
    parked: bool = False,
    on_piece: Callable[[int, int], None] = lambda done, total: None,
) -> torch.Tensor:
    """Mask and latents ``[1, 20, t, h, w]`` of a video of which the first frame is given, or the first and the last.

    The frames between are grey (0). Pictures are stretched to ``width`` x ``height`` by the official bicubic resize,
    whose overshoot is not clipped. Frames reach the VAE a few at a time, so memory does not grow with ``num_frames``;
    ``tiles`` and ``parked`` as of :class:`~cygnet.pipelines.tiles.Portions`. ``on_piece`` is told how many latent
    frames are done, and of how many. What it raises ends the work.
    """
    pieces: list[torch.Tensor] = []
    total = 1 + (num_frames - 1) // FRAME_STRIDE
    for piece in encode_chunks(vae, _frames(image, last_image, num_frames, width, height), tiles=tiles, parked=parked):
        pieces.append(piece)
        on_piece(len(pieces), total)
    latents = torch.cat(pieces, dim=2)
    mask = image_mask(num_frames, latents.shape[3], latents.shape[4], last=last_image is not None)
    return torch.cat((mask.to(latents), latents), dim=1)


def resize(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Stretch ``[3, H, W]`` or ``[3, T, H, W]``: bicubic on the CPU in float32, without smoothing or clipping."""
    batch = image.float().cpu().unsqueeze(0) if image.ndim == 3 else image.float().cpu().transpose(0, 1)
    done = F.interpolate(batch, size=(height, width), mode="bicubic", align_corners=False)
    return done[0] if image.ndim == 3 else done.transpose(0, 1)


def crop_to_aspect(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """The largest part of ``[..., H, W]`` about its centre with the aspect ``width : height``; a view."""
    rows, columns = image.shape[-2:]
    kept_columns = min(columns, max(1, round(rows * width / height)))
    kept_rows = min(rows, max(1, round(columns * height / width)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return image[..., top : top + kept_rows, left : left + kept_columns]


def cover(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """``[3, H, W]`` scaled until it covers ``width`` x ``height``, the rest cut off evenly.

    The official code means to do this to a last frame of another size than the first, but forgets the scaling.
    """
    return resize(crop_to_aspect(image, width, height), width, height)


def _frames(
    first: torch.Tensor, last: torch.Tensor | None, num_frames: int, width: int, height: int
) -> Iterator[torch.Tensor]:
    """The video ``[1, 3, T, H, W]`` in pieces of one and then four frames."""
    yield resize(first, width, height)[None, :, None]
    grey = torch.zeros(1, 3, FRAME_STRIDE, height, width, dtype=torch.float32)
    pieces = (num_frames - 1) // FRAME_STRIDE
    for piece in range(pieces):
        if last is not None and piece == pieces - 1:
            grey = grey.clone()
            grey[:, :, -1] = resize(last, width, height)
        yield grey
