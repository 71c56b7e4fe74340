"""Architecture of a UMT5 encoder, and the published one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """Shape of the encoder. Every layer has its own relative-position table; nothing has a bias."""

    vocab_size: int
    dim: int
    attention_dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.attention_dim % self.num_heads:
            raise ValueError(f"attention_dim {self.attention_dim} does not split into {self.num_heads} heads")
        if min(self.vocab_size, self.dim, self.ffn_dim, self.num_layers) < 1:
            raise ValueError("widths, layer count and vocabulary must be positive")
        if self.num_buckets < 4 or self.num_buckets % 4:
            raise ValueError("num_buckets must be a positive multiple of 4")


UMT5_XXL = UMT5Config(vocab_size=256384, dim=4096, attention_dim=4096, ffn_dim=10240, num_heads=64, num_layers=24)
TINY_UMT5 = UMT5Config(vocab_size=768, dim=192, attention_dim=192, ffn_dim=512, num_heads=3, num_layers=4)
"""The embedded model's encoder, with its own vocabulary."""
