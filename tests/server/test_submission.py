"""What a client may submit, what it is answered, and that every route answers under both of its names."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
        ({"prompt": PROMPT, "number": "5"}, "invalid_prompt"),
        ({"prompt": PROMPT, "number": 10**400}, "invalid_prompt"),
        ({"prompt": PROMPT, "front": "no"}, "invalid_prompt"),
        ({"prompt": PROMPT, "client_id": {}}, "invalid_prompt"),
        ({"prompt": PROMPT, "partial_execution_targets": "2"}, "invalid_prompt"),
        ({"prompt": PROMPT, "extra_data": []}, "invalid_prompt"),
        ({"prompt": PROMPT, "extra_data": {"extra_pnginfo": "text"}}, "invalid_prompt"),
    ],
)
def test_each_refusal_has_its_type_and_the_server_lives(client: TestClient, body: dict[str, Any], kind: str) -> None:
    assert refused(client, **body)["error"]["type"] == kind
    assert client.get("/prompt").status_code == 200


def test_what_cannot_be_sent_again_is_never_kept(client: TestClient) -> None:
    """One such job would make the queue and the history unreadable for ever."""
    start = b'{"prompt": {"1": {"class_type": "Text", "inputs": {"text": '
    end = b'}}, "2": {"class_type": "Show", "inputs": {"text": ["1", 0]}}}, "extra_data": {"x": %s}, "number": %s}'
    for text, extra, number in ((b'"\\ud800"', b"1", b"1"), (b'"a"', b"1e999", b"1"), (b'"a"', b"1", b"1e999")):
        answer = client.post("/prompt", content=start + text + end % (extra, number))
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_prompt")
    for value in (b"1e999", b'"\\ud800"'):
        assert client.post("/settings/broken", content=value).status_code == 400
    for route in ("queue", "history", "jobs", "settings"):
        assert client.get(f"/api/{route}").status_code == 200


@pytest.mark.parametrize(
    ("route", "order"),
    [
        ("queue", {"clear": "false"}),
        ("queue", {"delete": "all"}),
        ("queue", {"delete": [5]}),
        ("history", {"clear": 1}),
        ("history", {"delete": {}}),
        ("interrupt", {"prompt_id": 5}),
        ("free", {"unload_models": "no"}),
        ("jobs/cancel", {"job_ids": "all"}),
    ],
)
def test_an_order_of_the_wrong_type_does_nothing(client: TestClient, route: str, order: dict[str, Any]) -> None:
    kept = submit(client)
    wait(client, kept)
    answer = client.post(f"/api/{route}", json=order)
    assert answer.status_code == 400
    assert next(iter(order)) in answer.json()["detail"]
    assert client.get(f"/history/{kept}").json()


@pytest.mark.parametrize("query", ["max_items=9" + "9" * 20, "offset=9" + "9" * 20, "max_items=x", "offset=1.5"])
def test_a_bad_question_about_the_history_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/history?{query}").status_code == 422


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


def test_a_prompt_of_too_many_nodes_is_refused(client: TestClient) -> None:
    prompt = {str(i): {"class_type": "Show", "inputs": {}} for i in range(100_000)}
    told = refused(client, prompt=prompt)
    assert (told["error"]["type"], "at most 20000" in told["error"]["message"]) == ("invalid_prompt", True)


def test_a_full_queue_says_when_to_come_back(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cygnet.server.engine.MOST_PENDING", 0)
    answer = client.post("/prompt", json={"prompt": PROMPT})
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0


def test_one_prompt_id_sent_many_times_at_once_is_one_job(client: TestClient) -> None:
    name = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: submit(client, prompt_id=name), range(16)))
    wait(client, name)
    ids.add(submit(client, prompt_id=name))
    assert ids == {name}
    assert [it["id"] for it in client.get("/jobs?limit=1000").json()["jobs"]].count(name) == 1
    changed = {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": "other"}}}
    assert client.post("/prompt", json={"prompt": changed, "prompt_id": name}).status_code == 409


def test_secrets_come_back_nowhere(client: TestClient, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in what a client reads, nor in a log line, nor in a file; also when the node fails that had them near."""
    caplog.set_level("DEBUG")
    secret = "s3cret-of-the-vendor"
    extra = {"auth_token_comfy_org": secret, "api_key_comfy_org": secret, "extra_pnginfo": {"hf_token": secret}}
    failing = {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": "fail"}}}
    slow = {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": "wait"}}}
    with client.websocket_connect("ws://127.0.0.1:8188/ws?clientId=secrets") as socket:
        socket.receive_json()
        more = {"extra_data": extra, "client_id": "secrets"}
        running = submit(client, prompt=slow, **more)
        jobs = [running, submit(client, prompt=failing, **more), submit(client, **more)]
        read = [client.get(route).text for route in ("/queue", "/jobs", f"/jobs/{jobs[0]}")]
        client.post("/interrupt")
        for job in jobs:
            wait(client, job)
        heard = [socket.receive_text()]
        while f'"node":null,"prompt_id":"{jobs[-1]}"' not in heard[-1]:
            message = socket.receive()
            heard.append(message.get("text") or "")
    read += [client.get(route).text for route in ("/history", "/jobs", "/internal/logs", f"/jobs/{jobs[1]}")]
    read.append(client.post("/prompt", json={"prompt": {"1": {"class_type": "No"}}, "extra_data": extra}).text)
    assert "it broke" in "".join(read)
    assert secret not in "".join([*read, *heard, caplog.text])
    assert not [it for it in base.rglob("*") if it.is_file() and secret.encode() in it.read_bytes()]


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
    wait(client, submit(client, prompt=kept))
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
