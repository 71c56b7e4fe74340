from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cygnet.errors import RequestError
from cygnet.models.clip.config import CLIP_VIT_H, CLIPVisionConfig
from cygnet.models.clip.model import CLIPVision
from cygnet.models.clip.preprocess import PIXEL_MEAN, PIXEL_STD, preprocess
from support import (
    fill,
    filled_weights,
    golden_array,
    golden_facts,
    parameter_shapes,
    relative_l2,
    seeded_normal,
    seeded_weights,
)

TINY = CLIPVisionConfig(image_size=56, patch_size=14, dim=64, mlp_dim=256, num_heads=4, num_layers=3, output_dim=None)


@functools.cache
def golden_tower() -> CLIPVision:
    facts: dict[str, Any] = golden_facts()["clip"]
    config = CLIPVisionConfig(
        image_size=facts["image_size"],
        patch_size=facts["patch_size"],
        dim=facts["dim"],
        mlp_dim=facts["dim"] * facts["mlp_ratio"],
        num_heads=facts["num_heads"],
        num_layers=facts["num_layers"],
        output_dim=facts["out_dim"],
    )
    tower = CLIPVision(config)
    tower.load_state_dict(seeded_weights(facts["keys"]), assign=True)
    return tower.requires_grad_(False)


def tiny_tower() -> CLIPVision:
    tower = CLIPVision(TINY)
    tower.load_state_dict(filled_weights(parameter_shapes(tower)), assign=True)
    return tower.requires_grad_(False)


def test_parameter_names_and_shapes_are_the_official_ones() -> None:
    expected = {name: tuple(shape) for name, shape in golden_facts()["clip"]["keys"].items()}
    assert parameter_shapes(golden_tower()) == expected


def test_the_published_tower_has_392_tensors_and_their_sizes() -> None:
    with torch.device("meta"):
        shapes = parameter_shapes(CLIPVision(CLIP_VIT_H))
    assert len(shapes) == 392
    assert shapes["pos_embedding"] == (1, 257, 1280)
    assert shapes["head"] == (1280, 1024)
    assert shapes["transformer.31.attn.to_qkv.weight"] == (3840, 1280)


def test_penultimate_tokens_equal_the_reference() -> None:
    out = golden_tower()(seeded_normal("clip.image", (2, 3, 56, 56)))
    assert relative_l2(out, golden_array("clip.penultimate")) < 1e-5


def test_tokens_with_hash_weights_are_the_published_ones() -> None:
    tokens = tiny_tower()(fill("in.img", (1, 3, 56, 56)))[0]
    assert tokens.shape == (17, 64)
    assert float(tokens.mean()) == pytest.approx(0.102926, abs=2e-6)
    assert float(tokens.std(unbiased=False)) == pytest.approx(1.580588, abs=2e-6)
    assert float(tokens.abs().mean()) == pytest.approx(1.268948, abs=2e-6)
    samples = [float(tokens[0, 0]), float(tokens[5, 17]), float(tokens[16, 63])]
    assert samples == pytest.approx([1.04348, -1.25956, -0.88020], abs=1e-5)


def test_last_block_and_closing_norm_are_not_used() -> None:
    tower, changed = tiny_tower(), tiny_tower()
    changed.get_parameter("transformer.2.mlp.2.weight").add_(1)
    changed.post_norm.weight.add_(1)
    pixels = fill("in.img", (1, 3, 56, 56))
    assert torch.equal(tower(pixels), changed(pixels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype) -> None:
    pixels = fill("in.img", (1, 3, 56, 56))
    out = tiny_tower().to(dtype)(pixels.to(dtype))
    assert out.dtype == dtype
    assert relative_l2(out, tiny_tower()(pixels)) < 0.05


@pytest.mark.parametrize("shape", [(3, 56, 56), (1, 3, 56, 70), (1, 4, 56, 56), (1, 3, 224, 224)])
def test_another_picture_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"\[batch, 3, 56, 56\]") as error:
        tiny_tower()(torch.zeros(shape))
    assert error.value.field == "image"


def test_preprocessing_equals_the_reference() -> None:
    photo = torch.tanh(seeded_normal("clip.photo", (3, 90, 70)))
    assert relative_l2(F.avg_pool2d(preprocess(photo), 8), golden_array("clip.preprocessed")) < 1e-5


def test_preprocessing_maps_black_and_white_to_the_training_statistics() -> None:
    for pixel, level in [(-1.0, 0.0), (1.0, 1.0)]:
        out = preprocess(torch.full((3, 5, 9), pixel), size=28)
        expected = [(level - mean) / std for mean, std in zip(PIXEL_MEAN, PIXEL_STD, strict=True)]
        assert out.shape == (1, 3, 28, 28)
        assert out.mean(dim=(0, 2, 3)).tolist() == pytest.approx(expected, abs=1e-5)


def test_preprocessing_a_batch_is_preprocessing_each_picture() -> None:
    photos = torch.tanh(seeded_normal("photos", (2, 3, 20, 30)))
    torch.testing.assert_close(preprocess(photos, 28), torch.cat([preprocess(photo, 28) for photo in photos]))


@pytest.mark.parametrize("shape", [(20, 30), (1, 20, 30), (3, 0, 30), (1, 1, 3, 20, 30)])
def test_preprocessing_refuses_what_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="height, width") as error:
        preprocess(torch.zeros(shape))
    assert error.value.field == "image"
