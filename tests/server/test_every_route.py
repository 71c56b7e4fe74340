"""What holds for every route there is: other sites, paths that lead out, and requests of any form."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient
from tests.server.conftest import HERE, PROMPT

from cygnet.graph.folders import Folders
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore
from stand_in_registry import stand_in_registry

UNLISTED = [
    *(
        ("GET", it)
        for it in ("/internal/logs", "/internal/logs/raw", "/internal/files/input", "/internal/folder_paths")
    ),
    *(("GET", it) for it in ("/user.css", "/templates/index.json", "/docs/a/en.md", "/metrics", "/api/openapi.json")),
    *(("GET", it) for it in ("/health", "/ws", "/anything.json", "/api/anything")),
    *(("POST", it) for it in ("/login", "/logout", "/anything", "/", "/assets/a.js", "/extensions/core/x.js")),
    ("PATCH", "/internal/logs/subscribe"),
    ("HEAD", "/view"),
    ("PUT", "/"),
    ("DELETE", "/index.html"),
    ("OPTIONS", "/prompt"),
]
SECRET = "the secret outside"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outside") / "base"
    for name, text in (("page/index.html", "<html>"), ("page/assets/a.js", "1"), ("docs/a/en.md", "help")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("page/extensions/core", "templates", "models/vae", "input/sub", "output", "temp", "user/default"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "templates/index.json").write_text("[]")
    for outside in (root.parent / "secret.txt", root.parent / "secret.safetensors", root / "jobs-like.txt"):
        outside.write_text(SECRET)
    for folder in ("input", "output", "temp", "user/default", "page", "templates", "docs", "models/vae"):
        (root / folder / "link.txt").symlink_to(root.parent / "secret.txt")
        (root / folder / "link.safetensors").symlink_to(root.parent / "secret.safetensors")
        (root / folder / "linked").symlink_to(root.parent)
    return root


@pytest.fixture(scope="module")
def client(base: Path) -> Iterator[TestClient]:
    settings = Settings(
        folders=Folders.below(base),
        user=base / "user",
        page=base / "page",
        templates=(base / "templates",),
        docs=base / "docs",
        models={"vae": (base / "models/vae",)},
        largest_upload=100_000,
        packs=base / "custom_nodes",
    )
    store = JobStore(base / "jobs.sqlite")
    engine = Engine(store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue")
    with pytest.MonkeyPatch.context() as patch, stand_in_registry() as registry:
        patch.setenv("CYGNET_REGISTRY", registry)
        with TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188", follow_redirects=False) as it:
            yield it
    store.close()


def routes(client: TestClient) -> list[tuple[str, str]]:
    """Method and path of every route, those of the document under both of their names."""
    found = list(UNLISTED)
    for path, methods in client.get("/api/openapi.json").json()["paths"].items():
        filled = re.sub(r"{\w+}", "x", path)
        found += [(method.upper(), name) for method in methods for name in (filled, filled.removeprefix("/api"))]
    assert len(found) > 80
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "null"},
        {"origin": "https://evil.test"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1:8188.evil.test"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"host": "evil.test"},
        {"host": "evil.test:8188", "origin": "http://evil.test:8188", "sec-fetch-site": "same-origin"},
    ],
    ids=str,
)
def test_no_other_site_reaches_any_route(client: TestClient, headers: dict[str, str]) -> None:
    for method, path in routes(client):
        answer = client.request(method, path, headers=headers, content=b"{}" if method != "GET" else None)
        assert answer.status_code == 403, (method, path)
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_sites_may_lead_to_the_page_but_not_past_it(client: TestClient) -> None:
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    for path in ("/", "/index.html", "/assets/a.js"):
        answer = client.get(path, headers=visit)
        assert answer.status_code == 200
        assert "frame-ancestors 'self' vscode-webview:" in answer.headers["content-security-policy"]
    assert client.get("/login", headers=visit).status_code == 303
    for path in ("/assets/%2e%2e/api/queue", "/assets/..%2fapi/queue"):
        assert client.get(path, headers=visit).status_code in (403, 404)


def test_programs_pass_and_every_answer_is_kept_from_being_guessed_or_framed(client: TestClient) -> None:
    for method, path in routes(client):
        if method == "GET" and path != "/ws":
            answer = client.get(path)
            assert answer.status_code < 500, path
            assert answer.status_code != 403, path
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert "frame-ancestors" in answer.headers["content-security-policy"], path
            assert answer.headers["cross-origin-resource-policy"] == "same-origin", path


def test_reading_changes_nothing(client: TestClient, base: Path) -> None:
    job = client.post("/prompt", json={"prompt": PROMPT}).json()["prompt_id"]
    while not client.get(f"/history/{job}").json():
        pass
    (base / "input/kept.txt").write_text("kept")

    def state() -> object:
        files = {it: it.stat().st_mtime_ns for it in base.rglob("*") if it.is_file() and "sqlite" not in it.name}
        return files, client.get("/history").json(), client.get("/queue").json(), client.get("/settings").json()

    before = state()
    for method, path in routes(client):
        if method in ("GET", "HEAD") and path != "/ws":
            client.request(method, path, params={"clear": "true", "delete": job, "overwrite": "true"})
    assert state() == before


# Absolute names lead into the test's own folder and never into the system's: were a guard to fail, the tests below
# would read, write and delete what they name.
OUT = [
    *("../secret.txt", "../../secret.txt", "..\\..\\secret.txt", "sub/../../../secret.txt", "....//secret.txt"),
    *("%2e%2e/%2e%2e/secret.txt", "%2e%2e%2f%2e%2e%2fsecret.txt", "%252e%252e%252fsecret.txt", "..%2f..%2fsecret.txt"),
    *("..%c0%af..%c0%afsecret.txt", "..%255c..%255csecret.txt", "．．/．．/secret.txt", "..∕..∕secret.txt"),
    *("{out}/secret.txt", "/{out}/secret.txt", "file://{out}/secret.txt", "{out}\\secret.txt"),
    *("C:\\Windows\\win.ini", "C:secret.txt"),
    *("~/secret.txt", "~root/x", "link.txt", "linked/secret.txt", "linked/base/jobs-like.txt", "../secret.txt\0.png"),
    *(
        "../secret.txt [input]",
        "../secret.txt [output]",
        "link.txt [temp]",
        "../base/../secret.txt",
        "./../../secret.txt",
    ),
    *("../secret.safetensors", "link.safetensors", "linked/secret.safetensors", "../../jobs.sqlite", "../jobs.sqlite"),
]


@pytest.mark.parametrize("name", OUT)
def test_no_name_reads_outside_its_folder(client: TestClient, base: Path, name: str) -> None:
    name = name.replace("{out}", str(base.parent))
    for text in (quote(name, safe="/\\:~%"), quote(name, safe=""), quote(quote(name, safe=""), safe="")):
        for kind in ("input", "output", "temp"):
            asked = [f"/view?type={kind}&filename={text}", f"/view?type={kind}&filename=secret.txt&subfolder={text}"]
            asked += [f"/view?type={kind}&filename={text}&preview=webp", f"/internal/files/{text}"]
            for path in asked:
                assert SECRET not in client.get(path).text, path
        for route in ("userdata/", "templates/", "docs/", "extensions/core/", "extensions/", "assets/", "", "api/",
                      "models/", "experiment/models/", "experiment/models/preview/vae/0/", "workflow_templates/a/",
                      "userdata?dir=", "v2/userdata?path=", "view_metadata/vae?filename=", "settings/",
                      "global_subgraphs/", "history/", "jobs/"):  # fmt: skip
            answer = client.get(f"/{route}{text}")
            assert answer.status_code < 500, route
            assert SECRET not in answer.text, route
            assert "secret.txt" not in answer.text or answer.status_code >= 400, route


@pytest.mark.parametrize("name", OUT)
def test_no_name_writes_or_deletes_outside_its_folder(client: TestClient, base: Path, name: str) -> None:
    name = name.replace("{out}", str(base.parent))

    def outside() -> object:
        kept = {it: it.read_bytes() for it in base.parent.iterdir() if it.is_file()}
        return kept, sorted(it.name for it in base.iterdir() if "sqlite" not in it.name)

    before = outside()
    picture = (Path(__file__).parents[2] / "docs/assets/first-frame.png").read_bytes()[:90_000]
    for text in (quote(name, safe="/\\:~%"), quote(name, safe="")):
        client.post(f"/userdata/{text}", content=b"pwned")
        client.post("/userdata/mine.json", content=b"pwned")
        client.post(f"/userdata/mine.json/move/{text}")
        client.post(f"/userdata/{text}/move/mine.json")
        client.delete(f"/userdata/{text}")
        client.post(f"/settings/{text}", content=b"1")
        for fields in ({"subfolder": name}, {"type": name}, {"overwrite": "true"}):
            client.post("/upload/image", files={"image": (f"{name}.png", picture)}, data=fields)
            client.post("/upload/image", files={"image": (f"{name}.txt", b"pwned")}, data=fields)
        client.post("/v2/manager/queue/task", json={"kind": "install", "params": {"id": name}})
    assert outside() == before


def test_no_request_of_any_form_is_a_servers_error(client: TestClient) -> None:
    """The same odd requests each time; the client raises what a route does not handle."""
    chance = random.Random(5)
    odd: list[Any] = [None, True, 0, -1, 1.5, 10**30, "", "a", "..", "\0", "é", "x" * 3000, [], {}, [[]], {"": ""}]
    odd += [["1", 0], [1, 2, 3], {"__value__": [1]}, {"class_type": "Text", "inputs": {"text": "a"}}, {"inputs": []}]
    keys = ["prompt", "client_id", "front", "number", "prompt_id", "extra_data", "extra_pnginfo", "workflow", "clear"]
    keys += ["partial_execution_targets", "delete", "job_ids", "unload_models", "clientId", "params", "cnr_ids", "1"]
    words = ["", "a", "..", "%00", "%ff", "a%2Fb", "input", "vae", "0", "9" * 25, "true", "a" * 300, "move", "NaN"]

    def value(depth: int = 0) -> Any:
        if depth > 3 or chance.random() < 0.5:
            return chance.choice(odd)
        if chance.random() < 0.7:
            return {chance.choice(keys): value(depth + 1) for _ in range(chance.randrange(5))}
        return [value(depth + 1) for _ in range(chance.randrange(4))]

    def body() -> bytes:
        text = json.dumps({chance.choice(keys): value()} if chance.random() < 0.8 else value()).encode()
        if chance.random() < 0.2:
            at = chance.randrange(len(text))
            text = text[:at] + chance.randbytes(1) + text[at + 1 :]
        return text if chance.random() < 0.95 else chance.randbytes(40)

    asked = [it for it in routes(client) if "reboot" not in it[1] and "queue/start" not in it[1] and it[1] != "/ws"]
    for _ in range(1500):
        method, path = chance.choice(asked)
        path = re.sub(r"/x\b", lambda _: f"/{chance.choice(words)}", path)
        names = [*chance.sample(keys, 1), "filename", "type", "dir", "limit", "offset", "max_items", "subfolder"]
        query = "&".join(f"{chance.choice(names)}={chance.choice(words)}" for _ in range(chance.randrange(3)))
        answer = client.request(method, f"{path}?{query}", content=body() if method != "GET" else None)
        assert answer.status_code < 500, (method, path, query)
    assert client.get("/health").json()["status"] == "ok"
