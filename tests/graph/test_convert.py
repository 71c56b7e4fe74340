"""A workflow file becomes the prompt that the page would submit."""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any

import pytest

from cygnet.errors import RequestError
from cygnet.graph.convert import expand_choices, expand_prefix, is_prompt, is_workflow, to_prompt
from cygnet.graph.schema import parse_registry

REGISTRY = parse_registry(
    {
        "Number": {
            "input": {"required": {"value": ["INT", {"default": 5, "min": 0, "step": 16}]}},
            "output": ["INT"],
        },
        "Sampler": {
            "input": {
                "required": {
                    "model": ["MODEL", {}],
                    "seed": ["INT", {"default": 0}],
                    "steps": ["INT", {"default": 20}],
                    "sampler": [["euler", "uni_pc"], {}],
                },
                "optional": {"note": ["STRING", {"default": "n"}]},
            },
            "output": ["LATENT"],
            "display_name": "The Sampler",
        },
        "Load": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}, "output": ["IMAGE", "MASK"]},
        "Model": {"input": {"required": {}}, "output": ["MODEL"]},
        "Patch": {
            "input": {"required": {"amount": ["FLOAT", {}], "model": ["MODEL", {}], "other": ["CLIP", {}]}},
            "output": ["CLIP", "MODEL"],
        },
        "Picker": {
            "input": {
                "required": {
                    "mode": [
                        "COMFY_DYNAMICCOMBO_V3",
                        {
                            "options": [
                                {"key": "plain", "inputs": {}},
                                {"key": "sized", "inputs": {"required": {"width": ["INT", {"default": 8}]}}},
                            ]
                        },
                    ],
                    "name": ["COMBO", {"options": ["x", "y"], "control_after_generate": True}],
                    "forced": ["STRING", {"forceInput": True}],
                    "points": ["STRING", {}],
                }
            },
            "output": [],
            "output_node": True,
        },
    }
)


def node(number: int, kind: str, *values: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "type": kind, "mode": 0, "widgets_values": list(values), **more}


def takes(**links: int | None) -> list[dict[str, Any]]:
    kinds = {"model": "MODEL", "other": "CLIP", "seed": "INT", "steps": "INT", "sampler": "COMBO"}
    return [{"name": name, "type": kinds.get(name, "*"), "link": link} for name, link in links.items()]


def gives(*kinds: str) -> list[dict[str, Any]]:
    return [{"name": kind, "type": kind} for kind in kinds]


def convert(*nodes: dict[str, Any], links: tuple[tuple[Any, ...], ...] = (), **more: Any) -> dict[str, Any]:
    rows = [[*link, "*"] for link in links]
    prompt = to_prompt({"nodes": list(nodes), "links": rows, **more}, REGISTRY)
    return {key: it["inputs"] for key, it in prompt.items()}


def test_values_are_named_and_links_take_their_place() -> None:
    workflow = {
        "nodes": [
            node(1, "Model"),
            node(2, "Sampler", 7, "randomize", 30, "uni_pc", "hi", inputs=takes(model=9), title="Mine"),
            node(3, "Sampler", properties={"cnr_id": "core", "ver": "1", "other": 2}),
        ],
        "links": [[9, 1, 0, 2, 0, "MODEL"]],
    }
    assert to_prompt(workflow, REGISTRY) == {
        "1": {"class_type": "Model", "inputs": {}, "_meta": {"title": "Model"}},
        "2": {
            "class_type": "Sampler",
            "inputs": {"seed": 7, "steps": 30, "sampler": "uni_pc", "note": "hi", "model": ["1", 0]},
            "_meta": {"title": "Mine"},
        },
        "3": {
            "class_type": "Sampler",
            "inputs": {"seed": 0, "steps": 20, "sampler": "euler", "note": "n"},
            "_meta": {"title": "The Sampler", "cnr_id": "core", "ver": "1"},
        },
    }


def test_surplus_values_are_ignored_and_an_upload_button_has_a_slot_at_the_end() -> None:
    assert convert(node(1, "Load", "b.png", "image", "more")) == {"1": {"image": "b.png"}}


def test_values_may_be_stored_by_name() -> None:
    named = node(1, "Sampler") | {"widgets_values": {"steps": 3, "sampler": "uni_pc", "unknown": 1}}
    assert convert(named) == {"1": {"seed": 0, "steps": 3, "sampler": "uni_pc", "note": "n"}}


def test_a_dynamic_combo_adds_the_widgets_of_its_choice() -> None:
    assert convert(node(1, "Picker", "sized", 64, "y", "fixed", "filter", [[1, 2]])) == {
        "1": {"mode": "sized", "mode.width": 64, "name": "y", "points": {"__value__": [[1, 2]]}}
    }
    assert convert(node(1, "Picker", "plain", "x", "fixed", "", "p"))["1"] == {
        "mode": "plain",
        "name": "x",
        "points": "p",
    }
    by_name = node(1, "Picker") | {"widgets_values": {"mode": "sized", "mode.width": 5, "name": "y", "points": ""}}
    assert convert(by_name)["1"]["mode.width"] == 5


