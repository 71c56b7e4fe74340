"""Architecture of the diffusion transformer, and the published variants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Variant = Literal["t2v", "i2v", "flf2v", "vace", "control", "camera"]
"""What a model is made for: text; a first picture; a first and a last one; a control branch; the Fun models that follow
a control video or a camera path."""

HEAD_WIDTH = 128
"""Every published Wan DiT has heads of this width, so head count follows from ``dim``."""
CAMERA_SCALE = 8
"""Pixels per latent cell and side: camera rays come at the resolution of the video."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Shape of a Wan diffusion transformer; no device, path or speed option."""

    variant: Variant
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_channels: int
    """Latent channels, plus those of the condition that is laid beside them: 20 (4 mask + 16 latent) for
    image-to-video, 32 (control video + start picture) for ``control``, 16 (start picture) for ``camera``."""
    out_channels: int = 16
    text_dim: int = 4096
    text_length: int = 512
    """Rows that cross-attention sees; shorter prompts are padded with zero rows, which count."""
    freq_dim: int = 256
    """Width of the sinusoidal timestep embedding."""
    image_dim: int | None = None
    """Width of the CLIP tokens; None for text-to-video and VACE."""
    image_positions: int | None = None
    """Rows of the learned positions added to the CLIP tokens (514 in FLF2V); None elsewhere."""
    vace_layers: tuple[int, ...] = ()
    """Blocks after which the control branch adds its hints, one control block for each; VACE only."""
    vace_channels: int = 96
    """Channels of a VACE control; without meaning elsewhere."""
    camera_channels: int | None = None
    """Channels of the camera rays (24); None but for ``camera``."""
    reference: bool = False
    """Whether a reference picture may stand before the video as a frame of its own (Fun V1.1)."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim {self.dim} does not split into {self.num_heads} heads of even width")
        if (self.variant in ("t2v", "vace")) != (self.image_dim is None):
            raise ValueError("image_dim is given for image variants, and only for them")
        if (self.variant == "vace") != bool(self.vace_layers):
            raise ValueError("vace_layers is given for vace, and only for it")
        if list(self.vace_layers) != sorted(set(self.vace_layers) & set(range(self.num_layers))):
            raise ValueError(f"vace_layers must be rising numbers of blocks, below {self.num_layers}")
        if (self.variant == "camera") != (self.camera_channels is not None):
            raise ValueError("camera_channels is given for camera, and only for it")
        if self.reference and self.variant not in ("control", "camera"):
            raise ValueError("reference is for the Fun models")
        if (self.variant == "flf2v") != (self.image_positions is not None):
            raise ValueError("image_positions is given for flf2v, and only for it")
        if min(self.dim, self.ffn_dim, self.num_layers, self.in_channels, self.out_channels, self.text_dim) < 1:
            raise ValueError("widths and layer counts must be positive")
        if self.freq_dim % 2 or self.freq_dim < 2:
            raise ValueError("freq_dim must be even")

    @property
    def condition_channels(self) -> int:
        """Channels that the condition adds to the noisy latents."""
        return self.in_channels - self.out_channels


T2V_1_3B = DiTConfig(variant="t2v", dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_channels=16)
T2V_14B = DiTConfig(variant="t2v", dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_channels=16)
I2V_14B = replace(T2V_14B, variant="i2v", in_channels=36, image_dim=1280)
"""480P and 720P share this architecture; their weights differ."""
FLF2V_14B = replace(I2V_14B, variant="flf2v", image_positions=514)

VACE_1_3B = replace(T2V_1_3B, variant="vace", vace_layers=tuple(range(0, 30, 2)))
VACE_14B = replace(T2V_14B, variant="vace", vace_layers=tuple(range(0, 40, 5)))
FUN_INP_1_3B = replace(T2V_1_3B, variant="i2v", in_channels=36, image_dim=1280)
"""The 14B model of this name has the architecture of :data:`I2V_14B`."""
FUN_CONTROL_1_3B = replace(FUN_INP_1_3B, variant="control", in_channels=48)
FUN_CONTROL_14B = replace(I2V_14B, variant="control", in_channels=48)
FUN_CAMERA_1_3B = replace(FUN_INP_1_3B, variant="camera", in_channels=32, camera_channels=24)
FUN_CAMERA_14B = replace(I2V_14B, variant="camera", in_channels=32, camera_channels=24)

TINY_T2V = DiTConfig(variant="t2v", dim=256, ffn_dim=1024, num_heads=2, num_layers=8, in_channels=16, text_dim=192)
"""The embedded model; same structure as the published ones, trained by ``recipes/tiny``."""
TINY_I2V = replace(TINY_T2V, variant="i2v", in_channels=36, image_dim=160)
