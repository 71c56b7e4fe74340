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
        "load_lora_for_models load_unet load_text_encoder_state_dicts load_checkpoint CLIPType StyleModel "
        "load_style_model"
    ),
    "comfy.sample": "sample sample_custom prepare_noise fix_empty_latent_channels prepare_mask",
    "comfy.samplers": (
        "CFGGuider Sampler KSAMPLER ksampler sampler_object calculate_sigmas sample sampling_function "
        "calc_cond_batch process_conds cast_to_load_options"
    ),
    "comfy.model_patcher": "ModelPatcher CoreModelPatcher create_model_options_clone set_model_options_patch_replace",
    "comfy.model_sampling": "EPS V_PREDICTION CONST ModelSamplingDiscrete ModelSamplingDiscreteFlow ModelSamplingFlux",
    "comfy.controlnet": "ControlBase ControlNet load_controlnet",
    "comfy.clip_vision": "ClipVisionModel Output load clip_preprocess",
    "comfy.latent_formats": "LatentFormat SD15 SDXL SD3 Flux Wan21 Wan22 HunyuanVideo",
    "comfy.lora": "load_lora model_lora_keys_unet model_lora_keys_clip",
    "comfy.model_base": "BaseModel ModelType WAN21 SDXL Flux",
    "comfy.lora_convert": "convert_lora",
    "comfy.patcher_extension": (
        "CallbacksMP WrappersMP PatcherInjection WrapperExecutor add_wrapper add_wrapper_with_key add_callback "
        "add_callback_with_key get_all_wrappers get_all_callbacks"
    ),
    "comfy.hooks": "Hook HookGroup HookKeyframeGroup EnumHookMode EnumHookScope",
    "comfy.conds": "CONDRegular CONDNoiseShape CONDCrossAttn CONDConstant CONDList",
    "comfy.float": "stochastic_rounding",
    "comfy.sampler_helpers": "prepare_mask prepare_sampling get_additional_models convert_cond cleanup_models",
    "comfy.k_diffusion.sampling": "to_d BrownianTreeNoiseSampler default_noise_sampler get_ancestral_step",
    "comfy.k_diffusion.utils": "append_dims",
    "comfy.ldm.modules.attention": (
        "optimized_attention optimized_attention_masked optimized_attention_for_device attention_pytorch "
        "attention_basic attention_sub_quad attention_split wrap_attn CrossAttention BasicTransformerBlock "
        "SpatialTransformer"
    ),
    "comfy.ldm.modules.diffusionmodules.openaimodel": "UNetModel Timestep TimestepEmbedSequential",
    "comfy.ldm.modules.diffusionmodules.util": "timestep_embedding",
    "comfy.ldm.flux.math": "apply_rope apply_rope1 attention rope",
    "comfy.ldm.lumina.model": "FeedForward JointAttention NextDiT",
    "comfy.ldm.wan.model": "WanModel WanT2VCrossAttention WanI2VCrossAttention WanAttentionBlock",
    "comfy.ldm.wan.vae": "WanVAE RMS_norm CausalConv3d",
    "comfy.taesd.taesd": "TAESD Block Clamp conv",
    "comfy.taesd.taehv": "TAEHV conv apply_model_with_memblocks",
    "comfy.ops": "disable_weight_init manual_cast cast_bias_weight",
    "latent_preview": "prepare_callback get_previewer LatentPreviewer Latent2RGBPreviewer TAESDPreviewerImpl",
}

_NO_NODE = "cygnet does not have this node of ComfyUI's"
_NODES = {
    "LATENT": (
        "EmptyLatentImage LatentComposite LatentCrop LatentFromBatch LatentUpscale LatentUpscaleBy LoadLatent "
        "RepeatLatentBatch SetLatentNoiseMask VAEEncodeForInpaint VAEEncodeTiled"
    ),
    "IMAGE": "EmptyImage ImageBatch ImageInvert",
    "CONDITIONING": (
        "ConditioningAverage ConditioningCombine ConditioningConcat ConditioningSetArea ConditioningSetMask "
        "ConditioningSetTimestepRange ControlNetApply GLIGENTextBoxApply StyleModelApply unCLIPConditioning"
    ),
    "CONDITIONING CONDITIONING": "ControlNetApplyAdvanced",
    "CONDITIONING CONDITIONING LATENT": "InpaintModelConditioning",
    "CLIP": "CLIPSetLastLayer DualCLIPLoader",
    "CONTROL_NET": "ControlNetLoader DiffControlNetLoader",
    "GLIGEN": "GLIGENLoader",
    "STYLE_MODEL": "StyleModelLoader",
    "MODEL CLIP VAE": "CheckpointLoader CheckpointLoaderSimple",
}
LACKING_NODES: Mapping[str, Any] = {
    name: it
    for types, lacking in _NODES.items()
    for name, it in absent("nodes", lacking, _NO_NODE, RETURN_TYPES=tuple(types.split())).items()
}
"""Names in ``nodes`` that packs derive theirs from; they add to the types that those return."""
_EXTRAS = {
    "comfy_extras.nodes_clip_sdxl": "CLIPTextEncodeSDXL CLIPTextEncodeSDXLRefiner",
    "comfy_extras.nodes_custom_sampler": (
        "BasicGuider BasicScheduler CFGGuider KSamplerSelect Noise_EmptyNoise Noise_RandomNoise RandomNoise "
        "SamplerCustom SamplerCustomAdvanced"
    ),
    "comfy_extras.nodes_latent": "LatentBatch LatentAdd LatentSubtract",
    "comfy_extras.nodes_mask": "MaskComposite GrowMask ImageCompositeMasked composite",
    "comfy_extras.nodes_model_advanced": "ModelSamplingAuraFlow ModelSamplingFlux ModelSamplingSD3",
    "comfy_extras.nodes_upscale_model": "UpscaleModelLoader ImageUpscaleWithModel",
}


def modules() -> dict[str, Mapping[str, Any]]:
    """The modules by name."""
    found: dict[str, Mapping[str, Any]] = {name: absent(name, lacking, _WHY) for name, lacking in _LACKING.items()}
    # The names that combos offer, and that our sampler nodes take.
    samplers, schedulers = list(SAMPLERS), list(SCHEDULERS)
    choices = {"SAMPLER_NAMES": samplers, "KSAMPLER_NAMES": samplers, "SCHEDULER_NAMES": schedulers}
    sampler = absent("comfy.samplers", "KSampler", _WHY, SAMPLERS=samplers, SCHEDULERS=schedulers)
    pictures = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
    found["comfy.k_diffusion.utils"] = {
        **found["comfy.k_diffusion.utils"],
        **absent("comfy.k_diffusion.utils", "FolderOfImages", _WHY, IMG_EXTENSIONS=pictures),
    }
    found |= {name: absent(name, lacking, _NO_NODE) for name, lacking in _EXTRAS.items()}
    for name in [*found]:
        for end in [at for at, letter in enumerate(name) if letter == "."]:
            found[name[:end]] = {**found.get(name[:end], {}), "__path__": []}
    return {**found, "comfy.samplers": {**found["comfy.samplers"], **choices, **sampler}}
