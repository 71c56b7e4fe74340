"""The sampler nodes."""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from cygnet.assembly import make_step_cache
from cygnet.errors import RequestError
from cygnet.graph.context import current
from cygnet.models.dit.control import VaceContext
from cygnet.models.dit.model import DiT
from cygnet.models.vae.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD
from cygnet.nodes.conditioning import Conditioning
from cygnet.nodes.grids import steering_of_whole_patches, whole_patches
from cygnet.nodes.latents import Latent
from cygnet.nodes.previews import Show, previews
from cygnet.nodes.workshop import ModelHandle, Node, Workshop
from cygnet.pipelines.conditioning import Conditioning as Steering
from cygnet.pipelines.denoise import GuidedVelocity, SkippedLayers
from cygnet.solvers import shift_sigma
from cygnet.solvers.sigma_space import SAMPLERS, SCHEDULERS, Walk, node_sigmas, without_repeats

log = logging.getLogger(__name__)

SEED = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}
CFG = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01})


@dataclass(frozen=True)
class Guider:
    """A model and what steers it; at a scale of 1 the negative conditioning is not asked."""

    model: ModelHandle
    positive: Conditioning
    negative: Conditioning
    scale: float


class ModelSamplingSD3(Node):
    """Another shift of the noise levels."""

    CATEGORY = "advanced/model"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "shift": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.01}),
            }
        }

    def run(self, model: ModelHandle, shift: float) -> tuple[ModelHandle]:
        if shift <= 0:
            raise RequestError(f"shift is {shift:g}; it must be above 0, and 1 changes nothing", field="shift")
        return (model.with_shift(shift),)


