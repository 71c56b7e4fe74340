"""Inspection says what a path is and can serve, from headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cygnet.checkpoints import WeightFile, inspect, save_diffusers_pipeline, save_official
from cygnet.errors import WeightFileError
from weight_samples import official_repository, pipeline_parts, sample_config, sample_state, save


def test_a_single_file_is_described(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in sample_state("i2v").items()}
    path = save(tmp_path / "x.safetensors", state)
    found = inspect(path)
    [part] = found.components
    assert (part.component, part.layout, part.format, part.quantisation) == ("dit", "official", "safetensors", "none")
    assert part.variant == "tiny I2V (256 wide, 3 blocks, 36 input channels)"
    assert part.parameters == sum(value.numel() for value in state.values())
    assert part.bytes == 2 * part.parameters
    assert part.dtypes == {"float16": len(state)}
    assert found.serves == ("image-to-video",)
    assert found.missing == ("a Wan-VAE", "a UMT5 text encoder", "a CLIP image encoder", "a tokenizer")


def test_an_official_repository_is_described(tmp_path: Path) -> None:
    found = inspect(official_repository(tmp_path / "r"))
    assert found.kind == "official"
    assert {part.component for part in found.components} == {"dit", "vae", "text_encoder", "image_encoder"}
    assert found.serves == ("image-to-video",)
    assert found.missing == ()


def test_a_pipeline_is_described_as_json(tmp_path: Path) -> None:
    folder = save_diffusers_pipeline(tmp_path / "p", pipeline_parts("t2v"), tokenizer=b"x", dtype=torch.bfloat16)
    told = json.loads(json.dumps(inspect(folder).to_json()))
    assert told["kind"] == "diffusers"
    assert told["serves"] == ["text-to-video", "text-to-image", "video-to-video"]
    assert told["missing"] == []
    assert told["tokenizer"] == "tokenizer"
    dit = next(part for part in told["components"] if part["component"] == "dit")
    assert dit["files"] == ["transformer/diffusion_pytorch_model.safetensors"]
    assert dit["config"]["num_layers"] == 3
    assert set(dit["dtypes"]) == {"bfloat16"}


def test_a_part_alone_serves_nothing_yet(tmp_path: Path) -> None:
    found = inspect(save(tmp_path / "x.safetensors", sample_state("vae")))
    assert (found.serves, found.missing) == ((), ("a diffusion transformer",))


def test_an_embedded_tokenizer_counts(tmp_path: Path) -> None:
    path = save_official(tmp_path / "x.safetensors", sample_state("umt5"), sample_config("umt5"), tokenizer=b"abc")
    [part] = inspect(path).components
    assert part.has_tokenizer
    assert part.bytes == 4 * part.parameters + 3


def test_no_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("t2v"))

    def forbidden(_: WeightFile, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(WeightFile, "tensor", forbidden)
    assert inspect(path).serves


def test_safetensors_are_described_without_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("vae"))
    program = (
        "import sys; from cygnet.checkpoints import inspect; found = inspect(sys.argv[1]);"
        "assert found.components[0].component == 'vae'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("vae"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightFileError, match="truncated"):
        inspect(path)
