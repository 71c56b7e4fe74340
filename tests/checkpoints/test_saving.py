"""What is saved reads back bit for bit, in the reference reader too; and appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cygnet.checkpoints import (
    open_weights,
    read_component,
    save_diffusers_component,
    save_diffusers_pipeline,
    save_official,
    save_official_folder,
)
from cygnet.checkpoints.saving import staged_folder
from cygnet.errors import OutputError, StateMismatchError, WeightFileError
from weight_samples import COMPONENT_KEYS, pipeline_parts, sample_config, sample_state


@pytest.mark.parametrize("sample", COMPONENT_KEYS)
def test_an_official_file_reads_back_bit_for_bit(tmp_path: Path, sample: str) -> None:
    state = sample_state(sample)
    path = save_official(tmp_path / "x.safetensors", state, sample_config(sample))
    reference = load_file(path)
    assert set(reference) == set(state)
    assert all(reference[name].equal(value) for name, value in state.items())
    assert read_component(path).config == sample_config(sample)
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("sample", COMPONENT_KEYS)
def test_official_to_diffusers_to_official_is_the_identity(tmp_path: Path, sample: str) -> None:
    state = sample_state(sample)
    weights = read_component(save_diffusers_component(tmp_path / "x", state, sample_config(sample)))
    assert weights.layout != "official"
    assert weights.config == sample_config(sample)
    assert set(weights.names()) == set(state)
    assert all(weights.tensor(name).equal(value) for name, value in state.items())


def test_types_can_be_cast_and_every_stored_type_survives(tmp_path: Path) -> None:
    state = sample_state("umt5")
    path = save_official(tmp_path / "x.safetensors", state, sample_config("umt5"), dtype=torch.bfloat16)
    assert all(load_file(path)[name].equal(value.bfloat16()) for name, value in state.items())
    mixed = {"norm.weight": torch.ones(96).half(), "token_embedding.weight": torch.ones(5, 96).to(torch.float8_e5m2)}
    path = save_official(tmp_path / "y.safetensors", mixed, sample_config("umt5"))
    assert {name: value.dtype for name, value in load_file(path).items()} == {n: v.dtype for n, v in mixed.items()}


def test_views_scalars_and_empty_tensors_are_saved_right(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base.T, "b": base[1:, ::2], "c": torch.tensor(2.0), "d": torch.zeros(0, 3), "e": base[0]}
    reference = load_file(save_official(tmp_path / "x.safetensors", state, sample_config("umt5")))
    assert all(reference[name].equal(value) for name, value in state.items())


def test_a_text_encoder_can_carry_its_tokenizer(tmp_path: Path) -> None:
    config = sample_config("umt5")
    path = save_official(tmp_path / "x.safetensors", sample_state("umt5"), config, tokenizer=b"\x0a\x00spiece")
    assert read_component(path).tokenizer_bytes == b"\x0a\x00spiece"


def test_shards_hold_at_most_what_was_asked_and_open_as_one(tmp_path: Path) -> None:
    state = sample_state("t2v")
    folder = save_official_folder(tmp_path / "x", state, sample_config("t2v"), max_shard_bytes=2 * 10**6)
    weights = read_component(folder)
    assert len(weights.sources) > 3
    assert all(weights.tensor(name).equal(value) for name, value in state.items())
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in state.values())
    for file in weights.sources:
        opened = open_weights(folder).tensors
        held = [name for name, shard in index["weight_map"].items() if shard == file.name]
        assert len(held) == 1 or sum(opened[name].nbytes for name in held) <= 2 * 10**6
    assert json.loads((folder / "config.json").read_text())["model_type"] == "t2v"


@pytest.mark.parametrize("dit", ["t2v", "i2v", "flf2v"])
def test_a_pipeline_folder_has_all_its_parts(tmp_path: Path, dit: str) -> None:
    parts = pipeline_parts(dit)
    folder = save_diffusers_pipeline(tmp_path / "p", parts, tokenizer=b"spiece")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ("WanPipeline" if dit == "t2v" else "WanImageToVideoPipeline")
    for name in index:
        assert name.startswith("_") or (folder / name).is_dir()
    assert (folder / "tokenizer" / "spiece.model").read_bytes() == b"spiece"
    for name, (state, config) in parts.items():
        weights = read_component(folder, name)
        assert weights.config == config
        assert all(weights.tensor(key).equal(value) for key, value in state.items())


def test_a_pipeline_takes_the_tokenizer_of_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    with pytest.raises(WeightFileError, match=r"neither tokenizer\.json nor spiece\.model"):
        save_diffusers_pipeline(tmp_path / "p", pipeline_parts("t2v"), tokenizer=source)
    assert os.listdir(tmp_path) == ["tokenizer"]
    (source / "tokenizer.json").write_text("{}")
    (source / "secret.txt").write_text("not part of a tokenizer")
    folder = save_diffusers_pipeline(tmp_path / "p", pipeline_parts("t2v"), tokenizer=source)
    assert sorted(os.listdir(folder / "tokenizer")) == ["tokenizer.json", "tokenizer_config.json"]


def test_a_pipeline_without_a_needed_part_is_refused(tmp_path: Path) -> None:
    parts = pipeline_parts("i2v")
    del parts["image_encoder"], parts["vae"]
    with pytest.raises(WeightFileError, match="for i2v a pipeline also needs: vae, image_encoder"):
        save_diffusers_pipeline(tmp_path / "p", parts, tokenizer=b"")
    with pytest.raises(WeightFileError, match="needs a dit"):
        save_diffusers_pipeline(tmp_path / "p", {}, tokenizer=b"")
    swapped = {**pipeline_parts("t2v"), "vae": (sample_state("umt5"), sample_config("umt5"))}
    with pytest.raises(WeightFileError, match="the config given for vae is that of text_encoder"):
        save_diffusers_pipeline(tmp_path / "p", swapped, tokenizer=b"")


def test_a_name_outside_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"'mystery\.weight' has no name in the diffusers layout"):
        save_diffusers_component(tmp_path / "x", {"mystery.weight": torch.ones(1)}, sample_config("t2v"))
    assert os.listdir(tmp_path) == []


# Whole or not at all -------------------------------------------------------------------------------------------------


class Failing(Mapping[str, torch.Tensor]):
    """Weights that fail with ``error`` when the last of them is read for writing."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.reads = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.reads += 1
        if self.reads > 3:
            raise self.error
        return torch.ones(1000)

    def __iter__(self) -> Iterator[str]:
        return iter(["norm.weight", "token_embedding.weight"])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("before", [None, b"the previous file"])
