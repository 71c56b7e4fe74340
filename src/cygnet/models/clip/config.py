"""Architecture of a CLIP visual tower, and the published one."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_WIDTH = 80
"""Head width of ViT-H/14; head count follows from ``dim``."""


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Shape of the tower. Only the first ``num_layers - 1`` blocks run: Wan uses the penultimate tokens."""

    image_size: int
    patch_size: int
    dim: int
    mlp_dim: int
    num_heads: int
    num_layers: int
    output_dim: int | None = 1024
    """Width of the unused projection ``head``, kept so that files round-trip; None when a file has none."""
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} does not split into {self.num_heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.num_layers < 2:
            raise ValueError("num_layers must be at least 2: the penultimate tokens are the output")

    @property
    def num_tokens(self) -> int:
        """Patches plus the class token (257 for 224/14)."""
        return (self.image_size // self.patch_size) ** 2 + 1


CLIP_VIT_H = CLIPVisionConfig(image_size=224, patch_size=14, dim=1280, mlp_dim=5120, num_heads=16, num_layers=32)
TINY_CLIP = CLIPVisionConfig(
    image_size=224, patch_size=14, dim=160, mlp_dim=640, num_heads=2, num_layers=5, output_dim=None
)
"""The embedded model's tower."""
