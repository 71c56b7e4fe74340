"""Training Wan-VAE: initialisation, inflation from pictures to video, and the loss.

Follows the technical report (arXiv 2503.20314) in order: a picture autoencoder first, then its inflation to video.
The report's perceptual and adversarial terms need networks that cannot be shipped; multi-scale differences stand in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from cygnet.models.vae.layers import Downsample, ResidualBlock, SpatialAttention, Upsample
from cygnet.models.vae.model import WanVAE


@torch.no_grad()
def initialise(vae: WanVAE) -> None:
    """Set up a fresh VAE so that, before any video training, it is a picture autoencoder that repeats frames.

    Temporal resampling starts as the identity (the middle tap when halving, the last tap when doubling) and
    attention starts silent, as in Wan-Video/Wan2.1: wan/modules/vae.py.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, SpatialAttention):
            nn.init.zeros_(module.proj.weight)
        elif isinstance(module, ResidualBlock):
            nn.init.zeros_(module.residual["6"].weight)  # type: ignore[arg-type]
        elif isinstance(module, Downsample) and module.time_conv is not None:
            _identity(module.time_conv, tap=1)
        elif isinstance(module, Upsample) and module.time_conv is not None:
            _identity(module.time_conv, tap=2)
        elif isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3 and module.kernel_size[1] == 3:
            # Only the present frame counts at first; the past is learnt in the video stage.
            module.weight[:, :, :2].zero_()


def _identity(conv: nn.Conv3d, tap: int) -> None:
    conv.weight.zero_()
    assert conv.bias is not None
    conv.bias.zero_()
    width = conv.in_channels
    for start in range(0, conv.out_channels, width):
        conv.weight[start : start + width, :, tap, 0, 0] = torch.eye(width)


@dataclass(frozen=True, kw_only=True)
class VAELoss:
    """Weights of the loss terms. ``kl`` is per latent element, the others per pixel value."""

    l1: float = 1.0
    difference: float = 1.0
    kl: float = 1e-4

    def __call__(self, vae: WanVAE, video: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of ``video [B, 3, T, H, W]`` in [-1, 1], and its parts (plus ``mse``) for the log."""
        mean, log_variance = vae.posterior(video)
        log_variance = log_variance.float().clamp(-30, 20)
        sample = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        out = vae.reconstruct(sample).float()
        l1 = (out - video).abs().mean()
        edges = multiscale_difference(out, video)
        kl = 0.5 * (mean.float().square() + log_variance.exp() - 1 - log_variance).mean()
        total = self.l1 * l1 + self.difference * edges + self.kl * kl
        mse = (out.detach() - video).square().mean()
        return total, {"l1": l1.detach(), "edges": edges.detach(), "kl": kl.detach(), "mse": mse}


def multiscale_difference(out: torch.Tensor, target: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """Mean absolute error of horizontal, vertical and temporal differences, over a pyramid of halved pictures."""
    error = out - target
    total = error.new_zeros(())
    for _ in range(scales):
        total = total + error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
        if error.shape[2] > 1:
            total = total + error.diff(dim=2).abs().mean()
        error = F.avg_pool3d(error, (1, 2, 2))
    return total / scales


@torch.no_grad()
def fold_statistics(vae: WanVAE, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Rewrite the 1x1x1 convolutions so that the published latent statistics hold for this model.

    ``mean`` and ``std`` ``[16]`` are those of its own raw latents. Afterwards ``encode`` gives zero-mean, unit-variance
    latents with the constants in the config, and files need to carry no statistics of their own.
    """
    z = vae.config.latent_channels
    want_mean = torch.tensor(vae.config.latents_mean)
    want_std = torch.tensor(vae.config.latents_std)
    gain = want_std / std
    conv1, conv2 = vae.conv1, vae.conv2
    assert conv1.bias is not None
    assert conv2.bias is not None
    conv1.weight[:z] *= gain.view(-1, 1, 1, 1, 1)
    conv1.bias[:z] = (conv1.bias[:z] - mean) * gain + want_mean
    conv2.bias += (conv2.weight[:, :, 0, 0, 0] * (mean - want_mean / gain)).sum(dim=1)
    conv2.weight /= gain.view(1, -1, 1, 1, 1)
