"""Events become the messages that the page reads, in its order."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from cygnet.graph.contract import Classic
from cygnet.graph.events import (
    JobEnded,
    NodeFailed,
    NodeFinished,
    NodeProgressed,
    NodesCached,
    NodeStarted,
    Place,
    from_json,
    to_json,
)
from cygnet.graph.execute import Executor, Job
from cygnet.server.wire import JobMessages, Line, Message, Preview, over, status

OTHER = Place(node="2", display="2", real="2")
PLACE = Place(node="1:2", display="1", real="1", parent="1")


class Show:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {})}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    def run(self, text: str) -> dict[str, Any]:
        if text == "fail":
            raise ValueError("no")
        return {"ui": {"text": [text]}}


def kinds(messages: JobMessages, text: str, executor: Executor) -> list[str]:
    sent: list[Any] = []
    job = Job(prompt={"9": {"class_type": "Show", "inputs": {"text": text}}}, outputs=("9",))
    executor.run(job, lambda event: sent.extend(messages.of(event)))
    assert all(json.loads(it.text())["data"]["prompt_id"] == "j" for it in sent)
    return [it.type for it in sent]


def test_a_run_has_the_recorded_order() -> None:
    executor = Executor({"Show": Classic("Show", Show)})
    messages = JobMessages("j")
    first = kinds(messages, "a", executor)
    assert first == [
        *("execution_start", "execution_cached", "progress_state", "executing"),
        *("executed", "progress_state", "execution_success"),
    ]
    ending = messages.ending()
    assert (ending.state, ending.outputs) == ("completed", {"9": {"text": ["a"]}})
    assert [it[0] for it in ending.messages] == ["execution_start", "execution_cached", "execution_success"]
    cached = kinds(JobMessages("j"), "a", executor)
    assert cached == ["execution_start", "execution_cached", "executed", "execution_success"]


def test_a_failure_is_told_once_with_everything_the_page_needs() -> None:
    messages = JobMessages("j")
    sent = kinds(messages, "fail", Executor({"Show": Classic("Show", Show)}))
    assert sent[-2:] == ["progress_state", "execution_error"]
    ending = messages.ending()
    assert ending.state == "failed"
    assert ending.error is not None
    wanted = {"node_id", "node_type", "executed", "exception_message", "exception_type", "traceback"}
    assert wanted | {"current_inputs", "current_outputs"} <= set(ending.error)
    assert ending.error["exception_type"] == "ValueError"
    assert all(isinstance(line, str) for line in ending.error["traceback"])


class Grow:
    """An expansion within an expansion, whose inmost node fails."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"deep": ("INT", {})}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    def run(self, deep: int) -> dict[str, Any]:
        inner = ("Grow", {"deep": deep - 1}) if deep else ("Show", {"text": "fail"})
        return {"expand": {f"9.0.{deep}": {"class_type": inner[0], "inputs": inner[1]}}, "result": ()}


@pytest.mark.parametrize("deep", [0, 1, 2])
def test_a_failure_inside_an_expansion_is_told_of_the_node_that_the_page_has(deep: int) -> None:
    sent: list[Any] = []
    messages = JobMessages("j")
    executor = Executor({"Show": Classic("Show", Show), "Grow": Classic("Grow", Grow)})
    job = Job(prompt={"9": {"class_type": "Grow", "inputs": {"deep": deep}}}, outputs=("9",))
    executor.run(job, lambda event: sent.extend(messages.of(from_json(json.loads(json.dumps(to_json(event)))))))
    assert (sent[-1].type, sent[-1].data["node_id"], sent[-1].data["node_type"]) == ("execution_error", "9", "Grow")
    failed = sent[-2].data["nodes"]["9.0.0"]
    assert (failed["state"], failed["real_node_id"]) == ("error", "9")


def test_a_blocked_output_does_not_fail_the_job() -> None:
    messages = JobMessages("j")
    messages.of(NodeFailed(PLACE, "nothing came", "ExecutionBlocked", blocked=True))
    messages.of(JobEnded("success"))
    assert (messages.ending().state, messages.ending().error) == ("completed", None)


