"""Whatever happens to the processes, an acknowledged job reaches one end, and clients hear of it in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cygnet.errors import OutputError
from cygnet.server import engine as module
from cygnet.server.child import ChildFailed
from cygnet.server.engine import Engine, Refused
from cygnet.server.sockets import Sockets
from cygnet.server.store import MOST_ATTEMPTS, JobStore


class Wire:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.frames: list[bytes] = []

    def on_status(self) -> None:
        """Called with each ``status``."""

    async def send_text(self, text: str) -> None:
        self.got.append(json.loads(text))
        if self.got[-1]["type"] == "status":
            self.on_status()

    def types(self) -> list[str]:
        return [it["type"] for it in self.got]

    async def send_bytes(self, data: bytes) -> None:
        self.frames.append(data)

    async def close(self, code: int, reason: str) -> None:
        return None

    def over(self) -> list[str]:
        """The jobs that were said to be over."""
        return [it["data"]["prompt_id"] for it in self.got if it["type"] == "executing" and it["data"]["node"] is None]

    def of_job(self) -> list[str]:
        return [it["type"] for it in self.got if "prompt_id" in it["data"]]


class Studio:
    """An engine with a client."""

    def __init__(self, path: Path, catalogue: str = "catalogue") -> None:
        self.store = JobStore(path)
        self.wire = Wire()
        self.sockets = Sockets({})
        here = "tests.server.children"
        self.engine = Engine(self.store, self.sockets, f"{here}:worker", f"{here}:{catalogue}")

    async def submit(self, text: str, **more: Any) -> str:
        prompt = {
            "1": {"class_type": "Text", "inputs": {"text": text}},
            "2": {"class_type": "Show", "inputs": {"text": ["1", 0]}},
        }
        answer = await self.engine.submit({"prompt": prompt, "client_id": "me", **more})
        return str(answer["prompt_id"])

    async def begun(self) -> None:
        while "progress" not in self.wire.of_job():
            await asyncio.sleep(0.01)

    async def ended(self, job_id: str) -> str:
        while (state := self.store.require(job_id).state) in ("pending", "running"):
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0)
        return state


def studio(path: Path, story: Callable[[Studio], Awaitable[None]], catalogue: str = "catalogue") -> None:
    async def whole() -> None:
        it = Studio(path, catalogue)
        await it.engine.start()
        pump = asyncio.create_task(it.sockets.join("me", it.wire, 0).pump())
        try:
            await asyncio.wait_for(story(it), 100)
        finally:
            await it.engine.stop(0.1)
            pump.cancel()
            it.store.close()

    asyncio.run(whole())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@dataclass(frozen=True)
class Recorded:
    """What one run says, from its first message on: its own messages, and ``status`` where the queue moved on."""

    text: str
    expected: tuple[str, ...]
    state: str


BEGUN = ("execution_start", "execution_cached")
NODE = ("progress_state", "executing")
OVER = ("status", "executing")
RUNS = {
    "success": Recorded(
        "hello",
        (*BEGUN, *NODE, "progress_state", *NODE, "executed", "progress_state", "execution_success", *OVER),
        "completed",
    ),
    "cached": Recorded("hello", (*BEGUN, "executed", "execution_success", *OVER), "completed"),
    "error": Recorded("fail", (*BEGUN, *NODE, "progress_state", "execution_error", *OVER), "failed"),
    "interruption": Recorded("wait", (*BEGUN, *NODE, "execution_interrupted", *OVER), "cancelled"),
}


def without_steps(kinds: list[str]) -> tuple[str, ...]:
    """The kinds of messages but for the pairs that tell of steps inside a node."""
    kept: list[str] = []
    for kind in kinds:
        if kind == "progress":
            assert kept.pop() == "progress_state"
        else:
            kept.append(kind)
    return tuple(kept)


def test_every_ending_has_the_recorded_order_and_its_history_before_the_queue_moves_on(path: Path) -> None:
    async def story(it: Studio) -> None:
        states: list[str] = []
        it.wire.on_status = lambda: states.append(it.store.require(job).state)
        for name, run in RUNS.items():
            it.wire.got.clear()
            states.clear()
            job = str(uuid.uuid4())
            await it.submit(run.text, prompt_id=job)
            if name == "interruption":
                await it.begun()
                it.engine.interrupt(job)
            assert await it.ended(job) == run.state
            begun = it.wire.types().index("execution_start")
            assert without_steps(it.wire.types()[begun:]) == run.expected, name
            assert it.wire.got[-1]["data"] == {"node": None, "prompt_id": job}
            assert it.wire.got[-2]["data"]["status"]["exec_info"]["queue_remaining"] == 0
            assert states[-1] == run.state
            assert {message["data"].get("prompt_id", job) for message in it.wire.got} == {job}

    studio(path, story)


def test_previews_reach_the_client_of_the_job(path: Path) -> None:
    async def story(it: Studio) -> None:
        await it.ended(await it.submit("preview"))
        assert [it[8:] for it in it.wire.frames] == [b"picture"]

    studio(path, story)


def test_a_client_that_comes_back_is_told_which_node_of_its_job_runs(path: Path) -> None:
    async def story(it: Studio) -> None:
        job = await it.submit("wait")
        await it.begun()
        told = {}
        for name in ("me", "other"):
            again = Wire()
            socket = it.sockets.join(name, again, 1)
            it.engine.catch_up(socket)
            pump = asyncio.create_task(socket.pump())
            await asyncio.sleep(0)
            told[name] = again.got
            pump.cancel()
        assert [message["type"] for message in told["me"][:3]] == ["status", "progress_state", "executing"]
        assert told["me"][1]["data"]["nodes"]["1"]["state"] == "running"
        assert told["me"][2]["data"] == {"node": "1", "display_node": "1", "prompt_id": job}
        assert [message["type"] for message in told["other"]] == ["status"]
        it.engine.interrupt()
        await it.ended(job)

    studio(path, story)


def test_a_failing_node_fails_its_job_alone(path: Path) -> None:
    async def story(it: Studio) -> None:
        bad, good = await it.submit("fail"), await it.submit("fine")
        assert await it.ended(bad) == "failed"
        assert await it.ended(good) == "completed"
        ending = it.store.require(bad).ending
        assert ending is not None
        assert ending.error is not None
        assert (ending.error["exception_message"], ending.error["node_type"]) == ("it broke", "Text")

    studio(path, story)


def test_when_memory_runs_out_the_models_are_unloaded_and_the_next_job_runs(path: Path) -> None:
    async def story(it: Studio) -> None:
        bad, good = await it.submit("memory"), await it.submit("freed")
        assert await it.ended(bad) == "failed"
        assert await it.ended(good) == "completed"
        ending = it.store.require(good).ending
        assert ending is not None
        assert ending.outputs == {"2": {"text": ["1"]}}

    studio(path, story)


def test_a_node_that_raises_keyboard_interrupt_fails_alone(path: Path) -> None:
    async def story(it: Studio) -> None:
        bad, good = await it.submit("interrupt"), await it.submit("fine")
        assert await it.ended(bad) == "failed"
        assert await it.ended(good) == "completed"
        assert it.engine.lost_workers == 0

    studio(path, story)


def test_the_worker_knows_how_many_jobs_there_are(path: Path) -> None:
    """Packs ask their prompt_queue."""

    async def story(it: Studio) -> None:
        jobs = [await it.submit(text) for text in ("short", "remaining 1", "remaining 2")]
        for job in jobs:
            assert await it.ended(job) == "completed"
        told = [it.store.require(job).ending for job in jobs[1:]]
        assert [ending.outputs for ending in told if ending is not None] == [
            {"2": {"text": ["2"]}},
            {"2": {"text": ["1"]}},
        ]

    studio(path, story)


def test_a_crash_costs_an_attempt_then_the_job_is_set_aside_and_the_queue_moves_on(path: Path) -> None:
    async def story(it: Studio) -> None:
        poison, good = await it.submit("crash"), await it.submit("fine")
        assert await it.ended(poison) == "quarantined"
        record = it.store.require(poison)
        assert record.attempts == MOST_ATTEMPTS
        assert record.ending is not None
        assert record.ending.error is not None
        assert "SIGSEGV" in record.ending.error["exception_message"]
        assert (record.ending.error["node_id"], record.ending.error["node_type"]) == ("1", "Text")
        ((kind, told),) = record.ending.messages
        (sent,) = [message["data"] for message in it.wire.got if message["type"] == "execution_error"]
        assert kind == "execution_error"
        assert (
            set(told) == set(sent) >= {"prompt_id", "node_id", "executed", "traceback", "timestamp", "current_inputs"}
        )
        assert await it.ended(good) == "completed"

    studio(path, story)


def test_a_killed_worker_is_replaced_and_its_job_starts_again(path: Path) -> None:
    async def story(it: Studio) -> None:
        job = await it.submit("wait")
        await it.begun()
        assert it.engine._worker is not None
        assert it.engine._worker.pid is not None
        os.kill(it.engine._worker.pid, signal.SIGKILL)
        while it.store.require(job).attempts < 2:
            await asyncio.sleep(0.01)
        assert it.wire.over() == [], "a client would take it for the end"
        assert it.engine.interrupt(job)
        assert await it.ended(job) == "cancelled"
        assert it.wire.over() == [job]

    studio(path, story)


def test_the_job_of_a_worker_that_gives_no_sign_of_life_starts_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cygnet.server.child.BEAT", 0.2)

    async def story(it: Studio) -> None:
        job = await it.submit("wait")
        await it.begun()
        worker = it.engine._worker
        assert worker is not None
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)  # it is there, and does nothing
        while it.store.require(job).attempts < 2:
            await asyncio.sleep(0.01)
        assert it.engine.interrupt(job)
        assert await it.ended(job) == "cancelled"

    studio(path, story)


def test_a_stop_is_heard_inside_a_node_and_only_by_the_named_job(path: Path) -> None:
    async def story(it: Studio) -> None:
        first, second = await it.submit("wait"), await it.submit("fine")
        await it.begun()
        assert not it.engine.interrupt(second)
        assert not it.engine.interrupt("nobody")
        assert it.engine.cancel([first])
        assert await it.ended(first) == "cancelled"
        assert "execution_interrupted" in it.wire.of_job()
        assert await it.ended(second) == "completed"
        assert not it.engine.interrupt()

    studio(path, story)


def test_a_job_that_does_not_stop_is_ended_with_its_worker(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOPS_WITHIN", 0.2)

    async def story(it: Studio) -> None:
        hung, good = await it.submit("hang"), await it.submit("fine")
        while "executing" not in it.wire.of_job():
            await asyncio.sleep(0.01)
        assert it.engine.interrupt(hung)
        assert await it.ended(hung) == "cancelled"
        assert it.wire.of_job().count("execution_interrupted") == 1
        assert await it.ended(good) == "completed"
        assert it.store.require(hung).attempts == 1

    studio(path, story)


def test_a_job_that_says_nothing_is_said_to(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "QUIET", 0.1)
    monkeypatch.setattr(module, "STOPS_WITHIN", 0.2)

    async def story(it: Studio) -> None:
        hung = await it.submit("hang")
        while "has said nothing" not in caplog.text:
            await asyncio.sleep(0.01)
        assert f"job {hung}" in caplog.text
        assert "at node 1" in caplog.text
        assert "at node 1" in it.engine.problems()[0]
        it.engine.interrupt()
        await it.ended(hung)

    studio(path, story)


def test_a_second_signal_is_not_kept_waiting_and_costs_no_attempt(path: Path) -> None:
    async def story(it: Studio) -> None:
        job = await it.submit("wait")
        await it.begun()
        begun = time.monotonic()
        stopping = asyncio.create_task(it.engine.stop(60))
        await asyncio.sleep(0.05)
        assert it.store.require(job).state == "running", "the first one waits for the job"
        it.engine.hurry()
        await stopping
        assert time.monotonic() - begun < 10
        assert (it.store.require(job).state, it.store.require(job).attempts) == ("pending", 0)

    studio(path, story)


def test_a_job_that_ends_while_the_server_stops_is_kept(path: Path) -> None:
    async def story(it: Studio) -> None:
        job = await it.submit("wait")
        await it.begun()
        stopping = asyncio.create_task(it.engine.stop(60))
        await asyncio.sleep(0.05)
        it.engine.interrupt()
        await stopping
        assert it.store.require(job).state == "cancelled"

    studio(path, story)


def test_pending_jobs_can_be_cancelled(path: Path) -> None:
    async def story(it: Studio) -> None:
        running, waiting, other = [await it.submit(text) for text in ("wait", "a", "b")]
        await it.begun()
        assert it.engine.cancel([waiting])
        assert it.engine.cancel()
        assert not it.engine.cancel()
        assert it.store.require(waiting).state == it.store.require(other).state == "cancelled"
        it.engine.interrupt()
        assert await it.ended(running) == "cancelled"

    studio(path, story)


def test_another_server_goes_on_where_one_stopped(path: Path) -> None:
    jobs: list[str] = []

    async def first(it: Studio) -> None:
        jobs.extend([await it.submit("fine"), await it.submit("wait"), await it.submit("late")])
        await it.ended(jobs[0])
        await it.begun()

    async def second(it: Studio) -> None:
        while it.store.require(jobs[1]).state != "running":
            await asyncio.sleep(0.01)
        assert it.store.require(jobs[1]).attempts == 1, "a clean stop is no attempt"
        await asyncio.sleep(0.2)
        it.engine.interrupt()
        assert await it.ended(jobs[1]) == "cancelled"
        assert await it.ended(jobs[2]) == "completed"

    studio(path, first)
    store = JobStore(path)
    assert [store.require(job).state for job in jobs] == ["completed", "pending", "pending"]
    store.close()
    studio(path, second)


def test_a_stop_lets_the_running_job_end_and_begins_no_other(path: Path) -> None:
    async def story(it: Studio) -> None:
        running, waiting = await it.submit("short"), await it.submit("fine")
        await it.begun()
        await it.engine.stop(30)
        assert [it.store.require(job).state for job in (running, waiting)] == ["completed", "pending"]
        with pytest.raises(Refused) as refused:
            await it.submit("late")
        assert refused.value.http_status == 503

    studio(path, story)


def test_an_end_that_cannot_be_stored_is_stored_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cygnet.server.engine._STORE_AGAIN_AFTER", 0.05)

    async def story(it: Studio) -> None:
        whole, failures = it.store.finish, []

        def full(*arguments: Any) -> bool:
            if len(failures) < 3:
                failures.append(arguments)
                raise OutputError("the job file could not be written: the disk is full")
            return whole(*arguments)

        monkeypatch.setattr(it.store, "finish", full)
        first, second = await it.submit("one"), await it.submit("two")
        assert await it.ended(first) == "completed"
        assert await it.ended(second) == "completed"
        assert len(failures) == 3

    studio(path, story)


def test_a_number_that_is_none_reaches_clients_as_nothing(path: Path) -> None:
    async def story(it: Studio) -> None:
        job = await it.submit("nan")
        assert await it.ended(job) == "completed"
        ending = it.store.require(job).ending
        assert ending is not None
        json.dumps(ending.outputs, allow_nan=False)
        shown = next(message for message in it.wire.got if message["type"] == "executed")
        assert shown["data"]["output"] == {"text": ["nan"], "number": [None]}

    studio(path, story)


@pytest.mark.parametrize(
    ("body", "kind", "http_status"),
    [
        (None, "invalid_prompt", 400),
        ({}, "no_prompt", 400),
        ({"prompt": {}}, "no_prompt", 400),
        ({"prompt": {"1": {"class_type": "Nope", "inputs": {}}}}, "missing_node_type", 400),
        ({"prompt": {"1": {"class_type": "Text", "inputs": {"text": "a"}}}}, "prompt_no_outputs", 400),
        ({"prompt": {"1": {"class_type": "Show", "inputs": {}}}}, "prompt_outputs_failed_validation", 400),
        ({"prompt": {"1": {"class_type": "Show", "inputs": {}}}, "prompt_id": "x"}, "invalid_prompt_id", 400),
    ],
)
def test_bad_submissions_are_refused_in_the_protocols_shape(path: Path, body: Any, kind: str, http_status: int) -> None:
    async def story(it: Studio) -> None:
        with pytest.raises(Refused) as refused:
            await it.engine.submit(body)
        assert refused.value.http_status == http_status
        assert refused.value.body["error"]["type"] == kind
        assert set(refused.value.body["error"]) == {"type", "message", "details", "extra_info"}
        assert it.store.remaining() == 0

    studio(path, story)


def test_ids_numbers_fronts_and_secrets(path: Path) -> None:
    async def story(it: Studio) -> None:
        running = await it.submit("wait")
        await it.begun()
        name = str(uuid.uuid4())
        extra = {"api_key_comfy_org": "s3cret", "auth_token_comfy_org": "s3cret", "hf_token": "s3cret", "author": "me"}
        extra["extra_pnginfo"] = {"workflow": {"id": "w"}, "api_key": "s3cret"}  # type: ignore[assignment]
        assert await it.submit("a", prompt_id=name, extra_data=extra) == name
        assert await it.submit("a", prompt_id=name) == name
        with pytest.raises(Refused) as refused:
            await it.submit("b", prompt_id=name)
        assert (refused.value.http_status, refused.value.body["error"]["type"]) == (409, "job_conflict")
        front = await it.submit("front", front=True)
        assert [record.id for record in it.store.queue("pending")] == [front, name]
        stored = it.store.require(name).submission
        assert "s3cret" not in json.dumps(dict(stored.extra))
        assert stored.extra["author"] == "me"
        assert stored.workflow_id == "w"
        assert isinstance(stored.extra["create_time"], int)
        it.engine.draining = True
        with pytest.raises(Refused) as refused:
            await it.submit("late")
        assert refused.value.http_status == 503
        it.engine.draining = False
        it.engine.free(results=True)
        it.engine.interrupt(running)
        await it.ended(running)

    studio(path, story)


def test_the_catalogue_describes_and_survives_its_own_death(path: Path) -> None:
    async def story(it: Studio) -> None:
        described = await it.engine.know("describe")
        assert set(described) == {"Text", "Show"}
        assert set(await it.engine.know("describe", name="Show")) == {"Show"}
        assert await it.engine.know("describe", name="Nope") == {}
        workflow = {"nodes": [{"id": 1, "type": "Text", "widgets_values": ["x"]}], "links": []}
        assert (await it.engine.know("convert", workflow=workflow))["1"]["inputs"] == {"text": "x"}
        assert it.engine._catalogue is not None
        it.engine._catalogue.kill()
        assert set(await it.engine.know("describe", name="Show")) == {"Show"}

    studio(path, story)


def test_a_type_that_cannot_be_told_is_left_out_and_hides_no_other(path: Path) -> None:
    async def story(it: Studio) -> None:
        described = await it.engine.know("describe")
        assert set(described) == {"Single", "Text", "Show"}
        assert described["Single"]["input"]["required"] == {"value": ["FLOAT", {"default": 1.5, "max": 2}]}
        assert await it.engine.know("describe", name="Odd") == {}
        prompt = {"1": {"class_type": "Odd", "inputs": {"value": "b"}}}
        verdict = await it.engine.know("validate", prompt=prompt, targets=None)
        (problem,) = verdict["node_errors"]["1"]["errors"]
        assert problem["type"] == "value_not_in_list"
        assert "object object" in str(problem["extra_info"]["input_config"])
        assert it.engine.problems() == []
        assert it.engine.left_out == {"packs": 1, "node_types": 2}

    studio(path, story, "odd_catalogue")


def test_a_lost_catalogue_is_told(path: Path) -> None:
    async def story(it: Studio) -> None:
        with pytest.raises(Refused, match="knows the nodes died"):
            await it.engine.know("describe")
        assert it.engine.problems() == ["the process that knows the nodes died and is being started again"]
        while it.engine._catalogue_gone:
            await asyncio.sleep(0.01)
        assert it.engine.problems() == ["the process that knows the nodes died when it was asked last (describe)"]
        assert set(await it.engine.know("describe", name="Show")) == {"Show"}
        assert it.engine.problems() == []

    studio(path, story, "dying_catalogue")


def test_numbers_of_numpy_reach_clients_as_numbers(path: Path) -> None:
    async def story(it: Studio) -> None:
        job = await it.submit("numpy")
        assert await it.ended(job) == "completed"
        steps = [message["data"] for message in it.wire.got if message["type"] == "progress"]
        assert [(step["value"], step["max"]) for step in steps] == [(1, 2)]
        (shown,) = [message["data"] for message in it.wire.got if message["type"] == "executed"]
        assert shown["output"] == {"text": ["numpy"], "number": [0.5, 3]}

    studio(path, story)


def test_a_node_that_cannot_be_judged_is_refused_in_words(path: Path) -> None:
    async def story(it: Studio) -> None:
        prompt = {
            "1": {"class_type": "Leaving", "inputs": {"text": "a"}},
            "2": {"class_type": "Show", "inputs": {"text": ["1", 0]}},
        }
        with pytest.raises(Refused, match=r"Node 1 \(Leaving\) cannot be described") as caught:
            await it.engine.submit({"prompt": prompt})
        assert caught.value.http_status == 400
        assert await it.engine.know("describe", name="Show")

        async def fail(what: str, **_: Any) -> Any:
            raise ChildFailed("RuntimeError: of any kind")

        it.engine.know = fail  # type: ignore[method-assign]
        with pytest.raises(Refused, match="cannot be judged") as caught:
            await it.engine.submit({"prompt": prompt})
        assert caught.value.http_status == 400

    studio(path, story, "odd_catalogue")
