"""What a ``config.json`` or a header adds to the shapes: epsilon, latent statistics, text length and the like.

Shapes decide the architecture. A config is read only to fill in what they cannot tell, and to be contradicted: a number
that disagrees with the tensors, is out of bounds or means nothing to cygnet is an error, not a preference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from cygnet.checkpoints.detect import LIMITS, ComponentConfig, built, variant_name
from cygnet.checkpoints.json_text import parse_object
from cygnet.checkpoints.weight_file import WeightFile, printable, read_small_file, shown
from cygnet.errors import WeightFileError
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.dit.config import DiTConfig
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.vae.config import VAEConfig

METADATA_KEY = "cygnet.config"
"""Key of the safetensors header under which cygnet writes what shapes cannot tell."""
MAX_CONFIG_BYTES = 2**20

_UNTOLD: Mapping[type[Any], tuple[str, ...]] = {
    DiTConfig: ("eps", "text_length", "vace_layers"),
    VAEConfig: ("latents_mean", "latents_std"),
    UMT5Config: ("eps", "max_distance"),
    CLIPVisionConfig: ("eps", "num_heads"),
}

# Files that are written together with a config.json; any other file beside one is there by chance.
_PAIRED_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def with_hints(config: ComponentConfig, weights: WeightFile) -> ComponentConfig:
    """``config`` with what the header and the ``config.json`` that belongs to ``weights`` add.

    Raises ``WeightFileError`` if either contradicts the tensors or holds a value that is not allowed.
    """
    config = _from_metadata(config, weights)
    folder = weights.path if weights.path.is_dir() else weights.path.parent
    path = folder / "config.json"
    if not weights.path.is_dir() and not weights.path.name.startswith(_PAIRED_STEMS):
        return config
    if not path.exists():
        return config
    data = parse_object(read_small_file(path, MAX_CONFIG_BYTES), shown(path), max_depth=8, max_values=10_000)
    return _from_config_json(config, data, shown(path))


def metadata_for(config: ComponentConfig) -> dict[str, str]:
    """Header metadata that lets a single file carry what its shapes cannot tell."""
    fields = asdict(config)
    told = {name: fields[name] for name in _UNTOLD[type(config)] if fields[name] != ()}
    return {METADATA_KEY: json.dumps(told)}


def _from_metadata(config: ComponentConfig, weights: WeightFile) -> ComponentConfig:
    text = weights.metadata.get(METADATA_KEY)
    if text is None:
        return config
    where = f"the note {METADATA_KEY!r} in the header of {shown(weights.path)}"
    data = parse_object(text.encode(), where, max_depth=2, max_values=2_000)
    unknown = sorted(set(data) - set(_UNTOLD[type(config)]))
    if unknown:
        raise WeightFileError(f"{where} has the unknown field {printable(unknown[0])!r}")
    return _apply(config, {name: _checked(name, value, where) for name, value in data.items()})


def _apply(config: ComponentConfig, fields: dict[str, Any]) -> ComponentConfig:
    return built(lambda **changes: replace(config, **changes), **fields)


def _checked(name: str, value: Any, where: str) -> Any:
    """A field value of the right type and within bounds; lists of numbers become tuples."""
    if name == "eps":
        if not _is_number(value) or not 0 < value <= 0.1:
            raise WeightFileError(f"{where}: {name} is {printable(str(value))}; it must be above 0 and at most 0.1")
        return float(value)
    if name in ("latents_mean", "latents_std"):
        longest = LIMITS["latent_channels"]
        if not isinstance(value, list) or len(value) > longest or not all(_is_number(x) for x in value):
            raise WeightFileError(f"{where}: {name} must be a list of at most {longest} finite numbers")
        if name == "latents_std" and not all(x > 0 for x in value):
            raise WeightFileError(f"{where}: every number of latents_std must be above 0")
        return tuple(float(x) for x in value)
    if name == "vace_layers":
        if not isinstance(value, list) or len(value) > LIMITS["num_layers"]:
            raise WeightFileError(f"{where}: {name} must be a list of at most {LIMITS['num_layers']} block numbers")
        return tuple(_whole("num_layers", x, where, least=0) for x in value)
    return _whole(name, value, where)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e6


def _whole(name: str, value: Any, where: str, least: int = 1) -> int:
    largest = LIMITS[name]
    if type(value) is not int or not least <= value <= largest:
        raise WeightFileError(
            f"{where}: {name} is {printable(str(value))}; it must be a whole number from {least} to {largest:,}"
        )
    return value


# config.json ---------------------------------------------------------------------------------------------------------

# Foreign field -> our field, or None where the value must be the given constant (see _CONSTANTS) or has no bearing.
_DIT_OFFICIAL: Mapping[str, str | None] = {
    "dim": "dim", "ffn_dim": "ffn_dim", "freq_dim": "freq_dim", "in_dim": "in_channels", "num_heads": "num_heads",
    "num_layers": "num_layers", "out_dim": "out_channels", "text_len": "text_length", "text_dim": "text_dim",
    "vace_layers": "vace_layers", "vace_in_dim": "vace_channels",
    "eps": "eps", "model_type": None, "patch_size": None, "window_size": None, "qk_norm": None,
    "cross_attn_norm": None,
}  # fmt: skip
_DIT_DIFFUSERS: Mapping[str, str | None] = {
    "num_attention_heads": "num_heads", "in_channels": "in_channels", "out_channels": "out_channels",
    "text_dim": "text_dim", "freq_dim": "freq_dim", "ffn_dim": "ffn_dim", "num_layers": "num_layers", "eps": "eps",
    "vace_layers": "vace_layers", "vace_in_channels": "vace_channels",
    "image_dim": "image_dim", "pos_embed_seq_len": "image_positions", "added_kv_proj_dim": "dim",
    "attention_head_dim": None, "patch_size": None, "qk_norm": None, "cross_attn_norm": None,
    "rope_max_seq_len": None,
}  # fmt: skip
_VAE_DIFFUSERS: Mapping[str, str | None] = {
    "base_dim": "base_width", "z_dim": "latent_channels", "num_res_blocks": "residual_blocks",
    "latents_mean": "latents_mean", "latents_std": "latents_std", "dim_mult": None, "attn_scales": None,
    "temperal_downsample": None, "dropout": None, "is_residual": None, "in_channels": None, "out_channels": None,
    "patch_size": None, "scale_factor_temporal": None, "scale_factor_spatial": None, "decoder_base_dim": None,
    "clip_output": None,
}  # fmt: skip
_UMT5_TRANSFORMERS: Mapping[str, str | None] = {
    "d_model": "dim", "d_ff": "ffn_dim", "num_heads": "num_heads", "num_layers": "num_layers",
    "vocab_size": "vocab_size", "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance", "layer_norm_epsilon": "eps", "feed_forward_proj": None,
}  # fmt: skip
_CLIP_TRANSFORMERS: Mapping[str, str | None] = {
    "hidden_size": "dim", "intermediate_size": "mlp_dim", "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers", "image_size": "image_size", "patch_size": "patch_size",
    "layer_norm_eps": "eps", "hidden_act": None,
}  # fmt: skip

_CONSTANTS: Mapping[str, tuple[Any, ...]] = {
    "qk_norm": (True, "rms_norm_across_heads"),
    "cross_attn_norm": (True,),
    "attention_head_dim": (128,),
    "window_size": ([-1, -1],),
    "attn_scales": ([],),
    "is_residual": (False,),
    "feed_forward_proj": ("gated-gelu",),
    "hidden_act": ("gelu",),
}
"""Fields that change the computation and have one accepted value (or spelling)."""


def _from_config_json(config: ComponentConfig, data: dict[str, Any], where: str) -> ComponentConfig:
    table = _table_for(config, data)
    if table is None:
        return config
    # transformers writes dozens of settings for generation and training; Diffusers writes the architecture only.
    strict = table in (_DIT_OFFICIAL, _DIT_DIFFUSERS, _VAE_DIFFUSERS)
    changes: dict[str, Any] = {}
    for field, value in data.items():
        if field not in table:
            if strict and not field.startswith("_"):
                raise WeightFileError(
                    f"{where} has the field {printable(field)!r}, which Wan 2.1 has not; this may be another model"
                )
            continue
        allowed = _CONSTANTS.get(field)
        # `==` alone would take 1 for True.
        if allowed is not None and not any(type(value) is type(a) and value == a for a in allowed):
            raise WeightFileError(
                f"{where}: {field} is {printable(json.dumps(value))}; Wan 2.1 has {json.dumps(allowed[0])}"
            )
        if field == "model_type" and isinstance(value, str):
            _check_variant(config, value, where)
        ours = table[field]
        if ours is None or value is None:
            continue
        checked = _checked(ours, value, where)
        if ours in _UNTOLD[type(config)]:
            changes[ours] = checked
        elif checked != getattr(config, ours):
            raise WeightFileError(
                f"{where} says {field} = {checked}, but the tensors say {getattr(config, ours)} "
                f"({variant_name(config)}); the two do not belong together"
            )
    return _apply(config, changes)


def _check_variant(config: ComponentConfig, said: str, where: str) -> None:
    """Compare ``model_type`` with what the tensors are; the Fun models call themselves by what they were made from."""
    variant = config.variant if isinstance(config, DiTConfig) else None
    if variant in ("t2v", "i2v", "flf2v", "vace") and said != variant:
        raise WeightFileError(
            f"{where} says model_type = {printable(said)!r}, but the tensors are those of a {variant} model; the two "
            "do not belong together"
        )


def _table_for(config: ComponentConfig, data: dict[str, Any]) -> Mapping[str, str | None] | None:
    """The meaning of the fields, or None if the config is of some other component in the same folder."""
    listed = data.get("architectures")
    said = [data.get("_class_name"), data.get("model_type"), *(listed if isinstance(listed, list) else [])]
    names = {name for name in said if isinstance(name, str)}
    candidates: Mapping[type[Any], tuple[tuple[str, Mapping[str, str | None]], ...]] = {
        DiTConfig: (
            ("WanModel", _DIT_OFFICIAL),
            ("VaceWanModel", _DIT_OFFICIAL),
            ("WanTransformer3DModel", _DIT_DIFFUSERS),
            ("WanVACETransformer3DModel", _DIT_DIFFUSERS),
        ),
        VAEConfig: (("AutoencoderKLWan", _VAE_DIFFUSERS),),
        UMT5Config: (("UMT5EncoderModel", _UMT5_TRANSFORMERS), ("umt5", _UMT5_TRANSFORMERS)),
        CLIPVisionConfig: (
            ("CLIPVisionModelWithProjection", _CLIP_TRANSFORMERS),
            ("CLIPVisionModel", _CLIP_TRANSFORMERS),
            ("clip_vision_model", _CLIP_TRANSFORMERS),
        ),
    }
    return next((table for name, table in candidates[type(config)] if name in names), None)
