from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cygnet.assembly import (
    load_components,
    load_dit,
    load_image_encoder,
    load_text_encoder,
    load_vae,
)
from cygnet.checkpoints import catalogue, save_official
from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.errors import ModelNotFoundError, RequestError, StateMismatchError, UnknownLayoutError, WeightFileError
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5Config
from cygnet.runtime.residency import Resident, StageResidency
from cygnet.types import ComponentName, Progress
from random_models import CLIP, VAE, dit_config, spiece, state_of, text_config, write_model
from support import fill


@pytest.fixture(scope="module")
def t2v(tmp_path_factory: pytest.TempPathFactory) -> dict[ComponentName, Path]:
    return write_model(tmp_path_factory.mktemp("t2v"), "t2v")


def test_every_loader_gives_the_architecture_that_was_saved(i2v_parts: dict[ComponentName, Path]) -> None:
    assert load_dit(i2v_parts["dit"]).config == dit_config("i2v")
    assert load_vae(i2v_parts["vae"]).config == VAE
    assert load_text_encoder(i2v_parts["text_encoder"]).model.config == text_config()
    assert load_image_encoder(i2v_parts["image_encoder"]).model.config == CLIP


def test_loaded_weights_are_the_saved_ones_and_not_trainable(i2v_parts: dict[ComponentName, Path]) -> None:
    dit = load_dit(i2v_parts["dit"])
    saved = load_file(i2v_parts["dit"])
    assert all(torch.equal(value, saved[name]) for name, value in dit.state_dict().items())
    assert not any(parameter.requires_grad for parameter in dit.parameters())
    assert not dit.training


def test_a_dtype_by_name_leaves_the_sensitive_parts_of_the_transformer_in_float32(
    i2v_parts: dict[ComponentName, Path],
) -> None:
    dit = load_dit(i2v_parts["dit"], dtype="bf16")
    kept = {name for name, parameter in dit.named_parameters() if parameter.dtype == torch.float32}
    assert {"head.head.weight", "blocks.0.modulation", "blocks.1.norm3.weight", "patch_embedding.weight"} <= kept
    assert "blocks.0.self_attn.q.weight" not in kept
    assert all(any(part in name for part in DiT.fp32_parameters) for name in kept)


def test_text_is_encoded_with_the_tokenizer_inside_the_file(i2v_parts: dict[ComponentName, Path]) -> None:
    text = load_text_encoder(i2v_parts["text_encoder"])
    assert text.tokenizer is not None
    ids = text.tokenizer.encode("a red ball")
    features = text.encode("a red ball")
    assert features.shape == (len(ids), 32)
    with torch.no_grad():
        torch.testing.assert_close(features, text.model(torch.tensor([ids]))[0])


def test_a_picture_is_encoded_to_its_tokens(i2v_parts: dict[ComponentName, Path]) -> None:
    eye = load_image_encoder(i2v_parts["image_encoder"])
    assert eye.encode(fill("picture", [3, 30, 50])).shape == (CLIP.num_tokens, CLIP.dim)
    with pytest.raises(RequestError, match=r"give \[3, height, width\]"):
        eye.encode(torch.zeros(1, 3, 8, 8))


def without_tokenizer(folder: Path) -> Path:
    return save_official(folder / "text_encoder.safetensors", state_of(text_config()), text_config())


@pytest.mark.parametrize("place", [".", "tokenizer", "google/umt5-xxl"])
def test_a_tokenizer_beside_the_file_is_found(tmp_path: Path, place: str) -> None:
    path = without_tokenizer(tmp_path)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "spiece.model").write_bytes(spiece())
    assert load_text_encoder(path).encode("a red ball").shape[1] == 32


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_tokenizer_can_be_named(tmp_path: Path, named: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "spiece.model").write_bytes(spiece())
    tokenizer = elsewhere / "spiece.model" if named == "file" else elsewhere
    text = load_text_encoder(without_tokenizer(tmp_path), tokenizer=tokenizer)
    assert text.encode("a red ball").shape[1] == 32


def test_a_text_encoder_without_tokenizer_still_has_its_model(tmp_path: Path) -> None:
    text = load_text_encoder(without_tokenizer(tmp_path))
    assert text.model(torch.tensor([[3, 1]])).shape == (1, 2, 32)
    with pytest.raises(WeightFileError, match=r"put its tokenizer\.json or spiece\.model beside it"):
        text.encode("a red ball")


def test_a_given_config_is_used_and_one_of_another_kind_refused(
    tmp_path: Path, i2v_parts: dict[ComponentName, Path]
) -> None:
    other = UMT5Config(vocab_size=8, dim=8, attention_dim=8, ffn_dim=8, num_heads=1, num_layers=1)
    with pytest.raises(StateMismatchError):
        load_text_encoder(i2v_parts["text_encoder"], config=other)
    with pytest.raises(RequestError, match="config is a UMT5Config"):
        load_vae(i2v_parts["vae"], config=other)  # type: ignore[arg-type]


def test_the_file_of_another_network_is_refused_in_words(i2v_parts: dict[ComponentName, Path]) -> None:
    with pytest.raises(UnknownLayoutError, match="is a Wan-VAE, but a diffusion transformer is needed"):
        load_dit(i2v_parts["vae"])


def test_a_model_is_loaded_from_a_mapping_a_folder_and_a_combined_file(
    tmp_path: Path, t2v: dict[ComponentName, Path]
) -> None:
    combined: dict[str, torch.Tensor] = {}
    prefixes = {"dit": "model.diffusion_model.", "vae": "vae.", "text_encoder": "text_encoders.umt5xxl.transformer."}
    for part, path in t2v.items():
        combined |= {prefixes[part] + name: value for name, value in load_file(path).items()}
    save_file(combined, tmp_path / "all.safetensors")
    (tmp_path / "spiece.model").write_bytes(spiece())
    for source in (t2v, str(t2v["dit"].parent), t2v["dit"].parent, tmp_path / "all.safetensors"):
        model = load_components(source, device="cpu")
        assert model.components.dit == dit_config("t2v")
        assert model.name is None


