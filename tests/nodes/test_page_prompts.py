"""Published workflow files become the very prompts that the stock page (1.58.1) submits for them.

``tests/data/page_prompts.json`` holds what it submitted, without titles; texts of more than 40 letters are digests.
"""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cygnet.graph.contract import describe_all
from cygnet.graph.convert import to_prompt
from cygnet.graph.folders import Folders
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.workshop import Workshop

SUBMITTED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "page_prompts.json").read_text())
UNKNOWN = {("video_wan21_scail2_character_replacement", "values.c")}
"""Inputs that show the value of a widget whose node type we have not, so that its default is not known here."""


def told(value: object) -> object:
    """A value as it is stored."""
    if isinstance(value, str) and len(value) > 40:
        return "sha256:" + hashlib.sha256(value.encode()).hexdigest()[:16]
    return value


def links(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if isinstance(value, list)}


@pytest.mark.parametrize("name", SUBMITTED)
def test_a_file_becomes_what_the_page_submits(name: str, tmp_path: Path) -> None:
    found = find_spec("comfyui_workflow_templates_json")
    if found is None or found.origin is None:
        pytest.skip("the package comfyui-workflow-templates-json is not installed")
    workflow = json.loads((Path(found.origin).parent / "templates" / f"{name}.json").read_text(encoding="utf-8"))
    kinds = describe_all(node_classes(Workshop(Folders.below(tmp_path))), lambda name, error: None)
    prompt = to_prompt(workflow, kinds)
    submitted = SUBMITTED[name]
    assert {key: it["class_type"] for key, it in prompt.items()} == {
        key: it["class_type"] for key, it in submitted.items()
    }
    for key, node in submitted.items():
        ours = {field: told(value) for field, value in prompt[key]["inputs"].items()}
        if node["class_type"] in kinds:
            expected = {field: it for field, it in node["inputs"].items() if (name, field) not in UNKNOWN}
            assert ours == expected, (key, node["class_type"])
        else:  # what we have no node for has no declared values, but is linked
            assert links(ours) == links(node["inputs"]), (key, node["class_type"])
