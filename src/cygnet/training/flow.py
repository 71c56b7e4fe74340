"""Flow matching for the diffusion transformer: which timesteps, and which loss.

The path is ``x = (1 - sigma) * data + sigma * noise`` and the target ``noise - data`` (technical report, arXiv
2503.20314, section on training; its timestep density is logit-normal).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cygnet.models.dit.model import DiT, PreparedContext
from cygnet.solvers import add_noise, shift_sigma, velocity_target


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """Objective: logit-normal levels moved towards noise by ``shift``, mean squared error on velocity.

    With many redundant latents, what a video shows and how it moves is decided at high noise; ``shift`` above 1 spends
    more of the training there, and sampling should use a similar value.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 3.0

    def levels(self, count: int) -> torch.Tensor:
        """``[count]`` noise levels in (0, 1), spread evenly over the distribution's quantiles to calm the gradient."""
        u = (torch.randperm(count) + torch.rand(count)) / count
        return shift_sigma(
            torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))), self.shift
        )

    def __call__(
        self,
        dit: DiT,
        latents: torch.Tensor,
        context: torch.Tensor | PreparedContext,
        image_context: torch.Tensor | None = None,
        image_condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of normalised ``latents [B, 16, t, h, w]``; the other arguments as for :class:`DiT`."""
        sigma = self.levels(latents.shape[0]).to(latents.device)
        noise = torch.randn_like(latents)
        noisy = add_noise(latents, noise, sigma)
        velocity: torch.Tensor = dit(noisy, 1000 * sigma, context, image_context, image_condition)
        return (velocity - velocity_target(latents, noise)).square().mean()
