"""A browser gets in by the login page; other sites get in by being named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cygnet.graph.folders import Folders
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine
from cygnet.server.guard import COOKIE, FRAMED_COOKIE, Access
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
    assert form.headers["content-security-policy"].endswith("frame-ancestors 'self' vscode-webview:")
    assert form.headers["referrer-policy"] == "same-origin", "else the form comes from an origin 'null'"
    entered = client.post("/login?next=/", data={"token": f" {TOKEN} "})
    back = client.get(entered.headers["location"])
    assert (entered.status_code, back.status_code, back.headers["location"]) == (303, 303, "/")
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


FRAMED = {"sec-fetch-dest": "iframe", "sec-fetch-mode": "navigate"}


def test_a_page_in_an_editors_frame_logs_in_by_a_cookie_of_that_frame(client: TestClient) -> None:
    shown = client.get("/login", headers={**FRAMED, "sec-fetch-site": "cross-site"})
    assert "<form" in shown.text
    headers = {**FRAMED, "origin": "http://127.0.0.1:8188", "sec-fetch-site": "same-origin"}
    entered = client.post("/login", data={"token": TOKEN}, headers=headers)
    (cookie,) = entered.headers.get_list("set-cookie")
    assert cookie.startswith(f"{FRAMED_COOKIE}={TOKEN};")
    assert all(it in cookie for it in ("; HttpOnly", "; Secure", "; SameSite=None", "; Partitioned", "; Path=/"))
    client.cookies.clear()
    assert client.get("/api/queue", headers={"cookie": f"{FRAMED_COOKIE}={TOKEN}"}).status_code == 200
    both = f"{COOKIE}=of-yesterday-and-long; {FRAMED_COOKIE}={TOKEN}"
    assert client.get("/api/queue", headers={"cookie": both}).status_code == 200
    assert client.get("/api/queue", headers={"cookie": f"{FRAMED_COOKIE}=wrong"}).status_code == 401
    foreign = {"cookie": both, "sec-fetch-site": "cross-site"}
    assert client.get("/api/queue", headers=foreign).status_code == 403, "other sites may cause it, and get nothing"
    left = client.post("/logout", headers={"cookie": both}).headers.get_list("set-cookie")
    assert [it for it in left if it.startswith(f'{FRAMED_COOKIE}="";') and "Max-Age=0" in it]


def test_where_the_browser_keeps_no_token_the_page_says_what_to_do(client: TestClient) -> None:
    entered = client.post("/login?next=/", data={"token": TOKEN})
    back = entered.headers["location"]
    assert (client.get(back).status_code, client.get(back).headers["location"]) == (303, "/")
    client.cookies.clear()
    shown = client.get(back, headers={"host": "192.0.2.7:8188"})
    assert "<form" not in shown.text
    assert "the browser did not keep it" in shown.text
    assert 'href="http://192.0.2.7:8188/"' in shown.text
    assert "ssh -L 8188:127.0.0.1:8188" in shown.text


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
    assert client.get(entered.headers["location"]).headers["location"] == "/"


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
