"""A job runs what it needs, once, in order, and says what happens."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cygnet.cli.interrupts import cancelled_by_interrupt, terminated_by_signal
from cygnet.errors import Terminated
from cygnet.graph.cache import Cache
from cygnet.graph.context import current
from cygnet.graph.contract import Classic, NodeClass, describe_all
from cygnet.graph.events import (
    Event,
    JobEnded,
    NodeFailed,
    NodeFinished,
    NodeProgressed,
    NodesCached,
    NodeSpoke,
    NodeStarted,
    to_json,
)
from cygnet.graph.execute import Executor, Job
from cygnet.graph.results import ExecutionBlocker
from cygnet.graph.validate import validate
from cygnet.types import CancelToken

RUNS: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    RUNS.clear()


def classic(
    inputs: dict[str, Any],
    returns: tuple[str, ...],
    run: Any,
    *,
    hidden: dict[str, str] | None = None,
    **attributes: Any,
) -> type:
    """A class of the classic contract; ``run`` takes the inputs as keywords, without self."""
    declared = {"required": inputs, "hidden": hidden or {}}
    return type(
        "Node",
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: declared),
            "RETURN_TYPES": returns,
            "FUNCTION": "run",
            "run": lambda self, **given: run(**given),
            **attributes,
        },
    )


def logged(name: str, value: Any) -> Any:
    RUNS.append(name)
    return value


def fail(**_: Any) -> Any:
    raise ValueError("it broke")


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


ERRORS: list[Any] = []


def raise_it(**_: Any) -> Any:
    error = ERRORS.pop()
    if isinstance(error, signal.Signals):
        os.kill(os.getpid(), error)
        raise AssertionError("it was not heard")
    raise error


async def raise_later(**_: Any) -> Any:
    await asyncio.sleep(0)
    raise_it()


class Panic(BaseException):
    """What extensions written in Rust raise is no Exception."""


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Odd:
    """An object as libraries of shapes have them."""

    def shape(self) -> int:
        return 3

    @property
    def dtype(self) -> Any:
        raise RuntimeError("none")


class Torn:
    """An object that cannot be looked at."""

    @property
    def shape(self) -> Any:
        raise RuntimeError("closed")


async def slowly(value: str) -> tuple[str]:
    RUNS.append(f"begin {value}")
    await asyncio.sleep(0.01)
    RUNS.append(f"end {value}")
    return (value,)


def grow(text: str) -> dict[str, Any]:
    inner = {
        "x.1": {"class_type": "Text", "inputs": {"value": text + "!"}},
        "x.2": {"class_type": "Upper", "inputs": {"text": ["x.1", 0]}},
        "x.3": {"class_type": "Show", "inputs": {"text": ["x.1", 0]}},
    }
    return {"expand": inner, "result": (["x.2", 0], "plain")}


async def digest_later() -> str:
    await asyncio.sleep(0)
    return FILE["digest"]


async def want_later(self: Any, yes: Any, no: Any) -> list[str]:
    await asyncio.sleep(0)
    return [] if yes else ["yes"]


def bare() -> dict[str, Any]:
    return {"expand": {"z.1": {"class_type": "Echo", "inputs": {"value": [1, 2, 3]}}}, "result": (["z.1", 0],)}


def coil(to: str) -> dict[str, Any]:
    inner = {
        "y.1": {"class_type": "Upper", "inputs": {"text": ["y.2", 0]}},
        "y.2": {"class_type": "Upper", "inputs": {"text": [to, 0]}},
    }
    return {"expand": inner, "result": (["y.1", 0],)}


def work(steps: int) -> tuple[int]:
    for i in range(steps):
        current().progress(i + 1, steps)
    current().say(f"did {steps}")
    return (steps,)


async def work_later(steps: int) -> tuple[int]:
    for i in range(steps):
        await asyncio.sleep(0)
        current().progress(i + 1, steps)
    return (steps,)


STRING, INT = ("STRING", {}), ("INT", {})
KINDS: dict[str, type] = {
    "Text": classic({"value": STRING}, ("STRING",), lambda value: logged(f"Text {value}", (value,))),
    "Upper": classic({"text": STRING}, ("STRING",), lambda text: logged("Upper", (text.upper(),))),
    "Show": classic(
        {"text": ("*", {})}, (), lambda text: logged(f"Show {text}", {"ui": {"text": [text]}}), OUTPUT_NODE=True
    ),
    "Fail": classic({"text": STRING}, ("STRING",), fail),
    "Raise": classic({"text": STRING}, ("STRING",), raise_it),
    "RaiseLater": classic({"text": STRING}, ("STRING",), raise_later),
    "Odd": classic({"value": STRING}, ("STRING",), lambda value: (ODD[value],)),
    "Work": classic({"steps": INT}, ("INT",), work),
    "Slow": classic({"value": STRING}, ("STRING",), slowly),
    "Pair": classic({"a": STRING, "b": STRING}, ("STRING",), lambda a, b: logged("Pair", (f"{a}{b}",))),
    "Many": classic({"count": INT}, ("INT",), lambda count: (list(range(count)),), OUTPUT_IS_LIST=[True]),
    "Double": classic({"number": INT}, ("INT",), lambda number: (number * 2,)),
    "Sum": classic({"numbers": INT}, ("INT",), lambda numbers: (sum(numbers),), INPUT_IS_LIST=True),
    "Switch": classic(
        {"on": ("BOOLEAN", {}), "yes": ("*", {"lazy": True}), "no": ("*", {"lazy": True})},
        ("*",),
        lambda on, yes=None, no=None: (yes if on else no,),
        check_lazy_status=lambda self, on, yes, no: [] if (yes if on else no) is not None else ["yes" if on else "no"],
    ),
    "Block": classic({"message": STRING}, ("STRING",), lambda message: (ExecutionBlocker(message or None),)),
    "Grow": classic({"text": STRING}, ("STRING", "STRING"), grow),
    "Clock": classic(
        {}, ("STRING",), lambda: logged("Clock", ("now",)), IS_CHANGED=classmethod(lambda cls: float("nan"))
    ),
    "File": classic(
        {}, ("STRING",), lambda: logged("File", ("f",)), IS_CHANGED=classmethod(lambda cls: FILE["digest"])
    ),
    "Who": classic(
        {},
        ("STRING",),
        lambda me, everything, page: logged("Who", (f"{me} {len(everything)} {page}",)),
        hidden={"me": "UNIQUE_ID", "everything": "PROMPT", "page": "EXTRA_PNGINFO"},
    ),
    "Marked": classic(
        {"text": STRING},
        ("STRING",),
        lambda text, me, all: logged("Marked", (text,)),
        hidden={"me": "UNIQUE_ID", "all": "PROMPT"},
        IS_CHANGED=classmethod(lambda cls, text, me, all: FINGERPRINTED.append((text, me, all))),
    ),
    "Method": classic({}, ("STRING",), lambda: (current().preview_method,)),
    "Echo": classic({"value": ("*", {})}, ("*",), lambda value: (value,)),
    "Coil": classic({"to": STRING}, ("STRING",), coil),
    "Linked": classic(
        {"text": STRING, "mode": STRING},
        ("STRING",),
        lambda text, mode: logged("Linked", (text + mode,)),
        IS_CHANGED=classmethod(lambda cls, text, mode: FINGERPRINTED.append((text, mode))),
    ),
    "Later": classic({}, ("STRING",), lambda: logged("Later", ("f",)), IS_CHANGED=staticmethod(digest_later)),
    "LateSwitch": classic(
        {"yes": ("*", {"lazy": True}), "no": ("*", {"lazy": True})},
        ("*",),
        lambda yes=None, no=None: (yes or no,),
        check_lazy_status=want_later,
    ),
    "LateWork": classic({"steps": INT}, ("INT",), work_later),
    "Nameless": classic(
        {}, ("STRING",), lambda me: ("well",), INPUT_TYPES=classmethod(lambda cls: {"hidden": {"me": ()}})
    ),
    "Bare": classic({}, ("*",), bare),
    "Mute": classic({}, (), lambda: {"ui": {"text": [{1, 2}]}}, OUTPUT_NODE=True),
    "Moody": classic({}, ("STRING",), lambda: ("well",), INPUT_TYPES=classmethod(lambda cls: MOOD.pop())),
    "Further": classic({}, ("STRING",), lambda: {"result": ("well",), "ui": {"text": ["u"]}, "outputs": {1, 2}, 3: 4}),
    "Astray": classic({}, ("STRING",), lambda: {"images": []}),
    "Silent": classic({}, (), lambda: logged("Silent", {"images": []}), OUTPUT_NODE=True),
    "Wrong": classic({}, ("STRING", "STRING"), lambda: ("one",)),
    "Grown": classic(
        {
            "values": ("COMFY_AUTOGROW_V3", {"template": {"input": {"required": {"v": STRING}}, "names": ["a", "b"]}}),
            "mode": ("COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "k", "inputs": {"required": {"w": INT}}}]}),
        },
        ("STRING",),
        lambda values, mode: (f"{values} {mode}",),
    ),
}
FILE = {"digest": "one"}
ODD: dict[str, Any] = {"method": Odd(), "raises": Torn(), "digits": 10**5000}
FINGERPRINTED: list[Any] = []
MOOD: list[dict[str, Any]] = []
CLASSES: dict[str, NodeClass] = {name: Classic(name, it) for name, it in KINDS.items()}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def run(
    prompt: dict[str, Any], *outputs: str, executor: Executor | None = None, **extra: Any
) -> tuple[list[Event], JobEnded]:
    events: list[Event] = []
    asked = outputs or tuple(key for key, it in prompt.items() if it["class_type"] == "Show")
    ended = (executor or Executor(CLASSES)).run(Job(prompt=prompt, outputs=asked, extra=extra), events.append)
    return events, ended


def shown(events: Sequence[Event]) -> list[Any]:
    return [text for it in events if isinstance(it, NodeFinished) and it.ui for text in it.ui["text"]]


def test_nodes_run_in_order_and_only_those_that_are_needed() -> None:
    events, ended = run(
        {
            "1": node("Show", text=["2", 0]),
            "2": node("Upper", text=["3", 0]),
            "3": node("Text", value="a"),
            "4": node("Text"),
        }
    )
    assert RUNS == ["Text a", "Upper", "Show A"]
    assert ended == JobEnded("success")
    assert events[1] == NodesCached(())
    started = [it.place.node for it in events if isinstance(it, NodeStarted)]
    assert started == ["3", "2", "1"]
    assert shown(events) == ["A"]
    assert events[-1] == ended


def test_random_graphs_run_every_node_once_after_its_sources() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        prompt = {"0": node("Text", value="0")}
        for i in range(1, 25):
            a, b = (str(rng.randrange(i)) for _ in range(2))
            prompt[str(i)] = node("Pair", a=[a, 0], b=[b, 0])
        prompt["show"] = node("Show", text=["24", 0])
        events, ended = run(prompt)
        assert ended.state == "success"
        order = [it.place.node for it in events if isinstance(it, NodeStarted)]
        assert len(order) == len(set(order))
        for key in order:
            for value in prompt[key]["inputs"].values():
                assert not isinstance(value, list) or order.index(value[0]) < order.index(key)


def test_an_unchanged_job_runs_nothing_and_shows_its_results_again() -> None:
    executor = Executor(CLASSES)
    prompt = {"1": node("Text", value="a"), "2": node("Upper", text=["1", 0]), "3": node("Show", text=["2", 0])}
    run(prompt, executor=executor)
    RUNS.clear()
    events, ended = run(prompt, executor=executor)
    assert RUNS == []
    assert ended.state == "success"
    assert NodesCached(("3", "2", "1")) in events
    assert [it.cached for it in events if isinstance(it, NodeFinished)] == [True]
    assert shown(events) == ["A"]


def test_a_change_runs_the_node_and_what_follows_it_whatever_the_ids_are() -> None:
    executor = Executor(CLASSES)
    run(
        {"1": node("Text", value="a"), "2": node("Upper", text=["1", 0]), "3": node("Show", text=["2", 0])},
        executor=executor,
    )
    RUNS.clear()
    run(
        {
            "7": node("Text", value="a"),
            "8": node("Upper", text=["7", 0]),
            "9": node("Pair", a=["8", 0], b="c"),
            "10": node("Show", text=["9", 0]),
        },
        executor=executor,
    )
    assert RUNS == ["Pair", "Show Ac"]


def test_only_the_last_graph_is_kept() -> None:
    for extra, again in ((0, ["Text a", "Show a"]), (5, [])):
        executor = Executor(CLASSES, Cache(extra))
        one = {"1": node("Text", value="a"), "2": node("Show", text=["1", 0])}
        run(one, executor=executor)
        run({"1": node("Text", value="b"), "2": node("Show", text=["1", 0])}, executor=executor)
        RUNS.clear()
        run(one, executor=executor)
        assert again == RUNS


def test_a_fingerprint_decides_whether_a_node_runs_again() -> None:
    executor = Executor(CLASSES)
    prompt = {
        "1": node("File"),
        "2": node("Clock"),
        "3": node("Pair", a=["1", 0], b=["2", 0]),
        "4": node("Show", text=["3", 0]),
    }
    run(prompt, executor=executor)
    RUNS.clear()
    run(prompt, executor=executor)
    assert RUNS == ["Clock", "Pair", "Show fnow"]
    FILE["digest"] = "two"
    RUNS.clear()
    run(prompt, executor=executor)
    assert sorted(RUNS) == ["Clock", "File", "Pair", "Show fnow"]


@pytest.mark.parametrize("on", [True, False])
def test_a_switch_evaluates_one_branch(on: bool) -> None:
    events, _ = run(
        {
            "1": node("Text", value="yes"),
            "2": node("Text", value="no"),
            "3": node("Switch", on=on, yes=["1", 0], no=["2", 0]),
            "4": node("Show", text=["3", 0]),
        }
    )
    want = "yes" if on else "no"
    assert [f"Text {want}", f"Show {want}"] == RUNS
    assert shown(events) == [want]


def test_lists_are_spread_and_gathered() -> None:
    events, _ = run(
        {
            "1": node("Many", count=4),
            "2": node("Double", number=["1", 0]),
            "3": node("Sum", numbers=["2", 0]),
            "4": node("Show", text=["3", 0]),
            "5": node("Show", text=["2", 0]),
        }
    )
    assert sorted(map(str, shown(events))) == ["0", "12", "2", "4", "6"]


def test_an_expanded_node_is_replaced_by_what_it_returns() -> None:
    executor = Executor(CLASSES)
    prompt = {
        "1": node("Grow", text="a"),
        "2": node("Pair", a=["1", 0], b=["1", 1]),
        "3": node("Show", text=["2", 0]),
    }
    events, ended = run(prompt, executor=executor)
    assert ended.state == "success"
    assert shown(events) == ["a!", "A!plain"]
    inner = next(it.place for it in events if isinstance(it, NodeStarted) and it.place.node == "x.2")
    assert (inner.display, inner.real, inner.parent) == ("1", "1", "1")
    RUNS.clear()
    events, _ = run(prompt, executor=executor)
    assert RUNS == []


def test_a_blocked_value_skips_what_needs_it_and_a_message_is_reported() -> None:
    prompt = {
        "1": node("Block", message=""),
        "2": node("Upper", text=["1", 0]),
        "3": node("Show", text=["2", 0]),
        "4": node("Block", message="no video"),
        "5": node("Show", text=["4", 0]),
        "6": node("Text", value="fine"),
        "7": node("Show", text=["6", 0]),
    }
    events, ended = run(prompt)
    assert ended.state == "success"
    assert RUNS == ["Text fine", "Show fine"]
    (failed,) = [it for it in events if isinstance(it, NodeFailed)]
    assert (failed.place.node, failed.message, failed.blocked) == ("5", "no video", True)


def test_async_nodes_overlap() -> None:
    prompt = {
        "1": node("Slow", value="a"),
        "2": node("Slow", value="b"),
        "3": node("Pair", a=["1", 0], b=["2", 0]),
        "4": node("Show", text=["3", 0]),
    }
    events, _ = run(prompt)
    assert sorted(RUNS[:2]) == ["begin a", "begin b"]
    assert shown(events) == ["ab"]


def test_a_failure_ends_the_job_and_says_where() -> None:
    executor = Executor(CLASSES)
    prompt = {"1": node("Text", value="a" * 300), "2": node("Fail", text=["1", 0]), "3": node("Show", text=["2", 0])}
    events, ended = run(prompt, executor=executor)
    failed = next(it for it in events if isinstance(it, NodeFailed))
    assert (failed.place.node, failed.place.class_type, failed.message) == ("2", "Fail", "it broke")
    assert failed.exception_type == "ValueError"
    assert failed.executed == ("1",)
    assert "it broke" in "".join(failed.traceback)
    assert any(f'File "{Path("cygnet/graph/execute.py")}", line' in line for line in failed.traceback)
    assert str(Path(__file__).parents[2]) not in "".join(failed.traceback), (
        "folders of this machine are nobody's business"
    )
    assert len(failed.inputs["text"][0]) < 210
    assert (ended.state, ended.at, events[-1]) == ("error", failed.place, ended)
    assert run({"1": node("Show", text="next")}, executor=executor)[1].state == "success"


@pytest.mark.parametrize("kind", ["Raise", "RaiseLater"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (asyncio.CancelledError(), "CancelledError"),
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit(), "whole program"),
        (SpeechlessError(), "SpeechlessError"),
        (RecursionError("deep"), "deep"),
        (Panic("index out of bounds"), "index out of bounds"),
        (GeneratorExit(), "GeneratorExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (BaseExceptionGroup("several", [Panic("one")]), "several"),
    ],
)
def test_whatever_a_node_raises_is_its_failure(kind: str, error: BaseException, said: str) -> None:
    executor = Executor(CLASSES)
    ERRORS[:] = [error]
    events, ended = run({"1": node(kind, text="a"), "2": node("Show", text=["1", 0])}, executor=executor)
    (failed,) = [it for it in events if isinstance(it, NodeFailed)]
    assert (failed.place.node, ended.state) == ("1", "error")
    assert said in failed.message
    assert type(error).__name__ in failed.exception_type
    assert "Traceback" in failed.traceback[0]
    assert run({"1": node("Show", text="next")}, executor=executor)[1].state == "success"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["Raise", "RaiseLater"])
def test_what_signals_raise_is_no_failure_of_a_node(kind: str, number: signal.Signals) -> None:
    """As the second Ctrl-C in ``cygnet run``, and what service managers send."""
    with cancelled_by_interrupt(lambda _: None) as cancel, terminated_by_signal():
        if number == signal.SIGINT:
            os.kill(os.getpid(), number)
            assert cancel.cancelled
        ERRORS[:] = [number]
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
            run({"1": node(kind, text="a"), "2": node("Show", text=["1", 0])})


def test_a_hook_that_interrupts_is_its_nodes_own() -> None:
    """In the studio's processes, which leave Ctrl-C to the server."""

    def interrupt(cls: type, **_: object) -> None:
        raise KeyboardInterrupt

    odd = classic({"text": STRING}, ("STRING",), lambda text: (text,), VALIDATE_INPUTS=classmethod(interrupt))
    sly = classic({"text": STRING}, ("STRING",), lambda text: (text,), IS_CHANGED=classmethod(interrupt))
    torn = classic({}, (), lambda: (), INPUT_TYPES=classmethod(interrupt))
    classes = CLASSES | {name: Classic(name, it) for name, it in (("Odd", odd), ("Sly", sly), ("Torn", torn))}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        verdict = validate({"1": node("Odd", text="a"), "2": node("Show", text=["1", 0])}, classes)
        assert verdict.nodes["1"].errors[0].details == "KeyboardInterrupt"
        assert validate({"1": node("Torn")}, classes).error is not None
        failed: list[str] = []
        assert describe_all({"Torn": classes["Torn"]}, lambda name, _: failed.append(name)) == {}
        assert failed == ["Torn"]
        events: list[Event] = []
        prompt = {"1": node("Sly", text="a"), "2": node("Show", text=["1", 0])}
        assert Executor(classes).run(Job(prompt=prompt, outputs=("2",)), events.append).state == "success"
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("value", "type_name"), [("method", "Odd"), ("raises", "Torn"), ("digits", "int")])
def test_a_failure_is_told_whatever_the_node_was_given(value: str, type_name: str) -> None:
    events, ended = run(
        {"1": node("Odd", value=value), "2": node("Fail", text=["1", 0]), "3": node("Show", text=["2", 0])}
    )
    failed = next(it for it in events if isinstance(it, NodeFailed))
    assert (failed.place.node, failed.message, ended.state) == ("2", "it broke", "error")
    assert failed.inputs["text"] == [type_name]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory"), OutOfMemoryError("2 GiB")])