def test_helpers_of_the_page_are_left_out() -> None:
    result = convert(
        node(1, "Note", "text"),
        node(2, "MarkdownNote", "text"),
        node(3, "Model"),
        node(4, "Reroute", inputs=takes(**{"": 1})),
        node(5, "Reroute", inputs=takes(**{"": 2})),
        node(6, "Sampler", inputs=takes(model=3)),
        links=((1, 3, 0, 4, 0), (2, 4, 0, 5, 0), (3, 5, 0, 6, 0)),
    )
    assert set(result) == {"3", "6"}
    assert result["6"]["model"] == ["3", 0]


def test_a_primitive_is_a_constant_on_the_grid_of_its_target() -> None:
    result = convert(
        node(1, "PrimitiveNode", 777, "fixed"),
        node(2, "Number", 1, inputs=takes(value=1)),
        node(3, "PrimitiveNode", "uni_pc", "fixed"),
        node(4, "Sampler", inputs=takes(sampler=2)),
        node(5, "PrimitiveNode"),
        node(6, "Sampler", inputs=takes(model=3)),
        links=((1, 1, 0, 2, 0), (2, 3, 0, 4, 0), (3, 5, 0, 6, 0)),
    )
    assert result["2"] == {"value": 784}
    assert result["4"]["sampler"] == "uni_pc"
    assert "model" not in result["6"]


def test_a_muted_node_is_cut_out_with_its_links() -> None:
    result = convert(
        node(1, "Model") | {"mode": 2},
        node(2, "Sampler", inputs=takes(model=1)),
        links=((1, 1, 0, 2, 0),),
    )
    assert set(result) == {"2"}
    assert "model" not in result["2"]


def test_a_bypassed_node_hands_on_the_input_of_the_same_type() -> None:
    patch = node(2, "Patch", 0.5, inputs=takes(other=None, model=1), outputs=gives("CLIP", "MODEL")) | {"mode": 4}
    chained = node(3, "Patch", 0.5, inputs=takes(model=2, other=None), outputs=gives("CLIP", "MODEL")) | {"mode": 4}
    result = convert(
        node(1, "Model"),
        patch,
        chained,
        node(4, "Sampler", inputs=takes(model=3)),
        node(5, "Patch", 1.0, inputs=takes(other=4)),
        node(6, "Picker", "plain", inputs=takes(points=5)),
        links=((1, 1, 0, 2, 1), (2, 2, 1, 3, 0), (3, 3, 1, 4, 0), (4, 3, 0, 5, 0), (5, 2, 0, 6, 0)),
    )
    assert set(result) == {"1", "4", "5", "6"}
    assert result["4"]["model"] == ["1", 0]
    assert "other" not in result["5"]  # its CLIP came from nowhere
    assert "points" in result["6"]


def test_a_link_to_nowhere_is_dropped() -> None:
    assert "model" not in convert(node(1, "Sampler", inputs=takes(model=99)))["1"]
    gone = convert(node(1, "Sampler", inputs=takes(model=1)), links=((1, 42, 0, 1, 0),))
    assert "model" not in gone["1"]


INNER = {
    "id": "inner",
    "name": "inner",
    "inputs": [{"name": "model", "type": "MODEL"}, {"name": "steps", "type": "INT"}, {"name": "seed", "type": "INT"}],
    "outputs": [{"name": "LATENT", "type": "LATENT"}, {"name": "through", "type": "MODEL"}],
    "nodes": [
        {
            **node(1, "Sampler", 3, "fixed", 11, "euler"),
            "inputs": [
                {"name": "model", "type": "MODEL", "link": 1},
                {"name": "steps", "type": "INT", "link": 2, "widget": {"name": "steps"}},
                {"name": "seed", "type": "INT", "link": 5, "widget": {"name": "seed"}},
            ],
        }
    ],
    "links": [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "MODEL"},
        {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 1, "target_slot": 1, "type": "INT"},
        {"id": 5, "origin_id": -10, "origin_slot": 2, "target_id": 1, "target_slot": 2, "type": "INT"},
        {"id": 3, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "LATENT"},
        {"id": 4, "origin_id": -10, "origin_slot": 0, "target_id": -20, "target_slot": 1, "type": "MODEL"},
    ],
}
OUTER = {
    "id": "outer",
    "name": "outer",
    "inputs": [{"name": "model", "type": "MODEL"}, {"name": "steps", "type": "INT"}],
    "outputs": [],
    "nodes": [
        {
            **node(8, "inner", None, 77),
            "inputs": [
                {"name": "steps", "type": "INT", "link": 2, "widget": {"name": "steps"}},
                {"name": "model", "type": "MODEL", "link": 1},
            ],
        }
    ],
    "links": [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 8, "target_slot": 1, "type": "MODEL"},
        {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 8, "target_slot": 0, "type": "INT"},
    ],
}
DEFINITIONS = {"subgraphs": [INNER, OUTER]}


