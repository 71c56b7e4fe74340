"""Links that a node is given as they are, names that it does not declare, and expansions that it builds from them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from cygnet.graph.builder import GraphBuilder, add_graph_prefix, is_link
from cygnet.graph.context import current
from cygnet.graph.contract import Classic
from cygnet.graph.dynamic_prompt import NodeNotFoundError
from cygnet.graph.events import Event, JobEnded, NodeFailed, NodeFinished, NodesCached, NodeStarted
from cygnet.graph.execute import Executor, Job
from cygnet.graph.validate import validate

RUNS: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    RUNS.clear()


class Anything(dict):  # type: ignore[type-arg]
    """Holds every name, as packs write it whose page scripts add fields."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> Any:
        return ("*",)


class HoldsOnly(dict):  # type: ignore[type-arg]
    """Says that it holds every name, and no more."""

    def __contains__(self, name: object) -> bool:
        return True


class Any_(str):
    """A wildcard, as packs write it."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class Node:
    RETURN_TYPES: tuple[str, ...] = ("*",)
    FUNCTION = "run"
    REQUIRED: ClassVar[dict[str, Any]] = {}
    OPTIONAL: ClassVar[dict[str, Any]] = {}
    HIDDEN: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.REQUIRED, "optional": cls.OPTIONAL, "hidden": cls.HIDDEN}


class Text(Node):
    REQUIRED: ClassVar[dict[str, Any]] = {"value": ("*",)}

    def run(self, value: Any) -> tuple[Any]:
        RUNS.append(f"Text {value}")
        return (value,)


class Add(Node):
    REQUIRED: ClassVar[dict[str, Any]] = {"a": ("INT",), "b": ("INT",)}
    RETURN_TYPES = ("INT",)

    def run(self, a: int, b: int) -> tuple[int]:
        return (a + b,)


class Show(Node):
    REQUIRED: ClassVar[dict[str, Any]] = {"value": (Any_("whatever"),)}
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    def run(self, value: Any) -> dict[str, Any]:
        return {"ui": {"text": [value]}, "result": ()}


class Raw(Node):
    """Its link, as text; what is behind it is not run."""

    REQUIRED: ClassVar[dict[str, Any]] = {"link": ("*", {"rawLink": True})}

    def run(self, link: Any) -> tuple[str]:
        RUNS.append("Raw")
        return (f"raw {link}",)


class HandOn(Node):
    """What its link leads to, by an expansion without nodes."""

    REQUIRED: ClassVar[dict[str, Any]] = {"link": ("*", {"rawLink": True})}

    def run(self, link: Any) -> dict[str, Any]:
        return {"result": (link,), "expand": {}}


class Chosen(Node):
    """One of two raw links; the other is never run."""

    REQUIRED: ClassVar[dict[str, Any]] = {"first": ("BOOLEAN",)}
    OPTIONAL: ClassVar[dict[str, Any]] = {"a": ("*", {"rawLink": True, "lazy": True}), "b": ("*", {"rawLink": True})}

    def run(self, first: bool, a: Any = None, b: Any = None) -> dict[str, Any]:
        graph = GraphBuilder()
        kept = graph.node("Text", value=a if first else b)
        return {"result": (kept.out(0),), "expand": graph.finalize()}


class Flexible(Node):
    OPTIONAL: ClassVar[dict[str, Any]] = Anything()

    def run(self, **given: Any) -> tuple[str]:
        return (str(sorted(given.items())),)


class HalfFlexible(Flexible):
    OPTIONAL: ClassVar[dict[str, Any]] = HoldsOnly()


class ManyLinks(Node):
    REQUIRED: ClassVar[dict[str, Any]] = {"count": ("INT",)}

    def run(self, count: int, **images: Any) -> tuple[str]:
        return (f"{count} {sorted(images.items())}",)


class Closed(Node):
    REQUIRED: ClassVar[dict[str, Any]] = {"count": ("INT",)}

    def run(self, count: int) -> tuple[int]:
        return (count,)


class Tell(Node):
    """What the job's nodes look like from inside an expansion."""

    HIDDEN: ClassVar[dict[str, Any]] = {"id": "UNIQUE_ID", "all": "DYNPROMPT"}

    def run(self, id: str, all: Any) -> tuple[dict[str, Any]]:
        with pytest.raises(NodeNotFoundError, match="'nobody'"):
            all.get_node("nobody")
        return (
            {
                "id": id,
                "own": all.get_node(id)["class_type"],
                "there": (all.has_node(id), all.has_node("nobody"), id in all.all_node_ids()),
                "parent": all.get_parent_node_id(id),
                "real": all.get_real_node_id(id),
                "display": all.get_display_node_id(id),
                "original": sorted(all.get_original_prompt()),
            },
        )


