"""Architecture of a Wan-VAE, and the published one."""

from __future__ import annotations

from dataclasses import dataclass

# Published per-channel statistics of the raw latents (Wan-Video/Wan2.1: wan/modules/vae.py).
WAN_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Shape of the autoencoder. Level i is ``base_width * width_multipliers[i]`` channels wide."""

    base_width: int
    latent_channels: int = 16
    width_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residual_blocks: int = 2
    """Residual blocks per encoder level; the decoder has one more."""
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    """Whether the step from level i to i+1 also halves the frame rate."""
    latents_mean: tuple[float, ...] = WAN_LATENTS_MEAN
    latents_std: tuple[float, ...] = WAN_LATENTS_STD

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.width_multipliers) - 1:
            raise ValueError("temporal_downsample needs one entry per step between levels")
        if not len(self.latents_mean) == len(self.latents_std) == self.latent_channels:
            raise ValueError("latents_mean and latents_std need one value per latent channel")
        if self.base_width < 1 or min(self.width_multipliers) < 1 or self.residual_blocks < 1:
            raise ValueError("widths and block counts must be positive")

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell along height and width (8 for the published model)."""
        return int(2 ** len(self.temporal_downsample))

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame after the first (4 for the published model)."""
        return int(2 ** sum(self.temporal_downsample))


WAN_VAE = VAEConfig(base_width=96)
TINY_VAE = VAEConfig(base_width=16)
"""The embedded model's autoencoder."""