def test_when_memory_runs_out_everything_is_let_go_and_the_next_job_runs(error: Exception) -> None:
    relieved: list[int] = []
    executor = Executor(CLASSES, relieve=lambda: relieved.append(len(executor.cache)))
    ERRORS[:] = [error]
    prompt = {
        "1": node("Text", value="a"),
        "2": node("Show", text=["1", 0]),
        "3": node("Raise", text=["1", 0]),
        "4": node("Show", text=["3", 0]),
    }
    events, ended = run(prompt, executor=executor)
    failed = next(it for it in events if isinstance(it, NodeFailed))
    assert (failed.place.node, ended.state) == ("3", "error")
    assert "ask for a smaller size" in failed.message
    assert relieved == [0]
    RUNS.clear()
    _, ended = run({key: prompt[key] for key in "12"}, executor=executor)
    assert (ended.state, RUNS) == ("success", ["Text a", "Show a"])
    assert relieved == [0]


def test_a_wrong_number_of_results_is_a_failure_in_words() -> None:
    events, ended = run({"1": node("Wrong"), "2": node("Show", text=["1", 1])})
    assert ended.state == "error"
    failed = next(it for it in events if isinstance(it, NodeFailed))
    assert "1 values; it declares 2 outputs" in failed.message


def test_further_keys_of_what_a_node_returns_are_not_looked_at() -> None:
    events, ended = run({"1": node("Further"), "2": node("Show", text=["1", 0])})
    assert (ended.state, shown(events)) == ("success", ["u", "well"])
    assert run({"1": node("Silent")}, "1")[1].state == "success"
    events, _ = run({"1": node("Astray"), "2": node("Show", text=["1", 0])})
    assert (
        "['images']; its 1 outputs must be in result" in next(it for it in events if isinstance(it, NodeFailed)).message
    )


