"""Header notes and config.json fill in what shapes cannot tell, and are contradicted by the tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.checkpoints import read_component, save_official
from cygnet.checkpoints.detect import detect_config
from cygnet.checkpoints.diffusers_config import component_config, official_config
from cygnet.checkpoints.hints import METADATA_KEY
from cygnet.errors import WeightFileError
from weight_samples import COMPONENT_KEYS, sample_shapes, sample_state, save


def _folder(folder: Path, sample: str, config: dict[str, Any] | str) -> Path:
    name = "diffusion_pytorch_model" if sample in ("t2v", "i2v", "flf2v", "vae") else "model"
    save(folder / f"{name}.safetensors", {n: torch.zeros(s) for n, s in sample_shapes(sample).items()})
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


def _config(sample: str, **changes: Any) -> dict[str, Any]:
    detected = detect_config(COMPONENT_KEYS[sample][0], sample_shapes(sample))
    return component_config(detected) | changes


def _official(**changes: Any) -> dict[str, Any]:
    detected: Any = detect_config("dit", sample_shapes("t2v"))
    return official_config(detected) | changes


def test_a_config_fills_in_epsilon_statistics_and_lengths(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    dit: Any = read_component(_folder(tmp_path / "a", "t2v", _official(eps=1e-5, text_len=64))).config
    assert (dit.eps, dit.text_length) == (1e-5, 64)
    vae: Any = read_component(_folder(tmp_path / "b", "vae", _config("vae", latents_std=[2.0] * 16))).config
    assert vae.latents_std == (2.0,) * 16
    text: Any = read_component(
        _folder(tmp_path / "c", "umt5", _config("umt5", relative_attention_max_distance=64))
    ).config
    assert text.max_distance == 64
    eye: Any = read_component(_folder(tmp_path / "d", "clip", _config("clip", num_attention_heads=4))).config
    assert eye.num_heads == 4


@pytest.mark.parametrize("sample", ["t2v", "i2v", "flf2v", "vae", "umt5", "clip"])
def test_the_configs_that_cygnet_writes_agree_with_the_tensors(tmp_path: Path, sample: str) -> None:
    weights = read_component(_folder(tmp_path, sample, _config(sample)))
    assert weights.config == detect_config(COMPONENT_KEYS[sample][0], sample_shapes(sample))


WRONG: dict[str, tuple[str, dict[str, Any] | str, str]] = {
    "layers": ("t2v", _official(num_layers=10**9), r"num_layers is 1000000000; it must be a whole number from 1"),
    "no heads": ("t2v", _official(num_heads=0), "num_heads is 0"),
    "negative": ("t2v", _official(dim=-256), "dim is -256"),
    "not divisible": ("t2v", _official(num_heads=3), "says num_heads = 3, but the tensors say 2"),
    "other size": ("t2v", _official(num_layers=30), "says num_layers = 30, but the tensors say 3"),
    "text": ("t2v", _official(dim="256"), "dim is 256; it must be a whole number"),
    "boolean": ("t2v", _official(num_layers=True), "num_layers is True"),
    "fraction": ("t2v", _official(num_layers=3.0), "num_layers is 3.0"),
    "NaN": ("t2v", json.dumps(_official(eps=float("nan"))), "holds NaN"),
    "infinite": ("t2v", json.dumps(_official()).replace("1e-06", "1e999"), "eps is inf"),
    "zero epsilon": ("t2v", _official(eps=0), "eps is 0"),
    "extra field": ("t2v", _official(ladder_layers=[0, 5]), "the field 'ladder_layers', which Wan 2.1 has not"),
    "extra in Diffusers": ("t2v", _config("t2v", mystery=1), "the field 'mystery'"),
    "head width": ("t2v", _config("t2v", attention_head_dim=64), "attention_head_dim is 64; Wan 2.1 has 128"),
    "norm": ("t2v", _config("t2v", qk_norm=None), "qk_norm is null"),
    "one for true": ("t2v", _config("t2v", cross_attn_norm=1), "cross_attn_norm is 1"),
    "Wan 2.2 VAE": ("vae", _config("vae", is_residual=True), "is_residual is true; Wan 2.1 has false"),
    "statistics": ("vae", _config("vae", latents_mean=[0.0] * 15), "one value per latent channel"),
    "zero deviation": ("vae", _config("vae", latents_std=[0.0] * 16), "latents_std must be above 0"),
    "statistics of text": ("vae", _config("vae", latents_mean=["a"] * 16), "finite numbers"),
    "many statistics": ("vae", _config("vae", latents_mean=[0.0] * 300), "at most 256"),
    "quick gelu": ("clip", _config("clip", hidden_act="quick_gelu"), 'hidden_act is "quick_gelu"; Wan 2.1 has "gelu"'),
    "heads against width": ("clip", _config("clip", num_attention_heads=3), "160 does not split into 3 heads"),
    "other kind": ("t2v", _official(model_type="ti2v"), "says model_type = 'ti2v', but the tensors are those of a t2v"),
    "not JSON": ("t2v", "{", "nested more than 8 levels deep, or its brackets do not match"),
    "deep": ("t2v", '{"a":' * 100 + "1" + "}" * 100, "nested more than 8"),
    "large": ("t2v", '{"a":"' + "x" * 2**20 + '"}', "larger than 1,048,576 bytes"),
    "repeated": ("t2v", '{"dim": 1, "dim": 2}', "names 'dim' twice"),
}


@pytest.mark.parametrize(("sample", "config", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_config_is_refused_by_field(
    tmp_path: Path, sample: str, config: dict[str, Any] | str, words: str
) -> None:
    with pytest.raises(WeightFileError, match=words):
        read_component(_folder(tmp_path, sample, config))


@pytest.mark.parametrize("value", [[], {}, 5, None, [[1]], {"a": "WanModel"}])
def test_a_config_of_no_known_class_says_nothing(tmp_path: Path, value: Any) -> None:
    weights = read_component(_folder(tmp_path, "t2v", {"_class_name": value, "architectures": value, "dim": 5}))
    assert weights.config == detect_config("dit", sample_shapes("t2v"))


def test_settings_of_transformers_that_shapes_cannot_use_are_passed_over(tmp_path: Path) -> None:
    weights = read_component(_folder(tmp_path, "umt5", _config("umt5", use_cache=True, dropout_rate=0.1)))
    assert weights.variant.startswith("tiny UMT5")


def test_a_config_beside_an_unrelated_file_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "my_model_v2.safetensors", sample_state("t2v"))
    (tmp_path / "config.json").write_text(json.dumps(_official(num_layers=30)))
    assert read_component(path).variant.startswith("tiny T2V")


def test_a_pipe_as_config_never_blocks(tmp_path: Path) -> None:
    _folder(tmp_path, "t2v", "{}")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(WeightFileError, match="is a pipe"):
        read_component(tmp_path)


def test_a_saved_file_carries_what_its_shapes_cannot_tell(tmp_path: Path) -> None:
    state = sample_state("vae")
    config: Any = detect_config("vae", sample_shapes("vae"))
    mine = type(config)(base_width=config.base_width, latents_mean=(0.5,) * 16, latents_std=(3.0,) * 16)
    path = save_official(tmp_path / "vae.safetensors", state, mine)
    assert read_component(path).config == mine


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ('{"eps": -1}', "eps is -1"),
        ('{"dim": 5}', "unknown field 'dim'"),
        ('{"eps": NaN}', "NaN"),
        ("[]", "not an object"),
        ('{"text_length": 1000000}', "text_length is 1000000"),
    ],
)
def test_a_wrong_note_in_the_header_is_refused(tmp_path: Path, note: str, words: str) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("t2v"), {METADATA_KEY: note})
    with pytest.raises(WeightFileError, match=words):
        read_component(path)
