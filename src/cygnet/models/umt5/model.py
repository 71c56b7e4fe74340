"""UMT5 encoder: token ids to text features, with relative positions learned anew in every layer.

Shapes: ``B`` batch, ``L`` tokens, ``D`` model width, ``A`` attention width = ``N`` heads of ``K``.
Source: Wan-Video/Wan2.1 revision 9737cba, ``wan/modules/t5.py``; parameter names are the published ones. Fresh weights
are scaled so that scores, which nothing divides by sqrt(K), start near unit variance.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from cygnet.errors import RequestError
from cygnet.models.norms import RMSNorm
from cygnet.models.umt5.config import UMT5Config
from cygnet.ops.attention import sdpa
from cygnet.types import Attention


class RelativePosition(nn.Module):
    """One learned number per head for each range of distances between query and key."""

    def __init__(self, num_buckets: int, num_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_buckets, num_heads)
        nn.init.normal_(self.embedding.weight, std=(2 * num_buckets * num_heads) ** -0.5)

    def forward(self, buckets: torch.Tensor) -> torch.Tensor:
        """``buckets`` int64 ``[Lq, Lk]`` -> ``[1, N, Lq, Lk]``."""
        bias: torch.Tensor = self.embedding(buckets)
        return bias.permute(2, 0, 1).unsqueeze(0)


class SelfAttention(nn.Module):
    """Attention whose scores are not scaled by the head width."""

    def __init__(self, config: UMT5Config, attention: Attention) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention = attention
        head_width = config.attention_dim // config.num_heads
        self.q = _linear(config.dim, config.attention_dim, std=(config.dim * head_width) ** -0.5)
        self.k = _linear(config.dim, config.attention_dim, std=config.dim**-0.5)
        self.v = _linear(config.dim, config.attention_dim, std=config.dim**-0.5)
        self.o = _linear(config.attention_dim, config.dim, std=config.attention_dim**-0.5)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """``x [B, L, D]``; ``bias [1 or B, N, L, L]`` is added to the scores."""
        q, k, v = (  # [B, N, L, K]
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        mixed = self.attention(q, k, v, bias=bias.to(q.dtype), scale=1.0).transpose(1, 2).flatten(2)  # [B, L, A]
        out: torch.Tensor = self.o(mixed)  # [B, L, D]
        return out


class FeedForward(nn.Module):
    """``fc2(fc1(x) gelu(gate(x)))`` with the tanh form of GELU."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        # The published checkpoints keep the gate in a sequence with its activation, hence ``gate.0.weight``.
        self.gate = nn.Sequential(_linear(dim, ffn_dim, std=dim**-0.5), nn.GELU(approximate="tanh"))
        self.fc1 = _linear(dim, ffn_dim, std=dim**-0.5)
        self.fc2 = _linear(ffn_dim, dim, std=ffn_dim**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, L, D]`` -> the same."""
        out: torch.Tensor = self.fc2(self.fc1(x) * self.gate(x))
        return out


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, config: UMT5Config, attention: Attention) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.dim, config.eps)
        self.attn = SelfAttention(config, attention)
        self.norm2 = RMSNorm(config.dim, config.eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)
        self.pos_embedding = RelativePosition(config.num_buckets, config.num_heads)

    def forward(self, x: torch.Tensor, buckets: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x [B, L, D]``, ``buckets [L, L]``, ``mask`` bool ``[B, 1, 1, L]`` (True = real token) or None."""
        bias = self.pos_embedding(buckets)  # [1, N, L, L]
        if mask is not None:
            # The most negative finite value, not -inf: a row without any real token must not become NaN.
            bias = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)  # [B, N, L, L]
        x = _within_half(x + self.attn(self.norm1(x), bias))
        return _within_half(x + self.ffn(self.norm2(x)))


class UMT5Encoder(nn.Module):
    """The encoder alone; text becomes ids in :mod:`cygnet.models.umt5.tokenizer`."""

    fp32_parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: UMT5Config, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList([Block(config, attention) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.dim, config.eps)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Features of each token, in the dtype of the weights.

        ids int64 ``[B, L]`` in ``0 .. vocab_size - 1``; mask ``[B, L]``, nonzero for real tokens, None for all real.
        Returns ``[B, L, D]``. Rows of padding hold values of no meaning; use only those of real tokens. Raises
        :class:`~cygnet.errors.RequestError` when the shapes are wrong, or an id is not in the vocabulary.
        """
        if ids.ndim != 2 or (mask is not None and mask.shape != ids.shape):
            given = "no mask" if mask is None else f"a mask {tuple(mask.shape)}"
            raise RequestError(f"ids has shape {tuple(ids.shape)} with {given}; both must be [batch, tokens]")
        size = self.config.vocab_size
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise RequestError(f"ids go from {int(ids.min())} to {int(ids.max())}; they must be from 0 to {size - 1}")
        buckets = relative_buckets(ids.shape[1], self.config.num_buckets, self.config.max_distance).to(ids.device)
        real = None if mask is None else mask.ne(0)[:, None, None, :]
        x = self.token_embedding(ids)  # [B, L, D]
        for block in self.blocks:
            x = block(x, buckets, real)
        out: torch.Tensor = self.norm(x)
        return out


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Bucket of every (query, key) pair of a sequence: int64 ``[length, length]``.

    Half of the buckets are for keys after the query. Of each half, the first half hold one distance each and the rest
    widen logarithmically up to ``max_distance``; everything farther shares the last.
    """
    half = num_buckets // 2
    of_distance = torch.tensor(_distance_buckets(length, half, max_distance), dtype=torch.int64)
    position = torch.arange(length)
    offset = position[None, :] - position[:, None]  # key minus query
    return of_distance[offset.abs()] + half * (offset > 0)


def _linear(in_features: int, out_features: int, std: float) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


def _distance_buckets(length: int, num_buckets: int, max_distance: int) -> list[int]:
    exact = num_buckets // 2
    wide = num_buckets - exact
    buckets: list[int] = []
    for distance in range(length):
        bucket = distance if distance < exact else max(buckets[-1], exact)
        # floor(wide ln(d / exact) / ln(max / exact)) in whole numbers: some distances lie exactly on an edge.
        while exact <= bucket < num_buckets - 1:
            step = bucket + 1 - exact
            if distance**wide * exact**step < max_distance**step * exact**wide:
                break
            bucket += 1
        buckets.append(bucket)
    return buckets


def _within_half(x: torch.Tensor) -> torch.Tensor:
    # The published weights overflow float16 in the residual stream; the reference clips there, and only there.
    if x.dtype != torch.float16:
        return x
    limit = torch.finfo(torch.float16).max - 1000
    return x.clamp(-limit, limit)
