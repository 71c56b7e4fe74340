"""A browser gets in by the login page; other sites get in by being named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cygnet.graph.folders import Folders
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.guard import COOKIE, Access
from cygnet.server.login import own_path
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore

TOKEN = "a-long-and-random-token"
SITE = "https://tool.test"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<html>studio")
    access = Access(token=TOKEN, origins=frozenset({SITE}))
    settings = Settings(folders=Folders.below(tmp_path), user=tmp_path / "user", page=page, access=access)
    here = "tests.server.children"
    engine = Engine(JobStore(tmp_path / "jobs"), Sockets(features(settings)), f"{here}:worker", f"{here}:catalogue")
    it = TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188", follow_redirects=False)
    with it:
        yield it


def test_the_page_leads_to_the_login_and_the_right_token_leads_back(client: TestClient) -> None:
    refused = client.get("/", headers={"accept": "text/html"})
    assert (refused.status_code, refused.headers["location"]) == (303, "/login?next=/")
    form = client.get(refused.headers["location"])
    assert form.status_code == 200
    assert "frame-ancestors 'none'" in form.headers["content-security-policy"]
    entered = client.post("/login?next=/", data={"token": f" {TOKEN} "})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").text == "<html>studio"
    assert client.get("/api/queue").status_code == 200
    with client.websocket_connect("ws://127.0.0.1:8188/ws?clientId=a") as socket:
        assert socket.receive_json()["type"] == "status"
    client.post("/logout")
    assert client.cookies.get(COOKIE) is None
    assert client.get("/api/queue").status_code == 401


def test_a_wrong_token_is_refused_and_guessing_slowed_down(client: TestClient) -> None:
    long = client.post("/login", data={"token": "x" * 10_000})
    assert (long.status_code, "That is not the token" in long.text) == (401, True)
    statuses = [client.post("/login", data={"token": f"guess {i}"}).status_code for i in range(21)]
    assert statuses == [401] * 19 + [429] * 2
    assert client.post("/login", data={"token": TOKEN}).status_code == 303, "who has it gets in"
    assert client.get("/api/queue").status_code == 200


def test_the_cookie_of_an_encrypted_page_stays_on_encrypted_ways(client: TestClient) -> None:
    for origin, secure in (("http://127.0.0.1:8188", False), ("https://127.0.0.1:8188", True)):
        entered = client.post("/login", data={"token": TOKEN}, headers={"origin": origin})
        assert ("secure" in entered.headers["set-cookie"].lower()) is secure


def test_a_form_from_another_site_is_refused(client: TestClient) -> None:
    headers = {"origin": "https://evil.test", "sec-fetch-site": "cross-site"}
    assert client.post("/login", data={"token": TOKEN}, headers=headers).status_code == 403
    visited = client.get("/login", headers={"sec-fetch-site": "cross-site"})
    assert visited.status_code == 200, "a link to the studio may stand anywhere"


@pytest.mark.parametrize(
    "path", ["https://evil.test", "//evil.test", "/\\evil.test", "javascript:x", "", "a", "/\r\nx", "/" * 3000, "http://["]
)  # fmt: skip
def test_the_way_back_never_leads_to_another_site(client: TestClient, path: str) -> None:
    assert own_path(path) == "/"
    entered = client.post("/login", params={"next": path}, data={"token": TOKEN})
    assert entered.headers["location"] == "/"


def test_the_way_back_may_carry_a_query() -> None:
    assert own_path("/?template=text_to_video_wan") == "/?template=text_to_video_wan"


def test_a_named_site_may_call_and_read_the_answer(client: TestClient) -> None:
    asked = client.options("/api/queue", headers={"origin": SITE, "access-control-request-method": "GET"})
    assert asked.headers["access-control-allow-origin"] == SITE
    answered = client.get(
        "/api/queue", headers={"origin": SITE, "sec-fetch-site": "cross-site", "authorization": f"Bearer {TOKEN}"}
    )
    assert answered.status_code == 200
    assert answered.headers["access-control-allow-origin"] == SITE
    assert client.get("/api/queue", headers={"origin": "https://evil.test"}).status_code == 403
