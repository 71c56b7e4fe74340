"""Receipts survive in every format, and damaged ones are said to be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cygnet.errors import MediaError, OutputError, RequestError
from cygnet.media.receipt import RECEIPT_KEY, embed, read_receipt, sidecar_path, staged_sidecar
from cygnet.media.video import FORMATS, VideoFormat, open_writer
from cygnet.media.video_read import read_metadata

RECEIPT: dict[str, Any] = {
    RECEIPT_KEY: 1,
    "prompt": "ein roter Ball 红球 😀 \u202e <script> ${x} %n \x1b[31m \0 \ud800 \n\r\n end",
    "seed": 2**64 - 1,
    "guidance": 0.1 + 0.2,
    "nested": {"list": [1, None, True, ""]},
}


def film(path: Path, metadata: dict[str, str], count: int = 2) -> Path:
    with open_writer(path, width=32, height=32, fps=16, metadata=metadata) as writer:
        writer.write(np.full((count, 32, 32, 3), 99, np.uint8))
    return writer.path


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [1, 3])
def test_receipts_survive_inside_every_format(tmp_path: Path, kind: VideoFormat, count: int) -> None:
    path = film(tmp_path / f"x.{kind}", embed(RECEIPT), count)
    assert read_receipt(path) == RECEIPT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_large_receipt_and_the_graph_beside_it_survive(tmp_path: Path, kind: VideoFormat) -> None:
    receipt = {RECEIPT_KEY: 1, "prompt": "é" * 100_000}
    others = {"prompt": '{"1": "é:x"}', "workflow": "{}", "note": "två\nrader"}
    path = film(tmp_path / f"x.{kind}", {**embed(receipt), **others})
    assert read_receipt(path) == receipt
    assert read_metadata(path) == {**embed(receipt), **others}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_without_metadata_answers_with_none(tmp_path: Path, kind: VideoFormat) -> None:
    path = film(tmp_path / f"x.{kind}", {})
    assert read_metadata(path) == {}
    with pytest.raises(MediaError, match="carries no receipt and there is no"):
        read_receipt(path)


@pytest.mark.parametrize("text", ["a } b", "{{ {", 'he said "}" and \\\\', "黒 } {x|y}"])
def test_braces_in_a_prompt_do_not_end_the_graph_in_webm(tmp_path: Path, text: str) -> None:
    graph = {"nodes": [{"widgets_values": [text, {"}": "{"}]}]}
    stored = read_metadata(film(tmp_path / "x.webm", {"workflow": json.dumps(graph)}))["workflow"]
    assert json.loads(stored) == graph
    depth = [stored[: at + 1].count("{") - stored[: at + 1].count("}") for at in range(len(stored))]
    assert depth.index(0) == len(stored) - 1, "the page counts braces, and stops before the end"


def test_webp_and_png_hold_the_graph_where_comfyui_looks(tmp_path: Path) -> None:
    graph = {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}
    with Image.open(film(tmp_path / "x.webp", graph)) as image:
        exif = image.getexif()
        assert (exif[272], exif[271]) == ('prompt:{"1": {}}', 'workflow:{"nodes": []}')
    with Image.open(film(tmp_path / "x.png", graph, 1)) as image:
        assert {key: image.info[key] for key in graph} == graph


def write_sidecar(path: Path, receipt: dict[str, Any], *, overwrite: bool = False) -> Path:
    with staged_sidecar(path.parent, receipt, overwrite=overwrite) as place:
        return place(path)


def test_the_sidecar_answers_when_the_file_does_not(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", {})
    assert write_sidecar(path, RECEIPT) == sidecar_path(path) == tmp_path / "x.mp4.json"
    assert read_receipt(path) == RECEIPT
    assert read_receipt(tmp_path / "x.mp4.json") == RECEIPT
    path.unlink()
    assert read_receipt(path) == RECEIPT


def test_the_receipt_inside_comes_first(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", embed(RECEIPT))
    write_sidecar(path, {RECEIPT_KEY: 2})
    assert read_receipt(path) == RECEIPT


def test_a_sidecar_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write_sidecar(tmp_path / "x.mp4", {RECEIPT_KEY: 1})
    with pytest.raises(RequestError, match="exists already"):
        write_sidecar(tmp_path / "x.mp4", {RECEIPT_KEY: 2})
    write_sidecar(tmp_path / "x.mp4", {RECEIPT_KEY: 3}, overwrite=True)
    assert json.loads((tmp_path / "x.mp4.json").read_text()) == {RECEIPT_KEY: 3}
    with pytest.raises(OutputError, match="does not exist"):
        write_sidecar(tmp_path / "missing" / "x.mp4", {RECEIPT_KEY: 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mp4.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "[" * 100_000, "\xff", "null"])
def test_a_damaged_receipt_is_an_error_wherever_it_is(tmp_path: Path, text: str) -> None:
    path = film(tmp_path / "x.mp4", {RECEIPT_KEY: text})
    write_sidecar(path, RECEIPT)
    with pytest.raises(MediaError, match=r"receipt in 'x\.mp4' is"):
        read_receipt(path)
    other = film(tmp_path / "y.mp4", {})
    sidecar_path(other).write_bytes(text.encode("latin-1"))
    with pytest.raises(MediaError, match=r"receipt 'y\.mp4\.json' is"):
        read_receipt(other)


@pytest.mark.parametrize("receipt", [{}, {RECEIPT_KEY: float("nan")}, {RECEIPT_KEY: 1, "x": object()}])
def test_what_is_no_receipt_is_not_written(tmp_path: Path, receipt: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        embed(receipt)
    with pytest.raises(RequestError):
        write_sidecar(tmp_path / "x.mp4", receipt)
    assert list(tmp_path.iterdir()) == []