class ModelSamplingAuraFlow(ModelSamplingSD3):
    """The same under another name and with another default."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = super().INPUT_TYPES()["required"]
        kind, options = declared["shift"]
        return {"required": {**declared, "shift": (kind, {**options, "default": 1.73})}}


class CFGZeroStar(Node):
    """Guidance whose negative answer is first scaled to fit."""

    CATEGORY = "advanced/guidance"
    RETURN_TYPES, RETURN_NAMES = ("MODEL",), ("patched_model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: ModelHandle) -> tuple[ModelHandle]:
        return (replace(model, zero_star=True),)


class SkipLayerGuidanceDiT(Node):
    """Guidance away from what the model gives without some of its blocks."""

    CATEGORY = "advanced/guidance"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        layers = ("STRING", {"default": "7, 8, 9", "multiline": False})
        share = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {
            "required": {
                "model": ("MODEL",),
                "double_layers": layers,
                "single_layers": layers,
                "scale": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 10.0, "step": 0.1}),
                "start_percent": ("FLOAT", {"default": 0.01, **share}),
                "end_percent": ("FLOAT", {"default": 0.15, **share}),
                "rescaling_scale": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 10.0, "step": 0.01}),
            }
        }

    def run(
        self,
        model: ModelHandle,
        double_layers: str,
        single_layers: str,  # of models that have two kinds of blocks; Wan has one
        scale: float,
        start_percent: float,
        end_percent: float,
        rescaling_scale: float = 0.0,
    ) -> tuple[ModelHandle]:
        blocks = frozenset(int(number) for number in re.findall(r"\d{1,4}", double_layers))
        if not blocks or scale == 0:
            return (model,)
        start, end = (sigma_after(share, model.shift) for share in (start_percent, end_percent))
        return (
            replace(
                model, skip=SkippedLayers(blocks=blocks, scale=scale, start=start, end=end, rescale=rescaling_scale)
            ),
        )


def sigma_after(share: float, shift: float) -> float:
    """The noise level when this share of the sampling, counted before the shift, is done."""
    return 1.0 if share <= 0 else 0.0 if share >= 1 else float(shift_sigma(1 - share, shift))


class UNetTemporalAttentionMultiply(Node):
    """Weights of attention layers that Wan does not have: nothing changes."""

    CATEGORY = "_for_testing/attention_experiments"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        weight = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01})
        names = ("self_structural", "self_temporal", "cross_structural", "cross_temporal")
        return {"required": {"model": ("MODEL",), **dict.fromkeys(names, weight)}}

    def run(self, model: ModelHandle, **weights: float) -> tuple[ModelHandle]:
        return (model,)


class KSampler(Node):
    """From noise to latents, steered by two conditionings."""

    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "seed": ("INT", SEED),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": CFG,
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULERS),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def run(
        self,
        model: ModelHandle,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        sigmas = node_sigmas(scheduler, steps, model.shift, sampler=sampler_name, denoise=denoise)
        guider = Guider(model, positive, negative, cfg)
        return latents_along(self.shop, guider, sampler_name, sigmas, latent_image, seed)[:1]


class KSamplerAdvanced(Node):
    """The same for a part of the steps, so that several nodes can share them."""

    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        step = {"min": 0, "max": 10000}
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": (["enable", "disable"],),
                "noise_seed": ("INT", SEED),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": CFG,
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULERS),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "start_at_step": ("INT", {"default": 0, **step}),
                "end_at_step": ("INT", {"default": 10000, **step}),
                "return_with_leftover_noise": (["disable", "enable"],),
            }
        }

    def run(
        self,
        model: ModelHandle,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
    ) -> tuple[Latent]:
        sigmas = node_sigmas(scheduler, steps, model.shift, sampler=sampler_name)[: end_at_step + 1]
        if return_with_leftover_noise == "disable":
            sigmas[-1] = 0.0
        guider = Guider(model, positive, negative, cfg)
        noisy = add_noise == "enable"
        part = sigmas[start_at_step:]
        return latents_along(self.shop, guider, sampler_name, part, latent_image, noise_seed, add_noise=noisy)[:1]


def latents_along(
    shop: Workshop,
    guider: Guider,
    sampler: str,
    sigmas: list[float],
    latent_image: Latent,
    seed: int,
    *,
    add_noise: bool = True,
) -> tuple[Latent, Latent]:
    """Latents walked along ``sigmas``, and the estimate of clean data in the last step.

    Without at least two levels there is no step to make, and the latents come back as they are. Latents that keep some
    noise are handed on as the noiseless part scaled up, which is how the next sampler takes them.
    """
    sigmas = without_repeats(sigmas)
    if len(sigmas) < 2:
        return latent_image, latent_image
    dit = shop.dit(guider.model)
    start = latent_image["samples"].float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(start.shape, generator=generator) if add_noise else torch.zeros_like(start)
    known = normalised(start) if bool(start.any()) else start
    show = previews(shop, dit.config)
    walked, estimates = [], []
    wish, pixels = guider.model.caching, start.shape[3] * start.shape[4] * 64
    for i in range(len(start)):
        cache = None if wish is None else make_step_cache(dit.config, wish, num_steps=len(sigmas) - 1, pixels=pixels)
        velocity = GuidedVelocity(
            dit,
            steering_of_whole_patches(
                steering(dit, guider.positive, guider.negative, start[i : i + 1]), start, dit.config.patch_size
            ),
            len(sigmas) - 1,
            guider.model.guidance(guider.scale),
            current().cancel,
            cache,
        )
        x = sigmas[0] * noise[i : i + 1] + (1 - sigmas[0]) * known[i : i + 1]
        x, estimate = sampled(sampler, velocity, x.to(dit.device), sigmas, generator, show)
        walked.append(x / (1 - sigmas[-1]))
        estimates.append(estimate)
        if cache is not None:
            log.info("%d of %d evaluations were answered from earlier ones", cache.skipped, cache.evaluations)
    finished, guessed = (denormalised(torch.cat(rows).cpu()) for rows in (walked, estimates))
    return {**latent_image, "samples": finished}, {**latent_image, "samples": guessed}


SHOW_EVERY = 0.1
"""Seconds from one preview to the next at least: more than ten a second cost a small model time and show no more. The
first and the last step are always shown."""


@torch.no_grad()
def sampled(
    name: str, velocity: GuidedVelocity, x: torch.Tensor, sigmas: list[float], generator: torch.Generator, show: Show
) -> tuple[torch.Tensor, torch.Tensor]:
    """Walk ``sigmas`` with the sampler of that name, and the estimate of the last step.

    Tells progress and shows what is coming.
    """
    latest, shown = x, -math.inf

    def estimate(x: torch.Tensor, sigma: float) -> torch.Tensor:
        timestep = torch.tensor(1000 * sigma, dtype=torch.float32, device=x.device)
        answer = velocity(whole_patches(x, velocity.dit.config.patch_size), timestep)
        return x - sigma * answer[..., : x.shape[-3], : x.shape[-2], : x.shape[-1]]

    def on_step(step: int, x: torch.Tensor, x_0: torch.Tensor) -> None:
        nonlocal latest, shown
        latest = x_0
        velocity.step = step + 1
        current().progress(step + 1, len(sigmas) - 1)
        due = step + 2 == len(sigmas) or time.monotonic() - shown >= SHOW_EVERY
        if due and (picture := show(x_0)) is not None:
            current().preview(picture, "image/jpeg")
            shown = time.monotonic()

    def fresh(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    walked = SAMPLERS[name](Walk(denoise=estimate, noise=fresh, on_step=on_step), x, sigmas)
    return walked, latest


def steering(dit: DiT, positive: Conditioning, negative: Conditioning, latent: torch.Tensor) -> Steering:
    """What the network needs of two conditionings for ``latent [1, 16, t, h, w]``."""
    context, extras = only(positive, "positive")
    opposite, _ = only(negative, "negative")
    if dit.config.image_dim is None:
        return Steering(context=context, negative_context=opposite, vace=vace_controls(dit, extras))
    seen = extras.get("clip_vision_output")
    if seen is None and dit.config.variant in ("i2v", "flf2v"):
        raise RequestError(
            f"this is a {dit.config.variant} model, which looks at a picture: connect CLIPVisionEncode to the node "
            "that makes its conditioning",
            field="positive",
        )
    return Steering(
        context=context,
        negative_context=opposite,
        image_context=seen,
        image_condition=given_frames(extras, dit.config.condition_channels, latent),
        camera=extras.get("camera_conditions") if dit.config.camera_channels else None,
    )


def only(conditioning: Conditioning, name: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """The single entry of a conditioning."""
    if len(conditioning) != 1:
        raise RequestError(
            f"{name} holds {len(conditioning)} conditionings; Wan takes one: join the prompts in one text", field=name
        )
    tensor, extras = conditioning[0]
    return tensor, extras


def given_frames(extras: dict[str, Any], channels: int, latent: torch.Tensor) -> torch.Tensor:
    """What is laid beside ``latent [1, 16, t, h, w]``: mask (1 where given), if there are channels for it, and
    normalised latents; zeros where no node gave any.
    """
    image = extras.get("concat_latent_image")
    if image is None:
        return latent.new_zeros(1, channels, *latent.shape[2:])
    if image.shape[2:] != latent.shape[2:]:
        raise RequestError(
            f"the conditioning is for latents of {list(image.shape[2:])}, but latent_image has "
            f"{list(latent.shape[2:])}: take both from the same node",
            field="latent_image",
        )
    if image.shape[1] == channels:
        return normalised(image.float())
    if image.shape[1] != 16 or "concat_mask" not in extras:
        raise RequestError(
            f"the conditioning has {image.shape[1]} channels and this model takes {channels}: use the node that is "
            "made for it",
            field="positive",
        )
    mask = 1 - extras["concat_mask"].float()
    rows = mask.expand(1, channels - 16, *image.shape[2:]) if mask.shape[1] == 1 else mask
    return torch.cat((rows, normalised(image.float())), dim=1)


def vace_controls(dit: DiT, extras: dict[str, Any]) -> tuple[VaceContext, ...]:
    """The controls that VACE nodes attached; other models have no use for them."""
    if not dit.config.vace_layers:
        return ()
    parts = zip(*(extras.get(name, []) for name in ("vace_frames", "vace_mask", "vace_strength")), strict=True)
    return tuple(
        VaceContext(torch.cat((normalised(frames.float()), mask.float()), dim=1), strength)
        for frames, mask, strength in parts
    )


def _moments() -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = torch.tensor(WAN_LATENTS_MEAN), torch.tensor(WAN_LATENTS_STD)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def normalised(raw: torch.Tensor) -> torch.Tensor:
    """Raw latents ``[B, 16 (times a number), t, h, w]`` as the transformer knows them."""
    mean, std = _moments()
    groups: torch.Tensor = raw.unflatten(1, (-1, mean.shape[1]))  # several latents may lie side by side
    return ((groups - mean[:, None]) / std[:, None]).flatten(1, 2)


def denormalised(latents: torch.Tensor) -> torch.Tensor:
    """Undo :func:`normalised`."""
    mean, std = _moments()
    return latents * std + mean