class Within(Node):
    REQUIRED: ClassVar[dict[str, Any]] = {"shown_at": ("STRING",)}

    def run(self, shown_at: str) -> dict[str, Any]:
        graph = GraphBuilder()
        node = graph.node("Tell", id="told")
        node.set_override_display_id(shown_at)
        return {"result": (node.out(0),), "expand": graph.finalize()}


class AnyNumber(tuple):  # type: ignore[type-arg]
    """Types of as many outputs as anyone asks for, as packs write it."""

    def __getitem__(self, index: Any) -> Any:
        return tuple.__getitem__(self, min(index, len(self) - 1))


class Spread(Node):
    """As many outputs as its text has letters."""

    REQUIRED: ClassVar[dict[str, Any]] = {"text": ("STRING",)}
    RETURN_TYPES = AnyNumber(("*",))

    def run(self, text: str) -> tuple[str, ...]:
        return tuple(text)


class Hiding(Node):
    """Hidden arguments of kinds that nobody fills in, and of one that is filled in."""

    REQUIRED: ClassVar[dict[str, Any]] = {"a": ("*",)}
    HIDDEN: ClassVar[dict[str, Any]] = {
        "b": ("*",),
        "c": ("INT", {"default": 9, "max": 1}),
        "d": "FLOW",
        "raw": ("*", {"rawLink": True}),
        "id": "UNIQUE_ID",
        "token": "AUTH_TOKEN_COMFY_ORG",
    }

    def run(self, **given: Any) -> tuple[str]:
        return (str(sorted(given.items())),)


class LoopOpen(Node):
    """The beginning of a loop: a number, and how often still to go round."""

    REQUIRED: ClassVar[dict[str, Any]] = {"left": ("INT",), "value": ("INT",)}
    RETURN_TYPES = ("FLOW", "INT", "INT")

    def run(self, left: int, value: int) -> tuple[str, int, int]:
        return ("flow", left, value)


class LoopClose(Node):
    """The end of a loop: all that lies between the two is copied for the next round, by its links."""

    REQUIRED: ClassVar[dict[str, Any]] = {"flow": ("FLOW", {"rawLink": True}), "left": ("INT",), "value": ("INT",)}
    RETURN_TYPES = ("INT",)
    HIDDEN: ClassVar[dict[str, Any]] = {"id": "UNIQUE_ID", "all": "DYNPROMPT"}

    def run(self, flow: list[Any], left: int, value: int, id: str, all: Any) -> Any:
        if left <= 0:
            return (value,)
        begin = flow[0]
        inside = self.between(begin, id, all)
        graph = GraphBuilder()
        for key in inside:
            node = graph.node(all.get_node(key)["class_type"], "again" if key == id else key)
            node.set_override_display_id(key)
        for key in inside:
            copy = graph.lookup_node("again" if key == id else key)
            assert copy is not None
            for name, given in all.get_node(key)["inputs"].items():
                if is_link(given) and given[0] in inside:
                    source = graph.lookup_node(given[0])
                    assert source is not None
                    copy.set_input(name, source.out(given[1]))
                else:
                    copy.set_input(name, given)
        opened = graph.lookup_node(begin)
        assert opened is not None
        opened.set_input("left", left)
        opened.set_input("value", value)
        closed = graph.lookup_node("again")
        assert closed is not None
        return {"result": (closed.out(0),), "expand": graph.finalize()}

    def between(self, begin: str, end: str, all: Any) -> list[str]:
        """Nodes that the end needs and that need the beginning, with both."""
        found: list[str] = []

        def reaches(key: str) -> bool:
            if key == begin or key in found:
                return True
            links = [it for it in all.get_node(key)["inputs"].values() if is_link(it)]
            reached = [reaches(it[0]) for it in links]  # all of them, for each may lie between
            if any(reached):
                found.append(key)
                return True
            return False

        reaches(end)
        return [*found, begin]


