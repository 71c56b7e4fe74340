"""A server with toy nodes, over HTTP and the socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from cygnet.graph.folders import Folders
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore

HERE = "tests.server.children"
PROMPT = {
    "1": {"class_type": "Text", "inputs": {"text": "hello"}},
    "2": {"class_type": "Show", "inputs": {"text": ["1", 0]}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studio")
    page = root / "page"
    for name, text in (("index.html", "<html>"), ("assets/a.js", "1"), ("extensions/core/x.js", "2")):
        (page / name).parent.mkdir(parents=True, exist_ok=True)
        (page / name).write_text(text)
    (root / "templates").mkdir()
    (root / "templates" / "index.json").write_text("[]")
    (root / "models" / "vae" / "sub").mkdir(parents=True)
    save_file({"a": np.zeros(1)}, root / "models" / "vae" / "sub" / "v.safetensors", metadata={"k": "v"})
    return root


@pytest.fixture(scope="module")
def client(base: Path) -> Iterator[TestClient]:
    settings = Settings(
        folders=Folders.below(base),
        user=base / "user",
        page=base / "page",
        templates=(base / "templates",),
        models={"vae": (base / "models" / "vae",), "diffusion_models": ()},
        largest_upload=100_000,
    )
    store = JobStore(base / "jobs.sqlite")
    engine = Engine(store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue")
    with TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188") as it:
        yield it
    store.close()


def submit(client: TestClient, **more: Any) -> str:
    answer = client.post("/api/prompt", json={"prompt": PROMPT} | more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt_id"])


def until_running(client: TestClient, job: str) -> None:
    """Wait until a node of the job has begun."""
    for _ in range(2000):
        found = client.get("/queue").json()["queue_running"]
        if found and found[0][1] == job:
            return
        time.sleep(0.01)
    raise AssertionError("the job was not begun")


def wait(client: TestClient, job: str) -> Any:
    for _ in range(2000):
        if found := client.get(f"/history/{job}").json():
            return found[job]
        time.sleep(0.01)
    raise AssertionError("the job did not end")
