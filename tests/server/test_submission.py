"""What a client may submit, what it is answered, and that every route answers under both of its names."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.server.conftest import PROMPT, submit, until_running, wait

TWO_OUTPUTS = {**PROMPT, "3": {"class_type": "Show", "inputs": {"text": ["1", 0]}}}


def refused(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/prompt", json=body)
    assert answer.status_code == 400, answer.text
    told: dict[str, Any] = answer.json()
    assert set(told) == {"error", "node_errors"}
    assert set(told["error"]) == {"type", "message", "details", "extra_info"}
    return told


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "no_prompt"),
        ({"prompt": {}}, "no_prompt"),
        ({"prompt": {"1": {"inputs": {}}}}, "missing_node_type"),
        ({"prompt": {"1": {"class_type": "Nope", "inputs": {}}}}, "missing_node_type"),
        ({"prompt": {"1": PROMPT["1"]}}, "prompt_no_outputs"),
        ({"prompt": {"2": {"class_type": "Show", "inputs": {}}}}, "prompt_outputs_failed_validation"),
        ({"prompt": PROMPT, "prompt_id": "Not-A-UUID"}, "invalid_prompt_id"),
    ],
)
def test_each_refusal_has_its_type_and_the_server_lives(client: TestClient, body: dict[str, Any], kind: str) -> None:
    assert refused(client, **body)["error"]["type"] == kind
    assert client.get("/prompt").status_code == 200


def test_an_unknown_type_is_named(client: TestClient) -> None:
    node = {"class_type": "Nope", "inputs": {}, "_meta": {"title": "My node"}}
    extra = refused(client, prompt={"7": node})["error"]["extra_info"]
    assert extra == {"node_id": "7", "class_type": "Nope", "node_title": "My node"}


def test_a_good_output_runs_beside_a_bad_one(client: TestClient) -> None:
    prompt = {**PROMPT, "3": {"class_type": "Show", "inputs": {}}}
    answer = client.post("/prompt", json={"prompt": prompt})
    assert answer.status_code == 200
    (problem,) = answer.json()["node_errors"]["3"]["errors"]
    assert (problem["type"], problem["extra_info"]["input_name"]) == ("required_input_missing", "text")
    assert set(wait(client, answer.json()["prompt_id"])["outputs"]) == {"2"}


def test_only_the_outputs_that_are_asked_for_run(client: TestClient) -> None:
    assert set(wait(client, submit(client, prompt=TWO_OUTPUTS))["outputs"]) == {"2", "3"}
    asked = submit(client, prompt=TWO_OUTPUTS, partial_execution_targets=["3"])
    assert set(wait(client, asked)["outputs"]) == {"3"}


@pytest.mark.parametrize("label", ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", None])
def test_the_label_of_a_body_does_not_matter_but_who_sends_it_does(client: TestClient, label: str | None) -> None:
    body = b'{"prompt": {"1": {"class_type": "Text", "inputs": {"text": "a"}}, "2": {"class_type": "Show", "inputs": '
    body += b'{"text": ["1", 0]}}}}'
    headers = {} if label is None else {"content-type": label}
    assert client.post("/prompt", content=body, headers=headers).status_code == 200
    for origin in ("null", "http://evil.test"):
        assert client.post("/prompt", content=body, headers={**headers, "origin": origin}).status_code == 403


def cached(client: TestClient, prompt: dict[str, Any]) -> set[str]:
    """The nodes of a prompt that need not run."""
    messages = wait(client, submit(client, prompt=prompt))["status"]["messages"]
    return set(next(data for name, data in messages if name == "execution_cached")["nodes"])


def text(value: str) -> dict[str, Any]:
    return {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": value}}}


@pytest.mark.parametrize(
    ("body", "unloaded", "forgotten"),
    [
        ({}, 0, False),
        ({"unload_models": True}, 1, False),
        ({"unload_models": True, "free_memory": True}, 1, True),
        ({"free_memory": True}, 1, True),
    ],
)
def test_freeing_answers_at_once_and_takes_effect_after_the_running_job(
    client: TestClient, body: dict[str, bool], unloaded: int, forgotten: bool
) -> None:
    def times_unloaded() -> int:
        shown = wait(client, submit(client, prompt=text(f"freed {uuid.uuid4()}")))["outputs"]
        return int(shown["2"]["text"][0])

    before = times_unloaded()
    kept = text(f"kept {uuid.uuid4()}")
    waiting = {"3": {"class_type": "Text", "inputs": {"text": "wait"}}}
    waiting |= {"4": {"class_type": "Show", "inputs": {"text": ["3", 0]}}}
    job = submit(client, prompt={**kept, **waiting})
    until_running(client, job)
    assert client.post("/free", json=body).status_code == 200
    assert client.get("/queue").json()["queue_running"][0][1] == job
    client.post("/interrupt")
    wait(client, job)
    assert cached(client, kept) == (set() if forgotten else {"1", "2"})
    assert times_unloaded() - before == unloaded


def test_settings_that_are_posted_at_once_are_all_kept(client: TestClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: client.post(f"/api/settings/at.once.{i}", json={"n": i}), range(50)))
    found = client.get("/api/settings").json()
    assert [found[f"at.once.{i}"] for i in range(50)] == [{"n": i} for i in range(50)]


def test_every_route_answers_with_and_without_its_prefix(client: TestClient) -> None:
    """What a route answers is the same; those that change something are asked with what they refuse."""
    paths = client.get("/api/openapi.json").json()["paths"]
    asked = 0
    for path, methods in paths.items():
        if not path.startswith("/api/") or path == "/api/openapi.json":
            continue
        for method in methods:
            filled = re.sub(r"{\w+}", f"no-{method}", path)
            # a body that is no JSON object is refused by every route that writes
            options = {} if method == "get" else {"content": b"["}
            with_prefix = client.request(method, filled, **options)
            without = client.request(method, filled.removeprefix("/api"), **options)
            assert with_prefix.status_code == without.status_code, (method, path)
            assert with_prefix.headers.get("content-type") == without.headers.get("content-type"), (method, path)
            asked += 1
    assert asked >= 40
