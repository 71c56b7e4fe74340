"""``comfy.samplers`` and its like: names of samplers, which cygnet has, and ComfyUI's own model code, which it has not.

Packs import that code at their top for one or two of their nodes. Those nodes fail, and say why; the others run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cygnet.nodes.stand_ins.absent import absent
from cygnet.solvers.sigma_space import SAMPLERS, SCHEDULERS

_WHY = "MODEL, CLIP and VAE are cygnet's own networks, which its own nodes load and run"
_LACKING = {
    "comfy.sd": (
        "VAE CLIP load_checkpoint_guess_config load_diffusion_model load_diffusion_model_state_dict load_clip "
        "load_lora_for_models load_unet load_text_encoder_state_dicts load_checkpoint CLIPType "
        "StyleModel load_style_model"
    ),
    "comfy.sample": "sample sample_custom prepare_noise fix_empty_latent_channels prepare_mask",
    "comfy.samplers": (
        "CFGGuider Sampler KSAMPLER ksampler sampler_object calculate_sigmas sample sampling_function calc_cond_batch "
        "process_conds cast_to_load_options"
    ),
    "comfy.model_patcher": "ModelPatcher CoreModelPatcher create_model_options_clone set_model_options_patch_replace",
    "comfy.model_sampling": "EPS V_PREDICTION CONST ModelSamplingDiscrete ModelSamplingDiscreteFlow ModelSamplingFlux",
    "comfy.controlnet": "ControlBase ControlNet load_controlnet",
    "comfy.clip_vision": "ClipVisionModel Output load clip_preprocess",
    "comfy.latent_formats": "LatentFormat SD15 SDXL SD3 Flux Wan21 Wan22 HunyuanVideo",
    "comfy.lora": "load_lora model_lora_keys_unet model_lora_keys_clip",
    "comfy.model_base": "BaseModel ModelType WAN21 SDXL Flux",
    "comfy.ops": "disable_weight_init manual_cast cast_bias_weight",
    "latent_preview": "prepare_callback get_previewer LatentPreviewer Latent2RGBPreviewer TAESDPreviewerImpl",
}


def modules() -> dict[str, Mapping[str, Any]]:
    """The modules by name."""
    found: dict[str, Mapping[str, Any]] = {name: absent(name, lacking, _WHY) for name, lacking in _LACKING.items()}
    # The names that combos offer, and that our sampler nodes take.
    samplers, schedulers = list(SAMPLERS), list(SCHEDULERS)
    choices = {"SAMPLER_NAMES": samplers, "KSAMPLER_NAMES": samplers, "SCHEDULER_NAMES": schedulers}
    sampler = absent("comfy.samplers", "KSampler", _WHY, SAMPLERS=samplers, SCHEDULERS=schedulers)
    return {**found, "comfy.samplers": {**found["comfy.samplers"], **choices, **sampler}}
