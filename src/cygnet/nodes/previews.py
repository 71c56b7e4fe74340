"""What is being sampled: by TAEHV where its weights are there, else guessed from the latents without decoding them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from cygnet.graph.context import current
from cygnet.models.dit.config import TINY_I2V, TINY_T2V, DiTConfig
from cygnet.models.taehv.model import PreviewDecoder
from cygnet.nodes.workshop import Workshop


@dataclass(frozen=True)
class Colours:
    """A linear guess of a normalised latent's colour in [-1, 1]."""

    weights: torch.Tensor
    """``[16, 3]``"""
    bias: torch.Tensor
    """``[3]``"""


WAN = Colours(
    torch.tensor(
        [
            *([-0.1299, -0.1692, 0.2932], [0.0671, 0.0406, 0.0442], [0.3568, 0.2548, 0.1747]),
            *([0.0372, 0.2344, 0.1420], [0.0313, 0.0189, -0.0328], [0.0296, -0.0956, -0.0665]),
            *([-0.3477, -0.4059, -0.2925], [0.0166, 0.1902, 0.1975], [-0.0412, 0.0267, -0.1364]),
            *([-0.1293, 0.0740, 0.1636], [0.0680, 0.3019, 0.1128], [0.0032, 0.0581, 0.0639]),
            *([-0.1251, 0.0927, 0.1699], [0.0060, -0.0633, 0.0005], [0.3477, 0.2275, 0.2950]),
            [0.1984, 0.0913, 0.1861],
        ]
    ),
    torch.tensor([-0.1835, -0.0868, -0.3360]),
)
"""Source: ComfyUI, comfy/latent_formats.py, Wan 2.1."""

TINY = Colours(
    torch.tensor(
        [
            *([0.0841, 0.0220, -0.0001], [-0.0022, 0.0147, 0.0375], [0.1206, 0.0698, 0.0722]),
            *([0.0258, -0.0462, -0.0763], [-0.0480, 0.0554, 0.0155], [0.0349, -0.0130, 0.0152]),
            *([-0.0140, 0.0507, 0.0339], [0.0453, 0.0880, 0.1357], [-0.1736, -0.0548, 0.0190]),
            *([0.0341, -0.0010, -0.0120], [0.0410, 0.0682, 0.0258], [-0.0037, -0.0996, -0.0008]),
            *([-0.0680, -0.0022, -0.0981], [0.0342, 0.0587, 0.0132], [-0.1872, -0.1572, -0.0932]),
            [0.0384, 0.0573, -0.0147],
        ]
    ),
    torch.tensor([-0.6043, -0.5483, -0.5910]),
)
"""Of the embedded VAE: least squares between latents and the mean colours of their cells, on 80 clips.

Source: ``recipes/tiny/colours.py``, whose factors for today's clips are no nearer.
"""

_OF: Mapping[DiTConfig, Colours] = {TINY_T2V: TINY, TINY_I2V: TINY}


Show = Callable[[torch.Tensor], bytes | None]
"""Estimate to picture file; None where none is wanted."""


def previews(shop: Workshop, config: DiTConfig) -> Show:
    """What turns estimates, normalised ``[1, 16, t, h, w]``, into JPEGs, in the way that the running job asks for.

    ``config`` is the network that makes them. ``none`` shows nothing, ``latent2rgb`` never decodes.
    """
    method = current().preview_method
    if method == "none":
        return lambda latents: None
    decoder = shop.preview_decoder() if method != "latent2rgb" and config not in _OF else None
    if decoder is None:
        return lambda latents: preview(latents, config, shop.preview_side)
    return lambda latents: decoded_preview(latents, decoder, shop.preview_side)


def preview(latents: torch.Tensor, config: DiTConfig, side: int = 512) -> bytes:
    """The middle frame of normalised ``[1, 16, t, h, w]`` as a small JPEG, each latent one blurred square."""
    colours = _OF.get(config, WAN)
    middle = latents[0, :, latents.shape[2] // 2].float().cpu()  # [16, h, w]
    rgb = torch.einsum("chw,cr->hwr", middle, colours.weights) + colours.bias
    scale = min(8.0, side / max(rgb.shape[:2]))
    return _jpeg(rgb, scale)


@torch.no_grad()
def decoded_preview(latents: torch.Tensor, decoder: PreviewDecoder, side: int = 512) -> bytes:
    """The middle frame of normalised ``[1, 16, t, h, w]`` as a small JPEG, decoded."""
    at = latents.shape[2] // 2
    # Its memory reaches up to eight latents back; more than two cost more time than a preview is worth.
    window = latents[:1, :, max(0, at - 2) : at + 1]
    weight = next(decoder.parameters())
    frame = decoder(window.to(weight))[0, :, -1]  # [3, H, W]
    rgb = frame.permute(1, 2, 0).float().cpu()
    return _jpeg(rgb, min(1.0, side / max(rgb.shape[:2])))


def _jpeg(rgb: torch.Tensor, scale: float) -> bytes:
    """A picture ``[H, W, 3]`` in [-1, 1], scaled."""
    from PIL import Image

    pixels = ((rgb + 1) / 2).nan_to_num().clamp(0, 1).mul(255).byte().numpy()
    picture = Image.fromarray(pixels)
    picture = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BILINEAR
    )
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=85)
    return out.getvalue()
