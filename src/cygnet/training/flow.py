"""Flow matching for the diffusion transformer: which timesteps, and which loss.

The path is ``x = (1 - sigma) * data + sigma * noise`` and the target ``noise - data`` (technical report, arXiv
2503.20314, section on training; its timestep density is logit-normal).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cygnet.models.dit.model import DiT, PreparedContext
from cygnet.solvers import add_noise, shift_sigma, velocity_target


@dataclass(frozen=True)
class Batch:
    """One step's data; shapes as for :class:`~cygnet.models.dit.model.DiT`."""

    latents: torch.Tensor
    context: torch.Tensor
    image_context: torch.Tensor | None = None
    image_condition: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        rows = (self.latents, self.context, self.image_context, self.image_condition)
        return Batch(*(None if row is None else row.to(device) for row in rows))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Draw:
    """What chance decides for the clips of a batch: noise levels ``[B]`` and noise like the latents."""

    sigma: torch.Tensor
    noise: torch.Tensor

    def to(self, device: torch.device) -> Draw:
        """The same on another device."""
        return Draw(self.sigma.to(device), self.noise.to(device))


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
        return self._at((torch.randperm(count) + torch.rand(count)) / count)

    def draw(self, seed: int, step: int, count: int, chosen: Sequence[int], shape: Sequence[int]) -> Draw:
        """Levels and noise of the clips ``chosen`` of a step's ``count`` clips, each with latents of ``shape``.

        They depend on the seed, the step and the clip's place alone, not on how a step is cut into parts or shared
        among processes.
        """
        rng = np.random.default_rng([seed, step, 0])
        u = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count)
        levels = self._at(u)[torch.tensor(list(chosen))].float()
        return Draw(levels, torch.stack([_noise((seed, step, 1 + place), shape) for place in chosen]))

    def levels_at(self, count: int) -> torch.Tensor:
        """``count`` levels at the middle of equal shares of the distribution, for measuring."""
        return self._at((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()

    def _at(self, u: torch.Tensor) -> torch.Tensor:
        quantile = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))
        return shift_sigma(torch.sigmoid(self.mean + self.std * quantile), self.shift)

    def __call__(
        self,
        dit: DiT,
        latents: torch.Tensor,
        context: torch.Tensor | PreparedContext,
        image_context: torch.Tensor | None = None,
        image_condition: torch.Tensor | None = None,
        draw: Draw | None = None,
    ) -> torch.Tensor:
        """Loss of normalised ``latents [B, 16, t, h, w]``; the other arguments as for :class:`DiT`.

        Without ``draw``, torch's own generator decides levels and noise.
        """
        if draw is None:
            sigma, noise = self.levels(latents.shape[0]).to(latents.device), torch.randn_like(latents)
        else:
            sigma, noise = draw.sigma.to(latents.device), draw.noise.to(latents)
        noisy = add_noise(latents, noise, sigma)
        velocity: torch.Tensor = dit(noisy, 1000 * sigma, context, image_context, image_condition)
        return (velocity - velocity_target(latents, noise)).square().mean()


def _noise(words: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers that depend on ``words`` alone, on every machine."""
    seed = int(np.random.SeedSequence(list(words)).generate_state(1, np.uint64)[0]) >> 1
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
