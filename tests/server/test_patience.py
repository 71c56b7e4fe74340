"""Slow clients and many of them take nothing away from the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from cygnet.server import patience
from cygnet.server.patience import Patience, PatientProtocol


async def count(request: Request) -> JSONResponse:
    return JSONResponse(len(await request.body()))


async def large(request: Request) -> Response:
    return Response(b"x" * 2**25)


async def echo(connection: WebSocket) -> None:
    await connection.accept()
    await connection.send_text(await connection.receive_text())
    await connection.close()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name, value in (("GRACE", 0.4), ("HEADERS_WITHIN", 0.4), ("READ_WITHIN", 0.4), ("MOST_CONNECTIONS", 20)):
        monkeypatch.setattr(patience, name, value)
    routes = [Route("/", count, methods=["GET", "POST"]), Route("/large", large), WebSocketRoute("/ws", echo)]
    bound = socket.create_server(("127.0.0.1", 0))
    app = Patience(Starlette(routes=routes), most=100_000)
    server = uvicorn.Server(uvicorn.Config(app, http=PatientProtocol, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    yield bound.getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port: int, body: bytes = b"") -> bytes:
    """A whole request, and its whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as it:
        it.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return b"".join(iter(lambda: it.recv(65536), b""))


def left_open(it: socket.socket, seconds: float) -> bool:
    """Whether the server keeps a silent connection for so long."""
    it.settimeout(seconds)
    try:
        return it.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def test_headers_that_do_not_end_are_not_waited_for(port: int) -> None:
    for begun in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n"):
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as it:
            it.sendall(begun)
            assert not left_open(it, 3)


def test_a_second_request_that_does_not_end_is_not_waited_for(port: int) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as it:
        it.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        it.settimeout(5)
        answer = b""
        while not answer.endswith(b"\r\n\r\n0"):
            answer += it.recv(1)
        it.sendall(b"GET / HT")
        assert not left_open(it, 3)


def test_a_body_that_comes_too_slowly_is_refused(port: int) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as it:
        it.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        begun = time.monotonic()
        it.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - begun < 3:  # one byte now and then does not help
            with contextlib.suppress(TimeoutError):
                it.sendall(b"x")
                answer = it.recv(65536)
        assert b" 408 " in answer
        assert time.monotonic() - begun < 2


def test_those_who_ask_properly_are_heard_among_many_who_do_not(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
    for _ in range(10):
        assert ask(port, b"abc").endswith(b"3")
    for it in silent:
        it.close()


def test_a_client_that_reads_nothing_is_let_go(port: int) -> None:
    with contextlib.closing(socket.socket()) as it:
        it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        it.connect(("127.0.0.1", port))
        it.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(1.5)
        it.settimeout(5)
        got = 0
        with contextlib.suppress(ConnectionError):
            while data := it.recv(65536):
                got += len(data)
        assert got < 2**25


def test_a_socket_may_be_silent(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}/ws") as it:
        time.sleep(1.5)
        it.send("still here")
        assert it.recv(5) == "still here"


def test_all_bodies_together_are_held_within_a_limit() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await asyncio.sleep(0.05)

    async def story() -> None:
        gate = Patience(app, most=1000)

        async def request(size: int) -> str:
            sent = iter([{"type": "http.request", "body": b"x" * size, "more_body": False}])

            async def receive() -> MutableMapping[str, Any]:
                return next(sent)

            async def send(message: MutableMapping[str, Any]) -> None:
                return None

            try:
                await gate({"type": "http"}, receive, send)
            except HTTPException as error:
                return str(error.status_code)
            return "taken"

        assert await asyncio.gather(*(request(400) for _ in range(4))) == ["taken", "taken", "503", "503"]
        assert gate.held == 0
        assert await request(900) == "taken"

    asyncio.run(story())
