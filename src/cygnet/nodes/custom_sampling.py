"""Sampling in parts: the levels, the sampler, the noise and the guidance as values of their own.

``SIGMAS`` is a float32 tensor of falling noise levels; ``SAMPLER`` is a name from
:data:`cygnet.solvers.sigma_space.SAMPLERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cygnet.nodes.conditioning import Conditioning
from cygnet.nodes.latents import Latent
from cygnet.nodes.sampling import CFG, SEED, Guider, latents_along
from cygnet.nodes.workshop import ModelHandle, Node
from cygnet.solvers.sigma_space import SAMPLERS, SCHEDULERS, node_sigmas

_OUTPUTS = ("output", "denoised_output")


@dataclass(frozen=True)
class RandomSource:
    """Noise that a seed stands for."""

    seed: int


class KSamplerSelect(Node):
    """A sampler by name."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sampler_name": (list(SAMPLERS),)}}

    def run(self, sampler_name: str) -> tuple[str]:
        return (sampler_name,)


class BasicScheduler(Node):
    """The noise levels of a schedule."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "scheduler": (list(SCHEDULERS),),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def run(self, model: ModelHandle, scheduler: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        return (torch.tensor(node_sigmas(scheduler, steps, model.shift, denoise=denoise)),)


class SplitSigmas(Node):
    """Noise levels in two parts that share the one between them."""

    CATEGORY = "sampling/custom_sampling/sigmas"
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": ("SIGMAS",), "step": ("INT", {"default": 0, "min": 0, "max": 10000})}}

    def run(self, sigmas: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return sigmas[: step + 1], sigmas[step:]


class RandomNoise(Node):
    """The noise of a seed."""

    CATEGORY = "sampling/custom_sampling/noise"
    RETURN_TYPES = ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"noise_seed": ("INT", SEED)}}

    def run(self, noise_seed: int) -> tuple[RandomSource]:
        return (RandomSource(noise_seed),)


class BasicGuider(Node):
    """A model steered by one conditioning."""

    CATEGORY = "sampling/custom_sampling/guiders"
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "conditioning": ("CONDITIONING",)}}

    def run(self, model: ModelHandle, conditioning: Conditioning) -> tuple[Guider]:
        return (Guider(model, conditioning, conditioning, 1.0),)


class CFGGuider(Node):
    """A model steered towards one conditioning and away from another."""

    CATEGORY = "sampling/custom_sampling/guiders"
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "cfg": CFG,
            }
        }

    def run(self, model: ModelHandle, positive: Conditioning, negative: Conditioning, cfg: float) -> tuple[Guider]:
        return (Guider(model, positive, negative, cfg),)


class SamplerCustom(Node):
    """From noise to latents with a sampler and levels of one's own; also the estimate of the last step."""

    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES, RETURN_NAMES = ("LATENT", "LATENT"), _OUTPUTS

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": ("BOOLEAN", {"default": True}),
                "noise_seed": ("INT", SEED),
                "cfg": CFG,
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "sampler": ("SAMPLER",),
                "sigmas": ("SIGMAS",),
                "latent_image": ("LATENT",),
            }
        }

    def run(
        self,
        model: ModelHandle,
        add_noise: bool,
        noise_seed: int,
        cfg: float,
        positive: Conditioning,
        negative: Conditioning,
        sampler: str,
        sigmas: torch.Tensor,
        latent_image: Latent,
    ) -> tuple[Latent, Latent]:
        guider = Guider(model, positive, negative, cfg)
        return latents_along(self.shop, guider, sampler, sigmas.tolist(), latent_image, noise_seed, add_noise=add_noise)


class SamplerCustomAdvanced(Node):
    """The same from noise and guidance that other nodes made."""

    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES, RETURN_NAMES = ("LATENT", "LATENT"), _OUTPUTS

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "noise": ("NOISE",),
                "guider": ("GUIDER",),
                "sampler": ("SAMPLER",),
                "sigmas": ("SIGMAS",),
                "latent_image": ("LATENT",),
            }
        }

    def run(
        self, noise: RandomSource, guider: Guider, sampler: str, sigmas: torch.Tensor, latent_image: Latent
    ) -> tuple[Latent, Latent]:
        return latents_along(self.shop, guider, sampler, sigmas.tolist(), latent_image, noise.seed)
