"""CLIP visual tower (ViT): a square picture to the tokens that Wan attends to.

Shapes: ``B`` batch, ``S`` image side, ``P`` patches, ``L`` = 1 + P tokens with the class token first, ``D`` width,
``N`` heads of ``K``. Source: Wan-Video/Wan2.1 revision 9737cba, ``wan/modules/clip.py``; parameter names are the
published ones without ``visual.``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from cygnet.errors import RequestError
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.norms import LayerNorm
from cygnet.ops.attention import sdpa
from cygnet.types import Attention


class SelfAttention(nn.Module):
    """Attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, attention: Attention) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, L, D]`` -> the same."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 of [B, N, L, K]
        out: torch.Tensor = self.proj(self.attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention, then a two-layer network, each on a normalised copy and added back."""

    def __init__(self, config: CLIPVisionConfig, attention: Attention) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.dim, config.eps)
        self.attn = SelfAttention(config.dim, config.num_heads, attention)
        self.norm2 = LayerNorm(config.dim, config.eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.mlp_dim), nn.GELU(), nn.Linear(config.mlp_dim, config.dim)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, L, D]`` -> the same."""
        x = x + self.attn(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class CLIPVision(nn.Module):
    """The tower. Its last block, ``post_norm`` and ``head`` exist for the checkpoint's sake: Wan stops before them."""

    fp32_parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: CLIPVisionConfig, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(
            3, config.dim, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.cls_embedding = nn.Parameter(torch.empty(1, 1, config.dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, config.num_tokens, config.dim))
        self.pre_norm = LayerNorm(config.dim, config.eps)
        self.transformer = nn.ModuleList([Block(config, attention) for _ in range(config.num_layers)])
        self.post_norm = LayerNorm(config.dim, config.eps)
        if config.output_dim is not None:
            self.head = nn.Parameter(torch.empty(config.dim, config.output_dim))
        for name in ("cls_embedding", "pos_embedding", "head"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=config.dim**-0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens after all blocks but the last, without a closing norm.

        pixels ``[B, 3, S, S]``, normalised (see :func:`cygnet.models.clip.preprocess.preprocess`), of any float dtype.
        Returns ``[B, L, D]`` in the dtype of the weights. Raises :class:`~cygnet.errors.RequestError` for another size.
        """
        side = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise RequestError(
                f"the picture for CLIP has shape {tuple(pixels.shape)}; this tower takes [batch, 3, {side}, {side}], "
                "as made by preprocess(image, size)",
                field="image",
            )
        pixels = pixels.to(self.patch_embedding.weight)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, P, D]
        cls = self.cls_embedding.expand(patches.shape[0], -1, -1)  # [B, 1, D]
        x: torch.Tensor = self.pre_norm(torch.cat([cls, patches], dim=1) + self.pos_embedding)  # [B, L, D]
        for block in self.transformer[:-1]:
            x = block(x)
        return x
