"""``cygnet run``: a workflow file without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_process import Command

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
    ("options", "words"),
    [
        (["--set", "9.value=1"], "there is no node '9'"),
        (["--set", "1.valve=1"], "has no input 'valve'; it has: value"),
        (["--set", "value"], "it must be like"),
        (["--image", "1=none.png"], "a file that exists"),
    ],
)
def test_a_change_that_cannot_be_is_refused(
    cygnet: Command, place: Path, prompt: Path, options: list[str], words: str
) -> None:
    done = cygnet("run", prompt, "--base-directory", place, *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"1": {"class_type": "Nothing", "inputs": {}}}'])
def test_a_file_that_is_no_workflow_is_refused(cygnet: Command, place: Path, prompt: Path, text: str) -> None:
    prompt.write_text(text)
    done = cygnet("run", prompt, "--base-directory", place)
    assert (done.code, done.out) == (2, ""), done.err


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
