"""Routes that a pack adds, through the server and the worker's socket, and what a pack says to the page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cygnet.graph.folders import Folders
from cygnet.nodes.host import Host
from cygnet.server import packs
from cygnet.server.app import create_app, features
from cygnet.server.child import Channel
from cygnet.server.engine import Engine
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore
from cygnet.server.worker import serve_catalogue, serve_jobs

HERE = "tests.server.test_pack_routes"
CARD = {"name": "card", "type": "cuda", "index": 0, "vram_total": 8, "vram_free": 5}


def host_with_routes(host: Host, files: str) -> Host:
    from aiohttp import web

    @host.routes.get("/mine/{name}")
    async def greet(request: web.Request) -> web.Response:
        return web.json_response({"name": request.match_info["name"], "q": request.query.get("q")})

    @host.routes.post("/mine/upload")
    async def upload(request: web.Request) -> web.Response:
        fields = await request.post()
        return web.Response(body=fields["file"].file.read()[::-1], headers={"X-Mine": "yes"})  # type: ignore[union-attr]

    @host.routes.put("/mine/say")
    async def say(request: web.Request) -> web.Response:
        host.send_sync("mine.event", await request.json(), request.query.get("to"))
        return web.Response(status=204)

    @host.routes.get("/mine/fails/now")
    async def fails(request: web.Request) -> web.Response:
        raise ValueError("a pack's own mistake")

    @host.routes.get("/api/queue")
    async def never(request: web.Request) -> web.Response:
        return web.Response(text="a pack cannot replace our routes")

    @host.routes.get("/scripts/run")
    async def tempting(request: web.Request) -> web.Response:
        return web.Response(text="other sites may visit this path, so that nothing runs there")

    host.app.add_routes([web.static("/mine-files", files)])
    host.close_table()
    return host


def worker(channel: Channel, options: Mapping[str, Any]) -> None:
    host = Host(lambda event, data, client: channel.send({"said": event, "data": data, "client": client}))
    host_with_routes(host, options["files"]).serve(Path(options["pack_socket"]))
    serve_jobs(channel, {}, devices=lambda: [CARD])


def catalogue(channel: Channel, options: Mapping[str, Any]) -> None:
    serve_catalogue(channel, {}, routes=host_with_routes(Host(), options["files"]).patterns())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    base = tmp_path_factory.mktemp("packs")
    (base / "page").mkdir()
    (base / "files").mkdir()
    (base / "files" / "a.txt").write_text("from a folder")
    socket = base / "s"
    settings = Settings(
        folders=Folders.below(base), user=base / "user", page=base / "page", pack_socket=socket, largest_upload=5000
    )
    store = JobStore(base / "jobs.sqlite")
    options = {"pack_socket": str(socket), "files": str(base / "files")}
    engine = Engine(store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue", options)
    with TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188") as it:
        for _ in range(3000):
            if engine.ready and socket.exists():
                break
            time.sleep(0.01)
        yield it
    store.close()


def test_a_packs_routes_are_served_with_and_without_the_prefix(client: TestClient) -> None:
    for prefix in ("/api/", "/"):
        answer = client.get(f"{prefix}mine/a%20b?q=1%2B1")
        assert answer.json() == {"name": "a b", "q": "1+1"}
        assert answer.headers["content-type"].startswith("application/json")
    sent = client.post("/mine/upload", files={"file": ("x.bin", b"abc\x00")})
    assert (sent.content, sent.headers["x-mine"]) == (b"\x00cba", "yes")
    assert client.get("/mine-files/a.txt").text == "from a folder"
    assert client.head("/mine/x").status_code == 200


def test_a_pack_replaces_none_of_our_routes_and_its_failure_is_its_own(client: TestClient) -> None:
    assert client.get("/api/queue").json() == {"queue_running": [], "queue_pending": []}
    assert client.get("/mine/fails/now").status_code == 500
    assert client.get("/mine-files/..%2fs").status_code in (403, 404)
    assert client.get("/mine").status_code == 404
    assert client.get("/scripts/run").status_code == 404
    assert client.post("/mine/a").status_code == 405
    assert client.get("/mine/a").status_code == 200


def test_the_guard_and_the_limits_hold_for_them_too(client: TestClient) -> None:
    assert client.get("/mine/a", headers={"origin": "http://evil.test"}).status_code == 403
    assert client.post("/mine/upload", content=b"0" * 6000).status_code == 413


def test_what_a_pack_says_reaches_its_client(client: TestClient) -> None:
    with client.websocket_connect("ws://127.0.0.1:8188/ws?clientId=me") as socket:
        socket.receive_json()
        assert client.put("/mine/say?to=somebody", json={"n": 1}).status_code == 204
        assert client.put("/mine/say?to=me", json={"n": 2}).status_code == 204
        assert socket.receive_json() == {"type": "mine.event", "data": {"n": 2}}
        client.put("/mine/say", json={"n": 3})
        assert socket.receive_json()["data"] == {"n": 3}


def test_the_workers_device_is_what_the_page_is_told(client: TestClient) -> None:
    assert client.get("/api/system_stats").json()["devices"] == [CARD]


def test_a_clash_leaves_one_route_out_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from aiohttp import web

    host = Host()

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    for path in ("/a", "/a", "no-slash", "/b"):
        host.routes.get(path)(answer)
    host.close_table()
    assert host.patterns() == [("GET", "/a"), ("HEAD", "/a"), ("GET", "/b"), ("HEAD", "/b")]
    assert caplog.text.count("left out") == 2


def test_translations_and_subgraphs_are_merged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(path: str, value: object) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(value if isinstance(value, str) else json.dumps(value))

    write("a/locales/fr/main.json", {"g": {"yes": "oui"}})
    write("a/locales/fr/nodeDefs.json", {"A": {"display_name": "Un"}})
    write("b/locales/fr/nodeDefs.json", {"B": {"display_name": "Deux"}})
    write("b/locales/de/settings.json", "no json")
    write("b/locales/de/commands.json", [])
    write("b/subgraphs/s.json", {"nodes": []})
    told = [{"name": name, "path": str(tmp_path / name)} for name in "ab"] + [{"name": "installed", "path": None}]
    nodes = {"A": {"display_name": "Un"}, "B": {"display_name": "Deux"}}
    assert packs.translations(told) == {"fr": {"g": {"yes": "oui"}, "nodeDefs": nodes}}
    assert "settings.json" in caplog.text
    ((key, found),) = packs.subgraphs(told).items()
    assert len(key) == 32
    assert found.json()["name"] == "s"
    assert json.loads(found.text()) == {"nodes": []}
