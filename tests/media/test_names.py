"""Labels from strangers become harmless file names (rows D1, D2 and D6 of the fault list)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import OutputError, RequestError
from cygnet.media.names import release, safe_label, unused_path


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("a red ball moves right", "a-red-ball-moves-right"),
        ("红球向右移动", "红球向右移动"),
        ("Größe  42.5", "Größe-42.5"),
        ("../x", "x"),
        ("/etc/passwd", "etc-passwd"),
        ("C:\\x", "C-x"),
        ("\\\\server\\x", "server-x"),
        ("%2e%2e%2f", "2e-2e-2f"),
        ("%252e%252e%252fx", "252e-252e-252fx"),
        ("..∕x", "x"),
        ("．．／x", "x"),
        ("a\0b", "a-b"),
        ("a\nb\r\nc", "a-b-c"),
        ("trailing...", "trailing"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("😀🎬", "video"),
        ("", "video"),
        ("...", "video"),
        ("CON", "video-CON"),
        ("nul.mp4", "video-nul.mp4"),
        ("com1", "video-com1"),
        ("LPT³", "video-LPT³"),
        ("console", "console"),
        ("a\u202egpm.exe", "a-gpm.exe"),
        ("\x1b[31mred", "31mred"),
        ("<b>$(rm)</b>`x`", "b-rm-b-x"),
        ("\ud800x", "x"),
        ("\u0301\u0301x", "x"),
    ],
)
def test_labels_become_harmless_names(label: str, expected: str) -> None:
    assert safe_label(label) == expected


@pytest.mark.parametrize("label", ["x" * 300, "视" * 300, "e" + "\u0301" * 300])
def test_long_labels_are_cut_to_what_every_disk_takes(label: str) -> None:
    name = safe_label(label)
    assert 1 <= len(name) <= 80
    assert 1 <= len(name.encode("utf-8")) <= 120


@settings(deadline=None, database=None)
@given(st.text(max_size=200) | st.text(alphabet="./\\-_ \0ac%:", max_size=30))
def test_no_text_escapes(label: str) -> None:
    name = safe_label(label)
    assert name == os.path.basename(name)
    assert name[0] not in "-."
    assert name[-1] not in "-. "
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>|\0')
    assert name.encode("utf-8")
    assert safe_label(name) == name


def test_taken_names_are_counted_up_and_never_touched(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"precious")
    assert [unused_path(tmp_path, "x", ".mp4").name for _ in range(3)] == ["x-2.mp4", "x-3.mp4", "x-4.mp4"]
    assert (tmp_path / "x.mp4").read_bytes() == b"precious"


def test_png_names_leave_their_frame_folder_free(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert unused_path(tmp_path, "x", ".png").name == "x-2.png"


def test_many_jobs_with_one_label_get_different_names(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: unused_path(tmp_path, "x", ".mp4"), range(40)))
    assert len(set(paths)) == 40


def test_only_an_empty_name_is_given_back(tmp_path: Path) -> None:
    path = unused_path(tmp_path, "x", ".mp4")
    release(path)
    assert not path.exists()
    release(path)
    path.write_bytes(b"precious")
    release(path)
    assert path.read_bytes() == b"precious"


def test_a_dangling_link_counts_as_taken(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    assert unused_path(tmp_path, "x", ".mp4").name == "x-2.mp4"
    assert not (tmp_path / "elsewhere.mp4").exists()


@pytest.mark.parametrize("stem", ["", ".", "..", "../x", "a/b", "a\\b", "a\0b"])
def test_stems_with_separators_are_refused(tmp_path: Path, stem: str) -> None:
    with pytest.raises(RequestError, match="safe_label"):
        unused_path(tmp_path, stem, ".mp4")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        unused_path(tmp_path / "missing", "x", ".mp4")