def test_a_stop_is_honoured_inside_a_node() -> None:
    token = CancelToken()
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, NodeProgressed) and event.value == 3:
            token.cancel()

    prompt = {"1": node("Work", steps=100), "2": node("Show", text=["1", 0])}
    ended = Executor(CLASSES).run(Job(prompt=prompt, outputs=("2",)), watch, token)
    assert ended.state == "interrupted"
    assert ended.at is not None
    assert ended.at.node == "1"
    assert [it.value for it in events if isinstance(it, NodeProgressed)] == [1, 2, 3]


def test_progress_and_text_carry_the_node() -> None:
    events, _ = run({"5": node("Work", steps=2), "6": node("Show", text=["5", 0])})
    assert [(it.place.node, it.value, it.total) for it in events if isinstance(it, NodeProgressed)] == [
        ("5", 1, 2),
        ("5", 2, 2),
    ]
    assert [(it.place.node, it.text) for it in events if isinstance(it, NodeSpoke)] == [("5", "did 2")]


@pytest.mark.parametrize(("asked", "used"), [(None, "none"), ("default", "none"), ("latent2rgb", "latent2rgb")])
def test_previews_are_made_as_the_submission_says_else_as_the_server_does(asked: str | None, used: str) -> None:
    executor = Executor(CLASSES, preview_method="none")
    prompt = {"1": node("Method"), "2": node("Show", text=["1", 0])}
    events, _ = run(prompt, executor=executor, **({} if asked is None else {"preview_method": asked}))
    assert shown(events) == [used]