def test_an_interruption_is_told_to_all() -> None:
    messages = JobMessages("j")
    (message,) = messages.of(JobEnded("interrupted", PLACE, ("3",)))
    assert isinstance(message, Message)
    assert (message.type, message.to_all, message.data["node_id"]) == ("execution_interrupted", True, "1")
    assert messages.ending().state == "cancelled"


def test_progress_lists_every_node_that_was_begun() -> None:
    messages = JobMessages("j")
    messages.of(NodesCached(("5",)))
    messages.of(NodeStarted(PLACE))
    state, progress = messages.of(NodeProgressed(PLACE, 3, 20))
    assert isinstance(state, Message)
    assert isinstance(progress, Message)
    assert state.data["nodes"] == {
        "1:2": {
            "value": 3,
            "max": 20,
            "state": "running",
            "node_id": "1:2",
            "prompt_id": "j",
            "display_node_id": "1",
            "parent_node_id": "1",
            "real_node_id": "1",
        }
    }
    assert progress.data == {"value": 3, "max": 20, "prompt_id": "j", "node": "1:2"}
    (done,) = messages.of(NodeFinished(PLACE, None))
    assert isinstance(done, Message)
    assert done.data["nodes"]["1:2"]["state"] == "finished"


def test_a_node_tells_now_and_then_how_long_it_will_take() -> None:
    seconds = iter(range(0, 1000, 3))
    messages = JobMessages("j", clock=lambda: float(next(seconds)))
    messages.of(NodeStarted(PLACE))
    said = [
        [it.text for it in messages.of(NodeProgressed(PLACE, step, 40)) if isinstance(it, Line)]
        for step in (1, 2, 3, 40)
    ]
    assert said == [[], [], ["3 of 40, about 1:51 left"], []]
    messages.of(NodeStarted(OTHER))
    assert [it for it in messages.of(NodeProgressed(OTHER, 1, 40)) if isinstance(it, Line)] == []


def test_what_is_told_on_a_node_is_put_right_when_the_node_is_done() -> None:
    seconds = iter(range(0, 1000, 3))
    messages = JobMessages("j", clock=lambda: float(next(seconds)))
    for place in (PLACE, OTHER):
        messages.of(NodeStarted(place))
    for step in range(1, 20):
        messages.of(NodeProgressed(PLACE, step, 20))
    assert [it.text for it in messages.of(NodeFinished(PLACE, None)) if isinstance(it, Line)] == ["20 of 20"]
    assert [it for it in messages.of(NodeFinished(OTHER, None)) if isinstance(it, Line)] == [], "nothing stood there"


def test_the_time_left_is_not_told_with_every_step() -> None:
    seconds = iter(i / 10 for i in range(1000))
    messages = JobMessages("j", clock=lambda: next(seconds))
    told = [it for step in range(30) for it in messages.of(NodeProgressed(PLACE, step, 40)) if isinstance(it, Line)]
    assert len(told) == 3


def test_previews_for_new_and_old_clients() -> None:
    preview = Preview("j", PLACE, b"JPEG", "image/jpeg")
    frame = preview.frame(metadata=True)
    kind, length = struct.unpack(">II", frame[:8])
    assert kind == 4
    assert json.loads(frame[8 : 8 + length])["image_type"] == "image/jpeg"
    assert json.loads(frame[8 : 8 + length])["display_node_id"] == "1"
    assert frame[8 + length :] == b"JPEG"
    assert preview.frame(metadata=False) == struct.pack(">II", 1, 1) + b"JPEG"
    assert Preview("j", PLACE, b"PNG", "image/png").frame(metadata=False) == struct.pack(">II", 1, 2) + b"PNG"


def test_text_frames_name_the_job_where_both_sides_know_it() -> None:
    line = Line("job", PLACE, "héllo")
    word = struct.Struct(">I").pack
    assert line.frame(metadata=True) == word(3) + word(3) + b"job" + word(3) + b"1:2" + "héllo".encode()
    assert line.frame(metadata=False) == word(3) + word(3) + b"1:2" + "héllo".encode()


def test_status_and_the_last_message() -> None:
    assert json.loads(status(3).text()) == {
        "type": "status",
        "data": {"status": {"exec_info": {"queue_remaining": 3}}},
    }
    assert status(0, "abc").data["sid"] == "abc"
    assert over("j").data == {"node": None, "prompt_id": "j"}
