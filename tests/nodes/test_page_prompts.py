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
from cygnet.graph.schema import Registry
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.workshop import Workshop

SUBMITTED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "page_prompts.json").read_text())
UNKNOWN = {("video_wan21_scail2_character_replacement", "values.c")}
"""Inputs that show the value of a widget whose node type we have not, so that its default is not known here."""

NODES_AND_LINKS = {
    "text_to_video_wan": (11, 11),
    "image_to_video_wan": (14, 18),
    "wan2.1_flf2v_720_f16": (16, 22),
    "wan2.1_fun_control": (21, 25),
    "wan2.1_fun_inp": (18, 22),
    "video_wan2.1_fun_camera_v1.1_1.3B": (15, 22),
    "video_wan2.1_fun_camera_v1.1_14B": (15, 22),
    "video_wan_vace_14B_t2v": (13, 18),
    "video_wan_vace_14B_ref2v": (14, 19),
    "video_wan_vace_14B_v2v": (16, 21),
    "video_wan_vace_flf2v": (39, 53),
    "video_wan_vace_inpainting": (39, 54),
    "video_wan_vace_outpainting": (24, 31),
    "video_wan_ati": (15, 19),
    "video_wan2.1_alpha_t2v_14B": (16, 17),
    "video_wanmove_480p": (31, 40),
    "video_wan2_1_infinitetalk": (47, 73),
    "video_wan21_scail2_character_replacement": (94, 139),
    "video_wan21_scail2_character_replacement_int8": (94, 139),
    "video_causal_forcing_i2v": (17, 20),
    "image_chrono_edit_14B": (24, 31),
    "video_humo": (16, 20),
}
"""How many nodes each published file becomes, and how many links they have."""


def told(value: object) -> object:
    """A value as it is stored."""
    if isinstance(value, str) and len(value) > 40:
        return "sha256:" + hashlib.sha256(value.encode()).hexdigest()[:16]
    return value


def links(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if isinstance(value, list)}


def converted(name: str, folder: Path) -> tuple[dict[str, Any], Registry]:
    found = find_spec("comfyui_workflow_templates_json")
    if found is None or found.origin is None:
        pytest.skip("the package comfyui-workflow-templates-json is not installed")
    workflow = json.loads((Path(found.origin).parent / "templates" / f"{name}.json").read_text(encoding="utf-8"))
    kinds = describe_all(node_classes(Workshop(Folders.below(folder))), lambda name, error: None)
    return to_prompt(workflow, kinds), kinds


@pytest.mark.parametrize("name", NODES_AND_LINKS)
def test_a_file_has_as_many_nodes_and_links_as_the_page_submits(name: str, tmp_path: Path) -> None:
    prompt, _ = converted(name, tmp_path)
    assert (len(prompt), sum(len(links(it["inputs"])) for it in prompt.values())) == NODES_AND_LINKS[name]


@pytest.mark.parametrize("name", SUBMITTED)
def test_a_file_becomes_what_the_page_submits(name: str, tmp_path: Path) -> None:
    prompt, kinds = converted(name, tmp_path)
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
