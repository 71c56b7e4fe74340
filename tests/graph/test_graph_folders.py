"""Whatever a client writes, files are read and written inside their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cygnet.errors import RequestError
from cygnet.graph.folders import Folders, Saved, annotated, expand_tokens, inside


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders.below(tmp_path / "base")
    for folder in (made.input, made.output, made.temp):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a b.png").write_bytes(b"x")
    (tmp_path / "secret.txt").write_text("secret")
    return made


def test_names_lead_to_files_of_their_folder(folders: Folders) -> None:
    assert folders.locate("sub/a b.png") == folders.input.resolve() / "sub/a b.png"
    assert folders.locate("sub\\a b.png") == folders.input.resolve() / "sub/a b.png"
    assert folders.locate("sub/a b.png [output]") == folders.output.resolve() / "sub/a b.png"
    assert folders.locate("sub/a b.png [input]", "temp") == folders.input.resolve() / "sub/a b.png"
    assert annotated("a [b].png", "input") == ("a [b].png", "input")


@pytest.mark.parametrize(
    "name",
    [
        *("../../secret.txt", "sub/../../../secret.txt", "..\\..\\secret.txt", "/etc/passwd", "C:\\x", "\\\\server\\x"),
        *(
            "~/x",
            "a\0b",
            "a\nb",
            "\ud800",
            "link.txt",
            "linked/secret.txt",
            "../../secret.txt [output]",
            "..",
            "sub/..",
            "a" * 256,
            "é" * 128,
            "a/" * 1100,
        ),
    ],
)
def test_no_name_leads_out(folders: Folders, tmp_path: Path, name: str) -> None:
    os.symlink(tmp_path / "secret.txt", folders.input / "link.txt")
    os.symlink(tmp_path, folders.input / "linked")
    with pytest.raises(RequestError):
        folders.locate(name)


def test_a_missing_file_and_a_folder_are_told_in_words(folders: Folders) -> None:
    for name in ("none.png", "sub", "", "."):
        with pytest.raises(RequestError, match="no file"):
            folders.locate(name)


def test_a_linked_root_is_fine(folders: Folders, tmp_path: Path) -> None:
    os.symlink(folders.input, tmp_path / "elsewhere")
    assert inside(tmp_path / "elsewhere", "sub/a b.png").read_bytes() == b"x"


def test_saved_files_are_counted(folders: Folders) -> None:
    path, saved = folders.next_file("video/ComfyUI", ".mp4")
    assert path == folders.output.resolve() / "video/ComfyUI_00001_.mp4"
    assert saved == Saved("ComfyUI_00001_.mp4", "video", "output")
    assert saved.json() == {"filename": "ComfyUI_00001_.mp4", "subfolder": "video", "type": "output"}
    path.touch()
    (path.parent / "ComfyUI_00041_.png").touch()
    (path.parent / "ComfyUI_other_00099_.png").touch()
    assert folders.next_file("video/ComfyUI", ".mp4")[0].name == "ComfyUI_00042_.mp4"
    assert folders.next_file("x", ".png", "temp")[1] == Saved("x_00001_.png", "", "temp")


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("CON", "_CON_00001_.png"),
        ("-rf", "_-rf_00001_.png"),
        ("a:b*c?", "a_b_c__00001_.png"),
        ("...", "__00001_.png"),
        ("", "cygnet_00001_.png"),
        ("🎈", "🎈_00001_.png"),
        ("%width%x%height%_%nothing%", "64x32_%nothing%_00001_.png"),
    ],
)
def test_labels_become_names_that_any_system_can_hold(folders: Folders, prefix: str, name: str) -> None:
    assert folders.next_file(prefix, ".png", width=64, height=32)[1].filename == name


def test_a_long_label_is_cut_to_whole_letters(folders: Folders) -> None:
    path, _ = folders.next_file("é" * 400, ".png")
    path.touch()
    assert len(path.name.encode()) < 255


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/../../x", "linked/x"])
def test_nothing_is_written_elsewhere(folders: Folders, tmp_path: Path, prefix: str) -> None:
    os.symlink(tmp_path, folders.output / "linked")
    with pytest.raises(RequestError, match="leads out"):
        folders.next_file(prefix, ".png")


def test_the_time_can_be_part_of_a_name() -> None:
    assert expand_tokens("%year%-%month%-%day%").count("-") == 2
    assert "%" not in expand_tokens("%year%%month%%day%%hour%%minute%%second%")