def test_subgraphs_are_entered_and_their_nodes_named_by_their_path() -> None:
    result = convert(
        node(4, "Model"),
        node(5, "inner", 50, inputs=takes(model=1)),
        node(6, "inner", inputs=takes(model=1)),
        node(7, "Patch", 1.0, inputs=takes(model=2)),
        links=((1, 4, 0, 5, 0), (2, 5, 1, 7, 0)),
        definitions=DEFINITIONS,
    )
    assert set(result) == {"4", "5:1", "6:1", "7"}
    assert result["5:1"] == {"seed": 3, "steps": 50, "sampler": "euler", "note": "n", "model": ["4", 0]}
    assert result["6:1"]["steps"] == 11  # nothing promoted: its own value
    assert result["7"]["model"] == ["4", 0]  # passed through the subgraph


def test_promoted_values_reach_nested_subgraphs() -> None:
    links = ((1, 4, 0, 5, 0),)
    given = convert(node(4, "Model"), node(5, "outer", 60, inputs=takes(model=1)), links=links, definitions=DEFINITIONS)
    assert given["5:8:1"]["steps"] == 60
    assert given["5:8:1"]["seed"] == 77  # promoted by the instance in between
    assert given["5:8:1"]["model"] == ["4", 0]
    absent = convert(node(4, "Model"), node(5, "outer", inputs=takes(model=1)), links=links, definitions=DEFINITIONS)
    assert absent["5:8:1"]["steps"] == 11


def test_a_muted_subgraph_is_cut_out_whole() -> None:
    assert convert(node(5, "inner") | {"mode": 2}, definitions=DEFINITIONS) == {}


def test_a_subgraph_in_itself_is_refused() -> None:
    loop = {"id": "loop", "name": "loop", "inputs": [], "outputs": [], "nodes": [node(1, "loop")], "links": []}
    with pytest.raises(RequestError, match="contains itself"):
        convert(node(1, "loop"), definitions={"subgraphs": [loop]})


def test_an_unknown_type_keeps_its_name_for_validation() -> None:
    result = to_prompt(
        {
            "nodes": [node(1, "Model"), node(2, "Strange", 1, inputs=takes(model=1))],
            "links": [[1, 1, 0, 2, 0, "MODEL"]],
        },
        REGISTRY,
    )
    assert result["2"]["class_type"] == "Strange"
    assert result["2"]["inputs"] == {"model": ["1", 0]}


@pytest.mark.parametrize(
    "document",
    [{}, [], {"nodes": []}, {"nodes": [{}], "links": []}, {"nodes": [node(1, "Model")], "links": [[1]]}, {"nodes": 3}],
)
def test_what_is_no_workflow_is_refused_in_words(document: Any) -> None:
    with pytest.raises(RequestError, match="workflow"):
        to_prompt(document, REGISTRY)


def test_both_formats_are_told_apart() -> None:
    prompt = {"1": {"class_type": "Model", "inputs": {}}}
    assert is_prompt(prompt)
    assert not is_workflow(prompt)
    assert is_workflow({"nodes": [], "links": []})
    assert not any(is_prompt(it) for it in ({}, [], {"1": {"class_type": "Model"}}, {"nodes": [], "links": []}))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a {red|red} ball", "a red ball"),
        ("a {big {red|red}|big red} ball", "a big red ball"),
        (r"a \{red\} ball", "a {red} ball"),
        ("a ball // later\non grey", "a ball \non grey"),
        ("a /* not\nthis */ball", "a ball"),
        ("a | b } c", "a | b } c"),
        ("open {a", "open a"),
    ],
)
def test_choices_and_comments_in_a_prompt(text: str, want: str) -> None:
    assert expand_choices(text, random.Random(0).choice) == want


def test_every_choice_can_be_drawn() -> None:
    drawn = {expand_choices("{a|b|{c|d}}", random.Random(seed).choice) for seed in range(60)}
    assert drawn == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("v/%date:yyyy-MM-dd%/x", "v/2026-03-07/x"),
        ("%date:yy.M.d_hh:mm:ss%", "26.3.7_09:05:00"),
        ("%KSampler.seed%-%My sampler.steps%", "7-20"),
        ("%My sampler.name%", "a_b"),
        ("%My sampler.model%_%nobody.seed%_%width%_100%", "%My sampler.model%_%nobody.seed%_%width%_100%"),
    ],
)
def test_a_prefix_is_filled_as_the_page_fills_it(text: str, want: str) -> None:
    inputs = {"seed": 7, "steps": 20, "name": "a/b", "model": ["1", 0]}
    prompt = {"3": {"class_type": "KSampler", "inputs": inputs, "_meta": {"title": "My sampler"}}}
    assert expand_prefix(text, prompt, datetime(2026, 3, 7, 9, 5)) == want
