"""``cygnet launch``: the socket that it listens on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from cygnet.cli.launch import _bound, heard_by
from cygnet.cli.studio import read_token
from cygnet.errors import RequestError


def test_answers_are_not_held_back() -> None:
    async def main() -> int:
        found = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = _bound("127.0.0.1", 0)
        server = await asyncio.start_server(serve, sock=bound)
        _, writer = await asyncio.open_connection(*bound.getsockname())
        flag: int = await found
        writer.close()
        server.close()
        return flag

    assert asyncio.run(main()) != 0


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} .*choose another --port"):
            _bound("127.0.0.1", port)
    with pytest.raises(RequestError, match="from 0 "):
        _bound("127.0.0.1", 70000)


def test_the_first_signal_ends_and_the_second_hurries() -> None:
    import uvicorn

    async def app(scope: object, receive: object, send: object) -> None:
        return None

    hurried: list[bool] = []
    before = signal.getsignal(signal.SIGHUP)
    server = uvicorn.Server(uvicorn.Config(app))
    heard_by(server, lambda: hurried.append(True))
    try:
        signal.raise_signal(signal.SIGHUP)  # a terminal that was closed
        assert (server.should_exit, hurried) == (True, [])
        server.handle_exit(signal.SIGINT, None)
        assert (server.force_exit, hurried) == (False, [True]), "the shutdown itself is not skipped"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_server_under_nohup_does_not_mind_a_closed_terminal() -> None:
    import uvicorn

    async def app(scope: object, receive: object, send: object) -> None:
        return None

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        heard_by(uvicorn.Server(uvicorn.Config(app)), lambda: None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("listen", ["a" * 300, "no such host", "256.0.0.1"])
def test_an_address_that_is_none_is_refused_in_words(listen: str) -> None:
    with pytest.raises(RequestError, match="cannot listen on"):
        _bound(listen, 0)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such permissions")
def test_a_token_that_others_may_choose_is_none(tmp_path: Path) -> None:
    path = tmp_path / "token.txt"
    path.write_text("a long and random line\n")
    path.chmod(0o640)
    assert read_token(path) == "a long and random line"
    for mode in (0o660, 0o602):
        path.chmod(mode)
        with pytest.raises(RequestError, match=r"chmod 600 token\.txt"):
            read_token(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00", None])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "token.txt").write_bytes(content)
    with pytest.raises(RequestError, match=r"token file token\.txt"):
        read_token(tmp_path / "token.txt")
