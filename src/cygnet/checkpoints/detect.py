"""The architecture of a network from the shapes of its tensors under official names.

What shapes cannot tell comes from the published conventions: heads are 128 wide in the DiT and 80 in CLIP; UMT5's head
count is the width of its position table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from cygnet.checkpoints.weight_file import printable
from cygnet.errors import WeightFileError
from cygnet.models.clip.config import CLIP_VIT_H, CLIPVisionConfig
from cygnet.models.clip.config import HEAD_WIDTH as CLIP_HEAD_WIDTH
from cygnet.models.dit.config import (
    CAMERA_SCALE,
    FLF2V_14B,
    FUN_CAMERA_1_3B,
    FUN_CAMERA_14B,
    FUN_CONTROL_1_3B,
    FUN_CONTROL_14B,
    FUN_INP_1_3B,
    I2V_14B,
    T2V_1_3B,
    T2V_14B,
    VACE_1_3B,
    VACE_14B,
    DiTConfig,
    Variant,
)
from cygnet.models.dit.config import HEAD_WIDTH as DIT_HEAD_WIDTH
from cygnet.models.umt5.config import UMT5_XXL, UMT5Config
from cygnet.models.vae.config import WAN_LATENTS_MEAN, WAN_LATENTS_STD, WAN_VAE, VAEConfig
from cygnet.types import ComponentName

ComponentConfig = DiTConfig | VAEConfig | UMT5Config | CLIPVisionConfig
Shapes = Mapping[str, tuple[int, ...]]

CONDITION_CHANNELS: Mapping[Variant, int] = {
    "t2v": 0, "vace": 0, "i2v": 20, "flf2v": 20, "control": 32, "camera": 16,
}  # fmt: skip
"""Input channels beside the latents: mask and given frames; control video and start picture; start picture alone."""

LIMITS: Mapping[str, int] = {
    "dim": 16_384, "ffn_dim": 131_072, "num_heads": 256, "num_layers": 256, "in_channels": 512, "out_channels": 512,
    "text_dim": 16_384, "text_length": 4_096, "freq_dim": 4_096, "image_dim": 16_384, "image_positions": 16_384,
    "base_width": 1_024, "latent_channels": 256, "width_multiplier": 64, "residual_blocks": 8, "levels": 8,
    "vocab_size": 2_000_000, "attention_dim": 16_384, "num_buckets": 1_024, "max_distance": 65_536,
    "image_size": 2_048, "vace_channels": 4_096, "patch_size": 128, "mlp_dim": 131_072, "output_dim": 16_384,
}  # fmt: skip
"""Largest accepted value per number of an architecture; at least three times the largest published one."""

_Config = TypeVar("_Config", bound=ComponentConfig)


def detect_config(component: ComponentName, shapes: Shapes) -> ComponentConfig:
    """The architecture of ``component`` whose tensors have ``shapes`` (official names).

    Raises ``WeightFileError`` if a tensor that tells a number is missing, a number is out of bounds, or the numbers
    contradict each other.
    """
    detectors: Mapping[ComponentName, Callable[[Shapes], ComponentConfig]] = {
        "dit": _detect_dit,
        "vae": _detect_vae,
        "text_encoder": _detect_umt5,
        "image_encoder": _detect_clip,
    }
    return detectors[component](shapes)


def limited(field: str, value: int, limit: str | None = None) -> int:
    """``value`` if it is at least 1 and within the limit of ``field``; else ``WeightFileError``."""
    largest = LIMITS[limit or field]
    if not 1 <= value <= largest:
        raise WeightFileError(f"{field} is {value:,}; it must be from 1 to {largest:,}")
    return value


def built(make: Callable[..., _Config], **fields: object) -> _Config:
    """A config; its own complaints become ``WeightFileError``."""
    try:
        return make(**fields)
    except ValueError as error:
        raise WeightFileError(f"the architecture contradicts itself: {error}") from error


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise WeightFileError(f"tensor {name!r} is missing, so the architecture cannot be told; the file is incomplete")
    if len(shape) != rank:
        raise WeightFileError(f"tensor {name!r} has shape {list(shape)}; it must have {rank} axes")
    return shape


def _count(shapes: Iterable[str], pattern: str, what: str) -> int:
    """Number of consecutively numbered blocks; ``pattern`` captures the number."""
    compiled = re.compile(pattern)
    numbers = {int(match[1]) for name in shapes if (match := compiled.match(name))}
    limited(what, max(numbers, default=-1) + 1)
    missing = sorted(set(range(max(numbers) + 1)) - numbers)
    if missing:
        raise WeightFileError(
            f"block {missing[0]} of {max(numbers) + 1} has no tensors ({len(missing)} such); the file is incomplete"
        )
    return max(numbers) + 1


def _detect_dit(shapes: Shapes) -> DiTConfig:
    dim = limited("dim", _shape(shapes, "head.modulation", 3)[2])
    if dim % DIT_HEAD_WIDTH:
        raise WeightFileError(f"the DiT is {dim} wide; Wan heads are {DIT_HEAD_WIDTH} wide, so it must be a multiple")
    patch = _shape(shapes, "patch_embedding.weight", 5)
    if patch[2:] != (1, 2, 2):
        raise WeightFileError(f"the DiT has patches of {list(patch[2:])}; Wan 2.1 uses [1, 2, 2]")
    head = _shape(shapes, "head.head.weight", 2)[0]
    if head % 4:
        raise WeightFileError(f"the DiT's head has {head} outputs, which is no multiple of the 4 cells in a patch")
    num_layers = _count(shapes, r"blocks\.(\d+)\.", "num_layers")
    condition = patch[1] - head // 4
    variant = _dit_variant(shapes, condition)
    if condition != CONDITION_CHANNELS[variant]:
        raise WeightFileError(
            f"the DiT takes {condition} channels beside the latents; a {variant} model of Wan 2.1 takes "
            f"{CONDITION_CHANNELS[variant]}"
        )
    image_dim = image_positions = camera_channels = None
    if variant not in ("t2v", "vace"):
        image_dim = limited("image_dim", _shape(shapes, "img_emb.proj.1.weight", 2)[1])
    if variant == "flf2v":
        image_positions = limited("image_positions", _shape(shapes, "img_emb.emb_pos", 3)[1])
    vace: dict[str, object] = {}
    if variant == "vace":
        control_blocks = _count(shapes, r"vace_blocks\.(\d+)\.", "num_layers")
        step = max(num_layers // control_blocks, 1)
        vace["vace_layers"] = tuple(range(0, control_blocks * step, step))
        vace["vace_channels"] = limited("vace_channels", _shape(shapes, "vace_patch_embedding.weight", 5)[1])
    if variant == "camera":
        camera_channels = _shape(shapes, "control_adapter.conv.weight", 4)[1] // CAMERA_SCALE**2
    return built(
        DiTConfig,
        variant=variant,
        dim=dim,
        ffn_dim=limited("ffn_dim", _shape(shapes, "blocks.0.ffn.0.weight", 2)[0]),
        num_heads=dim // DIT_HEAD_WIDTH,
        num_layers=num_layers,
        in_channels=limited("in_channels", patch[1]),
        out_channels=limited("out_channels", head // 4),
        text_dim=limited("text_dim", _shape(shapes, "text_embedding.0.weight", 2)[1]),
        freq_dim=limited("freq_dim", _shape(shapes, "time_embedding.0.weight", 2)[1]),
        image_dim=image_dim,
        image_positions=image_positions,
        camera_channels=camera_channels,
        reference="ref_conv.weight" in shapes,
        **vace,
    )


def _dit_variant(shapes: Shapes, condition: int) -> Variant:
    """``condition`` is how many input channels there are beside the latents."""
    if "vace_patch_embedding.weight" in shapes:
        return "vace"
    if "img_emb.proj.0.weight" not in shapes and "img_emb.proj.1.weight" not in shapes:
        return "t2v"
    if "control_adapter.conv.weight" in shapes:
        return "camera"
    if condition == CONDITION_CHANNELS["control"]:
        return "control"
    return "flf2v" if "img_emb.emb_pos" in shapes else "i2v"


def _detect_vae(shapes: Shapes) -> VAEConfig:
    base = limited("base_width", _shape(shapes, "encoder.conv1.weight", 5)[0])
    latent = limited("latent_channels", _shape(shapes, "conv2.weight", 5)[0])
    modules = _count(shapes, r"encoder\.downsamples\.(\d+)\.", "num_layers")
    multipliers: list[int] = []
    temporal: list[bool] = []
    blocks: list[int] = [0]
    for number in range(modules):
        stem = f"encoder.downsamples.{number}"
        if f"{stem}.resample.1.weight" in shapes:
            temporal.append(f"{stem}.time_conv.weight" in shapes)
            blocks.append(0)
            continue
        width = _shape(shapes, f"{stem}.residual.6.weight", 5)[0]
        if width % base:
            raise WeightFileError(f"{stem} is {width} wide, no multiple of the base width {base}")
        if not blocks[-1]:
            multipliers.append(limited("width_multiplier", width // base))
        blocks[-1] += 1
    if len(set(blocks)) != 1 or len(multipliers) != len(blocks):
        raise WeightFileError(f"the VAE's levels have {blocks} residual blocks; Wan's have the same number each")
    limited("levels", len(blocks))
    if latent != len(WAN_LATENTS_MEAN):
        raise WeightFileError(f"the VAE has {latent} latent channels; Wan 2.1 has {len(WAN_LATENTS_MEAN)}")
    return built(
        VAEConfig,
        base_width=base,
        latent_channels=latent,
        width_multipliers=tuple(multipliers),
        residual_blocks=limited("residual_blocks", blocks[0]),
        temporal_downsample=tuple(temporal),
        latents_mean=WAN_LATENTS_MEAN,
        latents_std=WAN_LATENTS_STD,
    )


def _detect_umt5(shapes: Shapes) -> UMT5Config:
    vocab_size, dim = _shape(shapes, "token_embedding.weight", 2)
    num_buckets, num_heads = _shape(shapes, "blocks.0.pos_embedding.embedding.weight", 2)
    return built(
        UMT5Config,
        vocab_size=limited("vocab_size", vocab_size),
        dim=limited("dim", dim),
        attention_dim=limited("attention_dim", _shape(shapes, "blocks.0.attn.q.weight", 2)[0]),
        ffn_dim=limited("ffn_dim", _shape(shapes, "blocks.0.ffn.fc1.weight", 2)[0]),
        num_heads=limited("num_heads", num_heads),
        num_layers=_count(shapes, r"blocks\.(\d+)\.", "num_layers"),
        num_buckets=limited("num_buckets", num_buckets),
    )


def _detect_clip(shapes: Shapes) -> CLIPVisionConfig:
    patch = _shape(shapes, "patch_embedding.weight", 4)
    positions = _shape(shapes, "pos_embedding", 3)[1]
    side = round((positions - 1) ** 0.5) if positions > 1 else 0
    if side < 1 or side * side + 1 != positions:
        raise WeightFileError(f"CLIP has {positions} positions; a square picture gives a square number plus 1")
    dim = limited("dim", patch[0])
    if dim % CLIP_HEAD_WIDTH:
        raise WeightFileError(
            f"CLIP is {dim} wide, which is no multiple of {CLIP_HEAD_WIDTH}, the head width of Wan's image encoder; "
            "give its config"
        )
    patch_size = limited("patch_size", patch[2])
    return built(
        CLIPVisionConfig,
        image_size=limited("image_size", side * patch_size),
        patch_size=patch_size,
        dim=dim,
        mlp_dim=limited("mlp_dim", _shape(shapes, "transformer.0.mlp.0.weight", 2)[0]),
        num_heads=dim // CLIP_HEAD_WIDTH,
        num_layers=_count(shapes, r"transformer\.(\d+)\.", "num_layers"),
        output_dim=limited("output_dim", _shape(shapes, "head", 2)[1]) if "head" in shapes else None,
    )


# Names ---------------------------------------------------------------------------------------------------------------

PUBLISHED: Mapping[str, ComponentConfig] = {
    "T2V-1.3B": T2V_1_3B,
    "T2V-14B": T2V_14B,
    "I2V-14B": I2V_14B,
    "FLF2V-14B": FLF2V_14B,
    "VACE-1.3B": VACE_1_3B,
    "VACE-14B": VACE_14B,
    "Fun-InP-1.3B": FUN_INP_1_3B,
    "Fun-Control-1.3B": FUN_CONTROL_1_3B,
    "Fun-Control-14B": FUN_CONTROL_14B,
    "Fun-V1.1-Control-1.3B": replace(FUN_CONTROL_1_3B, reference=True),
    "Fun-V1.1-Control-14B": replace(FUN_CONTROL_14B, reference=True),
    "Fun-Camera-1.3B": FUN_CAMERA_1_3B,
    "Fun-Camera-14B": FUN_CAMERA_14B,
    "Wan-VAE": WAN_VAE,
    "UMT5-XXL": UMT5_XXL,
    "CLIP ViT-H/14": CLIP_VIT_H,
}
"""I2V at 480P and 720P are one architecture; only their weights differ."""


def variant_name(config: ComponentConfig) -> str:
    """What people call this architecture, such as ``T2V-1.3B``; a description if it has no name."""
    for name, published in PUBLISHED.items():
        if type(config) is type(published) and _comparable(config) == _comparable(published):
            return name
    match config:
        case DiTConfig():
            size = f"{config.dim} wide, {config.num_layers} blocks, {config.in_channels} input channels"
            return _described(config.variant.upper(), size, tiny=config.dim < T2V_1_3B.dim)
        case VAEConfig():
            size = f"base width {config.base_width}, {config.latent_channels} latent channels"
            return _described("Wan-VAE", size, tiny=config.base_width < WAN_VAE.base_width)
        case UMT5Config():
            size = f"{config.dim} wide, {config.num_layers} blocks, {config.vocab_size:,} tokens"
            return _described("UMT5", size, tiny=config.dim < 512)
        case CLIPVisionConfig():
            size = f"{config.dim} wide, {config.num_layers} blocks, {config.image_size} px"
            return _described("CLIP", size, tiny=config.dim < 768)


def _described(kind: str, size: str, *, tiny: bool) -> str:
    return f"{'tiny ' if tiny else ''}{kind} ({size})"


def _comparable(config: ComponentConfig) -> ComponentConfig:
    """The config with what its name does not depend on made equal."""
    match config:
        case DiTConfig():
            return replace(config, eps=1e-6, text_length=512)
        case VAEConfig():
            zeros = (0.0,) * config.latent_channels
            return replace(config, latents_mean=zeros, latents_std=zeros)
        case UMT5Config():
            return replace(config, eps=1e-6)
        case CLIPVisionConfig():
            return replace(config, eps=1e-5, output_dim=None)


def describe_difference(found: ComponentConfig, wanted: ComponentConfig) -> str:
    """One sentence if the two architectures go by different names, else an empty text."""
    have, need = printable(variant_name(found)), printable(variant_name(wanted))
    return "" if have == need else f"the file is {have}, but {need} is needed"
