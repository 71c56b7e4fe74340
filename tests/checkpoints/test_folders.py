"""Folders of every published arrangement are taken apart by content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cygnet.checkpoints import read_component, resolve_pipeline_folder, save_diffusers_pipeline
from cygnet.errors import ModelNotFoundError, WeightFileError
from weight_samples import official_repository, pipeline_parts, sample_state, save


def test_an_official_repository_is_taken_apart(tmp_path: Path) -> None:
    folder = official_repository(tmp_path / "repository")
    found = resolve_pipeline_folder(folder)
    assert found.kind == "official"
    assert {name: path.name for name, path in found.components.items()} == {
        "dit": "diffusion_pytorch_model.safetensors.index.json",
        "vae": "Wan2.1_VAE.pth",
        "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
        "image_encoder": "models_clip_open-clip.pth",
    }
    assert found.tokenizer == folder / "google" / "umt5-xxl"
    for name in found.components:
        assert read_component(folder, name).component == name
    assert read_component(folder, "dit").variant.startswith("tiny I2V")


def test_a_diffusers_pipeline_is_taken_apart(tmp_path: Path) -> None:
    folder = save_diffusers_pipeline(tmp_path / "p", pipeline_parts("t2v"), tokenizer=b"x")
    found = resolve_pipeline_folder(folder)
    assert found.kind == "diffusers"
    assert {name: path.name for name, path in found.components.items()} == {
        "dit": "transformer",
        "vae": "vae",
        "text_encoder": "text_encoder",
    }
    assert found.tokenizer == folder / "tokenizer"
    with pytest.raises(ModelNotFoundError, match="has no CLIP image encoder; it has: a diffusion transformer, "):
        read_component(folder, "image_encoder")
    with pytest.raises(WeightFileError, match="is a whole pipeline; say which component"):
        read_component(folder)


def test_single_files_side_by_side_are_told_apart(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", sample_state("t2v"))
    save(tmp_path / "b.safetensors", sample_state("vae"))
    save(tmp_path / "lora.safetensors", {"blocks.0.self_attn.q.lora_A.weight": torch.ones(1, 1)})
    save(tmp_path / "taew.safetensors", {"decoder.1.weight": torch.ones(1), "decoder.3.conv.0.weight": torch.ones(1)})
    found = resolve_pipeline_folder(tmp_path)
    assert found.kind == "flat"
    assert {name: path.name for name, path in found.components.items()} == {
        "dit": "a.safetensors",
        "vae": "b.safetensors",
    }
    assert "LoRA" in found.skipped["lora.safetensors"]
    assert "TAEHV" in found.skipped["taew.safetensors"]
    assert found.tokenizer is None


def test_two_of_a_kind_ask_which(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", sample_state("vae"))
    save(tmp_path / "b.safetensors", sample_state("vae"))
    with pytest.raises(WeightFileError, match=r"a Wan-VAE twice: a\.safetensors and b\.safetensors; name the one"):
        resolve_pipeline_folder(tmp_path)


def test_a_folder_without_models_is_told_with_reasons(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not a folder"):
        resolve_pipeline_folder(tmp_path / "none")
    with pytest.raises(ModelNotFoundError, match=r"holds no component of Wan 2\.1$"):
        resolve_pipeline_folder(tmp_path)
    save(tmp_path / "x.safetensors", {"unet.conv.weight": torch.ones(1)})
    with pytest.raises(ModelNotFoundError, match=r"x\.safetensors: none of the 1 tensor names"):
        resolve_pipeline_folder(tmp_path)
