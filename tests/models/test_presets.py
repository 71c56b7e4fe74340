"""The published architectures have exactly the tensors and parameters of the published files (no weights needed)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cygnet.models.clip.config import CLIP_VIT_H
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import (
    FLF2V_14B,
    FUN_CAMERA_1_3B,
    FUN_CAMERA_14B,
    FUN_CONTROL_1_3B,
    FUN_CONTROL_14B,
    FUN_INP_1_3B,
    I2V_14B,
    T2V_1_3B,
    T2V_14B,
    TINY_I2V,
    TINY_T2V,
    VACE_1_3B,
    VACE_14B,
    DiTConfig,
)
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5_XXL
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from support import golden_facts, parameter_shapes

Shapes = dict[str, tuple[int, ...]]


def count(shapes: Shapes, prefix: str = "") -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


def dit_shapes(config: DiTConfig) -> Shapes:
    with torch.device("meta"):
        return parameter_shapes(DiT(config))


@pytest.mark.parametrize(
    ("config", "parameters", "keys"),
    [
        (T2V_1_3B, 1_418_996_800, 825),
        (T2V_14B, 14_288_491_584, 1095),
        (I2V_14B, 16_394_878_784, 1303),
        (FLF2V_14B, 16_395_536_704, 1304),
        (VACE_1_3B, 2_153_972_032, 1264),
        (VACE_14B, 17_337_592_896, 1331),
        (FUN_INP_1_3B, 1_564_428_608, 983),
        (FUN_CONTROL_1_3B, 1_564_502_336, 983),
        (FUN_CONTROL_14B, 16_395_124_544, 1303),
        (replace(FUN_CONTROL_1_3B, reference=True), 1_564_502_336 + 99_840, 985),
        (replace(FUN_CONTROL_14B, reference=True), 16_395_124_544 + 332_800, 1305),
        (FUN_CAMERA_1_3B, 1_616_313_152, 989),
        (FUN_CAMERA_14B, 16_898_128_704, 1309),
    ],
    ids=[
        "T2V-1.3B",
        "T2V-14B",
        "I2V-14B",
        "FLF2V-14B",
        "VACE-1.3B",
        "VACE-14B",
        "Fun-InP-1.3B",
        "Fun-Control-1.3B",
        "Fun-Control-14B",
        "Fun-V1.1-Control-1.3B",
        "Fun-V1.1-Control-14B",
        "Fun-Camera-1.3B",
        "Fun-Camera-14B",
    ],
)
def test_published_transformers_have_the_published_size(config: DiTConfig, parameters: int, keys: int) -> None:
    shapes = dit_shapes(config)
    assert (count(shapes), len(shapes)) == (parameters, keys)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (
            T2V_1_3B,
            {
                "patch_embedding.": 99_840,
                "text_embedding.": 8_653_824,
                "time_embedding.": 2_755_584,
                "time_projection.": 14_164_992,
                "blocks.0.": 46_440_704,
                "head.": 101_440,
            },
        ),
        (
            FLF2V_14B,
            {
                "patch_embedding.": 742_400,
                "text_embedding.": 47_196_160,
                "time_embedding.": 27_535_360,
                "time_projection.": 157_317_120,
                "blocks.39.": 403_838_464,
                "head.": 337_984,
                "img_emb.proj.": 8_211_200,
                "img_emb.emb_pos": 657_920,
            },
        ),
    ],
    ids=["T2V-1.3B", "FLF2V-14B"],
)
def test_every_part_of_a_published_transformer_has_its_size(config: DiTConfig, parts: dict[str, int]) -> None:
    shapes = dit_shapes(config)
    assert {prefix: count(shapes, prefix) for prefix in parts} == parts


def test_a_published_transformer_has_the_shapes_of_the_official_table() -> None:
    shapes, d = dit_shapes(I2V_14B), 5120
    expected = {
        "patch_embedding.weight": (d, 36, 1, 2, 2),
        "text_embedding.0.weight": (d, 4096),
        "time_embedding.0.weight": (d, 256),
        "time_projection.1.bias": (6 * d,),
        "blocks.39.modulation": (1, 6, d),
        "blocks.0.self_attn.norm_k.weight": (d,),
        "blocks.0.norm3.bias": (d,),
        "blocks.0.cross_attn.k_img.weight": (d, d),
        "blocks.0.cross_attn.norm_k_img.weight": (d,),
        "blocks.0.ffn.0.weight": (13824, d),
        "head.modulation": (1, 2, d),
        "head.head.weight": (64, d),
        "img_emb.proj.0.weight": (1280,),
        "img_emb.proj.3.weight": (d, 1280),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("variant", ["t2v", "i2v", "flf2v"])
def test_names_are_those_of_the_official_modules(variant: str) -> None:
    facts = golden_facts()["dit"][variant]
    config = DiTConfig(
        variant=variant,  # type: ignore[arg-type]
        dim=facts["dim"],
        ffn_dim=facts["ffn_dim"],
        num_heads=facts["num_heads"],
        num_layers=facts["num_layers"],
        in_channels=facts["in_dim"],
        text_dim=facts["text_dim"],
        image_dim=None if variant == "t2v" else 1280,
        image_positions=514 if variant == "flf2v" else None,
    )
    assert dit_shapes(config) == {name: tuple(shape) for name, shape in facts["keys"].items()}


def test_the_published_vae_has_the_published_size() -> None:
    with torch.device("meta"):
        shapes = parameter_shapes(WanVAE(WAN_VAE))
    assert (count(shapes), len(shapes)) == (126_892_531, 194)
    parts = {"encoder.": 53_595_872, "decoder.": 73_295_331, "conv1.": 1_056, "conv2.": 272}
    assert {prefix: count(shapes, prefix) for prefix in parts} == parts


def test_the_published_text_encoder_has_the_published_size() -> None:
    with torch.device("meta"):
        shapes = parameter_shapes(UMT5Encoder(UMT5_XXL))
    assert (count(shapes), len(shapes)) == (5_680_910_336, 242)


def test_the_published_image_encoder_has_the_published_size() -> None:
    with torch.device("meta"):
        shapes = parameter_shapes(CLIPVision(CLIP_VIT_H))
    assert count(shapes) == 632_076_800


def test_the_embedded_models_have_heads_of_the_published_width() -> None:
    for config in (TINY_T2V, TINY_I2V):
        assert config.dim // config.num_heads == T2V_1_3B.dim // T2V_1_3B.num_heads