class Nest(Node):
    """Expands into nodes as told."""

    REQUIRED: ClassVar[dict[str, Any]] = {"inner": ("*",)}

    def run(self, inner: Any) -> dict[str, Any]:
        return {"result": ([next(iter(inner)), 0],), "expand": inner}


class Both(Node):
    """Expands in each of its calls."""

    REQUIRED: ClassVar[dict[str, Any]] = {"number": ("INT",)}
    RETURN_TYPES = ("INT",)

    def run(self, number: int) -> dict[str, Any]:
        graph = GraphBuilder()
        return {"result": (graph.node("Add", a=number, b=1).out(0),), "expand": graph.finalize()}


class BothLater(Both):
    async def run(self, number: int) -> dict[str, Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        assert current().call == number
        return Both.run(self, number)


class Numbers(Node):
    RETURN_TYPES = ("INT",)
    OUTPUT_IS_LIST = (True,)

    def run(self) -> tuple[list[int]]:
        return ([0, 1, 2],)


CLASSES = {
    it.__name__: Classic(it.__name__, it)
    for it in (
        Text, Add, Show, Raw, HandOn, Chosen, Flexible, HalfFlexible, ManyLinks, Closed, Tell, Within, LoopOpen,
        Hiding, LoopClose, Spread, Nest, Both, BothLater, Numbers,
    )
}  # fmt: skip


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def run(prompt: dict[str, Any], executor: Executor | None = None) -> tuple[list[Event], JobEnded]:
    verdict = validate(prompt, CLASSES)
    assert not verdict.nodes, verdict.nodes
    events: list[Event] = []
    job = Job(prompt=verdict.prompt, outputs=verdict.outputs, id="job-1")
    return events, (executor or Executor(CLASSES)).run(job, events.append)


def shown(prompt: dict[str, Any], executor: Executor | None = None) -> list[Any]:
    events, ended = run(prompt, executor)
    assert ended.state == "success", [it for it in events if isinstance(it, NodeFailed)]
    return [text for it in events if isinstance(it, NodeFinished) and it.ui for text in it.ui["text"]]


def failure(prompt: dict[str, Any]) -> NodeFailed:
    events, ended = run(prompt)
    assert ended.state == "error"
    return next(it for it in events if isinstance(it, NodeFailed))


def test_hidden_arguments_that_nobody_fills_in_are_taken_from_the_prompt_or_left_out() -> None:
    given = {"1": node("Text", value=3), "3": node("Show", value=["2", 0])}
    filled = "('id', '2'), ('token', None)"
    assert shown({**given, "2": node("Hiding", a=["1", 0])}) == [f"[('a', 3), {filled}]"]
    hiding = node("Hiding", a=1, b=["1", 0], c=5, d="x", raw=["1", 0], id="9", token="of-nobody")
    assert shown({**given, "2": hiding}) == [
        "[('a', 1), ('b', 3), ('c', 5), ('d', 'x'), ('id', '2'), ('raw', ['1', 0]), ('token', None)]"
    ]


def test_a_hidden_link_brings_its_source_and_counts_for_the_cache() -> None:
    executor = Executor(CLASSES)
    for value in (1, 2):
        inner = node("Nest", inner={"x": node("Hiding", a=1, b=["1", 0])})
        prompt = {"1": node("Text", value=value), "2": inner, "3": node("Show", value=["2", 0])}
        assert f"('b', {value})" in shown(prompt, executor)[0]
        assert f"('b', {value})" in shown({**prompt, "2": node("Hiding", a=1, b=["1", 0])}, executor)[0]


def test_a_raw_link_is_given_as_it_is_and_nothing_behind_it_runs() -> None:
    prompt = {"1": node("Text", value="x"), "2": node("Raw", link=["1", 0]), "3": node("Show", value=["2", 0])}
    assert shown(prompt) == ["raw ['1', 0]"]
    assert RUNS == ["Raw"]
    assert shown({"2": node("Raw", link="constant"), "3": node("Show", value=["2", 0])}) == ["raw constant"]


def test_what_is_behind_a_raw_link_counts_for_the_cache() -> None:
    executor = Executor(CLASSES)
    prompt = {"1": node("Text", value="x"), "2": node("HandOn", link=["1", 0]), "3": node("Show", value=["2", 0])}
    assert shown(prompt, executor) == ["x"]
    prompt["1"] = node("Text", value="y")
    assert shown(prompt, executor) == ["y"]
    events, _ = run(prompt, executor)
    assert next(it for it in events if isinstance(it, NodesCached)).nodes == ("3", "2")
    assert RUNS == ["Text x", "Text y"]


@pytest.mark.parametrize("first", [True, False])
def test_an_expansion_runs_the_raw_link_that_it_uses(first: bool) -> None:
    prompt = {
        "1": node("Text", value="one"),
        "2": node("Text", value="two"),
        "3": node("Chosen", first=first, a=["1", 0], b=["2", 0]),
        "4": node("Show", value=["3", 0]),
    }
    assert shown(prompt) == ["one" if first else "two"]
    assert ("Text two" in RUNS, "Text one" in RUNS) == (not first, first)


def test_a_raw_link_of_a_wrong_type_is_still_refused() -> None:
    prompt = {
        "1": node("Add", a=1, b=2),
        "2": node("LoopClose", flow=["1", 0], left=0, value=0),
        "3": node("Show", value=["2", 0]),
    }
    (problem,) = validate(prompt, CLASSES).nodes["2"].errors
    assert problem.type == "return_type_mismatch"


@pytest.mark.parametrize("kind", ["Flexible", "HalfFlexible"])
def test_a_mapping_that_holds_every_name_takes_constants_and_links(kind: str) -> None:
    prompt = {
        "1": node("Text", value="x"),
        "2": node(kind, lora_1={"on": True, "strength": 0.5}, any_2=["1", 0], plain=3),
        "3": node("Show", value=["2", 0]),
    }
    told = "[('any_2', 'x'), ('lora_1', {'on': True, 'strength': 0.5}), ('plain', 3)]"
    assert shown(prompt) == [told]
    executor = Executor(CLASSES)
    shown(prompt, executor)
    prompt["2"]["inputs"]["plain"] = 4
    assert shown(prompt, executor) == [told.replace("3", "4")], "what is not declared counts for the cache"


def test_a_function_that_takes_any_name_is_given_links_alone() -> None:
    prompt = {
        "1": node("Text", value="x"),
        "2": node("ManyLinks", count=2, image_1=["1", 0], stale="a widget of another version"),
        "3": node("Show", value=["2", 0]),
    }
    assert shown(prompt) == ["2 [('image_1', 'x')]"]
    prompt["2"] = node("Closed", count=2, image_1=["1", 0])
    assert shown(prompt) == [2]
    assert RUNS == ["Text x"], "a link that the function would not take is not followed"


def test_a_link_of_an_undeclared_name_is_judged() -> None:
    prompt = {"2": node("ManyLinks", count=2, image_1=["9", 0]), "3": node("Show", value=["2", 0])}
    (problem,) = validate(prompt, CLASSES).nodes["2"].errors
    assert problem.extra_info["input_name"] == "image_1"
    assert "not in the prompt" in problem.message


def test_a_node_of_an_expansion_knows_where_it_stands() -> None:
    prompt = {"1": node("Tell"), "2": node("Show", value=["1", 0])}
    (told,) = shown(prompt)
    assert told == {
        "id": "1", "own": "Tell", "there": (True, False, True), "parent": None, "real": "1", "display": "1",
        "original": ["1", "2"],
    }  # fmt: skip
    prompt = {"1": node("Within", shown_at="7"), "2": node("Show", value=["1", 0]), "7": node("Text", value="")}
    (told,) = shown(prompt)
    assert (told["id"], told["parent"], told["real"], told["display"]) == ("1.0.0.told", "1", "1", "7")
    assert told["original"] == ["1", "2", "7"]


def test_a_loop_of_raw_links_goes_round_as_often_as_it_is_told() -> None:
    prompt = {
        "1": node("LoopOpen", left=4, value=1),
        "2": node("Add", a=["1", 2], b=["1", 2]),
        "3": node("Add", a=["1", 1], b=-1),
        "4": node("LoopClose", flow=["1", 0], left=["3", 0], value=["2", 0]),
        "5": node("Show", value=["4", 0]),
    }
    executor = Executor(CLASSES)
    assert shown(prompt, executor) == [16]
    events, _ = run({**prompt, "5": node("Show", value=["4", 0]), "6": node("Show", value=["2", 0])})
    places = [it.place for it in events if isinstance(it, NodeStarted)]
    assert {it.display for it in places} == set("123456"), "copies are shown at what they are copies of"
    assert {it.real for it in places if it.parent} == {"4"}
    prompt["1"]["inputs"]["left"] = 6
    assert shown(prompt, executor) == [64]


def test_a_node_may_have_any_number_of_outputs() -> None:
    prompt = {
        "1": node("Spread", text="abc"),
        "2": node("Show", value=["1", 2]),
        "3": node("Show", value=["1", 0]),
    }
    assert sorted(shown(prompt)) == ["a", "c"]
    assert len(CLASSES["Spread"].describe().info()["output"]) == 1
    prompt["1"] = node("Spread", text="ab")
    assert "Spread (node 1) gave 2 values, and number 2 is asked for" in failure(prompt).message
    prompt["1"] = node("Text", value="abc")
    (problem,) = validate(prompt, CLASSES).nodes["2"].errors
    assert problem.type == "bad_linked_input"


@pytest.mark.parametrize("kind", ["Both", "BothLater"])
def test_every_call_of_a_node_makes_ids_of_its_own(kind: str) -> None:
    prompt = {"1": node("Numbers"), "2": node(kind, number=["1", 0]), "3": node("Show", value=["2", 0])}
    assert shown(prompt) == [1, 2, 3]


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        ({"x": {"class_type": "NoSuch", "inputs": {}}}, "a node of type 'NoSuch' (x), which is not installed"),
        ({"x": {"inputs": {}}}, "'x', which has no class_type and inputs"),
        ({"x": "text"}, "'x', which has no class_type and inputs"),
        ({"2": {"class_type": "Tell", "inputs": {}}}, "there is one of that id already; GraphBuilder"),
        ({"x": {"class_type": "Text", "inputs": {"value": ["gone", 0]}}}, "linked to a node 'gone' that is not there"),
    ],
)
def test_an_expansion_that_cannot_run_is_told_at_the_node_that_made_it(inner: Any, told: str) -> None:
    failed = failure({"1": node("Nest", inner=inner), "2": node("Show", value=["1", 0])})
    assert told in failed.message
    assert failed.message.startswith("Nest (node 1) expanded into")
    assert failed.place.node == "1"


