"""Other sites, rebound names and strangers are kept out; programs and the page itself pass."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from http.cookies import SimpleCookie
from typing import Any

import pytest

from cygnet.errors import RequestError
from cygnet.server.guard import Access, Guard, Refusal, WrongTokens, is_loopback, without_token

TOKEN = "a-long-and-random-token"


def is_page(path: str) -> bool:
    return path == "/" or path.startswith("/assets/")


def scope(path: str = "/api/prompt", method: str = "POST", kind: str = "http", **headers: str | list[str]) -> Any:
    rows = {"host": "127.0.0.1:8188"} | {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = [
        (name.encode(), value.encode())
        for name, values in rows.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    path, _, query = path.partition("?")
    return {"type": kind, "path": path, "method": method, "headers": pairs, "query_string": query.encode()}


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    return None


def judge(request: Any, **access: Any) -> int:
    refusal = Guard(nothing, Access(**access), is_page).refusal(request)
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize("host", ["localhost", "localhost:8188", "127.0.0.1:8188", "[::1]:8188", "LOCALHOST:1"])
def test_programs_reach_it_by_its_own_names(host: str) -> None:
    assert judge(scope(host=host)) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.test", "evil.test:8188", "localhost.evil.test", "127.1", "2130706433", "", "localhost:x"),
        *("user@localhost", "localhost/x", "127.0.0.1:8188, evil.test", "0.0.0.0:8188", "192.168.0.7"),
    ],
)
def test_other_names_are_refused(host: str) -> None:
    assert judge(scope(host=host)) == 403


def test_a_missing_or_repeated_host_is_refused() -> None:
    assert judge(scope(host=[])) == 403
    assert judge(scope(host=["127.0.0.1", "127.0.0.1"])) == 403


def test_names_can_be_added() -> None:
    assert judge(scope(host="studio.lan:8188"), names=frozenset({"studio.lan"})) == 200


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_page_itself_passes_and_other_sites_do_not(kind: str, method: str) -> None:
    def status(**headers: str) -> int:
        return judge(scope(method=method, kind=kind, **headers))

    assert status(origin="http://127.0.0.1:8188", sec_fetch_site="same-origin") == 200
    assert status(sec_fetch_site="same-origin") == 200
    assert status(sec_fetch_site="none") == 200
    for bad in (
        {"origin": "null"},
        {"origin": "http://evil.test"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "https://127.0.0.1:8188.evil.test"},
        {"origin": ""},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "nonsense"},
        {"origin": "http://127.0.0.1:8188", "sec_fetch_site": "cross-site"},
    ):
        assert status(**bad) == 403, bad


def test_the_document_and_its_files_may_be_navigated_to_from_anywhere_but_not_posted_to() -> None:
    for path in ("/", "/assets/a.js"):
        assert judge(scope(path, "GET", sec_fetch_site="cross-site")) == 200
        assert judge(scope(path, "POST", sec_fetch_site="cross-site")) == 403
        assert judge(scope(path, "GET", sec_fetch_site="cross-site", origin="null")) == 403
    assert judge(scope("/ws", "GET", "websocket", sec_fetch_site="cross-site")) == 403


def test_another_origin_can_be_allowed_by_name() -> None:
    request = scope(origin="http://tool.lan:3000", sec_fetch_site="cross-site")
    assert judge(request, origins=frozenset({"http://tool.lan:3000"})) == 200
    assert judge(request, origins=frozenset({"http://tool.lan"})) == 403


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.168.0.7", "studio.lan"])
def test_other_machines_need_a_token(listen: str) -> None:
    with pytest.raises(RequestError, match="needs a token"):
        Access(listen=listen)
    assert Access(listen=listen, token=TOKEN).token == TOKEN
    with pytest.raises(RequestError, match="shorter than 16"):
        Access(listen=listen, token="short")


def test_loopback_is_told_from_the_rest() -> None:
    assert all(is_loopback(it) for it in ("localhost", "127.0.0.1", "127.8.9.1", "::1"))
    assert not any(is_loopback(it) for it in ("0.0.0.0", "10.0.0.1", "example.test", "127.0.0.1.evil.test"))


def test_a_token_is_taken_from_header_cookie_or_a_sockets_query() -> None:
    def status(request: Any) -> int:
        return judge(request, listen="0.0.0.0", token=TOKEN)

    assert status(scope()) == 401
    assert status(scope(host="192.168.0.7:8188")) == 401
    assert status(scope(authorization=f"Bearer {TOKEN}")) == 200
    assert status(scope(authorization=f"bearer {TOKEN}x")) == 401
    assert status(scope(authorization=f"Basic {TOKEN}")) == 401
    assert status(scope(cookie=f"a=b; cygnet_token={TOKEN}")) == 200
    assert status(scope(cookie="cygnet_token=")) == 401
    assert status(scope(f"/ws?clientId=1&token={TOKEN}", kind="websocket")) == 200
    assert status(scope(f"/api/queue?token={TOKEN}", "GET")) == 401  # it would end up in logs and histories
    assert status(scope("/login", "GET")) == 200
    assert status(scope("/health", "GET")) == 200


@pytest.mark.parametrize(
    "other",
    ['prefs={"a":"b c"}', "a=b c", "foo[0]=1", "bare", "\xe9=1", 'open="a', "=", "", "cygnet_token=of-yesterday"],
)
@pytest.mark.parametrize("name", ["cygnet_token", "cygnet_token_framed"])
def test_cookies_of_other_services_do_not_hide_the_token(other: str, name: str) -> None:
    for cookie in (f"{other}; {name}={TOKEN}", f"{name}={TOKEN};{other}", f'{other}; {name}="{TOKEN}"'):
        assert judge(scope(cookie=cookie), token=TOKEN) == 200
    assert judge(scope(cookie=f"{other}; x{name}={TOKEN}"), token=TOKEN) == 401


def test_a_token_of_marks_is_read_as_the_login_page_writes_it() -> None:
    token = 'a;b,c "d" \\ 1234567890'
    written: SimpleCookie = SimpleCookie({"cygnet_token": token})
    header = written["cygnet_token"].OutputString()
    assert judge(scope(cookie=f"a=b c; {header}; d=e"), token=token) == 200


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "http://]", "http://[zz]", "//", "\xff"])
def test_an_origin_that_cannot_be_read_is_refused(origin: str, kind: str) -> None:
    assert judge(scope("/ws", "GET", kind, origin=origin)) == 403


def test_guessing_is_slowed_down_and_the_right_token_never(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    guard = Guard(nothing, Access(token=TOKEN), is_page, WrongTokens(clock=lambda: now[0]))

    def status(token: str, address: str = "10.0.0.1") -> int:
        refusal = guard.refusal({**scope(authorization=f"Bearer {token}"), "client": (address, 1)})
        return 200 if refusal is None else refusal.status

    with caplog.at_level("WARNING", "cygnet"):
        statuses = [status(f"guess {i}") for i in range(25)]
    assert statuses == [401] * 20 + [429] * 5
    assert "20 wrong tokens from 10.0.0.1" in caplog.text
    assert "guess" not in caplog.text
    assert status("guess", "10.0.0.2") == 401, "a guesser slows down itself and nobody else"
    assert status(TOKEN) == 200, "nor does it keep out who has the token, at the same address"
    now[0] = 61
    assert status("guess") == 401


def test_a_visitor_without_a_token_is_led_to_the_login_page() -> None:
    guard = Guard(nothing, Access(token=TOKEN), is_page)
    refusal = guard.refusal(scope("/", "GET", accept="text/html,*/*"))
    assert refusal is not None
    assert (refusal.status, refusal.location) == (303, "/login?next=/")
    led = guard.refusal(scope("/?template=text_to_video_wan", "GET", accept="text/html"))
    assert led is not None
    assert led.location == "/login?next=/%3Ftemplate%3Dtext_to_video_wan"
    data = guard.refusal(scope("/api/queue", "GET", accept="text/html"))
    assert data is not None
    assert data.status == 401


def test_an_allowed_site_may_ask_first_but_gets_nothing_without_the_token() -> None:
    access = {"token": TOKEN, "origins": frozenset({"https://tool.test"})}
    asked = scope("/api/queue", "OPTIONS", origin="https://tool.test", sec_fetch_site="cross-site")
    assert judge(asked, **access) == 200
    assert judge(scope("/api/queue", "OPTIONS", origin="https://evil.test"), **access) == 403
    assert judge(scope("/api/queue", "GET", origin="https://tool.test"), **access) == 401


def test_a_token_that_no_header_can_carry_is_refused() -> None:
    with pytest.raises(RequestError, match="no header can carry"):
        Access(token="lang und zufällig genug")


@pytest.mark.parametrize("origin", ["*", "null", "tool.test", "https://tool.test/", "https://a b", "https://x@y", ""])
def test_only_a_named_origin_can_be_let_in(origin: str) -> None:
    with pytest.raises(RequestError, match="is no origin"):
        Access(origins=frozenset({origin}))


def test_names_are_the_same_in_any_case() -> None:
    assert judge(scope(host="studio.lan:8188"), names=frozenset({"Studio.LAN"})) == 200
    assert judge(scope(origin="https://tool.test"), origins=frozenset({"https://Tool.test"})) == 200


def test_a_page_with_an_old_token_is_led_to_the_login_and_counts_as_no_guess() -> None:
    guard = Guard(nothing, Access(token=TOKEN), is_page)
    visit = scope("/", "GET", accept="text/html", cookie="cygnet_token=of-yesterday")
    refusals = [guard.refusal(visit) for _ in range(30)]
    assert {it.status for it in refusals if it} == {303}


def test_packs_are_not_told_the_token() -> None:
    given = [("cookie", f"a=1; cygnet_token={TOKEN}; b=2"), ("authorization", f"Bearer {TOKEN}"), ("x", "y")]
    assert without_token(given, TOKEN) == [("cookie", "a=1; b=2"), ("x", "y")]
    assert without_token([("cookie", f"cygnet_token={TOKEN}"), ("authorization", "Basic z")], TOKEN) == [
        ("authorization", "Basic z")
    ]
    assert without_token(given, None) == given


def test_every_answer_tells_browsers_to_keep_it_from_other_sites() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Security-Policy", b"own")]})

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    for request in (scope(), scope(host="evil.test")):
        asyncio.run(Guard(app, Access(), is_page)(request, receive, send))
    ours, refusal = (dict(it["headers"]) for it in sent if it["type"] == "http.response.start")
    for headers in (ours, refusal):
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"cross-origin-resource-policy"] == b"same-origin"
    assert ours[b"Content-Security-Policy"] == b"own"
    assert refusal[b"content-security-policy"] == b"frame-ancestors 'self' vscode-webview:"


def test_only_so_many_guessers_are_remembered() -> None:
    wrong = WrongTokens()
    for number in range(10_050):
        wrong.add(str(number))
    assert len(wrong.times) == 10_000


def test_refusals_are_answers() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    guard = Guard(nothing, Access(), is_page)
    asyncio.run(guard(scope(host="evil.test"), receive, send))
    assert sent[0]["status"] == 403
    assert b"--allow-host" in sent[1]["body"]
    sent.clear()
    asyncio.run(guard(scope("/ws", kind="websocket", origin="null"), receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "requests from 'null' are refused"}]
    sent.clear()
    asyncio.run(guard({"type": "lifespan"}, receive, send))
    asyncio.run(guard(scope(), receive, send))
    assert sent == []
    asyncio.run(Refusal(401, "no").answer(send))
    assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]