def test_a_failed_save_leaves_what_was_there(tmp_path: Path, error: BaseException, before: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if before is not None:
        path.write_bytes(before)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        save_official(path, Failing(error), sample_config("umt5"), overwrite=True)
    assert os.listdir(tmp_path) == ([] if before is None else ["x.safetensors"])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_folder_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "old.json").write_text("old")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        save_diffusers_component(folder, Failing(error), sample_config("umt5"), overwrite=True)
    assert os.listdir(tmp_path) == ["x"]
    assert os.listdir(folder) == ["old.json"]


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"x\.safetensors could not be written: no space left; free some space"):
        save_official(
            tmp_path / "x.safetensors", Failing(OSError(errno.ENOSPC, "No space left")), sample_config("umt5")
        )


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    config, state = sample_config("umt5"), sample_state("umt5")
    path = save_official(tmp_path / "x.safetensors", state, config)
    folder = save_diffusers_component(tmp_path / "x", state, config)
    with pytest.raises(OutputError, match="exists; choose another name"):
        save_official(path, state, config)
    with pytest.raises(OutputError, match="exists; choose another name"):
        save_diffusers_component(folder, state, config)
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    save_official(path, zeros, config, overwrite=True)
    save_diffusers_component(folder, zeros, config, overwrite=True)
    assert read_component(path).tensor("norm.weight").sum() == 0
    assert read_component(folder).tensor("norm.weight").sum() == 0
    assert sorted(os.listdir(tmp_path)) == ["x", "x.safetensors"]


def test_a_folder_with_anything_but_weights_is_never_replaced(tmp_path: Path) -> None:
    folder = save_diffusers_component(tmp_path / "x", sample_state("umt5"), sample_config("umt5"))
    (folder / "deep").mkdir()
    (folder / "deep" / "thesis.docx").write_text("four years")
    with pytest.raises(OutputError, match=r"x also holds thesis\.docx, not of a model"):
        save_diffusers_component(folder, sample_state("umt5"), sample_config("umt5"), overwrite=True)
    assert (folder / "deep" / "thesis.docx").read_text() == "four years"
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(OutputError, match="no folder of its own"):
        save_diffusers_component(tmp_path / "link", sample_state("umt5"), sample_config("umt5"), overwrite=True)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with staged_folder(tmp_path / "x", overwrite=False) as staging:
        (staging / "new").write_text("new")
    assert os.listdir(tmp_path / "x") == ["new"]


def test_a_missing_parent_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written: no such file or directory"):
        save_official(tmp_path / "none" / "x.safetensors", sample_state("umt5"), sample_config("umt5"))
