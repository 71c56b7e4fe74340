"""The JSON files beside the weights of a Diffusers folder (fields as of Diffusers 0.42 and transformers 5.23)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cygnet.checkpoints.detect import ComponentConfig
from cygnet.checkpoints.layouts import Layout
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.dit.config import DiTConfig, Variant
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.vae.config import VAEConfig
from cygnet.types import ComponentName

DIFFUSERS_VERSION = "0.42.1"


@dataclass(frozen=True)
class ComponentFiles:
    """Where a component of a pipeline folder is kept: subfolder, file stem, names of its tensors."""

    folder: str
    stem: str
    layout: Layout


COMPONENT_FILES: Mapping[ComponentName, ComponentFiles] = {
    "dit": ComponentFiles("transformer", "diffusion_pytorch_model", "diffusers"),
    "vae": ComponentFiles("vae", "diffusion_pytorch_model", "diffusers"),
    "text_encoder": ComponentFiles("text_encoder", "model", "transformers"),
    "image_encoder": ComponentFiles("image_encoder", "model", "transformers"),
}


def component_config(config: ComponentConfig) -> dict[str, Any]:
    """``config.json`` of a Diffusers or transformers component."""
    match config:
        case DiTConfig():
            return _dit(config)
        case VAEConfig():
            return _vae(config)
        case UMT5Config():
            return _umt5(config)
        case CLIPVisionConfig():
            return _clip(config)


def official_config(config: DiTConfig) -> dict[str, Any]:
    """``config.json`` as the official DiT repositories have it."""
    vace = {"vace_layers": list(config.vace_layers), "vace_in_dim": config.vace_channels} if config.vace_layers else {}
    return {
        "_class_name": "VaceWanModel" if vace else "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": config.dim,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.in_channels,
        "model_type": config.variant,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_dim": config.out_channels,
        "text_len": config.text_length,
        **vace,
    }


def _dit(config: DiTConfig) -> dict[str, Any]:
    vace = {}
    if config.vace_layers:
        vace = {"vace_layers": list(config.vace_layers), "vace_in_channels": config.vace_channels}
    return {
        "_class_name": "WanVACETransformer3DModel" if vace else "WanTransformer3DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "added_kv_proj_dim": None if config.image_dim is None else config.dim,
        "attention_head_dim": config.dim // config.num_heads,
        "cross_attn_norm": True,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "image_dim": config.image_dim,
        "in_channels": config.in_channels,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_channels": config.out_channels,
        "patch_size": list(config.patch_size),
        "pos_embed_seq_len": config.image_positions,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": config.text_dim,
        **vace,
    }


def _vae(config: VAEConfig) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": DIFFUSERS_VERSION,
        "attn_scales": [],
        "base_dim": config.base_width,
        "dim_mult": list(config.width_multipliers),
        "dropout": 0.0,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "num_res_blocks": config.residual_blocks,
        "temperal_downsample": list(config.temporal_downsample),  # the field's public spelling
        "z_dim": config.latent_channels,
    }


def _umt5(config: UMT5Config) -> dict[str, Any]:
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "d_ff": config.ffn_dim,
        "d_kv": config.attention_dim // config.num_heads,
        "d_model": config.dim,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": config.eps,
        "num_decoder_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.max_distance,
        "relative_attention_num_buckets": config.num_buckets,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
    }


def _clip(config: CLIPVisionConfig) -> dict[str, Any]:
    return {
        "architectures": [_clip_class(config)],
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": config.dim,
        "image_size": config.image_size,
        "intermediate_size": config.mlp_dim,
        "layer_norm_eps": config.eps,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "num_hidden_layers": config.num_layers,
        "patch_size": config.patch_size,
        "projection_dim": config.output_dim or config.dim,
    }


def _clip_class(config: CLIPVisionConfig) -> str:
    return "CLIPVisionModel" if config.output_dim is None else "CLIPVisionModelWithProjection"


_PIPELINES: Mapping[Variant, str] = {
    "t2v": "WanPipeline",
    "i2v": "WanImageToVideoPipeline",
    "flf2v": "WanImageToVideoPipeline",
    "vace": "WanVACEPipeline",
}
"""Diffusers has none for the Fun models."""


def in_diffusers(config: DiTConfig) -> bool:
    """Whether Diffusers has classes for this transformer."""
    return config.variant in _PIPELINES


def model_index(dit: DiTConfig, image_encoder: CLIPVisionConfig | None) -> dict[str, Any]:
    """``model_index.json``: the classes of the pipeline and of its parts."""
    index: dict[str, Any] = {
        "_class_name": _PIPELINES[dit.variant],
        "_diffusers_version": DIFFUSERS_VERSION,
    }
    if image_encoder is not None:
        index["image_encoder"] = ["transformers", _clip_class(image_encoder)]
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    return index | {
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", _dit(dit)["_class_name"]],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def scheduler_config(flow_shift: float) -> dict[str, Any]:
    """UniPC with flow sigmas, as the published pipelines have it."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "final_sigmas_type": "zero",
        "flow_shift": flow_shift,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "thresholding": False,
        "timestep_spacing": "linspace",
        "use_flow_sigmas": True,
    }


def image_processor_config(config: CLIPVisionConfig) -> dict[str, Any]:
    """CLIP's own normalisation at the tower's picture size."""
    size = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }


def tokenizer_config() -> dict[str, Any]:
    """Settings under which transformers reads a UMT5 SentencePiece model."""
    return {
        "tokenizer_class": "T5Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "model_max_length": 512,
    }
