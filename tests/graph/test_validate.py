"""A prompt is judged before anything runs, and every problem names its node and input."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from cygnet.graph.contract import Classic, NodeClass
from cygnet.graph.validate import MOST_TOLD, Verdict, validate


class Source:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "count": ("INT", {"default": 1, "min": 1, "max": 10}),
                "mode": (["a", "b"],),
                "file": ([f"{i}.png" for i in range(30)],),
            },
            "optional": {"scale": ("FLOAT", {}), "flag": ("BOOLEAN", {}), "text": ("STRING", {})},
        }

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "run"


class Join:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}, "optional": {"either": ("IMAGE,MASK",), "anything": ("*",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"


class Save:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "quality": ("INT", {"default": 80, "max": 100})}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True


class Picky:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": (["old"],), "size": ("INT", {"max": 4}), "link": ("LATENT",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, name: str, input_types: Mapping[str, str]) -> bool | str:
        if name == "boom":
            raise RuntimeError("it broke")
        return True if name == "new" and input_types == {"link": "IMAGE"} else f"no {name} here"

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True


class Raises:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, name: str) -> bool:
        raise RuntimeError("it broke")

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"


class Many:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        grow = {"template": {"input": {"required": {"image": ("IMAGE", {})}}, "prefix": "image", "min": 2, "max": 4}}
        sized = {"key": "sized", "inputs": {"required": {"width": ("INT", {"min": 8})}}}
        combo = {"options": [{"key": "plain", "inputs": {}}, sized]}
        return {"required": {"images": ("COMFY_AUTOGROW_V3", grow), "mode": ("COMFY_DYNAMICCOMBO_V3", combo)}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True


class Short:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {}

    RETURN_TYPES = ("IMAGE", ["a", "b"], "INT")
    RETURN_NAMES = ("picture",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"


class Undescribed(Save):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        raise FileNotFoundError("no such folder")


class Twisted(Save):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"size": ("INT", {"min": "one"})}}


class Patient(Save):
    @classmethod
    async def VALIDATE_INPUTS(cls, quality: int) -> bool | str:
        await asyncio.sleep(0)
        return True if quality < 50 else "too good"


class AnyType(str):
    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False


class Wild:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"whatever": (AnyType("whatever"),)}}

    RETURN_TYPES = (AnyType("anything"), "INT")
    FUNCTION = "run"


CLASSES: dict[str, NodeClass] = {
    it.__name__: Classic(it.__name__, it)
    for it in (Source, Join, Save, Picky, Raises, Many, Short, Undescribed, Twisted, Patient, Wild)
}
GOOD = {"count": 2, "mode": "a", "file": "3.png"}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def judge(**nodes: dict[str, Any]) -> Verdict:
    return validate({key.removeprefix("n"): it for key, it in nodes.items()}, CLASSES)


def only_problem(verdict: Verdict, key: str) -> dict[str, Any]:
    (problem,) = verdict.nodes[key].errors
    return problem.json()


def test_a_good_prompt_runs_its_outputs() -> None:
    verdict = judge(n1=node("Source", **GOOD), n2=node("Save", images=["1", 0], quality=9))
    assert verdict.error is None
    assert verdict.outputs == ("2",)
    assert not verdict.nodes


def test_constants_are_converted_and_the_given_prompt_is_left_alone() -> None:
    inputs = {**GOOD, "count": "3", "scale": 2, "flag": 1, "text": 7}
    given = {"1": node("Source", **inputs), "2": node("Save", images=["1", 0], quality={"__value__": 8.9})}
    verdict = validate(given, CLASSES)
    assert verdict.prompt["1"]["inputs"] == {**GOOD, "count": 3, "scale": 2.0, "flag": True, "text": "7"}
    assert verdict.prompt["2"]["inputs"]["quality"] == 8
    assert given["1"]["inputs"]["count"] == "3"


@pytest.mark.parametrize(
    ("bad", "name"), [({"inputs": {}}, None), ({"class_type": "Nope", "inputs": {}}, "Nope"), (3, None)]
)
def test_an_unknown_type_stops_everything(bad: Any, name: str | None) -> None:
    verdict = validate({"7": bad, "2": node("Save", images=["7", 0], quality=1)}, CLASSES)
    assert verdict.error is not None
    assert verdict.error.type == "missing_node_type"
    assert verdict.error.extra_info == {"node_id": "7", "class_type": name, "node_title": None}


def test_without_an_output_there_is_nothing_to_do() -> None:
    verdict = judge(n1=node("Source", **GOOD))
    assert verdict.error is not None
    assert verdict.error.type == "prompt_no_outputs"
    prompt = {"1": node("Source", **GOOD), "2": node("Save", images=["1", 0], quality=1)}
    elsewhere = validate(prompt, CLASSES, targets=["1"]).error
    assert elsewhere is not None
    assert elsewhere.type == "prompt_no_outputs"


@pytest.mark.parametrize(
    ("change", "kind", "name"),
    [
        ({"count": None}, "invalid_input_type", "count"),
        ({"count": "many"}, "invalid_input_type", "count"),
        ({"scale": "nan"}, "invalid_input_type", "scale"),
        ({"count": float("inf")}, "invalid_input_type", "count"),
        ({"count": 0}, "value_smaller_than_min", "count"),
        ({"count": 11}, "value_bigger_than_max", "count"),
        ({"mode": "c"}, "value_not_in_list", "mode"),
        ({"file": "31.png"}, "value_not_in_list", "file"),
        ({"mode": ["1"]}, "bad_linked_input", "mode"),
        ({"mode": [1, 0]}, "bad_linked_input", "mode"),
        ({"mode": ["3", 5]}, "bad_linked_input", "mode"),
        ({"mode": ["9", 0]}, "exception_during_validation", "mode"),
        ({"mode": ["3", 0]}, "return_type_mismatch", "mode"),
    ],
)
def test_each_problem_names_its_input(change: dict[str, Any], kind: str, name: str) -> None:
    verdict = judge(
        n1=node("Source", **(GOOD | change)), n2=node("Save", images=["1", 0], quality=1), n3=node("Source", **GOOD)
    )
    problem = only_problem(verdict, "1")
    assert problem["type"] == kind
    assert problem["extra_info"]["input_name"] == name
    assert verdict.error is not None
    assert verdict.error.type == "prompt_outputs_failed_validation"
    assert verdict.nodes["1"].dependent_outputs == ["2"]


def test_a_missing_input_is_reported_unless_it_is_optional() -> None:
    verdict = judge(n1=node("Source", mode="a", file="3.png"), n2=node("Save", images=["1", 0], quality=1))
    assert only_problem(verdict, "1")["type"] == "required_input_missing"


def test_long_lists_are_not_repeated_in_messages() -> None:
    verdict = judge(n1=node("Source", **(GOOD | {"file": "x"})), n2=node("Save", images=["1", 0], quality=1))
    problem = only_problem(verdict, "1")
    assert problem["extra_info"]["input_config"] is None
    assert "list of length 30" in problem["details"]


def test_link_types_fit_by_name_list_or_wildcard() -> None:
    base = {"n1": node("Source", **GOOD), "n9": node("Save", images=["5", 0], quality=1)}
    for name, slot in (("either", 0), ("either", 1), ("anything", 1)):
        verdict = judge(**base, n5=node("Join", image=["1", 0], **{name: ["1", slot]}))
        assert verdict.outputs == ("9",)
    verdict = judge(**base, n5=node("Join", image=["1", 1]))
    assert only_problem(verdict, "5")["type"] == "return_type_mismatch"


def test_the_good_output_runs_though_another_is_bad() -> None:
    verdict = judge(
        n1=node("Source", **GOOD),
        n2=node("Save", images=["1", 0], quality=999),
        n3=node("Save", images=["1", 0], quality=1),
    )
    assert verdict.error is None
    assert verdict.outputs == ("3",)
    assert only_problem(verdict, "2")["type"] == "value_bigger_than_max"


def test_problems_of_nodes_that_no_output_needs_do_not_count() -> None:
    verdict = judge(n1=node("Source", **GOOD), n2=node("Save", images=["1", 0], quality=1), n3=node("Source"))
    assert verdict.outputs == ("2",)
    assert not verdict.nodes


def test_undeclared_inputs_are_ignored() -> None:
    verdict = judge(n1=node("Source", **GOOD, strange=["99", 3]), n2=node("Save", images=["1", 0], quality=1))
    assert verdict.outputs == ("2",)


def test_a_hook_judges_what_it_names_and_the_types_of_links() -> None:
    source = node("Source", **GOOD)
    good = judge(n1=source, n2=node("Picky", name="new", size=3, link=["1", 0]))
    assert good.outputs == ("2",)
    refused = judge(n1=source, n2=node("Picky", name="old", size=3, link=["1", 0]))
    assert only_problem(refused, "2") | {"extra_info": 0} == {
        "type": "custom_validation_failed",
        "message": "The node refuses an input",
        "details": "name: no old here",
        "extra_info": 0,
    }
    assert only_problem(refused, "2")["extra_info"]["input_name"] == "name"
    broken = judge(n1=source, n2=node("Picky", name="boom", size=3, link=["1", 0]))
    assert only_problem(broken, "2")["extra_info"]["exception_type"] == "RuntimeError"
    assert only_problem(judge(n1=source, n2=node("Picky", name="new", size=9, link=["1", 0])), "2")["type"] == (
        "value_bigger_than_max"
    )


def test_dynamic_inputs_are_judged_by_the_names_that_are_there() -> None:
    source = node("Source", **GOOD)
    images = {"images.image0": ["1", 0], "images.image1": ["1", 0]}
    assert judge(n1=source, n2=node("Many", **images, mode="plain")).outputs == ("2",)
    assert judge(n1=source, n2=node("Many", **images, mode="sized", **{"mode.width": 9})).outputs == ("2",)
    for bad, kind in (
        ({**images, "mode": "sized"}, "required_input_missing"),
        ({**images, "mode": "sized", "mode.width": 1}, "value_smaller_than_min"),
        ({**images, "mode": "other"}, "value_not_in_list"),
        ({"images.image0": ["1", 0], "mode": "plain"}, "required_input_missing"),
        ({**images, "images.image2": ["1", 1], "mode": "plain"}, "return_type_mismatch"),
        ({**images, "images.image4": ["1", 0], "mode": "plain"}, "invalid_dynamic_input"),
        ({**images, "images.other": ["1", 0], "mode": "plain"}, "invalid_dynamic_input"),
    ):
        assert only_problem(judge(n1=source, n2=node("Many", **bad)), "2")["type"] == kind


def test_a_loop_is_named() -> None:
    verdict = judge(
        n1=node("Join", image=["2", 0]), n2=node("Join", image=["1", 0]), n3=node("Save", images=["2", 0], quality=1)
    )
    assert verdict.error is not None
    (problems,) = verdict.nodes.values()
    assert problems.errors[0].type == "dependency_cycle"
    assert problems.errors[0].details in ("1, 2", "2, 1")
    assert sorted(problems.errors[0].extra_info["node_ids"]) == ["1", "2"]


def test_a_check_that_raises_is_told_at_the_input_that_it_feeds() -> None:
    verdict = judge(n1=node("Raises", name="x"), n2=node("Save", images=["1", 0], quality=1, more=[]))
    assert only_problem(verdict, "1")["type"] == "exception_during_validation"
    problem = only_problem(verdict, "2")
    assert problem["type"] == "exception_during_inner_validation"
    assert problem["details"] == "it broke"
    assert problem["extra_info"]["input_name"] == "images"
    assert problem["extra_info"]["linked_node"] == ["1", 0]
    assert problem["extra_info"]["exception_type"] == "RuntimeError"


def test_a_prompt_of_5000_nodes_in_a_row_is_judged_without_deep_recursion() -> None:
    prompt = {"0": node("Source", **GOOD)}
    prompt |= {str(i): node("Join", image=[str(i - 1), 0]) for i in range(1, 5000)}
    prompt["last"] = node("Save", images=["4999", 0], quality=1)
    assert validate(prompt, CLASSES).outputs == ("last",)


def ring(size: int, *also: str) -> dict[str, Any]:
    """Nodes of which each needs the one before, the first the last, and all of them ``also`` another one."""
    more = {"either": [also[0], 0]} if also else {}
    return {str(i): node("Join", image=[str((i - 1) % size), 0], **more) for i in range(size)}


@pytest.mark.parametrize(
    "prompt",
    [
        # Each would take minutes or gigabytes if every output's ancestors, or every loop, were written down.
        {**{str(i): node("Join", image=[str(i - 1), 0]) for i in range(1, 8000)}, "0": node("Source", **GOOD)}
        | {f"out {i}": node("Save", images=["7999", 0], quality=1) for i in range(8000)},
        {**ring(8000, "7999"), "out": node("Save", images=["0", 0], quality=1)},
        {**ring(8000, "0"), "out": node("Save", images=["0", 0], quality=1)},
        {"0": node("Source", count=0, mode="c", file="x")}
        | {str(i): node("Save", images=["0", 0], quality=1000) for i in range(1, 8000)},
        {"1": node("Save", images=list(range(300_000)), quality=1)},
    ],
    ids=["many outputs", "loops to the end", "loops to the beginning", "many problems", "a long link"],
)
def test_what_a_large_prompt_is_answered_stays_small(prompt: dict[str, Any]) -> None:
    begun = time.monotonic()
    verdict = validate(prompt, CLASSES)
    assert time.monotonic() - begun < 10
    told = json.dumps([verdict.error and verdict.error.json(), {k: it.json() for k, it in verdict.nodes.items()}])
    assert len(told) < 4_000_000


def test_every_output_behind_a_problem_that_is_not_told_is_left_out_too() -> None:
    prompt = {str(i): node("Save", images=["no", 0], quality=1) for i in range(MOST_TOLD + 50)}
    prompt |= {"source": node("Source", **GOOD), "good": node("Save", images=["source", 0], quality=1)}
    verdict = validate(prompt, CLASSES)
    assert verdict.outputs == ("good",)
    assert len(verdict.nodes) == MOST_TOLD


def test_a_loop_that_no_output_needs_does_not_count() -> None:
    prompt = {**ring(3), "s": node("Source", **GOOD), "out": node("Save", images=["s", 0], quality=1)}
    assert validate(prompt, CLASSES).outputs == ("out",)


def test_outputs_without_a_name_have_their_types() -> None:
    outputs = CLASSES["Short"].describe().outputs
    assert [(it.name, it.type, it.is_list) for it in outputs] == [
        ("picture", "IMAGE", True),
        ("COMBO", "COMBO", False),
        ("INT", "INT", False),
    ]


@pytest.mark.parametrize("name", ["Undescribed", "Twisted"])
def test_a_class_that_cannot_declare_its_inputs_is_a_problem_of_its_node(name: str) -> None:
    verdict = judge(n1=node("Short"), n2=node(name, size=1))
    assert verdict.error is not None
    assert verdict.outputs == ()
    assert list(verdict.nodes) == ["2"]
    assert only_problem(verdict, "2")["type"] == "exception_during_validation"


def test_a_string_that_differs_from_nothing_is_a_wildcard() -> None:
    verdict = judge(
        n1=node("Source", **GOOD), n2=node("Wild", whatever=["1", 1]), n3=node("Save", images=["2", 0], quality=1)
    )
    assert verdict.outputs == ("3",)
    described = CLASSES["Wild"].describe().info()
    assert described["input"]["required"]["whatever"] == ["*", {}]
    assert described["output"] == ["*", "INT"]
    verdict = judge(
        n1=node("Source", **GOOD), n2=node("Wild", whatever=["1", 1]), n3=node("Save", images=["2", 1], quality=1)
    )
    assert only_problem(verdict, "3")["type"] == "return_type_mismatch"


def test_a_check_may_be_async() -> None:
    source = node("Source", **GOOD)
    assert judge(n1=source, n2=node("Patient", images=["1", 0], quality=1)).outputs == ("2",)
    problem = only_problem(judge(n1=source, n2=node("Patient", images=["1", 0], quality=60)), "2")
    assert (problem["type"], problem["details"]) == ("custom_validation_failed", "quality: too good")
