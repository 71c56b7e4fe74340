"""Building blocks of the diffusion transformer.

Legend: B batch, L video tokens, D width, N heads, K head width, n text rows, m image rows.

The stream of tokens runs in the dtype of the linear layers. Modulation, norm statistics and rotary angles are float32
(the published code's autocast does the same).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from cygnet.models.dit.config import DiTConfig
from cygnet.models.norms import LayerNorm, RMSNorm
from cygnet.ops.rope import RotaryTable, rotate
from cygnet.types import Attention


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """``norm(x) * (1 + scale) + shift`` in float32, back in x's dtype; shift and scale ``[B, 1, D]`` float32."""
    normed = F.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def gated_add(x: torch.Tensor, gate: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """``x + gate * update``, with the product in float32; returned in x's dtype."""
    return torch.addcmul(x.float(), gate, update.float()).to(x.dtype)


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``[B, L, D]`` -> ``[B, N, L, K]``."""
    heads: torch.Tensor = x.unflatten(-1, (num_heads, -1))
    return heads.transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """``[B, N, L, K]`` -> ``[B, L, D]``."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention of the video tokens to one another, with rotary positions."""

    def __init__(self, config: DiTConfig, attention: Attention) -> None:
        super().__init__()
        d = config.dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(d, config.eps), RMSNorm(d, config.eps)
        self.attention = attention

    def forward(self, x: torch.Tensor, rope: RotaryTable) -> torch.Tensor:
        """``[B, L, D]`` -> ``[B, L, D]``."""
        heads = (-1, self.num_heads, x.shape[-1] // self.num_heads)
        q = rotate(self.norm_q(self.q(x)).unflatten(-1, heads[1:]), rope).transpose(1, 2)  # [B, N, L, K]
        k = rotate(self.norm_k(self.k(x)).unflatten(-1, heads[1:]), rope).transpose(1, 2)
        v = split_heads(self.v(x), self.num_heads)
        return self.o(merge_heads(self.attention(q, k, v)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TextKeys:
    """One block's keys and values of the text, ``[B, N, n + 1, K]``: the last row stands for all the padding."""

    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor | None
    """``[1 or B, 1, 1, n + 1]``: log of how many rows each key stands for; None when each stands for itself."""
    image_k: torch.Tensor | None = None
    image_v: torch.Tensor | None = None
    """``[B, N, m, K]`` for the image variants."""

    @classmethod
    def joined(cls, several: Sequence[TextKeys]) -> TextKeys:
        """The keys of several prompts as one batch; shorter ones end in rows that no query looks at.

        The rows are a multiple of 8, so that each prompt's part of the bias begins at a multiple of 16 bytes: cuDNN's
        attention reads it so, and faults where it does not.
        """
        rows = -(-max(each.k.shape[2] for each in several) // 8) * 8

        def one(parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([F.pad(part, (0, 0, 0, rows - part.shape[2])) for part in parts])

        biases = []
        for each in several:
            bias = each.k.new_zeros(1, 1, 1, each.k.shape[2]) if each.bias is None else each.bias
            bias = F.pad(bias, (0, rows - bias.shape[3]), value=-math.inf)
            biases.append(bias.expand(each.k.shape[0], -1, -1, -1))
        images = [(each.image_k, each.image_v) for each in several if each.image_k is not None]
        return cls(
            one([each.k for each in several]),
            one([each.v for each in several]),
            torch.cat(biases),
            torch.cat([k for k, _ in images if k is not None]) if images else None,
            torch.cat([v for _, v in images if v is not None]) if images else None,
        )

    def split(self) -> list[TextKeys]:
        """The keys of each prompt of a batch on their own."""

        def row(value: torch.Tensor | None, number: int) -> torch.Tensor | None:
            return value if value is None or value.shape[0] == 1 else value[number : number + 1]

        return [
            TextKeys(
                self.k[number : number + 1],
                self.v[number : number + 1],
                row(self.bias, number),
                row(self.image_k, number),
                row(self.image_v, number),
            )
            for number in range(self.k.shape[0])
        ]


def padding_bias(rows: int, total: int, like: torch.Tensor) -> torch.Tensor:
    """``[1, 1, 1, rows + 1]``: 0 for each row, ``log(total - rows)`` for the one that stands for the rest.

    Softmax over ``total - rows`` equal keys is softmax over one of them whose score is raised by this logarithm.
    """
    bias = torch.zeros(1, 1, 1, rows + 1, dtype=like.dtype, device=like.device)
    bias[..., -1] = math.log(total - rows)
    return bias


class CrossAttention(nn.Module):
    """Attention of the video tokens to text and, in image variants, separately to the picture."""

    def __init__(self, config: DiTConfig, attention: Attention) -> None:
        super().__init__()
        d = config.dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(d, config.eps), RMSNorm(d, config.eps)
        if config.image_dim is not None:
            self.k_img, self.v_img = nn.Linear(d, d), nn.Linear(d, d)
            self.norm_k_img = RMSNorm(d, config.eps)
        self.attention = attention

    def keys(self, text: torch.Tensor, total: int, image: torch.Tensor | None) -> TextKeys:
        """Keys and values for ``text [B, n (+1), D]`` standing for ``total`` rows and ``image [B, m, D]``.

        They depend on the prompt alone, so they are computed once per prompt, not once per step.
        """
        k = split_heads(self.norm_k(self.k(text)), self.num_heads)
        v = split_heads(self.v(text), self.num_heads)
        bias = None if text.shape[1] == total else padding_bias(text.shape[1] - 1, total, k)
        if image is None:
            return TextKeys(k, v, bias)
        image_k = split_heads(self.norm_k_img(self.k_img(image)), self.num_heads)
        return TextKeys(k, v, bias, image_k, split_heads(self.v_img(image), self.num_heads))

    def forward(self, x: torch.Tensor, keys: TextKeys) -> torch.Tensor:
        """``[B, L, D]`` -> ``[B, L, D]``."""
        q = split_heads(self.norm_q(self.q(x)), self.num_heads)
        out = self.attention(q, keys.k, keys.v, keys.bias)
        if keys.image_k is not None and keys.image_v is not None:
            out = out + self.attention(q, keys.image_k, keys.image_v)
        return self.o(merge_heads(out))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; time modulates the first and the last."""

    def __init__(self, config: DiTConfig, attention: Attention) -> None:
        super().__init__()
        d = config.dim
        self.eps = config.eps
        self.self_attn = SelfAttention(config, attention)
        self.norm3 = LayerNorm(d, config.eps)
        self.cross_attn = CrossAttention(config, attention)
        self.ffn = nn.Sequential(
            nn.Linear(d, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, d)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, d))

    def forward(
        self,
        x: torch.Tensor,
        time_modulation: torch.Tensor,
        rope: RotaryTable,
        keys: TextKeys,
        *,
        one_by_one: bool = False,
    ) -> torch.Tensor:
        """``x [B, L, D]``, ``time_modulation [B, 6, D]`` float32 -> ``[B, L, D]``.

        One video may meet the keys of several prompts: it is looked at once and then read with each. With
        ``one_by_one`` the batch is not worked on at once, which needs the memory of one; the time is then one for all.
        """
        modulation = (self.modulation.float() + time_modulation).chunk(6, dim=1)
        if not one_by_one:
            return self._read(self._look(x, modulation, rope), modulation, keys)
        seen, texts = [self._look(each, modulation, rope) for each in x.split(1)], keys.split()
        count = max(len(seen), len(texts))
        pairs = zip(seen * (count // len(seen)), texts * (count // len(texts)), strict=True)
        return torch.cat([self._read(each, modulation, text) for each, text in pairs])

    def _look(self, x: torch.Tensor, modulation: Sequence[torch.Tensor], rope: RotaryTable) -> torch.Tensor:
        """The half that does not depend on the text."""
        shift, scale, gate = modulation[:3]
        return gated_add(x, gate, self.self_attn(modulate(x, shift, scale, self.eps), rope))

    def _read(self, x: torch.Tensor, modulation: Sequence[torch.Tensor], keys: TextKeys) -> torch.Tensor:
        """The half that does."""
        shift, scale, gate = modulation[3:]
        if x.shape[0] < keys.k.shape[0]:
            x = x.expand(keys.k.shape[0], -1, -1)
        x = x + self.cross_attn(self.norm3(x), keys)
        return gated_add(x, gate, self.ffn(modulate(x, shift, scale, self.eps)))


class Head(nn.Module):
    """Tokens to patches of velocity."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """``x [B, L, D]``, ``time [B, D]`` (the time embedding itself) -> ``[B, L, 4 * out_channels]`` float32."""
        shift, scale = (self.modulation.float() + time[:, None]).chunk(2, dim=1)
        return self.head(modulate(x.float(), shift, scale, self.eps))  # type: ignore[no-any-return]


class ImageEmbedding(nn.Module):
    """CLIP tokens to the transformer's width."""

    def __init__(self, image_dim: int, dim: int, positions: int | None) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LayerNorm(image_dim, 1e-5),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            LayerNorm(dim, 1e-5),
        )
        if positions is not None:
            self.emb_pos = nn.Parameter(torch.zeros(1, positions, image_dim))
        self.positions = positions

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``[B, m, image_dim]`` -> ``[B, m, D]``; with positions, m may be fewer rows than there are positions."""
        if self.positions is not None:
            image = image + self.emb_pos[:, : image.shape[1]].to(image.dtype)
        return self.proj(image)  # type: ignore[no-any-return]


def timestep_embedding(timestep: torch.Tensor, width: int) -> torch.Tensor:
    """``timestep [B]`` in 0..1000 -> ``[B, width]`` float32: cosines, then sines, computed in float64."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angle = timestep.to(torch.float64)[:, None] * frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=1).float()
