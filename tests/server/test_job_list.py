"""The queue, the history and the job list: what the page demands of them, and that they agree whatever is done."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.server.conftest import HERE, PROMPT, submit, until_running, wait

from cygnet.graph.folders import Folders
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore


@contextmanager
def studio(base: Path) -> Iterator[TestClient]:
    """A server on a data directory of its own; another can follow on the same."""
    settings = Settings(folders=Folders.below(base), user=base / "user")
    store = JobStore(base / "jobs.sqlite")
    engine = Engine(store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue")
    try:
        with TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188") as client:
            yield client
    finally:
        store.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with studio(tmp_path) as it:
        yield it


def text(value: str) -> dict[str, Any]:
    return {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": value}}}


def listed(client: TestClient, query: str = "") -> dict[str, Any]:
    answer = client.get(f"/api/jobs?{query}")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def states(client: TestClient) -> dict[str, str]:
    return {job["id"]: job["status"] for job in listed(client)["jobs"]}


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_page(told: dict[str, Any]) -> None:
    """The page throws the whole list away when one row fails this."""
    pagination = told["pagination"]
    assert set(pagination) == {"offset", "limit", "total", "has_more"}
    assert all(is_whole(pagination[name]) for name in ("offset", "limit", "total"))
    assert isinstance(pagination["has_more"], bool)
    for job in told["jobs"]:
        assert isinstance(job["id"], str)
        assert job["status"] in ("pending", "in_progress", "completed", "failed", "cancelled")
        assert isinstance(job["priority"], (int, float))
        assert is_whole(job["create_time"])
        for name in ("execution_start_time", "execution_end_time", "outputs_count", "previewable_outputs_count"):
            assert job[name] is None or is_whole(job[name]), name
        if (error := job["execution_error"]) is not None:
            texts = ("node_id", "node_type", "exception_message", "exception_type")
            assert all(isinstance(error[name], str) for name in texts)
            assert all(isinstance(line, str) for line in error["traceback"])
        if (shown := job["preview_output"]) is not None:
            assert isinstance(shown["nodeId"], str)
            assert isinstance(shown["mediaType"], str)
            assert shown["type"] in ("input", "output", "temp")
        assert job["workflow_id"] is None or isinstance(job["workflow_id"], str)


def test_jobs_of_every_state_pass_the_pages_schema_before_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cygnet.server.engine._RESTART_AFTER", (0.0,))
    monkeypatch.setattr(Engine, "stop", functools.partialmethod(Engine.stop, 0.1))
    with studio(tmp_path) as client:
        ended = {
            submit(client): "completed",
            submit(client, prompt=text("fail")): "failed",
            submit(client, prompt=text("crash")): "failed",  # set aside after three attempts
        }
        for job in ended:
            wait(client, job)
        running = submit(client, prompt=text("wait"), extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}})
        until_running(client, running)
        waiting, cancelled = submit(client, front=True), submit(client, number=0.5)
        client.post(f"/api/jobs/{cancelled}/cancel")
        expected = {**ended, running: "in_progress", waiting: "pending", cancelled: "cancelled"}
        assert states(client) == expected
        check_page(listed(client))
        for job, state in expected.items():
            detail = client.get(f"/api/jobs/{job}").json()
            assert detail["status"] == state
            assert {"outputs", "execution_status", "workflow", "update_time"} <= set(detail)
    with studio(tmp_path) as client:
        until_running(client, running)  # the front one is first, and done at once
        check_page(listed(client))
        assert states(client) == {**expected, waiting: "completed"}
        client.post("/interrupt")
        wait(client, running)


def test_a_page_of_the_list_is_cut_and_sorted_as_asked(client: TestClient) -> None:
    jobs = [submit(client, extra_data={"extra_pnginfo": {"workflow": {"id": f"w{i % 2}"}}}) for i in range(5)]
    for job in jobs:
        wait(client, job)

    def ids(query: str) -> list[str]:
        return [job["id"] for job in listed(client, query)["jobs"]]

    assert ids("") == jobs[::-1]
    assert ids("sort_order=asc") == jobs
    assert ids("sort_order=asc&limit=2&offset=1") == jobs[1:3]
    assert ids("workflow_id=w1&sort_order=asc") == [jobs[1], jobs[3]]
    assert ids("status=failed,cancelled") == []
    assert sorted(ids("sort_by=execution_duration")) == sorted(jobs)
    pages = [listed(client, f"limit=2&offset={offset}")["pagination"] for offset in (0, 2, 4, 6)]
    assert [page["has_more"] for page in pages] == [True, True, False, False]
    assert {page["total"] for page in pages} == {5}


def agree(client: TestClient, running: set[str], pending: list[str], ended: set[str]) -> None:
    """Whatever route is read, old or new, it tells the same."""
    queue = client.get("/queue").json()
    assert {item[1] for item in queue["queue_running"]} == running
    assert [item[1] for item in queue["queue_pending"]] == pending
    assert set(client.get("/history").json()) == ended
    found = states(client)
    assert {job for job, state in found.items() if state == "in_progress"} == running
    assert {job for job, state in found.items() if state == "pending"} == set(pending)
    assert {job for job, state in found.items() if state in ("completed", "failed", "cancelled")} == ended
    assert client.get("/prompt").json()["exec_info"]["queue_remaining"] == len(running) + len(pending)


def test_queue_history_and_list_agree_after_every_button(client: TestClient) -> None:
    done = submit(client)
    wait(client, done)
    first = submit(client, prompt=text("wait"))
    until_running(client, first)
    waiting = [submit(client) for _ in range(4)]
    agree(client, {first}, waiting, {done})
    client.post(f"/api/jobs/{waiting[0]}/cancel")
    agree(client, {first}, waiting[1:], {done, waiting[0]})
    client.post("/queue", json={"delete": [waiting[1], "nobody", first]})
    agree(client, {first}, waiting[2:], {done, *waiting[:2]})
    for _ in range(2):  # the page sends it twice in a row
        client.post("/queue", json={"clear": True})
        agree(client, {first}, [], {done, *waiting})
    client.post("/history", json={"delete": [done, first]})
    agree(client, {first}, [], set(waiting))
    client.post("/interrupt", json={"prompt_id": first})
    wait(client, first)
    second = submit(client, prompt=text("wait"))
    until_running(client, second)
    agree(client, {second}, [], {first, *waiting})
    assert client.post("/jobs/cancel", json={"job_ids": [second]}).json() == {"cancelled": True}
    wait(client, second)
    agree(client, set(), [], {first, second, *waiting})
    client.post("/history", json={"clear": True})
    agree(client, set(), [], set())


def test_the_order_is_by_front_then_number_then_submission(client: TestClient) -> None:
    running = submit(client, prompt=text("wait"))
    until_running(client, running)
    plain = [submit(client) for _ in range(2)]
    equal = [submit(client, number=1.5) for _ in range(2)]
    front = [submit(client, front=True) for _ in range(2)]
    queue = client.get("/queue").json()["queue_pending"]
    assert [item[1] for item in queue] == [*front[::-1], *equal, *plain]
    assert [item[0] for item in queue] == sorted(item[0] for item in queue)
    client.post("/queue", json={"clear": True})
    client.post("/interrupt")
    wait(client, running)


def test_history_and_settings_are_there_after_a_restart(tmp_path: Path) -> None:
    values = {"a": True, "b": [1, {"c": None}], "d": "héllo", "e": 1.5}
    with studio(tmp_path) as client:
        job = submit(client, extra_data={"extra_pnginfo": {"workflow": {"id": "w", "nodes": []}}})
        before = wait(client, job)
        for name, value in values.items():
            client.post(f"/api/settings/{name}", json=value)
    with studio(tmp_path) as client:
        assert client.get("/history").json() == {job: before}
        assert before["outputs"] == {"2": {"text": ["hello"]}}
        opened = client.get(f"/api/jobs/{job}").json()["workflow"]["extra_data"]["extra_pnginfo"]["workflow"]
        assert opened == {"id": "w", "nodes": []}
        assert client.get("/api/settings").json() == values


def test_a_prompt_of_5000_nodes_is_answered_in_time(client: TestClient) -> None:
    prompt = {str(i): {"class_type": "Text", "inputs": {"text": str(i)}} for i in range(2500)}
    prompt |= {f"s{i}": {"class_type": "Show", "inputs": {"text": [str(i), 0]}} for i in range(2500)}
    running = submit(client, prompt=text("wait"))
    until_running(client, running)
    answer = client.post("/prompt", json={"prompt": prompt})
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() < 5
    assert client.get("/queue").json()["queue_pending"][0][1] == answer.json()["prompt_id"]
    client.post("/queue", json={"clear": True})
    client.post("/interrupt")
    wait(client, running)
