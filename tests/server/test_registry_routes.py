"""Pack data for the page's Manager: through this server alone, on fixed paths, and only when it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cygnet.graph.folders import Folders
from cygnet.server import routes_registry
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.installer import REGISTRY
from cygnet.server.page_script import SCRIPT, with_script
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore
from stand_in_registry import Registry, stand_in_registry, zipped

HERE = "tests.server.children"
PAGE = "<!doctype html><html><head><script type=module src=./a.js></script></head></html>"


def served(base: Path, *, manager: bool) -> TestClient:
    (base / "page").mkdir()
    (base / "page" / "index.html").write_text(PAGE)
    settings = Settings(
        folders=Folders.below(base),
        user=base / "user",
        page=base / "page",
        packs=base / "custom_nodes" if manager else None,
    )
    engine = Engine(JobStore(base / "jobs.sqlite"), Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue")
    return TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with stand_in_registry() as url:
        monkeypatch.setenv("CYGNET_REGISTRY", url)
        Registry.packs["shout-pack"] = ("1.0.0", zipped(**{"__init__.py": ""}))
        Registry.node_types["Shout (loud)/1"] = "shout-pack"
        yield served(tmp_path, manager=True)


def test_pack_data_come_from_the_registry_without_addresses_of_pictures(client: TestClient) -> None:
    for route in ("/api/registry/nodes?node_id=shout-pack&node_id=other", "/registry/nodes/search?search=%26a%3Db"):
        answer = client.get(route)
        assert answer.status_code == 200
        (card,) = answer.json()["nodes"]
        assert (card["id"], card["latest_version"]["version"]) == ("shout-pack", "1.0.0")
        assert "icon" not in card, "the browser would fetch it from another site"
    assert client.get("/api/registry/nodes/shout-pack").json()["id"] == "shout-pack"
    assert client.get("/api/registry/nodes/shout-pack/versions").json()[0]["version"] == "1.0.0"
    assert client.get("/api/registry/comfy-nodes/Shout%20(loud)/1/node").json()["id"] == "shout-pack"
    order = {"node_versions": [{"node_id": "shout-pack", "version": "1.0.0", "more": "x"}]}
    bulk = client.post("/api/registry/bulk/nodes/versions", json=order).json()
    assert bulk["node_versions"][0]["status"] == "success"
    assert Registry.asked[:2] == ["/nodes?node_id=shout-pack&node_id=other", "/nodes/search?search=%26a%3Db"]


def test_only_fixed_paths_and_plain_words_reach_the_registry(client: TestClient) -> None:
    assert client.get("/api/registry/nodes/nobody").status_code == 404
    for route, status in (
        ("nodes/..%2f..%2fadmin", 404), ("nodes/%2e%2e", 400), ("nodes/a%20b", 400), ("nodes/a%3fx=1", 400),
        ("nodes/@evil.test", 400), ("nodes?callback=x", 400), (f"nodes?search={'x' * 300}", 400),
        ("nodes?" + "&".join(["node_id=a"] * 400), 400), ("publishers/x/nodes", 404), ("releases", 404),
        (f"comfy-nodes/{'x' * 300}/node", 400), ("comfy-nodes/a%2f..%2fb/node", 400), ("nodes/shout-pack/install", 404),
    ):  # fmt: skip
        assert client.get(f"/api/registry/{route}").status_code == status, route
    for body in ([], {"node_versions": [{"node_id": "../x", "version": "1"}]}, {"node_versions": [1]}, {}):
        assert client.post("/api/registry/bulk/nodes/versions", json=body).status_code == 400
    assert client.post("/api/registry/search", json={}).status_code == 404
    assert Registry.asked == ["/nodes/nobody"]


def test_other_sites_learn_nothing_of_packs(client: TestClient) -> None:
    for headers in ({"Origin": "null"}, {"Origin": "http://evil.test"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.get("/api/registry/nodes", headers=headers).status_code == 403
    assert Registry.asked == []


def test_a_registry_that_is_away_or_sends_too_much_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_registry, "_MOST", 10)
    answer = client.get("/api/registry/nodes")
    assert (answer.status_code, "larger" in answer.text) == (502, True)
    monkeypatch.setattr(routes_registry, "_MOST", 10_000)
    monkeypatch.setattr(Registry, "answer", lambda self, content: self.send_error(500))
    assert "answers 500" in client.get("/api/registry/nodes").text

    def other(self: Any, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    monkeypatch.setattr(Registry, "answer", other)
    answer = client.get("/api/registry/nodes")
    assert (answer.status_code, "cannot be read" in answer.text) == (502, True)


@pytest.mark.parametrize("manager", [True, False])
def test_the_page_gets_the_script_before_its_own(tmp_path: Path, manager: bool) -> None:
    client = served(tmp_path, manager=manager)
    document = client.get("/")
    assert document.text == PAGE.replace("<script", f'<script src=".{SCRIPT}"></script><script')
    assert document.headers["cache-control"] == "no-cache"
    assert "frame-ancestors" in document.headers["content-security-policy"]
    script = client.get(SCRIPT)
    assert script.headers["content-type"].startswith("application/javascript")
    assert f'"{REGISTRY}"' in script.text
    assert with_script("<html>") == "<html>"


def test_without_the_manager_nothing_reaches_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in_registry() as url:
        monkeypatch.setenv("CYGNET_REGISTRY", url)
        client = served(tmp_path, manager=False)
        for route in ("nodes?node_id=a", "comfy-nodes/Shout/node"):
            assert client.get(f"/api/registry/{route}").status_code == 404
        assert client.post("/api/registry/bulk/nodes/versions", json={"node_versions": []}).status_code in (404, 405)
        assert Registry.asked == []