def test_hidden_inputs_are_filled_in_and_make_equal_nodes_differ() -> None:
    prompt = {
        "1": node("Who"),
        "2": node("Who"),
        "3": node("Pair", a=["1", 0], b=["2", 0]),
        "4": node("Show", text=["3", 0]),
    }
    events, _ = run(prompt, extra_pnginfo={"workflow": 1})
    assert shown(events) == ["1 4 {'workflow': 1}2 4 {'workflow': 1}"]


def test_dynamic_inputs_arrive_as_mappings() -> None:
    prompt = {
        "1": node("Text", value="v"),
        "2": node("Grown", **{"values.a": ["1", 0], "values.b": "c", "mode": "k", "mode.w": 3}),
        "3": node("Show", text=["2", 0]),
    }
    events, _ = run(prompt)
    assert shown(events) == ["{'b': 'c', 'a': 'v'} {'mode': 'k', 'w': 3}"]


def test_a_list_constant_is_no_link() -> None:
    events, _ = run({"1": node("Show", text={"__value__": ["9", 0]})})
    assert shown(events) == [["9", 0]]


@pytest.mark.parametrize("value", [[[1], [2]], [{"a": 1}, {"b": 2}], [None, 0], ["1", 0]])
def test_a_list_of_two_things_is_a_value_like_any_other(value: list[Any]) -> None:
    events, ended = run({"1": node("Echo", value={"__value__": value}), "2": node("Show", text=["1", 0])})
    assert ended.state == "success"
    assert shown(events) == [value]


