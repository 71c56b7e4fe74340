"""Names of models, and what of them is found on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cygnet.checkpoints import catalogue
from cygnet.checkpoints.catalogue import ENTRIES, entry, look_for, resolve
from cygnet.errors import ModelNotFoundError
from cygnet.models.dit import config as dit

COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "CYGNET_MODEL_PATHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / ".cache"))
    monkeypatch.setenv("CYGNET_HOME", str(tmp_path / "cygnet"))
    return tmp_path / "home" / ".cache" / "huggingface" / "hub"


def snapshot(cache: Path, repo: str, files: list[str], commit: str = COMMIT, *, main: bool = True) -> Path:
    storage = cache / f"models--{repo.replace('/', '--')}"
    for name in files:
        path = storage / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    if main:
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / "main").write_text(commit)
    return storage / "snapshots" / commit


OFFICIAL = ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/spiece.model", "config.json"]


def test_the_published_names_are_there_with_true_sizes() -> None:
    assert catalogue.NAMES == (
        "tiny-t2v", "tiny-i2v", "t2v-1.3b", "t2v-14b", "i2v-14b-480p", "i2v-14b-720p", "flf2v-14b-720p",
    )  # fmt: skip
    official = entry("T2V-1.3B").source("official")
    assert next(file.bytes for file in official.select() if file.role == "dit") == 5_675_987_200
    assert all(model.licence == "Apache-2.0" for model in ENTRIES)
    assert {model.task for model in ENTRIES} == {
        preset.variant for preset in (dit.T2V_1_3B, dit.T2V_14B, dit.I2V_14B, dit.FLF2V_14B)
    }


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_every_source_has_each_component_once_and_image_models_need_the_image_encoder(name: str) -> None:
    model = entry(name)
    assert ("image_encoder" in model.components) == (model.task != "t2v")
    for source in model.sources:
        for dtype in source.choices:
            roles = {file.role for file in source.select(dtype)}
            assert roles - {"tokenizer"} == set(model.components), (source.name, dtype)
            assert ("tokenizer" in roles) == (source.name != "comfy")  # ComfyUI keeps it inside the text encoder


def test_an_unknown_name_lists_the_names_and_the_nearest() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'i2v-14b'; did you mean i2v-14b-480p or i2v-14b-720p\? names"):
        resolve("i2v-14b")


def test_an_absent_model_says_what_is_missing_and_what_to_run() -> None:
    with pytest.raises(ModelNotFoundError, match=r"cygnet pull t2v-1\.3b \(about 18 GB\)"):
        resolve("t2v-1.3b")


def test_an_official_repository_in_the_cache_is_found(cache: Path) -> None:
    folder = snapshot(cache, "Wan-AI/Wan2.1-T2V-1.3B", [*OFFICIAL, "diffusion_pytorch_model.safetensors"])
    assert resolve("t2v-1.3b") == {
        "dit": folder / "diffusion_pytorch_model.safetensors",
        "vae": folder / "Wan2.1_VAE.pth",
        "text_encoder": folder / "models_t5_umt5-xxl-enc-bf16.pth",
    }


def test_shards_count_only_when_all_are_there(cache: Path) -> None:
    repo, index = "Wan-AI/Wan2.1-T2V-14B", "diffusion_pytorch_model.safetensors.index.json"
    shards = [f"diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    folder = snapshot(cache, repo, [*OFFICIAL, index, *shards[:2]])
    assert look_for("t2v-14b").missing == ("dit",)
    snapshot(cache, repo, shards[2:])
    assert resolve("t2v-14b")["dit"] == folder / index


def test_a_text_encoder_without_its_tokenizer_does_not_count(cache: Path) -> None:
    names = [name for name in OFFICIAL if not name.startswith("google")]
    snapshot(cache, "Wan-AI/Wan2.1-T2V-1.3B", [*names, "diffusion_pytorch_model.safetensors"])
    with pytest.raises(ModelNotFoundError, match=r"text encoder missing"):
        resolve("t2v-1.3b")


def test_what_all_models_share_is_taken_from_another_model(cache: Path) -> None:
    shared = snapshot(cache, "Wan-AI/Wan2.1-T2V-1.3B", OFFICIAL)
    own = snapshot(cache, "Wan-AI/Wan2.1-T2V-14B", ["diffusion_pytorch_model.safetensors"])
    paths = resolve("t2v-14b")
    assert paths["dit"].parent == own
    assert paths["vae"].parent == shared


def test_a_diffusers_repository_is_found_by_its_folders(cache: Path) -> None:
    folder = snapshot(
        cache,
        "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        [
            "model_index.json",
            "tokenizer/tokenizer.json",
            *(f"{part}/model.safetensors" for part in ("transformer", "vae", "text_encoder", "image_encoder")),
        ],
    )
    assert resolve("flf2v-14b-720p") == {
        "dit": folder / "transformer",
        "vae": folder / "vae",
        "text_encoder": folder / "text_encoder",
        "image_encoder": folder / "image_encoder",
    }


def test_the_snapshot_that_main_names_is_preferred_to_newer_ones(cache: Path) -> None:
    files = [*OFFICIAL, "diffusion_pytorch_model.safetensors"]
    main = snapshot(cache, "Wan-AI/Wan2.1-T2V-1.3B", files)
    snapshot(cache, "Wan-AI/Wan2.1-T2V-1.3B", files, "b" * 40, main=False)
    assert resolve("t2v-1.3b")["dit"].parent == main


def test_comfyui_folders_come_before_the_cache_and_16_bit_before_8(cache: Path, tmp_path: Path) -> None:
    snapshot(cache, "Wan-AI/Wan2.1-T2V-1.3B", [*OFFICIAL, "diffusion_pytorch_model.safetensors"])
    models = tmp_path / "comfy" / "models"
    for name in (
        "diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors",
        "unet/deep/wan2.1_i2v_480p_14B_fp16.safetensors",
        "unet/wan2.1_i2v_720p_14B_bf16.safetensors",
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "clip_vision/clip_vision_h.safetensors",
        "vae/wan_2.1_vae.safetensors",
        "vae/other.safetensors",
    ):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(b"x")
    paths = resolve("i2v-14b-480p", places=[tmp_path / "comfy"])
    assert {part: path.relative_to(models).as_posix() for part, path in paths.items()} == {
        "dit": "unet/deep/wan2.1_i2v_480p_14B_fp16.safetensors",
        "vae": "vae/wan_2.1_vae.safetensors",
        "text_encoder": "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "image_encoder": "clip_vision/clip_vision_h.safetensors",
    }


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/x/hub"}, "/x/hub"),
        ({"HF_HOME": "/x/home"}, "/x/home/hub"),
        ({"HF_HUB_CACHE": "/x/hub", "HF_HOME": "/y"}, "/x/hub"),
        ({"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_own_library_has_it(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert catalogue.default_cache() == Path(folder)


def test_the_embedded_model_is_found_where_the_package_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "EMBEDDED", tmp_path)
    with pytest.raises(ModelNotFoundError, match="install cygnet again"):
        resolve("tiny-i2v")
    for name in ("vae", "t2v", "i2v", "text_encoder", "image_encoder"):
        (tmp_path / f"{name}.safetensors").write_bytes(json.dumps(name).encode())
    assert set(resolve("tiny-t2v")) == {"dit", "vae", "text_encoder"}
    assert resolve("tiny-i2v")["dit"].name == "i2v.safetensors"
