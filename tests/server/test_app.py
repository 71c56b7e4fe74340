"""The routes that the page and the command-line clients use, over HTTP and the socket, with toy nodes."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.server.conftest import HERE, PROMPT, submit, until_running, wait

from cygnet.graph.folders import Folders
from cygnet.server import packs
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore

# Start


def test_the_page_finds_everything_that_it_needs_to_start(client: TestClient) -> None:
    for route in ("users", "settings", "extensions", "object_info", "features", "system_stats", "i18n"):
        for prefix in ("/api/", "/"):
            answer = client.get(prefix + route)
            assert answer.status_code == 200, route
            assert answer.headers["content-type"] == "application/json"
    assert client.get("/api/users").json() == {"storage": "server", "migrated": True}
    assert client.get("/api/extensions").json() == ["/extensions/core/x.js"]
    assert set(client.get("/api/object_info").json()) == {"Text", "Show"}
    assert client.get("/api/object_info/Nope").json() == {}
    system = client.get("/api/system_stats").json()
    assert system["devices"][0]["type"] == "cpu"
    assert {"os", "comfyui_version", "python_version", "argv", "ram_free"} <= set(system["system"])


def test_static_files_have_their_types_and_may_be_framed_by_an_editor(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    assert "vscode-webview:" in page.headers["content-security-policy"]
    assert client.get("/assets/a.js").headers["content-type"].startswith("application/javascript")
    assert client.get("/templates/index.json").headers["content-type"] == "application/json"
    assert client.get("/user.css").headers["content-type"].startswith("text/css")
    for missing in ("/assets/none.js", "/templates/none.json", "/docs/x/en.md", "/manager/version", "/..%2f..%2fx"):
        assert client.get(missing).status_code == 404, missing


def test_other_sites_are_kept_out_of_every_data_route(client: TestClient) -> None:
    for headers in ({"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"host": "evil.test"}):
        for route in ("/api/queue", "/queue", "/view?filename=x", "/api/settings", "/internal/logs", "/ws"):
            assert client.get(route, headers=headers).status_code == 403, (route, headers)
        assert client.post("/prompt", json={"prompt": PROMPT}, headers=headers).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200


def test_the_openapi_document_declares_what_paths_and_bodies_hold(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            declared = {it["name"] for it in operation.get("parameters", ()) if it["in"] == "path"}
            assert set(re.findall(r"{(\w+)}", path)) == declared, path
    submission = paths["/api/prompt"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert submission["required"] == ["prompt"]
    assert {it["name"] for it in paths["/api/view"]["get"]["parameters"]} >= {"filename", "subfolder", "type"}


def test_models_are_listed_by_kind(client: TestClient) -> None:
    assert client.get("/models").json() == ["diffusion_models", "vae"]
    assert client.get("/models/vae").json() == ["sub/v.safetensors"]
    assert client.get("/models/unet").json() == []
    assert client.get("/models/nope").status_code == 404
    (row,) = client.get("/experiment/models/vae").json()
    assert (row["name"], row["pathIndex"]) == ("sub/v.safetensors", 0)
    assert client.get("/view_metadata/vae?filename=sub/v.safetensors").json() == {"k": "v"}
    for bad in ("../v.safetensors", "sub/v.pth", "none.safetensors"):
        assert client.get("/view_metadata/vae", params={"filename": bad}).status_code == 404
    assert client.get("/embeddings").json() == []


@pytest.mark.parametrize(
    "route",
    [
        *("models/vae", "experiment/models/vae", "internal/files/input", "extensions"),
        *("userdata?dir=lists&recurse=true", "v2/userdata?path=lists"),
    ],
)
def test_folders_are_looked_into_while_others_are_answered(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    """A folder of many files, or one on a slow disk, is walked in a thread and not on the event loop."""
    client.post("/api/userdata/lists%2Fa.json", json={})
    client.post("/upload/image", files={"image": ("listed.png", picture(), "image/png")})
    on_the_loop = []

    def spied(real: Any) -> Any:
        def look(*arguments: Any, **named: Any) -> Any:
            on_the_loop.append(asyncio._get_running_loop() is not None)
            return real(*arguments, **named)

        return look

    with monkeypatch.context() as patched:
        for name in ("scandir", "listdir"):
            patched.setattr(os, name, spied(getattr(os, name)))
        answer = client.get(f"/{route}")
    assert answer.status_code == 200, answer.text
    assert on_the_loop
    assert not any(on_the_loop)


# Jobs


def test_a_submitted_job_runs_and_is_found_everywhere(client: TestClient) -> None:
    workflow = {"id": "w1", "nodes": []}
    job = submit(client, extra_data={"extra_pnginfo": {"workflow": workflow}}, client_id="me")
    entry = wait(client, job)
    assert entry["outputs"] == {"2": {"text": ["hello"]}}
    assert entry["status"]["status_str"] == "success"
    assert entry["prompt"][1] == job
    assert job in client.get("/api/history?max_items=1").json()
    listed = client.get("/api/jobs?status=completed&limit=5&workflow_id=w1").json()
    assert listed["jobs"][0]["id"] == job
    assert listed["pagination"] == {"offset": 0, "limit": 5, "total": 1, "has_more": False}
    detail = client.get(f"/api/jobs/{job}").json()
    assert detail["workflow"]["extra_data"]["extra_pnginfo"]["workflow"] == workflow
    assert client.get("/api/jobs/nobody").status_code == 404
    assert client.get("/prompt").json() == {"exec_info": {"queue_remaining": 0}}
    assert client.get("/queue").json() == {"queue_running": [], "queue_pending": []}
    assert client.post("/history", json={"delete": [job]}).status_code == 200
    assert client.get(f"/history/{job}").json() == {}


@pytest.mark.parametrize(
    "query", ["status=odd", "sort_by=x", "sort_order=up", "limit=0", "limit=x", "offset=-1", "limit=²"]
)
def test_a_bad_question_about_jobs_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/jobs?{query}")
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_a_bad_submission_is_refused_in_the_protocols_shape(client: TestClient) -> None:
    for body in (b"{", b"[]", b'{"prompt": {}}', b'{"prompt": {"1": {"class_type": "Nope", "inputs": {}}}}'):
        answer = client.post("/prompt", content=body)
        assert answer.status_code == 400
        assert set(answer.json()) == {"error", "node_errors"}
    labelled = client.post("/prompt", content=json.dumps({"prompt": PROMPT}), headers={"content-type": "text/plain"})
    assert labelled.status_code == 200
    wait(client, labelled.json()["prompt_id"])


def test_a_running_job_can_be_stopped_and_the_queue_cleared(client: TestClient) -> None:
    slow = {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": "wait"}}}
    running = client.post("/prompt", json={"prompt": slow}).json()["prompt_id"]
    until_running(client, running)
    waiting = submit(client)
    other = submit(client)
    assert [it[1] for it in client.get("/queue").json()["queue_pending"]] == [waiting, other]
    assert client.post(f"/api/jobs/{waiting}/cancel").json() == {"cancelled": True}
    for _ in range(2):
        assert client.post("/queue", json={"clear": True}).status_code == 200
    assert client.post("/interrupt", json={"prompt_id": waiting}).status_code == 200
    assert client.get("/queue").json()["queue_running"][0][1] == running
    assert client.post("/interrupt").status_code == 200
    assert wait(client, running)["status"]["completed"] is False
    assert client.get(f"/api/jobs/{running}").json()["status"] == "cancelled"
    assert client.post("/api/jobs/cancel", json={"job_ids": [running]}).json() == {"cancelled": False}
    assert client.post("/free", json={"unload_models": True, "free_memory": True}).status_code == 200


def test_waiting_jobs_can_be_moved(client: TestClient) -> None:
    slow = {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": "wait"}}}
    running = submit(client, prompt=slow)
    until_running(client, running)
    jobs = [submit(client) for _ in range(3)]
    for body, place in ({"place": 1}, 0), ({"place": 3}, 2), ({}, 0):
        assert client.post(f"/api/jobs/{jobs[1]}/move", json=body).json()["id"] == jobs[1]
        assert [it[1] for it in client.get("/queue").json()["queue_pending"]].index(jobs[1]) == place
    for body in ({"place": 0}, {"place": "1"}, {"place": True}):
        assert client.post(f"/api/jobs/{jobs[1]}/move", json=body).status_code == 400
    assert client.post("/api/jobs/nobody/move").status_code == 404
    assert client.post(f"/api/jobs/{running}/move").status_code == 409
    client.post("/queue", json={"clear": True})
    client.post("/interrupt")
    wait(client, running)


def test_the_socket_greets_answers_and_tells_of_jobs(client: TestClient) -> None:
    with client.websocket_connect("ws://127.0.0.1:8188/ws?clientId=abc") as socket:
        assert socket.receive_json()["data"]["sid"] == "abc"
        socket.send_text("not json")
        socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        assert socket.receive_json() == {"type": "feature_flags", "data": client.get("/api/features").json()}
        job = submit(client, client_id="abc")
        types = []
        while not types or types[-1] != ("executing", None):
            message = socket.receive_json()
            types.append((message["type"], message["data"].get("node")))
        assert wait(client, job)
        names = [name for name, _ in types]
        assert names.index("execution_start") < names.index("execution_success")


def test_noise_on_the_socket_is_ignored(client: TestClient) -> None:
    with client.websocket_connect("ws://127.0.0.1:8188/ws?clientId=noise") as socket:
        socket.receive_json()
        socket.send_bytes(b"\xff\x00")
        for noise in (
            "",
            "NaN",
            "[" * 500_000,
            "5",
            '{"type": ["feature_flags"]}',
            '{"type": "feature_flags", "data": 5}',
        ):
            socket.send_text(noise)
        socket.send_json({"type": "feature_flags", "data": {}})
        assert [socket.receive_json()["type"] for _ in range(2)] == ["feature_flags"] * 2


def test_the_log_panel_gets_new_lines(client: TestClient) -> None:
    with client.websocket_connect("ws://127.0.0.1:8188/ws?clientId=log") as socket:
        socket.receive_json()
        order = {"clientId": "log", "enabled": True}
        assert client.patch("/internal/logs/subscribe", json=order).status_code == 200
        logging.getLogger("cygnet.test").warning("two\nlines")
        message = socket.receive_json()
        assert message["type"] == "logs"
        assert "two\\nlines\n" in message["data"]["entries"][0]["m"]
        assert "two" in client.get("/internal/logs").json()
        assert client.get("/internal/logs/raw").json()["entries"]
        assert client.patch("/internal/logs/subscribe", json={**order, "enabled": False}).status_code == 200
        logging.getLogger("cygnet.test").warning("unheard")
        wait(client, submit(client, client_id="log"))
        heard = []
        while not heard or heard[-1] != ("executing", None):
            message = socket.receive_json()
            heard.append((message["type"], message["data"].get("node")))
        assert "logs" not in {kind for kind, _ in heard}


# Files


def picture(colour: tuple[int, ...] = (255, 0, 0), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", (8, 4), colour).save(out, format=kind)
    return out.getvalue()


def upload(client: TestClient, name: str, data: bytes, **fields: str) -> Any:
    return client.post("/upload/image", files={"image": (name, data)}, data=fields)


def test_an_upload_is_kept_and_served(client: TestClient) -> None:
    first = upload(client, "a b.png", picture(), subfolder="s")
    assert first.json() == {"name": "a b.png", "subfolder": "s", "type": "input"}
    assert upload(client, "a b.png", picture(), subfolder="s").json()["name"] == "a b.png"
    assert upload(client, "a b.png", picture((0, 0, 9)), subfolder="s").json()["name"] == "a b (1).png"
    assert upload(client, "a b.png", picture((0, 9, 9)), subfolder="s", overwrite="true").json()["name"] == "a b.png"
    served = client.get("/view", params={"filename": "a b.png", "subfolder": "s", "type": "input"})
    assert served.content == picture((0, 9, 9))
    assert served.headers["content-type"] == "image/png"
    assert served.headers["x-content-type-options"] == "nosniff"
    again = client.get("/view", params={"filename": "a b.png [input]", "subfolder": "s", "type": "output"})
    assert again.status_code == 200
    part = client.get(served.url, headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, picture((0, 9, 9))[1:4])
    assert upload(client, "clip.mp4", b"any bytes").status_code == 200
    assert "clip.mp4" in client.get("/internal/files/input").json()
    assert client.get("/internal/files/else").status_code == 400


def test_previews_and_channels_are_made_on_request(client: TestClient) -> None:
    upload(client, "alpha.png", picture((10, 20, 30, 40)))
    where = {"filename": "alpha.png", "type": "input"}
    small = client.get("/view", params={**where, "preview": "webp;50"})
    assert small.headers["content-type"] == "image/webp"
    alpha = Image.open(io.BytesIO(client.get("/view", params={**where, "channel": "a"}).content))
    assert alpha.getpixel((0, 0)) == 40
    colour = Image.open(io.BytesIO(client.get("/view", params={**where, "channel": "rgb"}).content))
    assert colour.getpixel((0, 0)) == (10, 20, 30)
    mask = {"original_ref": json.dumps({**where, "subfolder": ""})}
    made = client.post("/upload/mask", files={"image": ("m.png", picture((0, 0, 0, 7)))}, data=mask).json()
    masked = Image.open(io.BytesIO(client.get("/view", params={"filename": made["name"], "type": "input"}).content))
    assert masked.getpixel((0, 0)) == (10, 20, 30, 7)


@pytest.mark.parametrize(
    ("name", "data", "fields", "status"),
    [
        ("x.html", b"<script>", {}, 400),
        ("x.svg", b"<svg/>", {}, 400),
        ("x.png", b"<script>alert(1)</script>", {}, 400),
        ("x.png", picture()[:40], {}, 400),
        (".x.png", picture(), {}, 400),
        ("x.png", picture(), {"subfolder": "../out"}, 400),
        ("x.png", picture(), {"subfolder": "/tmp"}, 400),
        ("x.png", picture(), {"type": "user"}, 400),
        ("x.mp4", b"0" * 200_000, {}, 413),
    ],
)
def test_bad_uploads_are_refused(
    client: TestClient, name: str, data: bytes, fields: dict[str, str], status: int
) -> None:
    assert upload(client, name, data, **fields).status_code == status


def test_a_traversing_name_loses_its_folders(client: TestClient, base: Path) -> None:
    assert upload(client, "../../evil.png", picture()).json()["name"] == "evil.png"
    assert not (base.parent / "evil.png").exists()


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 404),
        ("filename=none.png", 404),
        ("filename=/etc/passwd", 400),
        ("filename=..%2f..%2fx", 400),
        ("filename=x.png&type=user", 400),
        ("filename=x.png&subfolder=..", 403),
        ("filename=x.png&subfolder=/etc", 403),
        ("filename=link.png&type=output", 403),
    ],
)
def test_view_stays_inside(client: TestClient, base: Path, query: str, status: int) -> None:
    link = base / "output" / "link.png"
    if not link.is_symlink():
        link.symlink_to(base / "jobs.sqlite")
    assert client.get(f"/view?{query}").status_code == status


def test_nothing_in_a_file_that_was_sent_or_made_can_run(client: TestClient, base: Path) -> None:
    for name in ("a.png", "a.mp4", "a.json", "a.txt", "a.html"):
        (base / "output" / name).write_text("<html><script>")
        headers = client.get(f"/view?filename={name}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "form-action 'none'" in policy
        assert "script" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "html" not in headers["content-type"]


def test_files_that_a_browser_would_run_are_attachments(client: TestClient, base: Path) -> None:
    for name in ("a.html", "a.svg", "a.js", "a.xml"):
        (base / "output" / name).write_text("<script>")
        answer = client.get(f"/view?filename={name}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are no text")
def test_a_file_whose_name_is_no_text_hides_no_other(client: TestClient, base: Path) -> None:
    for folder, suffix in (("input", ".png"), ("models/vae", ".safetensors"), ("user/default/workflows", ".json")):
        (base / folder).mkdir(parents=True, exist_ok=True)
        (base / folder / f"fine{suffix}").write_bytes(b"{}")
        (base / folder / f"broken\udcff{suffix}").write_bytes(b"{}")
    for route in ("internal/files/input", "models/vae", "experiment/models/vae", "userdata?dir=workflows"):
        answer = client.get(f"/{route}")
        assert (answer.status_code, "fine" in answer.text, "broken" in answer.text) == (200, True, False), route
    assert client.get("/v2/userdata?path=workflows").status_code == 200
    for found in (*base.rglob("broken*"), *base.rglob("fine*")):
        found.unlink()


@pytest.mark.parametrize("name", ["a" * 300, "a" * 60_000, "b/" * 1500, "a%00b", "%ff%fe", "%ed%a0%80"])
def test_no_name_makes_the_server_stumble(client: TestClient, name: str) -> None:
    asked = ("view?filename=", "view?filename=x.png&subfolder=", "userdata?dir=", "v2/userdata?path=", "userdata/")
    for route in (*asked, "templates/", "docs/", "extensions/a/", "view_metadata/vae?filename=", "jobs/", ""):
        assert client.get(f"/{route}{name}").status_code < 500, route
    for route in ("userdata/f.json%2F", "userdata/", "userdata/f.json/move/"):
        client.post("/userdata/f.json", content=b"{}")
        assert client.post(f"/{route}{name}", content=b"{}").status_code < 500, route


# The user's files


def test_settings_keep_any_value(client: TestClient) -> None:
    assert (
        client.post("/api/settings/Comfy.A", content=b"true", headers={"content-type": "text/plain"}).status_code == 200
    )
    assert client.post("/api/settings", json={"B": [1, None], "C": "x"}).status_code == 200
    for i in range(50):
        client.post(f"/api/settings/many.{i}", json=i)
    found = client.get("/api/settings").json()
    assert found["Comfy.A"] is True
    assert (found["B"], found["C"]) == ([1, None], "x")
    assert [found[f"many.{i}"] for i in range(50)] == list(range(50))
    assert client.get("/api/settings/C").json() == "x"
    assert client.get("/api/settings/none").json() is None
    assert client.post("/api/settings/__server", json=1).status_code == 403
    assert client.post("/api/settings", json=[1]).status_code == 400


def test_workflows_are_saved_listed_renamed_and_deleted(client: TestClient) -> None:
    name = "workflows%2Fmy%20flow%20%25%20%C3%A9.json"
    plain = "workflows/my flow % é.json"
    saved = client.post(f"/api/userdata/{name}?overwrite=false&full_info=true", content=b'{"a": 1}')
    assert saved.json()["path"] == plain
    assert client.post(f"/api/userdata/{name}?overwrite=false", content=b"{}").status_code == 409
    assert client.post(f"/api/userdata/{name}?overwrite=true", content=b'{"a": 2}').json() == plain
    assert client.get(f"/api/userdata/{name}").json() == {"a": 2}
    query = "dir=workflows&recurse=true"
    assert client.get(f"/api/userdata?{query}&split=false").json() == ["my flow % é.json"]
    assert client.get(f"/api/userdata?{query}&split=true").json() == [["my flow % é.json", "my flow % é.json"]]
    (info,) = client.get(f"/api/userdata?{query}&split=false&full_info=true").json()
    assert set(info) == {"path", "size", "modified", "created"}
    moved = client.post(f"/api/userdata/{name}/move/workflows%2Fsub%2Fb.json?overwrite=false")
    assert moved.json() == "workflows/sub/b.json"
    assert client.get("/api/v2/userdata?path=workflows").json()[0]["type"] == "directory"
    assert client.delete("/api/userdata/workflows%2Fsub%2Fb.json").status_code == 204
    assert client.delete("/api/userdata/workflows%2Fsub%2Fb.json").status_code == 404
    assert client.post("/api/userdata/workflows/plain.json", content=b"{}").json() == "workflows/plain.json"
    for bad in ("..%2F..%2Fx", "%2Fetc%2Fpasswd", "a%00b", "..%5Cx"):
        assert client.get(f"/api/userdata/{bad}").status_code == 403, bad
        assert client.post(f"/api/userdata/{bad}", content=b"x").status_code == 403, bad
    assert client.get("/api/userdata").status_code == 400
    assert client.get("/api/userdata?dir=none").status_code == 404
    assert client.get("/api/userdata?dir=..").status_code == 403


def test_an_ended_job_can_be_retried_over_http(client: TestClient) -> None:
    job = submit(client)
    wait(client, job)
    answer = client.post(f"/api/jobs/{job}/retry")
    assert (answer.status_code, answer.json()["id"]) == (200, job)
    wait(client, job)
    assert client.post("/api/jobs/nobody/retry").status_code == 404


def test_the_scripts_and_examples_of_packs_are_served(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("web/b.js", "3"), ("web/c.html", "<script>"), ("examples/w.json", "{}"), ("secret.py", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "subgraphs").mkdir()
    (tmp_path / "subgraphs" / "part.json").write_text('{"nodes": []}')
    web = ["my pack", str(tmp_path / "web")]
    pack = {"name": "my pack", "path": str(tmp_path), "web": web, "examples": str(tmp_path / "examples")}

    async def know(self: Engine, what: str, **more: Any) -> Any:
        return [] if what == "routes" else [pack, {"name": "other", "path": None, "web": None, "examples": None}]

    monkeypatch.setattr(Engine, "know", know)
    assert client.get("/api/extensions").json() == ["/extensions/core/x.js", "/extensions/my%20pack/b.js"]
    answer = client.get("/extensions/my%20pack/b.js")
    assert (answer.text, answer.headers["content-type"]) == ("3", "application/javascript")
    assert client.get("/extensions/core/x.js").text == "2"
    for wrong in ("my%20pack/..%2fsecret.py", "my%20pack/../secret.py", "none/b.js", "my%20pack/none.js"):
        assert client.get(f"/extensions/{wrong}").status_code == 404, wrong
    assert client.get("/api/workflow_templates").json() == {"my pack": ["w"]}
    assert client.get("/api/workflow_templates/my%20pack/w.json").json() == {}
    assert client.get("/api/workflow_templates/other/w.json").status_code == 404
    ((key, listed),) = client.get("/api/global_subgraphs").json().items()
    assert listed == {"source": "custom_node", "name": "part", "info": {"node_pack": "custom_nodes.my pack"}}
    assert client.get(f"/api/global_subgraphs/{key}").json() == {**listed, "data": '{"nodes": []}'}
    assert client.get("/api/global_subgraphs/none").status_code == 404
    assert client.get("/api/i18n").json() == packs.OWN_WORDS


def test_what_was_left_out_is_told_by_number(tmp_path: Path) -> None:
    """Anybody may ask, so no names; and it keeps no job from being done."""
    settings = Settings(folders=Folders.below(tmp_path), user=tmp_path / "user")
    store = JobStore(tmp_path / "jobs.sqlite")
    engine = Engine(store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:odd_catalogue")
    with TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188") as it:
        it.get("/object_info")
        told = it.get("/health").json()
    see = "the studio's log, and cygnet nodes list"
    assert (told["status"], told["left_out"]) == ("ok", {"packs": 1, "node_types": 2, "see": see})
    store.close()