@pytest.mark.parametrize("kind", ["Moody", "Nameless"])
def test_a_type_that_cannot_be_described_at_run_time_fails_its_job_and_not_the_executor(kind: str) -> None:
    MOOD.clear()
    events, ended = run({"1": node(kind), "2": node("Show", text=["1", 0])})
    failed = next(it for it in events if isinstance(it, NodeFailed))
    assert (failed.place.node, failed.exception_type) == ("1", "IndexError")
    assert (ended.state, ended.at, events[-1]) == ("error", failed.place, ended)


def test_what_cannot_be_told_fails_its_node_each_time() -> None:
    executor = Executor(CLASSES)

    def told(event: Event) -> None:
        json.dumps(to_json(event))
        events.append(event)

    for _ in range(2):
        events: list[Event] = []
        job = Job(prompt={"1": node("Mute")}, outputs=("1",))
        assert executor.run(job, told).state == "error"
        failed = next(it for it in events if isinstance(it, NodeFailed))
        assert (failed.place.node, failed.executed) == ("1", ())


def test_a_kept_result_that_cannot_be_told_fails_its_node() -> None:
    executor = Executor(CLASSES)
    prompt = {"1": node("Show", text="a")}
    run(prompt, executor=executor)

    def refuse(event: Event) -> None:
        if isinstance(event, NodeFinished):
            raise TypeError("it is no JSON")
        events.append(event)

    events: list[Event] = []
    assert executor.run(Job(prompt=prompt, outputs=("1",)), refuse).state == "error"
    assert [it.place.node for it in events if isinstance(it, NodeFailed)] == ["1"]


