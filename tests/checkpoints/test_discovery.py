"""Finding weight files in ComfyUI's folders and in those that a configuration file names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cygnet.checkpoints.discovery import (
    ModelFolder,
    comfy_folders,
    find_models,
    home_folder,
    model_folders,
    read_extra_model_paths,
)
from cygnet.errors import RequestError, WeightFileError


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CYGNET_HOME", str(tmp_path / "cygnet"))
    monkeypatch.delenv("CYGNET_MODEL_PATHS", raising=False)


def make(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "extra_model_paths.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_folders_of_old_and_new_names_are_one_kind(tmp_path: Path) -> None:
    for name in ("diffusion_models", "unet", "clip", "vae", "something_else"):
        (tmp_path / "models" / name).mkdir(parents=True)
    found = comfy_folders(tmp_path)
    assert [(folder.kind, folder.path.name) for folder in found] == [
        ("diffusion_models", "diffusion_models"),
        ("diffusion_models", "unet"),
        ("text_encoders", "clip"),
        ("vae", "vae"),
    ]
    assert comfy_folders(tmp_path / "models") == found


def test_the_file_of_extra_paths_is_read_as_comfyui_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", str(tmp_path / "disk"))
    path = written(
        tmp_path,
        """
        first:
            base_path: relative/base
            unet: models/unet
            vae: |
                models/vae
                ~/other vae
        second:
            base_path: $WEIGHTS
            is_default: true
            clip: text
            ipadapter: adapters
            loras:
        empty:
        """,
    )
    assert read_extra_model_paths(path) == [
        ModelFolder(kind="text_encoders", path=tmp_path / "disk" / "text", is_default=True),
        ModelFolder(kind="ipadapter", path=tmp_path / "disk" / "adapters", is_default=True),
        ModelFolder(kind="diffusion_models", path=tmp_path / "relative" / "base" / "models" / "unet"),
        ModelFolder(kind="vae", path=tmp_path / "relative" / "base" / "models" / "vae"),
        ModelFolder(kind="vae", path=tmp_path / "home" / "other vae"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "no YAML"),
        ("a: !!python/object/apply:os.system ['touch fired']", "no YAML"),
        ("- a\n- b", "no named sections"),
        ("a: text", "section 'a'"),
        ("a:\n  vae: [x, y]", "vae in section 'a'"),
        ("a:\n  vae: 3", "no text"),
        ("a:\n  is_default: maybe", "true or false"),
        ("a:\n  vae: x\na:\n  vae: y", "there twice"),
        ("[" * 50_000, "no YAML"),
        ("#" * 300_000, "larger than"),
        ("a:\n  vae: \x00", "no YAML"),
    ],
)
def test_a_file_of_extra_paths_in_another_form_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(WeightFileError, match=words):
        read_extra_model_paths(written(tmp_path, text))
    assert not Path("fired").exists()


def test_a_bomb_of_references_does_not_unfold(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(WeightFileError, match="section 'a0'"):
        read_extra_model_paths(written(tmp_path, "\n".join(lines)))


def test_places_come_in_the_order_flag_variable_own_file_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base in ("flag", "variable", "home/ComfyUI"):
        (tmp_path / base / "models" / "vae").mkdir(parents=True)
    make(tmp_path / "cygnet" / "extra_model_paths.yaml", b"own:\n  vae: own_vae\n")
    monkeypatch.setenv("CYGNET_MODEL_PATHS", str(tmp_path / "variable"))
    order = [folder.path.relative_to(tmp_path).parts[0] for folder in model_folders([tmp_path / "flag"])]
    assert order == ["flag", "variable", "cygnet", "home"]
    assert home_folder() == tmp_path / "cygnet"


def test_default_folders_come_first_whichever_file_names_them(tmp_path: Path) -> None:
    (tmp_path / "flag" / "models" / "vae").mkdir(parents=True)
    own = b"own:\n  vae: own_vae\nbest:\n  is_default: true\n  vae: best_vae\n  loras: best_loras\n"
    make(tmp_path / "cygnet" / "extra_model_paths.yaml", own)
    for name in ("flag/models/vae/a.pth", "cygnet/own_vae/a.pth", "cygnet/best_vae/a.pth"):
        make(tmp_path / name, b"x")
    folders = model_folders([tmp_path / "flag"])
    vaes = [it.path.relative_to(tmp_path).as_posix() for it in folders if it.kind == "vae"]
    assert vaes == ["cygnet/best_vae", "flag/models/vae", "cygnet/own_vae"]
    assert [it.path.parent.name for it in find_models(folders, "vae")] == ["best_vae", "vae", "own_vae"]


def test_a_place_that_was_asked_for_and_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="nowhere"):
        model_folders([tmp_path / "nowhere"])
    monkeypatch.setenv("CYGNET_MODEL_PATHS", str(tmp_path / "gone"))
    with pytest.raises(RequestError, match="CYGNET_MODEL_PATHS"):
        model_folders()


def test_only_regular_weight_files_are_found_and_links_in_circles_end(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    make(folder / "b.safetensors", b"12345")
    make(folder / "sub" / "a.pth")
    make(folder / ".hidden" / "c.safetensors")
    make(folder / "notes.txt")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "broken.safetensors").symlink_to(tmp_path / "gone")
    (folder / "link.safetensors").symlink_to(folder / "b.safetensors")
    (folder / "sub" / "circle").symlink_to(folder)
    found = find_models([ModelFolder(kind="vae", path=folder), ModelFolder(kind="loras", path=tmp_path / "gone")])
    assert [(model.name, model.bytes) for model in found] == [
        ("b.safetensors", 5),
        ("link.safetensors", 5),
        ("sub/a.pth", 1),
    ]
    assert find_models([ModelFolder(kind="vae", path=folder)], kind="loras") == []
