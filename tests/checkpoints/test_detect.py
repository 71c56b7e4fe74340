"""The architecture follows from shapes, within limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cygnet.checkpoints import without_weights
from cygnet.checkpoints.detect import ComponentConfig, describe_difference, detect_config, variant_name
from cygnet.errors import WeightFileError
from cygnet.models.clip.config import CLIP_VIT_H
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import FLF2V_14B, I2V_14B, T2V_1_3B, T2V_14B
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5_XXL
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.types import ComponentName
from support import golden_facts
from weight_samples import COMPONENT_KEYS, sample_shapes

Network = tuple[ComponentName, Callable[[Any], torch.nn.Module], ComponentConfig, str]

FULL_SIZE: list[Network] = [
    ("dit", DiT, T2V_1_3B, "T2V-1.3B"),
    ("dit", DiT, T2V_14B, "T2V-14B"),
    ("dit", DiT, I2V_14B, "I2V-14B"),
    ("dit", DiT, FLF2V_14B, "FLF2V-14B"),
    ("vae", WanVAE, WAN_VAE, "Wan-VAE"),
    ("text_encoder", UMT5Encoder, UMT5_XXL, "UMT5-XXL"),
    ("image_encoder", CLIPVision, CLIP_VIT_H, "CLIP ViT-H/14"),
]


@pytest.mark.parametrize(("component", "build", "config", "name"), FULL_SIZE, ids=[n[3] for n in FULL_SIZE])
def test_the_published_networks_are_told_from_their_shapes(
    component: ComponentName, build: Callable[[Any], torch.nn.Module], config: ComponentConfig, name: str
) -> None:
    with without_weights():
        shapes = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    assert detect_config(component, shapes) == config
    assert variant_name(config) == name


@pytest.mark.parametrize("sample", COMPONENT_KEYS)
def test_the_tiny_networks_are_told_from_their_shapes(sample: str) -> None:
    config: Any = detect_config(COMPONENT_KEYS[sample][0], sample_shapes(sample))
    facts = golden_facts()
    for step in COMPONENT_KEYS[sample][1]:
        facts = facts[step]
    same_meaning = {
        "num_heads": "num_heads", "num_layers": "num_layers", "ffn_dim": "ffn_dim", "dim_ffn": "ffn_dim",
        "vocab": "vocab_size", "dim_attn": "attention_dim", "num_buckets": "num_buckets", "in_dim": "in_channels",
        "out_dim": "output_dim" if sample == "clip" else "out_channels", "text_dim": "text_dim",
        "image_size": "image_size", "patch_size": "patch_size", "num_res_blocks": "residual_blocks",
        "model_type": "variant", "z_dim": "latent_channels", "freq_dim": "freq_dim",
    }  # fmt: skip
    compared = {ours: facts[theirs] for theirs, ours in same_meaning.items() if theirs in facts}
    assert len(compared) >= 2
    assert {ours: getattr(config, ours) for ours in compared} == compared
    assert variant_name(config).startswith("tiny ")


def _shapes(sample: str, **changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes = sample_shapes(sample)
    for name, shape in changes.items():
        if shape is None:
            del shapes[name.replace("__", ".")]
        else:
            shapes[name.replace("__", ".")] = shape
    return shapes


WRONG: dict[str, tuple[str, dict[str, tuple[int, ...]], str]] = {
    "no head": ("t2v", _shapes("t2v", head__modulation=None), r"'head\.modulation' is missing"),
    "wrong rank": ("t2v", _shapes("t2v", head__modulation=(2, 256)), "must have 3 axes"),
    "odd width": ("t2v", _shapes("t2v", head__modulation=(1, 2, 200)), "200 wide; Wan heads are 128"),
    "zero width": ("t2v", _shapes("t2v", head__modulation=(1, 2, 0)), "dim is 0; it must be from 1"),
    "huge width": ("t2v", _shapes("t2v", head__modulation=(1, 2, 2**20)), "dim is 1,048,576; it must be from 1"),
    "patches": ("t2v", _shapes("t2v", patch_embedding__weight=(256, 16, 1, 4, 4)), r"Wan 2\.1 uses \[1, 2, 2\]"),
    "head outputs": ("t2v", _shapes("t2v", head__head__weight=(63, 256)), "no multiple of the 4 cells"),
    "many blocks": ("t2v", _shapes("t2v", blocks__99999__norm3__weight=(256,)), "num_layers is 100,000"),
    "missing block": ("t2v", _shapes("t2v", blocks__4__norm3__weight=(256,)), "block 3 of 5 has no tensors"),
    "odd frequency": ("t2v", _shapes("t2v", time_embedding__0__weight=(256, 7)), "freq_dim must be even"),
    "latent width": ("vae", _shapes("vae", conv2__weight=(8, 8, 1, 1, 1)), "8 latent channels; Wan 2.1 has 16"),
    "uneven levels": ("vae", _shapes("vae", encoder__downsamples__1__residual__6__weight=None), "is missing"),
    "odd level": ("vae", _shapes("vae", encoder__downsamples__1__residual__6__weight=(17, 16, 3, 3, 3)), "multiple"),
    "no table": ("umt5", _shapes("umt5", blocks__0__pos_embedding__embedding__weight=None), "is missing"),
    "odd heads": ("umt5", _shapes("umt5", blocks__0__pos_embedding__embedding__weight=(32, 3)), "does not split"),
    "buckets": ("umt5", _shapes("umt5", blocks__0__pos_embedding__embedding__weight=(31, 4)), "num_buckets"),
    "CLIP width": ("clip", _shapes("clip", patch_embedding__weight=(64, 3, 14, 14)), "no multiple of 80"),
    "CLIP positions": ("clip", _shapes("clip", pos_embedding=(1, 18, 160)), "18 positions; a square picture"),
    "CLIP no positions": ("clip", _shapes("clip", pos_embedding=(1, 0, 160)), "0 positions"),
}  # fmt: skip


@pytest.mark.parametrize(("sample", "shapes", "words"), WRONG.values(), ids=WRONG)
def test_shapes_that_make_no_network_are_refused(sample: str, shapes: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightFileError, match=words):
        detect_config(COMPONENT_KEYS[sample][0], shapes)


def test_clip_without_projection_has_no_output_width() -> None:
    config: Any = detect_config("image_encoder", _shapes("clip", head=None))
    assert config.output_dim is None


def test_names_ignore_what_shapes_cannot_tell() -> None:
    assert variant_name(replace(T2V_14B, eps=1e-5)) == "T2V-14B"
    assert variant_name(replace(WAN_VAE, latents_mean=(0.0,) * 16)) == "Wan-VAE"
    assert variant_name(replace(CLIP_VIT_H, output_dim=None)) == "CLIP ViT-H/14"


def test_a_network_without_a_name_is_described() -> None:
    shallow = replace(T2V_1_3B, variant="i2v", in_channels=36, image_dim=1280, num_layers=20)
    assert variant_name(shallow) == "I2V (1536 wide, 20 blocks, 36 input channels)"


def test_the_difference_is_one_sentence() -> None:
    assert describe_difference(T2V_1_3B, I2V_14B) == "the file is T2V-1.3B, but I2V-14B is needed"
    assert describe_difference(T2V_14B, T2V_14B) == ""