@pytest.mark.parametrize("to", ["y.1", "y.2", "1", "2"])
def test_an_expansion_that_needs_itself_fails_in_words(to: str) -> None:
    prompt = {"1": node("Coil", to=to), "2": node("Upper", text=["1", 0]), "3": node("Show", text=["2", 0])}
    events, ended = run(prompt)
    (failed,) = [it for it in events if isinstance(it, NodeFailed)]
    assert failed.place.real == "1"
    assert "need one another's results" in failed.message
    assert ended.state == "error"
    assert RUNS == []


def test_a_fingerprint_is_given_none_for_a_link() -> None:
    FINGERPRINTED.clear()
    executor = Executor(CLASSES)
    prompt = {
        "1": node("Text", value="a"),
        "2": node("Linked", text=["1", 0], mode="m"),
        "3": node("Show", text=["2", 0]),
    }
    for _ in range(2):
        events, _ = run(prompt, executor=executor)
        assert shown(events) == ["am"]
    assert FINGERPRINTED == [(None, "m")] * 2
    assert RUNS.count("Linked") == 1


def test_a_fingerprint_is_given_the_nodes_own_id_and_nothing_that_changes_with_each_job() -> None:
    FINGERPRINTED.clear()
    executor = Executor(CLASSES)
    prompt = {"1": node("Marked", text="a"), "2": node("Show", text=["1", 0])}
    run(prompt, executor=executor)
    run({**prompt, "3": node("Show", text="b")}, executor=executor)
    assert FINGERPRINTED == [("a", "1", None)] * 2
    assert RUNS.count("Marked") == 1


