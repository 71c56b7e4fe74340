"""Paths of every kind are opened, or refused in words without blocking."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from cygnet.checkpoints.open import open_weights
from cygnet.errors import CygnetError, ModelNotFoundError, WeightFileError
from weight_samples import save

STATE = {"a": torch.ones(2), "b": torch.zeros(3)}


def _shards(folder: Path, index: dict[str, str] | None = None) -> Path:
    """Two shards in ``folder``, with an index of ``index`` or of the truth; returns the index."""
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save(folder / names[0], {"a": STATE["a"]})
    save(folder / names[1], {"b": STATE["b"]})
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index or {"a": names[0], "b": names[1]}}))
    return path


WRONG_CONTENT = {
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git-LFS pointer"),
    "web page": (b"\n<!DOCTYPE html><html><head><title>Sign in</title>", "web page"),
    "XML page": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "JSON": (b'{"error": "gated repository"}', "JSON text"),
    "gzip": (gzip.compress(b"x" * 100), "gzip"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "GGUF file, which cygnet does not read yet"),
    "tar": (b"name".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "tar archive"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
@pytest.mark.parametrize(("content", "words"), WRONG_CONTENT.values(), ids=WRONG_CONTENT)
def test_a_renamed_file_is_called_what_it_is(tmp_path: Path, content: bytes, words: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=words):
        open_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_named_safetensors_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.safetensors"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightFileError, match="PyTorch pickle under the name of a safetensors file"):
        open_weights(path)


def test_safetensors_named_pth_is_told_its_right_name(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", STATE).rename(tmp_path / "x.pth")
    with pytest.raises(WeightFileError, match=r"rename it to end in \.safetensors"):
        open_weights(path)


@pytest.mark.parametrize("content", [b"GGUX\3\0\0\0", b"\0\0\0\0" * 9])
def test_a_gguf_file_with_a_wrong_magic_is_told_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match="does not begin with the letters GGUF"):
        open_weights(path)


def test_a_file_without_suffix_is_opened_by_its_content(tmp_path: Path) -> None:
    blob = save(tmp_path / "x.safetensors", STATE).rename(tmp_path / "0123abcd")
    assert open_weights(blob).format == "safetensors"
    torch.save(STATE, tmp_path / "4567")
    assert open_weights(tmp_path / "4567").format == "pytorch"


def test_links_to_a_file_are_followed(tmp_path: Path) -> None:
    blob = save(tmp_path / "blob", STATE)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert set(open_weights(link).tensors) == {"a", "b"}


# Not a regular file --------------------------------------------------------------------------------------------------


def test_a_missing_path_and_a_dangling_link_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist; check the path"):
        open_weights(tmp_path / "nothing.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelNotFoundError, match="a link whose target is gone"):
        open_weights(tmp_path / "link.safetensors")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "x.safetensors"
    link.symlink_to(link)
    with pytest.raises(WeightFileError, match="leads back to itself"):
        open_weights(link)


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null"])
def test_a_link_to_a_device_is_refused(tmp_path: Path, target: str) -> None:
    link = tmp_path / "x.safetensors"
    link.symlink_to(target)
    with pytest.raises(WeightFileError, match="is a device"):
        open_weights(link)


@pytest.mark.parametrize(
    "name", ["x.safetensors", "x.pth", "model.safetensors.index.json", "a-00001-of-00002.safetensors"]
)
def test_a_pipe_never_blocks(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    started = time.monotonic()
    with pytest.raises(CygnetError, match="is a pipe"):
        open_weights(tmp_path / name)
    assert time.monotonic() - started < 1


def test_a_pipe_as_shard_or_config_never_blocks(tmp_path: Path) -> None:
    index = _shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(WeightFileError, match="is a pipe"):
        open_weights(index)


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc/hostname"])
def test_a_link_to_a_system_file_reveals_nothing_of_it(tmp_path: Path, target: str) -> None:
    link = tmp_path / "x.safetensors"
    link.symlink_to(target)
    content = Path(target).read_text().split(":")[0].strip()
    with pytest.raises(WeightFileError) as caught:
        open_weights(link)
    assert content not in str(caught.value).replace("x.safetensors", "")


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(CygnetError):
        open_weights("x\0.safetensors")


# Shards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "indexed"),
    [
        ("", True),
        ("model.safetensors.index.json", True),
        ("model-00002-of-00002.safetensors", True),
        ("", False),
        ("model-00002-of-00002.safetensors", False),
    ],
)
def test_a_set_of_shards_opens_from_folder_index_or_any_shard(tmp_path: Path, entry: str, indexed: bool) -> None:
    index = _shards(tmp_path)
    if not indexed:
        index.unlink()
    opened = open_weights(tmp_path / entry)
    assert opened.format == "sharded safetensors"
    assert [file.name[6:11] for file in opened.files] == ["00001", "00002"]
    assert opened.tensor("a").equal(STATE["a"])
    assert opened.tensor("b").equal(STATE["b"])


@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, indexed: bool) -> None:
    index = _shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    if not indexed:
        index.unlink()
    with pytest.raises(WeightFileError, match=r"1 of 2 shards.*model-00002-of-00002\.safetensors.*again"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../../x.safetensors", "/etc/x.safetensors", "..", "a\\b.safetensors", "a\0.safetensors"]
)
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, shard: str) -> None:
    with pytest.raises(WeightFileError, match="plain file name in the same folder"):
        open_weights(_shards(tmp_path, {"a": shard}))


def test_an_index_that_lists_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    index = _shards(tmp_path)
    index.write_text(index.read_text().replace('"a":', '"b":'))
    with pytest.raises(WeightFileError, match="names 'b' twice"):
        open_weights(index)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    with pytest.raises(WeightFileError, match=r"'a' into .*00002.*lacks it"):
        open_weights(_shards(tmp_path, {"a": two, "b": two, "c": one}))
    (tmp_path / two).unlink()
    save(tmp_path / two, {"b": STATE["b"], "c": STATE["a"]})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": one, "c": two}}))
    with pytest.raises(WeightFileError, match=r"hold 1 tensors that it does not list, first 'b'"):
        open_weights(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    _shards(tmp_path).unlink()
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightFileError, match="'a' is in two shards"):
        open_weights(tmp_path)


def test_a_set_that_claims_too_many_shards_is_refused_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "x-00001-of-99999.safetensors", STATE)
    with pytest.raises(WeightFileError, match="99,999 shards"):
        open_weights(path)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[", "[]"]
)
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(WeightFileError):
        open_weights(path)


def test_a_folder_with_two_models_asks_which(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", STATE)
    save(tmp_path / "b.safetensors", STATE)
    with pytest.raises(WeightFileError, match=r"2 weight files \(a\.safetensors, b\.safetensors\); name one"):
        open_weights(tmp_path)


def test_a_folder_with_both_formats_of_one_model_takes_the_safe_one(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", STATE)
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    opened = open_weights(tmp_path)
    assert opened.format == "safetensors"
    assert opened.path == tmp_path


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no weight file"):
        open_weights(tmp_path)
