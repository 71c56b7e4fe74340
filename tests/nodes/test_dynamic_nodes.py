"""Nodes whose inputs depend on what is linked or chosen, through the graph's own validation and execution."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.errors import RequestError
from cygnet.graph.events import Event, NodeFailed, NodeFinished
from cygnet.graph.execute import Executor, Job
from cygnet.graph.folders import Folders
from cygnet.graph.validate import validate
from cygnet.nodes import dynamic
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.workshop import Workshop


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(Folders.below(tmp_path))


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def run(shop: Workshop, prompt: dict[str, Any]) -> list[Event]:
    classes = node_classes(shop)
    verdict = validate(prompt, classes)
    assert verdict.error is None, (verdict.error, verdict.nodes)
    events: list[Event] = []
    Executor(classes).run(Job(prompt=verdict.prompt, outputs=verdict.outputs, extra={}), events.append)
    assert not [it for it in events if isinstance(it, NodeFailed)], events
    return events


def shown(events: list[Event], name: str) -> Any:
    return next(it.ui for it in events if isinstance(it, NodeFinished) and it.place.node == name)


def ran(events: list[Event]) -> set[str]:
    return {it.place.node for it in events if isinstance(it, NodeFinished)}


def test_pictures_are_joined_in_the_order_of_their_names_at_the_size_of_the_first(shop: Workshop) -> None:
    it: Any = dynamic.BatchImagesNode.bind(shop)()
    joined = it.run({"image0": torch.zeros(2, 4, 8, 3), "image1": torch.ones(1, 9, 9, 4)})[0]
    assert joined.shape == (3, 4, 8, 4)
    assert joined[0, 0, 0].tolist() == [0, 0, 0, 1]
    assert float(joined[2].min()) == 1


def test_a_grown_input_is_validated_and_run(shop: Workshop) -> None:
    prompt = {
        "1": node("SolidMask", value=0.5, width=8, height=8),
        "2": node("MaskToImage", mask=["1", 0]),
        "3": node("BatchImagesNode", **{"images.image0": ["2", 0], "images.image1": ["2", 0]}),
        "4": node("GetImageSize", image=["3", 0]),
        "5": node("PreviewAny", source=["4", 2]),
    }
    assert shown(run(shop, prompt), "5")["text"] == ["2"]


@pytest.mark.parametrize(("switch", "wanted", "left"), [(True, "yes", "no"), (False, "no", "yes")])
def test_only_the_chosen_branch_is_computed(shop: Workshop, switch: bool, wanted: str, left: str) -> None:
    prompt = {
        "yes": node("PrimitiveString", value="taken"),
        "no": node("PrimitiveString", value="other"),
        "s": node("ComfySwitchNode", switch=switch, on_true=["yes", 0], on_false=["no", 0]),
        "p": node("PreviewAny", source=["s", 0]),
    }
    events = run(shop, prompt)
    assert shown(events, "p")["text"] == ["taken" if switch else "other"]
    assert wanted in ran(events)
    assert left not in ran(events)


def test_an_unlinked_branch_blocks_what_needs_it(shop: Workshop) -> None:
    prompt = {
        "no": node("PrimitiveString", value="other"),
        "s": node("ComfySwitchNode", switch=True, on_false=["no", 0]),
        "p": node("PreviewAny", source=["s", 0]),
    }
    assert shown(run(shop, prompt), "p") is None


def test_an_expression_is_computed_from_linked_numbers(shop: Workshop) -> None:
    prompt = {
        "a": node("PrimitiveInt", value=17),
        "e": node("ComfyMathExpression", expression="(a - 1) / 4 + 0.5", **{"values.a": ["a", 0]}),
        "f": node("PreviewAny", source=["e", 0]),
        "i": node("PreviewAny", source=["e", 1]),
        "b": node("PreviewAny", source=["e", 2]),
    }
    events = run(shop, prompt)
    assert [shown(events, name)["text"] for name in "fib"] == [["4.5"], ["4"], ["True"]]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("max(values) + min(a, b)", 9.0), ("sum(values)", 9.0), ("pow(a, 2)", 16.0), ("a ** 0.5", 2.0),
        ("int(7.9) % 4", 3.0), ("sqrt(a) + ceil(0.1)", 3.0), ("a > b", 0.0), ("round(2.5)", 2.0),
        ("a if a > b else b", 5.0),
    ],
)  # fmt: skip
def test_arithmetic(expression: str, value: float) -> None:
    assert dynamic.evaluate(expression, {"a": 4, "b": 5}) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", "a +", "1 / 0", "c", "'text'", "[1, 2]", "2 ** 5000", "pow(10, 4001)", "9 ** 3999",
        "((9 ** 4000) ** 4000) ** 4000", "pow(pow(9, 4000), 4000)",
        "1e308 * 10",
        "sqrt(-1)", "().__class__", "a.__class__", "open('x')", "__import__('os')", "sum(9 ** 999 for _ in values)",
        "a" * 20_000, "(" * 5000,
    ],
)  # fmt: skip
def test_anything_but_a_number_is_refused_in_words(expression: str) -> None:
    with pytest.raises(RequestError, match=r"expression|power"):
        dynamic.evaluate(expression, {"a": 4})


def rule(kind: str, **numbers: Any) -> dict[str, Any]:
    return {"resize_type": kind, **numbers}


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (rule("scale dimensions", width=10, height=0, crop="center"), (10, 5)),
        (rule("scale dimensions", width=0, height=0, crop="center"), (64, 32)),
        (rule("scale dimensions", width=10, height=10, crop="disabled"), (10, 10)),
        (rule("scale by multiplier", multiplier=1.5), (96, 48)),
        (rule("scale longer dimension", longer_size=32), (32, 16)),
        (rule("scale shorter dimension", shorter_size=64), (128, 64)),
        (rule("scale width", width=16), (16, 8)),
        (rule("scale height", height=16), (32, 16)),
        (rule("scale total pixels", megapixels=1.0, multiple=16), (1456, 720)),
        (rule("match size", match=torch.zeros(1, 7, 9, 3), crop="center"), (9, 7)),
        (rule("scale to multiple", multiple=24), (48, 24)),
    ],
)
def test_every_rule_of_resizing(shop: Workshop, wanted: dict[str, Any], size: tuple[int, int]) -> None:
    it: Any = dynamic.ResizeImageMaskNode.bind(shop)()
    assert it.run(torch.rand(1, 32, 64, 3), wanted, "bilinear")[0].shape == (1, size[1], size[0], 3)
    assert it.run(torch.rand(1, 32, 64), wanted, "area")[0].shape == (1, size[1], size[0])


def test_an_impossible_size_or_rule_is_refused(shop: Workshop) -> None:
    it: Any = dynamic.ResizeImageMaskNode.bind(shop)()
    with pytest.raises(RequestError, match="sides go from 1"):
        it.run(torch.rand(1, 4, 4, 3), rule("scale width", width=0), "area")
    with pytest.raises(RequestError, match="no rule"):
        it.run(torch.rand(1, 4, 4, 3), rule("shrink"), "area")


def test_a_dynamic_choice_is_validated_and_run(shop: Workshop) -> None:
    choice = {"resize_type": "scale by multiplier", "resize_type.multiplier": 2.0}
    prompt = {
        "1": node("SolidMask", value=0.5, width=8, height=4),
        "2": node("ResizeImageMaskNode", input=["1", 0], scale_method="area", **choice),
        "3": node("MaskPreview", mask=["2", 0]),
    }
    assert len(shown(run(shop, prompt), "3")["images"]) == 1
    prompt["2"]["inputs"]["resize_type.multiplier"] = 99.0
    assert validate(prompt, node_classes(shop)).error is not None


def test_a_result_is_never_beyond_a_double() -> None:
    assert math.isfinite(dynamic.evaluate("2 ** 900", {}))