def test_a_small_prompt_can_be_changed_before_it_is_run() -> None:
    graph = GraphBuilder(prefix="p.")
    first, second = graph.node("Text", id="a", value=1), graph.node("Add", a=["p.a", 0], b=["p.a", 1])
    assert graph.node("Other", id="a") is first
    assert graph.lookup_node("a") is first
    assert graph.lookup_node("b") is None
    graph.replace_node_output("a", 0, 5)
    graph.replace_node_output("a", 1, None)
    assert (second.get_input("a"), second.get_input("b")) == (5, None)
    graph.remove_node("a")
    assert graph.finalize() == {"p.0": {"class_type": "Add", "inputs": {"a": 5}}}
    assert GraphBuilder.alloc_prefix("r", 2, 3) == "r.2.3."
    moved: tuple[dict[str, Any], Sequence[Any]] = add_graph_prefix(
        {"a": node("Text", value=["b", 0]), "b": node("Text", value=1)}, [["a", 0], 7], "q."
    )
    assert moved == ({"q.a": node("Text", value=["q.b", 0]), "q.b": node("Text", value=1)}, (["q.a", 0], 7))


def test_names_that_answer_for_one_place_at_a_time_are_read() -> None:
    class Open(tuple[str, ...]):
        def __getitem__(self, index: Any) -> Any:
            return "*" if index > len(self) - 1 else super().__getitem__(index)

    class Puter:
        INPUT_TYPES = staticmethod(lambda: {"required": {}})
        RETURN_TYPES, RETURN_NAMES, OUTPUT_IS_LIST = Open(["INT", "STRING"]), Open(["a"]), Open([True])  # type: ignore[list-item]
        FUNCTION = "go"

    described = Classic("Puter", Puter).describe()
    assert [(it.name, it.type, it.is_list) for it in described.outputs] == [
        ("a", "INT", True),
        ("STRING", "STRING", False),
    ]
    assert described.output(7) is not None
