"""What the controlled variants add to the transformer: VACE's second branch and the Fun models' camera adapter.

Legend: B batch, t h w latent grid, L video tokens, D width.
Sources: Wan-Video/Wan2.1: wan/modules/vace_model.py; aigc-apps/VideoX-Fun: videox_fun/models/wan_camera_adapter.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from cygnet.models.dit.config import CAMERA_SCALE, DiTConfig
from cygnet.models.dit.layers import Block, TextKeys
from cygnet.ops.rope import RotaryTable
from cygnet.types import Attention


@dataclass(frozen=True)
class VaceContext:
    """One control of a VACE model: ``latents [B, 96, t, h, w]`` (inactive 16, reactive 16, mask 64)."""

    latents: torch.Tensor
    strength: float = 1.0


class VaceBlock(Block):
    """A transformer block of the control branch, with projections that let it in and its hints out."""

    def __init__(self, config: DiTConfig, attention: Attention, *, first: bool) -> None:
        super().__init__(config, attention)
        if first:
            self.before_proj = nn.Linear(config.dim, config.dim)
        self.after_proj = nn.Linear(config.dim, config.dim)


class VaceStream:
    """The control branch at work: one pass over its blocks, a hint for the main branch from each."""

    def __init__(self, blocks: nn.ModuleList, control: torch.Tensor, x: torch.Tensor, strength: float) -> None:
        self._blocks, self._strength = blocks, strength
        self._state: torch.Tensor = blocks[0].before_proj(control) + x  # type: ignore[operator]

    def add_hint(
        self,
        x: torch.Tensor,
        number: int,
        time_modulation: torch.Tensor,
        rope: RotaryTable,
        keys: TextKeys,
        *,
        one_by_one: bool = False,
    ) -> torch.Tensor:
        """``x [B, L, D]`` plus the hint of control block ``number``; to be called in order, once for each."""
        block = self._blocks[number]
        self._state = block(self._state, time_modulation, rope, keys, one_by_one=one_by_one)
        return torch.add(x, block.after_proj(self._state), alpha=self._strength)  # type: ignore[operator]


class ResidualConv(nn.Module):
    """Two 3x3 convolutions around a ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, D, h, w]`` -> ``[N, D, h, w]``."""
        return x + self.conv2(F.relu(self.conv1(x)))  # type: ignore[no-any-return]


class CameraAdapter(nn.Module):
    """Camera rays to the transformer's width."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels * CAMERA_SCALE**2, dim, 2, stride=2)
        self.residual_blocks = nn.Sequential(ResidualConv(dim))

    def forward(self, rays: torch.Tensor) -> torch.Tensor:
        """``[B, 24, t, 8h, 8w]`` (6 Plücker coordinates of 4 frames each) -> ``[B, D, t, h/2, w/2]``."""
        frames = F.pixel_unshuffle(rays.transpose(1, 2).flatten(0, 1), CAMERA_SCALE)  # [B * t, 1536, h, w]
        features = self.residual_blocks(self.conv(frames))
        return features.unflatten(0, (rays.shape[0], rays.shape[2])).transpose(1, 2)  # type: ignore[no-any-return]