def test_a_fingerprint_may_be_async() -> None:
    executor = Executor(CLASSES)
    prompt = {"1": node("Later"), "2": node("Show", text=["1", 0])}
    for digest, runs in (("one", 1), ("one", 1), ("two", 2)):
        FILE["digest"] = digest
        run(prompt, executor=executor)
        assert RUNS.count("Later") == runs


def test_which_lazy_inputs_are_wanted_may_be_told_async() -> None:
    prompt = {
        "1": node("Text", value="a"),
        "2": node("Text", value="b"),
        "3": node("LateSwitch", yes=["1", 0], no=["2", 0]),
        "4": node("Show", text=["3", 0]),
    }
    events, _ = run(prompt)
    assert shown(events) == ["a"]
    assert "Text b" not in RUNS


def test_async_nodes_keep_their_own_context() -> None:
    prompt = {
        "1": node("LateWork", steps=2),
        "2": node("LateWork", steps=3),
        "3": node("Pair", a=["1", 0], b=["2", 0]),
        "4": node("Show", text=["3", 0]),
    }
    events, ended = run(prompt)
    assert ended.state == "success"
    for key, steps in (("1", 2), ("2", 3)):
        told = [(it.value, it.total) for it in events if isinstance(it, NodeProgressed) and it.place.node == key]
        assert told == [(i + 1, steps) for i in range(steps)]


