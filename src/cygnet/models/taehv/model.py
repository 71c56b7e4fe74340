"""The decoder of TAEHV for Wan 2.1 (file ``taew2_1``), a small 2-D network that looks one frame back.

Legend: B batch, T frames, C channels, H W height and width; inside, frames are folded into the batch.
Source: madebyollin/taehv. It reads the transformer's normalised latents directly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

LATENT_CHANNELS = 16
WIDTHS = (256, 128, 64, 64)


class MemoryBlock(nn.Module):
    """A residual block that sees the frame before; before the first frame there is nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        """``[B*T, C, H, W]`` -> the same shape."""
        frames = x.unflatten(0, (batch, -1))
        before = F.pad(frames, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1].flatten(0, 1)
        out: torch.Tensor = self.conv(torch.cat((x, before), dim=1))
        return F.relu(out + x)


class Grow(nn.Module):
    """Twice the height and width, and ``times`` frames for each."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        """``[B*T, C, H, W]`` -> ``[B*T*times, C, 2H, 2W]``."""
        # The reference enlarges first; a 1x1 convolution commutes with that and has a quarter of the work before it.
        grown = self.conv(x).unflatten(1, (self.times, -1)).flatten(0, 1)
        return F.interpolate(grown, scale_factor=2.0)


class PreviewDecoder(nn.Module):
    """Normalised latents to a video, roughly and fast. Names are those of the file."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = WIDTHS
        slots: dict[int, nn.Module] = {
            1: nn.Conv2d(LATENT_CHANNELS, first, 3, padding=1),
            2: nn.ReLU(),
            **{i: MemoryBlock(first) for i in (3, 4, 5)},
            7: Grow(first, 1),
            8: nn.Conv2d(first, second, 3, padding=1, bias=False),
            **{i: MemoryBlock(second) for i in (9, 10, 11)},
            13: Grow(second, 2),
            14: nn.Conv2d(second, third, 3, padding=1, bias=False),
            **{i: MemoryBlock(third) for i in (15, 16, 17)},
            19: Grow(third, 2),
            20: nn.Conv2d(third, last, 3, padding=1, bias=False),
            21: nn.ReLU(),
            22: nn.Conv2d(last, 3, 3, padding=1),
        }
        self.decoder = nn.ModuleDict({str(i): slot for i, slot in slots.items()})

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B, 16, t, h, w]`` -> ``[B, 3, 4t - 3, 8h, 8w]`` in [-1, 1]."""
        batch = latents.shape[0]
        x = latents.transpose(1, 2).flatten(0, 1)
        x = (torch.tanh(x / 3) * 3).contiguous(memory_format=torch.channels_last)
        for slot in self.decoder.values():
            x = slot(x, batch) if isinstance(slot, MemoryBlock | Grow) else slot(x)
        frames = x.unflatten(0, (batch, -1)).transpose(1, 2)
        video: torch.Tensor = frames[:, :, 3:].clamp(0, 1) * 2 - 1
        return video


def decoder_state(tensors: Mapping[str, torch.Tensor], decoder: PreviewDecoder) -> dict[str, torch.Tensor]:
    """The decoder's part of a file; where a file grows more frames than needed, the last ones count."""
    state = {name: value for name, value in tensors.items() if name.startswith("decoder.")}
    for name, slot in decoder.decoder.items():
        key = f"decoder.{name}.conv.weight"
        if isinstance(slot, Grow) and key in state:
            state[key] = state[key][-slot.conv.out_channels :]
    return state
