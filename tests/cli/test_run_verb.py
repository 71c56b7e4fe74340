"""``cygnet run``: a workflow file without a browser."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

import cygnet as package
from cli_process import Command
from cygnet.cli.studio import holder_of
from cygnet.media.receipt import read_receipt
from cygnet.media.video_read import read_metadata
from cygnet.nodes.lacking import of_comfyui
from cygnet.server.store import sole_owner

STAR = Path(package.__file__).parent / "starters" / "cygnet_first_frame.png"
run_verb = importlib.import_module("cygnet.cli.run")

PROMPT: dict[str, Any] = {
    "1": {"class_type": "PrimitiveString", "inputs": {"value": "hello"}},
    "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
}
TEXT = {"type": "CLIPTextEncode", "id": 6, "mode": 0, "inputs": [], "outputs": [], "widgets_values": ["{a|a} dog // x"]}
SHOWN = {
    "type": "PreviewAny", "id": 7, "mode": 0, "outputs": [], "inputs": [{"name": "source", "type": "*", "link": 1}],
}  # fmt: skip


@pytest.fixture
def prompt(place: Path) -> Path:
    path = place / "prompt.json"
    path.write_text(json.dumps(PROMPT))
    return path


def test_a_prompt_is_run_and_its_files_are_named(cygnet: Command, place: Path, prompt: Path) -> None:
    saving = {
        "1": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 16, "height": 8}},
        "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "grey"}},
    }
    prompt.write_text(json.dumps(saving))
    done = cygnet("run", prompt, "--base-directory", place, "--set", "1.value=1.0")
    assert done.code == 0, done.err
    assert done.out == f"{place / 'output' / 'grey_00001_.png'}\n"
    assert (place / "output" / "grey_00001_.png").exists()


def test_inputs_can_be_changed_and_the_prompt_looked_at(cygnet: Command, place: Path, prompt: Path) -> None:
    done = cygnet("run", prompt, "--base-directory", place, "--set", "1.value=a = b.c", "--print-prompt")
    assert done.code == 0, done.err
    assert json.loads(done.out)["1"]["inputs"]["value"] == "a = b.c"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        *(
            (text, text)
            for text in ("null", "true", "NaN", "12", "1.50", '{"a": 1}', "[1, 2]", '["9", 0]', "", "[" * 9999)
        ),
        ('"a red ball"', "a red ball"),
        ('["3", 0]', ["3", 0]),
    ],
)
def test_an_input_of_text_takes_the_text_as_given(
    cygnet: Command, place: Path, prompt: Path, given: str, value: Any
) -> None:
    more = {"3": {"class_type": "PrimitiveInt", "inputs": {"value": 1}}}
    prompt.write_text(json.dumps({**PROMPT, **more}))
    changes = ("--set", f"1.value={given}", "--set", "3.value=7")
    done = cygnet("run", prompt, "--base-directory", place, *changes, "--print-prompt")
    assert done.code == 0, done.err
    assert json.loads(done.out)["1"]["inputs"]["value"] == value
    assert json.loads(done.out)["3"]["inputs"]["value"] == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "9.value=1"], "there is no node '9'"),
        (["--set", "1.valve=1"], "has no input 'valve'; it has: value"),
        (["--set", "value"], "it must be like"),
        (["--image", "1=none.png"], "a file that exists"),
        (
            ["--image", f"1={STAR}"],
            "has no field for a picture's name; in this workflow there is no node",
        ),
    ],
)
def test_a_change_that_cannot_be_is_refused(
    cygnet: Command, place: Path, prompt: Path, options: list[str], words: str
) -> None:
    done = cygnet("run", prompt, "--base-directory", place, *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_a_picture_is_given_to_a_node_that_takes_one(cygnet: Command, place: Path, prompt: Path) -> None:
    more = {
        "7": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
        "8": {"class_type": "ImageScale", "inputs": {"image": ["7", 0]}},
    }
    prompt.write_text(json.dumps({**PROMPT, **more}))
    done = cygnet("run", prompt, "--base-directory", place, "--print-prompt", "--image", f"7={STAR}")
    assert json.loads(done.out)["7"]["inputs"]["image"] == STAR.name
    done = cygnet("run", prompt, "--base-directory", place, "--print-prompt", "--image", f"8={STAR}")
    assert done.code == 2
    assert "in this workflow there are: 7 (LoadImage)" in done.err


def test_a_run_beside_a_studio_says_so_and_keeps_out_of_its_previews(
    cygnet: Command, place: Path, prompt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    looking = {
        "1": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 16, "height": 8}},
        "2": {"class_type": "MaskPreview", "inputs": {"mask": ["1", 0]}},
    }
    prompt.write_text(json.dumps(looking))
    temp = place / "temp"
    with sole_owner(holder_of(temp), "http://127.0.0.1:8188/"):
        note = holder_of(temp) / "server.pid"
        done = cygnet("run", prompt, "--base-directory", place)
        assert "a studio runs on the same folder at http://127.0.0.1:8188/: this run computes beside it" in done.err
        left = note.read_text()
    (shown,) = done.out.splitlines()
    assert Path(shown).parent.name.startswith("cygnet-run-")
    assert Path(shown).is_file()
    assert not temp.exists(), "the studio empties it when it starts and when it stops"
    prompt.write_text(json.dumps(PROMPT))
    for stale in (left, left.replace(str(os.getpid()), "999999999"), "broken"):
        note.write_text(stale)
        os.utime(note, (1, 1))
        assert "a studio runs" not in cygnet("run", prompt, "--base-directory", place).err
    assert list(place.glob("cygnet-run-*")) == [Path(shown).parent], "an empty folder is not left"


def test_a_picture_is_copied_whole_beside_others_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    for words, name in (("one", "a.png"), ("two", "a (1).png"), ("one", "a.png"), ("two", "a (1).png")):
        (tmp_path / "a.png").write_text(words)
        assert run_verb._copied(tmp_path / "a.png", tmp_path / "input").name == name
    assert sorted(it.name for it in (tmp_path / "input").iterdir()) == ["a (1).png", "a.png"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"1": {"class_type": "Nothing", "inputs": {}}}'])
def test_a_file_that_is_no_workflow_is_refused(cygnet: Command, place: Path, prompt: Path, text: str) -> None:
    prompt.write_text(text)
    done = cygnet("run", prompt, "--base-directory", place)
    assert (done.code, done.out) == (2, ""), done.err


def test_every_missing_node_type_is_named(cygnet: Command, place: Path, prompt: Path) -> None:
    nodes = [("1", "Zebra"), ("2", "Ant"), ("3", "Zebra")]
    prompt.write_text(json.dumps({**PROMPT, **{key: {"class_type": kind, "inputs": {}} for key, kind in nodes}}))
    done = cygnet("run", prompt, "--base-directory", place)
    assert done.code == 2
    assert "not installed: Ant, Zebra;" in done.err


def test_a_missing_node_of_comfyuis_own_sends_nobody_to_look_for_a_pack(
    cygnet: Command, place: Path, prompt: Path
) -> None:
    prompt.write_text(json.dumps({**PROMPT, "1": {"class_type": "LoadAudio", "inputs": {}}}))
    done = cygnet("run", prompt, "--base-directory", place)
    assert (done.code, "nodes install" in done.err) == (2, False)
    assert "no pack brings: LoadAudio" in done.err
    said = {"type": "Quux", "properties": {"cnr_id": "comfy-core"}}
    assert of_comfyui(["Quux", "Zebra", "EmptyImage"], {"nodes": [said], "x": 1}) == ["EmptyImage", "Quux"]


@pytest.mark.parametrize("kind", ["SaveImage", "SaveAnimatedWEBP", "SaveWEBM", "SaveVideo"])
def test_a_result_can_be_made_again_from_itself(cygnet: Command, place: Path, kind: str) -> None:
    """Whatever is written in it."""
    label = 'a } "quoted" {{ лебедь 🦢 \\'
    frames = {"images": ["2", 0], "filename_prefix": "x"}
    saving = {
        "SaveImage": {"4": {"class_type": kind, "inputs": frames}},
        "SaveAnimatedWEBP": {
            "4": {
                "class_type": kind,
                "inputs": {**frames, "fps": 8, "lossless": True, "quality": 80, "method": "default"},
            }
        },
        "SaveWEBM": {"4": {"class_type": kind, "inputs": {**frames, "fps": 8, "crf": 20, "codec": "vp9"}}},
        "SaveVideo": {
            "3": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": 8}},
            "4": {
                "class_type": kind,
                "inputs": {"video": ["3", 0], "filename_prefix": "x", "format": "auto", "codec": "auto"},
            },
        },
    }[kind]
    prompt = {
        "1": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 32, "height": 16}},
        "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 0]}, "_meta": {"title": label}},
        **saving,
    }
    (place / "first.json").write_text(json.dumps(prompt))
    first = Path(cygnet("run", "first.json", "--base-directory", place).out.strip())
    told = read_metadata(first)
    assert json.loads(told["prompt"])["2"]["_meta"]["title"] == label
    assert told["prompt"].isascii()
    assert read_receipt(first)["made_by"] == "workflow"
    again = cygnet("run", first, "--base-directory", place)
    assert again.code == 0, again.err
    second = Path(again.out.strip())
    assert second != first
    assert json.loads(read_metadata(second)["prompt"]) == json.loads(told["prompt"])
    replayed = cygnet("replay", first)
    assert (replayed.code, "cygnet run" in replayed.err) == (2, True)
    bare = Path(cygnet("run", "first.json", "--base-directory", place, "--disable-metadata").out.strip())
    assert set(read_metadata(bare)) <= {"fps"}
    refused = cygnet("run", bare, "--base-directory", place)
    assert (refused.code, "holds no workflow" in refused.err) == (2, True)


def test_a_failing_node_is_named(cygnet: Command, place: Path, prompt: Path) -> None:
    wrong = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 1}},
        "2": {"class_type": "ComfyMathExpression", "inputs": {"expression": "1 / (a - a)", "values.a": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    prompt.write_text(json.dumps(wrong))
    done = cygnet("run", prompt, "--base-directory", place)
    assert done.code == 1
    assert "node 2 (ComfyMathExpression) failed" in done.err


def test_words_are_chosen_as_the_page_chooses_them(cygnet: Command, place: Path) -> None:
    workflow = {"nodes": [TEXT, SHOWN], "links": [[1, 6, 0, 7, 0, "CONDITIONING"]], "version": 0.4}
    (place / "w.json").write_text(json.dumps(workflow))
    done = cygnet("run", place / "w.json", "--base-directory", place, "--print-prompt")
    assert done.code == 0, done.err
    assert json.loads(done.out)["6"]["inputs"]["text"] == "a dog "