def test_a_stop_is_honoured_inside_an_async_node() -> None:
    token = CancelToken()
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, NodeProgressed) and event.value == 3:
            token.cancel()

    prompt = {"1": node("LateWork", steps=100), "2": node("Slow", value="a"), "3": node("Pair", a=["1", 0], b=["2", 0])}
    ended = Executor(CLASSES).run(Job(prompt=prompt, outputs=("3",)), watch, token)
    assert ended.state == "interrupted"
    assert ended.at is not None
    assert ended.at.node == "1"
    assert [it.value for it in events if isinstance(it, NodeProgressed)] == [1, 2, 3]


def test_an_expansion_may_give_its_nodes_lists() -> None:
    events, _ = run({"1": node("Bare"), "2": node("Show", text=["1", 0])})
    assert shown(events) == [[1, 2, 3]]


def test_a_job_whose_pack_was_removed_meanwhile_says_so() -> None:
    events, ended = run({"1": node("Show", text=["2", 0]), "2": node("Gone")}, "1")
    assert ended.state == "error"
    (failed,) = [it for it in events if isinstance(it, NodeFailed)]
    assert (failed.place.node, failed.exception_type) == ("2", "ValueError")
    assert failed.message.startswith("Node 2 is of a type that is not installed: Gone; install the pack")