def test_a_part_that_is_none_is_absent_and_odd_sources_are_refused_in_words(t2v: dict[ComponentName, Path]) -> None:
    assert load_components({**t2v, "image_encoder": None}, device="cpu").components.dit == dit_config("t2v")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="not NoneType"):
        load_components(None)  # type: ignore[arg-type]
    for loras in ("a.safetensors", [("a", 1, 2)], [5]):
        with pytest.raises(RequestError, match=r"give a list of paths|is no LoRA"):
            load_components(t2v, loras=loras)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="meta"):
        load_components(t2v, device="meta")


def test_a_transformer_for_fewer_rows_of_text_is_refused(tmp_path: Path) -> None:
    parts = write_model(tmp_path, "t2v")
    dit = tmp_path / "dit" / "diffusion_pytorch_model.safetensors"
    dit.parent.mkdir()
    parts["dit"].rename(dit)
    (dit.parent / "config.json").write_text('{"_class_name": "WanModel", "text_len": 77}')
    with pytest.raises(StateMismatchError, match="77 rows of text"):
        load_components({**parts, "dit": dit})


def test_only_the_parts_that_the_transformer_needs_are_asked_for(t2v: dict[ComponentName, Path]) -> None:
    without_vae: dict[ComponentName, Path] = {name: path for name, path in t2v.items() if name != "vae"}
    with pytest.raises(ModelNotFoundError, match="the Wan-VAE is missing: tiny T2V"):
        load_components(without_vae)


def test_a_picture_model_also_needs_an_image_encoder(i2v_parts: dict[ComponentName, Path]) -> None:
    without_eye: dict[ComponentName, Path] = {name: path for name, path in i2v_parts.items() if name != "image_encoder"}
    with pytest.raises(ModelNotFoundError, match="the CLIP image encoder is missing: tiny I2V"):
        load_components(without_eye)


def test_parts_of_different_models_are_refused_before_weights_are_read(
    tmp_path: Path, t2v: dict[ComponentName, Path]
) -> None:
    config = UMT5Config(vocab_size=text_config().vocab_size, dim=48, attention_dim=32, ffn_dim=8, num_heads=2,
                        num_layers=1)  # fmt: skip
    wrong = save_official(tmp_path / "wide.safetensors", state_of(config), config, tokenizer=spiece())
    with pytest.raises(StateMismatchError, match=r"wide\.safetensors is tiny UMT5 .* with 48 features, but tiny T2V"):
        load_components({**t2v, "text_encoder": wrong})


def test_a_component_that_does_not_exist_is_named(t2v: dict[ComponentName, Path]) -> None:
    with pytest.raises(RequestError, match="'unet' is no component; there are: dit, vae"):
        load_components({**{str(name): path for name, path in t2v.items()}, "unet": t2v["dit"]})


@pytest.mark.parametrize("source", ["no-such-model", "/no/such/folder", "./x.safetensors", Path("gone")])
def test_names_and_paths_that_lead_nowhere_are_told(source: str | Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load_components(source)
    assert "/no/such" not in str(caught.value)


def test_a_published_model_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match=r"cygnet pull t2v-1\.3b"):
        load_components("t2v-1.3b")


def test_embedded_models_and_their_parts_are_loaded_by_name(
    tmp_path: Path,
    i2v_parts: dict[ComponentName, Path],
    t2v: dict[ComponentName, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for part, path in i2v_parts.items():
        shutil.copy(path, tmp_path / ("i2v.safetensors" if part == "dit" else path.name))
    shutil.copy(t2v["dit"], tmp_path / "t2v.safetensors")
    monkeypatch.setattr(catalogue, "EMBEDDED", tmp_path)
    assert load_components("tiny-t2v", device="cpu").name == "tiny-t2v"
    assert load_components("Tiny-I2V", device="cpu").components.image_encoder == CLIP
    assert load_vae("tiny-vae").config == VAE
    assert load_dit("tiny-i2v").config.variant == "i2v"
    assert load_text_encoder("tiny-text-encoder").tokenizer is not None
    assert load_image_encoder("tiny-image-encoder").model.config == CLIP


def test_the_embedded_models_live_in_the_package() -> None:
    assert EMBEDDED.parts[-3:] == ("cygnet", "weights", "tiny")


def test_loading_tells_its_progress(t2v: dict[ComponentName, Path]) -> None:
    seen: list[Progress] = []
    load_components(t2v, device="cpu", offload=False, on_progress=seen.append)
    assert [(report.phase, report.step, report.total) for report in seen] == [("load", step, 3) for step in range(4)]


def test_offloading_reads_nothing_until_it_is_needed(t2v: dict[ComponentName, Path]) -> None:
    model = load_components(t2v, device="cpu", offload=True)
    assert isinstance(model.residency.now, StageResidency)
    assert model.residency.now.present == ()


def test_small_models_stay_in_memory(t2v: dict[ComponentName, Path]) -> None:
    assert isinstance(load_components(t2v, device="cpu").residency.now, Resident)


def test_the_description_names_files_without_folders_and_digests(t2v: dict[ComponentName, Path]) -> None:
    described = load_components(t2v, device="cpu", dtype="float32").describe()
    dit = described["components"]["dit"]
    assert dit["files"] == ["dit.safetensors"]
    assert dit["digest"].startswith("sha256:")
    assert dit["dtype"] == "float32"
